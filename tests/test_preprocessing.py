from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import reszoo
from reszoo.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocessing,
    crop_offset,
    default_preprocessing,
)
from reszoo.specs import SPECS


def record(**changes: Any) -> Preprocessing:
    fields = {
        "train_size": 64,
        "eval_size": 64,
        "crop_pct": 0.875,
        "interpolation": "bilinear",
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
    }
    return Preprocessing(**{**fields, **changes})


def picture(height: int, width: int) -> Any:
    """A hard picture: edges, a fine checkerboard and noise."""
    rows, columns = np.mgrid[:height, :width]
    board = ((rows // 3 + columns // 5) % 2 * 255)[..., None] * np.array([1, 0.6, 0.2])
    noise = np.random.default_rng(0).integers(-60, 60, (height, width, 3))
    return np.clip(board + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop_pct", [0.875, 0.95, 1.0])
@pytest.mark.parametrize("shape", [(300, 400), (133, 77), (40, 45), (8, 8), (64, 64)])
def test_pillow_and_tensorflow_differ_by_one_grey_level_at_most(
    interpolation: str, crop_pct: float, shape: tuple[int, int]
) -> None:
    same = record(interpolation=interpolation, crop_pct=crop_pct)
    image = picture(*shape)
    by_pillow = same.prepare(image).astype(int)
    eager = same.prepare_tensor(tf.constant(image)).numpy()
    dataset = tf.data.Dataset.from_tensors(image).map(same.prepare_tensor)
    assert by_pillow.shape == (64, 64, 3)
    assert np.abs(by_pillow - eager).max() <= 1
    assert np.abs(by_pillow - eager).mean() < 0.03
    np.testing.assert_array_equal(next(iter(dataset)), eager)


@pytest.mark.parametrize(
    ("size", "crop_pct", "resized"),
    [(224, 0.875, 256), (224, 0.95, 235), (224, 0.965, 232), (224, 0.9, 248),
     (288, 1.0, 288), (160, 0.95, 168)],
)  # fmt: skip
def test_the_short_side_is_timms(size: int, crop_pct: float, resized: int) -> None:
    assert record(eval_size=size, crop_pct=crop_pct).resize_size == resized


@pytest.mark.parametrize("side", range(10, 20))
def test_crops_begin_where_torchvisions_do(side: int) -> None:
    assert crop_offset(side, 10) == round((side - 10) / 2.0)


def test_resizing_keeps_the_shape_and_cuts_the_centre() -> None:
    image = np.zeros((100, 200, 3), np.uint8)
    image[:, 40:160] = 255
    shown = record(crop_pct=1.0).prepare(image)
    assert shown.min() == 255


def test_normalisation_is_torchvisions() -> None:
    pixels = np.array([[0.0, 128.0, 255.0]], np.float32)
    expected = (pixels / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    np.testing.assert_allclose(record().normalise(pixels), expected, atol=1e-6)
    np.testing.assert_allclose(
        record().normalise(tf.constant(pixels)), expected, atol=1e-6
    )


def test_grey_and_transparent_pictures_become_rgb() -> None:
    for mode in ("L", "RGBA", "P", "CMYK"):
        shown = record().prepare(Image.new(mode, (70, 80)))
        assert shown.shape == (64, 64, 3)
        assert shown.dtype == np.uint8


def test_a_record_survives_json() -> None:
    assert Preprocessing(**record().to_json()) == record()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"interpolation": "bilinaer"}, "Did you mean 'bilinear'"),
        ({"crop_pct": 1.2}, r"crop_pct must be in \[0.1, 1\]"),
        ({"eval_size": 0}, "eval_size=0"),
        ({"std": (0.2, 0.2)}, "one entry per channel"),
    ],
)
def test_impossible_records_are_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(reszoo.UsageError, match=text):
        record(**changes)


def test_fresh_nets_are_shown_their_own_size() -> None:
    assert default_preprocessing(SPECS["resnet50"]).resize_size == 256
    assert default_preprocessing(SPECS["resnet20"]).resize_size == 32


def test_a_picture_of_16_bits_keeps_its_upper_eight() -> None:
    values = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    shown = record(crop_pct=1.0).prepare(Image.fromarray(values))
    np.testing.assert_array_equal(shown[..., 0], values >> 8)
