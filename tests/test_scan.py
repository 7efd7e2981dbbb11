"""Real files, good and bad, against what training's decoder makes of them."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from conftest import photos
from PIL import Image

import reszoo
from reszoo.data import examine as examining
from reszoo.data import inspection
from reszoo.data.decoding import Decoder
from reszoo.data.examine import examine
from reszoo.data.examples import Examples
from reszoo.data.facts import ROW, Facts
from reszoo.data.scan import scan

DRAW = np.random.default_rng(0)
PIXELS = DRAW.integers(0, 256, (48, 64, 3), np.uint8)
PICTURE = Image.fromarray(PIXELS)
OTHER = Image.fromarray(255 - PIXELS)
DEEP = Image.fromarray(DRAW.integers(0, 65_536, (40, 40), np.uint16))
CLEAR = Image.fromarray(DRAW.integers(0, 256, (40, 40, 4), np.uint8))
PAGE = b"<!DOCTYPE html>\n<title>404 Not Found</title>\n"


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    stream = BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


JPEG, PNG = encoded(PICTURE, "JPEG"), encoded(PICTURE, "PNG")
MOVING = {"save_all": True, "append_images": [OTHER]}
GIF = encoded(PICTURE, "GIF", **MOVING)
# File -> its content, and what is to be found besides its size and picture.
ZOO: dict[str, tuple[bytes, dict[str, Any]]] = {
    "60percent.jpg": (
        JPEG[: len(JPEG) * 6 // 10],
        {"problem": "cut short", "recoverable": True, "format": "JPEG"},
    ),
    "10bytes.jpg": (JPEG[:-10], {"problem": "cut short", "recoverable": True}),
    "header.jpg": (JPEG[:100], {"problem": "cut short", "recoverable": False}),
    "60percent.png": (PNG[: len(PNG) * 6 // 10], {"problem": "cut short"}),
    "4bytes.png": (PNG[:-4], {"problem": "damaged PNG data", "recoverable": False}),
    "short.bmp": (encoded(PICTURE, "BMP")[:-9], {"problem": "cut short"}),
    "page.jpg": (PAGE, {"problem": "text, no image", "format": ""}),
    "noise.jpg": (PIXELS.tobytes(), {"problem": "no known image format"}),
    "empty.jpg": (b"", {"problem": "empty file"}),
    "plain.jpg": (JPEG, {"format": "JPEG", "mode": "RGB", "misnamed": False}),
    "upper.JPEG": (JPEG, {"misnamed": False}),
    "png.jpg": (PNG, {"format": "PNG", "misnamed": True}),
    "jpeg.png": (JPEG, {"format": "JPEG", "misnamed": True}),
    "pair.jpg": (encoded(PICTURE, "MPO", **MOVING), {"misnamed": False, "frames": 2}),
    "cmyk.jpg": (encoded(PICTURE.convert("CMYK"), "JPEG"), {"mode": "CMYK"}),
    "grey.jpg": (encoded(PICTURE.convert("L"), "JPEG"), {"mode": "L"}),
    "deep.png": (encoded(DEEP, "PNG"), {"mode": "L;16", "height": 40}),
    "clear.png": (encoded(CLEAR, "PNG"), {"mode": "RGBA"}),
    "key.png": (encoded(PICTURE, "PNG", transparency=(1, 2, 3)), {"mode": "RGBA"}),
    "palette.png": (encoded(PICTURE.convert("P"), "PNG"), {"mode": "P"}),
    "moving.gif": (GIF, {"format": "GIF", "frames": 2, "by_pillow": True}),
    "second.gif": (GIF[:-900], {"problem": None, "by_pillow": True}),
    "lossless.webp": (encoded(PICTURE, "WEBP", lossless=True), {"by_pillow": True}),
}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Facts]]:
    root = tmp_path_factory.mktemp("zoo")
    for name, (content, _) in ZOO.items():
        (root / name).write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESZOO_HOME", str(tmp_path_factory.mktemp("home")))
        found = examine([str(root / name) for name in ZOO])
        yield dict(zip(ZOO, found, strict=True))


def decoded(path: str, *, recover: bool) -> str | None:
    """The digest of what training's decoder makes of a file, if anything."""
    try:
        examples = Examples.from_paths([path], [0])
        reading = Decoder(replace(examples, recover=recover))
        image = reading.image(tf.constant(0, tf.int64)).numpy()
    except (reszoo.DataError, tf.errors.OpError):
        return None
    shape = str(image.shape).encode()
    return hashlib.sha256(shape + image.tobytes()).hexdigest()[:32]


@pytest.mark.parametrize("name", ZOO)
def test_a_file_is_usable_exactly_when_training_decodes_it(
    zoo: dict[str, Facts], name: str
) -> None:
    facts = zoo[name]
    assert decoded(facts.path, recover=False) == (facts.digest or None)
    assert (facts.problem is None) == bool(facts.digest)
    able = facts.problem is None or facts.recoverable
    assert (decoded(facts.path, recover=True) is not None) == able


@pytest.mark.parametrize("name", ZOO)
def test_what_is_odd_about_a_file_is_found(zoo: dict[str, Facts], name: str) -> None:
    facts, (content, expected) = zoo[name], ZOO[name]
    status = Path(facts.path).stat()
    expected = {"bytes": len(content), "mtime_ns": status.st_mtime_ns, **expected}
    assert {field: getattr(facts, field) for field in expected} == expected


# How a picture is stored that shows upright under each orientation; EXIF 2.3, 4.6.4 A.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def held(picture: Image.Image, orientation: int, kind: str) -> bytes:
    """Encode a picture as a camera does that is held so."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    turn = STORED[orientation]
    stored = picture if turn is None else picture.transpose(turn)
    return encoded(stored, kind, exif=exif, lossless=True)


def test_a_picture_is_the_same_however_held_and_losslessly_stored(
    tmp_path: Path, home: Path
) -> None:
    files = {f"{way}.png": held(PICTURE, way, "PNG") for way in STORED}
    files |= {f"{way}.webp": held(PICTURE, way, "WEBP") for way in STORED}
    files |= {"x.bmp": encoded(PICTURE, "BMP"), "y.tiff": encoded(PICTURE, "TIFF")}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    found = list(examine([str(tmp_path / name) for name in files]))
    assert [facts.orientation for facts in found] == [*STORED, *STORED, 1, 1]
    assert {(facts.width, facts.height) for facts in found} == {(64, 48)}
    assert len({facts.digest for facts in found}) == 1
    changed = PIXELS.copy()
    changed[9, 9, 1] ^= 1
    (tmp_path / "z.png").write_bytes(encoded(Image.fromarray(changed), "PNG"))
    (other,) = examine([str(tmp_path / "z.png")])
    assert other.digest != found[0].digest


def test_all_orientations_of_a_jpeg_are_seen_as_training_sees_them(
    tmp_path: Path, home: Path
) -> None:
    paths = [str(tmp_path / f"{orientation}.jpg") for orientation in STORED]
    for orientation, path in zip(STORED, paths, strict=True):
        Path(path).write_bytes(held(PICTURE, orientation, "JPEG"))
    for path, facts in zip(paths, examine(paths), strict=True):
        assert facts.digest == decoded(path, recover=False)
        assert (facts.width, facts.height) == (64, 48)


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are opened."""
    opened: list[str] = []
    inspect = inspection.inspect

    def recorded(path: str) -> Facts:
        opened.append(path)
        return inspect(path)

    monkeypatch.setattr(inspection, "inspect", recorded)
    return opened


def paths_in(root: Path) -> list[str]:
    return sorted(str(path) for path in root.rglob("*.*"))


def test_only_new_and_changed_files_are_opened_again(
    folder: Path, home: Path, looked_at: list[str]
) -> None:
    paths = paths_in(folder)
    (folder / "cat" / "0.png").write_bytes(PNG[:-4])
    first = list(examine(paths))
    assert sorted(looked_at) == paths
    looked_at.clear()
    assert list(examine(paths)) == first
    assert list(examine(paths[::-1])) == first[::-1]
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
    again = {facts.path: facts for facts in examine([*paths, str(new)])}
    assert sorted(looked_at) == sorted(map(str, (mended, new, touched, larger)))
    assert (first[0].problem, again[str(mended)].problem) == ("damaged PNG data", None)
    looked_at.clear()
    examine([*paths, str(new)])
    assert looked_at == []


def test_facts_about_other_files_stay(
    folder: Path, home: Path, looked_at: list[str]
) -> None:
    paths = paths_in(folder)
    examine(paths)
    looked_at.clear()
    Path(paths[0]).write_bytes(PNG)
    examine([paths[0], paths[-1]])
    examine(paths)
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
    first = list(examine(paths))
    (cache,) = (home / "scans").iterdir()
    content = cache.read_bytes()
    flipped = bytearray(content)
    flipped[-20] ^= 1
    made = {"cut": content[:-1], "flip": bytes(flipped), "empty": b"", "foreign": PAGE}
    if damage == "folder":
        cache.unlink()
    else:
        cache.write_bytes(made[damage])
    assert list(examine(paths)) == first
    assert len(looked_at) == 2 * len(paths)
    assert list(examine(paths)) == first
    assert len(looked_at) == 2 * len(paths)
    assert capfd.readouterr().err == ""


def test_facts_do_not_outlive_the_rules_they_follow(
    folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = paths_in(folder)
    assert all(facts.problem is None for facts in examine(paths))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    for facts in examine(paths):
        assert "too many pixels (Image size (" in str(facts.problem)


def test_a_cache_that_cannot_be_written_stops_nothing(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RESZOO_HOME", str(tmp_path / "file"))
    assert all(facts.digest for facts in examine(paths_in(folder)))
    assert "will look at every image again" in capfd.readouterr().err


def test_an_interrupted_look_keeps_what_it_has(
    folder: Path, home: Path, looked_at: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, inspect = paths_in(folder), inspection.inspect

    def interrupted(path: str) -> Facts:
        if path == paths[9]:
            raise KeyboardInterrupt
        return inspect(path)

    monkeypatch.setattr(examining, "_WAVE", 4)
    with monkeypatch.context() as patch:
        patch.setattr(inspection, "inspect", interrupted)
        with pytest.raises(KeyboardInterrupt):
            examine(paths)
    looked_at.clear()
    assert all(facts.digest for facts in examine(paths))
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
            found = list(examine([locked, missing]))
        problems = [facts.problem for facts in found]
        assert problems == ["Permission denied", "No such file or directory"]
        Path(locked).chmod(0o644)
        assert [facts.problem for facts in examine([locked])] == [None]
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


def test_decoders_keep_quiet(
    tmp_path: Path, home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / "cut.jpg", tmp_path / "exif.jpg"]
    paths[0].write_bytes(JPEG[:-10])
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = encoded(PICTURE, "JPEG", exif=exif.tobytes()[:-9])
    paths[1].write_bytes(whole)
    with pytest.warns(UserWarning, match="EXIF"), Image.open(paths[1]) as image:
        image.getexif()
    found = examine([str(path) for path in paths])
    assert [facts.problem for facts in found] == ["cut short", None]
    assert capfd.readouterr() == ("", "")


def test_a_million_images_fit_into_memory() -> None:
    assert ROW.itemsize <= 100


def splits(root: Path) -> Path:
    """Folders train and val; train/dog is larger than train/cat."""
    photos(root / "train", each=4)
    photos(root / "val", each=3)
    for split in ("train", "val"):
        for number, path in enumerate(paths_in(root / split)):
            pixels = DRAW.integers(0, 256, (40, 40 + number, 3), np.uint8)
            Image.fromarray(pixels).save(path)
    for number in range(4, 12):
        pixels = DRAW.integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(root / "train" / "dog" / f"{number}.png")
    return root


def test_a_clean_folder_leaves_nothing_to_do(tmp_path: Path, home: Path) -> None:
    report = scan(splits(tmp_path / "p"))
    assert report.ok
    assert report.counts == {"train": (4, 12), "validation": (3, 3)}
    assert report.imbalance == 3
    assert (report.unusable, report.warnings) == ((), {})
    assert (report.leaks, report.conflicts, report.duplicates) == ((), (), ())
    assert str(report).splitlines() == [
        f"{tmp_path / 'p'}: 22 usable images in 2 classes",
        "  train             16  cat 4, dog 12",
        "  validation         6  cat 3, dog 3",
        "Nothing to do.",
    ]


def test_the_same_picture_is_found_in_splits_and_classes(
    tmp_path: Path, home: Path
) -> None:
    root = splits(tmp_path / "p")
    train, val = root / "train", root / "val"
    Image.open(train / "cat" / "0.png").save(val / "cat" / "leak.bmp")
    shutil.copy(train / "cat" / "1.png", train / "cat" / "copy.png")
    shutil.copy(train / "cat" / "2.png", train / "dog" / "torn.png")
    report = scan(root)

    def found(groups: Any) -> list[list[str]]:
        return [
            [str(Path(place.path).relative_to(root)) for place in group.places]
            for group in groups
        ]

    assert found(report.leaks) == [["train/cat/0.png", "val/cat/leak.bmp"]]
    assert found(report.duplicates) == [["train/cat/1.png", "train/cat/copy.png"]]
    assert found(report.conflicts) == [["train/cat/2.png", "train/dog/torn.png"]]
    assert not report.ok
    told = str(report)
    assert "1.png (train, cat) = train/cat/copy.png (train, cat)" in told
    for advice in ("one split", "which class", "Remove copies"):
        assert advice in told
    (val / "cat" / "leak.bmp").unlink()
    assert scan(root).ok


def test_a_drawn_split_is_checked_for_leaks_too(folder: Path, home: Path) -> None:
    assert scan(folder).counts == {"train": (5, 5), "validation": (1, 1)}
    for number in range(1, 6):
        shutil.copy(folder / "cat" / "0.png", folder / "cat" / f"{number}.png")
    (group,) = scan(folder).leaks
    assert len(group.places) == 6
    assert group.splits == 2


def test_a_report_lists_and_counts_what_is_wrong(tmp_path: Path, home: Path) -> None:
    root = splits(tmp_path / "p")
    for name, (content, _) in ZOO.items():
        (root / "train" / "cat" / name).write_bytes(content)
    small = Image.fromarray(PIXELS[:31])
    small.save(root / "train" / "dog" / "small.png")
    (root / "train" / "dog" / "turned.jpg").write_bytes(held(OTHER, 6, "JPEG"))
    report = scan(root)
    bad = {name for name, (_, facts) in ZOO.items() if facts.get("problem")}
    assert {Path(facts.path).name for facts in report.unusable} == bad
    names = {
        kind: sorted(map(name_of, paths)) for kind, paths in report.warnings.items()
    }
    assert names == {
        "misnamed": ["jpeg.png", "png.jpg"],
        "cmyk": ["cmyk.jpg"],
        "sixteen_bit": ["deep.png"],
        "transparent": ["clear.png", "key.png"],
        "palette": ["moving.gif", "palette.png", "second.gif"],
        "animated": ["moving.gif", "second.gif"],
        "rotated": ["turned.jpg"],
        "tiny": ["small.png"],
    }
    usable = len(ZOO) - len(bad) + 4
    assert report.counts["train"] == (usable, 14)
    lines = str(report).splitlines()
    assert f"Cannot be used: {len(bad)} images" in lines
    assert "  train/cat/page.jpg: text, no image" in lines
    assert any("recover would use 2 of these" in line for line in lines)
    content = json.loads(json.dumps(report.to_json()))
    assert content["splits"]["train"] == {"cat": usable, "dog": 14}
    assert len(content["unusable"]) == len(bad)
    assert content["warnings"]["cmyk"] == [str(root / "train" / "cat" / "cmyk.jpg")]
    assert content["duplicates"][0][0].keys() == {"path", "split", "label"}


def name_of(path: str) -> str:
    return Path(path).name


def test_long_lists_are_cut_for_people_but_not_for_programs(
    tmp_path: Path, home: Path
) -> None:
    root = splits(tmp_path / "p")
    for number in range(25):
        (root / "train" / "dog" / f"bad{number}.jpg").touch()
    report = scan(root)
    lines = str(report).splitlines()
    assert sum("empty file" in line for line in lines) == 10
    assert "  and 15 more (all: --json)" in lines
    assert len(report.to_json()["unusable"]) == 25


def test_names_may_be_of_any_bytes(tmp_path: Path, home: Path) -> None:
    root = photos(tmp_path / "p", ("a", "b"))
    names = (b"gr\xc3\xbcn.png", b"\xff\xfe.png")
    for name in names:
        content = encoded(Image.fromarray(PIXELS[len(name) :]), "PNG")
        Path(os.fsdecode(os.fsencode(root / "a") + b"/" + name)).write_bytes(content)
        broken = os.fsdecode(os.fsencode(root / "b") + b"/" + name)
        Path(broken).write_bytes(b"")
    report = scan(root)
    assert sum(map(sum, report.counts.values())) == 14
    told = [printed.encode() for printed in str(report).splitlines()]
    assert b"  b/gr\xc3\xbcn.png: empty file" in told
    assert b"  b/\\xff\\xfe.png: empty file" in told
    assert json.dumps(report.to_json(), ensure_ascii=False).encode()


def test_what_is_no_folder_of_images_is_refused(tmp_path: Path) -> None:
    wanted = r"folder of images or a \.csv file that lists images\. Received: "
    with pytest.raises(reszoo.UsageError, match=f"{wanted}'digits'"):
        scan("digits")
    arrays: Any = (PIXELS, [0])
    with pytest.raises(reszoo.UsageError, match=f"{wanted}<class 'tuple'>"):
        scan(arrays)
    with pytest.raises(reszoo.UsageError, match="no folder or data set"):
        scan(tmp_path / "nowhere")


def test_a_list_file_is_scanned(tmp_path: Path, home: Path) -> None:
    root = photos(tmp_path / "p")
    rows = [
        f"{path.relative_to(tmp_path)},{path.parent.name}"
        for path in root.rglob("*.png")
    ]
    (tmp_path / "list.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    report = scan(tmp_path / "list.csv")
    assert report.class_names == ("cat", "dog")
    assert sum(map(sum, report.counts.values())) == 12
