"""Real files, good and bad, against what training's decoder makes of them."""

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sample_images import (
    GIF,
    JPEG,
    PAGE,
    PICTURE,
    PIXELS,
    PNG,
    STORED,
    ZOO,
    encoded,
    held,
    orientation_exif,
    paths_in,
)

import reszoo
from reszoo.data import image_facts, image_files
from reszoo.data.decoding import Decoder
from reszoo.data.examples import Examples
from reszoo.data.image_facts import ROW, examine


def facts_about(paths: Sequence[str]) -> list[SimpleNamespace]:
    table = examine(paths)
    return [
        SimpleNamespace(
            **{
                name: value.decode() if isinstance(value, bytes) else value
                for name, value in zip(ROW.names or (), row.tolist(), strict=True)
            }
            | {
                "path": path,
                "problem": table.problems[row["problem"]] or None,
                "digest": row["digest"].tobytes().hex() if row["digest"].any() else "",
            }
        )
        for path, row in zip(paths, table.rows, strict=True)
    ]


@pytest.fixture(scope="module")
def zoo(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, SimpleNamespace]]:
    root = tmp_path_factory.mktemp("zoo")
    for name, (content, _) in ZOO.items():
        (root / name).write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESZOO_HOME", str(tmp_path_factory.mktemp("home")))
        found = facts_about([str(root / name) for name in ZOO])
        yield dict(zip(ZOO, found, strict=True))


def decoded(path: str, *, recover: bool) -> str | None:
    """The digest of what training's decoder makes of a file, if anything."""
    try:
        examples = Examples(np.zeros(1, np.int64), paths=(path,), recover=recover)
        reading = Decoder(examples.read_headers())
        image = reading.image(tf.constant(0, tf.int64)).numpy()
    except (reszoo.DataError, tf.errors.OpError):
        return None
    shape = str(image.shape).encode()
    return hashlib.sha256(shape + image.tobytes()).hexdigest()[:32]


@pytest.mark.parametrize("name", ZOO)
def test_a_file_is_readable_exactly_when_training_decodes_it(
    zoo: dict[str, SimpleNamespace], name: str
) -> None:
    facts = zoo[name]
    assert decoded(facts.path, recover=False) == (facts.digest or None)
    assert (facts.problem is None) == bool(facts.digest)
    able = facts.problem is None or facts.recoverable
    assert (decoded(facts.path, recover=True) is not None) == able


@pytest.mark.parametrize("name", ZOO)
def test_what_is_unusual_about_a_file_is_found(
    zoo: dict[str, SimpleNamespace], name: str
) -> None:
    facts, (content, expected) = zoo[name], ZOO[name]
    status = Path(facts.path).stat()
    expected = {"bytes": len(content), "mtime_ns": status.st_mtime_ns, **expected}
    assert {field: getattr(facts, field) for field in expected} == expected


def test_a_picture_is_the_same_however_held_and_losslessly_stored(
    tmp_path: Path, home: Path
) -> None:
    files = {f"{way}.png": held(PICTURE, way, "PNG") for way in STORED}
    files |= {f"{way}.webp": held(PICTURE, way, "WEBP") for way in STORED}
    files |= {"x.bmp": encoded(PICTURE, "BMP"), "y.tiff": encoded(PICTURE, "TIFF")}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    found = facts_about([str(tmp_path / name) for name in files])
    assert [facts.orientation for facts in found] == [*STORED, *STORED, 1, 1]
    assert {(facts.width, facts.height) for facts in found} == {(64, 48)}
    assert len({facts.digest for facts in found}) == 1
    assert decoded(str(tmp_path / "y.tiff"), recover=False) == found[0].digest
    changed = PIXELS.copy()
    changed[9, 9, 1] ^= 1
    (tmp_path / "z.png").write_bytes(encoded(Image.fromarray(changed), "PNG"))
    (other,) = facts_about([str(tmp_path / "z.png")])
    assert other.digest != found[0].digest


def test_all_orientations_of_a_jpeg_are_seen_as_training_sees_them(
    tmp_path: Path, home: Path
) -> None:
    paths = [str(tmp_path / f"{orientation}.jpg") for orientation in STORED]
    for orientation, path in zip(STORED, paths, strict=True):
        Path(path).write_bytes(held(PICTURE, orientation, "JPEG"))
    for path, facts in zip(paths, facts_about(paths), strict=True):
        assert facts.digest == decoded(path, recover=False)
        assert (facts.width, facts.height) == (64, 48)


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are opened."""
    opened: list[str] = []
    inspect = image_facts.inspect_file

    def recorded(path: str) -> dict[str, Any]:
        opened.append(path)
        return inspect(path)

    monkeypatch.setattr(image_facts, "inspect_file", recorded)
    return opened


def test_only_new_and_changed_files_are_opened_again(
    folder: Path, home: Path, looked_at: list[str]
) -> None:
    paths = paths_in(folder)
    (folder / "cat" / "0.png").write_bytes(PNG[:-4])
    first = facts_about(paths)
    assert sorted(looked_at) == paths
    looked_at.clear()
    assert facts_about(paths) == first
    assert facts_about(paths[::-1]) == first[::-1]
    assert looked_at == []

    new, mended = folder / "cat" / "new.gif", folder / "cat" / "0.png"
    new.write_bytes(GIF)
    mended.write_bytes(PNG)
    touched = folder / "dog" / "1.png"
    os.utime(touched, ns=(0, touched.stat().st_mtime_ns + 1))
    larger = folder / "dog" / "2.png"
    time = larger.stat().st_mtime_ns
    larger.write_bytes(PNG)
    os.utime(larger, ns=(0, time))
    again = {facts.path: facts for facts in facts_about([*paths, str(new)])}
    assert sorted(looked_at) == sorted(map(str, (mended, new, touched, larger)))
    assert (first[0].problem, again[str(mended)].problem) == ("damaged PNG data", None)
    looked_at.clear()
    facts_about([*paths, str(new)])
    assert looked_at == []


def test_facts_about_other_files_stay(
    folder: Path, home: Path, looked_at: list[str]
) -> None:
    paths = paths_in(folder)
    facts_about(paths)
    looked_at.clear()
    Path(paths[0]).write_bytes(PNG)
    facts_about([paths[0], paths[-1]])
    facts_about(paths)
    assert looked_at == [paths[0]]


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "foreign", "folder"])
def test_a_damaged_cache_is_made_again_in_silence(
    folder: Path,
    home: Path,
    looked_at: list[str],
    damage: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    paths = paths_in(folder)
    first = facts_about(paths)
    (cache,) = (home / "scans").iterdir()
    content = cache.read_bytes()
    flipped = bytearray(content)
    flipped[-20] ^= 1
    made = {"cut": content[:-1], "flip": bytes(flipped), "empty": b"", "foreign": PAGE}
    if damage == "folder":
        cache.unlink()
    else:
        cache.write_bytes(made[damage])
    assert facts_about(paths) == first
    assert len(looked_at) == 2 * len(paths)
    assert facts_about(paths) == first
    assert len(looked_at) == 2 * len(paths)
    assert capfd.readouterr().err == ""


def test_facts_do_not_outlive_the_rules_they_follow(
    folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = paths_in(folder)
    assert all(facts.problem is None for facts in facts_about(paths))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    for facts in facts_about(paths):
        assert "too many pixels (Image size (" in str(facts.problem)


def test_a_cache_that_cannot_be_written_stops_nothing(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RESZOO_HOME", str(tmp_path / "file"))
    assert all(facts.digest for facts in facts_about(paths_in(folder)))
    assert "will examine every image again" in capfd.readouterr().err


def test_an_interrupted_look_keeps_what_it_has(
    folder: Path, home: Path, looked_at: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, inspect = paths_in(folder), image_facts.inspect_file

    def interrupted(path: str) -> dict[str, Any]:
        if path == paths[9]:
            raise KeyboardInterrupt
        return inspect(path)

    monkeypatch.setattr(image_files, "_WAVE", 4)
    with monkeypatch.context() as patch:
        patch.setattr(image_facts, "inspect_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            facts_about(paths)
    looked_at.clear()
    assert all(facts.digest for facts in facts_about(paths))
    assert sorted(looked_at) == paths[9:]


def test_what_the_system_refuses_is_tried_again(
    home: Path, looked_at: list[str]
) -> None:
    with tempfile.TemporaryDirectory() as place:
        locked, missing = f"{place}/locked.png", f"{place}/missing.png"
        Path(locked).write_bytes(PNG)
        Path(place).chmod(0o755)
        Path(locked).chmod(0)
        with as_nobody():
            found = facts_about([locked, missing])
        problems = [facts.problem for facts in found]
        assert problems == ["Permission denied", "No such file or directory"]
        Path(locked).chmod(0o644)
        assert [facts.problem for facts in facts_about([locked])] == [None]
    assert len(looked_at) == 3


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read everything; so be somebody else for a while."""
    if os.geteuid():
        yield
        return
    os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.slow
def test_decoders_keep_quiet(tmp_path: Path, home: Path) -> None:
    paths = [tmp_path / "photos" / name for name in ("a/cut.jpg", "b/exif.jpg")]
    for path in paths:
        path.parent.mkdir(parents=True)
    paths[0].write_bytes(JPEG[:-10])
    exif = orientation_exif(6)
    whole = encoded(PICTURE, "JPEG", exif=exif.tobytes()[:-9])
    paths[1].write_bytes(whole)
    with pytest.warns(UserWarning, match="EXIF"), Image.open(paths[1]) as image:
        image.getexif()
    found = facts_about([str(path) for path in paths])
    assert [facts.problem for facts in found] == ["truncated", None]
    # What decoders write to the error stream is the command line's to hold back.
    for folder in ("a", "b"):
        for number in range(2):
            (tmp_path / "photos" / folder / f"{number}.png").write_bytes(PNG)
    done = subprocess.run(
        [sys.executable, "-m", "reszoo", "scan", str(tmp_path / "photos")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "truncated" in done.stdout
    assert (done.returncode, done.stderr) == (1, "")


def test_a_million_images_fit_into_memory() -> None:
    assert ROW.itemsize <= 100
