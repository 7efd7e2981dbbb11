"""Keras models of any structure: every image classifier is exported right."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras_models import (
    RECORD,
    calibration,
    check,
    dense,
    head,
    pixels,
    settle,
    verified,
)

import reszoo
from reszoo.architecture import KerasArchitecture
from reszoo.cards import Card
from reszoo_export.formats import FORMATS, ExportOptions
from reszoo_export.inspection import inspect
from reszoo_export.serving import make_serving, source_answers
from reszoo_export.verification.comparison import limits_of
from reszoo_export.verification.reference import synthetic_images

layers = keras.layers


def mlperf_resnet8() -> Any:
    """MLPerf Tiny's shape: biased convolutions, same padding, Activation, Flatten."""

    def convolution(x: Any, filters: int, side: int = 3, strides: int = 1) -> Any:
        start = keras.initializers.HeNormal(seed=filters + side + strides)
        return layers.Conv2D(
            filters, side, strides, padding="same", kernel_initializer=start,
            bias_initializer=keras.initializers.RandomNormal(0, 0.1, seed=side),
        )(x)  # fmt: skip

    def norm(x: Any) -> Any:
        return layers.BatchNormalization()(x)

    image = keras.Input((32, 32, 3))
    x = layers.Activation("relu")(norm(convolution(image, 16)))
    for filters, strides in ((16, 1), (32, 2), (64, 2)):
        y = layers.Activation("relu")(norm(convolution(x, filters, strides=strides)))
        y = norm(convolution(y, filters))
        if strides > 1:
            x = convolution(x, filters, side=1, strides=strides)
        x = layers.Activation("relu")(layers.Add()([x, y]))
    x = layers.Flatten()(layers.AveragePooling2D(8)(x))
    head = keras.initializers.RandomNormal(0, 0.3, seed=0)
    x = layers.Dense(10, activation="softmax", kernel_initializer=head)(x)
    return keras.Model(image, x, name="resnet8")


def cifar_resnet(version: int) -> Any:
    """Keras' CIFAR-10 example, ResNet-20 v1 or v2, from its documented structure.

    v1: three stages of basic blocks with 16, 32 and 64 filters. v2: bottlenecks in
    pre-activation order, of which the first of a stage projects its input.
    """

    def layer(
        x: Any, filters: int, side: int = 3, strides: int = 1, *,
        norm: bool = True, relu: bool = True, first: bool = True,
    ) -> Any:  # fmt: skip
        convolution = layers.Conv2D(
            filters, side, strides, padding="same",
            kernel_initializer=keras.initializers.HeNormal(seed=filters * side),
            kernel_regularizer=keras.regularizers.L2(1e-4),
        )  # fmt: skip
        x = convolution(x) if first else x
        x = layers.BatchNormalization()(x) if norm else x
        x = layers.Activation("relu")(x) if relu else x
        return x if first else convolution(x)

    image = keras.Input((32, 32, 3))
    x = layer(image, 16)
    for stage, block in np.ndindex(3, 3 if version == 1 else 2):
        strides = 2 if stage and not block else 1
        if version == 1:
            filters = 16 * 2**stage
            y = layer(layer(x, filters, strides=strides), filters, relu=False)
            if strides > 1:
                x = layer(x, filters, 1, strides, norm=False, relu=False)
            x = layers.Activation("relu")(layers.Add()([x, y]))
        else:
            inner, outer = (64 * 2 ** (stage - 1) or 16, 64 * 2**stage)
            inner = 16 if stage == 0 else inner
            start = not stage and not block
            y = layer(x, inner, 1, strides, norm=not start, relu=not start, first=False)
            y = layer(layer(y, inner, first=False), outer, 1, first=False)
            if not block:
                x = layer(x, outer, 1, strides, norm=False, relu=False)
            x = layers.Add()([x, y])
    if version == 2:
        x = layers.Activation("relu")(layers.BatchNormalization()(x))
    x = layers.Flatten()(layers.AveragePooling2D(8)(x))
    start = keras.initializers.HeNormal(seed=0)
    x = layers.Dense(10, activation="softmax", kernel_initializer=start)(x)
    return keras.Model(image, x, name=f"cifar_v{version}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "make", [mlperf_resnet8, lambda: cifar_resnet(1), lambda: cifar_resnet(2)]
)
def test_resnets_that_people_wrote_are_exported(make: Any, tmp_path: Path) -> None:
    images = RECORD.normalise(pixels(32, 32).astype(np.float32))
    model = settle(make(), images)
    found = verified(model, tmp_path, preprocessing=RECORD, labels=tuple("abcdefghij"))
    assert max(found[name] for name in ("saved_model", "tflite", "onnx")) < 1e-5
    predictor = reszoo.Predictor(tmp_path / "model.onnx")
    assert predictor.labels == tuple("abcdefghij")
    expected = model(RECORD.normalise(pixels(32).astype(np.float32)), training=False)
    np.testing.assert_allclose(predictor.predict(pixels(32)), expected, atol=1e-5)


def test_an_export_of_a_resnet_that_people_wrote(tmp_path: Path) -> None:
    model = settle(mlperf_resnet8(), pixels(32, 32) / np.float32(255))
    record = replace(RECORD, mean=(0.0,) * 3, std=(1.0,) * 3)
    reszoo.export(
        model, tmp_path / "export", formats="tflite,onnx", preprocessing=record,
        labels=tuple("abcdefghij"),
    )  # fmt: skip
    again = reszoo.verify(tmp_path / "export")
    assert not again.problems
    assert again.card.architecture.name == "resnet8"
    shown = inspect(tmp_path / "export" / "model.tflite").text()
    assert "resnet8, a Keras model that reszoo did not build, input 32x32x3" in shown
    assert list((tmp_path / "export").glob("snippets/*"))


def operations() -> Any:
    image = keras.Input((32, 32, 3))
    x = keras.ops.abs(image - 0.25) * 2.0
    x = head(x, dense())
    return keras.Model(image, keras.ops.softmax(x[:, ::-1] + 0.5))


def lambdas() -> Any:
    image = keras.Input((32, 32, 3))
    x = layers.Lambda(lambda value: value**2)(image)
    return keras.Model(image, head(x, dense(), layers.Softmax()))


def nested() -> Any:
    """Layers of the same name in two models, one of which is used twice."""
    inside = keras.Input((32, 32, 3))
    layer = layers.Conv2D(3, 3, padding="same", name="same")
    inner = keras.Model(inside, layers.Dropout(0.5)(layer(inside)))
    image = keras.Input((32, 32, 3))
    x = layers.Conv2D(3, 3, padding="same", name="same")(image)
    x = layers.Concatenate()([inner(x), inner(inner(image))])
    return keras.Model(image, keras.Sequential([dense(activation="softmax")])(head(x)))


def augmented() -> Any:
    return keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            layers.RandomFlip(),
            layers.RandomContrast(0.9),
            layers.Conv2D(4, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.SeparableConv2D(4, 3, activation="relu6"),
            layers.GlobalMaxPooling2D(),
            layers.GaussianNoise(0.9),
            dense(),
        ]
    )


def in_bytes() -> Any:
    image = keras.Input((32, 32, 3), dtype="uint8")
    x = layers.Normalization(mean=[120.0, 110.0, 100.0], variance=[60.0**2] * 3)(image)
    return keras.Model(image, head(x, dense()))


def grouped() -> Any:
    """What ConvNeXt has: layer normalisation, grouped convolutions and GELU."""
    image = keras.Input((32, 32, 3))
    x = layers.Conv2D(8, 4, 4)(image)
    y = layers.Conv2D(8, 7, padding="same", groups=8)(x)
    y = layers.Dense(16)(layers.LayerNormalization()(y))
    y = layers.Dense(8)(layers.Activation("gelu")(y))
    x = layers.GlobalAveragePooling2D()(layers.Add()([x, y]))
    return keras.Model(image, dense()(x))


def test_silu_in_a_saved_model_has_no_gradient_and_repeatable_bytes(
    tmp_path: Path,
) -> None:
    image = keras.Input((32, 32, 3))
    model = keras.Model(image, head(image, layers.Activation("silu"), dense()))
    verified(model, tmp_path, ("saved_model", "onnx"), preprocessing=RECORD)
    first = (tmp_path / "saved_model/1/saved_model.pb").read_bytes()
    again = make_serving(model, preprocessing=RECORD)
    FORMATS["saved_model"].write(again, tmp_path / "again", None)
    assert (tmp_path / "again/1/saved_model.pb").read_bytes() == first


def test_grouped_convolutions_and_gelu(tmp_path: Path) -> None:
    formats = ("saved_model", "tflite", "onnx", "onnx-fp16")
    found = verified(grouped(), tmp_path, formats, preprocessing=RECORD)
    assert found["onnx"] < 1e-5


class Mine(keras.Model):  # type: ignore[misc]
    """A subclass, which tells no graph of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = layers.Conv2D(4, 3), dense()

    def call(self, image: Any) -> Any:
        return self.last(keras.ops.max(self.first(image), (1, 2)))


def wrapped() -> Any:
    image = keras.Input((32, 32, 3))
    return keras.Model(image, Mine()(image))


@pytest.mark.parametrize(
    "make", [operations, lambdas, nested, augmented, in_bytes, wrapped]
)
def test_classifiers_of_any_structure(make: Any) -> None:
    model, images = make(), pixels(32)
    record = None if make is in_bytes else RECORD
    serving = make_serving(model, preprocessing=record)
    given = serving.card.preprocessing.normalise(images.astype(np.float32))
    scores = model(given, training=False).numpy()
    is_softmax = make in (operations, lambdas, nested)
    check(serving, images, scores if is_softmax else keras.ops.softmax(scores).numpy())
    np.testing.assert_allclose(
        serving.function("probabilities")(images)["probabilities"],
        source_answers(model, serving)(images),
        atol=1e-5,
    )


def test_a_score_behind_a_sigmoid_is_the_second_of_two_classes(tmp_path: Path) -> None:
    image = keras.Input((32, 32, 3))
    model = keras.Model(image, head(image, dense(1, "sigmoid")))
    found = verified(
        model, tmp_path, ("tflite", "onnx"), preprocessing=RECORD, labels=["cat", "dog"]
    )
    assert max(found.values()) < 1e-5
    expected = model(RECORD.normalise(pixels(32).astype(np.float32))).numpy()
    answers = reszoo.Predictor(tmp_path / "model.tflite").predict(pixels(32))
    np.testing.assert_allclose(answers[:, 1:], expected, atol=1e-5)
    np.testing.assert_allclose(answers.sum(1), 1, atol=1e-6)


def test_sigmoids_of_several_classes_stay_as_they_are(tmp_path: Path) -> None:
    image = keras.Input((32, 32, 3))
    model = keras.Model(image, head(image, dense(3), layers.Activation("sigmoid")))
    verified(model, tmp_path, ("saved_model", "tflite", "onnx"), preprocessing=RECORD)
    expected = model(RECORD.normalise(pixels(32).astype(np.float32))).numpy()
    assert abs(expected.sum(1) - 1).max() > 0.1, "no softmax would give these"
    for file in ("model.onnx", "model.tflite"):
        answers = reszoo.Predictor(tmp_path / file).predict(pixels(32))
        np.testing.assert_allclose(answers, expected, atol=1e-5)
    with pytest.raises(reszoo.UsageError, match="no logits alone"):
        make_serving(model, ExportOptions(outputs="logits"), preprocessing=RECORD)


def test_half_precision_is_copied_in_float32() -> None:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = augmented()
    finally:
        keras.config.set_dtype_policy("float32")
    serving = make_serving(model, preprocessing=RECORD)
    assert {layer.compute_dtype for layer in serving.model.layers} == {"float32"}
    check(serving, pixels(32), source_answers(model, serving)(pixels(32)))


def named_as_in_applications() -> Any:
    """What takes BGR less Caffe's means, by its name and layers, under another head."""
    inside = keras.Input((32, 32, 3))
    x = layers.Conv2D(4, 3, 2, activation="relu", name="conv1_conv")(inside)
    x = layers.BatchNormalization(name="conv1_bn")(x)
    inner = keras.Model(inside, layers.GlobalAveragePooling2D()(x), name="resnet50")
    image = keras.Input((32, 32, 3))
    x = inner(layers.RandomFlip()(image))
    return keras.Model(image, dense(4, "softmax")(dense(8, "relu")(x)))


def test_a_model_under_a_deep_head_takes_bgr_where_its_name_says_so() -> None:
    model, images = named_as_in_applications(), pixels(32)
    caffe = keras.applications.resnet.preprocess_input(images.astype(np.float32))
    settle(model, caffe)
    expected = model(caffe, training=False).numpy()
    serving = make_serving(model)
    assert serving.is_traced
    check(serving, images, expected)
    np.testing.assert_allclose(
        source_answers(model, serving)(images), expected, atol=1e-5
    )


def test_a_named_model_behind_other_arithmetic_does_not_tell_its_preprocessing() -> (
    None
):
    inner = named_as_in_applications().layers[2]
    image = keras.Input((32, 32, 3))
    model = keras.Model(image, dense(4)(inner(image * 255.0)))
    with pytest.raises(reszoo.UsageError, match="Nothing tells how images"):
        make_serving(model)


def classifier(shape: Any, *more: Any) -> Any:
    image = keras.Input(shape)
    return keras.Model(image, head(image, *(more or (dense(),))), name="mine")


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (
            lambda: classifier((32, 32, 3)),
            {},
            r"Nothing tells how images.*'mine'; pass",
        ),
        (lambda: classifier((32, 32, 2)), {}, r"RGB.*input is \(32, 32, 2\)"),
        (
            lambda: classifier((None, None, 3), layers.Rescaling(0.01), dense()),
            {},
            r"fixed image size.*pass input_size=",
        ),
        (
            lambda: keras.Sequential([keras.Input((8,)), dense()], name="table"),
            {},
            r"RGB images.*'table', whose input is \(8,\)",
        ),
        (
            lambda: keras.Sequential(
                [keras.Input((8, 8, 3)), layers.Conv2D(3, 3)], name="map"
            ),
            {},
            r"one vector.*'map', whose output is \(None, 6, 6, 3\)",
        ),
        (lambda: classifier((32, 32, 3), dense(1)), {}, r"at least two.*one output"),
        (
            lambda: classifier((32, 32, 3), dense(4, "softmax"), layers.ReLU()),
            {"preprocessing": RECORD},
            r"add up to 1 must come from a softmax.*'mine'",
        ),
        (
            lambda: classifier((32, 32, 3)),
            {"preprocessing": RECORD, "labels": ["a", "b"]},
            r"one label per class. Received: 2 labels for 4 classes",
        ),
        (
            lambda: classifier((32, 32, 3)),
            {"preprocessing": RECORD, "options": ExportOptions(outputs="features")},
            r"has no features.*outputs='features' of 'mine'",
        ),
    ],
)
def test_what_is_no_image_classifier_is_refused(
    make: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(reszoo.UsageError, match=message):
        make_serving(make(), **options)


def test_models_that_tell_no_graph_are_refused() -> None:
    with pytest.raises(reszoo.UsageError, match=r"Only functional.*a Mine.*Call it on"):
        make_serving(Mine())
    image = keras.Input((8, 8, 3))
    with pytest.raises(reszoo.UsageError, match=r"1 input\(s\) and 2 output\(s\)"):
        make_serving(keras.Model(image, [image, layers.ReLU()(image)]))


def deeper(outlier: float = 1.0) -> Any:
    """A classifier of which one channel may be much larger than the others."""
    start = keras.initializers.HeNormal(seed=3)
    image = keras.Input((32, 32, 3))
    x = image
    for filters in (8, 16):
        x = layers.Conv2D(
            filters, 3, 2, "same", use_bias=False, kernel_initializer=start
        )(x)
        x = layers.Activation("relu")(layers.BatchNormalization()(x))
    scale = layers.DepthwiseConv2D(1, use_bias=False)
    x = layers.GlobalAveragePooling2D()(scale(x))
    x = layers.Dense(6, activation="softmax", kernel_initializer=start)(x)
    model = keras.Model(image, x, name="deeper")
    scale.set_weights([np.where(np.arange(16) == 0, outlier, 1.0).reshape(1, 1, 16, 1)])
    return settle(model, RECORD.normalise(pixels(32, 32).astype(np.float32)))


def test_int8_of_any_structure_is_what_diverges_least(tmp_path: Path) -> None:
    drawn, model = calibration(), deeper()
    verified(model, tmp_path, ("tflite-int8", "onnx-int8"), drawn, preprocessing=RECORD)
    for file in ("model-int8.tflite", "model-int8.onnx"):
        attempts = drawn.attempts[file]
        tried = [trial.divergence for trial in attempts.trials]
        assert len(tried) >= 3
        assert attempts.best.divergence == min(tried) < 0.01
        assert (attempts.images, attempts.tried_on) == (200, 100)
        assert inspect(tmp_path / file).precision == "int8"
        # What was kept is what was tried, on images that set no range.
        images = drawn.trial
        answers = reszoo.Predictor(tmp_path / file).predict(images)
        given = RECORD.normalise(images.astype(np.float32))
        expected = model(given, training=False).numpy()
        divergence = (expected * np.log(expected / answers)).sum(1).mean()
        np.testing.assert_allclose(divergence, attempts.best.divergence, rtol=1e-3)
        steps = answers * 256
        assert np.abs(steps - steps.round()).max() > 0.1, "softmax must be in float32"


def test_int8_beyond_the_limits_is_refused_with_the_number(tmp_path: Path) -> None:
    model = deeper(outlier=3e4)
    last = model.layers[-1]
    kernel, bias = last.get_weights()
    kernel[0] = 0  # The model ignores the channel that sets the range.
    last.set_weights([kernel, bias])
    with pytest.raises(AssertionError, match=r"total variation distance is \d+%"):
        verified(model, tmp_path, ("tflite-int8",), calibration(), preprocessing=RECORD)


def rounding_of(card: Card) -> tuple[float, float]:
    assert isinstance(card.architecture, KerasArchitecture)
    return card.architecture.rounding


def test_a_model_that_amplifies_rounding_gets_the_limits_of_its_own_rounding() -> None:
    model = classifier((32, 32, 3), dense(4))
    card = make_serving(model, preprocessing=RECORD).card
    row = FORMATS["onnx"]
    assert rounding_of(card) == (0.0, 0.0)
    assert limits_of(row, card) == row.tolerance
    # Small differences of large numbers, enlarged.
    image = keras.Input((32, 32, 3))
    x = layers.GlobalAveragePooling2D()(layers.Rescaling(1e-2, 1.0)(image))
    model = keras.Model(image, dense(4)(x))
    last = model.layers[-1]
    kernel = 100 * last.get_weights()[0]
    last.set_weights([kernel, -kernel.sum(0)])
    card = make_serving(model, preprocessing=RECORD).card
    of_float32, of_float16 = rounding_of(card)
    assert 2.5e-6 < of_float32 < 1e-3 < of_float16
    widened = limits_of(row, card)
    assert widened.max_difference == min(4 * of_float32, 2e-4)
    assert limits_of(FORMATS["onnx-fp16"], card).max_difference == pytest.approx(
        min(2 * of_float16, 0.04)
    )
    assert limits_of(FORMATS["onnx-int8"], card) == FORMATS["onnx-int8"].tolerance
    assert Card.from_text(card.to_text()) == card


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("MobileNetV2", {"alpha": 0.35}),
        ("EfficientNetV2B0", {}),
        ("ConvNeXtTiny", {}),
    ],
)
def test_classifiers_of_keras_applications(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    keras.utils.set_random_seed(0)
    make = getattr(keras.applications, name)
    model = make(input_shape=(64, 64, 3), weights=None, classes=10, **options)
    images = pixels(64, 32).astype(np.float32)
    is_centred = name == "MobileNetV2"
    given = images / np.float32(127.5) - 1 if is_centred else images
    # Verification also shows synthetic images. Batch norms that never saw their like
    # enlarge them from layer to layer, until rounding to float16 decides the class.
    varied = np.concatenate([images, synthetic_images(64).astype(np.float32)])
    settle(model, varied / np.float32(127.5) - 1 if is_centred else varied)
    record = make_serving(model).card.preprocessing
    ends = ((0.5,) * 3, (0.5,) * 3) if is_centred else ((0.0,) * 3, (1 / 255,) * 3)
    assert (record.mean, record.std) == ends
    formats = ("saved_model", "tflite", "tflite-fp16", "onnx", "onnx-fp16")
    verified(model, tmp_path, formats)
    answers = reszoo.Predictor(tmp_path / "model.onnx").predict(images.astype(np.uint8))
    np.testing.assert_allclose(answers, model(given, training=False), atol=1e-4)
