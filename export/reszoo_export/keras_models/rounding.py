"""Measure by how much rounding changes a model's probabilities.

A deep model with random weights may amplify the rounding of float32 a hundred times, a
trained one hardly. What rounding explains is no fault of a file.
"""

import math

import keras
import numpy as np
import tensorflow as tf

from reszoo.preprocessing import Preprocessing
from reszoo_export.keras_models.classifier import Scores, copy_classifier, turn_channels
from reszoo_export.runtimes import ModelOutput, softmax
from reszoo_export.verification.reference import synthetic_images

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

    Args:
        model: The classifier.
        copy: Of it in float32.
        scores: The end of the model.
        preprocessing: How images are shown to it.
        bgr: Whether the model takes BGR.

    Returns:
        The largest change of a probability by computing in float32, and by rounding
        weights to float16; each is rounded up to a power of 2, so that it is the same
        in the next export, and 0 where the usual limits allow it.
    """
    images = synthetic_images(preprocessing.eval_size)
    pixels = preprocessing.normalise(images.astype(np.float64))
    try:
        exact = copy_classifier(model, scores, dtype="float64")
        if bgr:
            turn_channels(exact)
        expected = _probabilities(exact, pixels, scores)
        of_float32 = _probabilities(copy, pixels.astype(np.float32), scores)
        for layer in exact.layers:
            layer.set_weights([_float16(each) for each in layer.get_weights()])
        of_float16 = _probabilities(exact, pixels, scores)
    except _ONLY_FLOAT32:
        return 0.0, 0.0
    changes = [np.abs(each - expected).max() for each in (of_float32, of_float16)]
    first, second = map(_rounded_up, map(float, changes), _LEAST)
    return first, second


def _probabilities(model: keras.Model, pixels: object, scores: Scores) -> ModelOutput:
    logits = np.asarray(model(pixels, training=False), np.float64)
    if scores.is_multilabel:
        both = np.stack([np.zeros_like(logits), logits], axis=-1)
        return softmax(both)[..., 1]
    return softmax(logits)


def _float16(weights: np.ndarray) -> np.ndarray:
    # Kernels only, as in the files.
    return weights.astype(np.float16) if weights.ndim > 1 else weights


def _rounded_up(change: float, least: float) -> float:
    if not least < change < math.inf:
        return 0.0
    return float(2.0 ** math.ceil(math.log2(change)))
