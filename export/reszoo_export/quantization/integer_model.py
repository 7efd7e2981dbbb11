"""The model as integers compute it, built from Keras layers."""

from collections.abc import Mapping
from dataclasses import replace

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from reszoo.layers import Shape
from reszoo.preprocessing import Preprocessing
from reszoo_export.serving import Serving

# Least and greatest value of an activation, by the layer that gives it.
Ranges = dict[str, tuple[float, float]]
Weights = dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]
INPUT_RANGE = (0.0, 255.0)
# Their integers stand for what those of their input stand for.
_PASSING = (
    "AveragePooling2D",
    "IdentityShortcut",
    "InputLayer",
    "MaxPooling2D",
    "ZeroPadding2D",
)
# Steps of an activation's range.
LEVELS = 255
# The layer that makes of a picture what the first convolution takes.
INSIDE = "inside"


class FakeQuantize(keras.layers.Layer):  # type: ignore[misc]
    """Round to the 256 steps of a range, which can be set anew.

    Input and output shape: any.
    """

    def __init__(self, span: tuple[float, float], **options: object) -> None:
        super().__init__(trainable=False, **options)
        self.low, self.high = (
            self.add_weight((), keras.initializers.Constant(end), name=name)
            for name, end in zip(("low", "high"), span, strict=True)
        )

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Return the inputs, rounded."""
        return tf.quantization.fake_quant_with_min_max_vars(
            inputs, self.low.value, self.high.value
        )

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the shape that came."""
        return input_shape


class InsideChannel(keras.layers.Layer):  # type: ignore[misc]
    """Add a channel that is 255 inside the picture; padding makes it 0 outside.

    Input shape `(batch, height, width, 3)`, output `(batch, height, width, 4)`.
    """

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Return the picture with the channel."""
        return tf.pad(inputs, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=255.0)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the shape with one more channel."""
        return (*input_shape[:-1], 4)


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
    """Return kernels and biases for a model that takes bytes as they are.

    The first convolution normalises: its kernel is scaled, and what normalisation
    adds becomes the weight of `InsideChannel`. Padding in front of it then still
    stands for the mean picture, as in the float model, and bytes stay exact.

    Args:
        model: Normalised pixels in, no batch normalisation.
        record: How pixels are normalised.
    """
    weights: Weights = {
        layer.name: (layer.kernel.numpy(), layer.bias.numpy())
        for layer in model.layers
        if hasattr(layer, "kernel")
    }
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
    """Build a model with other weights and rounded activations.

    Args:
        model: What to imitate.
        weights: By layer, as `byte_weights` gives them.
        ranges: Of the activations that are rounded, by layer; nothing else is.

    Returns:
        A functional model from pixels in 0..255; `FakeQuantize` layers are called as
        the layer before them with ".range" behind.
    """
    image = keras.Input(model.input_shape[1:], name="image")
    exact = FakeQuantize(INPUT_RANGE, name="image.range")(image) if ranges else image
    values = {id(model.input): InsideChannel(name=INSIDE)(exact)}
    for layer in model.layers[1:]:
        given = [values[id(tensor)] for tensor in _inputs(layer)]
        # A fresh layer, so that the model keeps its own.
        twin = type(layer).from_config(layer.get_config())
        value = twin(given if len(given) > 1 else given[0])
        if layer.name in ranges:
            value = FakeQuantize(ranges[layer.name], name=f"{layer.name}.range")(value)
        values[id(layer.output)] = value
    made = keras.Model(image, values[id(model.output)], name=model.name)
    own = {layer.name: layer.get_weights() for layer in model.layers if layer.weights}
    for name, arrays in {**own, **weights}.items():
        made.get_layer(name).set_weights(arrays)
    return made


def as_bytes(serving: Serving, model: keras.Model) -> Serving:
    """Return a serving form with a model that takes bytes: it normalises by itself."""
    record = replace(serving.card.preprocessing, mean=(0.0,) * 3, std=(1 / 255,) * 3)
    card = replace(serving.card, preprocessing=record)
    return replace(serving, model=model, card=card)


def set_ranges(model: keras.Model, ranges: Ranges) -> None:
    """Give a model from `build_integer_model` other ranges."""
    for name, (low, high) in ranges.items():
        layer = model.get_layer(f"{name}.range")
        layer.low.assign(low)
        layer.high.assign(high)


def _inputs(layer: keras.layers.Layer) -> list[keras.KerasTensor]:
    return layer.input if isinstance(layer.input, list) else [layer.input]
