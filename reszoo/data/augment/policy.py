"""Policies: which operations are drawn, how often and how strongly."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from reszoo.data.augment import affine, colour
from reszoo.data.augment.affine import Canvas
from reszoo.data.augment.names import GREATEST, strength_of

Policy = Callable[[tf.Tensor, tf.Tensor, Canvas], tf.Tensor]

# timm's RandAugment: two of the operations, each left out half of the time.
_LAYERS = 2


def find_policy(name: str) -> Policy:
    """Return a policy by name.

    Args:
        name: "trivial", or "rand-mM-mstdS"; see `names.strength_of`.

    Returns:
        A function of an image, a key and a canvas that returns an image.

    Raises:
        UsageError: There is no such policy.
    """
    strength = strength_of(name)
    if strength is None:
        return trivial_augment
    magnitude, deviation = strength
    return lambda image, key, canvas: rand_augment(
        image, key, canvas, magnitude=magnitude, deviation=deviation
    )


def trivial_augment(image: tf.Tensor, key: tf.Tensor, canvas: Canvas) -> tf.Tensor:
    """Apply one random operation of random strength.

    Mueller and Hutter 2021 (arXiv 2103.10158), the wide space, as torchvision 0.28
    has it: 31 strengths, shifts of up to 32 pixels.

    Args:
        image: uint8 `(height, width, 3)`.
        key: int64 `(2,)`.
        canvas: Colour of the outside, and interpolation.
    """
    choice, strength, sign = tf.unstack(_draw(key, len(TRIVIAL), _STRENGTHS, 2))
    values = tf.constant(np.stack([TRIVIAL[name] for name in TRIVIAL]), tf.float32)
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
    """Apply up to two random operations of about the same strength.

    Cubuk et al. 2019 (arXiv 1909.13719), as timm 1.0's "rand-mM-mstdS-inc1".

    Args:
        image: uint8 `(height, width, 3)`.
        key: int64 `(2,)`.
        canvas: Colour of the outside, and interpolation.
        magnitude: Mean strength, 0 to 10.
        deviation: Standard deviation of the strength.
    """
    keys = tf.random.split(key, 2 * _LAYERS)

    def layer(number: tf.Tensor, image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        choice, sign, left_out = tf.unstack(_draw(keys[2 * number], len(RAND), 2, 2))
        normal = tf.random.stateless_normal((), keys[2 * number + 1], dtype=tf.float64)
        level = tf.clip_by_value(magnitude + deviation * normal, 0, GREATEST)
        sign = tf.cast(1 - 2 * sign, level.dtype)
        values = partial(_rand_value, level / GREATEST, sign)
        varied = partial(_apply, tuple(RAND), choice, image, values, canvas)
        return number + 1, tf.cond(left_out > 0, lambda: image, varied)

    # One layer in the graph: what is traced and optimised each epoch is halved.
    _, image = tf.while_loop(lambda n, _: n < _LAYERS, layer, (tf.constant(0), image))
    return image


def _rand_value(share: tf.Tensor, sign: tf.Tensor, name: str) -> Any:
    return RAND[name](share, sign)


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
    moves = [name for name in names if name in affine.MATRICES]
    others = [name for name in names if name not in affine.MATRICES]

    def move() -> tf.Tensor:
        height, width = tf.unstack(tf.shape(image)[:2])
        matrices = tf.stack(
            [
                [tf.cast(entry, tf.float32) for entry in matrix]
                for matrix in (
                    affine.MATRICES[name](value(name), height, width) for name in moves
                )
            ]
        )
        row = tf.gather([moves.index(n) if n in moves else 0 for n in names], choice)
        matrix = tuple(tf.unstack(matrices[row]))
        return tf.ensure_shape(affine.transform(image, matrix, canvas), shape)

    branches = [
        move,
        *(lambda name=name: _COLOURS[name](image, value(name)) for name in others),
    ]
    branch = [0 if name in moves else 1 + others.index(name) for name in names]
    return tf.switch_case(tf.gather(branch, choice), branches)


def _draw(key: tf.Tensor, *counts: float) -> tf.Tensor:
    """Draw whole numbers below the counts: int32 `(len(counts),)`."""
    draws = tf.random.stateless_uniform((len(counts),), key, dtype=tf.float64)
    return tf.cast(draws * counts, tf.int32)


_COLOURS: Mapping[str, Callable[[tf.Tensor, Any], tf.Tensor]] = {
    "identity": lambda image, _: image,
    "brightness": colour.brightness,
    "saturation": colour.saturation,
    "contrast": colour.contrast,
    "sharpness": colour.sharpness,
    "posterize": colour.posterize,
    "solarize": colour.solarize,
    "solarize_add": colour.solarize_add,
    "autocontrast": lambda image, _: colour.autocontrast(image),
    "equalize": lambda image, _: colour.equalize(image),
    "invert": lambda image, _: colour.invert(image),
}
_STRENGTHS = 31
_NOTHING = np.zeros((2, _STRENGTHS))


def _both(greatest: float, around: float = 0.0) -> Any:
    """Return strengths of both signs, `(2, 31)`."""
    strengths = np.linspace(0, greatest, _STRENGTHS)
    return around + np.stack([strengths, -strengths])


# Name -> values by sign and strength. Shifts are whole pixels.
TRIVIAL: Mapping[str, Any] = {
    "identity": _NOTHING,
    "shear_x": _both(0.99),
    "shear_y": _both(0.99),
    "translate_x": np.trunc(_both(32)),
    "translate_y": np.trunc(_both(32)),
    "rotate": _both(135),
    "brightness": _both(0.99, around=1),
    "saturation": _both(0.99, around=1),
    "contrast": _both(0.99, around=1),
    "sharpness": _both(0.99, around=1),
    "posterize": np.tile(8 - np.round(np.arange(_STRENGTHS) / 5), (2, 1)),
    "solarize": np.tile(np.linspace(255, 0, _STRENGTHS), (2, 1)),
    "autocontrast": _NOTHING,
    "equalize": _NOTHING,
}


def _enhancement(share: Any, sign: Any) -> Any:
    return tf.maximum(1 + sign * share * 0.9, 0.1)


# Name -> its value from the share of the greatest level, 0 to 1, and a sign.
RAND: Mapping[str, Callable[[Any, Any], Any]] = {
    "autocontrast": lambda share, sign: None,
    "equalize": lambda share, sign: None,
    "invert": lambda share, sign: None,
    "rotate": lambda share, sign: sign * share * 30,
    "posterize": lambda share, sign: 4 - tf.floor(share * 4),
    "solarize": lambda share, sign: 256 - tf.floor(share * 256),
    "solarize_add": lambda share, sign: tf.floor(share * 110),
    "saturation": _enhancement,
    "contrast": _enhancement,
    "brightness": _enhancement,
    "sharpness": _enhancement,
    "shear_x": lambda share, sign: sign * share * 0.3,
    "shear_y": lambda share, sign: sign * share * 0.3,
    "translate_x_share": lambda share, sign: sign * share * 0.45,
    "translate_y_share": lambda share, sign: sign * share * 0.45,
}
