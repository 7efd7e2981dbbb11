import json
import re
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from conftest import photos
from PIL import Image

import reszoo
from reszoo.data.bad_images import screen_records
from reszoo.data.image_files import open_image
from reszoo.data.sharding import write_shards
from reszoo.data.sources import fingerprint, list_images, open_source
from reszoo.preprocessing import default_preprocessing
from reszoo.specs import SPECS

SIDE = 24


def noise(height: int, width: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def thumbnail(image: Image.Image) -> Any:
    return np.asarray(image.resize((8, 8), Image.Resampling.BOX)).astype(int)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """PNG photos of 40 to 45 by 52 pixels, and JPEGs of every treatment."""
    root = photos(tmp_path / "mixed")
    cat, dog = root / "cat", root / "dog"
    small = [Image.fromarray(noise(20, 30, seed)) for seed in range(5)]
    exif = Image.Exif()
    exif[0x0112] = 6
    small[0].save(cat / "small.jpg", quality=80)
    small[1].save(cat / "turned.jpg", exif=exif)
    small[2].convert("CMYK").save(cat / "cmyk.jpg")
    small[3].convert("L").save(cat / "grey.jpg")
    Image.fromarray(noise(60, 90)).save(dog / "large.jpg")
    small[4].save(dog / "tail.jpg")
    (dog / "tail.jpg").write_bytes((dog / "tail.jpg").read_bytes() + b"junk")
    return root


@pytest.fixture
def shards(mixed: Path, tmp_path: Path) -> Path:
    write_shards(mixed, tmp_path / "shards", side=SIDE, per_shard=4000)
    return tmp_path / "shards"


def test_shards_hold_the_images_of_their_source(mixed: Path, shards: Path) -> None:
    before, after = open_source(mixed), open_source(shards)
    assert after.labels == before.labels
    assert list(after.splits) == ["train", "validation"]
    for split, examples in after.splits.items():
        originals = before.splits[split]
        np.testing.assert_array_equal(examples.targets, originals.targets)
        indices = range(len(examples))
        for index in indices:
            one, other = originals.open(index), examples.open(index)
            assert min(other.size) == min(SIDE, *one.size)
            assert (one.width > one.height) == (other.width > other.height)
        # Every image is more like its own original than like any other.
        kept, made = (
            np.stack([thumbnail(part.open(i)) for i in indices])
            for part in (originals, examples)
        )
        distances = np.abs(made[:, None] - kept[None]).mean((2, 3, 4))
        np.testing.assert_array_equal(distances.argmin(1), indices)


def test_only_jpegs_that_need_nothing_are_copied(mixed: Path, tmp_path: Path) -> None:
    result = write_shards(mixed, tmp_path / "shards", side=SIDE)
    assert result.copied == 1
    assert (result.images, result.unreadable) == ({"train": 14, "validation": 4}, ())
    files = {Path(path).name: path for path in list_images(mixed).paths}
    source, copies = open_source(mixed), open_source(tmp_path / "shards")
    stored = {
        source.splits[split].name(index): examples.encoded(index)
        for split, examples in copies.splits.items()
        for index in range(len(examples))
    }
    same = [name for name, p in files.items() if stored[p] == Path(p).read_bytes()]
    assert same == ["small.jpg"]
    turned = Image.open(BytesIO(stored[files["turned.jpg"]] or b""))
    assert (turned.size, dict(turned.getexif())) == ((20, 30), {})
    assert all((data or b"").startswith(b"\xff\xd8") for data in stored.values())


def test_others_can_read_the_files(shards: Path) -> None:
    index = json.loads((shards / "shards.json").read_text())
    examples = open_source(shards).splits["train"]
    names = [shard["file"] for shard in index["splits"]["train"]]
    assert len(names) > 2
    features = {
        "image": tf.io.FixedLenFeature([], tf.string),
        "label": tf.io.FixedLenFeature([], tf.int64),
    }
    records = tf.data.TFRecordDataset([str(shards / name) for name in names])
    rows = [tf.io.parse_single_example(record, features) for record in records]
    assert [int(row["label"]) for row in rows] == list(examples.targets)
    for number, row in enumerate(rows):
        assert row["image"].numpy() == examples.encoded(number)
    assert examples.name(0) == f"{shards / names[0]} record 0"
    last = index["splits"]["train"][-1]["records"] - 1
    assert examples.name(len(rows) - 1) == f"{shards / names[-1]} record {last}"


def test_shards_need_no_tensorflow_to_be_read(shards: Path) -> None:
    code = (
        "import sys; from reszoo.data.sources import open_source\n"
        f"open_source({str(shards)!r}).examples().open(0)\n"
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_equal_data_gives_equal_files_and_takes_the_place_of_old_ones(
    mixed: Path, shards: Path, tmp_path: Path
) -> None:
    def written(folder: Path) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in folder.iterdir()}

    before = written(shards)
    with pytest.raises(reszoo.UsageError, match="holds shards already"):
        write_shards(mixed, shards)
    moved = mixed.rename(tmp_path / "moved")
    write_shards(moved, shards, side=SIDE, per_shard=4000, overwrite=True)
    assert written(shards) == before
    known = fingerprint(open_source(shards))
    assert fingerprint(open_source(shards.rename(tmp_path / "other"))) == known
    with pytest.raises(reszoo.UsageError, match="exists and holds no shards"):
        write_shards(moved, moved, overwrite=True)
    with pytest.raises(reszoo.UsageError, match=r"quality in 1\.\.95.*quality=96"):
        write_shards(moved, tmp_path / "new", quality=96)


def test_a_failure_leaves_no_shards(mixed: Path, tmp_path: Path) -> None:
    cut = mixed / "dog" / "large.jpg"
    cut.write_bytes(cut.read_bytes()[:-900])
    with pytest.raises(reszoo.DataError, match=r"dog/large\.jpg cannot be used"):
        write_shards(mixed, tmp_path / "shards", side=SIDE)
    assert [file.name for file in tmp_path.iterdir()] == ["mixed"]


def test_bad_images_are_skipped_or_recovered_into_shards(
    mixed: Path, tmp_path: Path, home: Path
) -> None:
    cut = mixed / "cat" / "small.jpg"
    whole = np.asarray(open_image(cut))
    cut.write_bytes(cut.read_bytes()[:-200])
    (mixed / "dog" / "0.png").write_bytes(b"")
    skipped = write_shards(mixed, tmp_path / "skip", side=SIDE, bad_images="skip")
    assert [Path(image.path).name for image in skipped.unreadable] == [
        "small.jpg",
        "0.png",
    ]
    assert sum(skipped.images.values()) == 16
    kept = write_shards(mixed, tmp_path / "recover", side=SIDE, bad_images="recover")
    assert (sum(kept.images.values()), kept.copied) == (17, 0)
    source = open_source(tmp_path / "recover", bad_images="error")
    before = open_source(mixed, bad_images="recover").splits
    split, index = next(
        (split, (examples.paths or ()).index(str(cut)))
        for split, examples in before.items()
        if split != "all" and str(cut) in (examples.paths or ())
    )
    shown = np.asarray(source.splits[split].open(index)).astype(int)
    assert np.abs(shown[:8] - whole[:8]).mean() < 12


def _spoil(file: Path, content: Callable[[bytes], bytes]) -> None:
    file.write_bytes(content(file.read_bytes()))


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("train-00001.tfrecord", lambda b: b[:-1], r"00001\.tfrecord does not fit"),
        ("train.npy", lambda b: b[:-24], r"train\.npy cannot be read"),
        (
            "shards.json",
            lambda b: re.sub(rb'"records": \d+', b'"records": 99', b, count=1),
            r"train\.npy does not fit .*has 14 records, the index says \d+",
        ),
        ("shards.json", lambda b: b.replace(b"shards 1", b"shards 2"), "no index of"),
        ("shards.json", lambda b: b.replace(b'"side"', b'"sied"'), "no index of"),
        ("shards.json", lambda b: b[:-9], "no index of"),
        (
            "shards.json",
            lambda b: b.replace(b'"cat",', b""),
            r"train\.npy does not fit .*labels are not all below 1",
        ),
    ],
)
def test_damaged_shards_are_named(
    shards: Path, name: str, spoil: Callable[[bytes], bytes], message: str
) -> None:
    _spoil(shards / name, spoil)
    with pytest.raises(reszoo.DataError, match=f"(?s){message}"):
        open_source(shards)


def test_missing_and_vanishing_shards_are_named(shards: Path) -> None:
    examples = open_source(shards).splits["train"]
    first = shards / "train-00000.tfrecord"
    _spoil(first, lambda data: data[:50])
    with pytest.raises(
        reszoo.DataError, match=r"00000\.tfrecord record 0 is cut short"
    ):
        examples.open(0)
    first.unlink()
    with pytest.raises(reszoo.DataError, match=r"record 0 cannot be read \(No such"):
        examples.open(0)
    with pytest.raises(reszoo.DataError, match=r"00000\.tfrecord is missing"):
        open_source(shards)


def test_bad_records_are_found_by_a_policy(shards: Path) -> None:
    source = open_source(shards)
    examples, names = source.splits["train"], source.labels
    records = examples.records
    assert records is not None
    with (shards / "train-00000.tfrecord").open("r+b") as file:
        file.seek(int(records.offsets[0]))
        file.write(b"nothing")
    with pytest.raises(reszoo.DataError, match=r"record 0 cannot be used \(no known"):
        screen_records(source.splits, "error", names)
    splits, unusable = screen_records(source.splits, "skip", names)
    assert unusable == ((examples.name(0), "no known image format"),)
    assert splits["train"].encoded(0) == examples.encoded(1)
    assert len(splits["train"]) == len(examples) - 1
    assert screen_records(source.splits, None, names) == (source.splits, ())


def test_records_go_through_the_same_preprocessing(shards: Path) -> None:
    record = default_preprocessing(SPECS["resnet20"])
    examples = open_source(shards).splits["train"].take(np.array([3, 0]))
    for index in range(2):
        data = examples.encoded(index) or b""
        expected = record.prepare(Image.open(BytesIO(data)))
        np.testing.assert_array_equal(examples.prepared(index, record), expected)


def test_arrays_become_shards(tmp_path: Path) -> None:
    images = np.stack([np.full((8, 9, 3), 30 * n, np.uint8) for n in range(8)])
    labels = np.array(["b", "a"] * 4)
    data = {"train": (images, labels), "test": (images[:2], labels[:2])}
    result = write_shards(data, tmp_path / "shards", side=8)
    assert result.images == {"train": 8, "test": 2}
    source = open_source(tmp_path / "shards")
    assert source.labels == ("a", "b")
    for index in range(8):
        shown = np.asarray(source.splits["train"].open(index)).astype(int)
        assert np.abs(shown - images[index]).max() <= 1
    write_shards("digits", tmp_path / "digits", side=8)
    assert not open_source(tmp_path / "digits").mirror_safe
