"""Random crops, shifts, horizontal flips and erased boxes."""

from math import log
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from reszoo.preprocessing import Size, as_sides

# Both from torchvision 0.28: draws before RandomResizedCrop and RandomErasing give
# up, and the sizes of what the latter erases, whose ratio there is height over width.
_TRIES = 10
_ERASED_SCALE, _ERASED_RATIO = (0.02, 0.33), (1 / 3.3, 1 / 0.3)
# TensorFlow's names, as `tf.image.resize` chooses them.
_KERNELS = {"bilinear": "triangle", "bicubic": "keyscubic"}


def random_windows(
    sides: NDArray[np.int32],
    generator: np.random.Generator,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    aspect: float | None = 1.0,
) -> NDArray[np.int32]:
    """Draw a window of random area, shape and place in each of many images.

    Szegedy et al. 2014 (arXiv 1409.4842, section 6), as torchvision's RandomResizedCrop
    draws it: up to ten tries, then the largest central window within the ratios.

    Args:
        sides: Height and width of each image, `(n, 2)`.
        generator: The source of the draws.
        scale: Least and greatest share of the area, in (0, 1].
        ratio: Least and greatest width over height, drawn on a log scale.
        aspect: By which the ratio is multiplied; None for the width over height of
            each image, so that ratios tell how much a window's shape differs from it.

    Returns top, left, height and width: int32 `(n, 4)`.
    """
    high, wide = sides.T.astype(np.float64)
    shapes = wide / high if aspect is None else np.full(len(sides), aspect)
    boxes, fit = _boxes(sides, generator, scale, ratio, shapes)
    least, most = ratio[0] * shapes, ratio[1] * shapes
    heights = np.where(wide < least * high, np.rint(wide / least), high)
    widths = np.where(wide > most * high, np.rint(high * most), wide)
    central = np.stack([heights, widths], 1).astype(np.int32)
    central = np.concatenate([(sides - central) // 2, central], 1)
    return np.where(fit[:, None], boxes, central)


def random_boxes(
    sides: tuple[int, int], count: int, generator: np.random.Generator, share: float
) -> NDArray[np.int32]:
    """Draw a box to erase in a share of `count` images of the same sides.

    Zhong et al. 2017 (arXiv 1708.04896) with torchvision's geometry: 2 to 33 % of the
    area, 0.3 to 3.3 times as high as wide. Returns top, left, height and width, the
    latter 0 where nothing is erased: int32 `(count, 4)`.
    """
    all_sides = np.broadcast_to(np.array(sides, np.int32), (count, 2))
    boxes, fit = _boxes(
        all_sides, generator, _ERASED_SCALE, _ERASED_RATIO, np.ones(count), margin=1
    )
    chosen = fit & (generator.random(count) < share)
    return np.where(chosen[:, None], boxes, 0).astype(np.int32)


def _boxes(
    sides: NDArray[np.int32],
    generator: np.random.Generator,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    aspect: NDArray[np.float64],
    margin: int = 0,
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Draw a box in each image, and whether one of the tries fits into it."""
    tries = (len(sides), _TRIES)
    shares = generator.uniform(*scale, tries)
    logs = generator.uniform(log(ratio[0]), log(ratio[1]), tries)
    areas = shares * sides.prod(1, dtype=np.float64)[:, None]
    shapes = np.exp(logs) * aspect[:, None]
    drawn = np.rint(np.sqrt(np.stack([areas / shapes, areas * shapes], -1)))
    fits = ((drawn > 0) & (drawn <= sides[:, None] - margin)).all(-1)
    first = fits.argmax(1)
    chosen = drawn[np.arange(len(sides)), first].astype(np.int32)
    room = sides - chosen + 1
    places = np.floor(generator.random(room.shape) * room).astype(np.int32)
    return np.concatenate([places, chosen], 1), fits.any(1)


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
    # Of linear interpolation no value lies outside of the pixels' range.
    if interpolation != "bilinear":
        turned = tf.clip_by_value(turned, 0, 255)
    return tf.transpose(tf.cast(turned + 0.5, tf.uint8), (1, 0, 2))


def _resize_down(image: tf.Tensor, side: int, interpolation: str) -> tf.Tensor:
    """Resize the height alone; float32."""
    # TensorFlow's kernel mixes all channels of a pixel at once, but pixels one by one.
    # So each row becomes the channels of a single pixel: both directions together then
    # take a quarter of the time. `tf.image.resize` adds a dozen small operations.
    height, width = tf.unstack(tf.shape(image)[:2])
    channels = image.shape[-1]
    mixed = tf.raw_ops.ScaleAndTranslate(
        images=tf.reshape(image, (1, height, 1, width * channels)),
        size=(side, 1),
        scale=tf.stack([side / as_float(height), 1.0]),
        translation=(0.0, 0.0),
        kernel_type=_KERNELS[interpolation],
    )
    return tf.reshape(mixed, (side, width, channels))


def shift(images: tf.Tensor, draws: tf.Tensor, pad: int, fill: tf.Tensor) -> tf.Tensor:
    """Shift each image of a uint8 batch by up to `pad` pixels in each direction.

    He et al. 2015, section 4.2. There the border is zero after subtracting the mean, so
    here it has the mean's colour, `fill`. A whole batch at once takes a fraction of the
    time that image after image would. Draws are float32 `(batch, 2)` in [0, 1): down
    and across.
    """
    height, width = images.shape[1:3]
    tops, lefts = tf.unstack(tf.cast(draws * (2 * pad + 1), tf.int32), axis=1)
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


def erase(image: tf.Tensor, box: tf.Tensor, fill: tf.Tensor) -> tf.Tensor:
    """Paint a box of `random_boxes`, int32 `(4,)`, over an image.

    The image is uint8 `(height, width, channels)`. In the papers a box is zero after
    normalising, so here it has the mean's colour, `fill`.
    """

    def erased() -> tf.Tensor:
        inside = []
        for axis in range(2):
            places = tf.range(tf.shape(image)[axis]) - box[axis]
            inside.append((places >= 0) & (places < box[2 + axis]))
        return tf.where((inside[0][:, None] & inside[1])[..., None], fill, image)

    # Most images have nothing to erase.
    return tf.cond(box[2] > 0, erased, lambda: image)


def as_float(value: Any) -> tf.Tensor:
    """Return a number or a tensor in float32."""
    return tf.cast(value, tf.float32)
