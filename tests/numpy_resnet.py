"""A second ResNet, written from the paper with NumPy alone, in torch's layouts.

Slow and plain on purpose: it shares no line with the product.
"""

from typing import Any

import numpy as np

Array = Any
EPSILON = 1e-5


def convolve(
    x: Array, tensors: dict[str, Array], name: str, stride: int, dilation: int = 1
) -> Array:
    """Convolve (n, c, h, w) with (o, c / groups, k, k), padded by dilation * k // 2."""
    kernel, bias = tensors[f"{name}.weight"], tensors.get(f"{name}.bias")
    size = dilation * (kernel.shape[-1] - 1) + 1
    pad = size // 2
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    patches = np.lib.stride_tricks.sliding_window_view(x, (size, size), (2, 3))
    x = patches[:, :, ::stride, ::stride, ::dilation, ::dilation]
    groups = x.shape[1] // kernel.shape[1]
    parts = zip(np.split(x, groups, 1), np.split(kernel, groups), strict=True)
    sums = [np.einsum("nchwij,ocij->nohw", *part, optimize=True) for part in parts]
    z = np.concatenate(sums, 1)
    return z if bias is None else z + bias[:, None, None]


def normalise(
    x: Array, tensors: dict[str, Array], name: str, epsilon: float = EPSILON
) -> Array:
    gamma, beta, mean, variance = (
        tensors[f"{name}.{kind}"].astype(np.float64)[:, None, None]
        for kind in ("weight", "bias", "running_mean", "running_var")
    )
    return gamma * (x - mean) / np.sqrt(variance + epsilon) + beta


def max_pool(x: Array, outside: float = -np.inf) -> Array:
    """Pool 3x3 at stride 2, padded by minus infinity as torch does."""
    x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=outside)
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))
    return windows[:, :, ::2, ::2].max((-1, -2))


def average_pool(x: Array, stride: int) -> Array:
    """Pool 2x2; windows that stick out average what is inside at stride 2, else zeros.

    The second is what timm does where an output stride takes the stride.
    """
    rows, columns = (x.shape[2] % 2, x.shape[3] % 2) if stride > 1 else (1, 1)
    outside = np.nan if stride > 1 else 0.0
    x = np.pad(x, ((0, 0), (0, 0), (0, rows), (0, columns)), constant_values=outside)
    windows = np.lib.stride_tricks.sliding_window_view(x, (2, 2), (2, 3))
    return np.nanmean(windows[:, :, ::stride, ::stride], axis=(-1, -2))


def zero_channels(x: Array, channels: int, stride: int) -> Array:
    """Option A as the published CIFAR checkpoints have it."""
    x = x[:, :, ::stride, ::stride]
    extra = (channels - x.shape[1]) // 2
    return np.pad(x, ((0, 0), (extra, extra), (0, 0), (0, 0)))


class ResNet:
    """Runs images through the model whose tensors are given."""

    def __init__(
        self,
        tensors: dict[str, Array],
        *,
        stride_in: str = "3x3",
        plain: bool = False,
        last: bool = False,
        epsilon: float = EPSILON,
        output_stride: int = 1000,
    ) -> None:
        self.tensors, self.stride_in, self.plain = tensors, stride_in, plain
        self.last, self.epsilon, self.output_stride = last, epsilon, output_stride
        self.pre = "norm.weight" in tensors
        self.reached = self.dilation = 1

    def relu(self, x: Array, norm: str) -> Array:
        return np.maximum(normalise(x, self.tensors, norm, self.epsilon), 0)

    def path(self, z: Array, name: str, stride: int, kept: int) -> Array:
        count = sum(f"{name}.conv{i}.weight" in self.tensors for i in (1, 2, 3))
        strided = 2 if count == 3 and self.stride_in == "3x3" else 1
        dilation = self.dilation
        for i in range(1, count + 1):
            if i > 1:
                z = self.relu(z, f"{name}.bn{i}") if self.pre else np.maximum(z, 0)
            step = kept if i == strided else 1
            side = self.tensors[f"{name}.conv{i}.weight"].shape[-1]
            dilated = dilation if side > 1 else 1
            z = convolve(z, self.tensors, f"{name}.conv{i}", step, dilated)
            if i == strided:
                dilation *= stride // kept
            if not self.pre:
                z = normalise(z, self.tensors, f"{name}.bn{i}", self.epsilon)
        return z

    def shortcut(
        self, x: Array, given: Array, name: str, channels: int, steps: tuple[int, int]
    ) -> Array:
        stride, kept = steps
        names = [n for n in (0, 1) if f"{name}.downsample.{n}.weight" in self.tensors]
        weights = [self.tensors[f"{name}.downsample.{n}.weight"] for n in names]
        kernels = [n for n, w in zip(names, weights, strict=True) if w.ndim == 4]
        if not kernels:
            shape_changes = kept > 1 or channels != x.shape[1]
            return zero_channels(x, channels, kept) if shape_changes else x
        (number,) = kernels
        if number == 1:
            given = average_pool(given, kept) if stride > 1 else given
            kept = 1
        z = convolve(given, self.tensors, f"{name}.downsample.{number}", kept)
        norm = f"{name}.downsample.{number + 1}"
        return z if self.pre else normalise(z, self.tensors, norm, self.epsilon)

    def block(self, x: Array, name: str, stride: int) -> Array:
        kept = stride if self.reached * stride <= self.output_stride else 1
        given = self.relu(x, f"{name}.bn1") if self.pre else x
        z = self.path(given, name, stride, kept)
        if not self.plain:
            z = z + self.shortcut(x, given, name, z.shape[1], (stride, kept))
        self.reached, self.dilation = (
            self.reached * kept,
            self.dilation * stride // kept,
        )
        return z if self.pre else np.maximum(z, 0)

    def stem(self, x: Array) -> Array:
        tensors = self.tensors
        if "conv1.0.weight" in tensors:
            for index, step in ((0, 2), (3, 1)):
                x = convolve(x, tensors, f"conv1.{index}", step)
                x = self.relu(x, f"conv1.{index + 1}")
            x = convolve(x, tensors, "conv1.6", 1)
            pools = True
        else:
            pools = tensors["conv1.weight"].shape[-1] == 7
            x = convolve(x, tensors, "conv1", 2 if pools else 1)
        if not self.pre:
            x = self.relu(x, "bn1")
        self.reached = 4 if pools else 1
        return max_pool(x, 0.0 if self.pre else -np.inf) if pools else x

    def stages(self, images: Array) -> dict[str, Array]:
        """Return the output of every stage for (n, h, w, c), as (n, c, h, w)."""
        x = self.stem(images.transpose(0, 3, 1, 2).astype(np.float64))
        blocks = dict.fromkeys(
            tuple(key.split(".")[:2]) for key in self.tensors if key[:5] == "layer"
        )
        depths: dict[str, int] = {}
        for layer, _ in blocks:
            depths[layer] = depths.get(layer, 0) + 1
        found: dict[str, Array] = {}
        for layer, index in blocks:
            if self.last:
                strided = int(index) == depths[layer] - 1 and layer != list(depths)[-1]
            else:
                strided = index == "0" and layer != "layer1"
            x = found[layer] = self.block(x, f"{layer}.{index}", 2 if strided else 1)
        if self.pre:
            found[list(depths)[-1]] = self.relu(x, "norm")
        return found


def logits(images: Array, tensors: dict[str, Array], **options: Any) -> Array:
    """Run (n, h, w, c) through the model whose tensors are given; see `ResNet`."""
    stages = ResNet(tensors, **options).stages(images)
    pooled = list(stages.values())[-1].mean((2, 3))
    return pooled @ tensors["fc.weight"].T + tensors["fc.bias"]
