"""Int8 files: what they compute with, what they answer, and how that was chosen."""

import copy
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from defects import before, both, scaled, skip, spoilt, weights

import reszoo
from reszoo.data.sources import open_source
from reszoo.metrics import prepared_batches, probabilities
from reszoo.specs import SPECS
from reszoo_export.formats import FORMATS, ExportOptions
from reszoo_export.onnx import writer
from reszoo_export.onnx.reader import activation_reader, find_problems
from reszoo_export.quantization import grids, integer_model, ranges
from reszoo_export.quantization.ranges import draw_calibration, recorded
from reszoo_export.serving import make_serving
from reszoo_export.tflite import flatbuffer
from reszoo_export.tflite import reader as tflite_reader
from reszoo_export.tflite import writer as tflite_writer
from reszoo_export.verification.reference import Reference, synthetic_images
from reszoo_export.verification.verify import verify_in_process

INT32, OPERATORS = schema.TensorType.INT32, schema.BuiltinOperator
# Runs programs on a processor of another kind.
QEMU = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")


@pytest.fixture(scope="module")
def digits(run: Any) -> Any:
    """A trained net in its serving form, its calibration, images and its answers."""
    serving, source = make_serving(run.model), open_source("digits")
    record = serving.card.preprocessing
    examples = source.examples("test")
    images = np.concatenate(list(prepared_batches(examples, record, 64)))
    calibration = draw_calibration(source, serving.card, images)
    expected = probabilities(
        run.model, record, images, temperature=serving.card.temperature
    )
    return serving, calibration, images, expected


@pytest.fixture(scope="module")
def chosen(digits: Any) -> Any:
    serving, calibration, *_ = digits
    return ranges.choose(serving, calibration)


@pytest.fixture(scope="module")
def files(digits: Any, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    serving, calibration, *_ = digits
    folder = tmp_path_factory.mktemp("int8")
    names = ("a.tflite", "uint8.tflite", "int8.tflite", "a.onnx")
    paths = {name: folder / name for name in names}
    tflite_writer.write_int8(serving, paths["a.tflite"], calibration)
    for dtype in ("uint8", "int8"):
        integers = replace(serving, options=ExportOptions(integer_io=dtype))
        tflite_writer.write_int8(integers, paths[f"{dtype}.tflite"], calibration)
    writer.write_int8(serving, paths["a.onnx"], calibration)
    assert set(folder.iterdir()) == set(paths.values())
    return paths


def run_tflite(path: Path, images: Any, output: str = "probabilities") -> Any:
    interpreter = Interpreter(str(path))
    runner = interpreter.get_signature_runner("serving_default")
    dtype = runner.get_input_details()["image"]["dtype"]
    return np.concatenate(
        [runner(image=image[None].astype(dtype))[output] for image in images]
    )


def run_onnx(path: Path, images: Any, output: str = "probabilities") -> Any:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run([output], {"image": images})[0]


RUNNERS = {"a.tflite": run_tflite, "a.onnx": run_onnx}


def computed(digits: Any, weights: Any, chosen: Any) -> Any:
    """Answer in Keras with rounded weights and activations."""
    serving, _, images, _ = digits
    net = integer_model.build_integer_model(serving.model, weights, chosen.inner_ranges)
    logits = net.predict(images.astype(np.float32), verbose=0)
    return keras.ops.softmax(logits).numpy()


@pytest.mark.parametrize("name", RUNNERS)
def test_int8_files_answer_nearly_as_the_model(
    files: Any, digits: Any, chosen: Any, name: str
) -> None:
    _, _, images, expected = digits
    found = RUNNERS[name](files[name], images)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.99
    assert np.abs(found - expected).sum(1).mean() < 0.02
    # What was measured in Keras is what the runtimes do, each on its own grids.
    full, narrow = (
        np.abs(found - computed(digits, weights, chosen)).sum(1).mean()
        for weights in (chosen.weights, chosen.narrow_weights)
    )
    own, other = (narrow, full) if name == "a.onnx" else (full, narrow)
    assert own < 0.01
    assert own < 0.75 * other
    divergence = (expected * np.log(expected / np.maximum(found, 1e-9))).sum(1).mean()
    assert divergence < 5 * chosen.best.divergence + 1e-4


# Prints nothing; what runs it has only these packages to load.
_PLAYED = {
    "a.onnx": """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
images = numpy.load(sys.argv[2])
numpy.save(sys.argv[3], session.run(["probabilities"], {"image": images})[0])
""",
    "a.tflite": """
import sys, numpy
from ai_edge_litert.interpreter import Interpreter
runner = Interpreter(sys.argv[1]).get_signature_runner("serving_default")
found = [runner(image=image[None]) for image in numpy.load(sys.argv[2])]
numpy.save(sys.argv[3], numpy.concatenate([each["probabilities"] for each in found]))
""",
}


@pytest.mark.skipif(not QEMU, reason="qemu-user plays the processor; it is not here")
@pytest.mark.parametrize("name", RUNNERS)
def test_a_processor_without_a_dot_product_of_bytes_answers_the_same(
    files: Any, digits: Any, tmp_path: Path, name: str
) -> None:
    images = digits[2][:100]
    np.save(tmp_path / "images.npy", images)
    paths = [files[name], tmp_path / "images.npy", tmp_path / "found.npy"]
    program = [sys.executable, "-c", _PLAYED[name], *map(str, paths)]
    words = [str(QEMU), "-cpu", "Haswell", *program]
    subprocess.run(words, check=True, capture_output=True)
    found = np.load(tmp_path / "found.npy")
    # Only the softmax is computed in floating point.
    np.testing.assert_allclose(found, RUNNERS[name](files[name], images), atol=1e-6)


@pytest.mark.parametrize(("dtype", "zero"), [("uint8", 0), ("int8", -128)])
def test_integers_in_and_out_are_in_steps_of_a_256th(
    files: Any, digits: Any, dtype: str, zero: int
) -> None:
    serving, _, images, expected = digits
    path = files[f"{dtype}.tflite"]
    interpreter = Interpreter(str(path))
    (image,), (answer,) = (
        interpreter.get_input_details(),
        interpreter.get_output_details(),
    )
    assert (image["dtype"], image["quantization"]) == (np.dtype(dtype), (1.0, zero))
    assert (answer["dtype"], answer["quantization"]) == (
        np.dtype(dtype),
        (1 / 256, zero),
    )
    kinds = {np.dtype(each["dtype"]).kind for each in interpreter.get_tensor_details()}
    assert kinds <= {"i", "u"}
    found = (run_tflite(path, images.astype(np.int16) + zero) - np.float32(zero)) / 256
    assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.98
    # The predictor shifts pixels and probabilities by itself.
    answers = reszoo.Predictor(path).predict_prepared(images)
    np.testing.assert_array_equal(answers, found)
    targets = expected.argmax(1).astype(np.int64)
    reference = Reference(images, expected, targets, synthetic=0)
    asked: Any = dtype
    options = ExportOptions(integer_io=asked)
    row = FORMATS["tflite-int8"]
    found = verify_in_process(row, path, reference, options, serving.card)
    assert found.verification.problems == ()
    assert [each["dtype"] for each in (*found.inputs, *found.outputs)] == [dtype] * 2


def test_both_kinds_of_integers_have_the_same_operators(files: Any) -> None:
    """int8 needs no conversion at either end."""
    uint8, int8 = (
        Counter(
            each["op_name"] for each in Interpreter(str(files[name]))._get_ops_details()
        )
        for name in ("uint8.tflite", "int8.tflite")
    )
    assert uint8 - int8 == Counter(QUANTIZE=2)
    assert int8 == {
        "CONV_2D": 7 + 1 + 2, "ADD": 3, "PAD": 2, "MEAN": 1, "FULLY_CONNECTED": 1,
        "SOFTMAX": 1,
    }  # fmt: skip


def test_floating_point_inside_an_integer_file_is_a_problem(
    files: Any, digits: Any
) -> None:
    row, card = FORMATS["tflite-int8"], digits[0].card
    reference = Reference(
        digits[2][:9], digits[3][:9], np.zeros(9, np.int64), synthetic=0
    )
    options = ExportOptions(integer_io="int8")
    found = verify_in_process(row, files["a.tflite"], reference, options, card)
    problems = "; ".join(found.verification.problems)
    assert "image must be int8, not uint8" in problems
    assert "probabilities must be int8 [1, 10], not probabilities float32" in problems
    assert "every tensor must be of integers; " in problems


def test_a_byte_means_itself(files: Any) -> None:
    (image,) = Interpreter(str(files["a.tflite"])).get_input_details()
    assert (image["dtype"], image["quantization"]) == (np.uint8, (1.0, 0))
    graph = onnx.load(files["a.onnx"]).graph
    start = ["Cast", "QuantizeLinear", "Transpose", "DequantizeLinear"]
    assert [node.op_type for node in graph.node[:4]] == start
    values = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    _, scale, zero = next(n for n in graph.node if n.op_type.startswith("Deq")).input
    assert (values[scale], values[zero]) == (1.0, 0)


def test_every_convolution_computes_in_integers(files: Any, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(
        files["a.onnx"], options, providers=["CPUExecutionProvider"]
    )
    operators = Counter(
        n.op_type for n in onnx.load(tmp_path / "fused.onnx").graph.node
    )
    # One adds the channel inside the picture, two are shortcuts.
    assert operators["QLinearConv"] == 7 + 1 + 2
    assert operators["QLinearAdd"] == 3
    assert operators["QGemm"] == operators["QLinearGlobalAveragePool"] == 1
    assert not operators["Conv"] + operators["Gemm"] + operators["Add"]
    interpreter = Interpreter(str(files["a.tflite"]))
    types = {each["index"]: each["dtype"] for each in interpreter.get_tensor_details()}
    kernels = [
        types[operation["inputs"][1]]
        for operation in interpreter._get_ops_details()
        if operation["op_name"] == "CONV_2D"
    ]
    assert kernels == [np.int8] * (7 + 1 + 2)


def test_channels_are_added_by_convolutions_alone(files: Any) -> None:
    """OpenCV misreads padding of uint8; accelerators lack slices with a stride."""
    graph = onnx.load(files["a.onnx"]).graph
    assert not {"Pad", "Slice"} & {node.op_type for node in graph.node}
    found = Counter(
        each["op_name"]
        for each in Interpreter(str(files["a.tflite"]))._get_ops_details()
    )
    assert not found["PADV2"] + found["STRIDED_SLICE"]
    # Two in front of a convolution of stride 2, none for a shortcut.
    assert found["PAD"] == 2


def test_selected_channels_are_exactly_those_of_the_input(
    files: Any, digits: Any
) -> None:
    images = digits[2][:20]
    seen = {
        name: array
        for name, array in activation_reader(files["a.onnx"])(images).items()
        if name.endswith(".rounded")
    }
    inside = seen["inside.rounded"]
    np.testing.assert_array_equal(inside[:, :3], images.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(inside[:, 3], np.full_like(inside[:, 3], 255))
    before, after = seen["layer1.0.relu.rounded"], seen["layer2.0.shortcut.rounded"]
    np.testing.assert_array_equal(after[:, 8:24], before[:, :, ::2, ::2])
    assert not after[:, :8].any()
    assert not after[:, 24:].any()


def test_onnx_int8_keeps_the_promises_of_the_float_file(
    files: Any, digits: Any, tmp_path: Path
) -> None:
    model = onnx.load(files["a.onnx"])
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version == 8
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    assert [value.name for value in model.graph.input] == ["image"]
    assert {value.name for value in model.graph.output} == {"logits", "probabilities"}
    assert reszoo.Predictor(files["a.onnx"]).card == digits[0].card
    kinds = Counter(each.data_type for each in model.graph.initializer)
    assert kinds[onnx.TensorProto.INT8] == 2 * (8 + 3)
    writer.write_int8(digits[0], tmp_path / "again.onnx", digits[1])
    assert (tmp_path / "again.onnx").read_bytes() == files["a.onnx"].read_bytes()


def test_the_ranges_of_least_divergence_are_taken(chosen: Any) -> None:
    assert [trial.share for trial in chosen.trials] == list(ranges.SHARES)
    assert chosen.best.divergence == min(t.divergence for t in chosen.trials)
    assert len({trial.divergence for trial in chosen.trials}) > 1
    told = chosen.to_json()
    assert (told["images"], told["tried_on"]) == (300, 200)
    assert "weights" not in told


def test_a_choice_is_made_once_for_all_formats(digits: Any, chosen: Any) -> None:
    serving, calibration, *_ = digits
    again = ranges.choose(serving, calibration)
    assert again is chosen


def problems_of(path: Path, digits: Any) -> list[str]:
    row, options = FORMATS["onnx-int8"], digits[0].options
    return find_problems(path, row, digits[0].card, digits[2], options)


def test_weights_that_overflow_on_other_processors_are_seen(
    files: Any, digits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert problems_of(files["a.onnx"], digits) == []
    monkeypatch.setattr(ranges, "narrow_steps", grids.full_steps)
    # Nothing is chosen with it yet.
    calibration = replace(digits[1], choices={})
    writer.write_int8(digits[0], tmp_path / "a.onnx", calibration)
    (told,) = problems_of(tmp_path / "a.onnx", digits)
    expected = r"its weights overflow on x86 processors without VNNI: two of [\w.]+ add"
    expected += r" up to 2\d\d, and at most 128 fit; export it again"
    assert re.fullmatch(expected, told), told


def test_a_file_is_as_near_to_its_model_as_its_rounding_explains(
    files: Any, digits: Any, tmp_path: Path
) -> None:
    """A layer 10 % too weak passes the limits of int8, but not what rounding does."""
    serving, calibration, images, expected = digits
    targets = expected.argmax(1).astype(np.int64)
    reference, row = Reference(images, expected, targets, 0), FORMATS["onnx-int8"]
    told = recorded(row, serving, calibration, reference)
    assert told is not None
    assert 1e-5 < told["variation"] < 0.01
    assert "synthetic_variation" not in told
    model, weak = onnx.load(files["a.onnx"]), tmp_path / "weak.onnx"
    for scale in model.graph.initializer:
        if re.fullmatch(r"layer3\.0\.conv1\.(weight|bias)\.scale", scale.name):
            less = np.float32(0.9) * onnx.numpy_helper.to_array(scale)
            scale.CopyFrom(onnx.numpy_helper.from_array(less, scale.name))
    onnx.save(model, weak)

    def problems(limits: Any, path: Path) -> str:
        found = verify_in_process(
            limits, path, reference, serving.options, serving.card
        ).verification
        return "; ".join(found.problems)

    limited = row.explained_by(told)
    assert problems(limited, files["a.onnx"]) == ""
    assert problems(row, weak) == ""
    assert re.match("the total variation distance to the mod", problems(limited, weak))


def test_biases_in_other_steps_than_their_products_are_seen(
    files: Any, digits: Any, tmp_path: Path
) -> None:
    serving = digits[0]
    content = schema.ModelT.InitFromPackedBuf(files["a.tflite"].read_bytes())
    rounded = [x.quantization for x in content.subgraphs[0].tensors if x.type == INT32]
    bias = next(each for each in rounded if each.scale is not None)
    bias.scale = 2 * bias.scale
    path = tmp_path / "a.tflite"
    path.write_bytes(flatbuffer.packed(content))
    row = FORMATS["tflite-int8"]
    found = [
        tflite_reader.find_problems(each, row, serving.card, digits[2], serving.options)
        for each in (files["a.tflite"], path)
    ]
    expected = ["scales of weights and of biases do not belong together"]
    assert found == [[], expected]


def wrong_steps(path: Path, digits: Any, chosen: Any) -> list[str]:
    """Return what is wrong with the steps of an int8 file, given the chosen ranges."""
    serving, (row,) = digits[0], (r for r in FORMATS.values() if r.file == path.name)
    told = row.explained_by({"activations": chosen.ranges})
    find = told.runtime.reader.find_problems
    return find(path, told, serving.card, digits[2], serving.options)


def with_steps(
    content: bytes, kind: int, place: int, factor: float, zero: int
) -> bytes:
    """Change scale and zero point of the output of a TFLite file's operator."""
    model = schema.ModelT.InitFromPackedBuf(content)
    (graph,), codes = model.subgraphs, [c.builtinCode for c in model.operatorCodes]
    users = [each for each in graph.operators if codes[each.opcodeIndex] == kind]
    tensor = graph.tensors[users[place].outputs[0]]
    # Others may refer to the same object.
    tensor.quantization = copy.copy(tensor.quantization)
    tensor.quantization.scale = factor * tensor.quantization.scale
    tensor.quantization.zeroPoint = tensor.quantization.zeroPoint + zero
    return flatbuffer.packed(model)


OTHER_RANGE = "activations have ranges that calibration did not choose"
OTHER_BIASES = "scales of weights and of biases do not belong together"
NOT_ROUNDED = "activations are not rounded to their ranges: "


@pytest.mark.parametrize(
    ("kind", "place", "factor", "zero", "layer"),
    [
        # A convolution before a sum, and one with a ReLU, in front of another one.
        (OPERATORS.CONV_2D, -2, 2.0, 0, "layer3.0.conv2"),
        (OPERATORS.CONV_2D, -3, 1.0, 16, "layer3.0.relu1"),
        (OPERATORS.ADD, -1, 1.01, 0, "layer3.0.relu"),
    ],
    ids=["too wide", "too low", "1 % too wide"],
)
def test_a_tflite_file_has_the_ranges_that_calibration_chose(
    kind: int, place: int, factor: float, zero: int, layer: str,
    files: Any, digits: Any, chosen: Any, tmp_path: Path,
) -> None:  # fmt: skip
    path, content = tmp_path / "model-int8.tflite", files["a.tflite"].read_bytes()
    path.write_bytes(content)
    assert wrong_steps(path, digits, chosen) == []
    path.write_bytes(with_steps(content, kind, place, factor, zero))
    *_, other, missing = wrong_steps(path, digits, chosen)
    assert (other, missing) == (OTHER_RANGE, NOT_ROUNDED + layer)


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_files_of_integers_have_the_ranges_that_calibration_chose(
    dtype: str, files: Any, digits: Any, chosen: Any, tmp_path: Path
) -> None:
    path = Path(shutil.copy(files[f"{dtype}.tflite"], tmp_path / "model-int8.tflite"))
    assert wrong_steps(path, digits, chosen) == []


def unrounded(graph: Any) -> None:
    """Compute a ReLU, and with it the next convolution, in floating point."""
    skip("layer3.0.relu1.rounded")(graph)
    skip("layer3.0.relu1.quantized")(graph)
    before("layer3.0.conv2", "Relu")(graph)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda graph: None, []),
        (
            weights("layer3.0.relu1.scale", scaled(0.5)),
            [OTHER_BIASES, OTHER_RANGE, f"{NOT_ROUNDED}layer3.0.relu1"],
        ),
        (unrounded, [OTHER_BIASES, f"{NOT_ROUNDED}layer3.0.relu1"]),
        (weights("layer3.0.conv2.bias.scale", scaled(1.01)), [OTHER_BIASES]),
        (weights("layer3.0.conv2.weight.scale", scaled(1.01)), [OTHER_BIASES]),
        (
            both(skip("layer3.0.conv2.rounded"), skip("layer3.0.conv2.quantized")),
            [f"{NOT_ROUNDED}layer3.0.conv2"],
        ),
    ],
    ids=["nothing", "too narrow", "in float", "bias", "weights", "sum in float"],
)
def test_an_onnx_file_has_the_ranges_that_calibration_chose(
    change: Any, told: list[str], files: Any, digits: Any, chosen: Any, tmp_path: Path
) -> None:
    path = tmp_path / "model-int8.onnx"
    path.write_bytes(spoilt(onnx.load(files["a.onnx"]), change))
    assert wrong_steps(path, digits, chosen) == told


def test_int16_activations_answer_nearly_as_the_model(
    digits: Any, tmp_path: Path
) -> None:
    serving, calibration, images, expected = digits
    tflite_writer.write_int16x8(serving, tmp_path / "i.tflite", calibration)
    # Ten only: LiteRT has no fast kernels for them.
    found = run_tflite(tmp_path / "i.tflite", images[:10])
    assert np.abs(found - expected[:10]).max() < 0.03


def test_biases_of_zeros_may_share_a_tensor(digits: Any, tmp_path: Path) -> None:
    # Of convolutions without a norm after them: the converter merges their biases.
    spec = replace(SPECS["wrn16_4"], depths=(1, 1), widths=(16, 32), name="wide")
    model = reszoo.build(spec, input_shape=(32, 32, 3), seed=0)
    serving, path = make_serving(model), tmp_path / "i.tflite"
    tflite_writer.write_int16x8(serving, path, digits[1])
    file = Interpreter(str(path))
    biases = [each["inputs"][2] for each in file._get_ops_details() if is_conv(each)]
    assert len({*biases}) < len(biases)
    row, seen = FORMATS["tflite-int16x8"], digits[2][:2]
    problems = tflite_reader.find_problems(
        path, row, serving.card, seen, ExportOptions()
    )
    assert problems == []


def is_conv(operator: Any) -> bool:
    return bool(operator["op_name"] == "CONV_2D")


def test_int16_activations_have_room_for_more_than_calibration_shows(
    digits: Any, tmp_path: Path
) -> None:
    model, calibration = reszoo.build("resnet20", weights="cifar10"), digits[1]
    tflite_writer.write_int16x8(make_serving(model), tmp_path / "i.tflite", calibration)
    # Flat colours, checkerboard, noise: digits show nothing like it.
    glaring = synthetic_images(32)
    expected = probabilities(model, reszoo.card(model).preprocessing, glaring)
    found = run_tflite(tmp_path / "i.tflite", glaring)
    assert np.abs(found - expected).max() < 0.3


def test_features_and_other_layouts_are_quantised_as_well(
    digits: Any, run: Any, tmp_path: Path
) -> None:
    serving, calibration, images, _ = digits
    options = ExportOptions(outputs="features", layout="nchw")
    features = make_serving(run.model, options)
    record = serving.card.preprocessing
    expected = features.model(record.normalise(images[:20].astype(np.float32))).numpy()
    path = tmp_path / "features.onnx"
    writer.write_int8(features, path, calibration)
    turned = np.ascontiguousarray(images[:20].transpose(0, 3, 1, 2))
    found = run_onnx(path, turned, "features")
    assert found.shape == expected.shape
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.995
    tflite_writer.write_int8(features, tmp_path / "features.tflite", calibration)
    found = run_tflite(tmp_path / "features.tflite", images[:20], "features")
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.995


@pytest.mark.parametrize("name", [r.name for r in FORMATS.values() if r.calibrated])
def test_no_calibration_is_refused(digits: Any, tmp_path: Path, name: str) -> None:
    with pytest.raises(reszoo.ExportError, match=f"{name} needs calibration images"):
        FORMATS[name].write(digits[0], tmp_path / "file", None)
    assert not list(tmp_path.iterdir())
