"""`reszoo.predict_files` and `reszoo predict`: inputs, rows, kills and encodings."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from io import FileIO
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import reszoo
from reszoo.cli.files import _print_table
from reszoo.data.image_paths import iterate_paths
from reszoo_export import batch

ROOT = Path(__file__).parent.parent
MODELS = ROOT / "saved_models" / "resnet20-cifar10"
INT8 = MODELS / "model-int8.tflite"
BAD = "broken.jpg"


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Seventy images, three groups of rows, one of them broken."""
    folder, draw = tmp_path / "many", np.random.default_rng(0)
    folder.mkdir()
    for number in range(69):
        pixels = draw.integers(0, 256, (36, 32 + number, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    (folder / BAD).write_bytes(b"no image")
    return folder


@pytest.fixture
def ends_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run ends in its third group, with two on the disk."""
    monkeypatch.setattr(batch, "_COMMIT_SECONDS", 0.0)
    answer, calls = batch.FileClassifier.__call__, count()

    def fail(self: Any, paths: Any) -> Any:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return answer(self, paths)

    monkeypatch.setattr(batch.FileClassifier, "__call__", fail)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as text:
        return list(csv.DictReader(text))


def interrupted(folder: Path, output: Path, **options: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        reszoo.predict_files(INT8, folder, output, threads=1, **options)


def reszoo_command(
    *words: Any, encoding: str = "utf-8"
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "reszoo", *map(str, words)],
        env=os.environ | {"PYTHONIOENCODING": encoding},
        capture_output=True,
        check=False,
    )


@pytest.mark.parametrize("file", ["model-int8.tflite", "model.onnx"])
def test_rows_equal_predictor(many: Path, tmp_path: Path, file: str) -> None:
    output = tmp_path / "answers.csv"
    found = reszoo.predict_files(MODELS / file, many, output, top=3)
    assert (found.output, found.images, found.unreadable) == (output, 70, 1)
    rows = read_csv(output)
    assert [row["path"] for row in rows] == sorted(map(str, many.iterdir()))
    assert list(rows[0]) == [
        "path", "label", "probability", "label_2", "probability_2", "label_3",
        "probability_3", "error",
    ]  # fmt: skip
    (bad,) = (row for row in rows if row["error"])
    assert bad["path"].endswith(BAD)
    assert bad["error"] == "no known image format"
    assert set(list(bad.values())[1:-1]) == {""}
    predictor = reszoo.Predictor(MODELS / file)
    for row in rows[:5] + rows[-5:]:
        if row is bad:
            continue
        labels, probabilities = zip(*predictor.top(row["path"], 3), strict=True)
        assert (row["label"], row["label_2"], row["label_3"]) == labels
        found_probabilities = [
            float(row[name]) for name in row if name.startswith("probability")
        ]
        limit = 0 if file.endswith("tflite") else 1e-6
        np.testing.assert_allclose(found_probabilities, probabilities, 0, limit)


def test_any_damaged_file_is_a_row(many: Path, tmp_path: Path) -> None:
    """Pillow's decoders raise errors of many types; this one is no OSError."""
    damaged = tmp_path / "damaged.jpg"
    Image.open(many / "00.png").save(damaged, "DDS")
    content = bytearray(damaged.read_bytes())
    # The flags of the pixel format; DDS_PIXELFORMAT in Microsoft's documentation.
    content[80:84] = bytes(4)
    damaged.write_bytes(content)
    found = reszoo.predict_files(INT8, [damaged, many / "00.png"], tmp_path / "a.csv")
    assert (found.images, found.unreadable) == (2, 1)
    assert read_csv(tmp_path / "a.csv")[0]["error"].startswith("Unknown pixel format")


def test_formats_hold_the_same_rows(many: Path, tmp_path: Path) -> None:
    for suffix in (".csv", ".jsonl"):
        reszoo.predict_files(INT8, many, tmp_path / f"a{suffix}", top=2)
    lines = (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    for row, text in zip(rows, read_csv(tmp_path / "a.csv"), strict=True):
        shown = {
            name: "" if value is None else str(value) for name, value in row.items()
        }
        assert shown == text


def test_parquet_holds_the_same_rows(many: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    for suffix in (".jsonl", ".parquet"):
        reszoo.predict_files(INT8, many, tmp_path / f"a{suffix}", top=2)
    table = parquet.read_table(tmp_path / "a.parquet")
    lines = (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()
    assert table.to_pylist() == [json.loads(line) for line in lines]
    assert str(table.schema.field("probability").type) == "float"
    interrupted_again = tmp_path / "b.parquet"
    reszoo.predict_files(INT8, many, interrupted_again, top=2, resume=True)
    assert interrupted_again.read_bytes() == (tmp_path / "a.parquet").read_bytes()


def test_parquet_without_pyarrow_says_what_to_install(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(reszoo.UsageError, match=r"pip install 'reszoo\[parquet\]'"):
        reszoo.predict_files(INT8, many, tmp_path / "a.parquet")


def test_top_is_at_most_the_number_of_classes(folder: Path, tmp_path: Path) -> None:
    reszoo.predict_files(INT8, folder, tmp_path / "a.csv", top=99)
    (first, *_) = read_csv(tmp_path / "a.csv")
    assert len(first) == 2 + 2 * 10
    assert first["label_10"]


def test_inputs_are_files_folders_globs_and_tables(tmp_path: Path) -> None:
    names = ["b/2.png", "b/10.PNG", "a.jpg", "b/c/1.webp", "b/.hidden.png", "b/t.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "list.csv").write_text("id,Path\n1,2.png\n2,../a.jpg\n3,2.png\n")
    (tmp_path / "plain.csv").write_text('a.jpg\n"b/2.png"\n\n', encoding="utf-8-sig")

    def listed(*inputs: str) -> list[str]:
        found = iterate_paths([tmp_path / each for each in inputs])
        return [os.path.relpath(path, tmp_path) for path in found]

    assert listed("b") == ["b/10.PNG", "b/2.png", "b/c/1.webp"]
    assert listed("a.jpg", "missing.jpg", "b/t.txt") == [
        "a.jpg", "missing.jpg", "b/t.txt",
    ]  # fmt: skip
    assert listed("b/*.png", "*.jpg") == ["b/2.png", "a.jpg"]
    assert listed("**/*.webp") == ["b/c/1.webp"]
    assert listed("b/c*", "b/c/**") == ["b/c/1.webp", "b/c/1.webp"]
    assert listed("b/list.csv") == ["b/2.png", "a.jpg", "b/2.png"]
    assert listed("plain.csv") == ["a.jpg", "b/2.png"]
    (tmp_path / "[1].png").touch()
    assert listed("[1].png") == ["[1].png"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.csv", "bild,art\na.jpg,cat\n", r"line 1 names no image \(.*bild\)"),
        ("x.csv", "path,label\na.jpg,cat\n,dog\n", r"line 3 has no path"),
        ("x.csv", "\n", r"lists no images"),
        ("x.csv", '"a.jpg\n', r"is not valid CSV"),
        ("none.csv", None, r"cannot be read \(No such file"),
        ("empty", None, r"has no images \(\.jpg"),
        ("*.png", None, r"matches no file"),
    ],
)
def test_inputs_without_images_are_refused(
    tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    if text is not None:
        (tmp_path / name).write_text(text)
    output = tmp_path / "out" / "a.csv"
    with pytest.raises(reszoo.DataError, match=message):
        reszoo.predict_files(INT8, tmp_path / name, output)
    assert not list(output.parent.iterdir())


def test_paths_are_taken_a_little_ahead_and_closing_ends_the_threads(
    many: Path,
) -> None:
    taken, threads = count(), threading.active_count()
    paths = (str(many / "00.png") for _ in taken)
    groups = batch.FileClassifier(INT8, threads=2).groups(paths)
    assert len(next(groups)) == batch.GROUP
    assert len(next(groups)) == batch.GROUP
    groups.close()  # type: ignore[attr-defined]
    assert next(taken) <= 8 * batch.GROUP
    assert threading.active_count() == threads


def test_arguments_out_of_range_are_refused(many: Path, tmp_path: Path) -> None:
    for wrong, message in (
        ({"top": 0}, "top must be at least 1"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"resume": True, "overwrite": True}, "Received both"),
    ):
        with pytest.raises(reszoo.UsageError, match=message):
            reszoo.predict_files(INT8, many, tmp_path / "a.csv", **wrong)
    with pytest.raises(reszoo.UnknownNameError, match=r"\.csv, \.jsonl, \.parquet"):
        reszoo.predict_files(INT8, many, tmp_path / "a.xlsx")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(reszoo.UsageError, match="must be a file"):
        reszoo.predict_files(INT8, many, tmp_path / "folder.csv", overwrite=True)
    table = tmp_path / "list.csv"
    table.write_text("path\nmany/00.png\n")
    with pytest.raises(reszoo.UsageError, match="would replace"):
        reszoo.predict_files(INT8, table, table, overwrite=True)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.usefixtures("ends_early")
def test_an_interrupted_run_is_continued_to_the_same_bytes(
    many: Path, tmp_path: Path, suffix: str
) -> None:
    output = tmp_path / f"a{suffix}"
    interrupted(many, output)
    assert not output.exists()
    partial = tmp_path / f".a{suffix}.partial"
    with (partial / "rows").open("a") as rows:
        rows.write("half a row that no journal knows of")
    with (partial / "journal").open("a") as journal:
        journal.write("[96, 12")
    found = reszoo.predict_files(INT8, many, output, resume=True)
    assert (found.images, found.unreadable) == (70, 1)
    assert not partial.exists()
    whole = tmp_path / f"b{suffix}"
    reszoo.predict_files(INT8, many, whole)
    assert output.read_bytes() == whole.read_bytes()


def test_a_kill_while_the_journal_is_written_does_not_spoil_its_next_line(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "_COMMIT_SECONDS", 0.0)
    answer, last = batch.FileClassifier.__call__, [batch.GROUP]

    def fail(self: Any, paths: Any) -> Any:
        if last and str(many / f"{last[0]:02}.png") in map(str, paths):
            raise KeyboardInterrupt
        return answer(self, paths)

    monkeypatch.setattr(batch.FileClassifier, "__call__", fail)
    output, whole = tmp_path / "a.csv", tmp_path / "b.csv"
    interrupted(many, output)
    with (tmp_path / ".a.csv.partial" / "journal").open("a") as journal:
        journal.write("[96, 12")
    last[:] = [2 * batch.GROUP]
    interrupted(many, output, resume=True)
    last.clear()
    reszoo.predict_files(INT8, many, output, resume=True)
    reszoo.predict_files(INT8, many, whole)
    assert output.read_bytes() == whole.read_bytes()


@pytest.mark.usefixtures("ends_early")
def test_only_what_is_missing_is_computed(
    many: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    interrupted(many, tmp_path / "a.csv")
    assert "a.csv is unfinished: --resume (resume=True)" in capsys.readouterr().err
    answer, seen = batch.FileClassifier.__call__, []

    def watch(self: Any, paths: Any) -> Any:
        seen.extend(paths)
        return answer(self, paths)

    monkeypatch.setattr(batch.FileClassifier, "__call__", watch)
    reszoo.predict_files(INT8, many, tmp_path / "a.csv", resume=True)
    assert len(seen) == 70 - 2 * batch.GROUP


@pytest.mark.parametrize("change", ["added", "content", "model", "top"])
@pytest.mark.usefixtures("ends_early")
def test_a_changed_run_is_not_continued(
    many: Path, tmp_path: Path, change: str
) -> None:
    output, model, options = tmp_path / "a.csv", INT8, {}
    interrupted(many, output)
    what = "the inputs"
    if change == "added":
        shutil.copy(many / "00.png", many / "zz.png")
    elif change == "content":
        # One that was answered already.
        shutil.copy(many / "01.png", many / "00.png")
    elif change == "model":
        model, what = MODELS / "model.onnx", "the model"
    else:
        options, what = {"top": 2}, r"top \(--top\)"
    with pytest.raises(reszoo.UsageError, match=f"cannot be continued: {what} changed"):
        reszoo.predict_files(model, many, output, resume=True, **options)  # type: ignore[arg-type]
    with pytest.raises(reszoo.UsageError, match=r"a\.csv is unfinished"):
        reszoo.predict_files(model, many, output)
    found = reszoo.predict_files(model, many, output, overwrite=True)
    assert len(read_csv(output)) == found.images == 70 + (change == "added")


@pytest.mark.parametrize("line", ["{}\n", "[1, 2\n", "[1, 2, 3, 4]\n", "\0\0\n"])
@pytest.mark.usefixtures("ends_early")
def test_a_damaged_journal_is_refused(many: Path, tmp_path: Path, line: str) -> None:
    output = tmp_path / "a.csv"
    interrupted(many, output)
    with (tmp_path / ".a.csv.partial" / "journal").open("a") as journal:
        journal.write(line)
    with pytest.raises(reszoo.ReszooError, match="Start again with --overwrite"):
        reszoo.predict_files(INT8, many, output, resume=True)
    assert reszoo.predict_files(INT8, many, output, overwrite=True).images == 70


def test_probabilities_that_are_no_numbers_are_an_error() -> None:
    row = batch.FileClassifier(INT8, top=1)._row("a.png", np.full(10, np.nan, "f4"))
    assert row["error"] == "the model's probabilities are not finite"
    assert row["label"] is None


@pytest.mark.usefixtures("ends_early")
def test_an_old_file_stays_until_the_new_one_is_complete(
    many: Path, tmp_path: Path
) -> None:
    output = tmp_path / "a.csv"
    output.write_text("old")
    with pytest.raises(reszoo.UsageError, match=r"a\.csv exists"):
        reszoo.predict_files(INT8, many, output)
    assert not (tmp_path / ".a.csv.partial").exists()
    with pytest.raises(reszoo.UsageError, match="nothing to resume"):
        reszoo.predict_files(INT8, many, output, resume=True)
    interrupted(many, output, overwrite=True)
    assert output.read_text() == "old"
    reszoo.predict_files(INT8, many, output, resume=True)
    assert len(read_csv(output)) == 70


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_run_that_ended_after_the_renaming_is_complete(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    output = tmp_path / f"a{suffix}"
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda folder: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            reszoo.predict_files(INT8, many, output)
    content = output.read_bytes()
    found = reszoo.predict_files(INT8, many, output, resume=True)
    assert (found.images, found.unreadable) == (70, 1)
    assert output.read_bytes() == content
    assert not (tmp_path / f".a{suffix}.partial").exists()


def test_one_process_writes_a_file_at_a_time(many: Path, tmp_path: Path) -> None:
    output = tmp_path / "a.csv"
    other = batch.RowFile(output, {"path": True, "error": True})
    with (
        other.reserved(resume=False, overwrite=False),
        pytest.raises(reszoo.UsageError, match="Another process is writing"),
    ):
        reszoo.predict_files(INT8, many, output)
    assert reszoo.predict_files(INT8, many, output).images == 70


def test_a_disk_that_is_full_when_a_table_is_closed_is_named(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")

    class Full(FileIO):
        def close(self) -> None:
            was_open = not self.closed
            super().close()
            if was_open:
                raise OSError(28, "No space left on device")

    opened: Any = Path.open

    def open_full(path: Path, *mode: str, **options: Any) -> Any:
        full = path.name == "complete" and mode == ("wb",)
        return Full(path, "wb") if full else opened(path, *mode, **options)

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(reszoo.ReszooError, match="could not be written: No space"):
        reszoo.predict_files(INT8, many, tmp_path / "a.parquet")


def test_a_full_disk_leaves_what_can_be_continued(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "_COMMIT_SECONDS", 0.0)
    output, encode, calls = tmp_path / "a.csv", batch.RowFile._encode, count()

    def full(self: Any, rows: Any, **options: Any) -> bytes:
        if next(calls) == 2:
            raise OSError(28, "No space left on device")
        return encode(self, rows, **options)

    with monkeypatch.context() as patch:
        patch.setattr(batch.RowFile, "_encode", full)
        with pytest.raises(reszoo.ReszooError, match="could not be written: No space"):
            reszoo.predict_files(INT8, many, output)
    assert not output.exists()
    assert reszoo.predict_files(INT8, many, output, resume=True).images == 70
    assert len(read_csv(output)) == 70


_SLOWLY = """
import sys, time
from reszoo_export import batch
batch._COMMIT_SECONDS = 0.0
answer = batch.FileClassifier.__call__
def slowly(self, paths):
    time.sleep(0.2)
    return answer(self, paths)
batch.FileClassifier.__call__ = slowly
sys.argv = ["reszoo", *sys.argv[1:]]
from reszoo.cli import main
main()
"""


def test_killed_runs_are_continued_to_the_same_bytes(
    many: Path, tmp_path: Path
) -> None:
    table = tmp_path / "list.csv"
    names = sorted(f"many/{path.name}" for path in many.iterdir())
    table.write_text("path\n" + "".join(f"{name}\n" for name in names * 8))
    output, whole = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    journal = tmp_path / ".a.jsonl.partial" / "journal"
    words = ["predict", str(INT8), str(table), "--output", str(output), "--resume"]
    for kill in range(3):
        process = subprocess.Popen([sys.executable, "-c", _SLOWLY, *words])
        before = journal.read_text() if kill else ""
        while process.poll() is None:
            text = journal.read_text() if journal.exists() else ""
            if text.count("\n") >= before.count("\n") + 3:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.005)
        assert process.wait() == -signal.SIGKILL
        assert not output.exists()
    done = reszoo_command(*words)
    assert done.returncode == 1
    reszoo.predict_files(INT8, table, whole)
    assert output.read_bytes() == whole.read_bytes()
    assert len(output.read_text().splitlines()) == 8 * 70


def test_the_command_prints_bad_files_in_rows_of_their_own(
    many: Path, tmp_path: Path
) -> None:
    few = [many / "00.png", many / BAD, tmp_path / "none\x1b.jpg"]
    done = reszoo_command("predict", INT8, *few, "--top", 1)
    assert done.returncode == 1
    header, first, bad, missing = done.stdout.decode().splitlines()
    assert header.split() == ["image", "label", "probability"]
    (label, probability), *_ = reszoo.Predictor(INT8).top(few[0])
    assert first.split() == [str(few[0]), label, f"{probability:.2%}"]
    assert bad.split(None, 1) == [str(few[1]), "unreadable: no known image format"]
    assert missing.split(None, 1)[0].endswith("none\\x1b.jpg")
    assert missing.endswith("unreadable: No such file or directory")
    assert done.stderr.decode() == "2 of 3 images are unreadable.\n"
    done = reszoo_command("predict", INT8, *few, "--json", "--top", 1)
    assert done.returncode == 1
    assert json.loads(done.stdout) == {
        str(few[0]): [{"label": label, "probability": probability}],
        str(few[1]): {"error": "no known image format"},
        str(few[2]): {"error": "No such file or directory"},
    }


def test_answers_are_printed_before_the_next_group(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def groups() -> Iterator[list[batch.Row]]:
        row = {"path": "a.jpg", "label": "cat", "probability": 0.5, "error": None}
        yield [row]
        assert capsys.readouterr().out.splitlines()[1].split() == [
            "a.jpg", "cat", "50.00%",
        ]  # fmt: skip
        yield [row | {"path": "longer.jpg"}]

    _print_table(groups(), ["cat"])
    assert capsys.readouterr().out == "longer.jpg  cat         50.00%\n"


def test_the_command_writes_a_file(many: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "a.csv"
    done = reszoo_command("predict", INT8, many / "*.png", "--output", output)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode() == f"69 rows in {output}\n"
    done = reszoo_command(
        "predict", INT8, many, "--output", output, "--overwrite", "--json"
    )
    assert done.returncode == 1
    assert json.loads(done.stdout) == {
        "output": str(output), "images": 70, "unreadable": 1,
    }  # fmt: skip
    assert len(read_csv(output)) == 70
    done = reszoo_command("predict", INT8, many, "--resume")
    assert done.returncode == 2
    assert b"--resume and --overwrite need --output FILE" in done.stderr


def test_progress_is_lines_where_there_is_no_terminal(
    many: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("reszoo.console._LINES_EVERY", 0.0)
    reszoo.predict_files(INT8, many, tmp_path / "a.csv")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Images: 32 of 70"
    assert lines[-1] == "Images: 70 of 70, 1 unreadable"


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A model whose labels Western encodings lack."""
    import onnx

    model = onnx.load(MODELS / "model.onnx")
    for entry in model.metadata_props:
        if entry.key == "reszoo_card":
            card = json.loads(entry.value)
            card["labels"] = [f"猫🐈{number}" for number in range(10)]
            entry.value = json.dumps(card)
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_labels_that_the_terminal_lacks(
    foreign: Path, many: Path, tmp_path: Path
) -> None:
    image = tmp_path / "кошка.png"
    shutil.copy(many / "00.png", image)
    ((label, _),) = reszoo.Predictor(foreign).top(image, 1)
    words = ("predict", foreign, image, "--top", 1)
    done = reszoo_command(*words, encoding="cp1252")
    assert done.returncode == 0, done.stderr
    assert label.encode("cp1252", "backslashreplace") in done.stdout
    done = reszoo_command(*words, "--json", encoding="cp1252")
    ((path, (answer,)),) = json.loads(done.stdout).items()
    assert (path, answer["label"]) == (str(image), label)
    done = reszoo_command(*words, "--output", tmp_path / "a.csv", encoding="cp1252")
    assert done.returncode == 0, done.stderr
    (row,) = read_csv(tmp_path / "a.csv")
    assert (row["path"], row["label"]) == (str(image), label)


def test_names_that_are_not_utf8_are_written(many: Path, tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff.png"
    shutil.copy(os.fsencode(many / "00.png"), name)
    for suffix in (".csv", ".jsonl"):
        reszoo.predict_files(INT8, os.fsdecode(name), tmp_path / f"a{suffix}")
    assert read_csv(tmp_path / "a.csv")[0]["path"].endswith("\\udcff.png")
    assert json.loads((tmp_path / "a.jsonl").read_text())["path"].endswith("\udcff.png")


def test_a_system_without_file_locks_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Windows, which has no `fcntl`; everything else works there."""
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(reszoo.UsageError, match=r"file locks of Linux .*a\.csv on "):
        reszoo.predict_files(INT8, tmp_path / "none.png", tmp_path / "a.csv")
    assert not list(tmp_path.iterdir())
