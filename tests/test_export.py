"""Exported files: what they answer, what is inside, and what happens when not."""

import json
import os
import subprocess
import sys
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import pytest
import tensorflow as tf
from conftest import FORMATS as ALL
from conftest import randomise

import reszoo
from reszoo.data.sources import open_source
from reszoo.metrics import prepared_batches, probabilities
from reszoo.weights.names import to_tensors
from reszoo.zoo import set_card
from reszoo_export import serving
from reszoo_export.formats import FORMATS
from reszoo_export.quantization import ranges
from reszoo_export.quantization.ranges import draw_calibration, fingerprint
from reszoo_export.runtimes import open_runtime
from reszoo_export.verification.reference import read_reference

EXPORTED = ALL.split(",")
# One format of each way to write labels: of a runtime, and after calibration.
_WRITERS = ("saved_model", "tflite", "onnx", "onnx-int8")


@pytest.fixture(scope="module")
def digits(run: Any) -> Any:
    """The held-out digits as the net sees them, their labels, the model's answers."""
    record = reszoo.card(run.model).preprocessing
    examples = open_source("digits").examples("test")
    images = np.concatenate(list(prepared_batches(examples, record, 64)))
    expected = probabilities(
        run.model, record, images, temperature=reszoo.card(run.model).temperature
    )
    return images, examples.targets, expected


def small(name: str = "resnet8", **options: Any) -> Any:
    shape = {"input_shape": (32, 32, 3), "classes": ("a", "b", "c")}
    return randomise(reszoo.build(name, **{**shape, **options}))


@pytest.mark.parametrize("name", EXPORTED)
def test_every_format_answers_like_the_model(
    exported: Any, digits: Any, name: str
) -> None:
    images, labels, expected = digits
    answers = open_runtime(exported.folder / FORMATS[name].file).run(images)
    if FORMATS[name].precision == "int8":
        accuracy, of_model = (
            (a.argmax(-1) == labels).mean() for a in (answers, expected)
        )
        assert accuracy >= of_model - 0.01
        assert (answers.argmax(-1) == expected.argmax(-1)).mean() >= 0.97
    else:
        most = {"float32": 1e-5, "float16": 2e-3}[FORMATS[name].precision]
        np.testing.assert_allclose(answers, expected, atol=most)
        np.testing.assert_array_equal(answers.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet8", {"shortcut": "projection-all"}),
        ("resnet8", {"classifier_activation": "softmax"}),
        ("plain8", {}),
        pytest.param("resnet18", {}, marks=pytest.mark.slow),
        pytest.param(
            "resnet50",
            {"stride_in": "1x1", "shortcut": "identity"},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_every_kind_of_net_exports(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    formats = "tflite" if name == "resnet50" else "tflite,onnx"
    model = small(name, **options)
    manifest = reszoo.export(model, tmp_path / "export", formats=formats)
    assert not manifest.problems
    for record in manifest.files:
        assert record.verification.max_difference < 1e-4


@pytest.mark.slow
def test_two_exports_have_the_same_bytes(
    run: Any, exported: Any, tmp_path: Path
) -> None:
    """In another process, with other hashes, from another folder."""
    done = subprocess.run(
        [sys.executable, "-m", "reszoo", "export", run.best, "--output", "again",
         "--formats", "saved_model,tflite,tflite-int8,onnx-int8",
         "--calibration", "digits", "--json"],
        env={**os.environ, "PYTHONHASHSEED": "123"},
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    again = {record["file"]: record for record in json.loads(done.stdout)["files"]}
    first = {record.file: record.sha256 for record in exported.files}
    assert len(again) == 4
    for file, record in again.items():
        assert record["sha256"] == first[file], file


def test_folding_is_exact_and_touches_nothing() -> None:
    model = small()
    before = to_tensors(model)
    folded = serving.make_serving(model)
    x = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype(np.float32)
    np.testing.assert_allclose(folded.model(x), model(x, training=False), atol=1e-4)
    kinds = {type(layer).__name__ for layer in folded.model.layers}
    assert "BatchNormalization" not in kinds
    after = to_tensors(model)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_a_mixed_precision_model_exports_in_float32(tmp_path: Path) -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = small()
        assert model.get_layer("conv1").compute_dtype == "bfloat16"
        manifest = reszoo.export(model, tmp_path / "export", formats="tflite,onnx")
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
    finally:
        keras.config.set_dtype_policy("float32")
    assert manifest.card == reszoo.card(model)
    for record in manifest.files:
        assert record.verification.max_difference < 1e-5
    assert "Flex" not in str(open_runtime(tmp_path / "export/model.tflite").operators)
    # What the files were held against are the weights' answers in float32.
    reszoo.save(model, tmp_path / "model.safetensors")
    kept = read_reference(tmp_path / "export", manifest.card)
    again = reszoo.load(tmp_path / "model.safetensors")
    expected = probabilities(again, manifest.card.preprocessing, kept.images)
    np.testing.assert_allclose(kept.outputs, expected, atol=1e-5)


@pytest.mark.parametrize(
    "name", [n for n in EXPORTED if FORMATS[n].runtime.batch is None]
)
def test_answers_do_not_depend_on_batch_mates(
    exported: Any, digits: Any, name: str
) -> None:
    images = digits[0][:7]
    runtime = open_runtime(exported.folder / FORMATS[name].file)
    alone = np.concatenate([runtime.run(image[None]) for image in images])
    np.testing.assert_allclose(runtime.run(images), alone, atol=1e-5)


@pytest.mark.slow
def test_the_saved_model_needs_nothing_of_ours(exported: Any) -> None:
    script = (
        "import sys\n"
        "sys.modules['reszoo'] = sys.modules['reszoo_export'] = None\n"
        "import tensorflow as tf\n"
        f"loaded = tf.saved_model.load({str(exported.folder / 'saved_model/1')!r})\n"
        "serve = loaded.signatures['serving_default']\n"
        "print(serve.structured_input_signature[1])\n"
        "answers = serve(image=tf.zeros((3, 32, 32, 3), tf.uint8))\n"
        "print({k: (v.shape, v.dtype.name) for k, v in sorted(answers.items())})\n"
        "print(abs(float(tf.reduce_sum(answers['probabilities'])) - 3) < 1e-5)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    signature, outputs, sums = done.stdout.splitlines()[-3:]
    assert "shape=(None, 32, 32, 3), dtype=tf.uint8, name='image'" in signature
    for name in ("logits", "probabilities"):
        assert f"'{name}': (TensorShape([3, 10]), 'float32')" in outputs
    assert sums == "True"


def test_the_onnx_file_keeps_its_promises(exported: Any) -> None:
    model = onnx.load(exported.folder / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version <= 8
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    graph = model.graph
    assert [value.name for value in graph.input] == ["image"]
    assert sorted(value.name for value in graph.output) == ["logits", "probabilities"]
    for value in (*graph.input, *graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    operators = Counter(node.op_type for node in graph.node)
    assert operators["Conv"] == 7
    assert operators["Transpose"] == 1
    assert "BatchNormalization" not in operators
    assert {node.domain for node in graph.node} == {""}


def test_the_tflite_files_keep_their_promises(exported: Any) -> None:
    from ai_edge_litert.interpreter import Interpreter

    types = {"model.tflite": np.float32, "model-int8.tflite": np.uint8}
    for file, dtype in types.items():
        interpreter = Interpreter(str(exported.folder / file))
        (image,) = interpreter.get_input_details()
        (answer,) = interpreter.get_output_details()
        assert (image["dtype"], answer["dtype"]) == (dtype, np.float32)
        assert list(image["shape_signature"]) == [1, 32, 32, 3]
        operators = Counter(op["op_name"] for op in interpreter._get_ops_details())
        # In integers three more select channels: of the pixels and of two shortcuts.
        assert operators["CONV_2D"] == (7 if dtype == np.float32 else 10)
        assert not [name for name in operators if "Flex" in name or "CUSTOM" in name]
    # A byte must mean itself, whatever the calibration images hold.
    assert image["quantization"] == (1.0, 0)
    sizes = [(exported.folder / file).stat().st_size for file in types]
    assert sizes[1] <= 0.35 * sizes[0]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in _WRITERS else pytest.mark.slow)
        for name in FORMATS
    ],
)
def test_labels_of_any_kind_are_in_every_file(tmp_path: Path, name: str) -> None:
    labels = ("10", "2", "Ünicode ✓", "with, comma", "UPPER case")
    model = small(classes=labels)
    row = FORMATS[name]
    calibration = ranges.Calibration(
        np.random.default_rng(0).integers(0, 256, (100, 32, 32, 3), np.uint8)
    )
    row.write(serving.make_serving(model), tmp_path / row.file, calibration)
    predictor = reszoo.Predictor(tmp_path / row.file)
    assert predictor.labels == labels
    assert predictor.card == reszoo.card(model)
    if row.file.endswith(".tflite"):
        with zipfile.ZipFile(tmp_path / row.file) as archive:
            lines = archive.read("labels.txt").decode().splitlines()
        assert lines == list(labels)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"formats": "tflite-int9"}, "Unknown format 'tflite-int9'.*'tflite-int8'"),
        ({"formats": "onnx,onnx"}, "each once. Received: onnx, onnx"),
        ({"formats": ""}, "at least one format"),
        ({"formats": "tflite-int8"}, "needs calibration images: pass calibration"),
    ],
)
def test_requests_that_cannot_be_meant_are_refused(
    tmp_path: Path, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(reszoo.UsageError, match=text):
        reszoo.export(small(), tmp_path / "export", **options)
    assert not list(tmp_path.iterdir())


def test_only_a_classifier_of_the_cards_size_exports(tmp_path: Path) -> None:
    headless = reszoo.build("resnet20", include_top=False)
    with pytest.raises(reszoo.UsageError, match="Only a model with a classifier"):
        reszoo.export(headless, tmp_path / "export")
    wide = reszoo.build("resnet20", input_shape=(32, 64, 3))
    card = reszoo.card(wide)
    record = replace(card.preprocessing, eval_size=32)
    set_card(wide, replace(card, preprocessing=record))
    with pytest.raises(reszoo.UsageError, match="built for images of 32 x 64"):
        reszoo.export(wide, tmp_path / "export")


def test_calibration_is_balanced_distinct_and_unseen(run: Any) -> None:
    source, card = open_source("digits"), reszoo.card(run.model)
    train = source.examples("train")
    avoid = np.stack([train.prepared(i, card.preprocessing) for i in range(200)])
    drawn = draw_calibration(source, card, avoid)
    marks = [fingerprint(image) for image in drawn.images]
    assert len(marks) == len(set(marks)) == 300
    assert not set(marks) & {fingerprint(image) for image in avoid}
    again = draw_calibration(source, card, avoid)
    np.testing.assert_array_equal(drawn.images, again.images)
    answers = probabilities(run.model, card.preprocessing, drawn.images)
    counts = Counter(answers.argmax(-1).tolist())
    assert min(counts.values()) > 20


def test_too_few_calibration_images_are_refused(tmp_path: Path, folder: Path) -> None:
    model = small(classes=("cat", "dog"))
    with pytest.raises(
        reszoo.DataError, match=r"at least 100 images, all distinct. Received: [0-9]+,"
    ):
        reszoo.export(
            model, tmp_path / "export", formats="tflite-int8", calibration=folder
        )
    assert not (tmp_path / "export").exists()


def test_arrays_calibrate_as_folders_do(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    # Of 99 images a share is held out.
    arrays = draw.integers(0, 256, (99, 32, 32, 3), np.uint8), np.arange(99) % 2
    with pytest.raises(reszoo.DataError, match=r"at least 100 images.* Received: 79,"):
        reszoo.export(
            small(classes=2), tmp_path / "x", formats="onnx-int8", calibration=arrays
        )


def test_int8_wants_calibration(tmp_path: Path) -> None:
    with pytest.raises(reszoo.ExportError, match="needs calibration images"):
        FORMATS["tflite-int8"].write(
            serving.make_serving(small()), tmp_path / "x.tflite", None
        )


def test_no_graph_holds_anything_of_training(exported: Any) -> None:
    banned = ("Random", "AssignVariable", "FusedBatchNorm", "Moments", "Dropout")
    loaded = tf.saved_model.load(str(exported.folder / "saved_model/1"))
    graph = loaded.signatures["serving_default"].graph
    names = [operation.type for operation in graph.get_operations()]
    for function in graph._functions.values():
        names += [node.op for node in function.cached_definition.node_def]
    assert names.count("Conv2D") == 7
    assert not [name for name in names if name.startswith(banned)]
