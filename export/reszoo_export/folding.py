"""Fold batch normalization into the convolution before it."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from reszoo.architecture import convolutions, standalone_norms
from reszoo.weights.names import Tensors
from reszoo.zoo import own_card
from reszoo_export.keras_models.graph import as_numpy


def fold(model: keras.Model) -> Tensors:
    """Return the tensors of a model from reszoo, normalization folded in; fc stays."""
    architecture = own_card(model).card.resnet
    layers = {layer.name: layer for layer in model.layers}
    listed = convolutions(architecture)
    pairs = {each.name: (layers[each.name], layers.get(each.norm)) for each in listed}
    norms = {name: layers[name] for name in standalone_norms(architecture)}
    return fold_layers(pairs, norms, layers.get("fc"))


def fold_layers(
    pairs: Mapping[str, tuple[Any, Any]], norms: Mapping[str, Any], classifier: Any
) -> Tensors:
    """Return the tensors of a folded model, under torchvision's names.

    Args:
        pairs: Each convolution and the normalization after it, None where none is.
        norms: The normalizations that follow no convolution.
        classifier: The `Dense` layer; None where the model has none.
    """
    tensors: Tensors = {}
    for name, (convolution, norm) in pairs.items():
        tensors |= _folded(name, norm, convolution)
    for name, norm in norms.items():
        tensors |= _folded(name, norm)
    if classifier is not None:
        kernel = as_numpy(classifier.kernel).T
        bias = classifier.bias if classifier.use_bias else np.zeros(len(kernel))
        tensors["fc.weight"] = np.ascontiguousarray(kernel)
        tensors["fc.bias"] = as_numpy(bias).astype(np.float32)
    return tensors


def _folded(name: str, norm: Any, convolution: Any = None) -> Tensors:
    """Return weight and bias of a convolution that normalizes as well.

    In inference `y = gamma * (w * x + b - mean) / sqrt(variance + epsilon) + beta`,
    which is a convolution with other weights and a bias. Computed in float64. Without
    a convolution, a scale and a shift remain.
    """
    weight: Any = np.float32(1)
    bias: Any = np.float32(0)
    if convolution is not None:
        weight = as_numpy(convolution.kernel).transpose(3, 2, 0, 1)
        bias = np.zeros(len(weight), np.float32)
        bias = as_numpy(convolution.bias) if convolution.use_bias else bias
    if norm is not None:
        mean, variance = map(as_numpy, (norm.moving_mean, norm.moving_variance))
        gamma = as_numpy(norm.gamma) if norm.scale else 1
        beta = as_numpy(norm.beta) if norm.center else 0
        scale = gamma / np.sqrt(variance.astype(np.float64) + norm.epsilon)
        bias = beta - (mean.astype(np.float64) - bias) * scale
        weight = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    pair = {f"{name}.weight": weight, f"{name}.bias": bias}
    return {name: array.astype(np.float32) for name, array in pair.items()}
