"""Recognise a ResNet in a Keras model by what its layers compute, and make its card.

Its batch normalization is folded into the convolution before it.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, get_args

import keras
import numpy as np

from reszoo.architecture import (
    FINAL_NORM,
    Architecture,
    Convolution,
    InputShape,
    KerasArchitecture,
    architecture,
    convolutions,
    standalone_norms,
)
from reszoo.cards import Card, library_versions
from reszoo.console import say
from reszoo.errors import UsageError
from reszoo.layers import BatchNormalization, IdentityShortcut
from reszoo.preprocessing import Preprocessing, as_size, default_preprocessing
from reszoo.specs import SPECS, Shortcut
from reszoo.weights import keras_h5
from reszoo.weights.names import Tensors
from reszoo.zoo import attached_card, own_card
from reszoo_export.keras_models import graph
from reszoo_export.keras_models.graph import Pair, Value

CAFFE = "of keras.applications"
_POOLS = {"GlobalAveragePooling2D": "avg", "GlobalMaxPooling2D": "max"}


@dataclass(frozen=True)
class Head:
    """What a model makes of the output of its last stage."""

    image: Value  # that output
    pooling: str | None = None  # "avg" or "max"; None where nothing is pooled
    classifier: keras.layers.Dense | None = None
    features: Any = None  # the tensor that the classifier sees, in the model it lies in


@dataclass(frozen=True)
class KerasResNet:
    """A ResNet that was found in a Keras model."""

    architecture: Architecture  # what `build_resnet` needs for the same model
    layers: dict[str, Pair]  # by torchvision's names
    head: Head  # what follows its last stage


def read_resnet(model: keras.Model) -> KerasResNet:
    """Find the ResNet that a functional Keras model computes in inference.

    A UsageError names the layer where it computes something else.
    """
    head = _read_head(graph.answer_of(model))
    failed: list[tuple[int, UsageError]] = []
    for candidate in _candidates(model, head):
        walk = _Walk(candidate)
        try:
            walk.read(head.image)
        except UsageError as error:
            failed.append((walk.progress, error))
            continue
        return KerasResNet(candidate, walk.layers, head)
    # The candidate that explains most of the model fails at the layer to tell of.
    raise max(failed, key=lambda each: each[0])[1]


def _candidates(model: keras.Model, head: Head) -> list[Architecture]:
    """List the architectures whose kernels have the shapes of a model's, or raise."""
    options: dict[str, Any] = {"include_top": False, "pooling": head.pooling}
    if head.classifier is not None:
        options = {"classes": head.classifier.units}
    options["input_shape"] = model.input_shape[1:]
    found = Counter(
        tuple(layer.kernel.shape)
        for layer in graph.all_layers(model)
        if isinstance(layer, keras.layers.Conv2D)
    )
    differences: dict[Architecture, int] = {}
    for made in _architectures(options):
        listed = Counter(each.keras_shape for each in convolutions(made))
        differences[made] = ((found - listed) + (listed - found)).total()
    nearest = min(differences, key=lambda each: differences[each])
    if differences[nearest]:
        raise UsageError(
            f"{model.name!r} is no model of reszoo. The nearest, {nearest.name}, "
            f"differs in the shapes of {differences[nearest]} kernels, of its "
            f"{len(convolutions(nearest))} and the model's {found.total()}. See "
            "reszoo.list_models(). (A model from a ResNetSpec of your own needs its "
            "card: give export the model from reszoo.build, or its checkpoint.)"
        )
    return [made for made, count in differences.items() if not count]


def _architectures(options: dict[str, Any]) -> Iterator[Architecture]:
    # First as the rows of the table are, for two may differ in their shortcuts only.
    for shortcut in (None, *get_args(Shortcut)):
        for row in SPECS.values():
            if row.shortcut == "none" and shortcut is not None:
                continue
            for stride_in in ("3x3", "1x1")[: 2 if row.block == "bottleneck" else 1]:
                yield architecture(
                    row, shortcut=shortcut, stride_in=stride_in, **options
                )


class _Walk:
    """Reads a model from its features to its image, expecting an architecture."""

    def __init__(self, expected: Architecture) -> None:
        self.expected = expected
        self.is_pre = expected.spec.activation_order == "pre"
        self.progress = 0
        self.layers: dict[str, Pair] = {}

    def read(self, value: Value) -> None:
        listed = groupby(convolutions(self.expected), lambda each: each.block)
        stem, *blocks = [list(members) for _, members in listed]
        if self.is_pre:
            value = self.norm(self.relu(value, "the last stage"), FINAL_NORM)
        for block in reversed(blocks):
            value = self.block(value, block)
        self.stem(value, stem)

    def block(self, value: Value, listed: list[Convolution]) -> Value:
        name = listed[0].block
        if not self.is_pre:
            value = self.relu(value, name)
        if self.expected.shortcut == "none":
            return self.path(value, listed)[1]
        is_sum = value.kind == "Add" and len(value.inputs) == 2
        graph.expect(is_sum, value, f"the sum of a path and its shortcut in {name}")
        start, errors = self.progress, []
        for main, shortcut in (value.inputs, value.inputs[::-1]):
            self.progress = start
            try:
                given, image = self.path(main, listed)
                self.shortcut(shortcut, image, given, listed)
                return image
            except UsageError as error:
                errors.append((self.progress, error))
        self.progress, nearest = max(errors, key=lambda each: each[0])
        raise nearest

    def path(self, value: Value, listed: list[Convolution]) -> tuple[Value, Value]:
        """Return what the first convolution sees, and the input of the block."""
        path = [each for each in listed if not each.is_shortcut]
        for each in reversed(path):
            if each is not path[-1]:
                value = self.relu(value, each.name)
            value = self.convolution(value, each)
        if path[0].norm_before is None:
            return value, value
        before = self.relu(value, path[0].norm_before)
        return value, self.norm(before, path[0].norm_before)

    def shortcut(
        self, value: Value, image: Value, given: Value, listed: list[Convolution]
    ) -> None:
        """Check that a value is the input of a block, brought to its output's shape."""
        last = listed[-1]
        stride = math.prod(each.stride for each in listed)
        grows = last.filters != listed[0].in_channels
        if last.is_shortcut:
            value, image = self.convolution(value, last), given
            if last.pool > 1:
                fits = _pools(value, "AveragePooling2D", 2, last.pool, "same")
                graph.expect(fits, value, f"2x2 average pooling before {last.name}")
                value = value.source
        elif stride > 1 or grows:
            layer = value.layer
            fits = isinstance(layer, IdentityShortcut) and (
                (layer.filters, layer.stride) == (last.filters, stride)
            )
            # Every second pixel, as keras.applications writes it.
            every = not grows and _pools(value, "MaxPooling2D", 1, stride, "valid")
            expected = f"a shortcut of stride {stride} and zero channels in "
            graph.expect(fits or every, value, expected + last.block)
            value = value.source
        graph.expect(value is image, value, f"the input of the block {last.block}")

    def stem(self, value: Value, listed: list[Convolution]) -> None:
        if self.expected.spec.stem != "3x3":
            expected = "3x3 max-pooling at stride 2 without padding of its own"
            graph.expect(_pools(value, "MaxPooling2D", 3, 2, "valid"), value, expected)
            value = value.source
            pad = value.kind == "ZeroPadding2D" and value.layer.padding
            expected = "ZeroPadding2D by 1 before the pooling"
            graph.expect(pad == ((1, 1), (1, 1)), value, expected)
            value = value.source
        for each in reversed(listed):
            if each is not listed[-1] or not self.is_pre:
                value = self.relu(value, each.name)
            value = self.convolution(value, each)
        expected = "the input, because preprocessing must be outside the model: remove"
        told = f"{expected} it and pass preprocessing=reszoo.Preprocessing(...)"
        graph.expect(value.layer is None, value, told)

    def relu(self, value: Value, name: str) -> Value:
        graph.expect(is_relu(value), value, f"the ReLU after {name}")
        self.progress += 1
        return value.source

    def norm(self, value: Value, name: str) -> Value:
        self.layers[name] = None, graph.read_norm(value, name)
        return value.source

    def convolution(self, value: Value, expected: Convolution) -> Value:
        self.layers[expected.name], image = graph.read_convolution(value, expected)
        self.progress += 1
        return image


def _read_head(value: Value) -> Head:
    if softmax := _is_softmax(value):
        value = value.source
    classifier, features = None, None
    if type(value.layer) is keras.layers.Dense:
        classifier, activation = value.layer, value.layer.activation
        known = activation in (keras.activations.linear, keras.activations.softmax)
        fits = known and classifier.quantization_mode is None
        expected = "a classifier that ends in logits or softmax, after the pooling"
        graph.expect(fits, value, expected)
        softmax = softmax or activation is keras.activations.softmax
        (features,), value = value.node.input_tensors, value.source
    fits = classifier is not None or not softmax
    graph.expect(fits, value, "a Dense layer before the softmax")
    if value.kind == "Flatten" and value.source.tensor.ndim == 2:
        value = value.source
    pooling = _POOLS.get(value.kind)
    if pooling and value.layer.keepdims:
        pooling = None
    fits = classifier is None or pooling == "avg"
    graph.expect(fits, value, "GlobalAveragePooling2D before the classifier")
    if pooling is None:
        return Head(value)
    return Head(value.source, pooling, classifier, features)


def _is_softmax(value: Value) -> bool:
    if isinstance(value.layer, keras.layers.Activation):
        return bool(value.layer.activation is keras.activations.softmax)
    return value.kind == "Softmax" and value.layer.axis == -1


def is_relu(value: Value) -> bool:
    """Tell whether a value is max(x, 0) and nothing else."""
    layer = value.layer
    if isinstance(layer, keras.layers.Activation):
        return bool(layer.activation is keras.activations.relu)
    if isinstance(layer, keras.layers.ReLU):
        changed = (layer.max_value, layer.negative_slope, layer.threshold)
        return not any(changed) and layer.max_value is None
    return value.kind == "Relu"


def _pools(value: Value, kind: str, size: int, stride: int, padding: str) -> bool:
    layer, wanted = value.layer, ((size, size), (stride, stride), padding)
    fits = value.kind == kind
    return fits and wanted == (layer.pool_size, layer.strides, layer.padding)


def is_from_reszoo(model: keras.Model) -> bool:
    """Tell whether a model has a card, and layers named as torchvision's modules."""
    with suppress(UsageError):
        return bool(own_card(model))
    return False


def labels_of_scores(model: keras.Model) -> tuple[str, ...] | None:
    """Return the labels of a model from reszoo inside another that gives its scores."""
    value = graph.answer_of(model)
    while value.kind in ("Softmax", "Activation"):
        value = value.source
    for each in graph.all_layers(model):
        if isinstance(each, keras.Model) and value.layer in each.layers:
            return own_card(each).card.labels if is_from_reszoo(each) else None
    return None


def is_resnet(model: keras.Model) -> bool:
    """Tell whether a plain Keras model is a ResNet whose structure is understood."""
    graph.answer_of(model)
    with suppress(UsageError):
        return bool(read_resnet(model))
    return False


def read_keras_model(
    model: keras.Model, preprocessing: Preprocessing | None = None
) -> tuple[Card, Tensors, bool]:
    """Find the ResNet in a plain Keras model, and what is known of it.

    Preprocessing of None takes that of the model from reszoo inside it, or of
    `keras.applications`. Returns a card made of what is known; the tensors of a folded
    model that takes RGB; and whether this one takes BGR less the means of Caffe. A
    UsageError if it is no ResNet that is understood, or nothing tells how pictures were
    shown to it.
    """
    resnet = read_resnet(model)
    models = [each for each in graph.all_layers(model) if isinstance(each, keras.Model)]
    attached = filter(None, map(attached_card, [model, *models]))
    inside = next((each.card for each in attached), None)
    first = convolutions(resnet.architecture)[0].name
    if preprocessing is not None:
        kind = "given"
    elif inside is not None:
        kind, preprocessing = "of the model inside", inside.preprocessing
    else:
        kind, preprocessing = _implied(model, resnet, first)
    more: dict[str, Any] = {}
    if inside is not None and not inside.is_fresh:
        more["began_as"] = dict(inside.provenance)
    record = sized(preprocessing, resnet.architecture.input_shape)
    card = keras_card(resnet.architecture, record, kind, **more)
    tensors = fold_layers(resnet.layers, resnet.head.classifier)
    is_bgr = kind == CAFFE
    if is_bgr:
        tensors[f"{first}.weight"] = tensors[f"{first}.weight"][:, ::-1]
    return card, tensors, is_bgr


def _implied(
    model: keras.Model, resnet: KerasResNet, first: str
) -> tuple[str, Preprocessing]:
    """Tell by its make how pictures were shown to a model."""
    (stem, _), spec = resnet.layers[first], resnet.architecture.spec
    if any(isinstance(norm, BatchNormalization) for _, norm in resnet.layers.values()):
        say(
            f"{model.name!r} has lost its card: pictures are normalised as for a fresh "
            f"{spec.name}. Where that is wrong, pass preprocessing=."
        )
        return "of a fresh model from reszoo", default_preprocessing(spec)
    # What keras.applications calls its first convolution in every ResNet.
    if stem is not None and stem.name == "conv1_conv":
        is_v2 = FINAL_NORM in resnet.layers
        kind = f"of keras.applications' {spec.name}" if is_v2 else CAFFE
        return kind, keras_h5.preprocessing(v2=is_v2)
    raise unknown_preprocessing(model.name, resnet.architecture.input_shape)


def unknown_preprocessing(name: str, shape: InputShape) -> UsageError:
    """Return the error for a model of which nothing tells how it was shown images."""
    *sides, channels = shape
    size, halves = as_size([side or 224 for side in sides]), (0.5,) * channels
    example = (
        f"reszoo.Preprocessing(train_size={size}, eval_size={size}, crop_pct=1.0, "
        f'interpolation="bilinear", mean={halves}, std={halves})'
    )
    return UsageError(
        "Nothing tells how images were shown to a Keras model that neither reszoo nor "
        "keras.applications built and that does not begin with a Rescaling layer. "
        f"Received: {name!r}; pass preprocessing=, whose mean and std belong to RGB in "
        f"0..1, for example {example} for inputs in -1..1, mean 0 and std 1 for inputs "
        "in 0..1, or mean 0 and std 1/255 for inputs in 0..255."
    )


def keras_card(
    made: Architecture | KerasArchitecture,
    record: Preprocessing,
    kind: str,
    **provenance: Any,
) -> Card:
    """Return the card of a Keras model; `kind` is where its preprocessing is from."""
    return Card(
        architecture=made, labels=None, preprocessing=record,
        provenance={"source": "a Keras model", "preprocessing": kind, **provenance},
        versions=library_versions(),
    )  # fmt: skip


def sized(record: Preprocessing, shape: InputShape) -> Preprocessing:
    """Return preprocessing for images of a model's size."""
    *sides, _ = shape
    if None in sides:
        return record
    return replace(record, train_size=as_size(sides), eval_size=as_size(sides))


def fold(model: keras.Model) -> Tensors:
    """Return the tensors of a model from reszoo, with batch normalization folded."""
    architecture = own_card(model).card.resnet
    layers = {layer.name: layer for layer in model.layers}
    if mode := getattr(layers.get("fc"), "quantization_mode", None):
        raise UsageError(
            f"Formats such as tflite-int8 quantize a model themselves. Received: "
            f"{model.name!r}, quantized by Keras ({mode}); export it as it was before."
        )
    listed = convolutions(architecture)
    pairs = {each.name: (layers[each.name], layers.get(each.norm)) for each in listed}
    pairs |= {name: (None, layers[name]) for name in standalone_norms(architecture)}
    return fold_layers(pairs, layers.get("fc"))


def fold_layers(layers: Mapping[str, Pair], classifier: Any) -> Tensors:
    """Return the tensors of a folded model; those of the `Dense` layer stay.

    By torchvision's names, as the layers. A convolution gets weight and bias of one
    that normalizes as well. In inference
    `y = gamma * (w * x + b - mean) / sqrt(variance + epsilon) + beta`, which is a
    convolution with other weights and a bias. Computed in float64. Without a
    convolution, a scale and a shift remain.
    """
    tensors: Tensors = {}
    for name, (convolution, norm) in layers.items():
        weight: Any = np.float32(1)
        bias: Any = np.float32(0)
        if convolution is not None:
            weight = graph.as_numpy(convolution.kernel).transpose(3, 2, 0, 1)
            bias = np.zeros(len(weight), np.float32)
            bias = graph.as_numpy(convolution.bias) if convolution.use_bias else bias
        if norm is not None:
            moments = norm.moving_mean, norm.moving_variance
            mean, variance = (graph.as_numpy(x).astype(np.float64) for x in moments)
            gamma = graph.as_numpy(norm.gamma) if norm.scale else 1
            beta = graph.as_numpy(norm.beta) if norm.center else 0
            scale = gamma / np.sqrt(variance + norm.epsilon)
            bias = beta - (mean - bias) * scale
            weight = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
        tensors[f"{name}.weight"] = weight.astype(np.float32)
        tensors[f"{name}.bias"] = bias.astype(np.float32)
    if classifier is not None:
        kernel = graph.as_numpy(classifier.kernel).T
        offset = classifier.bias if classifier.use_bias else np.zeros(len(kernel))
        tensors["fc.weight"] = np.ascontiguousarray(kernel)
        tensors["fc.bias"] = graph.as_numpy(offset).astype(np.float32)
    return tensors
