"""Random crops, shifts, horizontal flips and erased boxes."""

from collections.abc import Sequence
from math import log
from typing import Any

import tensorflow as tf

from reszoo.preprocessing import Size, as_sides

# Top, left, height and width of a part of an image: int32 `()`.
Window = tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]

# Both from torchvision 0.28: draws before RandomResizedCrop and RandomErasing give
# up, and the sizes of what the latter erases.
_TRIES = 10
_ERASED_SCALE, _ERASED_RATIO = (0.02, 0.33), (0.3, 3.3)


def random_window(
    height: tf.Tensor,
    width: tf.Tensor,
    key: tf.Tensor,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    aspect: Any = 1.0,
) -> Window:
    """Draw a window of random area, shape and place in an image.

    Szegedy et al. 2014 (arXiv 1409.4842, section 6), as torchvision's RandomResizedCrop
    draws it: up to ten tries, then the largest central window within the ratios. The
    key is int64 `(2,)`; scale is the least and greatest share of the area, in (0, 1],
    ratio of width over height, drawn on a log scale and multiplied by `aspect` (None:
    width over height of the image, so that they tell how much a window's shape differs
    from it). Returns top, left, height and width: int32 `()`.
    """
    keys = tf.unstack(tf.random.split(key, 2))
    if aspect is None:
        aspect = as_float(width) / as_float(height)
    widths, heights = _drawn_sides((height, width), keys[0], scale, ratio, aspect)
    fits = (widths > 0) & (widths <= as_float(width))
    fits &= (heights > 0) & (heights <= as_float(height))
    first = tf.argmax(tf.cast(fits, tf.int32))

    def drawn() -> Window:
        tall, wide = _int(heights[first]), _int(widths[first])
        return *_place(height - tall, width - wide, keys[1]), tall, wide

    def central() -> Window:
        return _central(height, width, [each * aspect for each in ratio])

    window: Window = tf.cond(tf.reduce_any(fits), drawn, central)
    return window


def resize(
    image: tf.Tensor, size: Size, interpolation: str, flipped: tf.Tensor | bool = False
) -> tf.Tensor:
    """Resize a window, uint8 `(height, width, channels)`, antialiased.

    Without Pillow's rounding between its two passes, which
    `preprocessing.resize_tensor` follows: one pixel of five differs, by a grey level.
    The size is height and width, or a number for a square. Flipping here, where columns
    are whole rows in memory, costs a tenth of what it does later.
    """
    height, width = as_sides(size)
    low = _resize_down(image, height, interpolation)
    turned = _resize_down(tf.transpose(low, (1, 0, 2)), width, interpolation)
    columns = tf.range(width)
    turned = tf.gather(turned, tf.where(flipped, columns[::-1], columns))
    pixels = tf.transpose(turned, (1, 0, 2))
    return tf.cast(tf.clip_by_value(pixels, 0, 255) + 0.5, tf.uint8)


def _resize_down(image: tf.Tensor, side: int, interpolation: str) -> tf.Tensor:
    """Resize the height alone; float32."""
    # TensorFlow's kernel (ScaleAndTranslate) mixes all channels of a pixel at once, but
    # pixels one by one. So each row becomes the channels of a single pixel: both
    # directions together then take a quarter of the time.
    height, width = tf.unstack(tf.shape(image)[:2])
    channels = image.shape[-1]
    rows = tf.reshape(image, (height, 1, width * channels))
    mixed = tf.image.resize(rows, (side, 1), interpolation, antialias=True)
    return tf.reshape(mixed, (side, width, channels))


def shift(images: tf.Tensor, draws: tf.Tensor, pad: int, fill: tf.Tensor) -> tf.Tensor:
    """Shift each image of a uint8 batch by up to `pad` pixels in each direction.

    He et al. 2015, section 4.2. There the border is zero after subtracting the mean, so
    here it has the mean's colour, `fill`. A whole batch at once takes a fraction of the
    time that image after image would. Draws are float32 `(batch, 2)` in [0, 1): down
    and across.
    """
    height, width = images.shape[1:3]
    tops, lefts = tf.unstack(_int(draws * (2 * pad + 1)), axis=1)
    # Padding the difference to the fill colour with zeros pads with that colour.
    border = ((0, 0), (pad, pad), (pad, pad), (0, 0))
    padded = tf.pad(images - fill, border) + fill
    rows = tops[:, None] + tf.range(height)
    columns = lefts[:, None] + tf.range(width)
    moved_down = tf.gather(padded, rows, axis=1, batch_dims=1)
    return tf.gather(moved_down, columns, axis=2, batch_dims=1)


def flip(images: tf.Tensor, draws: tf.Tensor, axis: int = 2) -> tf.Tensor:
    """Flip half of a uint8 batch by draws in [0, 1), horizontally or along axis 1."""
    chosen = (draws < 0.5)[:, None, None, None]
    return tf.where(chosen, tf.reverse(images, axis=[axis]), images)


def erase(
    image: tf.Tensor, key: tf.Tensor, probability: float, fill: tf.Tensor
) -> tf.Tensor:
    """Paint a random box over a share of the images, uint8 `(height, width, 3)`.

    Zhong et al. 2017 (arXiv 1708.04896) with torchvision's geometry: 2 to 33 % of the
    area, 0.3 to 3.3 times as high as wide. Its box is zero after normalising, so here
    it has the mean's colour, `fill`.
    """
    height, width = tf.unstack(tf.shape(image)[:2])
    keys = tf.unstack(tf.random.split(key, 3))
    sides = (height, width)
    heights, widths = _drawn_sides(sides, keys[0], _ERASED_SCALE, _ERASED_RATIO)
    fits = (heights < as_float(height)) & (widths < as_float(width))
    first = tf.argmax(tf.cast(fits, tf.int32))
    chosen = tf.random.stateless_uniform((), keys[1]) < probability

    def erased() -> tf.Tensor:
        tall, wide = _int(heights[first]), _int(widths[first])
        top, left = _place(height - tall, width - wide, keys[2])
        rows, columns = tf.range(height) - top, tf.range(width) - left
        across = (columns >= 0) & (columns < wide)
        inside = ((rows >= 0) & (rows < tall))[:, None] & across
        return tf.where(inside[..., None], fill, image)

    return tf.cond(tf.reduce_any(fits) & chosen, erased, lambda: image)


def _drawn_sides(
    sides: tuple[Any, Any], key: tf.Tensor, scale: Any, ratio: Any, aspect: Any = 1.0
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return whole numbers `(tries,)` whose ratio, first to second, is in `ratio`."""
    draws = tf.random.stateless_uniform((2, _TRIES), key)
    share = scale[0] + draws[0] * (scale[1] - scale[0])
    shape = tf.exp(log(ratio[0]) + draws[1] * (log(ratio[1]) - log(ratio[0]))) * aspect
    area = share * as_float(sides[0]) * as_float(sides[1])
    return tf.round(tf.sqrt(area * shape)), tf.round(tf.sqrt(area / shape))


def _place(down: tf.Tensor, across: tf.Tensor, key: tf.Tensor) -> Any:
    room = tf.stack([down, across]) + 1
    # stateless_uniform has one bound for all; 2**31 draws make its modulo even enough.
    draws = tf.random.stateless_uniform((2,), key, 0, tf.int32.max, tf.int32)
    return tf.unstack(draws % room)


def _central(height: tf.Tensor, width: tf.Tensor, ratio: Sequence[Any]) -> Window:
    down, across = as_float(height), as_float(width)
    shape = across / down
    tall = tf.where(shape < ratio[0], _int(tf.round(across / ratio[0])), height)
    wide = tf.where(shape > ratio[1], _int(tf.round(down * ratio[1])), width)
    return (height - tall) // 2, (width - wide) // 2, tall, wide


def as_float(value: Any) -> tf.Tensor:
    """Return a number or a tensor in float32."""
    return tf.cast(value, tf.float32)


def _int(value: tf.Tensor) -> tf.Tensor:
    return tf.cast(value, tf.int32)
