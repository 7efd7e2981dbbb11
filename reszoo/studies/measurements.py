"""Gradients and activations of a model, layer by layer."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from reszoo.environment import check_backend
from reszoo.errors import UsageError

_SUMS = (keras.layers.Add,)
_ACTIVATIONS = (keras.layers.ReLU, keras.layers.Activation)


def kernels(model: keras.Model) -> list[keras.Variable]:
    """Return the trainable weights of a model that are no vectors, input first."""
    return [each for each in model.trainable_variables if len(each.shape) > 1]


@contextmanager
def statistics_restored(model: keras.Model) -> Iterator[None]:
    """Restore what a pass in training mode changes in a model of any layers."""
    statistics = model.non_trainable_variables
    before = [variable.numpy() for variable in statistics]
    try:
        yield
    finally:
        for variable, value in zip(statistics, before, strict=True):
            variable.assign(value)


def gradient_norms(model: keras.Model, x: Any, y: Any) -> dict[str, float]:
    """Measure the gradient of the loss in every layer, and change nothing.

    The loss is the mean cross-entropy of the batch, with batch normalization in
    training mode, as in a training step.

    Args:
        model: A classifier that returns logits, or ends in a softmax.
        x: A batch as the model takes it: `(batch, height, width, 3)`, normalised, or
            `(batch, features)`.
        y: Targets `(batch,)`, integers from 0.

    Returns:
        The Euclidean norm of the gradient of each kernel by the name of its layer, from
        the input to the output.

    Raises:
        UsageError: Targets and outputs do not fit, or nothing is trainable.

    Example:
        >>> norms = reszoo.gradient_norms(reszoo.mlp(50, shortcut="none"), images, y)
        >>> max(norms.values()) / min(norms.values())
    """
    check_backend("gradient_norms")
    targets, chosen = np.asarray(y), kernels(model)
    classes = model.output_shape[-1]
    is_index = targets.ndim == 1 and targets.dtype.kind in "iu" and len(targets)
    if not is_index or targets.min() < 0 or targets.max() >= classes:
        raise UsageError(
            f"y must hold targets of shape (batch,), integers from 0 to {classes - 1}. "
            f"Received: {targets.dtype} {targets.shape}."
        )
    if not chosen:
        raise UsageError(
            f"{model.name!r} has no trainable kernel. Set trainable = True."
        )
    with statistics_restored(model), tf.GradientTape() as tape:
        outputs = tf.cast(model(tf.convert_to_tensor(x), training=True), tf.float32)
        losses = keras.losses.sparse_categorical_crossentropy(
            targets, outputs, from_logits=not ends_in_softmax(model)
        )
        loss = tf.reduce_mean(losses)
    gradients = tape.gradient(loss, [each.value for each in chosen])
    return {
        each.path.rsplit("/", 1)[0]: float(tf.norm(gradient))
        for each, gradient in zip(chosen, gradients, strict=True)
    }


def ends_in_softmax(model: keras.Model) -> bool:
    """Return whether a model returns probabilities instead of logits."""
    softmax = (keras.activations.softmax, keras.layers.Softmax)
    last = model.layers[-1]
    return getattr(last, "activation", type(last)) in softmax


def activations(model: keras.Model) -> tuple[list[Any], tuple[int, ...]]:
    """Return the outputs of activation functions, and which of them end blocks.

    Sums that no activation function follows, as in pre-activation blocks, count as
    well. A block ends in a sum or the activation after it, in plain networks of reszoo
    in the activation of that name; without either, every activation counts.
    """
    functions = [each for each in model.layers if _activates(each)]
    sums = [each for each in model.layers if isinstance(each, _SUMS)]
    after = {each.name: _producer(each) for each in functions}
    followed = set(after.values())
    shown = [
        each
        for each in model.layers
        if each in functions or (each in sums and each not in followed)
    ]
    # A model without any, such as a linear one.
    shown = shown or [model.layers[-1]]
    ends = [
        index
        for index, each in enumerate(shown)
        if {each, after.get(each.name)} & set(sums) or f".{each.name}".endswith(".relu")
    ]
    return [each.output for each in shown], tuple(ends or range(len(shown)))


def _activates(layer: keras.layers.Layer) -> bool:
    linear = (None, keras.activations.linear, keras.activations.softmax)
    function = getattr(layer, "activation", None)
    return isinstance(layer, _ACTIVATIONS) or function not in linear


def _producer(layer: keras.layers.Layer) -> keras.layers.Layer | None:
    """Return the layer whose output a layer takes; None if there are several."""
    given = layer.input
    return None if isinstance(given, list) else given._keras_history.operation
