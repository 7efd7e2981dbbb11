"""Fold batch normalization into the convolution before it."""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from reszoo.architecture import convolutions, standalone_norms
from reszoo.weights.names import HEAD, Tensors, to_tensors
from reszoo.zoo import own_card

Array = NDArray[Any]


@dataclass(frozen=True)
class Statistics:
    """What a batch normalization does in inference, each `(channels,)`."""

    gamma: Array
    beta: Array
    mean: Array
    variance: Array
    epsilon: float

    def folded(
        self, name: str, kernel: Array | None = None, bias: Array | float = 0.0
    ) -> Tensors:
        """Return weight and bias of a convolution that normalizes as well.

        In inference `y = gamma * (w * x + b - mean) / sqrt(variance + epsilon) + beta`,
        which is a convolution with other weights and a bias. Computed in float64.

        Args:
            name: Of the convolution before it, or of the normalization itself.
            kernel: `(out, in / groups, height, width)`; None where it follows no
                convolution, so that a scale and a shift remain.
            bias: What the convolution adds, `(out,)`.
        """
        scale = self.gamma / np.sqrt(self.variance.astype(np.float64) + self.epsilon)
        shift = self.beta - (self.mean.astype(np.float64) - bias) * scale
        weight = scale if kernel is None else kernel * scale[:, None, None, None]
        return {
            f"{name}.weight": weight.astype(np.float32),
            f"{name}.bias": shift.astype(np.float32),
        }


def fold(model: keras.Model) -> Tensors:
    """Return the tensors of a model from reszoo, normalization folded in; fc stays."""
    tensors, architecture = to_tensors(model), own_card(model).card.resnet

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
        if each.norm is None:
            zeros = np.zeros(len(kernel), np.float32)
            bias = tensors.get(f"{each.name}.bias", zeros)
            folded |= {f"{each.name}.weight": kernel, f"{each.name}.bias": bias}
        else:
            folded |= statistics(each.norm).folded(each.name, kernel)
    for name in standalone_norms(architecture):
        folded |= statistics(name).folded(name)
    return folded
