"""Read a convolution and its batch normalisation from a plain Keras model."""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from reszoo.checkpoints.names import Tensors
from reszoo_export.folding import Statistics, fold_one
from reszoo_export.foreign.graph import Call, Value, caller, not_understood


@dataclass
class Convolution:
    """A convolution with what stands before and after it.

    Attributes:
        layer: The convolution.
        norm: The batch normalisation after it.
        padding: Zeros on each side of its input, in pixels.
        image: Its input, before those.
    """

    layer: keras.layers.Conv2D
    norm: keras.layers.BatchNormalization
    padding: int
    image: Value

    def folded(self, name: str) -> Tensors:
        """Return weight and bias under a name, normalisation folded in."""
        kernel = _numpy(self.layer.kernel).transpose(3, 2, 0, 1)
        bias = _numpy(self.layer.bias) if self.layer.use_bias else None
        return fold_one(name, kernel, bias, self._statistics())

    def _statistics(self) -> Statistics:
        norm = self.norm
        mean, variance = _numpy(norm.moving_mean), _numpy(norm.moving_variance)
        return Statistics(
            gamma=_numpy(norm.gamma) if norm.scale else np.ones_like(mean),
            beta=_numpy(norm.beta) if norm.center else np.zeros_like(mean),
            mean=mean,
            variance=variance,
            epsilon=norm.epsilon,
        )


def read_convolution(value: Value) -> Convolution | None:
    """Read the convolution whose normalised output a value is; None for all else.

    Raises:
        UsageError: It is a convolution that no ResNet of the zoo has.
    """
    normed = caller(value)
    if normed is None or not isinstance(normed.layer, keras.layers.BatchNormalization):
        return None
    call = caller(normed.inputs[0])
    if call is None or type(call.layer) is not keras.layers.Conv2D:
        raise not_understood(call, "the convolution before a batch normalisation")
    _check_norm(normed)
    _check_plain(call)
    padding, image = _padding(call)
    return Convolution(call.layer, normed.layer, padding, image)


def _check_norm(call: Call) -> None:
    if call.layer.axis not in (-1, 3):
        raise not_understood(call, "batch normalisation over the last axis")


def _check_plain(call: Call) -> None:
    layer = call.layer
    plain = (
        layer.activation is keras.activations.linear
        and layer.groups == 1
        and layer.dilation_rate == (1, 1)
        and layer.data_format == "channels_last"
        and getattr(layer, "quantization_mode", None) is None
    )
    if not plain:
        raise not_understood(
            call,
            "a convolution without activation, groups, dilation or quantisation, with "
            "channels last",
        )


def _padding(call: Call) -> tuple[int, Value]:
    """Return how many zeros surround the input on every side, and that input."""
    layer, image = call.layer, call.inputs[0]
    side = layer.kernel_size[0]
    if layer.padding == "same" and side > 1:
        if layer.strides != (1, 1):
            raise not_understood(
                call,
                "explicit padding at stride 2, for padding='same' moves the picture "
                "with the size of the image",
            )
        return side // 2, image
    pad = caller(image)
    if pad is None or pad.kind != "ZeroPadding2D":
        return 0, image
    (top, bottom), (left, right) = pad.layer.padding
    if len({top, bottom, left, right}) > 1:
        raise not_understood(pad, "the same padding on all sides")
    return top, pad.inputs[0]


def _numpy(variable: Any) -> Any:
    return np.asarray(keras.ops.convert_to_numpy(variable))
