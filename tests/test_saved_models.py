"""The exports that are kept in the repository are what the exporter writes today.

The floating-point files are compared byte by byte. The kernels of the int8 file are,
too; its biases and the ranges of its activations come from answers to calibration
images, which processors round differently in their last digits.
"""

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

import reszoo
from reszoo.data.sources import open_source
from reszoo_export.formats import FORMATS
from reszoo_export.manifest import read_manifest, size_and_hash
from reszoo_export.quantization.grids import full_steps, on_grid
from reszoo_export.quantization.integer_model import byte_weights
from reszoo_export.quantization.ranges import draw_calibration
from reszoo_export.report import write_report
from reszoo_export.serving import Serving, make_serving, source_answers
from reszoo_export.snippets import write_snippets
from reszoo_export.verification.reference import make_reference

FOLDER = Path(__file__).parents[1] / "saved_models/resnet20-cifar10"
ARCHIVE = Path(__file__).parents[2] / "shared/data/cifar10-jpeg.tar.xz"
ROWS = json.loads((FOLDER / "manifest.json").read_text())["files"]
NAMES = [row["format"] for row in ROWS]
REMEDY = "make saved-models DATA=... writes it again"
# Another release may convert otherwise; constraints.txt has the one that is meant.
VERSION = next(
    row["verification"]["runtime"] for row in ROWS if row["format"] == "saved_model"
)
same_release = pytest.mark.skipif(
    f"tensorflow {tf.__version__}" != VERSION, reason=f"written with {VERSION}"
)


@pytest.fixture(scope="module")
def model() -> Any:
    return reszoo.build("resnet20", weights="cifar10")


@pytest.fixture(scope="module")
def serving(model: Any) -> Serving:
    return make_serving(model)


def test_all_formats_that_people_ask_for_first_are_there() -> None:
    assert NAMES == ["saved_model", "tflite", "tflite-int8", "onnx"]


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_a_file_is_the_one_that_was_verified(row: dict[str, Any]) -> None:
    assert size_and_hash(FOLDER / row["file"]) == (row["bytes"], row["sha256"])


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_a_file_answers_as_the_bundled_model(row: dict[str, Any], model: Any) -> None:
    # Smooth noise: single pixels would be unlike anything that was calibrated.
    coarse = np.random.default_rng(3).uniform(0, 255, (8, 4, 4, 3))
    images = np.kron(coarse, np.ones((1, 8, 8, 1))).astype(np.uint8)
    expected = reszoo.Predictor(model)
    answers = reszoo.Predictor(FOLDER / row["file"])
    assert answers.labels == expected.labels
    difference = np.abs(answers.predict(images) - expected.predict(images)).max()
    assert difference < (0.2 if "int8" in row["format"] else 1e-5)


@same_release
@pytest.mark.parametrize("name", [n for n in NAMES if not FORMATS[n].calibrated])
def test_the_exporter_writes_the_same_bytes(
    name: str, serving: Serving, tmp_path: Path
) -> None:
    row = FORMATS[name]
    row.write(serving, tmp_path / row.file, None)
    assert size_and_hash(tmp_path / row.file) == size_and_hash(FOLDER / row.file), (
        REMEDY
    )


def quantized(path: Path) -> dict[str, list[Any]]:
    """Return the int8 kernels, int32 biases and scales of a file, in order."""
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    details = {each["index"]: each for each in interpreter.get_tensor_details()}
    found: dict[str, list[Any]] = {"kernels": [], "biases": [], "scales": []}
    for operation in interpreter._get_ops_details():
        if operation["op_name"] == "CONV_2D":
            activation, kernel, bias = (details[i] for i in operation["inputs"][:3])
            found["kernels"].append(interpreter.get_tensor(kernel["index"]))
            found["biases"].append(interpreter.get_tensor(bias["index"]))
            found["scales"].append(activation["quantization"][0])
    return found


def test_the_int8_kernels_are_rounded_as_the_exporter_rounds(serving: Serving) -> None:
    weights = byte_weights(serving.model, serving.card.preprocessing)
    found = quantized(FOLDER / "model-int8.tflite")["kernels"]
    # Channels are padded by 1x1 convolutions of zeros and ones.
    padding = [kernel for kernel in found if kernel.shape[1:3] == (1, 1)]
    assert [sorted(np.unique(kernel)) for kernel in padding] == [[0, 127]] * 3
    kernels = [kernel for kernel in found if kernel.shape[1:3] != (1, 1)]
    convolutions = [pair[0] for pair in weights.values() if pair[0].ndim == 4]
    assert len(kernels) == len(convolutions) == 19
    for stored, kernel in zip(kernels, convolutions, strict=True):
        steps = full_steps(kernel)
        expected = np.round(on_grid(kernel, steps) / steps).transpose(3, 0, 1, 2)
        np.testing.assert_array_equal(stored, expected, err_msg=REMEDY)


def test_the_snippets_are_those_of_the_exporter(tmp_path: Path) -> None:
    written = write_snippets(tmp_path, read_manifest(FOLDER))
    kept = {f"snippets/{path.name}" for path in (FOLDER / "snippets").iterdir()}
    assert kept == set(written), REMEDY
    for name in written:
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert (FOLDER / name).read_text(encoding="utf-8") == text, f"{name}: {REMEDY}"


@same_release
@pytest.mark.slow
def test_calibration_and_report_are_repeated(
    model: Any, serving: Serving, tmp_path: Path
) -> None:
    if not ARCHIVE.exists():
        pytest.skip(f"calibrates with CIFAR-10 (JPEG), which is not at {ARCHIVE}")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path / "data", filter="data")
    source, manifest = open_source(tmp_path / "data"), read_manifest(FOLDER)
    predict = source_answers(model, serving)
    reference = make_reference(predict, serving.card, source)
    calibration = draw_calibration(source, serving.card, reference.images[:10_000])
    row = FORMATS["tflite-int8"]
    row.write(serving, tmp_path / row.file, calibration)
    found, kept = quantized(tmp_path / row.file), quantized(FOLDER / row.file)
    np.testing.assert_allclose(found["scales"], kept["scales"], 1e-5, err_msg=REMEDY)
    for ours, theirs in zip(found["biases"], kept["biases"], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2, err_msg=REMEDY)
    # The images are those that were compared, so that the report is the same text.
    write_report(tmp_path, manifest, reference)
    report = (tmp_path / "REPORT.md").read_text(encoding="utf-8")
    assert (FOLDER / "REPORT.md").read_text(encoding="utf-8") == report, REMEDY
