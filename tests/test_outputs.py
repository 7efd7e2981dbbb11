"""Where outputs may go, and what they may replace."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tiny import RESNET8

import reszoo
from reszoo.files import atomic_folder, folder_entries, free_folder
from reszoo_export.manifest import named_entries

BUNDLED = Path(__file__).parents[1] / "saved_models/resnet20-cifar10"


def named(folder: Path) -> set[str] | None:
    """An output is a file `mark`, and what that lists."""
    if not (folder / "mark").is_file():
        return None
    return {"mark", *(folder / "mark").read_text().split()}


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


free = partial(free_folder, kind="a mark", named=named)


def test_new_and_empty_folders_are_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert free_folder("~/new/x") == tmp_path / "new" / "x"
    (tmp_path / "empty").mkdir()
    assert free_folder(tmp_path / "empty") == tmp_path / "empty"
    with atomic_folder("~/made") as temporary:
        write(temporary, mark="")
    assert contents(tmp_path / "made") == {"mark": ""}


def test_only_what_an_output_names_is_replaced(tmp_path: Path) -> None:
    ours = write(tmp_path / "ours", mark="part", part="1")
    with pytest.raises(reszoo.UsageError, match=r"already holds a mark.*--overwrite"):
        free(ours)
    assert free(ours, overwrite=True) == ours
    (ours / "app" / "deep").mkdir(parents=True)
    (ours / "link").symlink_to("/")
    write(ours, notes="mine")
    with pytest.raises(
        reszoo.UsageError, match=r"other files too: app/deep/, link, notes;"
    ):
        free(ours, overwrite=True)
    others = write(tmp_path / "others", notes="")
    write(tmp_path, file="")
    for place in (others, tmp_path / "file", Path("/")):
        with pytest.raises(reszoo.UsageError, match="is not a mark of reszoo"):
            free(place, overwrite=True)
        with pytest.raises(reszoo.UsageError, match="exists already"):
            free_folder(place, overwrite=True)
    for number in range(20):
        write(ours, **{f"x{number:02}": ""})
    with pytest.raises(reszoo.UsageError, match=r"x00, x01 and 18 more;"):
        free(ours, overwrite=True)


def test_an_output_does_not_replace_its_inputs(tmp_path: Path) -> None:
    ours = write(tmp_path / "ours", mark="part", part="1")
    (tmp_path / "link").symlink_to(ours)
    for given in (ours / "part", ours, tmp_path / "link" / "part"):
        with pytest.raises(reszoo.UsageError, match="other files too"):
            free(ours, overwrite=True, inputs=[given])
    assert free(ours, overwrite=True, inputs=["digits", tmp_path / "gone"]) == ours


def write_while(folder: Path, check: Any, **others: str) -> None:
    """Write an output, and what others put into its folder meanwhile."""
    with atomic_folder(folder, lambda place: check(content=place)) as temporary:
        write(temporary, mark="")
        write(folder, **others)


def test_a_folder_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with pytest.raises(reszoo.UsageError, match=rf"{folder} already holds a mark"):
        write_while(folder, partial(free, folder), mark="part", part="others'")
    assert contents(folder)["part"] == "others'"
    check = partial(free, folder, overwrite=True)
    with pytest.raises(reszoo.UsageError, match=r"other files too: notes;"):
        write_while(folder, check, notes="written meanwhile")
    assert contents(folder)["notes"] == "written meanwhile"
    assert [each.name for each in tmp_path.iterdir()] == ["new"]


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, in which there is an earlier output."""
    place = write(tmp_path / "here", mark="part", part="1")
    monkeypatch.chdir(place)
    return place


def test_a_working_directory_stays_and_its_contents_are_replaced(inside: Path) -> None:
    before = inside.stat().st_ino
    check = partial(free, ".", overwrite=True)
    with atomic_folder(".", lambda place: check(content=place)) as temporary:
        write(temporary, mark="second", second="2")
        assert check() == Path()
    assert contents(inside) == {"mark": "second", "second": "2"}
    assert Path.cwd() == inside
    assert inside.stat().st_ino == before
    assert [each.name for each in inside.parent.iterdir()] == ["here"]


def test_contents_come_back_when_replacing_them_fails(
    inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, rename = contents(inside), Path.rename

    def refuse(source: Path, target: Path) -> Path:
        if source.name == "second" and source.parent != inside:
            raise OSError(28, "No space left on device")
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with (
        pytest.raises(reszoo.ReszooError, match="No space left"),
        atomic_folder(".") as new,
    ):
        write(new, mark="second", second="2", third="3")
    assert contents(inside) == before
    assert folder_entries(inside) == {"mark", "part"}
    assert len(list(inside.iterdir())) == 2


def test_what_a_killed_process_moved_is_brought_back(inside: Path) -> None:
    aside = inside / ".here.old"
    aside.mkdir()
    (inside / "part").rename(aside / "part")
    with pytest.raises(KeyError), atomic_folder("."):
        raise KeyError
    assert contents(inside) == {"mark": "part", "part": "1"}


def test_the_bundled_export_of_an_earlier_release_names_its_files() -> None:
    assert named_entries(BUNDLED) == folder_entries(BUNDLED)


def tiny() -> Any:
    return reszoo.build(RESNET8, classes=["a", "b"], input_shape=(32, 32, 3))


def test_an_export_replaces_only_an_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "export"
    reszoo.export(tiny(), output, formats="onnx")
    assert named_entries(output) == folder_entries(output)
    (output / "my_notes.txt").write_text("mine")
    (output / "snippets" / "app").mkdir()
    reszoo.save(tiny(), output / "best.safetensors")
    kept = folder_entries(output)
    for model in (tiny(), output / "best.safetensors"):
        with pytest.raises(
            reszoo.UsageError, match=r"best\.safetensors, my_notes\.txt"
        ):
            reszoo.export(model, output, formats="onnx", overwrite=True)
    assert folder_entries(output) == kept
    (output / "my_notes.txt").unlink()
    (output / "best.safetensors").unlink()
    (output / "snippets" / "app").rmdir()
    # Another export is there first.
    first = tmp_path / "first"

    def appear(*_: Any) -> None:
        shutil.copytree(output, first)

    monkeypatch.setattr("reszoo_export.export.write_report", appear)
    before = (output / "manifest.json").stat().st_ino
    with pytest.raises(reszoo.UsageError, match="first already holds an export"):
        reszoo.export(tiny(), first, formats="onnx")
    assert folder_entries(first) == folder_entries(output)
    assert (output / "manifest.json").stat().st_ino == before
    assert {each.name for each in tmp_path.iterdir()} == {"export", "first"}
