"""From examples to batches: the one `tf.data` pipeline.

Images stay uint8 until they are inside the training step. What is drawn at random
derives from (seed, epoch) for the order and (seed, epoch, index) for each image,
so any epoch can be made again by itself.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from reszoo.data.augment import pad_crop_flip
from reszoo.data.examples import Examples, open_image
from reszoo.errors import DataError
from reszoo.preprocessing import Pixels, Preprocessing
from reszoo.quiet import held_stderr


@dataclass(frozen=True)
class Augmentation:
    """How training images are varied.

    Attributes:
        pad: Border of mean colour from which a crop is cut, in pixels.
        flip: Whether half of the images are mirrored.
    """

    pad: int
    flip: bool


def evaluation_batches(
    examples: Examples, record: Preprocessing, batch_size: int
) -> tf.data.Dataset:
    """Return every example once, in order.

    Returns:
        Batches of uint8 `(batch, eval_size, eval_size, 3)` and int64 `(batch,)`;
        the last may be smaller.
    """
    indices = tf.data.Dataset.range(len(examples))
    load = _loader(examples)

    def prepare(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image, label = load(index)
        return record.prepare_tensor(image), label

    images = indices.map(prepare, num_parallel_calls=tf.data.AUTOTUNE)
    return images.batch(batch_size).prefetch(tf.data.AUTOTUNE)


def training_batches(
    examples: Examples,
    record: Preprocessing,
    batch_size: int,
    augmentation: Augmentation,
    *,
    seed: int,
    epoch: int,
) -> tf.data.Dataset:
    """Return one epoch of shuffled, varied examples.

    The rest that does not fill a batch is left out; another epoch leaves out
    others.

    Returns:
        Batches of uint8 `(batch_size, train_size, train_size, 3)` and int64
        `(batch_size,)`.
    """
    order = np.random.default_rng((seed, epoch)).permutation(len(examples))
    epoch_key = _epoch_key(seed, epoch)
    load = _loader(examples)
    shown = _at_train_size(record)
    fill = tf.constant(np.round(255 * np.asarray(record.mean)), tf.uint8)

    def prepare(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image, label = load(index)
        key = tf.stack([epoch_key, index])
        image = shown.prepare_tensor(image)
        return pad_crop_flip(
            image, key, augmentation.pad, augmentation.flip, fill
        ), label

    batches = tf.data.Dataset.from_tensor_slices(order.astype(np.int64))
    batches = batches.map(prepare, num_parallel_calls=tf.data.AUTOTUNE)
    # A fixed batch size keeps the shape static: one trace of the training step.
    batches = batches.batch(batch_size, drop_remainder=True)
    return batches.prefetch(tf.data.AUTOTUNE)


def quietly(batches: tf.data.Dataset) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
    """Yield batches; keep what TensorFlow prints before the first one to itself.

    oneDNN reports there, as an error, that it has no kernel for turning bytes.
    """
    with held_stderr(show=False):
        remaining = iter(batches)
        first = next(remaining, None)
    if first is not None:
        yield first
        yield from remaining


def find_unreadable(examples: Examples) -> DataError | None:
    """Return an error that names the first image that cannot be decoded, if any.

    TensorFlow's own message tells the reason but not the file.
    """
    if examples.paths is None or examples.by_pillow is None:
        return None
    # TensorFlow writes to the error stream what it also raises.
    with held_stderr():
        problems = map(_problem, examples.paths, examples.by_pillow)
        return next(filter(None, problems), None)


def _problem(path: Path, by_pillow: bool) -> DataError | None:
    try:
        open_image(path)
        if not by_pillow:
            _decode(tf.constant(str(path)))
    except DataError as error:
        return error
    except tf.errors.OpError as error:
        # Before the reason stands the name of the operation, in double braces.
        reason = error.message.split("\n")[0].split("}} ")[-1]
        return DataError(
            f"{path} is not a readable image ({reason}). "
            "Replace the file or take it out of the folder."
        )
    return None


def _epoch_key(seed: int, epoch: int) -> int:
    """Return a positive int64 for a seed of any size."""
    return int(
        np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0] >> 1
    )


def _loader(examples: Examples) -> Any:
    labels = tf.constant(examples.labels)
    if examples.images is not None:
        images = tf.constant(examples.images)
        return lambda index: (tf.gather(images, index), tf.gather(labels, index))
    paths = tf.constant([str(path) for path in examples.paths or ()])
    orientations = tf.constant(examples.orientations)
    by_pillow = tf.constant(examples.by_pillow)

    def load(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        path, held = tf.gather(paths, index), tf.gather(orientations, index)
        image = tf.cond(
            tf.gather(by_pillow, index),
            lambda: _decode_by_pillow(path),
            lambda: _upright(_decode(path), held),
        )
        return image, tf.gather(labels, index)

    return load


def _decode(path: tf.Tensor) -> tf.Tensor:
    content = tf.io.read_file(path)
    # INTEGER_ACCURATE is what Pillow uses; the default differs by a level or two.
    return tf.cond(
        tf.io.is_jpeg(content),
        lambda: tf.io.decode_jpeg(content, 3, dct_method="INTEGER_ACCURATE"),
        lambda: tf.io.decode_png(content, 3),
    )


def _decode_by_pillow(path: tf.Tensor) -> tf.Tensor:
    def pixels(name: bytes) -> Pixels:
        return np.asarray(open_image(Path(os.fsdecode(name))))

    image = tf.numpy_function(pixels, [path], tf.uint8)
    return tf.ensure_shape(image, (None, None, 3))


def _upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Undo how the camera was held; EXIF 2.3, section 4.6.4 A, Orientation."""
    turned = tf.cond(
        orientation > 4, lambda: tf.transpose(image, (1, 0, 2)), lambda: image
    )
    # Which sides are swapped, by orientation; 0 does not occur.
    across = tf.gather(
        [False, False, True, True, False, False, True, True, False], orientation
    )
    down = tf.gather(
        [False, False, False, True, True, False, False, True, True], orientation
    )
    turned = tf.cond(across, lambda: tf.reverse(turned, [1]), lambda: turned)
    return tf.cond(down, lambda: tf.reverse(turned, [0]), lambda: turned)


def _at_train_size(record: Preprocessing) -> Preprocessing:
    return replace(record, eval_size=record.train_size)
