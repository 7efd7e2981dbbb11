"""Change the colours of a picture as Pillow's ImageOps and ImageEnhance do.

Every function takes and returns uint8 `(height, width, 3)`. Most of them send each
grey level to another one, so they make a table of 256 levels and look it up.
"""

from typing import Any

import tensorflow as tf

# Weights of red, green and blue in grey, times 2**16: ITU-R BT.601, as Pillow has it.
_GREY = (19595, 38470, 7471)


def brightness(image: tf.Tensor, factor: Any) -> tf.Tensor:
    """Blend with black; a factor of 1 changes nothing, 0 is black."""
    return _look_up(image, _blend(0.0, _levels(), factor))


def contrast(image: tf.Tensor, factor: Any) -> tf.Tensor:
    """Blend with the mean grey; a factor of 1 changes nothing, 0 is flat."""
    mean = tf.reduce_mean(tf.cast(_grey(image), tf.float64))
    mean = tf.cast(tf.floor(mean + 0.5), tf.float32)
    return _look_up(image, _blend(mean, _levels(), factor))


def saturation(image: tf.Tensor, factor: Any) -> tf.Tensor:
    """Blend with the grey picture; a factor of 1 changes nothing, 0 is grey."""
    grey = tf.cast(_grey(image), tf.float32)[..., None]
    return _blend(grey, tf.cast(image, tf.float32), factor)


def sharpness(image: tf.Tensor, factor: Any) -> tf.Tensor:
    """Blend with the smoothed picture; 1 changes nothing, 0 is smooth, 2 sharp."""
    pixels = tf.cast(image, tf.int32)
    rows = pixels[:-2] + pixels[1:-1] + pixels[2:]
    around = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    # The kernel is 1 with 5 in the middle, over 13; halves are rounded up.
    smooth = (2 * (around + 4 * pixels[1:-1, 1:-1]) + 13) // 26
    # At the border there is nothing to smooth with: zero difference.
    change = tf.pad(smooth - pixels[1:-1, 1:-1], ((1, 1), (1, 1), (0, 0)))
    smooth = tf.cast(pixels + change, tf.float32)
    return _blend(smooth, tf.cast(image, tf.float32), factor)


def posterize(image: tf.Tensor, bits: Any) -> tf.Tensor:
    """Keep the upper `bits` (0 to 8) of every level."""
    dropped = 8 - tf.cast(bits, tf.int32)
    mask = tf.bitwise.left_shift(tf.bitwise.right_shift(255, dropped), dropped)
    return tf.bitwise.bitwise_and(image, tf.cast(mask, tf.uint8))


def solarize(image: tf.Tensor, threshold: Any) -> tf.Tensor:
    """Invert the levels from `threshold` (0 to 256) on."""
    below = _levels() < tf.cast(threshold, tf.float32)
    return _look_up(image, tf.where(below, _levels(), 255 - _levels()))


def solarize_add(image: tf.Tensor, amount: Any) -> tf.Tensor:
    """Raise the levels below 128 by `amount` (0 to 128)."""
    raised = tf.minimum(_levels() + tf.cast(amount, tf.float32), 255)
    return _look_up(image, tf.where(_levels() < 128, raised, _levels()))


def invert(image: tf.Tensor) -> tf.Tensor:
    """Make dark light and light dark."""
    return 255 - image


def autocontrast(image: tf.Tensor) -> tf.Tensor:
    """Stretch each channel to the full range of levels."""
    darkest = tf.cast(tf.reduce_min(image, axis=(0, 1)), tf.float64)
    lightest = tf.cast(tf.reduce_max(image, axis=(0, 1)), tf.float64)
    levels = tf.cast(_levels(), tf.float64)[:, None]
    scale = 255 / (lightest - darkest)
    stretched = tf.clip_by_value(levels * scale - darkest * scale, 0, 255)
    return _look_up(image, tf.where(lightest > darkest, stretched, levels))


def equalize(image: tf.Tensor) -> tf.Tensor:
    """Make all levels of a channel about as frequent."""
    channels = tf.cast(image, tf.int32) * 3 + tf.range(3)
    counts = tf.reshape(tf.math.bincount(channels, minlength=768), (256, 3))
    below = tf.cumsum(counts, exclusive=True)
    # The lightest level that occurs does not count; nor does a channel of one level.
    step = tf.reduce_max(tf.where(counts > 0, below, 0), axis=0) // 255
    table = tf.minimum((step // 2 + below) // tf.maximum(step, 1), 255)
    levels = tf.range(256)[:, None]
    return _look_up(image, tf.where(step > 0, table, levels))


def _levels() -> tf.Tensor:
    return tf.range(256, dtype=tf.float32)


def _grey(image: tf.Tensor) -> tf.Tensor:
    weighted = tf.reduce_sum(tf.cast(image, tf.int32) * _GREY, axis=-1)
    return tf.bitwise.right_shift(weighted + 2**15, 16)


def _blend(plain: Any, image: tf.Tensor, factor: Any) -> tf.Tensor:
    """Go from `plain` (0) to `image` (1) or beyond; fractions are cut off."""
    mixed = plain + tf.cast(factor, tf.float32) * (image - plain)
    return tf.cast(tf.clip_by_value(mixed, 0, 255), tf.uint8)


def _look_up(image: tf.Tensor, table: tf.Tensor) -> tf.Tensor:
    """Replace levels by those of a table, `(256,)` or one a channel `(256, 3)`."""
    table = tf.cast(table, tf.uint8)
    levels = tf.cast(image, tf.int32)
    if table.shape.rank == 1:
        return tf.gather(table, levels)
    return tf.gather(tf.reshape(table, (-1,)), levels * 3 + tf.range(3))
