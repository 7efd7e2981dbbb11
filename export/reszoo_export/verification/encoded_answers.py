"""Whether a SavedModel prepares encoded pictures as everything else here does."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reszoo.cards import Card
from reszoo.preprocessing import Pixels, Preprocessing
from reszoo_export.runtimes.tensorflow import newest_version

_SIGNATURES = ("serving_default", "serving_bytes")
# TensorFlow and Pillow round resized pixels apart by one grey level at most.
_LEVELS = 1
# What such levels change depends on where they are: drawn several times, and doubled.
_DRAWS, _ROOM = 4, 2.0
_ROUNDING = 1e-4


def wrong_encoded(path: Path, card: Card) -> list[str]:
    """Tell what is wrong with a SavedModel's answers to encoded pictures.

    They are held against its own answers to the same pictures, resized and cropped
    by Pillow.

    Args:
        path: The folder.
        card: Of the model: how pictures become images.
    """
    import tensorflow as tf

    loaded = tf.saved_model.load(str(newest_version(path)))
    missing = [name for name in _SIGNATURES if name not in loaded.signatures]
    if missing:
        return [f"it has no signature {' and '.join(missing)}"]
    of_pixels, of_bytes = (loaded.signatures[name] for name in _SIGNATURES)
    specs = of_bytes.structured_input_signature[1]
    if list(specs) != ["image_bytes"]:
        return [f"serving_bytes must take image_bytes, not {', '.join(specs)}"]
    count = specs["image_bytes"].shape[0] or 2
    pictures = _pictures(card.preprocessing, count)
    files = tf.constant([_png(picture) for picture in pictures])
    prepared = np.stack([card.preprocessing.prepare(each) for each in pictures])
    expected = _answers(of_pixels(image=tf.constant(prepared)))
    moved = np.abs(_answers(of_bytes(image_bytes=files)) - expected).max()
    by_levels = [
        np.abs(_answers(of_pixels(image=tf.constant(near))) - expected).max()
        for near in _nearly(prepared)
    ]
    allowed = _ROOM * max(by_levels) + _ROUNDING
    if moved <= allowed:
        return []
    problem = (
        "serving_bytes answers otherwise than serving_default to the same pictures, "
        f"by {moved:.2g}; one grey level would explain {allowed:.2g}"
    )
    return [problem]


def _pictures(record: Preprocessing, count: int) -> list[Pixels]:
    """Make pictures that every way of resizing changes, wide and high ones."""
    draw = np.random.default_rng(0)
    side = record.resize_size
    sizes = [(side * 3 // 2 + 1, side * 2 + 3), (side * 2 + 5, side * 5 // 4 + 1)]
    return [
        draw.integers(0, 256, (*sizes[number % 2], 3), np.uint8)
        for number in range(count)
    ]


def _png(picture: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def _nearly(images: Pixels) -> list[Pixels]:
    draw = np.random.default_rng(1)
    return [
        np.clip(
            images + draw.integers(-_LEVELS, _LEVELS, images.shape, endpoint=True),
            0,
            255,
        ).astype(np.uint8)
        for _ in range(_DRAWS)
    ]


def _answers(outputs: Mapping[str, Any]) -> NDArray[np.float32]:
    """Return logits where there are any: probabilities may hide a difference."""
    name = "logits" if "logits" in outputs else next(iter(outputs))
    return np.asarray(outputs[name], np.float32)
