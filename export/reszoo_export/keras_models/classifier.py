"""Copy any Keras image classifier: flat, in float32, and ending in logits.

For models whose structure is not known. The copy has no layers that act in training
only, no nested models, and no preprocessing layers of Keras', which converters get
wrong (tf2onnx 1.17 loses the statistics of `Normalization`).
"""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from reszoo.errors import UsageError
from reszoo.layers import Conv2D, Shape
from reszoo.training.model import precision_policy
from reszoo_export.keras_models.graph import (
    Call,
    Value,
    answer_of,
    as_numpy,
    caller,
)

_FLOAT32 = "float32"
# Classes of layers and operations, and functions, that make probabilities of logits.
_ENDS = {"Softmax": "softmax", "Sigmoid": "sigmoid"}
_FUNCTIONS = {
    keras.activations.softmax: "softmax",
    keras.activations.sigmoid: "sigmoid",
}
# They change the shape of scores only.
_RESHAPING = ("Flatten", "Reshape")
# Arguments of a call that are given anew, or that images do not have.
_DROPPED = ("training", "mask")


@dataclass(frozen=True)
class Scores:
    """The end of a classifier.

    Attributes:
        activation: "softmax", "sigmoid", or None where the scores are logits.
        units: Number of scores.
        call: The layer or operation with that activation.
    """

    activation: str | None
    units: int
    call: Call | None

    @property
    def is_multilabel(self) -> bool:
        """Whether each of several classes has a probability of its own."""
        return self.activation == "sigmoid" and self.units > 1


def read_scores(model: keras.Model) -> Scores:
    """Tell what the scores of a classifier are, by its last operation.

    Raises:
        UsageError: The model is not functional, or does not give one vector of scores.
    """
    value = answer_of(model)
    shape = tuple(model.outputs[0].shape)
    if len(shape) != 2 or shape[1] is None:
        raise UsageError(
            "A classifier must give one vector of class scores, (batch, classes). "
            f"Received: {model.name!r}, whose output is {shape}; add pooling and a "
            "Dense layer."
        )
    call = caller(value)
    while call is not None and _only_reshapes(call):
        call = caller(call.inputs[0])
    kind = None if call is None else _activation(call)
    if shape[1] < 2 and kind != "sigmoid":
        raise UsageError(
            "A classifier must give a score for each of at least two classes, or one "
            f"score behind a sigmoid. Received: {model.name!r} with one output."
        )
    return Scores(kind, shape[1], call if kind else None)


def _only_reshapes(call: Call) -> bool:
    sides = tuple(call.inputs[0].tensor.shape)[1:-1] if call.inputs else (None,)
    return call.kind in _RESHAPING and all(side == 1 for side in sides)


def _activation(call: Call) -> str | None:
    if call.kind in _ENDS:
        # Of all scores, not along another axis.
        return _ENDS[call.kind] if getattr(call.layer, "axis", -1) == -1 else None
    return _FUNCTIONS.get(getattr(call.layer, "activation", None))


def copy_classifier(
    model: keras.Model, scores: Scores, dtype: str = _FLOAT32
) -> keras.Model:
    """Return a flat float32 copy of a classifier that ends in logits.

    Args:
        model: Functional or sequential; it is not touched.
        scores: Its end. A single score behind a sigmoid becomes two logits, of which
            the first is 0: their softmax is the same probability.
        dtype: In which the copy computes.

    Raises:
        UsageError: A layer computes in half precision and cannot be copied.
    """
    with precision_policy(dtype):
        image = keras.Input(model.input_shape[1:], dtype=dtype, name="image")
        copy = _Copy(image, scores, dtype)
        logits = copy.value(answer_of(model))
        if scores.units == 1:
            logits = SecondClass(name="logits")(logits)
        made = keras.Model(image, logits, name=model.name)
    copy.copy_weights()
    return made


class _Copy:
    """Copies layers and calls them as the model does."""

    def __init__(self, image: Any, scores: Scores, dtype: str) -> None:
        self.image, self.dtype = image, dtype
        self.end = scores.call
        # Outputs of a call, by node and place; twins of layers.
        self.outputs: dict[Any, list[Any]] = {}
        self.twins: dict[int, tuple[Any, Any]] = {}
        self.names: set[str] = {"image"}

    def value(self, answer: Value) -> Any:
        """Return what the copy gives for a value of the model."""
        waiting = [answer]
        while waiting:
            call = caller(waiting[-1])
            if call is None or _key(call) in self.outputs:
                waiting.pop()
                continue
            before = [caller(each) for each in call.inputs]
            missing = [
                each
                for each, made in zip(call.inputs, before, strict=True)
                if made is not None and _key(made) not in self.outputs
            ]
            waiting += missing
            if not missing:
                self.outputs[_key(call)] = self.call(call)
        return self.made(answer)

    def made(self, value: Value) -> Any:
        call = caller(value)
        if call is None:
            return self.image
        return self.outputs[_key(call)][call.output.tensor._keras_history.tensor_index]

    def call(self, call: Call) -> list[Any]:
        values = [self.made(each) for each in call.inputs]
        twin = self.twin(call)
        if twin is None:
            return values[:1]
        tensors = call.node.input_tensors
        filled = {id(t): made for t, made in zip(tensors, values, strict=True)}
        given, named = call.node.arguments.fill_in(filled)
        named = {name: each for name, each in named.items() if name not in _DROPPED}
        return list(keras.tree.flatten(twin(*given, **named)))

    def twin(self, call: Call) -> Any:
        """Return the copy of a call's layer; None where it is the last activation."""
        layer = call.layer
        changes: dict[str, Any] = {}
        if self.end is not None and layer is self.end.layer:
            if not hasattr(layer, "activation") or isinstance(
                layer, keras.layers.Activation
            ):
                return None
            changes = {"activation": "linear"}
        if id(layer) not in self.twins:
            self.twins[id(layer)] = layer, self.copied(layer, changes)
        return self.twins[id(layer)][1]

    def copied(self, layer: Any, changes: dict[str, Any]) -> Any:
        name = self.unused(layer.name)
        if isinstance(layer, keras.layers.Rescaling | keras.layers.Normalization):
            return Affine(*_affine(layer), name=name)
        if isinstance(layer, keras.layers.Layer):
            changes |= {"dtype": self.dtype, "name": name}
        kind = type(layer)
        if kind is keras.layers.Conv2D and layer.groups > 1:
            # Keras' own leaves a call of XLA in the graph, which ONNX does not have.
            kind, changes = Conv2D, {**changes, "differentiable": False}
        try:
            return kind.from_config({**layer.get_config(), **changes})
        except (NotImplementedError, TypeError, ValueError) as error:
            # Without a configuration, or with one that must not be run: the layer
            # itself, which has no state that calling it would change.
            exact = getattr(layer, "compute_dtype", _FLOAT32) == _FLOAT32
            if exact and "activation" not in changes:
                return layer
            raise UsageError(
                "A layer that computes in half precision or ends in an activation must "
                "have a get_config that it can be made anew from. Received: layer "
                f"{layer.name!r} ({type(layer).__name__}: {error})."
            ) from error

    def unused(self, name: str) -> str:
        """Return a name that no layer of the copy has, as nested models may share."""
        found, number = name, 1
        while found in self.names:
            number += 1
            found = f"{name}.{number}"
        self.names.add(found)
        return found

    def copy_weights(self) -> None:
        for layer, twin in self.twins.values():
            if twin is not layer and getattr(twin, "weights", None):
                twin.set_weights([as_numpy(each) for each in layer.weights])


def _key(call: Call) -> Any:
    return id(call.node), tuple(map(_entered_key, call.output.scope))


def _entered_key(entered: Any) -> Any:
    places = (
        (id(each.tensor), tuple(map(_entered_key, each.scope)))
        for each in entered.arguments
    )
    return id(entered.model), *places


def _affine(layer: Any) -> tuple[Any, Any]:
    """Return scale and offset of a preprocessing layer."""
    if isinstance(layer, keras.layers.Rescaling):
        return np.float32(layer.scale), np.float32(layer.offset)
    mean, variance = (as_numpy(x).astype(float) for x in (layer.mean, layer.variance))
    deviation = np.maximum(np.sqrt(variance), keras.config.epsilon())
    if layer.invert:
        return np.float32(deviation), np.float32(mean)
    return np.float32(1 / deviation), np.float32(-mean / deviation)


class Affine(keras.layers.Layer):  # type: ignore[misc]
    """Multiply and add constants, as Keras' Rescaling and Normalization do.

    Input and output shape: any.
    """

    def __init__(self, scale: Any, offset: Any, **options: Any) -> None:
        super().__init__(trainable=False, **options)
        self.scale, self.offset = scale, offset

    def call(self, inputs: Any) -> Any:
        """Return `inputs * scale + offset`."""
        return inputs * self.scale + self.offset

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the shape that came."""
        return input_shape


class SecondClass(keras.layers.Layer):  # type: ignore[misc]
    """Put a logit of 0 before the only one.

    Input shape `(batch, 1)`, output shape `(batch, 2)`.
    """

    def call(self, inputs: Any) -> Any:
        """Return the logits of both classes."""
        return keras.ops.pad(inputs, ((0, 0), (1, 0)))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the shape with two classes."""
        return (*input_shape[:-1], 2)


def turn_channels(model: keras.Model) -> None:
    """Make a model that takes BGR take RGB, by the kernel of its first convolution."""
    first = next(each for each in model.layers if isinstance(each, keras.layers.Conv2D))
    kernel, *bias = first.get_weights()
    first.set_weights([kernel[:, :, ::-1], *bias])
