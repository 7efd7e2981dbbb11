"""The source model's own answers, with which every exported file is compared.

They come from the model itself, in its own way of taking images, not from what
export made of it.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from reszoo.errors import UsageError
from reszoo.metrics import probabilities, softmax
from reszoo.preprocessing import Pixels
from reszoo_export.keras_models.classifier import Scores, read_scores
from reszoo_export.keras_models.graph import all_layers
from reszoo_export.keras_models.resnet import Head, is_from_reszoo, read_resnet
from reszoo_export.runtimes import ModelOutput, in_batches
from reszoo_export.serving import Serving, float32_twin

Answering = Callable[[Pixels], ModelOutput]
Preparing = Callable[[Pixels], Any]
_AT_ONCE = 64


def source_answers(model: keras.Model, serving: Serving) -> Answering:
    """Return a function from images to what the files of an export must answer.

    A model that computes in half precision is asked through a float32 copy of it; the
    model, of which `serving` was made, is not touched. It is from uint8 `(n, eval_size,
    eval_size, 3)` to float32 probabilities `(n, classes)`, or features `(n,
    width)` where those are exported.
    """
    record, has_top = serving.card.preprocessing, serving.card.architecture.include_top

    def normalised(images: Pixels) -> Any:
        return record.normalise(images.astype(np.float32))

    if is_from_reszoo(model):
        twin = float32_twin(model, serving.card)
        if has_top:
            return lambda images: probabilities(
                twin, record, images, temperature=serving.card.temperature
            )
        return _in_batches(twin, normalised)
    exact = _exact(model)
    prepare = _caffe if serving.bgr else normalised
    if not has_top:
        return _in_batches(_up_to_features(exact, read_resnet(exact).head), prepare)
    answer, scores = _in_batches(exact, prepare), read_scores(exact)
    return lambda images: _probabilities(answer(images), scores)


def _probabilities(answer: ModelOutput, scores: Scores) -> ModelOutput:
    if scores.activation is None:
        return softmax(answer)
    return np.concatenate([1 - answer, answer], 1) if scores.units == 1 else answer


def _in_batches(model: keras.Model, prepare: Preparing) -> Answering:
    ask = tf.function(lambda pixels: model(pixels, training=False))
    return lambda images: in_batches(lambda few: ask(prepare(few)), images, _AT_ONCE)


def _caffe(images: Pixels) -> Any:
    # Keras' own, so that ours is held against it.
    return keras.applications.resnet.preprocess_input(images.astype(np.float32))


def _exact(model: keras.Model) -> keras.Model:
    if {layer.compute_dtype for layer in all_layers(model)} == {"float32"}:
        return model

    # Layers of a copy compute in what their configuration says, whatever the policy.
    def in_float32(layer: keras.layers.Layer) -> keras.layers.Layer:
        return type(layer).from_config({**layer.get_config(), "dtype": "float32"})

    copy = keras.models.clone_model(model, clone_function=in_float32, recursive=True)
    copy.set_weights(model.get_weights())
    return copy


def _up_to_features(model: keras.Model, head: Head) -> keras.Model:
    """Return a model that shares the layers and ends in what the classifier sees."""
    if head.pooling is None:
        pool = keras.layers.GlobalAveragePooling2D()
        return keras.Sequential([model, pool])
    if head.classifier is None:
        return model
    if head.classifier not in model.layers:
        raise UsageError(
            "The features of a model can be exported if its classifier is not inside "
            f"of another model. Received: {model.name!r}; export the model inside."
        )
    return keras.Model(model.inputs, head.features)
