"""The grids of whole steps that int8 kernels are rounded to, of each output its own.

A processor without a dot product of bytes (x86 without VNNI) multiplies uint8
activations by int8 weights, adds the products two by two in 16 bits (`vpmaddubsw`) and
cuts off what does not fit. A file for such processors has weights of which no two can
overflow, and answers the same to the last bit with that instruction and without.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Kernel = NDArray[np.float32]
# Size of a grid's steps, for each output, by layer.
Steps = dict[str, NDArray[np.float32]]
# What two weights of an output may add up to: 255 times that fits 16 bits.
MOST_OF_PAIR = 128
# The same before they are rounded, which adds less than 1 to each.
_PAIR = np.float32(126.99)
_STEPS = 127
# A kernel of zeros has a grid, too.
_LEAST = np.float32(1e-9)


def full_steps(kernel: Kernel) -> NDArray[np.float32]:
    """Return steps of which the greatest weight of each output takes 127.

    Args:
        kernel: `(..., out)`.
    """
    greatest = np.abs(kernel).max(tuple(range(kernel.ndim - 1)))
    steps: NDArray[np.float32] = np.maximum(greatest, _LEAST) / np.float32(_STEPS)
    return steps


def narrow_steps(kernel: Kernel) -> NDArray[np.float32]:
    """Return steps so large that no two weights of an output overflow.

    Which two are added, a runtime's library decides: the greatest two must fit. That
    costs at most one bit, and less the more one weight stands out, where
    `reduce_range` of ONNX Runtime's quantisers always costs one.

    Args:
        kernel: `(..., out)`.
    """
    pairs: NDArray[np.float32] = greatest_pairs(kernel)
    steps: NDArray[np.float32] = np.maximum(full_steps(kernel), pairs / _PAIR)
    return steps


def greatest_pairs(kernel: NDArray[Any]) -> NDArray[Any]:
    """Return what two weights of each output add up to at most, on either side of 0.

    Args:
        kernel: `(..., out)`, of signed numbers wide enough for such a sum.
    """
    ordered = np.sort(kernel.reshape(-1, kernel.shape[-1]), axis=0)
    pairs: NDArray[Any] = np.maximum(ordered[-2:].sum(0), -ordered[:2].sum(0))
    return pairs


def on_grid(kernel: Kernel, steps: NDArray[np.float32]) -> Kernel:
    """Round a kernel to whole steps, up or down so that its taps keep their sum.

    Neighbouring pixels are much alike, so what counts is how far the taps for one
    input and output are off together: by half a step at most, where rounding each to
    its nearest adds up to several. It is the kernel-wise step of SQuant (Guo et al.,
    arXiv:2202.07471).

    Args:
        kernel: `(height, width, in, out)` or `(in, out)`.
        steps: `(out,)`.
    """
    exact = kernel / steps
    near = np.round(exact)
    # A tap for each row, whatever the number of sides.
    errors = (near - exact).reshape(-1, *kernel.shape[-2:])
    total = errors.sum(0)
    ahead = np.argsort(-errors * np.sign(total), axis=0, kind="stable").argsort(0)
    turned = np.where(ahead < np.abs(np.round(total)), np.sign(total), 0)
    rounded: Kernel = (near - turned.reshape(kernel.shape)) * steps
    return rounded
