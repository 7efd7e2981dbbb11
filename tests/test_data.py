import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from conftest import photos
from PIL import Image

import reszoo
from reszoo.data.augment import pad_crop_flip
from reszoo.data.pipeline import (
    Augmentation,
    evaluation_batches,
    find_unreadable,
    training_batches,
)
from reszoo.data.sources import check_classes, open_source
from reszoo.preprocessing import default_preprocessing
from reszoo.specs import SPECS

RECORD = default_preprocessing(SPECS["resnet20"])


def paths(source: Any, split: str) -> list[str]:
    return [str(path) for path in source.examples(split).paths]


def test_a_folder_is_split_by_class_and_by_seed(tmp_path: Path) -> None:
    root = photos(tmp_path / "p", ("b", "a", "10", "2"), each=10)
    source = open_source(root, validation_split=0.3)
    assert source.class_names == ("10", "2", "a", "b")
    assert len(source.examples()) == 40
    train, held = paths(source, "train"), paths(source, "validation")
    assert not set(train) & set(held)
    assert sorted(train + held) == sorted(paths(source, "all"))
    assert set(Counter(source.examples("validation").labels).values()) == {3}
    assert held == paths(open_source(root, validation_split=0.3), "validation")
    assert held != paths(open_source(root, validation_split=0.3, seed=1), "validation")


def test_split_folders_are_taken_as_they_are(tmp_path: Path) -> None:
    for split, each in (("train", 4), ("val", 2), ("test", 3)):
        photos(tmp_path / split, each=each)
    source = open_source(tmp_path)
    sizes = {name: len(examples) for name, examples in source.splits.items()}
    assert sizes == {"train": 8, "validation": 4, "test": 6}
    assert source.judging_split == "test"
    with pytest.raises(reszoo.UnknownNameError, match=r"no split.*Did you mean 'test'"):
        source.examples("tset")
    shutil.rmtree(tmp_path / "test" / "dog")
    with pytest.raises(reszoo.DataError, match=r"different classes.*: dog"):
        open_source(tmp_path)


def test_labels_follow_the_folders(folder: Path) -> None:
    source = open_source(folder)
    examples = source.examples("all")
    for path, label in zip(examples.paths or (), examples.labels, strict=True):
        assert path.parent.name == source.class_names[label]


def test_a_useless_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(reszoo.DataError, match="has no images in class folders"):
        open_source(tmp_path)
    (tmp_path / "cat").mkdir()
    with pytest.raises(reszoo.DataError, match="has no images in class folders"):
        open_source(tmp_path)
    with pytest.raises(reszoo.DataError, match="has one class, 'only'"):
        open_source(photos(tmp_path / "one", ("only",)))
    root = photos(tmp_path / "few", ("a", "b"), each=2)
    (root / "b" / "0.png").unlink()
    with pytest.raises(reszoo.DataError, match=r"at least two images.*: b"):
        open_source(root)
    with pytest.raises(reszoo.UsageError, match=r"no folder or data set.*'digits'"):
        open_source("digit")
    with pytest.raises(reszoo.DataError, match="is a file"):
        open_source(tmp_path / "few" / "a" / "0.png")


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"])
def test_a_file_that_is_no_image_is_named_at_once(folder: Path, content: bytes) -> None:
    bad = folder / "cat" / "3.jpg"
    bad.write_bytes(content)
    with pytest.raises(reszoo.DataError, match=r"cat/3\.jpg is not a readable image"):
        open_source(folder)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_truncated_image_is_found_by_name(folder: Path, suffix: str) -> None:
    bad = folder / "cat" / f"x.{suffix}"
    Image.open(folder / "dog" / "0.png").save(bad)
    bad.write_bytes(bad.read_bytes()[:-100])
    try:
        error = find_unreadable(open_source(folder).examples("all"))
    except reszoo.DataError as early:  # Pillow reads all of a PNG to see its EXIF.
        error = early
    assert f"{bad} is not a readable image" in str(error)


def test_other_classes_are_refused_with_the_difference(folder: Path) -> None:
    source = open_source(folder)
    check_classes(source, None, "the model")
    check_classes(source, ("cat", "dog"), "the model")
    with pytest.raises(
        reszoo.DataError, match=r"only in the model: cow; only in .*: dog"
    ):
        check_classes(source, ("cat", "cow"), "the model")
    with pytest.raises(reszoo.DataError, match="same names in another order"):
        check_classes(source, ("dog", "cat"), "the model")


def test_the_digits_are_scikit_learns() -> None:
    source = open_source("digits")
    sizes = {name: len(examples) for name, examples in source.splits.items()}
    assert sum(sizes.values()) == 1797
    assert source.class_names == tuple("0123456789")
    images = source.examples("train").images
    assert images is not None
    assert images.shape[1:] == (8, 8, 3)
    assert (images.min(), images.max()) == (0, 255)
    assert not source.mirror_safe


def test_evaluation_shows_every_image_once_as_pillow_would(folder: Path) -> None:
    examples = open_source(folder).examples("all")
    batches = list(evaluation_batches(examples, RECORD, batch_size=5))
    assert [len(labels) for _, labels in batches] == [5, 5, 2]
    images = np.concatenate([images for images, _ in batches])
    labels = np.concatenate([labels for _, labels in batches])
    np.testing.assert_array_equal(labels, examples.labels)
    expected = np.stack([examples.prepared(i, RECORD) for i in range(12)])
    assert np.abs(images.astype(int) - expected).max() <= 1


def epoch_of(examples: Any, epoch: int, seed: int = 0) -> list[Any]:
    augmentation = Augmentation(pad=4, flip=True)
    batches = training_batches(
        examples, RECORD, 4, augmentation, seed=seed, epoch=epoch
    )
    return [(images.numpy(), labels.numpy()) for images, labels in batches]


def test_an_epoch_can_be_made_again_and_differs_from_the_next(folder: Path) -> None:
    examples = open_source(folder).examples("all")
    first, again = epoch_of(examples, 0), epoch_of(examples, 0)
    assert len(first) == 3
    for (x, y), (u, v) in zip(first, again, strict=True):
        np.testing.assert_array_equal(x, u)
        np.testing.assert_array_equal(y, v)
    assert Counter(np.concatenate([y for _, y in first])) == {0: 6, 1: 6}
    for other in (epoch_of(examples, 1), epoch_of(examples, 0, seed=1)):
        assert not np.array_equal(first[0][0], other[0][0])


def test_augmentation_shifts_and_mirrors_by_its_key_alone() -> None:
    image = tf.constant(np.random.default_rng(0).integers(1, 256, (9, 9, 3)), tf.uint8)
    fill = tf.constant([7, 8, 9], tf.uint8)

    def varied(key: Any, flip: bool = True) -> Any:
        return pad_crop_flip(image, key, 2, flip, fill)

    keys = [tf.constant([seed, 5], tf.int64) for seed in range(60)]
    eager = np.stack([varied(key) for key in keys])
    mapped = np.stack(list(tf.data.Dataset.from_tensor_slices(keys).map(varied)))
    np.testing.assert_array_equal(eager, mapped)
    padded = np.full((13, 13, 3), (7, 8, 9), np.uint8)
    padded[2:-2, 2:-2] = image
    windows = np.lib.stride_tricks.sliding_window_view(padded, (9, 9), (0, 1))
    shifts = windows.reshape(25, 3, 9, 9).transpose(0, 2, 3, 1)
    seen = set()
    for shown in eager:
        plain = [i for i, shift in enumerate(shifts) if np.array_equal(shift, shown)]
        turned = [
            -1 - i for i, s in enumerate(shifts) if np.array_equal(s[:, ::-1], shown)
        ]
        assert len(plain + turned) == 1
        seen.update(plain + turned)
    assert len(seen) > 25
    assert min(seen) < 0 <= max(seen)
    assert all(
        any(np.array_equal(shift, varied(key, flip=False)) for shift in shifts)
        for key in keys[:10]
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_cameras_rotation_is_undone_everywhere(
    folder: Path, orientation: int
) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 60, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = folder / "cat" / "turned.png"
    Image.fromarray(pixels).save(turned, exif=exif)
    examples = open_source(folder).examples("all")
    index = (examples.paths or ()).index(turned)
    by_pillow = examples.prepared(index, RECORD)
    image, _ = list(evaluation_batches(examples, RECORD, 1))[index]
    assert np.abs(image[0].numpy().astype(int) - by_pillow).max() <= 1
    # EXIF 2.3: 6 means that the camera's top is the picture's right side.
    if orientation == 6:
        upright = RECORD.prepare(np.rot90(pixels, -1))
        np.testing.assert_array_equal(by_pillow, upright)
