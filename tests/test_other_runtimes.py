"""ONNX files in other programs than ONNX Runtime, which give the same answers."""

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from lively import IMAGES, answers_of, lively

from reszoo_export.formats import FORMATS, ExportOptions
from reszoo_export.quantization.ranges import Calibration
from reszoo_export.serving import make_serving

PNNX = shutil.which("pnnx") or shutil.which(
    "pnnx", path=str(Path(sys.executable).parent)
)
# Format and dtype of the pixels.
KINDS = [
    ("onnx", "uint8"), ("onnx", "float32"), ("onnx-int8", "uint8"),
    ("onnx-int8", "float32"),
]  # fmt: skip


def needs(module: str) -> pytest.MarkDecorator:
    """Skip before any model is exported for a test whose program is not installed."""
    return pytest.mark.skipif(
        find_spec(module) is None, reason=f"{module} is not installed"
    )


@pytest.fixture(scope="module", params=["resnet20", "resnet18"])
def model(request: Any) -> Any:
    """One with shortcuts of option A, one with the stem of ImageNet's models."""
    return lively(request.param)


@pytest.fixture(scope="module")
def files(model: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Path]:
    folder = tmp_path_factory.mktemp("other")
    pixels = np.random.default_rng(0).integers(0, 256, (100, 32, 32, 3), np.uint8)
    calibration = Calibration(pixels)
    made = {}
    for name, dtype in KINDS:
        made[name, dtype] = folder / f"{name}-{dtype}.onnx"
        options: Any = {"input_dtype": dtype}
        serving = make_serving(model, ExportOptions(**options))
        FORMATS[name].write(serving, made[name, dtype], calibration)
    return made


def of_onnxruntime(path: Path, dtype: str) -> Any:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["probabilities"], {"image": IMAGES.astype(dtype)})[0]


def check(found: Any, path: Path, model: Any, name: str, dtype: str) -> None:
    """Compare with ONNX Runtime; of int8, roundings may fall the other way."""
    expected = of_onnxruntime(path, dtype)
    np.testing.assert_allclose(found, expected, atol=1e-4 if name == "onnx" else 0.1)
    exact = answers_of(model)
    np.testing.assert_allclose(found, exact, atol=1e-4 if name == "onnx" else 0.15)


@needs("cv2")
@pytest.mark.parametrize(("name", "dtype"), KINDS)
def test_opencv_reads_the_files(model: Any, files: Any, name: str, dtype: str) -> None:
    cv2 = pytest.importorskip("cv2")
    network = cv2.dnn.readNetFromONNX(str(files[name, dtype]))
    found = []
    for image in IMAGES:
        network.setInput(image[None].astype(dtype))
        found.append(network.forward("probabilities").ravel().copy())
    check(np.array(found), files[name, dtype], model, name, dtype)


@needs("onnxsim")
@pytest.mark.parametrize(("name", "dtype"), KINDS)
def test_onnxsim_keeps_the_answers(
    model: Any, files: Any, tmp_path: Path, name: str, dtype: str
) -> None:
    onnxsim = pytest.importorskip("onnxsim")
    simplified, is_equal = onnxsim.simplify(onnx.load(files[name, dtype]))
    assert is_equal
    onnx.save(simplified, tmp_path / "simple.onnx")
    found = of_onnxruntime(tmp_path / "simple.onnx", dtype)
    check(found, files[name, dtype], model, name, dtype)


@needs("sympy")
@pytest.mark.parametrize(("name", "dtype"), KINDS)
def test_onnx_runtimes_own_preprocessing_takes_the_files(
    model: Any, files: Any, tmp_path: Path, name: str, dtype: str
) -> None:
    """Its shape inference follows the open batch through every operator."""
    command = [sys.executable, "-m", "onnxruntime.quantization.preprocess"]
    command += ["--input", str(files[name, dtype]), "--output", "ready.onnx"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    found = of_onnxruntime(tmp_path / "ready.onnx", dtype)
    check(found, files[name, dtype], model, name, dtype)


@needs("openvino")
@pytest.mark.parametrize(("name", "dtype"), KINDS)
def test_openvino_reads_the_files(
    model: Any, files: Any, name: str, dtype: str
) -> None:
    openvino = pytest.importorskip("openvino")
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(files[name, dtype], "CPU", exact)
    found = compiled({"image": IMAGES.astype(dtype)})["probabilities"]
    check(found, files[name, dtype], model, name, dtype)


@needs("ncnn")
@pytest.mark.skipif(PNNX is None, reason="pnnx, which converts for ncnn, is missing")
def test_ncnn_takes_float32_pixels_by_way_of_pnnx(
    model: Any, files: Any, tmp_path: Path
) -> None:
    ncnn = pytest.importorskip("ncnn")
    path = files["onnx", "float32"]
    shutil.copy(path, tmp_path / "m.onnx")
    words = [str(PNNX), "m.onnx", "inputshape=[1,32,32,3]f32", "fp16=0"]
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
    network = ncnn.Net()
    for option in ("packed", "storage", "arithmetic"):
        setattr(network.opt, f"use_fp16_{option}", False)
    assert network.load_param(str(tmp_path / "m.ncnn.param")) == 0
    assert network.load_model(str(tmp_path / "m.ncnn.bin")) == 0
    (source,), found = network.input_names(), []
    names = [each.name for each in onnx.load(path).graph.output]
    output = network.output_names()[names.index("probabilities")]
    for image in IMAGES.astype(np.float32):
        extractor = network.create_extractor()
        extractor.input(source, ncnn.Mat(image).clone())
        found.append(np.array(extractor.extract(output)[1]).ravel())
    check(np.array(found), path, model, "onnx", "float32")
