"""Augmentation policies and their operations, equal to Pillow's."""

from collections.abc import Callable, Mapping
from functools import partial
from math import pi
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from reszoo.data.augment import GREATEST, strength_of
from reszoo.data.augment.geometry import as_float
from reszoo.preprocessing import to_grey

# a to f: the pixel at (x, y) comes from (a x + b y + c, d x + e y + f).
Matrix = tuple[Any, Any, Any, Any, Any, Any]

# Pillow cuts fractions off. In float32 a whole number can come out a little below.
_WHOLE = 2.0**-10


class Canvas(NamedTuple):
    """What the geometric operations draw with."""

    fill: tf.Tensor  # uint8 `(3,)`, colour of what comes in from outside
    interpolation: str  # "bilinear" or "bicubic"


def transform(image: tf.Tensor, matrix: Matrix, canvas: Canvas) -> tf.Tensor:
    """Take each pixel from where an affine map `(a, b, c, d, e, f)` sends it.

    Centres of pixels lie at halves. Equal to Pillow's within one grey level but for the
    few pixels of edges that rounding moves in or out.
    """
    a, b, c, d, e, f = map(as_float, matrix)
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
    """Return the matrix that rotates an image anticlockwise about its centre."""
    angle = as_float(degrees) * (pi / 180)
    cosine, sine = tf.cos(angle), tf.sin(angle)
    x, y = as_float(width) / 2, as_float(height) / 2
    across = x - cosine * x + sine * y
    down = y - sine * x - cosine * y
    return cosine, -sine, across, sine, cosine, down


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
    """Stack each pixel's neighbours in a row, so that one look-up finds all of them."""
    # uint8 `(height * (width + 1), taps * 3)`; the pixels from `x + first` on for x
    # from -1, with the outermost pixels repeated.
    width = tf.shape(image)[1]
    starts = tf.range(-1, width) + first
    columns = [tf.clip_by_value(starts + tap, 0, width - 1) for tap in range(taps)]
    strips = tf.stack([tf.gather(image, column, axis=1) for column in columns], axis=2)
    return tf.reshape(strips, (-1, taps * 3))


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
    "bilinear": lambda behind: [1 - behind, behind],
    "bicubic": _cubic,
}
# Name -> the matrix for a value, height and width. Shears are shares of the distance
# from the top left; what is moved goes left or up.
MATRICES: Mapping[str, Callable[[Any, tf.Tensor, tf.Tensor], Matrix]] = {
    "shear_x": lambda share, _, __: (1, share, 0, 0, 1, 0),
    "shear_y": lambda share, _, __: (1, 0, 0, share, 1, 0),
    "translate_x": lambda pixels, _, __: (1, 0, pixels, 0, 1, 0),
    "translate_y": lambda pixels, _, __: (1, 0, 0, 0, 1, pixels),
    "translate_x_share": lambda x, _, w: (1, 0, as_float(x) * as_float(w), 0, 1, 0),
    "translate_y_share": lambda x, h, _: (1, 0, 0, 0, 1, as_float(x) * as_float(h)),
    "rotate": rotation,
}


def brightness(image: tf.Tensor, factor: Any) -> tf.Tensor:
    """Blend with black; a factor of 1 changes nothing, 0 is black."""
    return _look_up(image, _blend(0.0, _levels(), factor))


def contrast(image: tf.Tensor, factor: Any) -> tf.Tensor:
    """Blend with the mean grey; a factor of 1 changes nothing, 0 is flat."""
    mean = tf.reduce_mean(tf.cast(to_grey(image), tf.float64))
    mean = tf.cast(tf.floor(mean + 0.5), tf.float32)
    return _look_up(image, _blend(mean, _levels(), factor))


def saturation(image: tf.Tensor, factor: Any) -> tf.Tensor:
    """Blend with the grey image; a factor of 1 changes nothing, 0 is grey."""
    grey = tf.cast(to_grey(image), tf.float32)
    return _blend(grey, tf.cast(image, tf.float32), factor)


def sharpness(image: tf.Tensor, factor: Any) -> tf.Tensor:
    """Blend with the smoothed image; 1 changes nothing, 0 is smooth, 2 sharp."""
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
    return _look_up(image, tf.where(step > 0, table, tf.range(256)[:, None]))


def _levels() -> tf.Tensor:
    return tf.range(256, dtype=tf.float32)


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


# From an image, uint8 `(height, width, 3)`, a key, int64 `(2,)`, and a canvas to an
# image of the same shape.
Policy = Callable[[tf.Tensor, tf.Tensor, Canvas], tf.Tensor]

# timm's RandAugment: two of the operations, each left out half of the time.
_LAYERS = 2


def find_policy(name: str) -> Policy:
    """Return a function of an image, a key and a canvas by its name."""
    if (found := strength_of(name)) is None:
        return trivial_augment
    return partial(rand_augment, magnitude=found[0], deviation=found[1])


def trivial_augment(image: tf.Tensor, key: tf.Tensor, canvas: Canvas) -> tf.Tensor:
    """Apply one random operation of random strength.

    Mueller and Hutter 2021 (arXiv 2103.10158), the wide space, as torchvision 0.28
    has it: 31 strengths, shifts of up to 32 pixels. Arguments: see `Policy`.
    """
    choice, strength, sign = tf.unstack(_draw(key, len(TRIVIAL), _STRENGTHS, 2))
    values = tf.constant(np.stack(list(TRIVIAL.values())), tf.float32)
    value = values[choice, sign, strength]
    return _apply(tuple(TRIVIAL), choice, image, lambda name: value, canvas)


def rand_augment(
    image: tf.Tensor,
    key: tf.Tensor,
    canvas: Canvas,
    *,
    magnitude: float,
    deviation: float,
) -> tf.Tensor:
    """Apply up to two random operations of about the same strength, 0 to 10.

    Cubuk et al. 2019 (arXiv 1909.13719), as timm 1.0's "rand-mM-mstdS-inc1".
    """
    keys = tf.random.split(key, 2 * _LAYERS)

    def layer(number: tf.Tensor, image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        choice, sign, left_out = tf.unstack(_draw(keys[2 * number], len(RAND), 2, 2))
        normal = tf.random.stateless_normal((), keys[2 * number + 1], dtype=tf.float64)
        level = tf.clip_by_value(magnitude + deviation * normal, 0, GREATEST)
        sign = tf.cast(1 - 2 * sign, level.dtype)

        def value(name: str) -> Any:
            return RAND[name](level / GREATEST, sign)

        varied = partial(_apply, tuple(RAND), choice, image, value, canvas)
        return number + 1, tf.cond(left_out > 0, lambda: image, varied)

    # One layer in the graph: what is traced and optimised each epoch is halved.
    _, image = tf.while_loop(lambda n, _: n < _LAYERS, layer, (tf.constant(0), image))
    return image


def _apply(
    names: tuple[str, ...],
    choice: tf.Tensor,
    image: tf.Tensor,
    value: Callable[[str], Any],
    canvas: Canvas,
) -> tf.Tensor:
    """Carry out one of the named operations."""
    shape = image.shape
    # The graph of a transform is large, so all that have a matrix share one.
    moves = [name for name in names if name in MATRICES]
    others = [name for name in names if name not in MATRICES]

    def move() -> tf.Tensor:
        height, width = tf.unstack(tf.shape(image)[:2])
        found = (MATRICES[name](value(name), height, width) for name in moves)
        matrices = tf.stack([list(map(as_float, matrix)) for matrix in found])
        row = tf.gather([moves.index(n) if n in moves else 0 for n in names], choice)
        matrix = tuple(tf.unstack(matrices[row]))
        return tf.ensure_shape(transform(image, matrix, canvas), shape)

    def colour(name: str) -> tf.Tensor:
        return _COLOURS[name](image, value(name))

    branches = [move, *(partial(colour, name) for name in others)]
    branch = [0 if name in moves else 1 + others.index(name) for name in names]
    return tf.switch_case(tf.gather(branch, choice), branches)


def _draw(key: tf.Tensor, *counts: float) -> tf.Tensor:
    """Draw whole numbers below the counts: int32 `(len(counts),)`."""
    draws = tf.random.stateless_uniform((len(counts),), key, dtype=tf.float64)
    return tf.cast(draws * counts, tf.int32)


_COLOURS: Mapping[str, Callable[[tf.Tensor, Any], tf.Tensor]] = {
    "identity": lambda image, _: image, "brightness": brightness,
    "saturation": saturation, "contrast": contrast, "sharpness": sharpness,
    "posterize": posterize, "solarize": solarize, "solarize_add": solarize_add,
    "autocontrast": lambda image, _: autocontrast(image),
    "equalize": lambda image, _: equalize(image),
    "invert": lambda image, _: invert(image),
}  # fmt: skip
_STRENGTHS = 31
_NOTHING = np.zeros((2, _STRENGTHS))


def _both(greatest: float, around: float = 0.0) -> Any:
    """Return strengths of both signs, `(2, 31)`."""
    strengths = np.linspace(0, greatest, _STRENGTHS)
    return around + np.stack([strengths, -strengths])


# Name -> values by sign and strength. Shifts are whole pixels.
TRIVIAL: Mapping[str, Any] = {
    "identity": _NOTHING,
    **dict.fromkeys(("shear_x", "shear_y"), _both(0.99)),
    **dict.fromkeys(("translate_x", "translate_y"), np.trunc(_both(32))),
    "rotate": _both(135),
    **dict.fromkeys(
        ("brightness", "saturation", "contrast", "sharpness"), _both(0.99, around=1)
    ),
    "posterize": np.tile(8 - np.round(np.arange(_STRENGTHS) / 5), (2, 1)),
    "solarize": np.tile(np.linspace(255, 0, _STRENGTHS), (2, 1)),
    "autocontrast": _NOTHING,
    "equalize": _NOTHING,
}


# Name -> its value from the share of the greatest level, 0 to 1, and a sign.
RAND: Mapping[str, Callable[[Any, Any], Any]] = {
    **dict.fromkeys(("autocontrast", "equalize", "invert"), lambda share, sign: None),
    "rotate": lambda share, sign: sign * share * 30,
    "posterize": lambda share, sign: 4 - tf.floor(share * 4),
    "solarize": lambda share, sign: 256 - tf.floor(share * 256),
    "solarize_add": lambda share, sign: tf.floor(share * 110),
    **dict.fromkeys(
        ("saturation", "contrast", "brightness", "sharpness"),
        lambda share, sign: tf.maximum(1 + sign * share * 0.9, 0.1),
    ),
    **dict.fromkeys(("shear_x", "shear_y"), lambda share, sign: sign * share * 0.3),
    "translate_x_share": lambda share, sign: sign * share * 0.45,
    "translate_y_share": lambda share, sign: sign * share * 0.45,
}
