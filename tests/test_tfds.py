import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import reszoo
from reszoo.data.sources import open_source
from reszoo.data.tfrecord import find_images


def noise(height: int, width: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def _example(**features: Any) -> bytes:
    kinds = {bytes: "bytes_list", int: "int64_list", float: "float_list"}
    lists = {
        "bytes_list": tf.train.BytesList,
        "int64_list": tf.train.Int64List,
        "float_list": tf.train.FloatList,
    }
    made = {}
    for name, value in features.items():
        values = value if isinstance(value, list) else [value]
        kind = kinds[type(values[0])]
        made[name] = tf.train.Feature(**{kind: lists[kind](value=values)})
    features = tf.train.Features(feature=made)
    return bytes(tf.train.Example(features=features).SerializeToString())


def _tfrecord(file: Path, records: list[bytes]) -> str:
    with tf.io.TFRecordWriter(str(file)) as writer:
        for record in records:
            writer.write(record)
    return str(file)


def test_images_of_any_examples_are_found_without_tensorflow(tmp_path: Path) -> None:
    contents = [os.urandom(size) for size in (1, 127, 128, 70_000)]
    labels = [0, 1 << 40, 127, -1]
    records = [
        _example(label=label, image=image, name=b"x" * 200, box=[0.5, 0.25])
        for label, image in zip(labels, contents, strict=True)
    ]
    file = _tfrecord(tmp_path / "any.tfrecord", records)
    data = Path(file).read_bytes()
    found = list(find_images(file, "image", "label"))
    assert [row.label for row in found] == labels
    assert [data[r.offset : r.offset + r.length] for r in found] == contents
    for name, size in (("short", 5), ("inside", 100), ("tail", len(data) - 1)):
        cut = tmp_path / name
        cut.write_bytes(data[:size])
        with pytest.raises(reszoo.DataError, match=f"{name} is cut short"):
            list(find_images(str(cut), "image", "label"))
    (tmp_path / "none").write_bytes(b"")
    assert list(find_images(str(tmp_path / "none"), "image", "label")) == []


@pytest.mark.parametrize(
    "record",
    [
        _example(image=b"x"),
        _example(image=b"x", label=[1, 2]),
        _example(image=[b"x", b"y"], label=1),
        _example(image=b"x", label=b"\1"),
        _example(image=1, label=1),
        b"no example",
    ],
    # The bytes of a message are in another order in every process.
    ids=range(6),
)
def test_examples_without_one_image_and_one_label_are_refused(
    tmp_path: Path, record: bytes
) -> None:
    file = _tfrecord(tmp_path / "odd.tfrecord", [record])
    with pytest.raises(reszoo.DataError, match=r"odd\.tfrecord record 0 is no Example"):
        list(find_images(file, "image", "label"))


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of data sets that TensorFlow Datasets prepared."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    return tmp_path / "tfds"


def _prepare(folder: Path, images: list[Any], version: str, **splits: int) -> None:
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
    builder.download_and_prepare(file_format="tfrecord")


def test_a_prepared_data_set_is_read_in_its_own_files(prepared: Path) -> None:
    images = [noise(9, 7, seed) for seed in range(10)]
    _prepare(prepared, images, "1.0.0", train=10, test=4, extra=2)
    source = open_source("tfds:flowers", bad_images="error")
    assert source.labels == ("daisy", "tulip")
    assert {name: len(part) for name, part in source.splits.items()} == {
        "train": 10,
        "test": 4,
    }
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
    assert not any(train.by_pillow if train.by_pillow is not None else [True])
    assert re.search(r"flowers-train\.tfrecord-\S+ record 3$", train.name(3))
    _prepare(prepared, images, "1.10.0", train=6)
    latest = open_source("tfds:flowers")
    sizes = {name: len(part) for name, part in latest.splits.items()}
    assert sizes == {"all": 6, "train": 4, "validation": 2}
    assert len(open_source("tfds:flowers:1.0.0").splits["train"]) == 10
    (file,) = {*(train.records.files if train.records else ())}
    Path(file).write_bytes(Path(file).read_bytes()[:-1])
    with pytest.raises(reszoo.DataError, match=r"flowers-train\S+ is cut short"):
        open_source("tfds:flowers:1.0.0")


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


def test_a_missing_tensorflow_datasets_is_told(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (prepared / "mnist" / "3.0.1").mkdir(parents=True)
    (prepared / "mnist" / "3.0.1" / "features.json").touch()
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(reszoo.DataError, match=r'pip install "reszoo\[tfds\]"'):
        open_source("tfds:mnist")
