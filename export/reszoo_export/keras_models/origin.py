"""Tell how images were shown to a Keras model whose structure is not known."""

import re
from typing import Any

import keras
import numpy as np

from reszoo.architecture import KerasArchitecture
from reszoo.cards import Card, library_versions
from reszoo.errors import UsageError
from reszoo.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from reszoo.weights import keras_h5
from reszoo.zoo import get_card
from reszoo_export.keras_models.classifier import Affine, Scores, turn_channels
from reszoo_export.keras_models.graph import Value, all_layers, caller
from reszoo_export.keras_models.resnet import CAFFE, is_from_reszoo, sized
from reszoo_export.keras_models.rounding import measure_rounding

_BYTES = (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)
_CENTRED = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
_TORCH = IMAGENET_MEAN, IMAGENET_STD
# Models of keras.applications by their names and a layer of theirs, and the mean and
# standard deviation of the `preprocess_input` beside them (keras 3.15,
# `applications/imagenet_utils.py`); None means BGR less Caffe's means. Those that
# normalise by themselves need no row.
_APPLICATIONS: tuple[tuple[str, str, Any], ...] = (
    (r"resnet(50|101|152)", "conv1_bn", None),
    (r"vgg1[69]", "block1_conv1", None),
    (r"resnet(50|101|152)v2", "conv1_conv", _CENTRED),
    (r"mobilenet_[\d.]+_\d+", "conv_dw_1", _CENTRED),
    (r"mobilenetv2_[\d.]+_\d+", "bn_Conv1", _CENTRED),
    (r"xception", "block1_conv1", _CENTRED),
    (r"inception_v3", "mixed0", _CENTRED),
    (r"inception_resnet_v2", "mixed_5b", _CENTRED),
    (r"NASNet", "stem_conv1", _CENTRED),
    (r"densenet\d+", "conv1_conv", _TORCH),
)
# Pixels that a model divides by at least this were bytes before.
_LARGE = 20
# Side of images that are too small to lose their border, in pixels.
_SMALL = 64


def read_classifier_card(
    model: keras.Model,
    copy: keras.Model,
    scores: Scores,
    preprocessing: Preprocessing | None = None,
    input_size: int | None = None,
) -> tuple[Card, bool]:
    """Make the card of a classifier, and make its copy take RGB.

    Args:
        model: The classifier.
        copy: Of it, flat; its first kernel is changed where the model takes BGR.
        scores: The end of the model.
        preprocessing: How images were shown to it; None for what its layers tell.
        input_size: Side of the images, where the model is open for any.

    Returns:
        The card, and whether the model takes BGR less the means of Caffe.

    Raises:
        UsageError: It does not take square RGB images, or nothing tells how they were
            shown to it.
    """
    side = _side(model, preprocessing, input_size)
    if preprocessing is not None:
        kind = "given"
    else:
        kind, preprocessing = _implied(model, copy, side)
    record, is_bgr = sized(preprocessing, (side, side, 3), model), kind == CAFFE
    if is_bgr:
        turn_channels(copy)
    architecture = KerasArchitecture(
        name=model.name,
        input_shape=(side, side, 3),
        classes=max(2, scores.units),
        activation="sigmoid" if scores.is_multilabel else "softmax",
        rounding=measure_rounding(model, copy, scores, record, bgr=is_bgr),
    )
    card = Card(
        architecture=architecture,
        labels=None,
        preprocessing=record,
        provenance={
            "source": "a Keras model",
            "preprocessing": kind,
            "scores": scores.activation or "logits",
        },
        versions=library_versions(),
    )
    return card, is_bgr


def _side(
    model: keras.Model, preprocessing: Preprocessing | None, input_size: int | None
) -> int:
    shape = tuple(model.input_shape[1:])
    if len(shape) != 3 or shape[2] != 3:
        raise UsageError(
            "A model must take RGB images with channels last, (height, width, 3), to "
            f"be exported. Received: {model.name!r}, whose input is {shape}."
        )
    height, width, _ = shape
    asked = input_size or (preprocessing and preprocessing.eval_size)
    if height == width and (height or asked):
        return int(height or asked or 0)
    if height != width:
        raise UsageError(
            "A model must take square images to be exported. "
            f"Received: {model.name!r} of {height}x{width}."
        )
    raise UsageError(
        "Files have a fixed image size. Received: the model "
        f"{model.name!r}, which takes any; pass input_size=."
    )


def _implied(
    model: keras.Model, copy: keras.Model, side: int
) -> tuple[str, Preprocessing]:
    """Tell by a model's first layers how images were shown to it."""
    first = [node.operation for node in copy.layers[0]._outbound_nodes]
    if all(isinstance(each, Affine) and _divides(each) for each in first):
        return "inside the model: RGB in 0..255", _record(_BYTES, side)
    candidates = [each for each in _models(model) if _takes_image(model, each)]
    for inside in candidates:
        if is_from_reszoo(inside):
            return "of the model inside", get_card(inside).preprocessing
        layers = {layer.name for layer in inside.layers}
        for name, layer, statistics in _APPLICATIONS:
            if re.fullmatch(name, inside.name) and layer in layers:
                if statistics is None:
                    return CAFFE, keras_h5.preprocessing()
                return f"of keras.applications' {inside.name}", _record(
                    statistics, side
                )
    example = (
        f"reszoo.Preprocessing(train_size={side}, eval_size={side}, crop_pct=1.0, "
        'interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))'
    )
    raise UsageError(
        "Nothing tells how images were shown to a Keras model that neither reszoo nor "
        "keras.applications built and that does not begin with a Rescaling layer. "
        f"Received: {model.name!r}; pass preprocessing=, whose mean and std belong to "
        f"RGB in 0..1, for example {example} for inputs in -1..1, mean 0 and std 1 for "
        "inputs in 0..1, or mean 0 and std 1/255 for inputs in 0..255."
    )


def _divides(layer: Affine) -> bool:
    return bool(np.max(np.abs(layer.scale)) <= 1 / _LARGE)


def _models(model: keras.Model) -> list[Any]:
    inside = [each for each in all_layers(model) if isinstance(each, keras.Model)]
    return [model, *inside]


def _takes_image(model: keras.Model, inside: keras.Model) -> bool:
    """Tell whether a model in another one is given the image itself."""
    if inside is model:
        return True
    calls = [node for node in _nodes(model) if node.operation is inside]
    given = [tensor for node in calls for tensor in node.input_tensors]
    return bool(given) and all(caller(Value(each)) is None for each in given)


def _nodes(model: keras.Model) -> list[Any]:
    """List the calls that lead to a model's output, not those of other models."""
    waiting, found = list(model.outputs), {}
    while waiting:
        layer, index, _ = waiting.pop()._keras_history
        node = layer._inbound_nodes[index] if layer is not None else None
        if node is not None and id(node) not in found:
            found[id(node)] = node
            waiting += node.input_tensors
    return list(found.values())


def _record(statistics: Any, side: int) -> Preprocessing:
    mean, std = statistics
    return Preprocessing(
        train_size=side,
        eval_size=side,
        crop_pct=0.875 if side > _SMALL else 1.0,
        interpolation="bilinear",
        mean=mean,
        std=std,
    )
