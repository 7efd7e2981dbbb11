"""Data sets of TensorFlow Datasets; most tests need the extra `tfds`."""

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import reszoo
from reszoo.data.checks import check
from reszoo.data.examples import Records
from reszoo.data.listing import Listing
from reszoo.data.sources import fingerprint, open_source


def noise(height: int, width: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of data sets that TensorFlow Datasets prepared."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    return tmp_path / "tfds"


def _prepare(
    folder: Path,
    images: list[Any],
    version: str,
    file_format: str = "array_record",
    **splits: int,
) -> None:
    """Make the data set "flowers" of PNGs, numbered tulip, daisy, tulip, ..."""
    tfds = pytest.importorskip("tensorflow_datasets", reason="it is an extra")
    features = {
        "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
        "label": tfds.features.ClassLabel(names=["tulip", "daisy"]),
    }
    rows = {"image": np.stack(images), "label": np.arange(len(images)) % 2}
    everything = tf.data.Dataset.from_tensor_slices(rows)
    builder = tfds.dataset_builders.TfDataBuilder(
        name="flowers",
        version=version,
        data_dir=str(folder),
        features=tfds.features.FeaturesDict(features),
        split_datasets={split: everything.take(n) for split, n in splits.items()},
    )
    tfds.disable_progress_bar()
    builder.download_and_prepare(file_format=file_format)


@pytest.mark.parametrize("policy", [None, "error"])
def test_a_prepared_data_set_is_read_in_its_own_files(
    prepared: Path, policy: str | None
) -> None:
    images = [noise(9, 7, seed) for seed in range(10)]
    _prepare(prepared, images, "1.0.0", train=10, test=4, extra=2)
    source = open_source("tfds:flowers", bad_images=policy)
    assert source.labels == ("daisy", "tulip")
    sizes = {name: len(part) for name, part in source.splits.items()}
    assert sizes == {"train": 10, "test": 4}
    train = source.splits["train"]
    # It shuffles what it writes.
    order = [
        next(
            n
            for n, each in enumerate(images)
            if np.array_equal(each, np.asarray(train.open(i)))
        )
        for i in range(10)
    ]
    assert sorted(order) == list(range(10))
    np.testing.assert_array_equal(train.targets, 1 - np.array(order) % 2)
    assert train.headers is not None
    assert not any(train.headers["by_pillow"])
    name = source.splits["test"].name(3)
    assert re.fullmatch(r"tfds:flowers/1\.0\.0 t\w+\+t\w+ record \d+", name)
    _prepare(prepared, images, "1.10.0", train=6)
    latest = open_source("tfds:flowers")
    sizes = {name: len(part) for name, part in latest.splits.items()}
    assert sizes == {"all": 6, "train": 4, "validation": 2}
    older = open_source("tfds:flowers:1.0.0")
    assert fingerprint(older) == fingerprint(source) != fingerprint(latest)


def test_a_data_set_without_random_access_is_refused(prepared: Path) -> None:
    _prepare(prepared, [noise(9, 7, 0)] * 4, "1.0.0", "tfrecord", train=4)
    with pytest.raises(reszoo.DataError, match=r"stored as tfrecord.*'array_record'"):
        open_source("tfds:flowers")


def test_what_is_not_prepared_is_never_fetched(prepared: Path) -> None:
    with pytest.raises(reszoo.DataError, match=r"tfds:cifar10 is not prepared in .*'c"):
        open_source("tfds:cifar10")
    (prepared / "eurosat" / "rgb" / "2.0.0").mkdir(parents=True)
    (prepared / "eurosat" / "rgb" / "2.0.0" / "features.json").touch()
    with pytest.raises(reszoo.UsageError, match=r"configurations: rgb\. .*eurosat/rgb"):
        open_source("tfds:eurosat")
    with pytest.raises(reszoo.DataError, match=r"eurosat/rgb \(versions there: 2\.0"):
        open_source("tfds:eurosat/rgb:1.0.0")
    with pytest.raises(reszoo.UsageError, match="is named tfds:NAME"):
        open_source("tfds:../etc")


def test_a_missing_tensorflow_datasets_is_reported(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (prepared / "mnist" / "3.0.1").mkdir(parents=True)
    (prepared / "mnist" / "3.0.1" / "features.json").touch()
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(reszoo.DataError, match=r'pip install "reszoo\[tfds\]"'):
        open_source("tfds:mnist")


def _records(contents: list[bytes]) -> Records:
    lengths = np.array([len(content) for content in contents])
    numbers = np.arange(len(contents))
    return Records("tfds:x train", contents.__getitem__, numbers, lengths)


def test_bad_records_are_found_by_a_policy() -> None:
    png = tf.io.encode_png(noise(9, 7)).numpy()
    jpeg = tf.io.encode_jpeg(noise(90, 70)).numpy()
    contents = [png, b"\0nothing", jpeg[:-900], png[:-4], png, jpeg]
    records, targets = _records(contents), np.array([0, 1, 0, 1, 1, 1])
    splits = {"train": np.arange(5), "test": np.array([5])}
    listing = Listing(labels=("a", "b"), targets=targets, splits=splits)

    def checked(policy: str | None) -> Any:
        return check(replace(listing, records=records), policy)

    with pytest.raises(reszoo.DataError, match="train record 1 is not a readable im"):
        checked(None)
    with pytest.raises(reszoo.DataError, match=r"record 1 cannot be used \(no known"):
        checked("error")
    kept, unreadable, warnings = checked("skip")
    assert [(image.path[-8:], image.reason) for image in unreadable] == [
        ("record 1", "no known image format"),
        ("record 2", "truncated"),
        ("record 3", "damaged PNG data"),
    ]
    assert [kept["train"].name(i)[-8:] for i in range(2)] == ["record 0", "record 4"]
    assert (len(kept["train"]), len(kept["test"])) == (2, 1)
    assert warnings == (
        "2 images: under 32 pixels wide or high, e.g. tfds:x train record 0",
    )
    kept, unreadable, _ = checked("recover")
    assert (len(kept["train"]), len(unreadable), kept["train"].recover) == (3, 2, True)
    assert np.asarray(kept["train"].open(1)).shape == (90, 70, 3)
    records = replace(records, numbers=np.zeros(6, np.int64))
    kept, unreadable, _ = checked("error")
    assert unreadable == ()
