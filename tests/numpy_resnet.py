"""A second ResNet, written from the paper with NumPy alone, in torch's layouts.

Slow and plain on purpose: it shares no line with the product.
"""

from typing import Any

import numpy as np

Array = Any
EPSILON = 1e-5


def convolve(x: Array, kernel: Array, stride: int) -> Array:
    """Convolve (n, c, h, w) with (o, c, k, k), padded by k // 2 on every side."""
    size = kernel.shape[-1]
    pad = size // 2
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    patches = np.lib.stride_tricks.sliding_window_view(x, (size, size), (2, 3))
    x = patches[:, :, ::stride, ::stride]
    return np.einsum("nchwij,ocij->nohw", x, kernel, optimize=True)


def normalise(x: Array, tensors: dict[str, Array], name: str) -> Array:
    gamma, beta, mean, variance = (
        tensors[f"{name}.{kind}"].astype(np.float64)[:, None, None]
        for kind in ("weight", "bias", "running_mean", "running_var")
    )
    return gamma * (x - mean) / np.sqrt(variance + EPSILON) + beta


def max_pool(x: Array) -> Array:
    """Pool 3x3 at stride 2, padded by minus infinity as torch does."""
    x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))
    return windows[:, :, ::2, ::2].max((-1, -2))


def zero_channels(x: Array, channels: int, stride: int) -> Array:
    """Option A as the published CIFAR checkpoints have it."""
    x = x[:, :, ::stride, ::stride]
    extra = (channels - x.shape[1]) // 2
    return np.pad(x, ((0, 0), (extra, extra), (0, 0), (0, 0)))


def block(
    x: Array,
    tensors: dict[str, Array],
    name: str,
    stride: int,
    stride_in: str,
    cut: bool,
) -> Array:
    convolutions = sum(f"{name}.conv{i}.weight" in tensors for i in (1, 2, 3))
    strided = 2 if convolutions == 3 and stride_in == "3x3" else 1
    z = x
    for i in range(1, convolutions + 1):
        step = stride if i == strided else 1
        z = convolve(z, tensors[f"{name}.conv{i}.weight"], step)
        z = normalise(z, tensors, f"{name}.bn{i}")
        if i < convolutions:
            z = np.maximum(z, 0)
    if cut:
        return np.maximum(z, 0)
    if f"{name}.downsample.0.weight" in tensors:
        x = convolve(x, tensors[f"{name}.downsample.0.weight"], stride)
        x = normalise(x, tensors, f"{name}.downsample.1")
    elif x.shape != z.shape:
        x = zero_channels(x, z.shape[1], stride)
    return np.maximum(z + x, 0)


def logits(
    images: Array,
    tensors: dict[str, Array],
    *,
    stem: str,
    stride_in: str = "3x3",
    plain: bool = False,
) -> Array:
    """Run (n, h, w, c) through the net whose tensors are given."""
    x = images.transpose(0, 3, 1, 2).astype(np.float64)
    x = convolve(x, tensors["conv1.weight"], 2 if stem == "imagenet" else 1)
    x = np.maximum(normalise(x, tensors, "bn1"), 0)
    if stem == "imagenet":
        x = max_pool(x)
    names = dict.fromkeys(
        ".".join(key.split(".")[:2]) for key in tensors if key.startswith("layer")
    )
    for name in names:
        layer, index = name.removeprefix("layer").split(".")
        stride = 2 if layer != "1" and index == "0" else 1
        x = block(x, tensors, name, stride, stride_in, plain)
    pooled = x.mean((2, 3))
    return pooled @ tensors["fc.weight"].T + tensors["fc.bias"]
