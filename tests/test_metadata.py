import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from made_card import made_card

from reszoo.console import quiet
from reszoo_export.onnx.reader import properties
from reszoo_export.tflite.flatbuffer import (
    METADATA_NAME,
    read_data,
    read_tensors,
    read_texts,
    with_card,
    with_data,
)
from reszoo_export.tflite.reader import read_card


@pytest.fixture(scope="module")
def content() -> bytes:
    """A little classifier, converted."""
    draw = np.random.default_rng(0)
    kernel = draw.normal(0, 1e-3, (3, 3, 3, 2)).astype(np.float32)

    def serve(image: Any) -> Any:
        maps = tf.nn.conv2d(image, kernel, 1, "VALID")
        return {"probabilities": tf.nn.softmax(tf.reduce_mean(maps, (1, 2)))}

    image = tf.TensorSpec((1, 8, 8, 3), tf.float32, "image")
    module = tf.Module()
    module.serve = tf.function(serve, input_signature=[image])
    with quiet():
        converter = tf.lite.TFLiteConverter.from_concrete_functions(
            [module.serve.get_concrete_function()], module
        )
        return bytes(converter.convert())


def test_the_models_own_bytes_stay_as_they_are(content: bytes, tmp_path: Path) -> None:
    described = with_card(content, made_card())
    at = described.find(content)
    assert at > 0
    assert at % 16 == 0
    before, after = (schema.Model.GetRootAs(each) for each in (content, described))
    assert after.Version() == before.Version()
    assert after.Description() == before.Description()
    assert after.OperatorCodesLength() == before.OperatorCodesLength()
    assert after.SignatureDefsLength() == before.SignatureDefsLength()
    assert after.SubgraphsLength() == before.SubgraphsLength()
    assert after.BuffersLength() == before.BuffersLength() + 1
    for index in range(before.BuffersLength()):
        old, new = before.Buffers(index), after.Buffers(index)
        assert new._tab.Pos == old._tab.Pos + at
    for index in range(before.MetadataLength()):
        assert after.Metadata(index).Name() == before.Metadata(index).Name()
        assert after.Metadata(index).Buffer() == before.Metadata(index).Buffer()
    entry = after.Metadata(before.MetadataLength())
    data = after.Buffers(entry.Buffer())
    start = data._tab.Vector(data._tab.Offset(4))
    assert start % 16 == 0
    assert entry.Name() == METADATA_NAME.encode()
    assert with_card(content, made_card()) == described


def test_litert_answers_as_before(content: bytes) -> None:
    image = np.random.default_rng(1).uniform(0, 255, (1, 8, 8, 3)).astype(np.float32)
    answers = []
    for each in (content, with_card(content, made_card())):
        ask = Interpreter(model_content=each).get_signature_runner()
        answers.append(ask(image=image)["probabilities"])
    np.testing.assert_array_equal(answers[0], answers[1])
    assert 0.01 < answers[0].max() < 1


def test_data_may_be_added_twice_and_to_a_model_of_any_length(content: bytes) -> None:
    odd = content + b"xyz"
    twice = with_data(with_data(odd, "one", b"1" * 17), "two", b"")
    model = schema.Model.GetRootAs(twice)
    assert read_data(model, "one") == b"1" * 17
    assert read_data(model, "two") == b""
    assert read_data(model, "three") is None
    (image,), (answer,) = read_tensors(model)
    assert (image.name, image.dtype, image.shape) == ("image", "float32", (1, 8, 8, 3))
    assert (answer.name, answer.shape) == ("probabilities", (1, 2))


def test_a_model_without_lists_of_its_own_gets_them() -> None:
    builder = flatbuffers.Builder()
    schema.ModelStart(builder)
    schema.ModelAddVersion(builder, 3)
    builder.Finish(schema.ModelEnd(builder), b"TFL3")
    model = schema.Model.GetRootAs(with_data(bytes(builder.Output()), "one", b"1"))
    assert model.Version() == 3
    assert read_data(model, "one") == b"1"


def test_odd_labels_arrive_as_they_were(content: bytes, tmp_path: Path) -> None:
    labels = ('a "quoted, one"', " spaces ", "Pferd, gro\u00df", "\u732b", "#1")
    card = made_card(labels)
    path = tmp_path / "model.tflite"
    path.write_bytes(with_card(content, card))
    assert read_card(path).labels == labels
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        entry = archive.getinfo("labels.txt")
        text = archive.read("labels.txt").decode()
    # MediaPipe maps the file into memory: it must not be compressed.
    assert entry.compress_type == zipfile.ZIP_STORED
    assert tuple(text.removesuffix("\n").split("\n")) == labels
    assert tuple(json.loads(properties(card)["labels"])) == labels


def test_the_description_is_in_words(content: bytes) -> None:
    card = replace(
        made_card(None), provenance={"source": "a shop", "licence": "apache-2.0"}
    )
    texts = read_texts(schema.Model.GetRootAs(with_card(content, card)))
    assert texts["name"] == "resnet20"
    assert "2 classes (a shop)" in texts["description"]
    assert texts["license"] == "apache-2.0"
    assert texts["version"].startswith("reszoo ")
    assert b"labels.txt" not in with_card(content, card)
    assert read_texts(schema.Model.GetRootAs(content)) == {}


def test_onnx_properties_describe_the_model() -> None:
    card = made_card(("cat", "dog"), crop_pct=0.875, interpolation="bicubic")
    found = properties(card)
    assert list(found) == sorted(found)
    assert found["labels"] == '["cat", "dog"]'
    assert found["input"] == "image: RGB, 0 to 255, 32x32 pixels"
    assert "short side to 36 pixels (bicubic" in found["preprocessing"]
    assert "Normalisation is inside" in found["description"]
    assert json.loads(found["reszoo_card"]) == json.loads(card.to_text())
    assert "license" not in found
    assert "labels" not in properties(made_card(None))
