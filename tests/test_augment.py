"""Every operation beside Pillow's, every random one by its statistics."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

import reszoo
from reszoo.data.augment import geometry, policies
from reszoo.data.augment.policies import (
    RAND,
    TRIVIAL,
    Canvas,
    find_policy,
    rand_augment,
    trivial_augment,
)

DRAW = np.random.default_rng(5)
# Some structure and some noise; not the full range of levels, not square.
SMOOTH = Image.fromarray(DRAW.integers(0, 256, (6, 8, 3), np.uint8)).resize((53, 41))
PIXELS = np.clip(np.asarray(SMOOTH) + DRAW.integers(-9, 9, (41, 53, 3)), 20, 240)
PIXELS = PIXELS.astype(np.uint8)
PICTURE = Image.fromarray(PIXELS)
FILL = (124, 116, 104)
RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def keys(count: int) -> Any:
    return tf.stack(
        [tf.range(count, dtype=tf.int64), tf.fill((count,), tf.constant(7, tf.int64))],
        axis=1,
    )


def canvas(interpolation: str = "bilinear") -> Canvas:
    return Canvas(tf.constant(FILL, tf.uint8), interpolation)


def difference(shown: Any, expected: Any) -> Any:
    return np.abs(np.asarray(shown).astype(int) - np.asarray(expected))


def solarize_added(image: Image.Image, amount: int) -> Image.Image:
    table = [min(255, level + amount) if level < 128 else level for level in range(256)]
    return image.point(table * 3)


def enhanced(kind: Any) -> Callable[[Image.Image, float], Image.Image]:
    return lambda image, factor: kind(image).enhance(factor)


COLOURS: list[tuple[Any, Any, tuple[float, ...]]] = [
    (policies.brightness, enhanced(ImageEnhance.Brightness), (0.01, 0.7, 1, 1.9)),
    (policies.contrast, enhanced(ImageEnhance.Contrast), (0.01, 0.7, 1, 1.9)),
    (policies.saturation, enhanced(ImageEnhance.Color), (0.01, 0.7, 1, 1.9)),
    (policies.sharpness, enhanced(ImageEnhance.Sharpness), (0.01, 0.7, 1, 1.9)),
    (policies.posterize, ImageOps.posterize, (1, 2, 4, 8)),
    (policies.solarize, ImageOps.solarize, (0, 76.8, 128, 256)),
    (policies.solarize_add, solarize_added, (0, 77, 110)),
]


@pytest.mark.parametrize(("ours", "pillows", "values"), COLOURS)
def test_colours_change_as_in_pillow(ours: Any, pillows: Any, values: Any) -> None:
    for value in values:
        shown = ours(tf.constant(PIXELS), value)
        assert difference(shown, pillows(PICTURE, value)).max() <= 1


FLAT = np.full((5, 4, 3), 90, np.uint8)
FEW = np.arange(36, dtype=np.uint8).reshape(4, 3, 3) * 5
# One level but for two pixels: the step of its equalisation is small.
LOPSIDED = np.concatenate([np.zeros((300, 1, 3)), np.full((400, 1, 3), 9)])
LOPSIDED = np.concatenate([LOPSIDED, np.full((300, 1, 3), 200)]).astype(np.uint8)


@pytest.mark.parametrize("name", ["autocontrast", "equalize", "invert"])
def test_levels_are_spread_as_in_pillow(name: str) -> None:
    for pixels in (PIXELS, FLAT, FEW, LOPSIDED, np.tile(LOPSIDED[200:500], (1, 2, 1))):
        shown = getattr(policies, name)(tf.constant(pixels))
        by_pillow = getattr(ImageOps, name)(Image.fromarray(pixels))
        np.testing.assert_array_equal(shown, by_pillow)


def test_no_bits_are_black() -> None:
    assert not np.any(policies.posterize(tf.constant(PIXELS), 0))


def moved(matrix: Any, interpolation: str) -> Image.Image:
    return PICTURE.transform(
        PICTURE.size,
        Image.Transform.AFFINE,
        matrix,
        RESAMPLING[interpolation],
        fillcolor=FILL,
    )


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_pictures_move_as_in_pillow(interpolation: str) -> None:
    image, on = tf.constant(PIXELS), canvas(interpolation)
    turned = PICTURE.rotate(29.3, RESAMPLING[interpolation], fillcolor=FILL)
    values = {
        "shear_x": (0.3, moved((1, 0.3, 0, 0, 1, 0), interpolation)),
        "shear_y": (-0.9, moved((1, 0, 0, -0.9, 1, 0), interpolation)),
        "translate_x": (7, moved((1, 0, 7, 0, 1, 0), interpolation)),
        "translate_y": (-9.7, moved((1, 0, 0, 0, 1, -9.7), interpolation)),
        "translate_x_share": (0.4, moved((1, 0, 0.4 * 53, 0, 1, 0), interpolation)),
        "translate_y_share": (-0.2, moved((1, 0, 0, 0, 1, -0.2 * 41), interpolation)),
        "rotate": (29.3, turned),
    }
    assert values.keys() == policies.MATRICES.keys()
    pairs = [
        (
            policies.transform(image, policies.MATRICES[name](value, 41, 53), on),
            expected,
        )
        for name, (value, expected) in values.items()
    ]
    for shown, expected in pairs:
        assert difference(expected, PIXELS).max() > 50
        # float32 here and double there: a place on the very edge may fall outside.
        assert (difference(shown, expected) > 1).any(-1).mean() <= 0.001
    still = policies.transform(image, (1, 0, 0, 0, 1, 0), on)
    np.testing.assert_array_equal(still, PIXELS)


def in_pipeline(function: Callable[[Any], Any], count: int) -> Any:
    mapped = tf.data.Dataset.from_tensor_slices(keys(count)).map(function)
    return np.stack([np.asarray(shown) for shown in mapped])


def windows(height: int, width: int, count: int, scale: Any, ratio: Any) -> Any:
    sides = np.full((count, 2), (height, width), np.int32)
    return geometry.random_windows(sides, np.random.default_rng(0), scale, ratio)


def test_windows_have_the_shares_and_shapes_that_torchvision_draws() -> None:
    drawn = windows(300, 400, 2000, (0.08, 1.0), (3 / 4, 4 / 3))
    top, left, height, width = drawn.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height).max() == 300
    assert (left + width).max() == 400
    share, ratio = height * width / 120_000, width / height
    assert 0.075 < share.min() < 0.1
    assert share.max() > 0.95
    assert ratio.min() > 0.74
    assert ratio.max() < 1.35
    # The means of 300,000 draws of torchvision's algorithm in plain Python.
    assert share.mean() == pytest.approx(0.433, abs=0.02)
    assert np.log(ratio).mean() == pytest.approx(0.031, abs=0.015)
    # The rest of the height is used evenly.
    assert (top / np.maximum(300 - height, 1)).mean() == pytest.approx(0.5, abs=0.03)


def test_where_no_window_fits_the_central_one_is_taken() -> None:
    scale, ratio = (1.0, 1.0), (3 / 4, 4 / 3)
    np.testing.assert_array_equal(
        windows(30, 300, 2, scale, ratio), [[0, 130, 30, 40]] * 2
    )
    np.testing.assert_array_equal(
        windows(301, 30, 2, scale, ratio), [[130, 0, 40, 30]] * 2
    )
    np.testing.assert_array_equal(windows(30, 36, 1, scale, (1, 1.2))[0, 2:], [30, 36])


def test_a_window_is_resized_as_by_pillow() -> None:
    for interpolation, resampling in RESAMPLING.items():
        # Both smaller, both larger, and one of each.
        for side in (24, 60, 47):
            shown = geometry.resize(tf.constant(PIXELS), side, interpolation)
            off = difference(shown, PICTURE.resize((side, side), resampling))
            assert off.max() <= 1
            assert (off > 0).mean() < 0.25


def test_a_batch_is_shifted_as_drawn() -> None:
    images = DRAW.integers(1, 256, (50, 9, 7, 3)).astype(np.uint8)
    draws = np.stack(np.meshgrid(*[np.arange(5) / 5 + 0.1] * 2), -1).reshape(25, 2)
    draws = np.concatenate([draws, draws]).astype(np.float32)
    shown = geometry.shift(tf.constant(images), tf.constant(draws), 2, canvas().fill)
    for image, seen, (down, across) in zip(images, shown, draws, strict=True):
        padded = np.full((13, 11, 3), FILL, np.uint8)
        padded[2:-2, 2:-2] = image
        top, left = int(down * 5), int(across * 5)
        np.testing.assert_array_equal(seen, padded[top : top + 9, left : left + 7])


def test_half_of_a_batch_is_mirrored() -> None:
    images = DRAW.integers(1, 256, (4, 9, 7, 3)).astype(np.uint8)
    draws = tf.constant([0.0, 0.49, 0.5, 0.99])
    shown = np.asarray(geometry.flip(tf.constant(images), draws))
    np.testing.assert_array_equal(shown[:2], images[:2, :, ::-1])
    np.testing.assert_array_equal(shown[2:], images[2:])


def test_boxes_are_erased_in_the_mean_colour() -> None:
    image, draw = tf.zeros((40, 60, 3), tf.uint8), np.random.default_rng(0)
    boxes = geometry.random_boxes((40, 60), 800, draw, 0.25)
    erased = np.stack([geometry.erase(image, box, canvas().fill) for box in boxes])
    painted = (erased == FILL).all(-1)
    assert ((erased == 0).all(-1) | painted).all()
    touched = painted.any((1, 2))
    assert touched.mean() == pytest.approx(0.25, abs=0.05)
    rows, columns = painted.any(2).sum(1)[touched], painted.any(1).sum(1)[touched]
    area = painted.sum((1, 2))[touched]
    # A box, of 2 to 33 % of the area and 0.3 to 3.3 times as high as wide.
    np.testing.assert_array_equal(rows * columns, area)
    assert area.min() > 0.015 * 2400
    assert area.max() < 0.35 * 2400
    assert area.mean() == pytest.approx(0.16 * 2400, rel=0.1)
    assert 0.25 < (rows / columns).min() < 0.6
    assert 1.6 < (rows / columns).max() < 3.8


POLICIES = {
    "trivial": trivial_augment,
    "rand-m7-mstd0.5": find_policy("rand-m7-mstd0.5-inc1"),
}


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_gives_the_same_eagerly_and_in_a_pipeline(name: str) -> None:
    image, varied = tf.constant(PIXELS), POLICIES[name]
    mapped = in_pipeline(lambda key: varied(image, key, canvas()), 30)
    eager = np.stack([varied(image, key, canvas()) for key in keys(30)])
    np.testing.assert_array_equal(mapped, eager)
    still = (mapped == PIXELS).all((1, 2, 3)).mean()
    # One operation of 14 does nothing; of two layers both are left out by a quarter.
    assert still < 0.3 if name == "trivial" else 0.1 < still < 0.4
    assert len({shown.tobytes() for shown in mapped}) > 15


@pytest.mark.parametrize("names", [tuple(TRIVIAL), tuple(RAND)])
def test_the_operation_that_is_drawn_is_carried_out(names: tuple[str, ...]) -> None:
    image = tf.constant(PIXELS)
    # 0.3 is no whole number of bits, levels or pixels: those get 3.
    whole = {"posterize", "solarize", "solarize_add", "translate_x", "translate_y"}
    shown = tf.data.Dataset.range(len(names)).map(
        lambda choice: policies._apply(
            names,
            tf.cast(choice, tf.int32),
            image,
            lambda name: 3.0 if name in whole else 0.3,
            canvas(),
        )
    )
    for name, picture in zip(names, shown, strict=True):
        value = 3.0 if name in whole else 0.3
        if name in policies.MATRICES:
            matrix = policies.MATRICES[name](value, 41, 53)
            expected = policies.transform(image, matrix, canvas())
        elif name == "identity":
            expected = image
        else:
            operation = getattr(policies, name)
            alone = name in ("autocontrast", "equalize", "invert")
            expected = operation(image) if alone else operation(image, value)
        assert difference(picture, expected).max() <= 1, name


def test_every_strength_of_the_trivial_policy_is_torchvisions() -> None:
    assert len(TRIVIAL) == 14
    last = {name: values[:, -1].tolist() for name, values in TRIVIAL.items()}
    assert last["rotate"] == [135, -135]
    assert last["translate_y"] == [32, -32]
    assert last["contrast"] == pytest.approx([1.99, 0.01])
    assert last["solarize"] == [0, 0]
    assert TRIVIAL["translate_x"][1, :4].tolist() == [0, -1, -2, -3]
    # torchvision: 8 - (arange(31) / 5).round()
    assert TRIVIAL["posterize"][0, [0, 2, 3, 7, 8, 30]].tolist() == [8, 8, 7, 7, 6, 2]


def test_every_level_of_rand_augment_is_timms() -> None:
    assert len(RAND) == 15
    share, minus = tf.constant(0.7, tf.float64), tf.constant(-1, tf.float64)
    values = {
        name: float(found)
        for name in RAND
        if (found := RAND[name](share, minus)) is not None
    }
    # By timm 1.0.31's LEVEL_TO_ARG at level 7 with its coin on "negate".
    assert values == pytest.approx(
        {
            "rotate": -21,
            "posterize": 2,
            "solarize": 77,
            "solarize_add": 77,
            "saturation": 0.37,
            "contrast": 0.37,
            "brightness": 0.37,
            "sharpness": 0.37,
            "shear_x": -0.21,
            "shear_y": -0.21,
            "translate_x_share": -0.315,
            "translate_y_share": -0.315,
        }
    )


def test_operations_are_drawn_evenly_and_levels_about_the_magnitude(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Instead of an operation, its number and strength are written down in two rows.
    def note(names: Any, choice: Any, image: Any, value: Any, _: Any) -> Any:
        row = tf.stack([tf.cast(choice + 1, tf.float64), value("rotate")])
        later = tf.where(image[:1, :1] > 0, [[1.0], [0.0]], [[0.0], [1.0]])
        return tf.where(later > 0, image, row[None])

    monkeypatch.setattr("reszoo.data.augment.policies._apply", note)
    start = tf.zeros((2, 2), tf.float64)
    rows = in_pipeline(
        lambda key: rand_augment(start, key, canvas(), magnitude=6, deviation=0.5), 1500
    )
    numbers = rows[..., 0].astype(int)
    counts = np.bincount(numbers.ravel(), minlength=16)
    assert counts[0] == pytest.approx(1500, rel=0.07)
    assert counts[1:].min() > 65
    assert counts[1:].max() < 140
    # Both layers, independently.
    assert (numbers == 0).all(1).mean() == pytest.approx(0.25, abs=0.04)
    rotated = rows[numbers > 0][:, 1]
    assert np.abs(rotated).mean() == pytest.approx(18, abs=0.5)
    assert np.abs(rotated).std() == pytest.approx(1.5, rel=0.3)
    assert 0.3 < (rotated > 0).mean() < 0.7


@pytest.mark.parametrize("name", ["auto", "rand", "rand-m11-mstd0.5", "rand-m9-n3"])
def test_an_unknown_policy_is_refused(name: str) -> None:
    with pytest.raises(reszoo.UsageError, match=rf"policy is 'trivial' or.*'{name}'\."):
        find_policy(name)
