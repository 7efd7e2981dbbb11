"""Wrong weights, as exporters write them: changes of arrays, for every runtime.

A kernel's axes are given by their places: outputs, rows, columns and inputs.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Change = Callable[[Array], Array]
Axes = tuple[int, int, int, int]
OHWI: Axes = (0, 1, 2, 3)
OIHW: Axes = (0, 2, 3, 1)
HWIO: Axes = (3, 0, 1, 2)


def transposed(axes: Axes) -> Change:
    """Exchange the rows and columns of a kernel."""
    _, row, column, _ = axes
    return lambda array: array.swapaxes(row, column)


def flipped(axes: Axes) -> Change:
    """Turn a kernel by half a turn: convolution in place of correlation."""
    return lambda array: np.flip(array, axes[1:3])


def relaid(*order: int) -> Change:
    """Store an array in another order of axes, under the same shape."""
    return lambda array: np.ascontiguousarray(array.transpose(order)).reshape(
        array.shape
    )


def reversed_along(axis: int) -> Change:
    """Reverse an axis: BGR for RGB."""
    return lambda array: np.flip(array, axis)


def rotated(axis: int) -> Change:
    """Move everything along an axis by one place."""
    return lambda array: np.roll(array, 1, axis)


def swapped(axis: int, one: int = 0, other: int = 1) -> Change:
    """Exchange two entries along an axis."""

    def change(array: Array) -> Array:
        places = list(range(array.shape[axis]))
        places[one], places[other] = other, one
        return array.take(places, axis)

    return change


def scaled(factor: float) -> Change:
    """Multiply by a factor."""
    return lambda array: (array * factor).astype(array.dtype)


def added(term: float) -> Change:
    """Add a number."""
    return lambda array: (array + term).astype(array.dtype)


def put(value: float) -> Change:
    """Replace the largest number."""

    def change(array: Array) -> Array:
        array.reshape(-1)[np.abs(array).argmax()] = value
        return array

    return change


def one_sign(array: Array) -> Array:
    """Change the sign of the largest number."""
    flat = array.reshape(-1)
    flat[np.abs(flat).argmax()] *= -1
    return array


def flipped_bit(array: Array) -> Array:
    """Flip the lowest bit of the exponent of the largest float32."""
    flat = array.reshape(-1).view(np.uint32)
    flat[np.abs(array).argmax()] ^= 1 << 23
    return array


def one_channel_zeroed(axis: int) -> Change:
    """Lose one channel."""

    def change(array: Array) -> Array:
        np.moveaxis(array, axis, 0)[3] = 0
        return array

    return change


def duplicated(axis: int) -> Change:
    """Put one channel in the place of the next one."""

    def change(array: Array) -> Array:
        moved = np.moveaxis(array, axis, 0)
        moved[1] = moved[0]
        return array

    return change


def first_only(array: Array) -> Array:
    """Use the first number for all."""
    return np.full_like(array, array.reshape(-1)[0])


def float16(array: Array) -> Array:
    """Round to float16."""
    return array.astype(np.float16).astype(array.dtype)


def bfloat16(array: Array) -> Array:
    """Round to bfloat16 by cutting off, as many converters do."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32) & 0xFFFF0000
    made: Array = bits.view(np.float32)
    return made


def byteswapped(array: Array) -> Array:
    """Store numbers with their most significant byte first."""
    return array.byteswap()


def offset_bytes(array: Array) -> Array:
    """Read int8 as uint8 with an offset of 128."""
    return (array.astype(np.int16) + 128).astype(np.uint8).view(np.int8)


def clipped(limit: float) -> Change:
    """Limit the absolute value."""
    return lambda array: np.clip(array, -limit, limit).astype(array.dtype)


def coarse(steps: int) -> Change:
    """Round to few steps of the largest number, as with too few bits."""

    def change(array: Array) -> Array:
        step = np.abs(array).max() / steps
        rounded: Array = (np.round(array / step) * step).astype(array.dtype)
        return rounded

    return change
