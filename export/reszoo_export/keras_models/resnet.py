"""Recognise a ResNet in a Keras model by what its layers compute."""

from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from reszoo.errors import UsageError
from reszoo.layers import IdentityShortcut
from reszoo.specs import SPECS, Architecture, ResNetSpec, architecture
from reszoo.weights.names import Tensors
from reszoo_export.keras_models.graph import (
    Call,
    Convolution,
    Value,
    answer_of,
    caller,
    not_understood,
    read_convolution,
)

_POOLS = {"GlobalAveragePooling2D": "avg", "GlobalMaxPooling2D": "max"}

_Shortcut = Convolution | IdentityShortcut | None


@dataclass
class Block:
    """A residual block: what `layer1.0` names in torchvision.

    Attributes:
        path: Its convolutions in order.
        shortcut: A projection, an `IdentityShortcut`, or None for the input itself.
        image: Its input.
    """

    path: list[Convolution]
    shortcut: _Shortcut
    image: Value


@dataclass
class KerasResNet:
    """A ResNet that was found in a Keras model.

    Attributes:
        architecture: The same net, as reszoo builds it.
        convolutions: By torchvision's names.
        shortcuts: Those without parameters, by the names of their blocks.
        classifier: The `Dense` layer; None for a net without.
        pooled: What the classifier sees; None where nothing is pooled.
        softmax: Whether the model gives probabilities.
    """

    architecture: Architecture
    convolutions: dict[str, Convolution] = field(default_factory=dict)
    shortcuts: dict[str, IdentityShortcut] = field(default_factory=dict)
    classifier: keras.layers.Dense | None = None
    pooled: Value | None = None
    softmax: bool = False


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
    blocks, image = [], head.image
    while (block := _read_block(image)) is not None:
        blocks.append(block)
        image = block.image
    stem, first = _read_stem(image)
    blocks.reverse()
    spec, stages = _find_spec(model, stem, first, blocks)
    described = _architecture(model, spec, blocks, head)
    found = KerasResNet(described, {"conv1": first})
    found.classifier, found.pooled = head.classifier, head.pooled
    found.softmax = head.softmax
    for stage, members in enumerate(stages):
        for index, block in enumerate(members):
            _name(found, f"layer{stage + 1}.{index}", block)
    return found


def _name(found: KerasResNet, name: str, block: Block) -> None:
    for index, convolution in enumerate(block.path):
        found.convolutions[f"{name}.conv{index + 1}"] = convolution
    if isinstance(block.shortcut, Convolution):
        found.convolutions[f"{name}.downsample.0"] = block.shortcut
    elif block.shortcut is not None:
        found.shortcuts[f"{name}.shortcut"] = block.shortcut


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


def _read_block(value: Value) -> Block | None:
    """Read the block that ends in a value; None where the stem ends there."""
    relu = caller(value)
    added = caller(relu.inputs[0]) if relu is not None and is_relu(relu) else None
    if added is None or added.kind != "Add":
        return None
    if len(added.inputs) != 2:
        raise not_understood(added, "the sum of a path and its shortcut")
    one, other = added.inputs
    for path, shortcut in ((one, other), (other, one)):
        convolutions = _read_path(path)
        if convolutions is None:
            continue
        image = convolutions[0].image
        fits, by = _read_shortcut(shortcut, image)
        if fits:
            return Block(convolutions, by, image)
    raise not_understood(
        added,
        "the sum of two or three convolutions, with normalisation and ReLU between, "
        "and of what they began with",
    )


def _read_path(value: Value) -> list[Convolution] | None:
    """Read conv-relu-conv, or conv-relu-conv-relu-conv where the last is 1x1."""
    last = read_convolution(value)
    if last is None:
        return None
    path = [last]
    length = 3 if last.layer.kernel_size == (1, 1) else 2
    while len(path) < length:
        relu = caller(path[0].image)
        if relu is None or not is_relu(relu):
            return None
        before = read_convolution(relu.inputs[0])
        if before is None:
            return None
        path.insert(0, before)
    return path


def _read_shortcut(value: Value, image: Value) -> tuple[bool, _Shortcut]:
    """Tell whether a value is the image of a block, brought to a shape; and by what."""
    if _same(value, image):
        return True, None
    call = caller(value)
    if call is not None and isinstance(call.layer, IdentityShortcut):
        return _same(call.inputs[0], image), call.layer
    projection = read_convolution(value)
    fits = projection is not None and _same(projection.image, image)
    return fits, projection


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


def _read_stem(value: Value) -> tuple[str, Convolution]:
    call, stem = caller(value), "cifar"
    if call is not None and call.kind == "MaxPooling2D":
        stem, value = "imagenet", _before_pool(call)
        call = caller(value)
    if call is None or not is_relu(call):
        raise not_understood(call, "the ReLU that ends a block or the stem")
    first = read_convolution(call.inputs[0])
    if first is None:
        raise not_understood(
            caller(call.inputs[0]), "a sum, or a convolution with batch normalisation"
        )
    begin = caller(first.image)
    if begin is not None:
        raise not_understood(
            begin,
            "the image, for preprocessing belongs outside of the model: make one "
            "without it and pass preprocessing=reszoo.Preprocessing(...)",
        )
    return stem, first


def _before_pool(call: Call) -> Value:
    pool, pad = call.layer, caller(call.inputs[0])
    fits = (pool.pool_size, pool.strides, pool.padding) == ((3, 3), (2, 2), "valid")
    if not fits:
        raise not_understood(call, "3x3 pooling at stride 2 without padding of its own")
    if pad is None or pad.kind != "ZeroPadding2D":
        raise not_understood(pad, "ZeroPadding2D by 1 before the pooling")
    if pad.layer.padding != ((1, 1), (1, 1)):
        raise not_understood(pad, "ZeroPadding2D by 1 before the pooling")
    return pad.inputs[0]


def _find_spec(
    model: keras.Model, stem: str, first: Convolution, blocks: list[Block]
) -> tuple[ResNetSpec, list[list[Block]]]:
    stages: list[list[Block]] = []
    for block in blocks:
        width = block.path[0].layer.filters
        if not stages or stages[-1][0].path[0].layer.filters != width:
            stages.append([])
        stages[-1].append(block)
    made = (
        stem,
        tuple(len(stage) for stage in stages),
        tuple(stage[0].path[0].layer.filters for stage in stages),
        {len(block.path) for block in blocks},
    )
    for spec in SPECS.values():
        length = {2 if spec.block == "basic" else 3}
        if (spec.stem, spec.depths, spec.widths, length) == made:
            return spec, stages
    raise UsageError(
        f"{model.name!r} is no ResNet of the zoo: its stages have {made[1]} residual "
        f"blocks of {made[2]} channels, after a stem as for {stem}. See "
        "reszoo.list_models(). (A net without shortcuts needs its card: give export "
        "the model from reszoo, or the checkpoint that reszoo.save wrote.)"
    )


def _architecture(
    model: keras.Model, spec: ResNetSpec, blocks: list[Block], head: _Head
) -> Architecture:
    kinds = [block.shortcut for block in blocks]
    shortcut = "projection"
    if any(isinstance(kind, IdentityShortcut) for kind in kinds):
        shortcut = "identity"
    elif all(isinstance(kind, Convolution) for kind in kinds):
        shortcut = "projection-all"
    early = any(block.path[0].layer.strides == (2, 2) for block in blocks)
    options: dict[str, Any] = {"include_top": False, "pooling": head.pooling}
    if head.classifier is not None:
        options = {"classes": head.classifier.units}
    return architecture(
        spec.name,
        input_shape=model.input_shape[1:],
        shortcut=shortcut,
        stride_in="1x1" if early and spec.block == "bottleneck" else "3x3",
        **options,
    )


def classifier_tensors(dense: keras.layers.Dense) -> Tensors:
    """Return weight and bias of a classifier in torchvision's layout."""
    kernel = np.asarray(keras.ops.convert_to_numpy(dense.kernel))
    bias = np.zeros(dense.units, np.float32)
    if dense.use_bias:
        bias = np.asarray(keras.ops.convert_to_numpy(dense.bias))
    return {"fc.weight": np.ascontiguousarray(kernel.T), "fc.bias": bias}
