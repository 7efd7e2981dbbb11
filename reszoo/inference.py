"""The answers of a model in memory: what every exported file is held against."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from reszoo.preprocessing import Pixels, Preprocessing
from reszoo.resnet import logits_model


def inference_function(
    model: keras.Model, record: Preprocessing
) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """Return a function from pixels to a model's answers.

    Normalisation is inside; batch normalisation uses the moving statistics and
    changes none of them.

    Args:
        model: A model from reszoo, with a classifier.
        record: How pixels are normalised.

    Returns:
        A function from uint8 or float32 `(batch, height, width, 3)` in 0..255 to
        float32 "logits" and "probabilities" of shape `(batch, classes)`.
    """
    logits_of = logits_model(model)

    @tf.function(reduce_retracing=True)
    def answer(image: tf.Tensor) -> dict[str, tf.Tensor]:
        pixels = record.normalise(tf.cast(image, tf.float32))
        logits = logits_of(pixels, training=False)
        return {"logits": logits, "probabilities": tf.nn.softmax(logits)}

    return answer


def probabilities(
    model: keras.Model, record: Preprocessing, images: Pixels, batch_size: int = 64
) -> np.ndarray:
    """Return float32 `(n, classes)` for uint8 `(n, height, width, 3)`."""
    answer = inference_function(model, record)
    parts = [
        answer(tf.constant(images[start : start + batch_size]))["probabilities"].numpy()
        for start in range(0, len(images), batch_size)
    ]
    return np.concatenate(parts)
