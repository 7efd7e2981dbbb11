"""The model as integers compute it, built from Keras layers.

Some of its convolutions select channels with kernels of zeros and ones: `INSIDE` and
the shortcuts of option A. Their integers are exactly those of their input, and every
runtime and accelerator has an operator for them, which is not so for padding with a
constant and for slices with a stride.
"""

from collections.abc import Mapping
from dataclasses import replace

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from reszoo.layers import IdentityShortcut, ScaleShift
from reszoo.preprocessing import Preprocessing
from reszoo_export.quantization.grids import LEVELS as LEVELS
from reszoo_export.serving import Serving

# Least and greatest value of an activation, by the layer that gives it.
Ranges = dict[str, tuple[float, float]]
Weights = dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]
INPUT_RANGE = (0.0, 255.0)
# Their integers stand for what those of their input stand for.
_PASSING = (
    "AveragePooling2D", "IdentityShortcut", "InputLayer", "MaxPooling2D",
    "ZeroPadding2D",
)  # fmt: skip
# The layer before the first convolution: the picture's channels, and one that is 255
# inside the picture, where padding makes it 0 outside.
INSIDE = "inside"


class FakeQuantize(keras.layers.Layer):  # type: ignore[misc]
    """Round to the 256 steps of a range, which can be set anew; any shape."""

    def __init__(self, span: tuple[float, float], **options: object) -> None:
        super().__init__(trainable=False, **options)
        low, high = map(keras.initializers.Constant, span)
        self.low = self.add_weight((), low, name="low")
        self.high = self.add_weight((), high, name="high")

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Return the inputs, rounded."""
        return tf.quantization.fake_quant_with_min_max_vars(
            inputs, self.low.value, self.high.value
        )


def quantized_layers(model: keras.Model) -> list[str]:
    """List the layers after which activations are rounded, input first.

    Not before a ReLU, which runtimes compute with the layer before it; and not the
    last, whose answer is what people read: it stays in floating point.
    """
    # By the layer's output: the classes of the layers that take it.
    users: dict[int, list[str]] = {}
    for layer in model.layers[1:]:
        for tensor in _inputs(layer):
            users.setdefault(id(tensor), []).append(type(layer).__name__)
    return [
        layer.name
        for layer in model.layers
        if type(layer).__name__ not in _PASSING
        and layer.output is not model.output
        and users.get(id(layer.output)) != ["ReLU"]
    ]


def byte_weights(model: keras.Model, record: Preprocessing) -> Weights:
    """Return kernels and biases of a model without batch norm, for bytes as they are.

    The first convolution normalises: its kernel is scaled, and what normalisation adds
    becomes the weight of the channel that `INSIDE` adds. Padding in front of it then
    still is the mean image, as in the float model, and bytes stay exact.
    """
    layers = (layer for layer in model.layers if hasattr(layer, "kernel"))
    weights: Weights = {x.name: (x.kernel.numpy(), x.bias.numpy()) for x in layers}
    first = next(iter(weights))
    kernel, bias = weights[first]
    std = np.asarray(record.std)[:, None]
    offset = (-np.asarray(record.mean)[:, None] / std * kernel).sum(2, keepdims=True)
    bytes_kernel = np.concatenate([kernel / std, offset], axis=2) / 255
    weights[first] = bytes_kernel.astype(np.float32), bias
    return weights


def build_integer_model(
    model: keras.Model, weights: Weights, ranges: Mapping[str, tuple[float, float]]
) -> keras.Model:
    """Build a copy of a model with other weights and rounded activations, by layer.

    Nothing is rounded that has no range. It is a functional model from pixels in
    0..255; `FakeQuantize` layers are called as the layer before them with ".range"
    behind.
    """
    image = keras.Input(model.input_shape[1:], name="image")
    pixels = FakeQuantize(INPUT_RANGE, name="image.range") if ranges else None
    channels = image.shape[-1]
    fill = keras.initializers.Constant([*channels * [0.0], INPUT_RANGE[1]])
    kernel = np.eye(channels, channels + 1)
    add_inside = _selection(INSIDE, kernel, bias_initializer=fill)
    inside = _rounded(pixels, add_inside(_rounded(pixels, image)))
    # By tensor of the model: its twin, and what rounds it.
    values, rounders = {id(model.input): inside}, {id(model.input): pixels}
    for layer in model.layers[1:]:
        sources = [id(tensor) for tensor in _inputs(layer)]
        given = [values[source] for source in sources]
        twin = _twin(layer)
        if ranges and isinstance(layer, ScaleShift):
            # A factor for each channel is exact as one weight for each channel, and
            # runtimes quantize the weights of convolutions, not the factors of MUL.
            twin = keras.layers.DepthwiseConv2D(1, name=layer.name, dtype="float32")
        value = twin(given if len(given) > 1 else given[0])
        passes = type(layer).__name__ in _PASSING
        rounder = rounders[sources[0]] if passes else None
        if layer.name in ranges:
            rounder = FakeQuantize(ranges[layer.name], name=f"{layer.name}.range")
        is_computed = layer.name in ranges or isinstance(layer, IdentityShortcut)
        values[id(layer.output)] = _rounded(rounder if is_computed else None, value)
        rounders[id(layer.output)] = rounder
    made = keras.Model(image, values[id(model.output)], name=model.name)
    own = {layer.name: layer.get_weights() for layer in model.layers if layer.weights}
    for name, arrays in {**own, **weights}.items():
        twin = made.get_layer(name)
        shapes = [weight.shape for weight in twin.weights]
        twin.set_weights(list(map(np.reshape, arrays, shapes)))
    return made


def _rounded(rounder: FakeQuantize | None, value: object) -> object:
    return value if rounder is None else rounder(value)


def _twin(layer: keras.layers.Layer) -> keras.layers.Layer:
    """Return a new layer of the same configuration: the model keeps its own."""
    if not isinstance(layer, IdentityShortcut):
        return type(layer).from_config(layer.get_config())
    channels = layer.input.shape[-1]
    kernel = np.eye(channels, layer.filters, (layer.filters - channels) // 2)
    return _selection(layer.name, kernel, strides=layer.stride, use_bias=False)


def _selection(
    name: str, kernel: NDArray[np.float64], **options: object
) -> keras.layers.Layer:
    """Return a 1x1 convolution with a kernel `(inputs, outputs)` of zeros and ones."""
    return keras.layers.Conv2D(
        kernel.shape[-1], 1,
        kernel_initializer=keras.initializers.Constant(kernel[None, None]),
        data_format="channels_last", dtype="float32", name=name, **options,
    )  # fmt: skip


def as_bytes(serving: Serving, model: keras.Model) -> Serving:
    """Return a serving form with a model that takes bytes: it normalises by itself."""
    record = serving.card.preprocessing
    mean, std = (0.0,) * record.channels, (1 / 255,) * record.channels
    record = replace(record, mean=mean, std=std)
    return replace(
        serving, model=model, card=replace(serving.card, preprocessing=record)
    )


def _inputs(layer: keras.layers.Layer) -> list[keras.KerasTensor]:
    return layer.input if isinstance(layer.input, list) else [layer.input]
