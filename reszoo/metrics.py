"""Predictions of a model in memory, and how good predictions are."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from reszoo.preprocessing import Pixels, Preprocessing
from reszoo.resnet import logits_model

Answering = Callable[[tf.Tensor], dict[str, tf.Tensor]]


def inference_function(model: keras.Model, record: Preprocessing) -> Answering:
    """Return a function from pixels to a model's answers.

    Normalisation is inside; batch normalisation uses the moving statistics and
    changes none of them.

    Args:
        model: A model from reszoo, with a classifier.
        record: How pixels are normalised.

    Returns:
        A function from uint8 `(batch, height, width, 3)` to float32 "logits" and
        "probabilities" of shape `(batch, classes)`.
    """
    logits_of = logits_model(model)

    def answer(image: tf.Tensor) -> dict[str, tf.Tensor]:
        pixels = record.normalise(tf.cast(image, tf.float32))
        logits = logits_of(pixels, training=False)
        return {"logits": logits, "probabilities": tf.nn.softmax(logits)}

    pixels = tf.TensorSpec(logits_of.input_shape, tf.uint8)
    traced: Answering = tf.function(answer, input_signature=[pixels])
    return traced


def probabilities(
    model: keras.Model, record: Preprocessing, images: Pixels, batch_size: int = 64
) -> NDArray[np.float32]:
    """Return float32 `(n, classes)` for uint8 `(n, height, width, 3)`."""
    answer = inference_function(model, record)
    parts = [
        answer(tf.constant(images[start : start + batch_size]))["probabilities"].numpy()
        for start in range(0, len(images), batch_size)
    ]
    return np.concatenate(parts)
