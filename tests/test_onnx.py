"""ONNX files in floating point: what they answer, and what is inside."""

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import family
import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import randomise
from lively import IMAGES, answers_of, lively, varied_answers_of
from onnx import numpy_helper

import reszoo
from reszoo.weights.names import assign_tensors, to_tensors
from reszoo_export.formats import FORMATS, ExportOptions
from reszoo_export.keras_models.resnet import fold
from reszoo_export.quantization.ranges import Calibration
from reszoo_export.serving import make_serving

KINDS = {"onnx": 1e-5, "onnx-fp16": 2e-3}


def written(model: Any, path: Path, name: str = "onnx", **options: Any) -> Any:
    FORMATS[name].write(make_serving(model, ExportOptions(**options)), path, None)
    return onnx.load(path)


def asked(path: Path, images: Any, *names: str) -> Any:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(list(names) or ["probabilities"], {"image": images})
    return found if names else found[0]


def shapes(values: Any) -> dict[str, list[Any]]:
    return {
        value.name: [
            each.dim_param or each.dim_value
            for each in value.type.tensor_type.shape.dim
        ]
        for value in values
    }


@pytest.fixture(scope="module")
def model() -> Any:
    return lively()


@pytest.fixture(scope="module")
def expected(model: Any) -> Any:
    return varied_answers_of(model)


@pytest.fixture(scope="module")
def files(model: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("onnx")
    for name in KINDS:
        written(model, folder / FORMATS[name].file, name)
    return {name: folder / FORMATS[name].file for name in KINDS}


@pytest.mark.parametrize("name", KINDS)
def test_answers_are_the_models(
    files: dict[str, Path], expected: Any, name: str
) -> None:
    logits, answers = asked(files[name], IMAGES, "logits", "probabilities")
    assert (logits.dtype, answers.dtype) == (np.float32, np.float32)
    difference = np.abs(answers - expected).max()
    assert difference < KINDS[name]
    # Nor is it the float32 file under another name.
    assert (difference > 1e-6) == (name != "onnx")
    odds = np.exp(logits)
    np.testing.assert_allclose(answers, odds / odds.sum(-1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_files_open_everywhere(files: dict[str, Path], name: str) -> None:
    found = onnx.load(files[name])
    assert found.ir_version == 8
    assert [(each.domain, each.version) for each in found.opset_import] == [("", 17)]
    assert shapes(found.graph.input) == {"image": ["batch", 32, 32, 3]}
    assert shapes(found.graph.output) == {
        "logits": ["batch", 5], "probabilities": ["batch", 5],
    }  # fmt: skip
    (image,) = found.graph.input
    assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    counts = Counter(node.op_type for node in found.graph.node)
    assert set(counts) <= FORMATS[name].operators
    assert counts["Transpose"] == 1
    del counts["Cast"]  # One, and one more for each float16 kernel.
    assert sum(counts.values()) == 1 + 1 + 1 + 7 + 7 + 3 + 2 * 2 + 4


def test_nodes_and_weights_are_called_as_in_the_net(
    files: dict[str, Path], model: Any
) -> None:
    graph = onnx.load(files["onnx"]).graph
    called = {node.name: node for node in graph.node}
    assert len(called) == len(graph.node)
    for layer in ("layer1.0.add", "layer2.0.shortcut", "layer3.0.relu", "avgpool"):
        assert list(called[layer].output) == [layer]
    assert list(called["fc"].input) == ["avgpool", "fc.weight", "fc.bias"]
    weights = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    for name, tensor in fold(model).items():
        turned = tensor.T if name == "fc.weight" else tensor
        np.testing.assert_array_equal(weights[name], turned, err_msg=name)


def test_kernels_alone_are_float16(files: dict[str, Path], model: Any) -> None:
    graph = onnx.load(files["onnx-fp16"]).graph
    weights = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    for name, tensor in fold(model).items():
        turned = tensor.T if name == "fc.weight" else tensor
        if tensor.ndim == 1:
            np.testing.assert_array_equal(weights[name], turned, err_msg=name)
            continue
        assert weights[name].dtype == np.float16
        np.testing.assert_allclose(weights[name], turned, rtol=2**-9, atol=1e-4)
        if tensor.ndim == 4:
            # Errors cancel out over a filter, to one step of its smallest weight.
            lost = weights[name].astype(np.float64).sum((2, 3)) - tensor.sum((2, 3))
            assert np.abs(lost).max() < 2e-4
    sizes = [files[name].stat().st_size for name in KINDS]
    assert sizes[1] < 0.53 * sizes[0]


def test_what_float16_cannot_hold_is_refused(tmp_path: Path) -> None:
    net = lively()
    tensors = to_tensors(net)
    tensors["fc.weight"][1, 2] = 7e4
    assign_tensors(net, tensors, "a large weight")
    with pytest.raises(
        reszoo.ExportError, match=r"below 65504.*Received: one of 70000"
    ):
        written(net, tmp_path / "half.onnx", "onnx-fp16")
    assert not (tmp_path / "half.onnx").exists()


def test_channels_come_first_on_request_and_nothing_is_transposed(
    model: Any, expected: Any, tmp_path: Path
) -> None:
    found = written(model, tmp_path / "x.onnx", "onnx-fp16", layout="nchw")
    assert shapes(found.graph.input) == {"image": ["batch", 3, 32, 32]}
    assert "Transpose" not in {node.op_type for node in found.graph.node}
    pixels = IMAGES.transpose(0, 3, 1, 2)
    answers = asked(tmp_path / "x.onnx", pixels)
    np.testing.assert_allclose(answers, expected, atol=2e-3)


@pytest.mark.parametrize(
    "opset",
    [
        # The least, the first of another IR version, and the greatest.
        pytest.param(opset, marks=[] if opset in (13, 15, 18) else pytest.mark.slow)
        for opset in range(13, 19)
    ],
)
def test_every_opset_has_the_answers_of_the_model(
    model: Any, expected: Any, tmp_path: Path, opset: int
) -> None:
    options = {"input_dtype": "float32", "opset": opset}
    found = written(model, tmp_path / "x.onnx", "onnx", **options)
    onnx.checker.check_model(found, full_check=True)
    assert [(each.domain, each.version) for each in found.opset_import] == [("", opset)]
    assert found.ir_version == (7 if opset < 15 else 8)
    assert {node.op_type for node in found.graph.node} <= FORMATS["onnx"].operators
    answers = asked(tmp_path / "x.onnx", IMAGES.astype(np.float32))
    np.testing.assert_allclose(answers, expected, atol=1e-5)


def test_int8_is_the_same_in_every_opset(model: Any, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (100, 32, 32, 3), np.uint8)
    calibration, found = Calibration(images), []
    serving = make_serving(model)
    for opset in (13, 15, 17):
        options = ExportOptions(opset=opset, input_dtype="float32")
        path = tmp_path / f"{opset}.onnx"
        row = FORMATS["onnx-int8"]
        row.write(replace(serving, options=options), path, calibration)
        assert onnx.load(path).opset_import[0].version == opset
        found.append(asked(path, IMAGES.astype(np.float32)))
    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_array_equal(found[1], found[2])


@pytest.mark.parametrize("name", KINDS)
def test_float32_pixels_need_no_cast(
    model: Any, expected: Any, tmp_path: Path, name: str
) -> None:
    found = written(model, tmp_path / "x.onnx", name, input_dtype="float32")
    (image,) = found.graph.input
    assert image.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    start = [node.op_type for node in found.graph.node[:3]]
    assert start == ["Mul", "Add", "Transpose"]
    answers = asked(tmp_path / "x.onnx", IMAGES.astype(np.float32))
    np.testing.assert_allclose(answers, expected, atol=KINDS[name])


def test_a_batch_can_be_fixed(model: Any, expected: Any, tmp_path: Path) -> None:
    found = written(model, tmp_path / "x.onnx", batch=2, layout="nchw")
    assert shapes(found.graph.input) == {"image": [2, 3, 32, 32]}
    assert shapes(found.graph.output)["probabilities"] == [2, 5]
    answers = asked(tmp_path / "x.onnx", IMAGES[:2].transpose(0, 3, 1, 2))
    np.testing.assert_allclose(answers, expected[:2], atol=1e-5)


def test_the_first_pooling_pads_by_itself(tmp_path: Path) -> None:
    net = lively("resnet18")
    found = written(net, tmp_path / "x.onnx")
    counts = Counter(node.op_type for node in found.graph.node)
    assert (counts["MaxPool"], counts["Pad"]) == (1, 0)
    answers = asked(tmp_path / "x.onnx", IMAGES)
    np.testing.assert_allclose(answers, answers_of(net), atol=1e-5)


def test_other_outputs_are_what_the_layers_of_the_model_give(
    model: Any, expected: Any, tmp_path: Path
) -> None:
    path = tmp_path / "x.onnx"
    found = written(model, path, "onnx-fp16", outputs="features")
    assert shapes(found.graph.output) == {"features": ["batch", 64]}
    assert "fc.weight" not in {each.name for each in found.graph.initializer}
    (pooled,) = asked(path, IMAGES, "features")
    tensors = to_tensors(model)
    odds = np.exp(pooled @ tensors["fc.weight"].T + tensors["fc.bias"])
    shares = odds / odds.sum(-1, keepdims=True)
    np.testing.assert_allclose(shares, expected, atol=2e-3)


def test_shortcuts_of_option_a_need_no_slices(tmp_path: Path) -> None:
    """The first only adds channels, the second takes every other pixel as well."""
    model = randomise(reszoo.build(family.SPECS["pre-deep"], seed=0))
    found = written(model, tmp_path / "x.onnx")
    counts = Counter(node.op_type for node in found.graph.node)
    assert (counts["Slice"], counts["Pad"]) == (0, 2 + 1)
    # One in the stem.
    assert counts["MaxPool"] == 1 + 1
    answers = asked(tmp_path / "x.onnx", IMAGES)
    np.testing.assert_allclose(answers, answers_of(model), atol=1e-5)


def test_a_fresh_net_without_biases_converts(tmp_path: Path) -> None:
    net = reszoo.build("resnet20", classes=tuple("abcde"), seed=0)
    assert not to_tensors(net)["fc.bias"].any()
    written(net, tmp_path / "x.onnx")
    answers = asked(tmp_path / "x.onnx", IMAGES)
    np.testing.assert_allclose(answers, answers_of(net), atol=1e-5)


@pytest.mark.slow
def test_another_process_writes_the_same_bytes(
    files: dict[str, Path], tmp_path: Path
) -> None:
    """With other hashes, from another folder, after another conversion."""
    script = (
        "import sys; sys.path.append(sys.argv[1])\n"
        "from pathlib import Path\n"
        "from lively import lively\n"
        "from test_onnx import written\n"
        "written(lively(shortcut='projection'), Path('x.onnx'))\n"
        "written(lively(), Path('again.onnx'), 'onnx-fp16')\n"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(Path(__file__).parent)],
        env={**os.environ, "PYTHONHASHSEED": "321"},
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    again = (tmp_path / "again.onnx").read_bytes()
    assert again == files["onnx-fp16"].read_bytes()


@pytest.mark.parametrize("name", ["onnx", "onnx-int8"])
def test_openvino_gives_the_same_answers(
    model: Any, files: dict[str, Path], tmp_path: Path, name: str
) -> None:
    reason = "compares with OpenVINO; pip install openvino to run it"
    openvino = pytest.importorskip("openvino", reason=reason)
    path = files["onnx"]
    if name == "onnx-int8":
        images = np.random.default_rng(0).integers(0, 256, (100, 32, 32, 3), np.uint8)
        path = tmp_path / "int8.onnx"
        FORMATS[name].write(make_serving(model), path, Calibration(images))
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", exact)
    theirs = compiled({"image": IMAGES})["probabilities"]
    atol = 1e-5 if name == "onnx" else 0.02
    np.testing.assert_allclose(theirs, asked(path, IMAGES), atol=atol)
