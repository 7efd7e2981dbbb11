"""Exported files and folders of others: what they may allocate, and what we raise."""

import json
import os
import shutil
import tracemalloc
import zipfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from made_card import made_card
from onnx import TensorProto, helper, numpy_helper

import reszoo
from reszoo.archives import read_arrays
from reszoo.files import parse_json
from reszoo_export import protobuf
from reszoo_export.inspection import describe_file
from reszoo_export.isolation import (
    Limits,
    SubprocessError,
    limits_for,
    run_in_subprocess,
)
from reszoo_export.manifest import is_export, read_manifest
from reszoo_export.onnx.reader import properties
from reszoo_export.verification.reference import Reference, read_reference

pytestmark = pytest.mark.usefixtures("subprocesses")
BUNDLED = Path(__file__).parents[1] / "saved_models/resnet20-cifar10"
HERE = Path(__file__).stem
MB = 2**20


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BUNDLED, tmp_path / "export"))


def peak(function: Callable[[], object]) -> int:
    """Return how many bytes a function has allocated at most, at one time."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def graph_of(nodes: list[Any], props: Any = None, kind: int = TensorProto.FLOAT) -> Any:
    """Make an ONNX file of some nodes."""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", kind, ["n", 3])],
        [helper.make_tensor_value_info("out", kind, ["n", 4])],
        [numpy_helper.from_array(np.ones((3, 4), np.float32), "w")],
    )
    model = helper.make_model(graph)
    helper.set_model_props(model, props or {})
    return model


@pytest.mark.timeout(60)
def test_describing_an_onnx_file_visits_nodes_and_not_paths(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    chain = [helper.make_node("Identity", [f"t{i + 1}"], [f"t{i}"]) for i in range(400)]
    users = [helper.make_node("MatMul", ["x", "t0"], [f"y{i}"]) for i in range(400)]
    ring = [
        helper.make_node("Identity", ["a"], ["b"]),
        helper.make_node("Identity", ["b"], ["a"]),
        helper.make_node("Conv", ["x", "a", "b"], ["z"]),
    ]
    chain.append(helper.make_node("Identity", ["w"], ["t400"]))
    onnx.save(graph_of([*users, *chain, *ring]), path)
    found = describe_file(path)
    assert found.parameters == 12
    assert found.operators["Identity"] == 403


def test_nodes_without_inputs_and_unknown_dtypes_are_described(tmp_path: Path) -> None:
    kinds = ("Identity", "Cast", "MatMul", "Conv", "Constant", "QuantizeLinear")
    nodes = [helper.make_node(kind, [], [f"{kind}out"]) for kind in kinds]
    nodes += [helper.make_node(kind, [], []) for kind in (*kinds, "DequantizeLinear")]
    nodes += [helper.make_node("Conv", ["x", "Identityout", "Castout"], ["z"])]
    model = graph_of(nodes, kind=99)
    model.graph.initializer[0].data_type = 99
    onnx.save(model, tmp_path / "model.onnx")
    found = describe_file(tmp_path / "model.onnx")
    assert found.inputs[0].dtype == "type 99"
    for path in (tmp_path / "model.onnx", tmp_path / "model.onnx"):
        with pytest.raises(reszoo.CheckpointError):
            reszoo.Predictor(path)


def test_the_card_of_an_onnx_file_must_fit_its_output(tmp_path: Path) -> None:
    model = onnx.load(BUNDLED / "model.onnx")
    for entry in model.metadata_props:
        if entry.key == "reszoo_card":
            card = json.loads(entry.value)
            card["labels"], card["architecture"]["classes"] = None, 900_000
            entry.value = json.dumps(card)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(reszoo.CheckpointError, match="must be of the 10 classes"):
        reszoo.Predictor(tmp_path / "model.onnx")


def test_a_deflated_card_is_read_within_bounds(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    content = (BUNDLED / "model.tflite").read_bytes()
    path.write_bytes(content[: content.index(b"PK\x03\x04")])
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("card.json", b"[" * 200 * MB)

    def read() -> None:
        with pytest.raises(reszoo.CheckpointError, match="no reszoo card inside"):
            reszoo.Predictor(path)
        assert describe_file(path).note.startswith("damaged: ")

    assert peak(read) < 60 * MB


def test_long_lists_of_members_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(30_000):
            archive.writestr(str(number), b"")
    with pytest.raises(ValueError, match="list of members is too long"):
        read_arrays(path, ["images"], MB)


def written_reference(folder: Path) -> Path:
    images = np.zeros((20, 32, 32, 3), np.uint8)
    images[3] = 7
    outputs = np.full((20, 10), 0.1, np.float32)
    Reference(images, outputs, np.arange(3), 17).write(folder)
    return folder / "reference.npz"


def test_a_reference_is_read_within_bounds(tmp_path: Path) -> None:
    card = read_manifest(BUNDLED).card
    written_reference(tmp_path)
    found = read_reference(tmp_path, card)
    assert (found.images[3] == 7).all()
    assert found.images.sum() == 7 * 32 * 32 * 3
    assert found.targets.tolist() == [0, 1, 2]
    bomb = {"images": np.zeros((300 * MB // 3072, 32, 32, 3), np.uint8)}
    np.savez_compressed(tmp_path / "reference.npz", **bomb, allow_pickle=False)

    def read() -> None:
        with pytest.raises(reszoo.ExportError, match=r"images\.npy has 314,5"):
            read_reference(tmp_path, card)

    assert peak(read) < 10 * MB


@pytest.mark.parametrize("shape", ["(10000000000,)", "(-1,)", "(2, 'a')", "(" * 3000])
def test_arrays_are_as_large_as_they_say(shape: str, tmp_path: Path) -> None:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("images.npy", content + b"\x00" * 100)
    with pytest.raises((ValueError, TypeError)):
        read_arrays(tmp_path / "x.npz", ["images"], MB)


def damaged(change: Callable[[Any], object]) -> str:
    content = json.loads((BUNDLED / "manifest.json").read_text())
    change(content)
    return json.dumps(content)


def put(*keys: Any, value: Any) -> str:
    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return damaged(change)


MANIFESTS = {
    "deep": "[" * 100_000,
    "deeper": '{"manifest_version": 2, "files": ' + "[" * 100_000 + "}",
    "list": "[]",
    "number": "7",
    "nan": put("files", 0, "verification", "agreement", value=float("nan")),
    "infinite": put("files", 0, "latency", "median_ms", value=1).replace(
        '"median_ms": 1', '"median_ms": 1e999'
    ),
    "half a character": put("files", 0, "verification", "runtime", value="\ud800"),
    "beside": put("beside", value=["labels.txt", "reference.npz"]),
    "hash": put("files", 0, "sha256", value=None),
    "bytes": put("files", 0, "bytes", value="many"),
    "huge": put("files", 0, "bytes", value=10**400),
    "latency": put("files", 0, "latency", "median_ms", value="fast"),
    "problems": put("files", 0, "verification", "problems", value="none"),
    "worst": put("files", 0, "verification", "worst", value=[3]),
    "unknown field": put("files", 0, "more", value=1),
    "format": put("files", 0, "format", value={}),
    "options": put("options", value=3),
    "batch": put("options", "batch", value=[1]),
    "integer_io": put("options", "integer_io", value="no"),
    "version": put("options", "version", value=True),
    "card": put("card", value=[]),
    "classes": put("card", "architecture", "classes", value="ten"),
    "files": put("files", value={"a": 1}),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_damaged_manifest_is_an_error_of_ours(name: str, copy: Path) -> None:
    (copy / "manifest.json").write_text(MANIFESTS[name])
    with pytest.raises(reszoo.ExportError, match=r"manifest\.json cannot be read"):
        reszoo.verify(copy)
    is_export(copy)


def test_json_must_be_json() -> None:
    assert parse_json('{"a": "\\ud83d\\ude00"}') == {"a": "\U0001f600"}
    for text in ("NaN", "[-Infinity]", "[" * 10_000, '"\\udead"', "1" * 5000):
        with pytest.raises(ValueError):  # noqa: PT011
            parse_json(text)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "name",
    [
        "manifest.json",
        "reference.npz",
        pytest.param("labels.txt", marks=pytest.mark.slow),
        pytest.param("model.onnx", marks=pytest.mark.slow),
    ],
)
def test_pipes_are_not_opened(name: str, copy: Path) -> None:
    written_reference(copy)
    (copy / name).unlink()
    os.mkfifo(copy / name)
    with pytest.raises(reszoo.ReszooError, match="not a regular file"):
        reszoo.verify(copy)


@pytest.mark.parametrize("name", ["model.tflite", "model.onnx"])
def test_pipes_and_devices_are_no_model_files(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    for function in (reszoo.Predictor, describe_file):
        with pytest.raises(reszoo.CheckpointError, match="not a regular file"):
            function(tmp_path / name)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(reszoo.CheckpointError, match="not a regular file"):
        reszoo.Predictor(tmp_path / name)


def test_verify_wants_the_folder(copy: Path, tmp_path: Path) -> None:
    for name in ("model.onnx", "saved_model", "labels.txt"):
        with pytest.raises(reszoo.UsageError, match=rf"reszoo verify {copy}\)"):
            reszoo.verify(copy / name)
    (tmp_path / "alone.onnx").write_bytes(b"")
    with pytest.raises(reszoo.UsageError, match="verify takes the folder of an export"):
        reszoo.verify(tmp_path / "alone.onnx")
    with pytest.raises(reszoo.ExportError, match="is not an export"):
        reszoo.verify(tmp_path)


@pytest.mark.parametrize("name", ["model.onnx", "model.tflite"])
def test_damaged_texts_are_errors_of_ours(name: str, tmp_path: Path) -> None:
    """Every text in turn is no UTF-8."""
    content = (BUNDLED / name).read_bytes()
    texts = (b"reszoo_card", b'"architecture"', b"probabilities", b"image", b"serving")
    path = tmp_path / name
    for text in texts:
        at = content.find(text)
        while at >= 0:
            path.write_bytes(content[: at + 2] + b"\xff\xfe" + content[at + 4 :])
            for function in (reszoo.Predictor, describe_file):
                with suppress(reszoo.ReszooError):
                    function(path)
            at = content.find(text, at + 1)


@pytest.mark.parametrize("name", ["model.onnx", "model.tflite"])
def test_mutated_files_are_errors_of_ours(name: str, tmp_path: Path) -> None:
    content = bytearray((BUNDLED / name).read_bytes())
    draw = np.random.default_rng(7)
    ends = np.r_[0:4000, len(content) - 6000 : len(content)]
    path, refused = tmp_path / name, 0
    for _ in range(120):
        changed = bytearray(content)
        for place in draw.choice(ends, 6, replace=False):
            changed[place] = draw.integers(256)
        path.write_bytes(changed)
        try:
            reszoo.Predictor(path)
            describe_file(path)
        except reszoo.ReszooError:
            refused += 1
    assert refused > 10


def test_a_file_that_opens_but_cannot_be_computed_is_an_error_of_ours(
    tmp_path: Path,
) -> None:
    model = onnx.load(BUNDLED / "model.onnx")
    name = "probabilities"
    node = next(each for each in model.graph.node if name in each.output)
    node.output[0] = "before"
    wrong = numpy_helper.from_array(np.array([7, 10], np.int64), "wrong")
    model.graph.initializer.append(wrong)
    model.graph.node.append(helper.make_node("Reshape", ["before", "wrong"], [name]))
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    predictor = reszoo.Predictor(path)
    expected = r"model\.onnx opens, but onnxruntime [\d.]+ cannot compute it \(\w+: "
    with pytest.raises(reszoo.CheckpointError, match=expected):
        predictor.predict(np.zeros((32, 32, 3), np.uint8))


def varint(size: int) -> bytes:
    length = b""
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return length + bytes([size])


def test_fields_are_counted_before_they_are_parsed(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    # Empty nodes in a graph: `ModelProto.graph` is field 7, its nodes are field 1.
    nodes = b"\x0a\x00" * (protobuf.MAX_FIELDS + 1)
    few = b"\x0a\x00" * (protobuf.MAX_NODES + 1)
    path.write_bytes(b"\x3a" + varint(len(few)) + few)
    with pytest.raises(reszoo.CheckpointError, match="must have at most 500,000 op"):
        describe_file(path)
    path.write_bytes(b"\x3a" + varint(len(nodes)) + nodes)
    for function in (reszoo.Predictor, describe_file):
        with pytest.raises(
            reszoo.CheckpointError, match=f"more than {protobuf.MAX_FIELDS:,} fields"
        ):
            function(path)
    model = onnx.load(BUNDLED / "model.onnx")
    model.metadata_props.add(key="padding", value="x" * 7_000_000)
    onnx.save(model, path)
    assert reszoo.Predictor(path).labels[0] == "airplane"


def test_a_foreign_card_in_an_onnx_file_is_bounded(tmp_path: Path) -> None:
    texts = properties(made_card())
    texts["reszoo_card"] = "[" * 20 * MB
    onnx.save(graph_of([helper.make_node("MatMul", ["x", "w"], ["out"])], texts),
              tmp_path / "model.onnx")  # fmt: skip
    assert describe_file(tmp_path / "model.onnx").card is None


def fill_memory(size: int) -> int:
    return int(np.ones(size, np.uint8).sum())


def open_many(folder: str) -> None:
    with ExitStack() as opened:
        for number in range(2000):
            opened.enter_context(Path(folder, str(number)).open("w"))


def write_much(folder: str) -> None:
    Path(folder, "much").write_bytes(bytes(200 * MB))


@pytest.mark.slow
def test_a_subprocess_has_limits(tmp_path: Path) -> None:
    limits = Limits(seconds=100, memory=1500 * MB)
    arguments = {"size": 100 * MB}
    found = run_in_subprocess(f"{HERE}:fill_memory", arguments, limits=limits)
    assert found == 100 * MB
    with pytest.raises(reszoo.CheckpointError, match=r"more than 1\.5 GiB of memory"):
        run_in_subprocess(f"{HERE}:fill_memory", {"size": 4000 * MB}, limits=limits)
    folder = {"folder": str(tmp_path)}
    with pytest.raises(SubprocessError, match="Too many open files"):
        run_in_subprocess(f"{HERE}:open_many", folder, limits=limits)
    with pytest.raises(SubprocessError, match="File too large"):
        run_in_subprocess(f"{HERE}:write_much", folder, limits=limits)


def test_limits_grow_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1000 * MB)
    small, large = (limits_for(tmp_path / each).memory for each in ("small", "large"))
    assert large - small == 8000 * MB
    assert limits_for(tmp_path).memory == large
    assert limits_for(tmp_path / "small", pixels=224 * 224).memory > small + 700 * MB
