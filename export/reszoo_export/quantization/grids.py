"""Round weights to int8 grids and to float16; compare the steps of activations."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reszoo.errors import ExportError

_LARGEST = float(np.finfo(np.float16).max)


def round_kernel(kernel: NDArray[np.float32]) -> NDArray[np.float16]:
    """Round the weights of a layer to float16, preserving their sums.

    Neighbouring weights multiply nearly the same activations, which have one sign after
    a ReLU: what counts is the sum of their errors, which grows if each weight is
    rounded to nearest. Here each weight compensates the error of those before it, the
    largest first, because they have the coarsest steps (error diffusion: Floyd and
    Steinberg, "An adaptive algorithm for spatial greyscale", 1976). On a ResNet-20
    trained on CIFAR-10 it halves the largest error of a probability.

    The kernel is `(outputs, taps, inputs)`; sums over the taps are preserved, or over
    the inputs if there is one tap. An ExportError if a weight is beyond float16's 65504
    or NaN.
    """
    largest = float(np.abs(kernel).max())
    if not largest <= _LARGEST:
        raise ExportError(
            f"Weights must stay below {_LARGEST:g} in float16. Received: one of "
            f"{largest:g}. Export in float32 instead."
        )
    axis = 1 if kernel.shape[1] > 1 else 2
    order = np.argsort(-np.abs(kernel), axis=axis, kind="stable")
    ordered = np.moveaxis(np.take_along_axis(kernel, order, axis), axis, 0)
    float16 = np.empty(ordered.shape, np.float16)
    error = np.zeros(ordered.shape[1:], np.float32)
    for index, weights in enumerate(ordered):
        exact = np.clip(weights + error, -_LARGEST, _LARGEST)
        float16[index] = exact
        error = exact - float16[index]
    rounded = np.empty(kernel.shape, np.float16)
    np.put_along_axis(rounded, order, np.moveaxis(float16, 0, axis), axis)
    return rounded


Kernel = NDArray[np.float32]
# Scales for each output channel, by layer.
Steps = dict[str, NDArray[np.float32]]
# Largest sum of two weights of an output: 255 times that fits 16 bits.
MAX_PAIR = 128
# The same before rounding, which adds less than 1 to each.
_MAX_EXACT_PAIR = np.float32(126.99)
MAX_INT8 = 127
# Of a kernel of zeros.
_MIN_SCALE = np.float32(1e-9)


def full_steps(kernel: Kernel) -> NDArray[np.float32]:
    """Return scales with which the largest weight of each output (last axis) is 127."""
    largest = np.abs(kernel).max(tuple(range(kernel.ndim - 1)))
    steps: NDArray[np.float32] = np.maximum(largest, _MIN_SCALE) / np.float32(MAX_INT8)
    return steps


def narrow_steps(kernel: Kernel) -> NDArray[np.float32]:
    """Return scales with which no two weights of an output overflow 16 bits.

    The library of a runtime decides which two are added, so the largest two must fit.
    That costs at most one bit, and less if one weight is much larger than the others;
    `reduce_range` of ONNX Runtime's quantizers always costs one.
    """
    pairs: NDArray[np.float32] = greatest_pairs(kernel)
    steps: NDArray[np.float32] = np.maximum(full_steps(kernel), pairs / _MAX_EXACT_PAIR)
    return steps


def greatest_pairs(kernel: NDArray[Any]) -> NDArray[Any]:
    """Return the largest sum of two weights of each output, of either sign.

    The dtype must be signed and wide enough for such a sum.
    """
    ordered = np.sort(kernel.reshape(-1, kernel.shape[-1]), axis=0)
    pairs: NDArray[Any] = np.maximum(ordered[-2:].sum(0), -ordered[:2].sum(0))
    return pairs


def on_grid(kernel: Kernel, steps: NDArray[np.float32]) -> Kernel:
    """Round a kernel `(..., in, out)` to whole steps `(out,)`, preserving sums of taps.

    Neighbouring pixels are much alike, so what counts is the total error of the taps
    for one input and output: at most half a step here, but several if each tap is
    rounded to nearest. It is the kernel-wise step of SQuant (Guo et al.,
    arXiv:2202.07471).
    """
    exact = kernel / steps
    near = np.round(exact)
    # One row per tap, also of a matrix.
    errors = (near - exact).reshape(-1, *kernel.shape[-2:])
    total = errors.sum(0)
    ahead = np.argsort(-errors * np.sign(total), axis=0, kind="stable").argsort(0)
    turned = np.where(ahead < np.abs(np.round(total)), np.sign(total), 0)
    rounded: Kernel = (near - turned.reshape(kernel.shape)) * steps
    return rounded


# Steps of an activation's range, and a range that is the same to the last digits.
LEVELS = 255
_SAME = 1e-3
# Of pixels, and of probabilities in integers.
_FIXED = ((0.0, 255.0), (0.0, 255 / 256))
_MAX_SHOWN = 3


def step_problems(
    biases: Iterable[Sequence[Any]],
    activations: Iterable[tuple[float, float]],
    chosen: Mapping[str, Any] | None,
) -> list[str]:
    """Check the steps of a file of integers; return what is wrong.

    A bias must count what input times weights does: the scales of the three, NaN where
    one is not of integers. Activations, pairs of a scale and a zero point in 0..255,
    must have the ranges that calibration chose for the layers, where these are known;
    the output, which is the last, need not be of integers.
    """
    scales = [(image * weights, bias) for image, weights, bias in biases]
    problems = []
    if not all(np.allclose(*each, _SAME, 0) for each in scales):
        problems.append("scales of weights and of biases do not belong together")
    if not chosen:
        return problems
    ours, zeros = np.array([*{*activations}], np.float64).reshape(-1, 2).T[..., None]
    low, high = np.array([*chosen.values(), *_FIXED], np.float64).T
    steps = (high - low) / LEVELS
    same = (np.abs(ours / steps - 1) < _SAME) & (np.abs(zeros + low / steps) < 0.5)
    if not same.any(axis=1).all():
        problems.append("activations have ranges that calibration did not choose")
    pairs = zip([*chosen][:-1], same.any(axis=0), strict=False)
    if missing := [name for name, there in pairs if not there]:
        shown = ", ".join(missing[:_MAX_SHOWN])
        problems.append(f"activations are not rounded to their ranges: {shown}")
    return problems
