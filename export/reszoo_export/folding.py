"""Batch normalisation, folded into the convolution before it."""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from reszoo.resnet import convolution_names, normalization_name
from reszoo.weights.names import HEAD, Tensors, to_tensors


@dataclass(frozen=True)
class Statistics:
    """What a batch normalisation does in inference, each `(channels,)`."""

    gamma: NDArray[Any]
    beta: NDArray[Any]
    mean: NDArray[Any]
    variance: NDArray[Any]
    epsilon: float


def fold(model: keras.Model) -> Tensors:
    """Return the tensors of a model from reszoo, with its normalisation folded.

    Those of the classifier are as they were.
    """
    tensors = to_tensors(model)
    folded = {name: tensors[name] for name in HEAD if name in tensors}
    for name in convolution_names(model):
        norm = normalization_name(name)
        statistics = Statistics(
            gamma=tensors[f"{norm}.weight"],
            beta=tensors[f"{norm}.bias"],
            mean=tensors[f"{norm}.running_mean"],
            variance=tensors[f"{norm}.running_var"],
            epsilon=model.get_layer(norm).epsilon,
        )
        folded |= fold_one(name, tensors[f"{name}.weight"], None, statistics)
    return folded


def fold_one(
    name: str,
    kernel: NDArray[Any],
    bias: NDArray[Any] | None,
    statistics: Statistics,
) -> Tensors:
    """Return weight and bias of a convolution that normalises as well.

    In inference `y = gamma * (w * x + b - mean) / sqrt(variance + epsilon) + beta`,
    which is a convolution with other weights and a bias. Computed in float64.

    Args:
        name: Of the convolution, as torchvision has it.
        kernel: `(out, in, height, width)`.
        bias: `(out,)`, where the convolution has one.
        statistics: Of the normalisation after it.
    """
    variance = statistics.variance.astype(np.float64)
    scale = statistics.gamma / np.sqrt(variance + statistics.epsilon)
    mean = statistics.mean.astype(np.float64)
    before = mean if bias is None else mean - bias
    return {
        f"{name}.weight": (kernel * scale[:, None, None, None]).astype(np.float32),
        f"{name}.bias": (statistics.beta - before * scale).astype(np.float32),
    }
