import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import randomise
from made_card import made_card
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

import reszoo
from reszoo_export.formats import FORMATS
from reszoo_export.inspection import inspect
from reszoo_export.manifest import size_and_hash
from reszoo_export.onnx.reader import properties
from reszoo_export.serving import make_serving

# Those of ResNet-20 for 10 classes, with batch normalisation folded: 2 numbers fewer
# than the paper's 0.27M for each of the 688 channels, a bias instead.
_FOLDED = 269_034
_TELL = """
import json
import sys

from reszoo_export.inspection import inspect

found = inspect(sys.argv[1]).to_json()
assert "tensorflow" not in sys.modules
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A random net in three formats, and its card."""
    folder = tmp_path_factory.mktemp("written")
    serving = make_serving(randomise(reszoo.build("resnet20", classes=10)))
    paths = {}
    for name in ("saved_model", "tflite", "onnx"):
        paths[name] = folder / FORMATS[name].file
        FORMATS[name].write(serving, paths[name], None)
    return paths, serving.card


@pytest.fixture(params=["saved_model", "tflite", "onnx"])
def written(request: pytest.FixtureRequest, files: Any) -> Any:
    """One of the files, its row of the table and its card."""
    paths, card = files
    return FORMATS[request.param], paths[request.param], card


def test_a_file_tells_everything_by_itself(written: Any) -> None:
    row, path, card = written
    found = inspect(path)
    size, digest = size_and_hash(path)
    assert (found.format, found.precision) == (row.name, "float32")
    assert (found.bytes, found.sha256) == (size, digest)
    assert found.card == card
    assert found.parameters == _FOLDED
    (image,) = found.inputs
    batch, dtype = (1, "float32") if row.name == "tflite" else ("batch", "uint8")
    assert (image.name, image.dtype, image.layout) == ("image", dtype, "NHWC")
    assert image.shape == (batch, 32, 32, 3)
    names = [each.name for each in found.outputs]
    assert "probabilities" in names
    operators = {name.upper().replace("_", "") for name in found.operators}
    assert "CONV2D" in operators or "CONV" in operators
    convolutions = {"saved_model": "Conv2D", "tflite": "CONV_2D", "onnx": "Conv"}
    assert found.operators[convolutions[row.name]] == 19
    assert set(found.operators) <= row.operators


def test_it_is_told_in_words_and_as_json(written: Any) -> None:
    row, path, card = written
    found = inspect(path)
    rows = dict(found.rows())
    assert rows["model"] == "resnet20, shortcut identity, input 32x32x3"
    assert rows["parameters"] == "269,034"
    assert rows["labels"] == "not recorded; 10 classes"
    assert rows["source"] == "initialised, not trained"
    assert (
        "resize the short side to 32 pixels (bilinear, antialiased), cut 32x32 from "
        "the centre, RGB 0-255" in rows["preprocessing"]
    )
    assert "mean 0.485/0.456/0.406" in rows["preprocessing"]
    for word, line in found.rows():
        assert f"{word} " in found.text()
        assert line in found.text()
    content = json.loads(json.dumps(found.to_json()))
    assert content["card"] == card.to_json()
    assert content["inputs"][0]["layout"] == "NHWC"
    assert content["format"] == row.name


@pytest.mark.parametrize("kind", ["tflite", "onnx", "safetensors"])
def test_tensorflow_is_not_loaded(kind: str, made_files: dict[str, Path]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _TELL, made_files[kind]],
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr
    assert json.loads(done.stdout)["parameters"] > 0


def _onnx_net(card: Any = None, kind: int = TensorProto.FLOAT) -> Any:
    """Make a net of one product and a sum, as tf2onnx writes a classifier."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    weights = {"w": np.ones((3, 4), dtype), "b": np.ones(4, dtype)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("Add", ["y", "b"], ["z"]),
        helper.make_node("Mul", ["z", "s"], ["out"]),
    ]
    constants = {**weights, "s": np.ones(4, dtype)}
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", kind, ["n", 3])],
        [helper.make_tensor_value_info("out", kind, ["n", 4])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, producer_name="somebody")
    helper.set_model_props(model, properties(card) if card else {"names": "{0}"})
    return model


@pytest.fixture
def made_files(tmp_path: Path, files: Any) -> dict[str, Path]:
    paths = {kind: tmp_path / f"net.{kind}" for kind in ("onnx", "safetensors")}
    onnx.save(_onnx_net(made_card()), paths["onnx"])
    save_file({"w": np.ones((2, 3), np.float16)}, paths["safetensors"])
    return {**paths, "tflite": files[0]["tflite"]}


def test_an_onnx_file_with_rounded_activations_is_int8(tmp_path: Path) -> None:
    model = _onnx_net(made_card())
    graph = model.graph
    for name, kind in (("scale", np.float32), ("zero", np.uint8)):
        graph.initializer.append(numpy_helper.from_array(np.ones((), kind), name))
    wide = np.ones((3, 4), np.int8)
    graph.initializer[0].CopyFrom(numpy_helper.from_array(wide, "stored"))
    graph.node[0].input[:] = ["x_back", "w"]
    quantised = ["x_in", "scale", "zero"]
    graph.node.insert(0, helper.make_node("DequantizeLinear", quantised, ["x_back"]))
    graph.node.insert(
        0, helper.make_node("QuantizeLinear", ["x", *quantised[1:]], ["x_in"])
    )
    graph.node.insert(
        0, helper.make_node("DequantizeLinear", ["stored", "scale"], ["w"])
    )
    onnx.save(model, tmp_path / "net.onnx")
    found = inspect(tmp_path / "net.onnx")
    assert (found.format, found.precision) == ("onnx-int8", "int8")
    assert found.parameters == 16


def test_files_of_others_are_described_as_far_as_they_tell(tmp_path: Path) -> None:
    path = tmp_path / "theirs.onnx"
    onnx.save(_onnx_net(kind=TensorProto.FLOAT16), path)
    found = inspect(path)
    assert found.card is None
    assert (found.format, found.precision) == ("onnx-fp16", "float16")
    rows = dict(found.rows())
    assert rows["card"].startswith("none: not written by reszoo")
    assert rows["producer"] == "somebody"
    assert rows["names"] == "{0}"
    # A weight and a bias; the factor behind them is neither.
    assert rows["parameters"] == "16"
    assert rows["input x"] == "float16 (n, 3)"
    save_file({"w": np.ones((2, 3), np.float16)}, tmp_path / "theirs.safetensors")
    checkpoint = inspect(tmp_path / "theirs.safetensors")
    assert checkpoint.precision == "float16"
    assert checkpoint.parameters == 6
    assert dict(checkpoint.rows())["card"].startswith("none")


def test_statistics_of_a_checkpoint_are_no_parameters(tmp_path: Path) -> None:
    net = reszoo.build("resnet20")
    reszoo.save(net, tmp_path / "net.safetensors")
    found = inspect(tmp_path / "net.safetensors")
    assert found.parameters == sum(
        int(np.prod(weight.shape)) for weight in net.trainable_weights
    )
    assert found.format == "safetensors"
    assert found.card == reszoo.card(net)


def test_a_damaged_card_is_no_missing_one(tmp_path: Path) -> None:
    model = _onnx_net(made_card())
    for entry in model.metadata_props:
        if entry.key == "reszoo_card":
            entry.value = entry.value[:40]
    onnx.save(model, tmp_path / "net.onnx")
    assert inspect(tmp_path / "net.onnx").note.startswith("damaged: The card")


@pytest.mark.parametrize("name", ["net.tflite", "net.onnx", "net.safetensors"])
@pytest.mark.parametrize("content", [b"", b"nothing of the kind" * 9])
def test_what_is_no_such_file_is_refused(
    name: str, content: bytes, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(reszoo.CheckpointError, match=name):
        inspect(tmp_path / name)


def test_a_cut_file_is_refused(made_files: dict[str, Path], tmp_path: Path) -> None:
    whole = made_files["tflite"].read_bytes()
    (tmp_path / "cut.tflite").write_bytes(whole[: len(whole) // 3])
    with pytest.raises(reszoo.CheckpointError, match="is damaged, or of another kind"):
        inspect(tmp_path / "cut.tflite")


def test_what_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    with pytest.raises(reszoo.CheckpointError, match="There is no file"):
        inspect(tmp_path / "none.onnx")
    (tmp_path / "net.docx").write_text("x")
    with pytest.raises(reszoo.UnknownNameError, match="Unknown kind of model file"):
        inspect(tmp_path / "net.docx")
    with pytest.raises(reszoo.CheckpointError, match="is not a SavedModel"):
        inspect(tmp_path)
    (tmp_path / "manifest.json").write_text('{"manifest_version": 2, "files": []}')
    (tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(reszoo.UsageError, match=r"one of its files: model\.onnx"):
        inspect(tmp_path)
