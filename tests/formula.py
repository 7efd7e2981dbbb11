"""Weights and images by formula, so that two programs can draw the same ones."""

import zlib
from typing import Any

import numpy as np

NETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
SIZES = ((224, 224), (225, 97))
STAGES = ("layer1", "layer2", "layer3", "layer4")
# One step of plain gradient descent on this many images of this side.
STEP_IMAGES, STEP_SIDE, STEP_RATE = 8, 128, 0.005
STAGE_SAMPLES, TENSOR_SAMPLES = 200, 8


def uniform(name: str, shape: tuple[int, ...], low: float, high: float) -> Any:
    """Draw float32 from the raw bits of PCG64, which never change between versions."""
    count = int(np.prod(shape))
    bits = np.random.PCG64(zlib.crc32(name.encode())).random_raw(count) >> np.uint64(40)
    unit = bits.astype(np.float64) / 2**24
    return (low + (high - low) * unit).reshape(shape).astype(np.float32)


def weight(name: str, shape: tuple[int, ...]) -> Any:
    """Draw one tensor under torch's name and in its layout, nowhere trivial."""
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if len(shape) == 4:
        bound = np.sqrt(6 / (shape[0] * shape[2] * shape[3]))
        return uniform(name, shape, -bound, bound)
    if len(shape) == 2:
        bound = 1 / np.sqrt(shape[1])
        return uniform(name, shape, -bound, bound)
    if name.endswith("running_var"):
        return uniform(name, shape, 0.5, 1.5)
    if name.endswith(".weight"):
        # A small last scale, as in trained nets, keeps activations in bounds.
        small = 0.1 if name.endswith(("bn2.weight", "bn3.weight")) else 1.0
        return uniform(name, shape, 0.5 * small, 1.5 * small)
    return uniform(name, shape, -0.2, 0.2)


def images(count: int, height: int, width: int) -> Any:
    """Draw normalised images, float32 (count, height, width, 3)."""
    return uniform(f"image {height} {width}", (count, height, width, 3), -2, 2)


def sample(name: str, size: int, count: int) -> Any:
    """Choose positions in a flat array."""
    return (uniform(f"sample {name}", (count,), 0, 1) * (size - 1)).astype(np.int64)


def samples(tensors: dict[str, Any]) -> Any:
    """Return some values of every tensor of a state dict, in order of the names."""
    chosen = []
    for name in sorted(tensors):
        if not name.endswith("num_batches_tracked"):
            value = np.asarray(tensors[name]).reshape(-1)
            chosen.append(value[sample(name, value.size, TENSOR_SAMPLES)])
    return np.concatenate(chosen)
