"""A second ResNet, written from the paper with NumPy alone, in torch's layouts.

Slow and plain on purpose: it shares no line with the product.
"""

from typing import Any

import numpy as np

Array = Any
EPSILON = 1e-5


def convolve(x: Array, kernel: Array, stride: int) -> Array:
    """Convolve (n, c, h, w) with (o, c / groups, k, k), padded by k // 2."""
    size = kernel.shape[-1]
    pad = size // 2
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    patches = np.lib.stride_tricks.sliding_window_view(x, (size, size), (2, 3))
    x = patches[:, :, ::stride, ::stride]
    groups = x.shape[1] // kernel.shape[1]
    parts = zip(np.split(x, groups, 1), np.split(kernel, groups), strict=True)
    sums = [np.einsum("nchwij,ocij->nohw", *part, optimize=True) for part in parts]
    return np.concatenate(sums, 1)


def normalise(x: Array, tensors: dict[str, Array], name: str) -> Array:
    gamma, beta, mean, variance = (
        tensors[f"{name}.{kind}"].astype(np.float64)[:, None, None]
        for kind in ("weight", "bias", "running_mean", "running_var")
    )
    return gamma * (x - mean) / np.sqrt(variance + EPSILON) + beta


def max_pool(x: Array, outside: float = -np.inf) -> Array:
    """Pool 3x3 at stride 2, padded by minus infinity as torch does."""
    x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=outside)
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))
    return windows[:, :, ::2, ::2].max((-1, -2))


def average_pool(x: Array) -> Array:
    """Pool 2x2 at stride 2; windows that stick out average what is inside."""
    rows, columns = x.shape[2] % 2, x.shape[3] % 2
    x = np.pad(x, ((0, 0), (0, 0), (0, rows), (0, columns)), constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(x, (2, 2), (2, 3))
    return np.nanmean(windows[:, :, ::2, ::2], axis=(-1, -2))


def zero_channels(x: Array, channels: int, stride: int) -> Array:
    """Option A as the published CIFAR checkpoints have it."""
    x = x[:, :, ::stride, ::stride]
    extra = (channels - x.shape[1]) // 2
    return np.pad(x, ((0, 0), (extra, extra), (0, 0), (0, 0)))


def project(x: Array, tensors: dict[str, Array], name: str, stride: int) -> Array:
    """Bring the shortcut to another shape as torchvision and timm do."""
    number = 0
    if tensors[f"{name}.downsample.1.weight"].ndim == 4:
        x = average_pool(x) if stride > 1 else x
        number, stride = 1, 1
    x = convolve(x, tensors[f"{name}.downsample.{number}.weight"], stride)
    return normalise(x, tensors, f"{name}.downsample.{number + 1}")


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
    if f"{name}.downsample.1.weight" in tensors:
        x = project(x, tensors, name, stride)
    elif x.shape != z.shape:
        x = zero_channels(x, z.shape[1], stride)
    return np.maximum(z + x, 0)


def pre_activation_block(
    x: Array, tensors: dict[str, Array], name: str, stride: int, stride_in: str
) -> Array:
    """He et al. 2016 (arXiv:1603.05027), figure 1 (b)."""
    convolutions = sum(f"{name}.conv{i}.weight" in tensors for i in (1, 2, 3))
    strided = 2 if convolutions == 3 and stride_in == "3x3" else 1
    z = activated = np.maximum(normalise(x, tensors, f"{name}.bn1"), 0)
    for i in range(1, convolutions + 1):
        if i > 1:
            z = np.maximum(normalise(z, tensors, f"{name}.bn{i}"), 0)
        step = stride if i == strided else 1
        z = convolve(z, tensors[f"{name}.conv{i}.weight"], step)
    if f"{name}.downsample.0.weight" in tensors:
        x = convolve(activated, tensors[f"{name}.downsample.0.weight"], stride)
    elif x.shape != z.shape:
        x = zero_channels(x, z.shape[1], stride)
    return z + x


def stem(x: Array, tensors: dict[str, Array], pre: bool) -> Array:
    if "conv1.0.weight" in tensors:
        for index, step in ((0, 2), (3, 1)):
            x = convolve(x, tensors[f"conv1.{index}.weight"], step)
            x = np.maximum(normalise(x, tensors, f"conv1.{index + 1}"), 0)
        x = convolve(x, tensors["conv1.6.weight"], 1)
        pools = True
    else:
        pools = tensors["conv1.weight"].shape[-1] == 7
        x = convolve(x, tensors["conv1.weight"], 2 if pools else 1)
    if not pre:
        x = np.maximum(normalise(x, tensors, "bn1"), 0)
    return max_pool(x, 0.0 if pre else -np.inf) if pools else x


def logits(
    images: Array,
    tensors: dict[str, Array],
    *,
    stride_in: str = "3x3",
    plain: bool = False,
) -> Array:
    """Run (n, h, w, c) through the model whose tensors are given."""
    pre = "norm.weight" in tensors
    x = stem(images.transpose(0, 3, 1, 2).astype(np.float64), tensors, pre)
    names = dict.fromkeys(
        ".".join(key.split(".")[:2]) for key in tensors if key.startswith("layer")
    )
    for name in names:
        layer, index = name.removeprefix("layer").split(".")
        stride = 2 if layer != "1" and index == "0" else 1
        if pre:
            x = pre_activation_block(x, tensors, name, stride, stride_in)
        else:
            x = block(x, tensors, name, stride, stride_in, plain)
    if pre:
        x = np.maximum(normalise(x, tensors, "norm"), 0)
    pooled = x.mean((2, 3))
    return pooled @ tensors["fc.weight"].T + tensors["fc.bias"]
