"""Copy any Keras image classifier: flat, in float32, and ending in logits.

For models whose structure is not known. The copy has no layers that act in training
only, no nested models, and no preprocessing layers of Keras', which converters get
wrong (tf2onnx 1.17 loses the statistics of `Normalization`). Its card tells how images
were shown to it.
"""

import math
import re
from dataclasses import dataclass
from itertools import chain, count
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from reszoo.architecture import KerasArchitecture
from reszoo.cards import Card
from reszoo.errors import UsageError
from reszoo.fields import read_tables
from reszoo.layers import Conv2D
from reszoo.metrics import softmax
from reszoo.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocessing,
    Size,
    as_sides,
    as_size,
)
from reszoo.training.model import precision_policy
from reszoo.weights import keras_h5
from reszoo.zoo import attached_card
from reszoo_export.keras_models import graph, resnet
from reszoo_export.runtimes import ModelOutput
from reszoo_export.verification.reference import synthetic_images

_FLOAT32 = "float32"
# Classes of layers and operations, and functions, that make probabilities of logits.
_ENDS = {"Softmax": "softmax", "Sigmoid": "sigmoid"}
_FUNCTIONS = {getattr(keras.activations, name): name for name in _ENDS.values()}
# They change the shape of scores only.
_RESHAPING = ("Flatten", "Reshape")
# Arguments of a call that are given anew, or that images do not have.
_DROPPED = ("training", "mask")


@dataclass(frozen=True)
class Scores:
    """The end of a classifier."""

    activation: str | None  # "softmax", "sigmoid", or None where the scores are logits
    units: int  # number of scores
    layer: Any  # or operation with that activation; None where there is none

    @property
    def is_multilabel(self) -> bool:
        """Whether each of several classes has a probability of its own."""
        return self.activation == "sigmoid" and self.units > 1


def read_scores(model: keras.Model) -> Scores:
    """Tell what the scores of a classifier are, by its last operation.

    A UsageError if it is not functional, or does not give one vector of scores.
    """
    value = graph.answer_of(model)
    shape = tuple(model.outputs[0].shape)
    if len(shape) != 2 or shape[1] is None:
        raise UsageError(
            "A classifier must give one vector of class scores, (batch, classes). "
            f"Received: {model.name!r}, whose output is {shape}; add pooling and a "
            "Dense layer."
        )
    while value.kind in _RESHAPING:
        if {side for each in value.inputs for side in each.tensor.shape[1:-1]} - {1}:
            break
        value = value.source
    layer = value.layer
    kind = _FUNCTIONS.get(getattr(layer, "activation", None))
    if value.kind in _ENDS:
        # Of all scores, not along another axis.
        kind = _ENDS[value.kind] if getattr(layer, "axis", -1) == -1 else None
    if shape[1] < 2 and kind != "sigmoid":
        raise UsageError(
            "A classifier must give a score for each of at least two classes, or one "
            f"score behind a sigmoid. Received: {model.name!r} with one output."
        )
    return Scores(kind, shape[1], layer if kind else None)


def copy_classifier(
    model: keras.Model, scores: Scores, dtype: str = _FLOAT32
) -> keras.Model:
    """Return a flat copy of a functional or sequential classifier, up to its logits.

    A single score behind a sigmoid becomes two logits, of which the first is 0: their
    softmax is the same probability. A UsageError names a layer that computes in half
    precision and cannot be copied. `dtype` is what the copy computes in.
    """
    copy = _Copy(scores, dtype)
    with precision_policy(dtype):
        image = keras.Input(model.input_shape[1:], dtype=dtype, name="image")
        (logits,) = graph.run(model, [image], copy.call)
        if scores.units == 1:
            logits = SecondClass(name="logits")(logits)
        made = keras.Model(image, logits, name=model.name)
    for layer, twin in copy.twins.values():
        if twin is not layer and getattr(twin, "weights", None):
            twin.set_weights([graph.as_numpy(each) for each in layer.weights])
    return made


class _Copy:
    """Copies layers and calls them as the model does."""

    def __init__(self, scores: Scores, dtype: str) -> None:
        self.end, self.dtype = scores.layer, dtype
        self.twins: dict[int, tuple[Any, Any]] = {}
        self.names: set[str] = {"image"}

    def call(self, node: Any, values: list[Any]) -> list[Any]:
        """Return what the copy of a layer gives in a call (see `graph.run`)."""
        twin = self.twin(node.operation)
        if twin is None:
            return values[:1]
        filled = dict(zip(map(id, node.input_tensors), values, strict=True))
        given, named = node.arguments.fill_in(filled)
        named = {name: each for name, each in named.items() if name not in _DROPPED}
        return list(keras.tree.flatten(twin(*given, **named)))

    def twin(self, layer: Any) -> Any:
        """Return the copy of a layer; None where it is the last activation."""
        changes = {}
        if layer is self.end:
            is_activation = isinstance(layer, keras.layers.Activation)
            if is_activation or not hasattr(layer, "activation"):
                return None
            changes = {"activation": "linear"}
        if id(layer) not in self.twins:
            self.twins[id(layer)] = layer, self.copied(layer, changes)
        return self.twins[id(layer)][1]

    def copied(self, layer: Any, changes: dict[str, Any]) -> Any:
        name = self.unused(layer.name)
        if isinstance(layer, keras.layers.Rescaling | keras.layers.Normalization):
            return Affine.like(layer, name)
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
        names = chain([name], (f"{name}.{number}" for number in count(2)))
        found = next(each for each in names if each not in self.names)
        self.names.add(found)
        return found


class Affine(keras.layers.Layer):  # type: ignore[misc]
    """Multiply and add constants, as Keras' Rescaling and Normalization do."""

    def __init__(self, scale: Any, offset: Any, **options: Any) -> None:
        super().__init__(trainable=False, **options)
        self.scale, self.offset = scale, offset

    @classmethod
    def like(cls, layer: Any, name: str) -> "Affine":
        """Return one that does what a preprocessing layer does."""
        if isinstance(layer, keras.layers.Rescaling):
            return cls(np.float32(layer.scale), np.float32(layer.offset), name=name)
        mean, variance = (
            graph.as_numpy(each).astype(float) for each in (layer.mean, layer.variance)
        )
        deviation = np.maximum(np.sqrt(variance), keras.config.epsilon())
        scale, offset = 1 / deviation, -mean / deviation
        if layer.invert:
            scale, offset = deviation, mean
        return cls(np.float32(scale), np.float32(offset), name=name)

    def call(self, inputs: Any) -> Any:
        """Return `inputs * scale + offset`."""
        return inputs * self.scale + self.offset


class SecondClass(keras.layers.Layer):  # type: ignore[misc]
    """Put a logit of 0 before the only one: `(batch, 1)` to `(batch, 2)`."""

    def call(self, inputs: Any) -> Any:
        """Return the logits of both classes."""
        return keras.ops.pad(inputs, ((0, 0), (1, 0)))


def turn_channels(model: keras.Model) -> None:
    """Make a model that takes BGR take RGB, by the kernel of its first convolution."""
    first = next(each for each in model.layers if isinstance(each, keras.layers.Conv2D))
    kernel, *bias = first.get_weights()
    first.set_weights([kernel[:, :, ::-1], *bias])


# Less is within the usual limits.
_LEAST = (2.5e-6, 2e-3)
# Raised by layers that compute in float32 only.
_ONLY_FLOAT32 = (TypeError, ValueError, tf.errors.OpError)


def measure_rounding(
    model: keras.Model,
    copy: keras.Model,
    scores: Scores,
    preprocessing: Preprocessing,
    *,
    bgr: bool,
) -> tuple[float, float]:
    """Compare a model with itself in float64, on the synthetic images.

    A deep model with random weights may amplify the rounding of float32 a hundred
    times, a trained one hardly. What rounding explains is no fault of a file.

    Returns the largest change of a probability by computing in float32 (the copy), and
    by rounding weights to float16. Each is rounded up to a power of 2, so that it is
    the same in the next export, and 0 where the usual limits allow it.
    """
    images = synthetic_images(preprocessing.eval_size, preprocessing.channels)
    pixels = preprocessing.normalise(images.astype(np.float64))
    try:
        exact = copy_classifier(model, scores, dtype="float64")
        if bgr:
            turn_channels(exact)
        expected = _probabilities(exact, pixels, scores)
        of_float32 = _probabilities(copy, pixels.astype(np.float32), scores)
        for layer in exact.layers:
            # Kernels only, as in the files.
            layer.set_weights(
                [w.astype(np.float16) if w.ndim > 1 else w for w in layer.get_weights()]
            )
        of_float16 = _probabilities(exact, pixels, scores)
    except _ONLY_FLOAT32:
        return 0.0, 0.0
    of32, of16 = (
        float(2.0 ** math.ceil(math.log2(change))) if least < change < math.inf else 0.0
        for outputs, least in zip((of_float32, of_float16), _LEAST, strict=True)
        for change in [float(np.abs(outputs - expected).max())]
    )
    return of32, of16


def _probabilities(model: keras.Model, pixels: object, scores: Scores) -> ModelOutput:
    logits = np.asarray(model(pixels, training=False), np.float64)
    if not scores.is_multilabel:
        return softmax(logits)
    return softmax(np.stack([np.zeros_like(logits), logits], axis=-1))[..., 1]


_BYTES = (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)
# Mean and standard deviation by the names in the table; None means Caffe's.
_STATISTICS = {
    "caffe": None,
    "centred": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
}
_APPLICATIONS = read_tables("reszoo_export.keras_models", "applications.toml")
# Pixels that a model divides by at least this were bytes before.
_LARGE = 20
# Side of images that are too small to lose their border, in pixels.
_SMALL = 64


def read_classifier_card(
    model: keras.Model,
    copy: keras.Model,
    scores: Scores,
    preprocessing: Preprocessing | None = None,
    input_size: Size | None = None,
) -> tuple[Card, bool]:
    """Make the card of a classifier, and make its copy take RGB.

    Preprocessing of None is what its layers tell; `input_size` counts where the model
    is open for any size. Returns the card, and whether the model takes BGR less the
    means of Caffe, for which the copy's first kernel is changed. A UsageError if it
    takes neither RGB nor grey images, or nothing tells how they were shown to it.
    """
    shape, kind = _shape(model, preprocessing, input_size), "given"
    if preprocessing is None:
        kind, preprocessing = _implied(model, copy, shape)
    record, is_bgr = resnet.sized(preprocessing, shape), kind == resnet.CAFFE
    if is_bgr:
        turn_channels(copy)
    architecture = KerasArchitecture(
        name=model.name, input_shape=shape, classes=max(2, scores.units),
        activation="sigmoid" if scores.is_multilabel else "softmax",
        rounding=measure_rounding(model, copy, scores, record, bgr=is_bgr),
    )  # fmt: skip
    ends_in = scores.activation or "logits"
    return resnet.keras_card(architecture, record, kind, scores=ends_in), is_bgr


def _shape(
    model: keras.Model, preprocessing: Preprocessing | None, input_size: Size | None
) -> tuple[int, int, int]:
    shape = tuple(model.input_shape[1:])
    if len(shape) != 3 or shape[2] not in (1, 3):
        raise UsageError(
            "A model must take RGB images, or grey ones of 1 channel, with channels "
            f"last, to be exported. Received: {model.name!r}, whose input is {shape}."
        )
    *sides, channels = shape
    asked = input_size or (preprocessing and preprocessing.eval_size)
    if None in sides and asked:
        sides = [*as_sides(asked)]
    if None in sides:
        raise UsageError(
            "Files have a fixed image size. Received: the model "
            f"{model.name!r}, which takes any; pass input_size=."
        )
    height, width = sides
    return height, width, channels


def _implied(
    model: keras.Model, copy: keras.Model, shape: tuple[int, int, int]
) -> tuple[str, Preprocessing]:
    """Tell by a model's first layers how images were shown to it."""
    first = [node.operation for node in copy.layers[0]._outbound_nodes]
    affine = [each.scale for each in first if isinstance(each, Affine)]
    largest = (np.max(np.abs(scale)) for scale in affine)
    if len(affine) == len(first) and all(each <= 1 / _LARGE for each in largest):
        return "inside the model: RGB in 0..255", _record(_BYTES, shape)
    # Models in this one, if all their calls are given the image itself: None here.
    entered: list[tuple[keras.Model, list[Any]]] = []
    graph.run(model, [None], lambda node, _: [node] * len(node.outputs), entered)
    others = [inside for inside, given in entered if {*given} != {None}]
    takers = [inside for inside, _ in entered if inside not in others]
    for inside in (model, *takers):
        if (found := attached_card(inside)) is not None:
            return "of the model inside", found.card.preprocessing
        layers = {layer.name for layer in inside.layers}
        for row in _APPLICATIONS["models"]:
            if re.fullmatch(row["name"], inside.name) and row["layer"] in layers:
                if (statistics := _STATISTICS[row["pixels"]]) is None:
                    return resnet.CAFFE, keras_h5.preprocessing()
                kind = f"of keras.applications' {inside.name}"
                return kind, _record(statistics, shape)
    raise resnet.unknown_preprocessing(model.name, shape)


def _record(statistics: Any, shape: tuple[int, int, int]) -> Preprocessing:
    *sides, channels = shape
    mean, std = statistics
    return Preprocessing(
        train_size=as_size(sides), eval_size=as_size(sides),
        crop_pct=0.875 if min(sides) > _SMALL else 1.0, interpolation="bilinear",
        mean=mean[:channels], std=std[:channels],
    )  # fmt: skip
