"""What a scan tells about a data set."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import photos
from PIL import Image
from sample_images import DRAW, OTHER, PIXELS, ZOO, encoded, held, paths_in

import reszoo
from reszoo.data.checks import scan
from reszoo.data.sources import open_source


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
    assert (report.unreadable, report.anomalies) == ((), {})
    assert (report.leaks, report.conflicts, report.duplicates) == ((), (), ())
    assert str(report).splitlines() == [
        f"{tmp_path / 'p'}: 22 readable images in 2 classes",
        "  train             16  cat 4, dog 12",
        "  validation         6  cat 3, dog 3",
        "Nothing to do.",
    ]


def test_the_same_image_is_found_in_splits_and_classes(
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
            [str(Path(each.path).relative_to(root)) for each in group.occurrences]
            for group in groups
        ]

    assert found(report.leaks) == [["train/cat/0.png", "val/cat/leak.bmp"]]
    assert found(report.duplicates) == [["train/cat/1.png", "train/cat/copy.png"]]
    assert found(report.conflicts) == [["train/cat/2.png", "train/dog/torn.png"]]
    assert not report.ok
    told = str(report)
    assert "1.png (train, cat) = train/cat/copy.png (train, cat)" in told
    for advice in ("one split", "which class", "Remove duplicates"):
        assert advice in told
    (val / "cat" / "leak.bmp").unlink()
    assert scan(root).ok


def test_a_drawn_split_is_checked_for_leaks_too(folder: Path, home: Path) -> None:
    assert scan(folder).counts == {"train": (5, 5), "validation": (1, 1)}
    for number in range(1, 6):
        shutil.copy(folder / "cat" / "0.png", folder / "cat" / f"{number}.png")
    (group,) = scan(folder).leaks
    assert len(group.occurrences) == 6
    assert group.splits == {"train", "validation"}


def test_unsupported_files_are_listed(folder: Path, home: Path) -> None:
    unsupported = folder / "cat" / "0.heic"
    unsupported.touch()
    report = scan(folder)
    assert not report.ok
    (facts,) = report.unreadable
    assert facts.path == str(unsupported)
    assert "  cat/0.heic: .heic files are not supported" in str(report)


def test_a_report_lists_and_counts_what_is_wrong(tmp_path: Path, home: Path) -> None:
    root = splits(tmp_path / "p")
    for name, (content, _) in ZOO.items():
        (root / "train" / "cat" / name).write_bytes(content)
    small = Image.fromarray(PIXELS[:31])
    small.save(root / "train" / "dog" / "small.png")
    (root / "train" / "dog" / "turned.jpg").write_bytes(held(OTHER, 6, "JPEG"))
    report = scan(root)
    bad = {name for name, (_, facts) in ZOO.items() if facts.get("problem")}
    assert {Path(facts.path).name for facts in report.unreadable} == bad
    names = {
        kind: sorted(map(name_of, paths)) for kind, paths in report.anomalies.items()
    }
    assert names == {
        "wrong_extension": ["jpeg.png", "png.jpg"],
        "cmyk": ["cmyk.jpg"],
        "sixteen_bit": ["deep.png"],
        "transparent": ["clear.png", "key.png"],
        "palette": ["moving.gif", "palette.png", "second.gif"],
        "animated": ["moving.gif", "second.gif"],
        "rotated": ["turned.jpg"],
        "tiny": ["small.png"],
    }
    readable = len(ZOO) - len(bad) + 4
    assert report.counts["train"] == (readable, 14)
    lines = str(report).splitlines()
    assert f"Unreadable: {len(bad)} images" in lines
    assert "  train/cat/page.jpg: text, not an image" in lines
    assert any("recover would use 2 of these" in line for line in lines)
    content = json.loads(json.dumps(report.to_json()))
    assert content["splits"]["train"] == {"cat": readable, "dog": 14}
    assert len(content["unreadable"]) == len(bad)
    assert content["anomalies"]["cmyk"] == [str(root / "train" / "cat" / "cmyk.jpg")]
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
    assert len(report.to_json()["unreadable"]) == 25


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
    for name in ("digits", "tfds:mnist"):
        with pytest.raises(reszoo.UsageError, match=f"{wanted}{name!r}"):
            scan(name)
    arrays: Any = (PIXELS, [0])
    with pytest.raises(reszoo.UsageError, match=f"{wanted}<class 'tuple'>"):
        scan(arrays)
    with pytest.raises(
        reszoo.UsageError, match=r"Unknown folder, \.csv file or data set"
    ):
        scan(tmp_path / "nowhere")


def test_a_list_file_is_scanned(tmp_path: Path, home: Path) -> None:
    root = photos(tmp_path / "p")
    rows = [
        f"{path.relative_to(tmp_path)},{path.parent.name}"
        for path in root.rglob("*.png")
    ]
    (tmp_path / "list.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    report = scan(tmp_path / "list.csv")
    assert report.labels == ("cat", "dog")
    assert sum(map(sum, report.counts.values())) == 12


def test_nobody_is_told_to_train_without_the_only_images(
    tmp_path: Path, home: Path
) -> None:
    root, skip = photos(tmp_path / "p", each=3), "--bad-images skip"
    (root / "cat" / "0.png").write_bytes(b"")
    assert skip in str(scan(root))
    for path in (root / "dog").iterdir():
        path.write_bytes(b"")
    told = str(scan(root))
    assert told.endswith("Replace or remove unreadable images.")
    assert skip not in told
    with pytest.raises(reszoo.DataError, match=r"Too few in the readable images: dog"):
        open_source(root, bad_images="skip")
    for path in (root / "cat").iterdir():
        path.write_bytes(b"")
    with pytest.raises(reszoo.DataError, match=f"No image of {root} is readable, of 6"):
        open_source(root, bad_images="skip")
