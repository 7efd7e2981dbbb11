"""Decode and prepare encoded images inside the TensorFlow graph, and check it."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from PIL import Image

from reszoo.cards import Card
from reszoo.data.decoding import decode
from reszoo.preprocessing import Pixels, Preprocessing
from reszoo_export.saved_model.runtime import newest_version

# JEITA CP-3451 (EXIF 2.3): the mark of its segment in a JPEG (4.7.2), and how many
# bytes the TIFF structure behind it has at most, as a segment's length is 16 bits.
_MARK = b"Exif\x00\x00"
_SEGMENT = 65536
# TIFF 6.0, section 2: an entry's length and the tag of the orientation (section 8).
_ENTRY = 12
_ORIENTATION = 0x0112


def prepare_encoded(files: tf.Tensor, record: Preprocessing) -> tf.Tensor:
    """Decode, turn upright, resize and crop pictures as `Predictor` does.

    A PNG is taken as upright: only of a JPEG the EXIF orientation is read.

    Args:
        files: string `(batch,)`, whole JPEG or PNG files.
        record: How they are resized and cropped.

    Returns:
        uint8 RGB `(batch, eval_size, eval_size, 3)`.
    """
    size = record.eval_size

    def prepare(content: tf.Tensor) -> tf.Tensor:
        image = record.prepare_tensor(decode(content, orientation(content)))
        return tf.ensure_shape(image, (size, size, 3))

    spec = tf.TensorSpec((size, size, 3), tf.uint8)
    return tf.map_fn(prepare, files, fn_output_signature=spec)


def orientation(content: tf.Tensor) -> tf.Tensor:
    """Read how the camera of a JPEG was held; 1 (upright) where nothing tells.

    Args:
        content: string `()`, the file.

    Returns:
        int64 `()`, 1 to 8; EXIF 2.3, section 4.6.4 A.
    """
    parts = tf.strings.split(tf.strings.substr(content, 0, 2 * _SEGMENT), _MARK, 1)
    found = tf.io.is_jpeg(content) & (tf.size(parts) == 2)
    return tf.cond(found, lambda: _of_tiff(parts[1]), lambda: tf.constant(1, tf.int64))


def _of_tiff(structure: tf.Tensor) -> tf.Tensor:
    octets = tf.cast(tf.io.decode_raw(structure, tf.uint8), tf.int64)[:_SEGMENT]
    # So that a broken structure is read as one without orientation.
    octets = tf.pad(octets, [(0, 16)])
    little = octets[0] == ord("I")

    def number(at: tf.Tensor, weights: tuple[int, ...]) -> tf.Tensor:
        places = at[..., None] + tf.range(len(weights), dtype=tf.int64)
        places = tf.minimum(places, tf.size(octets, tf.int64) - 1)
        order = tf.where(little, weights, weights[::-1])
        return tf.reduce_sum(tf.gather(octets, places) * tf.cast(order, tf.int64), -1)

    short, long = (1, 1 << 8), (1, 1 << 8, 1 << 16, 1 << 24)
    directory = number(tf.constant(4, tf.int64), long)
    entries = directory + 2 + _ENTRY * tf.range(number(directory, short))
    held = number(entries + 8, short)
    fits = (number(entries, short) == _ORIENTATION) & (held >= 1) & (held <= 8)
    return tf.concat([tf.boolean_mask(held, fits), [1]], 0)[0]


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
