"""Files of every form are asked alike: batches, axes, numbers, kinds of answers."""

import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import reszoo
from reszoo.cards import Card, new_card
from reszoo.metrics import softmax
from reszoo_export.formats import FORMATS, ExportOptions
from reszoo_export.runtimes import find_output, open_runtime, run_file
from reszoo_export.saved_model.reader import newest_version
from reszoo_export.serving import Serving
from reszoo_export.tflite import writer

SIDE, CLASSES = 8, 5


@pytest.fixture(scope="module")
def images() -> Any:
    return np.random.default_rng(0).integers(0, 256, (7, SIDE, SIDE, 3), np.uint8)


@cache
def card(features: bool) -> Card:
    """As files have it: without a classifier where they give features."""
    built = reszoo.build("resnet20", input_shape=(SIDE, SIDE, 3), classes=CLASSES)
    made = new_card(reszoo.card(built).resnet)
    if not features:
        return made
    bare = replace(made.resnet, include_top=False, classes=None, pooling="avg")
    return replace(made, architecture=bare)


def net(features: bool) -> keras.Model:
    """A convolution and a classifier: converters need no second for it."""
    draw = np.random.default_rng(1)
    pixels = keras.Input((SIDE, SIDE, 3))
    convolved = keras.layers.Conv2D(4, 3, activation="relu", name="conv1")(pixels)
    pooled = keras.layers.GlobalAveragePooling2D(name="pool")(convolved)
    logits = keras.layers.Dense(CLASSES, name="fc")(pooled)
    model = keras.Model(pixels, logits)
    model.set_weights([draw.normal(0, 0.8, w.shape) for w in model.get_weights()])
    return keras.Model(pixels, pooled) if features else model


def serving(**options: Any) -> Serving:
    features = options.get("outputs") == "features"
    return Serving(net(features), card(features), ExportOptions(**options))


def expected(images: Any, features: bool = False) -> Any:
    record = card(False).preprocessing
    answers = net(features)(record.normalise(images.astype(np.float32)))
    return answers.numpy() if features else tf.nn.softmax(answers).numpy()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("saved_model", {"batch": 4, "version": 3}),
        ("saved_model", {"outputs": "features"}),
        ("tflite", {"batch": 4}),
        ("tflite", {"batch": "dynamic", "outputs": "logits"}),
        ("tflite", {"outputs": "features"}),
        ("onnx", {"batch": 4}),
        ("onnx", {"layout": "nchw", "batch": 3, "outputs": "logits"}),
        ("onnx", {"layout": "nchw", "outputs": "features"}),
    ],
)
def test_files_of_every_form_answer_alike(
    tmp_path: Path, images: Any, name: str, options: dict[str, Any]
) -> None:
    features = options.get("outputs") == "features"
    row = FORMATS[name]
    row.write(serving(**options), tmp_path / row.file, None)
    runtime = open_runtime(tmp_path / row.file)
    assert runtime.output_kind == ("features" if features else "probabilities")
    truth = expected(images, features)
    for count in (7, 1, 2, 7):
        answers = runtime.run(images[:count])
        assert answers.dtype == np.float32
        np.testing.assert_allclose(answers, truth[:count], atol=1e-5)
    assert runtime.run(images[:0]).shape == (0, truth.shape[1])
    fixed = options.get("batch", 1 if name == "tflite" else "batch")
    first = runtime.inputs[0]["shape"][0]
    assert first == {"dynamic": "batch"}.get(fixed, fixed)


def test_bytes_are_answered_as_probabilities(tmp_path: Path, images: Any) -> None:
    made, path = serving(), tmp_path / "model.tflite"
    content = writer.convert(
        made, [tf.lite.OpsSet.TFLITE_BUILTINS_INT8],
        optimizations=[tf.lite.Optimize.DEFAULT],
        representative_dataset=lambda: (
            {"image": image[None].astype(np.float32)} for image in images
        ),
        inference_input_type=tf.uint8, inference_output_type=tf.uint8,
    )  # fmt: skip
    writer.write_model(content, made, path)
    runtime = open_runtime(path)
    (out,) = runtime.outputs
    assert (out["dtype"], out["scale"], out["zero_point"]) == ("uint8", 1 / 256, 0)
    assert runtime.inputs[0]["zero_point"] == 0
    answers = runtime.run(images)
    np.testing.assert_array_equal(answers * 256, np.round(answers * 256))
    np.testing.assert_allclose(answers, expected(images), atol=0.05)
    assert answers.max() > 0.5


def test_integers_count_from_their_zero_point() -> None:
    image = {"name": "image", "dtype": "float32", "shape": [2, 8, 8, 3]}
    steps = {"name": "features", "dtype": "int8", "shape": [2, 1]}
    output = {**steps, "scale": 0.5, "zero_point": -3}

    def call(pixels: Any) -> Any:
        assert pixels.dtype == np.float32
        return pixels[:, 0, 0, :1].astype(np.int8)

    images = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones(
        (1, 8, 8, 3), np.uint8
    )
    found = run_file(call, images, image, output)
    np.testing.assert_array_equal(found, [[1.5], [2.0], [2.5]])


def test_softmax_stands_any_logits() -> None:
    odds = softmax(np.array([[1e4, 0, -1e4], [-1e4, -1e4, -1e4]], np.float32))
    np.testing.assert_array_equal(odds[0], [1, 0, 0])
    np.testing.assert_allclose(odds[1], np.full(3, 1 / 3, np.float32))


def test_the_highest_version_is_opened(tmp_path: Path, images: Any) -> None:
    FORMATS["saved_model"].write(serving(), tmp_path / "saved_model", None)
    written = newest_version(tmp_path / "saved_model")
    root = tmp_path / "served"
    for name in ("2", "10", "old"):
        shutil.copytree(written, root / name)
    (root / "99").mkdir()
    assert newest_version(root) == root / "10"
    assert newest_version(root / "2") == root / "2"
    shutil.rmtree(root / "2" / "variables")
    answers = open_runtime(root).run(images)
    np.testing.assert_allclose(answers, expected(images), atol=1e-5)
    with pytest.raises(reszoo.CheckpointError, match="cannot be read"):
        open_runtime(root / "2")


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        (["image"], ["output_0"]),
        (["pixels"], ["probabilities"]),
        (["image", "more"], ["probabilities"]),
    ],
)
def test_other_functions_are_refused(inputs: list[str], outputs: list[str]) -> None:
    def told(names: list[str], shape: list[Any]) -> list[dict[str, Any]]:
        return [{"name": name, "dtype": "float32", "shape": shape} for name in names]

    with pytest.raises(
        reszoo.CheckpointError,
        match=rf"takes one.*Received: \['{inputs[0]}'.*\['{outputs[0]}'\] out in f",
    ):
        find_output(Path("f"), told(inputs, [1, 8, 8, 3]), told(outputs, ["batch", 5]))
