"""Shear, shift and turn a picture as Pillow's `Image.transform` does."""

from collections.abc import Callable, Mapping
from math import pi
from typing import Any, NamedTuple

import tensorflow as tf

# a to f: the pixel at (x, y) comes from (a x + b y + c, d x + e y + f).
Matrix = tuple[Any, Any, Any, Any, Any, Any]

# Pillow cuts fractions off. In float32 a whole number can come out a little below.
_WHOLE = 2.0**-10


class Canvas(NamedTuple):
    """What the geometric operations draw with.

    Attributes:
        fill: uint8 `(3,)`, colour of what comes in from outside the picture.
        interpolation: "bilinear" or "bicubic".
    """

    fill: tf.Tensor
    interpolation: str


def transform(image: tf.Tensor, matrix: Matrix, canvas: Canvas) -> tf.Tensor:
    """Take each pixel from where an affine map sends it.

    Equal to Pillow's within one grey level but for the few pixels of edges that
    rounding moves in or out.

    Args:
        image: uint8 `(height, width, 3)`.
        matrix: `(a, b, c, d, e, f)`; centres of pixels lie at halves.
        canvas: Colour of the outside, and interpolation.
    """
    a, b, c, d, e, f = map(_float, matrix)
    height, width = tf.unstack(tf.shape(image)[:2])
    x = tf.range(tf.cast(width, tf.float32))[None] + 0.5
    y = tf.range(tf.cast(height, tf.float32))[:, None] + 0.5
    columns, left, inside_x = _located(a * x + b * y + c, width)
    rows, above, inside_y = _located(d * x + e * y + f, height)
    weigh = _WEIGHTS[canvas.interpolation]
    across, down = weigh(left), weigh(above)
    first = 1 - len(across) // 2
    strips = _strips(image, first, len(across))
    total = tf.zeros((), tf.float32)
    for tap, weight in enumerate(down):
        row = tf.clip_by_value(rows + first + tap, 0, height - 1)
        strip = tf.gather(strips, row * (width + 1) + columns + 1)
        total += weight[..., None] * tf.cast(strip, tf.float32)
    pixels = tf.zeros((), tf.float32)
    for weight, part in zip(across, tf.split(total, len(across), -1), strict=True):
        pixels += weight[..., None] * part
    pixels = tf.clip_by_value(tf.floor(pixels + _WHOLE), 0, 255)
    inside = (inside_x & inside_y)[..., None]
    return tf.where(inside, tf.cast(pixels, tf.uint8), canvas.fill)


def rotation(degrees: Any, height: tf.Tensor, width: tf.Tensor) -> Matrix:
    """Return the matrix that turns a picture anticlockwise about its centre."""
    angle = _float(degrees) * (pi / 180)
    cosine, sine = tf.cos(angle), tf.sin(angle)
    x, y = _float(width) / 2, _float(height) / 2
    across = x - cosine * x + sine * y
    down = y - sine * x - cosine * y
    return cosine, -sine, across, sine, cosine, down


def _float(value: Any) -> tf.Tensor:
    return tf.cast(value, tf.float32)


def _located(
    place: tf.Tensor, side: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return the pixel before a place, the way from its centre, and if it is inside.

    The pixel lies in [-1, side).
    """
    length = tf.cast(side, tf.float32)
    before = tf.floor(place - 0.5)
    index = tf.cast(tf.clip_by_value(before, -1, length - 1), tf.int32)
    return index, place - 0.5 - before, (place >= 0) & (place < length)


def _strips(image: tf.Tensor, first: int, taps: int) -> tf.Tensor:
    """Lay neighbours in a row side by side, so that one look-up finds all of them.

    Returns:
        uint8 `(height * (width + 1), taps * 3)`; the pixels from `x + first` on for x
        from -1, where the outermost pixels go on for ever.
    """
    width = tf.shape(image)[1]
    starts = tf.range(-1, width) + first
    columns = [tf.clip_by_value(starts + tap, 0, width - 1) for tap in range(taps)]
    beside = tf.stack([tf.gather(image, column, axis=1) for column in columns], axis=2)
    return tf.reshape(beside, (-1, taps * 3))


def _linear(behind: tf.Tensor) -> list[tf.Tensor]:
    return [1 - behind, behind]


def _cubic(behind: tf.Tensor) -> list[tf.Tensor]:
    """Keys' kernel with a = -1, which Pillow has here (in resizing a = -0.5)."""
    ahead = 1 - behind
    return [
        -behind * ahead**2,
        1 - behind**2 * (2 - behind),
        1 - ahead**2 * (2 - ahead),
        -ahead * behind**2,
    ]


_WEIGHTS: dict[str, Callable[[tf.Tensor], list[tf.Tensor]]] = {
    "bilinear": _linear,
    "bicubic": _cubic,
}
# Name -> the matrix for a value, height and width. Shears are shares of the distance
# from the top left; what is moved goes left or up.
MATRICES: Mapping[str, Callable[[Any, tf.Tensor, tf.Tensor], Matrix]] = {
    "shear_x": lambda share, _, __: (1, share, 0, 0, 1, 0),
    "shear_y": lambda share, _, __: (1, 0, 0, share, 1, 0),
    "translate_x": lambda pixels, _, __: (1, 0, pixels, 0, 1, 0),
    "translate_y": lambda pixels, _, __: (1, 0, 0, 0, 1, pixels),
    "translate_x_share": lambda share, _, width: (
        (1, 0, _float(share) * _float(width), 0, 1, 0)
    ),
    "translate_y_share": lambda share, height, _: (
        (1, 0, 0, 0, 1, _float(share) * _float(height))
    ),
    "rotate": rotation,
}
