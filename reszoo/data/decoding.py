"""Decode examples inside `tf.data` pipelines."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from reszoo.data import image_files as files
from reszoo.data.examples import Examples
from reszoo.data.image_files import ACROSS, DOWN, JPEG_END, reduction
from reszoo.preprocessing import Pixels, Preprocessing

# What Pillow uses; TensorFlow's default differs by a level or two.
_DCT = "INTEGER_ACCURATE"
# A window is decoded with at least so many times as many rows and columns as are shown.
_FINER = 2
# A JPEG of more bytes could take long for its many scans; segments before the first.
_LONG_FILE, _STEPS = 1 << 20, 1000
_REFUSAL = (
    f"An image must be a JPEG or PNG that takes at most {files.MEMORY >> 20} MiB once "
    f"it is decoded; a progressive JPEG may have {files.SCANS} scans. Received sides: "
)


class Decoder:
    """Decodes examples, by TensorFlow where it gives Pillow's pixels.

    Targets and paths are copied into tensors once, here; arrays stay where they are.
    All indices are int64 `()`. Parts of images are shown at `sides`, height and width:
    a JPEG's part that is several times as large is decoded at 1/2, 1/4 or 1/8.
    """

    def __init__(self, examples: Examples, sides: tuple[int, int] = (1, 1)) -> None:
        self._examples, self._sides = examples, sides
        self._factors: tuple[int, ...] = (1,)
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
            most = int(self._reductions(examples.sides()).max(initial=1))
            self._factors = tuple(each for each in (1, 2, 4, 8) if each <= most)
            if examples.paths is not None:
                self._paths = tf.constant([os.fsencode(p) for p in examples.paths])

    def target(self, index: tf.Tensor) -> tf.Tensor:
        """Return the target of one example: int64 `()`."""
        return tf.gather(self._targets, index)

    def _reductions(self, lengths: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return by how much parts of these heights and widths are reduced."""
        enlarged = (lengths / np.multiply(_FINER, self._sides)).min(1)
        powers = np.clip(np.floor(np.log2(enlarged)), 0, 3)
        return np.asarray(np.exp2(powers), np.int32)

    def stored(
        self, indices: NDArray[np.int64], windows: NDArray[np.int32]
    ) -> NDArray[np.int32]:
        """Find windows of upright images in the stored ones, for `image`.

        Takes indices of examples `(n,)`, and of each top, left, height and width,
        int32 `(n, 4)`. Returns `(n, 5)`: where a JPEG is reduced, as the last column
        tells, the others count its pixels after that.
        """
        if self._examples.images is not None:
            return np.pad(windows, ((0, 0), (0, 1)), constant_values=1)
        headers = np.asarray(self._examples.headers)[indices]
        factors = self._reductions(windows[:, 2:])
        factors[headers["by_pillow"]] = 1
        whole = -(-self._examples.sides(indices) // factors[:, None])
        windows = windows // factors[:, None]
        starts, lengths = windows[:, :2], windows[:, 2:]
        # Pillow turns images upright itself.
        held = np.where(headers["by_pillow"], 1, headers["orientation"])
        reverse = np.stack([np.array(DOWN)[held], np.array(ACROSS)[held]], 1)
        starts = np.where(reverse, whole - starts - lengths, starts)
        swapped = (held > 4)[:, None]
        found = [np.where(swapped, part[:, ::-1], part) for part in (starts, lengths)]
        return np.concatenate([*found, factors[:, None]], 1)

    def image(self, index: tf.Tensor, window: tf.Tensor | None = None) -> tf.Tensor:
        """Return one image or a part of it, upright; of a JPEG only that is decoded.

        Where a JPEG has fewer colour samples than pixels, the colours of the outermost
        two columns of a part may differ from those of the whole image, since they are
        interpolated from what lies outside. All else is equal. The window is a row of
        what `stored` returns. Returns uint8 `(height, width, 3)`.
        """

        def by_pillow(number: int, *part: int) -> Pixels:
            image = self._examples.open(number, reduced=True)
            if not part:
                return np.asarray(image)
            header = np.asarray(self._examples.headers)[number]
            # Of large images the part is one of the image before it was reduced.
            scale = np.divide(image.size, (header["width"], header["height"]))[::-1]
            starts = np.floor(np.multiply(part[:2], scale)).astype(int)
            lengths = np.maximum(1, np.multiply(part[2:4], scale)).astype(int)
            (top, left), (bottom, right) = starts, starts + lengths
            return np.asarray(image.crop((left, top, right, bottom)))

        images = self._examples.images
        if images is not None:
            # As a tensor it would be copied once for every epoch's graph.
            image = _called(lambda i: images[i], (index,), images.shape[1:])
            return image if window is None else _cut(image, window)
        if not self._some_by_pillow:
            return self._decode(index, window)
        arguments = (index, *(() if window is None else tf.unstack(window)))
        return tf.cond(
            tf.gather(self._by_pillow, index),
            lambda: _called(by_pillow, arguments, (None, None, 3)),
            lambda: self._decode(index, window),
        )

    def prepared(self, index: tf.Tensor, preprocessing: Preprocessing) -> tf.Tensor:
        """Return one image, resized and cropped: uint8 of `input_shape`."""

        def by_tensorflow() -> tf.Tensor:
            image = self.image(index) if arrays else self._decode(index)
            return preprocessing.prepare_tensor(image)

        def by_pillow() -> tf.Tensor:
            prepared = partial(self._examples.prepared, preprocessing=preprocessing)
            return _called(prepared, (index,), preprocessing.input_shape)

        arrays = self._examples.images is not None
        if arrays or not self._some_by_pillow:
            return by_tensorflow()
        return tf.cond(tf.gather(self._by_pillow, index), by_pillow, by_tensorflow)

    def _content(self, index: tf.Tensor) -> tf.Tensor:
        records = self._examples.records
        if records is None:
            return tf.io.read_file(tf.gather(self._paths, index))
        return _called(records.read, (index,), (), tf.string)

    def _decode(self, index: tf.Tensor, window: tf.Tensor | None = None) -> tf.Tensor:
        rotated = self._some_rotated
        orientation = tf.gather(self._orientations, index) if rotated else None
        content, recover = self._content(index), self._examples.recover
        return decode(content, orientation, window, self._factors, recover=recover)


def _called(
    function: Callable[..., Any], numbers: Any, shape: Any, kind: Any = tf.uint8
) -> tf.Tensor:
    """Return what a Python function gives for whole numbers, once the graph is run."""
    found = tf.numpy_function(lambda *given: function(*map(int, given)), numbers, kind)
    return tf.ensure_shape(found, shape)


def decode(
    content: tf.Tensor | bytes, orientation: tf.Tensor | int | None = None,
    window: tf.Tensor | None = None, factors: Sequence[int] = (1,), *,
    recover: bool = False,
) -> tf.Tensor:  # fmt: skip
    """Decode a JPEG or PNG that needs no Pillow, eagerly or in a pipeline.

    The orientation is how the camera was held (EXIF), 1 to 8; None for upright. The
    window is a row of `Decoder.stored`, whose reductions are among the factors;
    `recover` decodes a truncated JPEG as far as it goes. Returns uint8 RGB `(height,
    width, 3)`.
    """
    # A decoder takes this JPEG as complete, as `open_image` does. With
    # try_recover_truncated instead, rows around the break differ from Pillow's.
    jpeg = content + JPEG_END if recover else content

    def of_jpeg() -> tf.Tensor:
        if window is None:
            return tf.io.decode_jpeg(jpeg, 3, dct_method=_DCT)
        crop = partial(tf.raw_ops.DecodeAndCropJpeg, channels=3, dct_method=_DCT)
        crop = partial(crop, contents=jpeg, crop_window=window[:4])
        if len(factors) == 1:
            return crop(ratio=factors[0])
        place = tf.reduce_sum(tf.cast(window[4] > factors[:-1], tf.int32))
        return tf.switch_case(place, [partial(crop, ratio=each) for each in factors])

    def of_png() -> tf.Tensor:
        image = tf.io.decode_png(content, 3)
        return image if window is None else _cut(image, window * window[4])

    return upright(tf.cond(tf.io.is_jpeg(content), of_jpeg, of_png), orientation)


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
        at_scale = partial(tf.io.decode_jpeg, content, 3, dct_method=_DCT)
        with tf.control_dependencies([tf.debugging.Assert(fits, [_REFUSAL, sides])]):
            place = tf.reduce_sum(tf.cast(factor > [1, 2, 4], tf.int32))
            ratios = [partial(at_scale, ratio=ratio) for ratio in (1, 2, 4, 8)]
            return tf.switch_case(place, ratios)

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


def _cut(image: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
    top, left, height, width = tf.unstack(window[:4])
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
