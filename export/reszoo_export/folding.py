"""Fold batch normalization into the convolution before it."""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from reszoo.architecture import convolutions, standalone_norms
from reszoo.weights.names import HEAD, Tensors, to_tensors
from reszoo.zoo import get_card

Array = NDArray[Any]


@dataclass(frozen=True)
class Statistics:
    """What a batch normalization does in inference, each `(channels,)`."""

    gamma: Array
    beta: Array
    mean: Array
    variance: Array
    epsilon: float

    @property
    def scale(self) -> Array:
        """Factor of each channel, float64 `(channels,)`."""
        variance = self.variance.astype(np.float64)
        scale: Array = self.gamma / np.sqrt(variance + self.epsilon)
        return scale

    def shift(self, bias: Array | None = None) -> Array:
        """Return what is added to each channel, float64 `(channels,)`.

        Args:
            bias: What the convolution before adds, `(channels,)`.
        """
        mean = self.mean.astype(np.float64)
        shift: Array = self.beta - (mean if bias is None else mean - bias) * self.scale
        return shift


def fold(model: keras.Model) -> Tensors:
    """Return the tensors of a model from reszoo, with its normalization folded.

    Those of the classifier are as they were.
    """
    tensors, architecture = to_tensors(model), get_card(model).architecture

    def statistics(norm: str) -> Statistics:
        return Statistics(
            gamma=tensors[f"{norm}.weight"],
            beta=tensors[f"{norm}.bias"],
            mean=tensors[f"{norm}.running_mean"],
            variance=tensors[f"{norm}.running_var"],
            epsilon=model.get_layer(norm).epsilon,
        )

    folded = {name: tensors[name] for name in HEAD if name in tensors}
    for each in convolutions(architecture):
        kernel = tensors[f"{each.name}.weight"]
        norm = None if each.norm is None else statistics(each.norm)
        folded |= fold_convolution(each.name, kernel, None, norm)
    for name in standalone_norms(architecture):
        folded |= fold_norm(name, statistics(name))
    return folded


def fold_convolution(
    name: str, kernel: Array, bias: Array | None, statistics: Statistics | None
) -> Tensors:
    """Return weight and bias of a convolution that normalizes as well.

    In inference `y = gamma * (w * x + b - mean) / sqrt(variance + epsilon) + beta`,
    which is a convolution with other weights and a bias. Computed in float64.

    Args:
        name: Of the convolution, as torchvision has it.
        kernel: `(out, in / groups, height, width)`.
        bias: `(out,)`, where the convolution has one.
        statistics: Of the normalization after it, where one follows.
    """
    if statistics is None:
        bias = np.zeros(len(kernel)) if bias is None else bias
        return {f"{name}.weight": kernel, f"{name}.bias": bias.astype(np.float32)}
    scale = statistics.scale
    return {
        f"{name}.weight": (kernel * scale[:, None, None, None]).astype(np.float32),
        f"{name}.bias": statistics.shift(bias).astype(np.float32),
    }


def fold_norm(name: str, statistics: Statistics) -> Tensors:
    """Return scale and shift of a normalization that follows no convolution."""
    return {
        f"{name}.weight": statistics.scale.astype(np.float32),
        f"{name}.bias": statistics.shift().astype(np.float32),
    }
