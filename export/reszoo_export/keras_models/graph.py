"""Walk the graph of a Keras model, and read its convolutions."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import keras
import numpy as np

from reszoo.architecture import Convolution
from reszoo.errors import UsageError
from reszoo.layers import Conv2D

# Layers that hand on what they get unless `training=True`.
_IDLE = frozenset({
    "ActivityRegularization", "AlphaDropout", "Dropout", "GaussianDropout",
    "GaussianNoise", "Identity", "RandomBrightness", "RandomContrast", "RandomFlip",
    "RandomRotation", "RandomTranslation", "RandomZoom", "SpatialDropout2D",
    "StochasticDepth",
})  # fmt: skip


@dataclass(frozen=True)
class Value:
    """A tensor of a model, and the nested models that it lies in, outermost first."""

    tensor: Any
    scope: "tuple[_Entered, ...]" = ()

    @property
    def key(self) -> tuple[int, ...]:
        """What tells it from all other tensors, once it was made by a `Call`."""
        return (id(self.tensor), *(id(entered.model) for entered in self.scope))


@dataclass(frozen=True)
class _Entered:
    model: Any
    arguments: tuple[Value, ...]


@dataclass(frozen=True)
class Call:
    """One use of a layer."""

    layer: Any  # or an operation of `keras.ops`
    inputs: tuple[Value, ...]
    output: Value
    node: Any  # Keras' record of the call, which has its other arguments

    @property
    def kind(self) -> str:
        """Name of the layer's class."""
        return type(self.layer).__name__

    def __str__(self) -> str:
        return f"layer {self.layer.name!r} ({self.kind})"


def answer_of(model: keras.Model) -> Value:
    """Return the output of a functional or sequential model with one input.

    A UsageError if it is of another kind, or not built, or has several outputs.
    """
    if not _is_functional(model):
        raise UsageError(
            "Only functional Keras models can be exported, because their layers show "
            f"what they compute. Received: {model.name!r}, a {type(model).__name__} "
            "that is not functional or not built. Call it on keras.Input(...), and "
            "export keras.Model(image, model(image))."
        )
    if (len(model.inputs), len(model.outputs)) != (1, 1):
        raise UsageError(
            "A Keras model must have one input and one output to be exported. "
            f"Received: {model.name!r} with {len(model.inputs)} input(s) and "
            f"{len(model.outputs)} output(s)."
        )
    return Value(model.outputs[0])


def caller(value: Value) -> Call | None:
    """Return the call that made a value; None for the image itself."""
    while True:
        layer, index, position = value.tensor._keras_history
        if layer is None or isinstance(layer, keras.layers.InputLayer):
            if not value.scope:
                return None
            # What the nested model was called with.
            entered = value.scope[-1]
            places = [id(each) for each in entered.model.inputs]
            if id(value.tensor) not in places:
                name = entered.model.name
                raise UsageError(f"The input of {name!r} is not connected.")
            value = entered.arguments[places.index(id(value.tensor))]
            continue
        node = layer._inbound_nodes[index]
        inputs = tuple(Value(each, value.scope) for each in node.input_tensors)
        if _is_functional(layer):
            entered = _Entered(layer, inputs)
            value = Value(layer.outputs[position], (*value.scope, entered))
        elif _is_idle(layer):
            value = inputs[0]
        else:
            return Call(layer, inputs, value, node)


def call_of(value: Value, fits: Callable[[Call], bool], expected: str) -> Call:
    """Return the call that made a value; a UsageError if it does not fit."""
    call = caller(value)
    if call is None or not fits(call):
        raise not_understood(call, expected)
    return call


def not_understood(call: Call | None, expected: str, how: str = "") -> UsageError:
    """Return the error for a layer that does not fit a ResNet; None is the image."""
    received = f"{call or 'the input'}{how}"
    return UsageError(
        "Of Keras models only ResNets as reszoo and keras.applications build them, "
        "with one Dense layer as the head, can be exported. Expected from output to "
        f"input: {expected}. Received: {received}."
    )


def all_layers(model: keras.Model) -> list[Any]:
    """List the layers of a model and of the models in it, those included."""
    models = (layer for layer in model.layers if isinstance(layer, keras.Model))
    return [*model.layers, *chain.from_iterable(map(all_layers, models))]


def _is_functional(layer: Any) -> bool:
    # A Sequential that is not built, and a subclass, have no outputs to walk from.
    return isinstance(layer, keras.Model) and bool(getattr(layer, "outputs", None))


def _is_idle(layer: Any) -> bool:
    if isinstance(layer, keras.layers.Activation):
        return bool(layer.activation is keras.activations.linear)
    # A layer of the user's own may have such a name too.
    ours = type(layer).__module__.startswith(("keras.", "reszoo."))
    return ours and type(layer).__name__ in _IDLE


@dataclass(frozen=True)
class FoundConvolution:
    """A convolution with what stands before and after it."""

    layer: keras.layers.Conv2D
    norm: keras.layers.BatchNormalization | None  # the one after it, where one follows
    image: Value  # its input, before it is padded


def read_norm(value: Value, name: str) -> Call:
    """Return the batch normalization that gives a value; else a UsageError."""
    return call_of(
        value,
        lambda call: (
            isinstance(call.layer, keras.layers.BatchNormalization)
            and call.layer.axis in (-1, 3)
        ),
        f"the batch normalization {name} over the last axis",
    )


def read_convolution(value: Value, expected: Convolution) -> FoundConvolution:
    """Return the convolution that gives a value, with its normalization.

    A UsageError if something else does, or another convolution than expected.
    """
    norm = None
    if expected.norm is not None:
        norm = read_norm(value, expected.norm)
        value = norm.inputs[0]
    name = f"the convolution {expected.name}"
    call = call_of(
        value, lambda call: type(call.layer) in (keras.layers.Conv2D, Conv2D), name
    )
    layer, side = call.layer, expected.kernel_size
    plain = (
        layer.activation is keras.activations.linear
        and layer.dilation_rate == (1, 1)
        and layer.data_format == "channels_last"
        and getattr(layer, "quantization_mode", None) is None
    )
    if not plain:
        raise not_understood(
            call,
            "a convolution without activation, dilation or quantization, with channels "
            "last",
        )
    padding, image = _padding(call)
    made, wanted = (
        f" of {shape} weights in {groups} group(s), strides {strides}, padding {pad}"
        for shape, groups, strides, pad in (
            (tuple(layer.kernel.shape), layer.groups, layer.strides, padding),
            (expected.keras_shape, expected.groups, (expected.stride,) * 2, side // 2),
        )
    )
    if made != wanted:
        raise not_understood(call, f"{name}{wanted}", made)
    return FoundConvolution(layer, norm and norm.layer, image)


def _padding(call: Call) -> tuple[int, Value]:
    """Return how many zeros surround the input on every side, and that input."""
    layer, image = call.layer, call.inputs[0]
    side = layer.kernel_size[0]
    if layer.padding == "same" and side > 1:
        if layer.strides != (1, 1):
            raise not_understood(
                call,
                "explicit padding at stride 2, because padding='same' shifts the image "
                "depending on its size",
            )
        return side // 2, image
    pad = caller(image)
    if pad is None or pad.kind != "ZeroPadding2D":
        return 0, image
    (top, bottom), (left, right) = pad.layer.padding
    if len({top, bottom, left, right}) > 1:
        raise not_understood(pad, "the same padding on all sides")
    return top, pad.inputs[0]


def as_numpy(variable: Any) -> Any:
    """Return a variable's value, of any backend."""
    return np.asarray(keras.ops.convert_to_numpy(variable))
