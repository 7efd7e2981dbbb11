import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from conftest import photos
from PIL import Image

import reszoo
from reszoo.data.augment import pad_crop_flip
from reszoo.data.examples import Examples, open_image
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


def test_a_fifth_of_every_class_is_held_out_and_judged_on(tmp_path: Path) -> None:
    root = photos(tmp_path / "p", ("b", "a", "10", "2"), each=10)
    source = open_source(root)
    assert source.class_names == ("10", "2", "a", "b")
    assert source.examples() is source.examples("validation")
    assert len(source.examples("all")) == 40
    train, held = paths(source, "train"), paths(source, "validation")
    assert not set(train) & set(held)
    assert sorted(train + held) == sorted(paths(source, "all"))
    assert set(Counter(source.examples("validation").labels).values()) == {2}
    # Pinned: another draw would judge older models on what they were trained on.
    assert "".join(Path(path).stem for path in held) == "46294545"


def test_the_seed_of_a_training_does_not_move_the_split(folder: Path) -> None:
    held = paths(open_source(folder), "validation")
    run = reszoo.train("resnet20", folder, epochs=1, batch_size=5, seed=3)
    found = reszoo.evaluate(run.model, folder)
    assert (found.data, found.images) == (f"{folder} (validation)", len(held))
    assert found.loss == pytest.approx(run.history[-1].validation_loss, rel=0.02)


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


def test_split_folders_may_be_capital_and_of_single_images(tmp_path: Path) -> None:
    for split in ("Train", "Val"):
        photos(tmp_path / split, each=1)
    source = open_source(tmp_path)
    assert source.class_names == ("cat", "dog")
    sizes = {name: len(examples) for name, examples in source.splits.items()}
    assert sizes == {"train": 2, "validation": 2}
    (tmp_path / "Val" / "dog" / "0.png").unlink()
    with pytest.raises(reszoo.DataError, match=r"at least one image\..*Val: dog"):
        open_source(tmp_path)


def test_two_folders_for_one_split_are_refused(tmp_path: Path) -> None:
    for split in ("train", "val", "validation"):
        photos(tmp_path / split, each=1)
    with pytest.raises(reszoo.DataError, match=r"validation split: val, validation\."):
        open_source(tmp_path)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    source = open_source(photos(tmp_path, ("bus", "train"), each=3))
    assert source.class_names == ("bus", "train")
    assert len(source.examples("all")) == 6
    shutil.rmtree(tmp_path / "train")
    photos(tmp_path / "train", each=2)
    assert open_source(tmp_path).class_names == ("cat", "dog")


def test_hidden_files_and_folders_are_passed_over(folder: Path) -> None:
    for hidden in (".ipynb_checkpoints/0.png", "deep/.cache/0.png", ".0.png"):
        copy = folder / "cat" / hidden
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "cat" / "0.png", copy)
    shutil.copy(folder / "cat" / "0.png", folder / "cat" / "deep" / "0.png")
    assert len(open_source(folder).examples("all")) == 13


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


def test_what_only_tensorflow_refuses_is_found_without_its_noise(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bad = folder / "cat" / "0.png"
    bad.write_bytes(bad.read_bytes()[:-4])
    open_image(bad)
    error = find_unreadable(open_source(folder).examples("all"))
    assert f"{bad} is not a readable image (" in str(error)
    assert "function_node" not in str(error)
    assert capfd.readouterr().err == ""


def test_an_image_is_refused_or_read_in_silence_by_pillows_limit(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = folder / "cat" / "0.png"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 52 - 1)
    with pytest.warns(Image.DecompressionBombWarning), Image.open(image):
        pass
    assert open_image(image).size == (52, 40)
    assert find_unreadable(Examples.from_paths([image], [0])) is None
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 52 // 2 - 1)
    message = r"cat/0\.png has too many pixels \(.*2080 pixels.*Make it smaller"
    with pytest.raises(reszoo.DataError, match=message):
        open_source(folder)
    with pytest.raises(reszoo.DataError, match=message):
        open_image(image)


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


def drawn(*shape: int, low: int = 0) -> Any:
    return np.random.default_rng(7).integers(low, 256, shape, np.uint8)


PIXELS = drawn(32, 32, 3)
PICTURE = Image.fromarray(np.concatenate([PIXELS, drawn(32, 32, 1, low=1)], axis=-1))
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")
PICTURES = {mode: PICTURE.convert("RGB").convert(mode) for mode in MODES}
PICTURES |= {"LA": PICTURE.convert("LA"), "RGBA": PICTURE}
MOVING = {"save_all": True, "append_images": [Image.fromarray(255 - PIXELS)]}
EXACT = {"lossless": True, "exact": True}
FILES: list[tuple[str, str, dict[str, Any]]] = [
    *(("png", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
    *(("jpeg", mode, {}) for mode in ("L", "RGB", "CMYK")),
    *(("bmp", mode, {}) for mode in ("1", "L", "P", "RGB", "RGBA")),
    *(("gif", mode, {}) for mode in ("L", "P")),
    *(("webp", mode, EXACT) for mode in ("RGB", "RGBA")),
    *(("webp", mode, EXACT | MOVING) for mode in ("RGB", "RGBA")),
    *((suffix, "P", MOVING) for suffix in ("png", "gif")),
    *((suffix, "P", {"transparency": 3}) for suffix in ("png", "gif")),
    ("jpeg", "RGB", {"progressive": True}),
    ("mpo", "RGB", MOVING),
    ("webp", "RGB", {}),
]


def shown_by_both(path: Path, beside: Path) -> tuple[Any, Any]:
    """One file as TensorFlow's pipeline and as Pillow shows it.

    An ordinary file is beside it: both ways of decoding are in one pipeline. At the
    net's own size nothing is resized, so the decoders have to agree.
    """
    Image.fromarray(PIXELS).save(beside)
    examples = Examples.from_paths([beside, path], [1, 0]).take(np.array([1, 0]))
    assert find_unreadable(examples) is None
    ((images, _),) = evaluation_batches(examples, RECORD, 2)
    np.testing.assert_array_equal(images[1], PIXELS)
    return images[0].numpy().astype(int), examples.prepared(0, RECORD).astype(int)


@pytest.mark.parametrize(("suffix", "mode", "options"), FILES)
def test_tensorflow_and_pillow_see_the_same_pixels(
    tmp_path: Path, suffix: str, mode: str, options: dict[str, Any]
) -> None:
    path = tmp_path / f"image.{suffix}"
    PICTURES[mode].save(path, **options)
    shown, by_pillow = shown_by_both(path, tmp_path / "beside.png")
    assert np.abs(shown - by_pillow).max() <= 1
    if suffix in ("png", "bmp", "gif") or "exact" in options:
        np.testing.assert_array_equal(by_pillow, PICTURES[mode].convert("RGB"))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_of_sixteen_bits_eight_are_taken(tmp_path: Path, channels: int) -> None:
    draw = np.random.default_rng(3)
    deep = draw.integers(0, 65_536, (32, 32, channels), np.uint16)
    path = tmp_path / "deep.png"
    path.write_bytes(tf.io.encode_png(deep).numpy())
    colours = [0, 1, 2] if channels > 2 else [0, 0, 0]
    for shown in shown_by_both(path, tmp_path / "beside.png"):
        np.testing.assert_array_equal(shown, deep[..., colours] >> 8)


def test_a_jpeg_is_decoded_exactly_as_by_pillow(tmp_path: Path) -> None:
    path = tmp_path / "noise.jpg"
    Image.fromarray(PIXELS).save(path, quality=95)
    fast = tf.io.decode_jpeg(path.read_bytes(), 3, dct_method="INTEGER_FAST")
    by_pillow = np.asarray(open_image(path))
    assert not np.array_equal(fast, by_pillow)
    ((images, _),) = evaluation_batches(Examples.from_paths([path], [0]), RECORD, 1)
    np.testing.assert_array_equal(images[0], by_pillow)


def test_training_shows_images_at_the_training_size(folder: Path) -> None:
    record = replace(RECORD, train_size=24, eval_size=40)
    examples = open_source(folder).examples("all")
    plain = Augmentation(pad=0, flip=False)
    ((images, _),) = training_batches(examples, record, 12, plain, seed=0, epoch=0)
    assert images.shape == (12, 24, 24, 3)
    shown = images.numpy().astype(int)
    for index in range(12):
        small = examples.prepared(index, replace(record, eval_size=24))
        assert np.abs(shown - small).max((1, 2, 3)).min() <= 1


def test_the_border_of_a_training_image_has_the_mean_colour() -> None:
    white = Examples.from_arrays(np.full((8, 32, 32, 3), 255, np.uint8), np.arange(8))
    record = replace(RECORD, mean=(0.2, 0.4, 0.6))
    shifted = Augmentation(pad=4, flip=False)
    ((images, _),) = training_batches(white, record, 8, shifted, seed=0, epoch=0)
    colours = {tuple(pixel) for pixel in images.numpy().reshape(-1, 3)}
    assert colours == {(255, 255, 255), (51, 102, 153)}


@pytest.mark.parametrize("flip", [False, True])
def test_training_mirrors_only_where_told_to(flip: bool) -> None:
    images = np.random.default_rng(2).integers(0, 256, (16, 32, 32, 3), np.uint8)
    examples = Examples.from_arrays(images, np.arange(16))
    still = Augmentation(pad=0, flip=flip)
    ((shown, labels),) = training_batches(examples, RECORD, 16, still, seed=0, epoch=0)
    pairs = list(zip(shown.numpy(), images[labels.numpy()], strict=True))
    mirrored = [np.array_equal(seen, image[:, ::-1]) for seen, image in pairs]
    upright = [np.array_equal(seen, image) for seen, image in pairs]
    assert sum(mirrored) + sum(upright) == 16
    assert any(mirrored) == flip


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


@pytest.mark.parametrize("seed", [10**13, 2**63, 10**40])
def test_a_seed_may_be_of_any_size(folder: Path, seed: int) -> None:
    examples = open_source(folder).examples("all")
    first, again = epoch_of(examples, 1, seed), epoch_of(examples, 1, seed)
    np.testing.assert_array_equal(first[0][0], again[0][0])
    assert not np.array_equal(first[0][0], epoch_of(examples, 2, seed)[0][0])


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


@pytest.mark.parametrize("suffix", ["png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_cameras_rotation_is_undone_everywhere(
    folder: Path, orientation: int, suffix: str
) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 60, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = folder / "cat" / f"turned.{suffix}"
    Image.fromarray(pixels).save(turned, exif=exif, lossless=True)
    examples = open_source(folder).examples("all")
    index = (examples.paths or ()).index(turned)
    by_pillow = examples.prepared(index, RECORD)
    image, _ = list(evaluation_batches(examples, RECORD, 1))[index]
    assert np.abs(image[0].numpy().astype(int) - by_pillow).max() <= 1
    # EXIF 2.3: 6 means that the camera's top is the picture's right side.
    if orientation == 6:
        upright = RECORD.prepare(np.rot90(pixels, -1))
        np.testing.assert_array_equal(by_pillow, upright)
