"""Decode examples inside `tf.data` pipelines."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from reszoo.data import image_files as files
from reszoo.data.augment.geometry import Window
from reszoo.data.examples import Examples
from reszoo.data.image_files import ACROSS, DOWN, JPEG_END, reduction
from reszoo.preprocessing import Pixels, Preprocessing

# From the height and width of an upright image to a part of it.
Chooser = Callable[[tf.Tensor, tf.Tensor], Window]

# What Pillow uses; TensorFlow's default differs by a level or two.
_DCT = "INTEGER_ACCURATE"
# A JPEG of more bytes could take long for its many scans; segments before the first.
_LONG_FILE, _STEPS = 1 << 20, 1000
_REFUSAL = (
    f"An image must be a JPEG or PNG that takes at most {files.MEMORY >> 20} MiB once "
    f"it is decoded; a progressive JPEG may have {files.SCANS} scans. Received sides: "
)


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
        interpolated from what lies outside. All else is equal. `choose` takes the
        height and width of the upright image, int32 `()`, and returns top, left, height
        and width of the part, as well. Returns uint8 `(height, width, 3)`.
        """

        def by_pillow(number: int) -> Pixels:
            return np.asarray(self._examples.open(number, reduced=True))

        images = self._examples.images
        if images is not None:
            # As a tensor it would be copied once for every epoch's graph.
            return _cut(_called(lambda i: images[i], index, images.shape[1:]), choose)
        if not self._some_by_pillow:
            return self._decode(index, choose)
        return tf.cond(
            tf.gather(self._by_pillow, index),
            lambda: _cut(_called(by_pillow, index, (None, None, 3)), choose),
            lambda: self._decode(index, choose),
        )

    def prepared(self, index: tf.Tensor, preprocessing: Preprocessing) -> tf.Tensor:
        """Return one image, resized and cropped: uint8 of `input_shape`."""

        def by_tensorflow() -> tf.Tensor:
            image = self.image(index) if arrays else self._decode(index, None)
            return preprocessing.prepare_tensor(image)

        def by_pillow() -> tf.Tensor:
            prepared = partial(self._examples.prepared, preprocessing=preprocessing)
            return _called(prepared, index, preprocessing.input_shape)

        arrays = self._examples.images is not None
        if arrays or not self._some_by_pillow:
            return by_tensorflow()
        return tf.cond(tf.gather(self._by_pillow, index), by_pillow, by_tensorflow)

    def _content(self, index: tf.Tensor) -> tf.Tensor:
        records = self._examples.records
        if records is None:
            return tf.io.read_file(tf.gather(self._paths, index))
        return _called(records.read, index, (), tf.string)

    def _decode(self, index: tf.Tensor, choose: Chooser | None) -> tf.Tensor:
        rotated = self._some_rotated
        orientation = tf.gather(self._orientations, index) if rotated else None
        recover = self._examples.recover
        return decode(self._content(index), orientation, choose, recover=recover)


def _called(
    function: Callable[[int], Any], index: tf.Tensor, shape: Any, kind: Any = tf.uint8
) -> tf.Tensor:
    """Return what a Python function gives for an index, once the graph is run."""
    found = tf.numpy_function(lambda number: function(int(number)), [index], kind)
    return tf.ensure_shape(found, shape)


def decode(
    content: tf.Tensor | bytes,
    orientation: tf.Tensor | int | None = None,
    choose: Chooser | None = None,
    *,
    recover: bool = False,
) -> tf.Tensor:
    """Decode a JPEG or PNG that needs no Pillow, eagerly or in a pipeline.

    The orientation is how the camera was held (EXIF), 1 to 8; None for upright.
    `choose` chooses a part of the upright image, `recover` decodes a truncated JPEG as
    far as it goes. Returns uint8 RGB `(height, width, 3)`.
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


def decode_bounded(content: tf.Tensor) -> tf.Tensor:
    """Decode a JPEG or PNG of unknown origin within the memory of `image_files`.

    Returns uint8 RGB `(height, width, 3)`; of a large JPEG a fraction of that. A file
    that is refused raises `tf.errors.InvalidArgumentError`.
    """

    def of_jpeg() -> tf.Tensor:
        sides = tf.cast(tf.io.extract_jpeg_shape(content), tf.int64)
        height, width, channels = tf.unstack(sides)
        factor = reduction(width, height)
        pixels = -(-width // factor) * -(-height // factor)
        scans = tf.cond(
            (width * height > files.LARGE) | (tf.strings.length(content) > _LONG_FILE),
            lambda: _scans(content),
            lambda: tf.constant(0, tf.int64),
        )
        kept = files.COEFFICIENT * width * height * channels * tf.minimum(scans, 1)
        fits = (files.PIXEL * pixels + kept <= files.MEMORY) & (scans <= files.SCANS)

        def at_scale(ratio: int) -> tf.Tensor:
            return tf.io.decode_jpeg(content, 3, ratio=ratio, dct_method=_DCT)

        with tf.control_dependencies([tf.debugging.Assert(fits, [_REFUSAL, sides])]):
            place = tf.reduce_sum(tf.cast(factor > [1, 2, 4], tf.int32))
            return tf.switch_case(place, [partial(at_scale, r) for r in (1, 2, 4, 8)])

    def of_png() -> tf.Tensor:
        # W3C PNG, 11.2.2: IHDR comes first, its sides are big-endian.
        octets = tf.io.decode_raw(tf.strings.substr(content, 0, 24), tf.uint8)
        octets = tf.cast(tf.pad(octets, [(0, 24 - tf.size(octets))]), tf.float64)
        weights = tf.constant([1 << 24, 1 << 16, 1 << 8, 1], tf.float64)
        sides = tf.linalg.matvec(tf.reshape(octets[16:], (2, 4)), weights)
        is_png = tf.reduce_all(octets[:8] == list(files.PNG_START))
        fits = is_png & (files.PIXEL * tf.reduce_prod(sides) <= files.MEMORY)
        with tf.control_dependencies([tf.debugging.Assert(fits, [_REFUSAL, sides])]):
            return tf.io.decode_png(content, 3)

    return tf.cond(tf.io.is_jpeg(content), of_jpeg, of_png)


def _scans(content: tf.Tensor) -> tf.Tensor:
    """Count the scans of a JPEG as `check_memory` does: int64 `()`."""
    length = tf.strings.length(content)

    def goes_on(at: Any, channels: Any, progressive: Any, buffered: Any) -> Any:
        return (buffered < 0) & (at + 10 < length)

    def walk(at: Any, channels: Any, progressive: Any, buffered: Any) -> Any:
        part = tf.io.decode_raw(tf.strings.substr(content, at, 10), tf.uint8)
        octets = tf.cast(part, tf.int32)
        marker, more = octets[1], octets[2] * 256 + octets[3]
        is_marker = (octets[0] == 0xFF) & (marker < 0xFF)
        is_frame = is_marker & (marker >= 0xC0) & (marker <= 0xCF)
        is_frame &= ~tf.reduce_any(marker == list(files.NO_FRAME))
        channels = tf.where(is_frame, octets[9], channels)
        progressive |= is_frame & tf.reduce_any(marker == list(files.PROGRESSIVE))
        of_scan = tf.cast(progressive | (octets[4] < channels), tf.int32)
        buffered = tf.where(is_marker & (marker == files.SCAN), of_scan, buffered)
        buffered = tf.where(is_marker & (marker == files.END), 0, buffered)
        bare = tf.reduce_any(marker == list(files.BARE))
        step = 2 + tf.where(bare, 0, tf.maximum(2, more))
        return at + tf.where(is_marker, step, 1), channels, progressive, buffered

    start = (tf.constant(2), tf.constant(0), tf.constant(False), tf.constant(-1))
    # Where it takes more steps than any camera's file, the answer is the careful one.
    *_, buffered = tf.while_loop(goes_on, walk, start, maximum_iterations=_STEPS)

    def count() -> tf.Tensor:
        parts = tf.strings.split(content, bytes((0xFF, files.SCAN)), files.SCANS + 1)
        return tf.size(parts, tf.int64) - 1

    return tf.cond(buffered != 0, count, lambda: tf.constant(0, tf.int64))


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
    across, down = tf.gather(ACROSS, orientation), tf.gather(DOWN, orientation)
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
    top = tf.where(tf.gather(DOWN, orientation), upright[0] - top - tall, top)
    left = tf.where(tf.gather(ACROSS, orientation), upright[1] - left - wide, left)
    return (
        tf.where(swapped, left, top),
        tf.where(swapped, top, left),
        tf.where(swapped, wide, tall),
        tf.where(swapped, tall, wide),
    )
