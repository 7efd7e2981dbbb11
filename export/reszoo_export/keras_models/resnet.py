"""Recognise a ResNet in a Keras model by what its layers compute."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, get_args

import keras
import numpy as np

from reszoo.architecture import (
    FINAL_NORM,
    Architecture,
    Convolution,
    architecture,
    convolutions,
    standalone_norms,
)
from reszoo.errors import UsageError
from reszoo.layers import IdentityShortcut
from reszoo.specs import SPECS, Shortcut
from reszoo.weights.names import Tensors
from reszoo_export.folding import fold_norm
from reszoo_export.keras_models.graph import (
    Call,
    FoundConvolution,
    Value,
    all_layers,
    answer_of,
    caller,
    not_understood,
    read_convolution,
    read_norm,
    statistics_of,
)

_POOLS = {"GlobalAveragePooling2D": "avg", "GlobalMaxPooling2D": "max"}


@dataclass
class KerasResNet:
    """A ResNet that was found in a Keras model.

    Attributes:
        architecture: What `build_resnet` needs to build the same model.
        convolutions: By torchvision's names, the first one first.
        norms: The batch normalizations that follow no convolution, by name.
        classifier: The `Dense` layer; None for a model without.
        pooled: What the classifier sees; None where nothing is pooled.
        softmax: Whether the model gives probabilities.
    """

    architecture: Architecture
    convolutions: dict[str, FoundConvolution]
    norms: dict[str, keras.layers.BatchNormalization]
    classifier: keras.layers.Dense | None
    pooled: Value | None
    softmax: bool

    def folded(self) -> Tensors:
        """Return its tensors for a folded model, under torchvision's names."""
        tensors: Tensors = {}
        for name, convolution in self.convolutions.items():
            tensors |= convolution.folded(name)
        for name, norm in self.norms.items():
            tensors |= fold_norm(name, statistics_of(norm))
        if self.classifier is not None:
            tensors |= _classifier_tensors(self.classifier)
        return tensors


@dataclass
class _Head:
    classifier: keras.layers.Dense | None
    pooling: str | None
    softmax: bool
    pooled: Value | None
    image: Value


def read_resnet(model: keras.Model) -> KerasResNet:
    """Find the ResNet that a functional Keras model computes in inference.

    Raises:
        UsageError: It computes something else; names the layer.
    """
    head = _read_head(answer_of(model))
    failed: list[tuple[int, UsageError]] = []
    for candidate in _candidates(model, head):
        walk = _Walk(candidate)
        try:
            walk.read(head.image)
        except UsageError as error:
            failed.append((walk.progress, error))
            continue
        names = [each.name for each in convolutions(candidate)]
        return KerasResNet(
            architecture=candidate,
            convolutions={name: walk.convolutions[name] for name in names},
            norms={name: walk.norms[name] for name in standalone_norms(candidate)},
            classifier=head.classifier,
            pooled=head.pooled,
            softmax=head.softmax,
        )
    # The candidate that explains most of the model fails at the layer to tell of.
    raise max(failed, key=lambda each: each[0])[1]


def _candidates(model: keras.Model, head: _Head) -> list[Architecture]:
    """List the architectures whose kernels have the shapes of a model's.

    Raises:
        UsageError: There are none.
    """
    options: dict[str, Any] = {"include_top": False, "pooling": head.pooling}
    if head.classifier is not None:
        options = {"classes": head.classifier.units}
    options["input_shape"] = model.input_shape[1:]
    found = Counter(
        tuple(layer.kernel.shape)
        for layer in all_layers(model)
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
        self.convolutions: dict[str, FoundConvolution] = {}
        self.norms: dict[str, keras.layers.BatchNormalization] = {}

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
        call = caller(value)
        if call is None or call.kind != "Add" or len(call.inputs) != 2:
            raise not_understood(call, f"the sum of a path and its shortcut in {name}")
        start, errors = self.progress, []
        for main, shortcut in (call.inputs, call.inputs[::-1]):
            try:
                given, image = self.path(main, listed)
                self.shortcut(shortcut, image, given, listed)
            except UsageError as error:
                errors.append((self.progress, error))
                self.progress = start
            else:
                return image
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
        last, source = listed[-1], value
        stride = math.prod(each.stride for each in listed)
        if last.is_shortcut:
            source, image = self.convolution(value, last), given
            if last.pool > 1:
                source = _before_average(source, last)
        elif stride > 1 or last.filters != listed[0].in_channels:
            call = caller(value)
            if call is None or not isinstance(call.layer, IdentityShortcut):
                raise not_understood(
                    call, f"a shortcut of zero channels in {last.block}"
                )
            if (call.layer.filters, call.layer.stride) != (last.filters, stride):
                raise not_understood(call, f"a shortcut of stride {stride}")
            source = call.inputs[0]
        if not _same(source, image):
            raise not_understood(caller(source), f"the input of the block {last.block}")

    def stem(self, value: Value, listed: list[Convolution]) -> None:
        if self.expected.spec.stem != "3x3":
            value = _before_pool(value)
        if not self.is_pre:
            value = self.relu(value, listed[-1].name)
        for each in reversed(listed):
            if each is not listed[-1]:
                value = self.relu(value, each.name)
            value = self.convolution(value, each)
        if (begin := caller(value)) is not None:
            raise not_understood(
                begin,
                "the image, for preprocessing belongs outside of the model: make one "
                "without it and pass preprocessing=reszoo.Preprocessing(...)",
            )

    def relu(self, value: Value, name: str) -> Value:
        call = caller(value)
        if call is None or not is_relu(call):
            raise not_understood(call, f"the ReLU after {name}")
        self.progress += 1
        return call.inputs[0]

    def norm(self, value: Value, name: str) -> Value:
        call = read_norm(value, name)
        self.norms[name] = call.layer
        return call.inputs[0]

    def convolution(self, value: Value, expected: Convolution) -> Value:
        found = read_convolution(value, expected)
        self.convolutions[expected.name] = found
        self.progress += 1
        return found.image


def _read_head(value: Value) -> _Head:
    call, softmax = caller(value), False
    if call is not None and _is_softmax(call):
        softmax, value = True, call.inputs[0]
        call = caller(value)
    classifier = None
    if call is not None and type(call.layer) is keras.layers.Dense:
        classifier = call.layer
        softmax = _dense_softmax(call) or softmax
        value = call.inputs[0]
        call = caller(value)
    if softmax and classifier is None:
        raise not_understood(call, "a Dense layer before the softmax")
    if call is not None and call.kind == "Flatten" and _is_flat(call.inputs[0]):
        value = call.inputs[0]
        call = caller(value)
    pooled, pooling = value, _POOLS.get(call.kind) if call else None
    if call is None or pooling is None or call.layer.keepdims:
        if classifier is not None:
            raise not_understood(call, "GlobalAveragePooling2D before the classifier")
        return _Head(None, None, False, None, value)
    if classifier is not None and pooling == "max":
        raise not_understood(call, "GlobalAveragePooling2D before the classifier")
    return _Head(classifier, pooling, softmax, pooled, call.inputs[0])


def _dense_softmax(call: Call) -> bool:
    activation = call.layer.activation
    known = activation in (keras.activations.linear, keras.activations.softmax)
    if not known or call.layer.quantization_mode is not None:
        raise not_understood(
            call, "a classifier that ends in logits or softmax, after the pooling"
        )
    return bool(activation is keras.activations.softmax)


def _is_softmax(call: Call) -> bool:
    if isinstance(call.layer, keras.layers.Activation):
        return bool(call.layer.activation is keras.activations.softmax)
    return call.kind == "Softmax" and call.layer.axis == -1


def _is_flat(value: Value) -> bool:
    return len(value.tensor.shape) == 2


def _same(one: Value, other: Value) -> bool:
    first, second = caller(one), caller(other)
    if first is None or second is None:
        return first is second
    return first.output.key == second.output.key


def is_relu(call: Call) -> bool:
    """Tell whether a call is max(x, 0) and nothing else."""
    layer = call.layer
    if isinstance(layer, keras.layers.Activation):
        return bool(layer.activation is keras.activations.relu)
    if isinstance(layer, keras.layers.ReLU):
        changed = (layer.max_value, layer.negative_slope, layer.threshold)
        return not any(changed) and layer.max_value is None
    return call.kind == "Relu"


def _before_pool(value: Value) -> Value:
    call = caller(value)
    if call is None or call.kind != "MaxPooling2D":
        raise not_understood(call, "the max-pooling of the stem")
    pool, pad = call.layer, caller(call.inputs[0])
    fits = (pool.pool_size, pool.strides, pool.padding) == ((3, 3), (2, 2), "valid")
    if not fits:
        raise not_understood(call, "3x3 pooling at stride 2 without padding of its own")
    if pad is None or pad.kind != "ZeroPadding2D":
        raise not_understood(pad, "ZeroPadding2D by 1 before the pooling")
    if pad.layer.padding != ((1, 1), (1, 1)):
        raise not_understood(pad, "ZeroPadding2D by 1 before the pooling")
    return pad.inputs[0]


def _before_average(value: Value, expected: Convolution) -> Value:
    call = caller(value)
    wanted = ((2, 2), (expected.pool, expected.pool), "same")
    if call is None or call.kind != "AveragePooling2D":
        raise not_understood(call, f"the average pooling before {expected.name}")
    if (call.layer.pool_size, call.layer.strides, call.layer.padding) != wanted:
        raise not_understood(call, f"2x2 average pooling before {expected.name}")
    return call.inputs[0]


def _classifier_tensors(dense: keras.layers.Dense) -> Tensors:
    """Return weight and bias of a classifier in torchvision's layout."""
    kernel = np.asarray(keras.ops.convert_to_numpy(dense.kernel))
    bias = np.zeros(dense.units, np.float32)
    if dense.use_bias:
        bias = np.asarray(keras.ops.convert_to_numpy(dense.bias))
    return {"fc.weight": np.ascontiguousarray(kernel.T), "fc.bias": bias}
