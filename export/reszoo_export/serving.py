"""The serving function: pixels in, answers out, nothing left of training.

Exported files hold this function: normalisation inside, batch normalisation folded
into the convolutions, float32 throughout, traced for inference by us. (Keras' own
exporters can trace a training graph; onnx export of such a model is wrong without
an error.) They are compared with the source model's own answers, which come from that
model itself, in its own way of taking images, not from what export made of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from reszoo import metrics
from reszoo.architecture import Architecture, KerasArchitecture
from reszoo.cards import Card
from reszoo.console import say
from reszoo.errors import UsageError
from reszoo.preprocessing import Pixels, Preprocessing, as_sides, as_size, shown_size
from reszoo.resnet import build_resnet
from reszoo.training.model import precision_policy
from reszoo.weights.names import HEAD, Tensors, assign_tensors, to_tensors
from reszoo.zoo import get_card, own_card
from reszoo_export.formats import CAM, ExportOptions
from reszoo_export.keras_models import classifier, resnet
from reszoo_export.keras_models.graph import all_layers
from reszoo_export.runtimes import ModelOutput, in_batches
from reszoo_export.verification.reference import synthetic_images

INPUT = "image"
FEATURES = "features"
Answering = Callable[[Pixels], ModelOutput]
_AT_ONCE = 64


@dataclass(frozen=True)
class Serving:
    """A float32 model and its card, ready to be traced."""

    # Normalised pixels in, logits out, or features where the options ask for them; of a
    # ResNet without batch normalisation.
    model: keras.Model
    # Of the exported function: of its image size, and without labels where it gives
    # features.
    card: Card
    options: ExportOptions = field(default_factory=ExportOptions)
    # Whether the model that it was made from takes BGR less Caffe's means, as those of
    # `keras.applications` do; the function takes RGB all the same.
    bgr: bool = False

    @property
    def is_traced(self) -> bool:
        """Whether the model's structure is not known: batch norm is not folded."""
        return isinstance(self.card.architecture, KerasArchitecture)

    @property
    def has_sigmoid(self) -> bool:
        """Whether each class has a probability of its own."""
        made = self.card.architecture
        return isinstance(made, KerasArchitecture) and made.activation == "sigmoid"

    def batch(self, default: int | None) -> int | None:
        """Return the images in a call, by default the format's; None for any number."""
        if self.options.batch == "dynamic":
            return None
        return default if self.options.batch is None else self.options.batch

    def spec(self, batch: int | None, dtype: tf.DType) -> tf.TensorSpec:
        """Return the input's specification: `(batch, height, width, channels)`."""
        shape = (batch, *self.card.preprocessing.input_shape)
        return tf.TensorSpec(shape, dtype, INPUT)

    def function(
        self, *outputs: str, batch: int | None = None, dtype: tf.DType = tf.uint8,
        by_maps: bool = False,
    ) -> Any:  # fmt: skip
        """Return a `tf.function` from pixels in 0..255 to the outputs named.

        These are "logits", "probabilities" and "cam", the classifier as a 1x1
        convolution of the last feature map (Zhou et al. 2016, arXiv:1512.04150), whose
        mean plus the bias is the logit; "features" for a model without a classifier. A
        batch of None leaves its size open. With `by_maps` logits are computed as means
        of the maps, for arithmetic that rounds or clips a mean of features otherwise.
        """
        model = metrics.with_feature_map(self.model) if CAM in outputs else self.model

        def serve(image: tf.Tensor) -> dict[str, tf.Tensor]:
            pixels = self.card.preprocessing.normalise(tf.cast(image, tf.float32))
            answer, *features = tf.nest.flatten(model(pixels, training=False))
            maps = [
                metrics.class_activation_maps(self.model, each) for each in features
            ]
            if by_maps and maps:
                # In TFLite average pooling has the range of its input.
                shifted = maps[0] + self.model.get_layer("fc").bias.value
                means = tf.nn.avg_pool2d(shifted, shifted.shape[1:3], 1, "VALID")
                answer = tf.reshape(means, tf.shape(answer))
            if not self.card.architecture.include_top:
                return {FEATURES: tf.identity(answer, FEATURES)}
            activation = tf.nn.sigmoid if self.has_sigmoid else tf.nn.softmax
            answers = {
                "logits": tf.identity(answer, "logits"),
                "probabilities": activation(answer, name="probabilities"),
            }
            if maps:
                answers[CAM] = maps[0]
            return {name: answers[name] for name in outputs}

        return tf.function(serve, input_signature=[self.spec(batch, dtype)])


def make_serving(
    model: keras.Model,
    options: ExportOptions | None = None,
    labels: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
) -> Serving:
    """Make the serving form of a model; the model itself is not touched.

    Of a model from reszoo, or any functional or sequential Keras model from one image
    to one vector of class scores. Labels are given where the card lacks or misses them,
    preprocessing where it is not what card or kind tells. A UsageError if the model is
    of another kind, has no classifier and no features were asked for, nothing tells how
    images were shown to it, or it cannot take images of the size asked for.
    """
    options = options or ExportOptions()
    known = resnet.is_from_reszoo(model)
    if labels is None and not known:
        labels = resnet.labels_of_scores(model)
    if not known and not resnet.is_resnet(model):
        return _traced(model, options, labels, preprocessing)
    if known:
        card, tensors, is_bgr = get_card(model), resnet.fold(model), False
        card = replace(card, preprocessing=preprocessing or card.preprocessing)
    else:
        card, tensors, is_bgr = resnet.read_keras_model(model, preprocessing)
    card = _labelled(card, labels)
    _check_exportable(card, options)
    if not known:
        _check_askable(card, options)
    card = _as_asked(card, options)
    if card.temperature != 1:
        # Of the logits, without an operator: kernel and bias are divided by it.
        tensors = {
            name: (value / card.temperature).astype(np.float32)
            if name in HEAD
            else value
            for name, value in tensors.items()
        }
    shape = card.preprocessing.input_shape
    architecture = replace(card.resnet, input_shape=shape, classifier_activation=None)
    folded = _float32_model(architecture, tensors, folded=True)
    return Serving(folded, card, options, bgr=is_bgr)


def _traced(
    model: keras.Model,
    options: ExportOptions,
    labels: Sequence[str] | None,
    preprocessing: Preprocessing | None,
) -> Serving:
    """Make the serving form of a classifier whose structure is not known."""
    scores = classifier.read_scores(model)
    missing = (FEATURES, CAM, *(["logits"] if scores.is_multilabel else []))
    if options.outputs in missing:
        raise UsageError(
            "A Keras model that is no ResNet has no features or class activation maps "
            "to export, and one that ends in a sigmoid for each class no logits alone. "
            "Received: "
            f"outputs={options.outputs!r} of {model.name!r}; leave outputs out."
        )
    copy = classifier.copy_classifier(model, scores)
    card, is_bgr = classifier.read_classifier_card(
        model, copy, scores, preprocessing, options.input_size
    )
    _check_askable(card, options)
    serving = Serving(copy, _labelled(card, labels), options, bgr=is_bgr)
    if scores.activation is None:
        _check_logits(serving, model.name)
    return serving


def _check_logits(serving: Serving, name: str) -> None:
    """Refuse scores that are probabilities although no known operation made them."""
    record = serving.card.preprocessing
    images = synthetic_images(record.eval_size, record.channels)
    scores = serving.function("logits")(images)["logits"].numpy()
    if scores.min() >= 0 and np.allclose(scores.sum(-1), 1, atol=1e-3):
        raise UsageError(
            "Scores that add up to 1 must come from a softmax at the end, which export "
            f"recognises, or be logits. Received: {name!r}, whose scores add up to 1 "
            "and do not end in one; end it in logits or in layers.Softmax()."
        )


def _labelled(card: Card, labels: Any) -> Card:
    made = card if labels is None else replace(card, labels=labels)
    names, own = made.labels or (), card.labels or ()
    if names != own and sorted(names) == sorted(own):
        raise UsageError(
            "The labels must be in the order of the model's outputs. Received: the "
            f"names on its card, {', '.join(own)}, in another order; leave labels out."
        )
    return made


def _check_exportable(card: Card, options: ExportOptions) -> None:
    if not card.architecture.include_top and options.outputs != FEATURES:
        raise UsageError(
            "Only a model with a classifier gives logits and probabilities. "
            f"{card.architecture.name} was built with include_top=False; export what "
            "it has with outputs='features' (--outputs features)."
        )
    if options.input_size is None:
        card.check_input()
        return
    spec, least = card.resnet.spec, card.resnet.reduction
    if min(as_sides(options.input_size)) < least:
        raise UsageError(
            f"{spec.name} divides the sides of an image by {least}, so that input_size "
            f"must be at least {least} pixels. Received: "
            f"input_size={options.input_size}."
        )


def _check_askable(card: Card, options: ExportOptions) -> None:
    """Refuse a size at which a plain Keras model cannot be asked for comparison."""
    *own, channels = card.architecture.input_shape
    if None not in own and as_size(own) != as_size(options.input_size or own):
        raise UsageError(
            f"A Keras model made for images of {shown_size(own)} can be exported for "
            f"those only. Received: input_size={options.input_size}; build it with "
            f"input_shape=(None, None, {channels})."
        )


def _as_asked(card: Card, options: ExportOptions) -> Card:
    """Return the card of what the options make of a model."""
    size, architecture = as_size(options.input_size), card.resnet
    if size not in (None, card.preprocessing.eval_size):
        if card.confidence:
            say(
                "The temperature was measured at another size: the files have the "
                "model's own probabilities. Calibrate a model of that size."
            )
        record = replace(card.preprocessing, eval_size=size)
        # They were measured at another size.
        card = replace(card, preprocessing=record, metrics=(), confidence=None)
    if size is not None:
        shape = card.preprocessing.input_shape
        architecture = replace(architecture, input_shape=shape)
    if options.outputs == FEATURES:
        architecture = replace(
            architecture, include_top=False, classes=None, classifier_activation=None,
            features=None, pooling=architecture.pooling or "avg",
        )  # fmt: skip
        card = replace(card, labels=None, metrics=(), confidence=None)
    return replace(card, architecture=architecture)


def _float32_model(
    architecture: Architecture, tensors: Tensors, **options: Any
) -> keras.Model:
    """Build in float32 whatever policy the user has set.

    Under mixed_float16 the converters leave operations that phones do not have.
    """
    with precision_policy("float32"):
        built = build_resnet(architecture, **options)
    if not architecture.include_top:
        tensors = {name: value for name, value in tensors.items() if name not in HEAD}
    assign_tensors(built, tensors, f"the tensors of {built.name}")
    return built


def source_answers(model: keras.Model, serving: Serving) -> Answering:
    """Return a function from images to what the files of an export must answer.

    A model that computes in half precision is asked through a float32 copy of it; the
    model, of which `serving` was made, is not touched. It is from uint8 `(n, eval_size,
    eval_size, 3)` to float32 probabilities `(n, classes)`, or features `(n, width)`
    where those are exported.
    """
    record, has_top = serving.card.preprocessing, serving.card.architecture.include_top

    def prepare(images: Pixels) -> Any:
        pixels = images.astype(np.float32)
        if serving.bgr:
            # Keras' own, so that ours is held against it.
            return keras.applications.resnet.preprocess_input(pixels)
        return record.normalise(pixels)

    if resnet.is_from_reszoo(model):
        twin = float32_twin(model, serving.card)
        if has_top:
            return lambda images: metrics.probabilities(
                twin, record, images, temperature=serving.card.temperature
            )
        return _in_batches(twin, prepare)
    exact = _exact(model)
    if not has_top:
        return _in_batches(_up_to_features(exact), prepare)
    answer, scores = _in_batches(exact, prepare), classifier.read_scores(exact)
    return lambda images: _probabilities(answer(images), scores)


def _probabilities(answer: ModelOutput, scores: classifier.Scores) -> ModelOutput:
    if scores.activation is None:
        return metrics.softmax(answer)
    return np.concatenate([1 - answer, answer], 1) if scores.units == 1 else answer


def _in_batches(model: keras.Model, prepare: Callable[[Pixels], Any]) -> Answering:
    ask = tf.function(lambda pixels: model(pixels, training=False))
    return lambda images: in_batches(lambda few: ask(prepare(few)), images, _AT_ONCE)


def _exact(model: keras.Model) -> keras.Model:
    if {layer.compute_dtype for layer in all_layers(model)} == {"float32"}:
        return model

    # Layers of a copy compute in what their configuration says, whatever the policy.
    def in_float32(layer: keras.layers.Layer) -> keras.layers.Layer:
        return type(layer).from_config({**layer.get_config(), "dtype": "float32"})

    copy = keras.models.clone_model(model, clone_function=in_float32, recursive=True)
    copy.set_weights(model.get_weights())
    return copy


def _up_to_features(model: keras.Model) -> keras.Model:
    """Return a model that shares the layers and ends in what the classifier sees."""
    head = resnet.read_resnet(model).head
    if head.pooling is None:
        return keras.Sequential([model, keras.layers.GlobalAveragePooling2D()])
    if head.classifier is None:
        return model
    if head.classifier not in model.layers:
        raise UsageError(
            "The features of a model can be exported if its classifier is not inside "
            f"of another model. Received: {model.name!r}; export the model inside."
        )
    return keras.Model(model.inputs, head.features)


def float32_twin(model: keras.Model, card: Card) -> keras.Model:
    """Return a model from reszoo as a serving card describes it, in float32.

    What is exported is held against float32: the answers of a model built under mixed
    precision differ from that by rounding which no file repeats. It is the model itself
    where it is like that, or a twin with its weights; batch normalisation stays as it
    is.
    """
    exact = {layer.compute_dtype for layer in model.layers} == {"float32"}
    if exact and own_card(model).card.architecture == card.architecture:
        return model
    return _float32_model(card.resnet, to_tensors(model), name=model.name)
