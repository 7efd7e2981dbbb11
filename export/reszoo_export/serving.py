"""The serving function: pixels in, answers out, nothing left of training.

Exported files hold this function: normalisation inside, batch normalisation folded
into the convolutions, float32 throughout, traced for inference by us. (Keras' own
exporters can trace a training graph; onnx export of such a model is wrong without
an error.)
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from reszoo.cards import Card
from reszoo.checkpoints.names import Tensors, lay_in, to_tensors
from reszoo.errors import UsageError
from reszoo.resnet import build_resnet, convolution_names, normalization_name
from reszoo.zoo import get_card

INPUT = "image"


@dataclass(frozen=True)
class Serving:
    """A folded float32 net and its card, ready to be traced.

    Attributes:
        net: Normalised pixels in, logits out; no batch normalisation.
        card: Of the model that it was made from.
    """

    net: keras.Model
    card: Card

    def spec(self, batch: int | None, dtype: tf.DType) -> tf.TensorSpec:
        """Return the input's specification: `(batch, height, width, 3)`."""
        size = self.card.preprocessing.eval_size
        return tf.TensorSpec((batch, size, size, 3), dtype, INPUT)

    def function(
        self, *outputs: str, batch: int | None = None, dtype: tf.DType = tf.uint8
    ) -> Any:
        """Return a `tf.function` from pixels in 0..255 to the outputs named.

        Args:
            *outputs: "logits", "probabilities" or both.
            batch: A fixed batch size; None leaves it open.
            dtype: Of the pixels: `tf.uint8` or `tf.float32`.
        """
        answer = self._answers(outputs)
        return tf.function(answer, input_signature=[self.spec(batch, dtype)])

    def _answers(
        self, outputs: tuple[str, ...]
    ) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
        def serve(image: tf.Tensor) -> dict[str, tf.Tensor]:
            pixels = self.card.preprocessing.normalise(tf.cast(image, tf.float32))
            logits = self.net(pixels, training=False)
            answers = {
                "logits": tf.identity(logits, "logits"),
                "probabilities": tf.nn.softmax(logits, name="probabilities"),
            }
            return {name: answers[name] for name in outputs}

        return serve


def make_serving(model: keras.Model) -> Serving:
    """Make the serving form of a model; the model itself is not touched.

    Args:
        model: A model from reszoo, with a classifier and square input.

    Raises:
        UsageError: The model has no classifier, or another input than its card.
    """
    card = get_card(model)
    _check_exportable(card)
    size = card.preprocessing.eval_size
    architecture = replace(
        card.architecture, input_shape=(size, size, 3), classifier_activation=None
    )
    with _float32():
        net = build_resnet(architecture, folded=True)
    lay_in(net, fold(model), "the folded model")
    return Serving(net, card)


def float32_twin(model: keras.Model, card: Card) -> keras.Model:
    """Return a model that computes in float32: itself, or a twin with its weights.

    What is exported is held against float32. The answers of a model built under
    mixed precision differ from that by rounding which no file repeats.

    Args:
        model: A model from reszoo; batch normalisation stays as it is.
        card: Of the model.
    """
    if {layer.compute_dtype for layer in model.layers} == {"float32"}:
        return model
    with _float32():
        twin = build_resnet(card.architecture, name=model.name)
    lay_in(twin, to_tensors(model), "the model")
    return twin


def fold(model: keras.Model) -> Tensors:
    """Return a model's tensors with batch normalisation folded into convolutions.

    In inference `y = gamma * (w * x - mean) / sqrt(variance + epsilon) + beta`, which
    is a convolution with other weights and a bias. Computed in float64.
    """
    tensors = to_tensors(model)
    folded = {name: tensors[name] for name in ("fc.weight", "fc.bias")}
    for convolution in convolution_names(model):
        norm = normalization_name(convolution)
        gamma, beta, mean, variance = (
            tensors[f"{norm}.{kind}"].astype(np.float64)
            for kind in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gamma / np.sqrt(variance + model.get_layer(norm).epsilon)
        kernel = tensors[f"{convolution}.weight"] * scale[:, None, None, None]
        folded[f"{convolution}.weight"] = kernel.astype(np.float32)
        folded[f"{convolution}.bias"] = (beta - mean * scale).astype(np.float32)
    return folded


def _check_exportable(card: Card) -> None:
    if not card.architecture.include_top:
        raise UsageError(
            "Only a model with a classifier can be exported. "
            f"{card.architecture.spec} was built with include_top=False."
        )
    card.check_rgb()
    height, width, _ = card.architecture.input_shape
    size = card.preprocessing.eval_size
    if not {height, width} <= {None, size}:
        raise UsageError(
            f"The model's input must be what its preprocessing makes, {size}x{size}. "
            f"Received: a model of {height}x{width}."
        )


@contextmanager
def _float32() -> Iterator[None]:
    """Build in float32 whatever policy the user has set.

    Under mixed_float16 the converters leave operations that phones do not have.
    """
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)
