"""SavedModels of others: what is checked before TensorFlow loads them."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import family
import keras
import numpy as np
import pytest
from hostile_models import BUNDLED, CHANGES, FILES, hostile, initialised
from tiny import RESNET8

import reszoo
from reszoo_export.formats import FORMATS, ExportOptions
from reszoo_export.inspection import describe_file
from reszoo_export.manifest import read_manifest, size_and_hash
from reszoo_export.runtimes import open_runtime
from reszoo_export.saved_model import screening
from reszoo_export.saved_model.reader import newest_version
from reszoo_export.saved_model.screening import COMPUTING, IN_GRAPH
from reszoo_export.serving import make_serving
from reszoo_export.verification.reference import Reference

REFUSED = "could do more than compute"


@pytest.mark.parametrize("name", CHANGES)
def test_a_hostile_graph_is_refused_and_nothing_runs(name: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    path = hostile(tmp_path / "model", CHANGES[name], canary)
    with pytest.raises(reszoo.CheckpointError, match=REFUSED) as caught:
        reszoo.Predictor(path)
    assert "--trust-saved-model" in str(caught.value)
    assert str(caught.value).isprintable()
    assert not canary.exists()


@pytest.mark.parametrize("name", FILES)
def test_files_that_tensorflow_would_read_are_refused(
    name: str, tmp_path: Path
) -> None:
    shutil.copytree(BUNDLED / "saved_model", tmp_path / "model")
    (tmp_path / "model/1/assets").mkdir(exist_ok=True)
    reszoo.Predictor(tmp_path / "model")
    FILES[name](tmp_path / "model" / "1")
    with pytest.raises(reszoo.CheckpointError, match=rf"{REFUSED}: file "):
        reszoo.Predictor(tmp_path / "model")


def test_a_trusted_file_may_do_anything(tmp_path: Path) -> None:
    """The same files do write, which shows that the others would have."""
    canary = tmp_path / "canary"
    path = initialised(tmp_path / "initialised", canary)
    with pytest.raises(reszoo.CheckpointError, match=r"WriteFile.*object of kind res"):
        reszoo.Predictor(path)
    assert not canary.exists()
    reszoo.Predictor(path, trust_saved_model=True)
    assert canary.read_text() == "written"
    canary.unlink()
    change = CHANGES["WriteFile in __inference_serve"]
    path = hostile(tmp_path / "called", change, canary)
    trusted = reszoo.Predictor(path, trust_saved_model=True)
    assert not canary.exists()
    trusted.predict(np.zeros((32, 32, 3), np.uint8))
    assert canary.read_text() == "written"


@pytest.fixture
def export(tmp_path: Path) -> Any:
    """A copy of the bundled export whose SavedModel writes a file in every call."""
    folder, canary = tmp_path / "export", tmp_path / "canary"
    shutil.copytree(BUNDLED, folder, ignore=shutil.ignore_patterns("saved_model"))
    change = CHANGES["WriteFile in __inference_serve_bytes"]
    hostile(folder / "saved_model", change, canary)
    images = np.zeros((17, 32, 32, 3), np.uint8)
    outputs = np.full((17, 10), 0.1, np.float32)
    Reference(images, outputs, np.zeros(0, np.int64), 17).write(folder)
    content = json.loads((folder / "manifest.json").read_text())
    content["files"] = [content["files"][0]]
    content["files"][0]["sha256"] = size_and_hash(folder / "saved_model")[1]
    content["beside"]["reference.npz"] = size_and_hash(folder / "reference.npz")[1]
    (folder / "manifest.json").write_text(json.dumps(content))
    return folder, canary


def test_verification_refuses_what_the_predictor_refuses(export: Any) -> None:
    folder, canary = export
    with pytest.raises(reszoo.VerificationError, match=rf"saved_model: .*{REFUSED}"):
        reszoo.verify(folder)
    assert not canary.exists()


@pytest.mark.usefixtures("subprocesses")
def test_every_other_verb_refuses_it_too(export: Any) -> None:
    folder, canary = export
    path = folder / "saved_model"
    with pytest.raises(reszoo.CheckpointError, match=REFUSED):
        reszoo.benchmark(path, rounds=1, seconds=0.01)
    data = (np.zeros((10, 32, 32, 3), np.uint8), np.arange(10) % 2)
    with pytest.raises(reszoo.CheckpointError, match=REFUSED):
        reszoo.evaluate(path, data)
    with pytest.raises(reszoo.UsageError, match="exported file"):
        reszoo.export(path, folder.parent / "again")
    assert not canary.exists()


def test_inspect_names_what_is_not_allowed(export: Any) -> None:
    found = reszoo.inspect(export[0] / "saved_model")
    assert re.fullmatch(
        r"operator WriteFile in function __inference_serve_bytes_\d",
        found.details["not allowed"],
    )
    assert "not allowed" in dict(found.rows())
    clean = describe_file(BUNDLED / "saved_model")
    assert "not allowed" not in clean.details


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["cycle in a function", "recursion", "doubling"])
def test_describing_visits_nodes_and_not_paths(name: str, tmp_path: Path) -> None:
    path = hostile(tmp_path / "model", CHANGES[name], tmp_path / "canary")
    found = describe_file(path)
    assert found.details["not allowed"]
    assert found.parameters == 269_034 if name != "recursion" else True


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch": 3, "input_size": 40, "version": 7},
        {"outputs": "features"},
        {"outputs": "logits", "batch": "dynamic"},
    ],
)
def test_what_is_exported_is_allowed(options: dict[str, Any], tmp_path: Path) -> None:
    model = reszoo.build(RESNET8, classes=["a", "b"], input_shape=(32, 32, 3))
    serving = make_serving(model, ExportOptions(**options))
    FORMATS["saved_model"].write(serving, tmp_path / "model", None)
    screening.check_folder(newest_version(tmp_path / "model"))
    open_runtime(tmp_path / "model")


def test_the_rule_of_verification_is_part_of_the_list() -> None:
    assert FORMATS["saved_model"].operators <= COMPUTING | IN_GRAPH
    screening.check_folder(BUNDLED / "saved_model" / "1")
    for row in read_manifest(BUNDLED).files:
        open_runtime(BUNDLED / row.file)


@pytest.mark.slow
@pytest.mark.parametrize("name", family.ROWS)
def test_every_kind_of_model_is_exported_to_an_allowed_file(
    name: str, tmp_path: Path
) -> None:
    spec = reszoo.build(name, classes=2)
    FORMATS["saved_model"].write(make_serving(spec), tmp_path / "model", None)
    screening.check_folder(newest_version(tmp_path / "model"))


def classifier() -> Any:
    """A Keras model with the layers of image classifiers."""
    pixels = keras.Input((32, 32, 3))
    x = keras.layers.Rescaling(1 / 255)(pixels)
    x = keras.layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(x)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Activation("swish")(x)
    x = keras.layers.DepthwiseConv2D(3, padding="same", activation="relu6")(x)
    x = keras.layers.LayerNormalization()(x)
    x = keras.layers.Activation("gelu")(x)
    squeezed = keras.layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = keras.layers.Conv2D(8, 1, activation="hard_sigmoid")(squeezed)
    x = keras.layers.MaxPooling2D()(keras.layers.Multiply()([x, gate]))
    x = keras.layers.Dropout(0.5)(keras.layers.Flatten()(x))
    return keras.Model(pixels, keras.layers.Dense(3, activation="softmax")(x))


def test_what_keras_exports_is_allowed(tmp_path: Path) -> None:
    classifier().export(str(tmp_path / "model"), verbose=False)
    screening.check_folder(tmp_path / "model")
    saved = screening.read_model(tmp_path / "model")
    nodes = {node.op for node in saved.meta_graphs[0].graph_def.node}
    # Its variables are reached by name in the graph, where Python never runs them.
    assert nodes & IN_GRAPH
    own = reszoo.build(RESNET8, classes=2, input_shape=(32, 32, 3))
    own.export(str(tmp_path / "own"), verbose=False)
    screening.check_folder(tmp_path / "own")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["MobileNetV2", "EfficientNetV2B0", "ConvNeXtTiny", "DenseNet121"]
)
def test_keras_applications_are_allowed(name: str, tmp_path: Path) -> None:
    model = getattr(keras.applications, name)(weights=None)
    model.export(str(tmp_path / "model"), verbose=False)
    screening.check_folder(tmp_path / "model")


def test_a_card_of_another_number_of_classes_is_refused(tmp_path: Path) -> None:
    shutil.copytree(BUNDLED / "saved_model", tmp_path / "model")
    file = tmp_path / "model/1/assets.extra/card.json"
    card = reszoo.Card.from_text(file.read_text())
    many = replace(card.architecture, classes=900_000)
    file.write_text(replace(card, labels=None, architecture=many).to_text())
    with pytest.raises(reszoo.CheckpointError, match="must be of the 10 classes"):
        reszoo.Predictor(tmp_path / "model")
