"""Exported files with NumPy, Pillow and one runtime: `pip install --no-deps reszoo`.

`make test-dist` installs just these; here an import hook hides all other packages.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

import reszoo
from reszoo_export.onnx.reader import model_class

ROOT = Path(__file__).parent.parent
EXPORT = ROOT / "saved_models" / "resnet20-cifar10"
# The runtimes bring flatbuffers and protobuf.
RUNTIMES = {"onnxruntime": "model.onnx", "ai_edge_litert": "model-int8.tflite"}
HIDDEN = [
    "tensorflow", "keras", "onnx", "safetensors", "rich", "typer", "click", "h5py",
    "huggingface_hub", "jinja2", "matplotlib", "tf2onnx", "sklearn", "scipy",
]  # fmt: skip
# Python imports it at its start, also in the subprocess that describes files.
HOOK = """
import importlib.util, os, sys
hidden, find = os.environ["HIDDEN"].split(), importlib.util.find_spec
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hide())
importlib.util.find_spec = lambda name: None if name in hidden else find(name)
"""
WRONG = """
import sys, numpy, reszoo
reszoo.Predictor(sys.argv[1]).predict(numpy.ones((32, 32, 3), "float32"))
"""
TOP = """
import json, sys, reszoo
print(json.dumps(reszoo.Predictor(sys.argv[1]).top(sys.argv[2])))
"""


@pytest.fixture(scope="module")
def hook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hook")
    (folder / "sitecustomize.py").write_text(HOOK, encoding="utf-8")
    return folder


def run(hook: Path, runtime: str, *call: str) -> subprocess.CompletedProcess[str]:
    hidden = [*HIDDEN, *(each for each in RUNTIMES if each != runtime)]
    path = os.pathsep.join([str(hook), *filter(None, sys.path)])
    return subprocess.run(
        [sys.executable, *call], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": path, "HIDDEN": " ".join(hidden)},
    )  # fmt: skip


def command(hook: Path, runtime: str, *call: str) -> subprocess.CompletedProcess[str]:
    return run(hook, runtime, "-m", "reszoo", *call)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> str:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    path = tmp_path_factory.mktemp("photo") / "猫.png"
    Image.fromarray(pixels).save(path)
    return str(path)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_file_needs_its_runtime_only(runtime: str, photo: str, hook: Path) -> None:
    file = str(EXPORT / RUNTIMES[runtime])
    expected = reszoo.Predictor(file).top(photo)
    found = json.loads(run(hook, runtime, "-c", TOP, file, photo).stdout)
    assert [label for label, _ in found] == [label for label, _ in expected]
    assert [p for _, p in found] == pytest.approx([p for _, p in expected], abs=1e-6)
    printed = command(hook, runtime, "predict", file, photo, "--top", "2", "--json")
    assert [each["label"] for each in json.loads(printed.stdout)[photo]] == [
        label for label, _ in expected[:2]
    ]
    answers = Path(photo).with_name(f"{runtime}.csv")
    asked = ("predict", file, str(Path(photo).parent), "--output", str(answers))
    assert "1 rows in" in command(hook, runtime, *asked).stdout
    assert expected[0][0] in answers.read_text(encoding="utf-8")
    lines = command(hook, runtime, "predict", file, photo).stdout.splitlines()
    assert len(lines) == 6
    assert lines[1].split() == [photo, expected[0][0], f"{expected[0][1]:.2%}"]
    assert "scaled to 0..1" in run(hook, runtime, "-c", WRONG, file).stderr


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_file_is_described_as_with_all_packages(runtime: str, hook: Path) -> None:
    file = str(EXPORT / RUNTIMES[runtime])
    described = json.loads(command(hook, runtime, "inspect", file, "--json").stdout)
    assert described == json.loads(json.dumps(reszoo.inspect(file).to_json()))
    assert described["parameters"] > 269_000


def test_what_needs_another_package_says_which(
    photo: str, folder: Path, hook: Path
) -> None:
    saved_model, other = str(EXPORT / "saved_model"), str(EXPORT / "model.tflite")
    for call, package in [
        (("predict", saved_model, photo), "tensorflow"),
        (("predict", other, photo), "ai_edge_litert"),
        (
            ("inspect", str(ROOT / "reszoo/bundled/resnet20-cifar10.safetensors")),
            "safetensors",
        ),
        (("train", photo, "--model", "resnet20", "--output", "runs/x"), "keras"),
        (("evaluate", str(EXPORT / "model.onnx"), str(folder)), "needs tensorflow,"),
        (("scan", str(folder)), "needs tensorflow,"),
    ]:
        done = command(hook, "onnxruntime", *call)
        assert done.returncode in (1, 2), call
        assert package in done.stderr, call
        assert "installed" in done.stderr or "pip install" in done.stderr, call


def test_commands_parse_as_with_typer(photo: str, hook: Path) -> None:
    helped = command(hook, "onnxruntime", "predict", "--help").stdout
    for name in ("MODEL", "INPUT", "--output", "--top", "-k", "--json"):
        assert name in helped
    for call in (["predict"], ["predict", "x", photo, "--top", "two"], ["nonsense"]):
        assert command(hook, "onnxruntime", *call).returncode == 2, call
    options = ["--bad-images", "skip", "--no-vendor", "--output", "x"]
    done = command(hook, "onnxruntime", "web", str(EXPORT / "missing"), *options[2:])
    # Parsed, and then the page's templates miss their library.
    assert "jinja2" in done.stderr
    assert "pip install reszoo" in done.stderr
    assert command(hook, "onnxruntime", "web", photo, *options).returncode == 2


def test_the_stored_schema_is_that_of_onnx() -> None:
    def fields(message: object) -> dict[str, set[tuple[object, ...]]]:
        return {
            name: {(each.number, each.name, each.type) for each in found.fields}
            for name, found in message.DESCRIPTOR.file.message_types_by_name.items()  # type: ignore[attr-defined]
        }

    ours, theirs = fields(model_class()), fields(onnx.ModelProto)
    assert len(ours) == 20
    for name, found in ours.items():
        assert found <= theirs[name], name
    content = (EXPORT / "model.onnx").read_bytes()
    model = model_class().FromString(content)
    assert model.SerializeToString(deterministic=True) == content
