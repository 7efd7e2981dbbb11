"""Decode examples inside `tf.data` pipelines."""

import os
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from reszoo.data.augment.geometry import Window
from reszoo.data.examples import Examples
from reszoo.data.image_files import JPEG_END
from reszoo.preprocessing import Pixels

# From the height and width of an upright image to a part of it.
Chooser = Callable[[tf.Tensor, tf.Tensor], Window]

# What Pillow uses; TensorFlow's default differs by a level or two.
_DCT = "INTEGER_ACCURATE"
# Which sides are swapped, by orientation; 0 does not occur.
_ACROSS = (False, False, True, True, False, False, True, True, False)
_DOWN = (False, False, False, True, True, False, False, True, True)


class Decoder:
    """Decodes examples, by TensorFlow where it gives Pillow's pixels.

    Targets and paths are copied into tensors once, here; arrays stay where they are.
    All indices are int64 `()`.
    """

    def __init__(self, examples: Examples) -> None:
        self._examples = examples
        # Where there is a GPU, tensors would be copied there and back.
        with tf.device("CPU:0"):
            self._targets = tf.constant(examples.targets)
            if examples.images is not None:
                return
            headers = np.asarray(examples.headers)
            self._orientations = tf.constant(headers["orientation"])
            self._by_pillow = tf.constant(headers["by_pillow"])
            # What no example needs is left out of the graph: small images are
            # decoded in the time of a few such branches.
            self._some_rotated = bool(np.any(headers["orientation"] != 1))
            self._some_by_pillow = bool(np.any(headers["by_pillow"]))
            if examples.paths is not None:
                self._paths = tf.constant([os.fsencode(p) for p in examples.paths])

    def target(self, index: tf.Tensor) -> tf.Tensor:
        """Return the target of one example: int64 `()`."""
        return tf.gather(self._targets, index)

    def image(self, index: tf.Tensor, choose: Chooser | None = None) -> tf.Tensor:
        """Return one image or a part of it, upright; of a JPEG only that is decoded.

        Where a JPEG has fewer colour samples than pixels, the colours of the outermost
        two columns of a part may differ from those of the whole image, since they are
        interpolated from what lies outside. All else is equal.

        Args:
            index: Of the example.
            choose: Takes the height and width of the upright image, int32 `()`, and
                returns top, left, height and width of the part, as well.

        Returns:
            uint8 `(height, width, 3)`.
        """
        images = self._examples.images
        if images is not None:
            # As a tensor it would be copied once for every epoch's graph.
            image = tf.numpy_function(lambda i: images[i], [index], tf.uint8)
            return _cut(tf.ensure_shape(image, images.shape[1:]), choose)
        if not self._some_by_pillow:
            return self._decode(index, choose)
        return tf.cond(
            tf.gather(self._by_pillow, index),
            lambda: _cut(self._decode_by_pillow(index), choose),
            lambda: self._decode(index, choose),
        )

    def _content(self, index: tf.Tensor) -> tf.Tensor:
        records = self._examples.records
        if records is None:
            return tf.io.read_file(tf.gather(self._paths, index))
        content = tf.numpy_function(lambda i: records.read(int(i)), [index], tf.string)
        return tf.ensure_shape(content, ())

    def _decode(self, index: tf.Tensor, choose: Chooser | None) -> tf.Tensor:
        rotated = self._some_rotated
        orientation = tf.gather(self._orientations, index) if rotated else None
        recover = self._examples.recover
        return decode(self._content(index), orientation, choose, recover=recover)

    def _decode_by_pillow(self, index: tf.Tensor) -> tf.Tensor:
        def pixels(number: np.int64) -> Pixels:
            return np.asarray(self._examples.open(int(number)))

        image = tf.numpy_function(pixels, [index], tf.uint8)
        return tf.ensure_shape(image, (None, None, 3))


def decode(
    content: tf.Tensor | bytes,
    orientation: tf.Tensor | int | None = None,
    choose: Chooser | None = None,
    *,
    recover: bool = False,
) -> tf.Tensor:
    """Decode a JPEG or PNG that needs no Pillow, eagerly or in a pipeline.

    Args:
        content: The file.
        orientation: How the camera was held (EXIF), 1 to 8; None for upright.
        choose: Chooses a part of the upright image; None for all of it.
        recover: Whether a truncated JPEG is decoded as far as it goes.

    Returns:
        uint8 RGB `(height, width, 3)`.
    """
    # A decoder takes this JPEG as complete, as `open_image` does. With
    # try_recover_truncated instead, rows around the break differ from Pillow's.
    jpeg = content + JPEG_END if recover else content

    def of_jpeg() -> tf.Tensor:
        if choose is None:
            return upright(tf.io.decode_jpeg(jpeg, 3, dct_method=_DCT), orientation)
        window = _as_stored(choose, tf.io.extract_jpeg_shape(content)[:2], orientation)
        decode_part = tf.image.decode_and_crop_jpeg
        part = decode_part(jpeg, tf.stack(window), 3, dct_method=_DCT)
        return upright(part, orientation)

    def of_png() -> tf.Tensor:
        return _cut(upright(tf.io.decode_png(content, 3), orientation), choose)

    return tf.cond(tf.io.is_jpeg(content), of_jpeg, of_png)


def _cut(image: tf.Tensor, choose: Chooser | None) -> tf.Tensor:
    if choose is None:
        return image
    top, left, height, width = choose(*tf.unstack(tf.shape(image)[:2]))
    return image[top : top + height, left : left + width]


def upright(image: tf.Tensor, orientation: tf.Tensor | int | None) -> tf.Tensor:
    """Undo how the camera was held; EXIF 2.3, section 4.6.4 A, Orientation."""
    if orientation is None:
        return image
    turned = tf.cond(
        orientation > 4, lambda: tf.transpose(image, (1, 0, 2)), lambda: image
    )
    across, down = tf.gather(_ACROSS, orientation), tf.gather(_DOWN, orientation)
    turned = tf.cond(across, lambda: tf.reverse(turned, [1]), lambda: turned)
    return tf.cond(down, lambda: tf.reverse(turned, [0]), lambda: turned)


def _as_stored(
    choose: Chooser, sides: tf.Tensor, orientation: tf.Tensor | int | None
) -> Window:
    """Choose a part of the upright image and find it in the stored one."""
    if orientation is None:
        return choose(sides[0], sides[1])
    swapped = orientation > 4
    upright = tf.where(swapped, sides[::-1], sides)
    top, left, tall, wide = choose(upright[0], upright[1])
    top = tf.where(tf.gather(_DOWN, orientation), upright[0] - top - tall, top)
    left = tf.where(tf.gather(_ACROSS, orientation), upright[1] - left - wide, left)
    return (
        tf.where(swapped, left, top),
        tf.where(swapped, top, left),
        tf.where(swapped, wide, tall),
        tf.where(swapped, tall, wide),
    )
