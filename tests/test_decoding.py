"""TensorFlow's pipeline and Pillow see the same pixels, in whole and in part."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sample_images import orientation_exif

import reszoo
from reszoo.data.checks import find_unreadable
from reszoo.data.decoding import Decoder
from reszoo.data.examples import Examples, Records
from reszoo.data.image_files import open_image
from reszoo.data.pipeline import evaluation_batches
from reszoo.data.sources import open_source
from reszoo.preprocessing import default_preprocessing
from reszoo.specs import SPECS

pytestmark = pytest.mark.usefixtures("home")
RECORD = default_preprocessing(SPECS["resnet20"])


def drawn(*shape: int, low: int = 0) -> Any:
    return np.random.default_rng(7).integers(low, 256, shape, np.uint8)


PIXELS = drawn(32, 32, 3)
PICTURE = Image.fromarray(np.concatenate([PIXELS, drawn(32, 32, 1, low=1)], axis=-1))
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")
PICTURES = {mode: PICTURE.convert("RGB").convert(mode) for mode in MODES}
PICTURES |= {"LA": PICTURE.convert("LA"), "RGBA": PICTURE}
WIDE = Image.fromarray(drawn(6, 8, 3)).resize((67, 45), Image.Resampling.BICUBIC)
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


def files_of(paths: Sequence[Path], targets: Sequence[int]) -> Examples:
    names = tuple(map(str, paths))
    return Examples(np.asarray(targets, np.int64), paths=names).read_headers()


def shown_by_both(path: Path, beside: Path) -> tuple[Any, Any]:
    """One file as TensorFlow's pipeline and as Pillow shows it.

    An ordinary file is beside it: both ways of decoding are in one pipeline. At the
    net's own size nothing is resized, so the decoders have to agree.
    """
    Image.fromarray(PIXELS).save(beside)
    examples = files_of([beside, path], [1, 0]).take(np.array([1, 0]))
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
    ((images, _),) = evaluation_batches(files_of([path], [0]), RECORD, 1)
    np.testing.assert_array_equal(images[0], by_pillow)


@pytest.mark.parametrize("suffix", ["png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_cameras_rotation_is_undone_everywhere(
    folder: Path, orientation: int, suffix: str
) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 60, 3), np.uint8)
    exif = orientation_exif(orientation)
    turned = folder / "cat" / f"turned.{suffix}"
    Image.fromarray(pixels).save(turned, exif=exif, lossless=True)
    examples = open_source(folder).examples("all")
    index = (examples.paths or ()).index(str(turned))
    by_pillow = examples.prepared(index, RECORD)
    image, _ = list(evaluation_batches(examples, RECORD, 1))[index]
    assert np.abs(image[0].numpy().astype(int) - by_pillow).max() <= 1
    # EXIF 2.3: 6 means that the camera's top is the picture's right side.
    if orientation == 6:
        upright = RECORD.prepare(np.rot90(pixels, -1))
        np.testing.assert_array_equal(by_pillow, upright)


def test_examples_keep_their_headers_in_any_order(tmp_path: Path) -> None:
    for orientation in (1, 6, 8):
        exif = orientation_exif(orientation)
        WIDE.save(tmp_path / f"{orientation}.png", exif=exif)
    WIDE.save(tmp_path / "x.webp", lossless=True)
    examples = files_of(sorted(tmp_path.iterdir()), range(4))
    taken = examples.take(np.array([3, 1, 0, 2]))
    assert taken.headers is not None
    assert list(taken.headers["orientation"]) == [1, 6, 1, 8]
    assert list(taken.headers["by_pillow"]) == [True, False, False, False]
    np.testing.assert_array_equal(
        taken.sides(), [[45, 67], [67, 45], [45, 67], [67, 45]]
    )
    decoder = Decoder(taken)
    for index in range(4):
        shown = decoder.image(tf.constant(index, tf.int64))
        np.testing.assert_array_equal(shown, np.asarray(taken.open(index)))


def parts_of(
    examples: Examples,
    windows: list[tuple[int, int, int, int]],
    sides: tuple[int, int] = (100, 100),
) -> Any:
    """Parts of the first picture, decoded inside one pipeline."""
    decoder, first = Decoder(examples, sides), tf.constant(0, tf.int64)
    indices = np.zeros(len(windows), np.int64)
    stored = decoder.stored(indices, np.array(windows, np.int32))
    parts = tf.data.Dataset.from_tensor_slices(stored).map(
        partial(decoder.image, first)
    )
    return [part.numpy().astype(int) for part in parts]


# Top, left, height and width of parts that touch every side of 45 rows, or none.
PARTS = [(0, 0, 9, 30), (7, 5, 31, 21), (30, 17, 15, 28), (0, 0, 45, 45)]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_part_is_a_part_of_the_upright_picture(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    exif = orientation_exif(orientation)
    path = tmp_path / f"held.{suffix}"
    # Chroma is not subsampled, which makes parts exact up to their edges.
    options: dict[str, Any] = {} if suffix == "png" else {"quality": 95}
    options |= {"subsampling": 0} if suffix == "jpg" else {}
    WIDE.save(path, exif=exif, **options)
    examples = files_of([path], [0])
    upright = np.asarray(examples.open(0)).astype(int)
    assert upright.shape == ((45, 67, 3) if orientation < 5 else (67, 45, 3))
    np.testing.assert_array_equal(examples.sides(), [upright.shape[:2]])
    for part, shown in zip(PARTS, parts_of(examples, PARTS), strict=True):
        top, left, height, width = part
        expected = upright[top : top + height, left : left + width]
        np.testing.assert_array_equal(shown, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_large_parts_of_jpegs_are_decoded_at_a_fraction(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    exif = orientation_exif(orientation)
    path = tmp_path / f"held.{suffix}"
    big = WIDE.resize((403, 301), Image.Resampling.BICUBIC)
    big.save(path, exif=exif, quality=95, subsampling=0)
    examples = files_of([path], [0])
    (height, width), sides = examples.sides()[0], (20, 24)
    # Twice as many pixels as shown: whole, at a quarter, a half, and not reduced.
    windows = [(0, 0, height, width), (33, 21, 200, 192), (101, 53, 170, 96)]
    windows += [(9, 5, 70, 190), (height - 81, width - 97, 81, 97)]
    decoder = Decoder(examples, sides)
    stored = decoder.stored(np.zeros(5, np.int64), np.array(windows, np.int32))
    assert list(stored[:, 4]) == [4, 4, 2, 1, 2]
    whole = np.asarray(examples.open(0)).astype(float)
    parts = parts_of(examples, windows, sides)
    for (top, left, tall, wide), part, factor in zip(
        windows, parts, stored[:, 4], strict=True
    ):
        cut = whole[top : top + tall, left : left + wide]
        reduced = 1 if suffix == "png" else factor
        assert np.abs(np.multiply(part.shape[:2], reduced) - cut.shape[:2]).max() <= 8
        size = (12, 10)
        shown, expected = (
            np.asarray(Image.fromarray(each.astype(np.uint8)).resize(size), float)
            for each in (part, cut)
        )
        # A window moves by 3 pixels at most; a reflected one would be 70 levels off.
        assert np.abs(shown - expected).mean() < 10


@pytest.mark.parametrize(("mode", "subsampling"), [("L", 0), ("CMYK", 0), ("RGB", 2)])
def test_only_edges_of_parts_with_few_colour_samples_differ(
    tmp_path: Path, mode: str, subsampling: int
) -> None:
    path = tmp_path / "image.jpg"
    WIDE.convert(mode).save(path, subsampling=subsampling)
    examples = files_of([path], [0])
    whole = np.asarray(examples.open(0)).astype(int)
    differences = []
    for part, shown in zip(PARTS, parts_of(examples, PARTS), strict=True):
        top, left, height, width = part
        expected = whole[top : top + height, left : left + width]
        differences.append(np.abs(shown - expected).max((0, 2)))
    assert max(columns[2:-2].max() for columns in differences) <= 1
    assert (max(columns.max() for columns in differences) > 1) == (mode == "RGB")


def test_a_jpeg_that_is_cut_short_is_decoded_as_far_as_by_pillow(
    tmp_path: Path,
) -> None:
    path = tmp_path / "image.jpg"
    WIDE.save(path, quality=95, subsampling=0)
    path.write_bytes(path.read_bytes()[:-900])
    broken = files_of([path], [0])
    assert find_unreadable(broken) is not None
    with pytest.raises(tf.errors.InvalidArgumentError):
        parts_of(broken, PARTS[-1:])
    recovered = replace(broken, recover=True)
    assert find_unreadable(recovered) is None
    whole = np.asarray(recovered.open(0))
    assert (whole[-1] == 128).all()
    assert np.abs(whole[0].astype(int) - np.asarray(WIDE)[0]).mean() < 8
    np.testing.assert_array_equal(Decoder(recovered).image(tf.constant(0)), whole)
    (part,) = parts_of(recovered, PARTS[-1:])
    np.testing.assert_array_equal(part, whole[:, :45])


def test_an_image_that_changed_its_size_meanwhile_is_named(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    WIDE.save(path)
    examples = files_of([path], [0])
    assert find_unreadable(examples) is None
    WIDE.crop((0, 0, 30, 40)).save(path)
    with pytest.raises(tf.errors.InvalidArgumentError):
        parts_of(examples, PARTS[-1:])
    with pytest.raises(
        reszoo.DataError, match=r"image.jpg no longer has 67 x 45 pixels"
    ):
        raise find_unreadable(examples) or AssertionError


def test_records_and_arrays_are_decoded_as_files_are(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.jpg", "b.png", "c.webp")]
    for number, path in enumerate(paths):
        WIDE.rotate(90 * number).save(path)
    files = files_of(paths, [3, 1, 2])
    contents = [path.read_bytes() for path in paths]
    lengths = np.array([len(content) for content in contents])
    source = Records("source", contents.__getitem__, np.arange(3), lengths)
    records = Examples(files.targets, records=source).read_headers()
    whole = np.stack([np.asarray(files.open(index)) for index in range(3)])
    arrays = Examples(files.targets, images=whole)
    for examples in (files, records, arrays):
        decoder = Decoder(examples)
        shown = tf.data.Dataset.range(3).map(
            lambda i, decoder=decoder: (decoder.image(i), decoder.target(i))
        )
        images, labels = zip(*shown.as_numpy_iterator(), strict=True)
        np.testing.assert_array_equal(images, whole)
        assert labels == (3, 1, 2)
        (part,) = parts_of(examples, PARTS[:1])
        assert np.abs(part - whole[0, :9, :30].astype(int))[:, :-2].max() <= 1
