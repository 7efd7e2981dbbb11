"""Walk the graph of a Keras model, and read its convolutions."""

from collections.abc import Callable, Sequence
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


# A convolution and the batch normalization after it; None where one is missing.
Pair = tuple[keras.layers.Conv2D | None, keras.layers.BatchNormalization | None]


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of a model, and the use of a layer that made it."""

    tensor: Any
    layer: Any = None  # or an operation of `keras.ops`; None for the image itself
    inputs: "tuple[Value, ...]" = ()
    node: Any = None  # Keras' record of the call

    @property
    def kind(self) -> str:
        """Name of the layer's class."""
        return type(self.layer).__name__

    @property
    def source(self) -> "Value":
        """The first input of the layer."""
        return self.inputs[0]

    def __str__(self) -> str:
        if self.layer is None:
            return "the input"
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

    def made(node: Any, inputs: list[Value]) -> list[Value]:
        return [
            Value(each, node.operation, tuple(inputs), node) for each in node.outputs
        ]

    answer: Value = run(model, [Value(model.inputs[0])], made)[0]
    return answer


def run(
    model: keras.Model,
    inputs: Sequence[Any],
    apply: Callable[[Any, list[Any]], Sequence[Any]],
    entered: list[tuple[keras.Model, list[Any]]] | None = None,
) -> list[Any]:
    """Run a functional model on anything in place of tensors; return its outputs.

    `apply` gives the outputs of a call, from Keras' record of it and its inputs. Nested
    models are run in the same way, and those directly in the model are added to
    `entered` with their inputs; idle layers hand on what they get.
    """
    values = dict(zip(map(id, model.inputs), inputs, strict=False))
    by_depth = getattr(model, "_functional", model)._nodes_by_depth
    for node in chain.from_iterable(by_depth[at] for at in sorted(by_depth)[::-1]):
        if node.is_input:
            continue
        layer, given = node.operation, [values[id(each)] for each in node.input_tensors]
        made: Sequence[Any] = given[:1]
        if _is_functional(layer):
            made = run(layer, given, apply)
            if entered is not None:
                entered.append((layer, given))
        elif not _is_idle(layer):
            made = apply(node, given)
        values.update(zip(map(id, node.outputs), made, strict=True))
    return [values[id(each)] for each in model.outputs]


def expect(fits: object, value: Value, expected: str, how: str = "") -> None:
    """Refuse a layer that does not fit a ResNet."""
    if not fits:
        raise UsageError(
            "Of Keras models only ResNets as reszoo and keras.applications build them, "
            "with one Dense layer as the head, can be exported. Expected from output "
            f"to input: {expected}. Received: {value}{how}."
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


def read_norm(value: Value, name: str) -> keras.layers.BatchNormalization:
    """Return the batch normalization that gives a value; else a UsageError."""
    is_norm = isinstance(value.layer, keras.layers.BatchNormalization)
    fits = is_norm and value.layer.axis in (-1, 3)
    expect(fits, value, f"the batch normalization {name} over the last axis")
    return value.layer


def read_convolution(value: Value, expected: Convolution) -> tuple[Pair, Value]:
    """Return the convolution that gives a value, and its input before it is padded.

    A UsageError if something else gives it, or another convolution than expected.
    """
    norm = None
    if expected.norm is not None:
        norm = read_norm(value, expected.norm)
        value = value.source
    name = f"the convolution {expected.name}"
    expect(type(value.layer) in (keras.layers.Conv2D, Conv2D), value, name)
    layer, side = value.layer, expected.kernel_size
    plain = (
        layer.activation is keras.activations.linear
        and layer.dilation_rate == (1, 1)
        and layer.data_format == "channels_last"
        and getattr(layer, "quantization_mode", None) is None
    )
    usual = "a convolution without activation, dilation or quantization, with channels"
    expect(plain, value, f"{usual} last")
    padding, image = _padding(value)
    made, wanted = (
        f" of {shape} weights in {groups} group(s), strides {strides}, padding {pad}"
        for shape, groups, strides, pad in (
            (tuple(layer.kernel.shape), layer.groups, layer.strides, padding),
            (expected.keras_shape, expected.groups, (expected.stride,) * 2, side // 2),
        )
    )
    expect(made == wanted, value, f"{name}{wanted}", made)
    return (layer, norm), image


def _padding(value: Value) -> tuple[int, Value]:
    """Return how many zeros surround the input on every side, and that input."""
    layer, pad = value.layer, value.source
    side = layer.kernel_size[0]
    if layer.padding == "same" and side > 1:
        expect(
            layer.strides == (1, 1), value,
            "explicit padding at stride 2, because padding='same' shifts the image "
            "depending on its size",
        )  # fmt: skip
        return side // 2, pad
    if pad.kind != "ZeroPadding2D":
        return 0, pad
    (top, bottom), (left, right) = pad.layer.padding
    expect(top == bottom == left == right, pad, "the same padding on all sides")
    return top, pad.source


def as_numpy(variable: Any) -> Any:
    """Return a variable's value, of any backend."""
    return np.asarray(keras.ops.convert_to_numpy(variable))
