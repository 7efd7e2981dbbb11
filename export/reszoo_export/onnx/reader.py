"""Run ONNX files with ONNX Runtime, describe them, and check their contents."""

import importlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from numpy.typing import NDArray

from reszoo.cards import Card
from reszoo.environment import usable_cores
from reszoo.errors import CheckpointError
from reszoo.files import parse_json, read_regular
from reszoo.preprocessing import Pixels, shown_size
from reszoo_export import inspection
from reszoo_export.formats import ONNX, ExportOptions, Format
from reszoo_export.metadata import licence, parse_card, summary
from reszoo_export.protobuf import MAX_BYTES, MAX_NODES, check_fields
from reszoo_export.quantization.grids import MAX_PAIR, greatest_pairs, step_problems
from reszoo_export.runtimes import Activations, Runtime, TensorInfo, float_activations
from reszoo_export.sessions import Sessions

CARD_KEY, LABELS_KEY = "reszoo_card", "labels"
# By default; later ones do not open in runtimes that are in use (ONNX Runtime 1.13,
# 2022).
OPSET = 17
# ONNX Runtime's levels; 3 is an error. Its warnings are about its own optimizations.
_ERRORS_ONLY = 3
_PROVIDERS = ["CPUExecutionProvider"]
_NUMPY_DTYPES = {"float": "float32", "double": "float64"}


def check_file(path: Path, *, trusted: bool = False) -> None:
    """See `Reader.check_file`."""
    check_fields(path, model_class)


@cache
def model_class() -> Any:
    """Return ModelProto from the schema of onnx 1.23, which need not be installed."""
    pool = DescriptorPool()
    pool.AddSerializedFile(files(__package__).joinpath("schema.pb").read_bytes())
    return GetMessageClass(pool.FindMessageTypeByName("onnx.ModelProto"))


@contextmanager
def environment_variable(name: str, value: str) -> Iterator[None]:
    """Set a variable of this process's environment for a while."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _import_onnxruntime() -> Any:
    """Import ONNX Runtime with its telemetry off, unless the user has set that.

    ONNX Runtime 1.32 has a thread for it, which makes a process hang that ends normally
    after it was forked, and warns where the home folder is read-only. Read at import.
    """
    name = "ORT_DISABLE_TELEMETRY"
    with environment_variable(name, os.environ.get(name, "1")):
        return importlib.import_module("onnxruntime")


def open_file(path: Path, threads: int | None) -> Runtime:
    """See `Reader.open_file`."""
    onnxruntime = _import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or usable_cores()
    options.log_severity_level = _ERRORS_ONLY

    # A session may run in many threads at once.
    sessions = Sessions(
        lambda: onnxruntime.InferenceSession(path, options, providers=_PROVIDERS), path
    )
    with sessions.borrow() as session:
        properties = session.get_modelmeta().custom_metadata_map
        inputs, outputs = session.get_inputs(), session.get_outputs()
    return Runtime(
        path=path, name=f"onnxruntime {onnxruntime.__version__}",
        card=read_card(path, properties), threads=options.intra_op_num_threads,
        inputs=[*map(_tensor_info, inputs)], outputs=[*map(_tensor_info, outputs)],
        sessions=sessions,
        compute=lambda session, image, name: session.run([name], {"image": image})[0],
        # A session does not list them.
        count=lambda: _operators(_load(path).graph),
    )  # fmt: skip


def _tensor_info(value: Any) -> TensorInfo:
    dtype = value.type.removeprefix("tensor(").removesuffix(")")
    dtype = _NUMPY_DTYPES.get(dtype, dtype)
    return {"name": value.name, "dtype": dtype, "shape": list(value.shape)}


def _operators(graph: Any) -> Counter[str]:
    return Counter(f"{node.domain}.{node.op_type}".lstrip(".") for node in graph.node)


def read_card(path: Path, properties: Mapping[str, str]) -> Card:
    """Return the card in the `metadata_props` of a `.onnx` file (see `parse_card`)."""
    return parse_card(path, lambda: properties[CARD_KEY])


def stored_labels(path: Path) -> Sequence[str] | None:
    """See `Reader.stored_labels`."""
    properties = _properties(_load(path))
    labels = parse_json(properties.get(LABELS_KEY, "null"))
    return [str(each) for each in labels] if isinstance(labels, list) else None


def _load(path: Path) -> Any:
    # Weights in files beside it are not needed: the shapes are in the file.
    return model_class().FromString(read_regular(path, MAX_BYTES))


def _properties(model: Any) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def activation_reader(path: Path) -> Callable[[NDArray[Any]], Activations]:
    """See `Reader.activation_reader`."""
    onnxruntime, model = _import_onnxruntime(), _load(path)
    names = [name for node in model.graph.node for name in node.output]
    outputs = {value.name for value in model.graph.output}
    for name in names:
        if name not in outputs:
            model.graph.output.add(name=name)
    options, levels = onnxruntime.SessionOptions(), onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_DISABLE_ALL
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=_PROVIDERS)

    def run(pixels: NDArray[Any]) -> Activations:
        arrays = session.run(names, {"image": pixels})
        return float_activations(dict(zip(names, arrays, strict=True)))

    return run


_PRECISIONS = {"int8": "int8", "uint8": "int8", "float16": "float16"}
# Characters shown of a property of another program's.
_MAX_SHOWN = 200


def describe(path: Path) -> inspection.Contents:
    """See `Reader.describe`."""
    model = _load(path)
    graph, properties = model.graph, _properties(model)
    if not graph.node:
        raise CheckpointError(f"{path} is not an ONNX file: it has no operators.")
    if len(graph.node) > MAX_NODES:
        raise CheckpointError(
            f"{path} must have at most {MAX_NODES:,} operators. "
            f"Received: {len(graph.node):,}."
        )
    card, note = inspection.card_or_note(lambda: read_card(path, properties))
    opsets = [f"{each.domain} {each.version}".strip() for each in model.opset_import]
    details = {"opset": ", ".join(opsets), "IR version": str(model.ir_version)}
    if model.producer_name:
        details["producer"] = f"{model.producer_name} {model.producer_version}".strip()
    if not card:
        details |= {key: value[:_MAX_SHOWN] for key, value in properties.items()}
    constants = _constants(graph)
    weights = [constants[name] for name in _weights(graph, constants)]
    # Old files list weights among the inputs.
    inputs = [value for value in graph.input if value.name not in constants]
    return inspection.Contents(
        precision=_precision(graph, weights),
        inputs=tuple(map(_describe_tensor, inputs)),
        outputs=tuple(map(_describe_tensor, graph.output)),
        operators=_operators(graph),
        parameters=sum(math.prod(weight.dims) for weight in weights),
        card=card, note=note, details=details,
    )  # fmt: skip


def _constants(graph: Any) -> dict[str, Any]:
    nodes = (node for node in graph.node if node.op_type == "Constant" and node.output)
    values = ((node.output[0], each) for node in nodes for each in node.attribute)
    inside = {name: each.t for name, each in values if each.name == "value"}
    return {tensor.name: tensor for tensor in graph.initializer} | inside


def _weights(graph: Any, constants: Mapping[str, Any]) -> set[str]:
    """Return the constants that operators use as weights or biases."""
    made = makers(graph)
    passing = (each for each in made.items() if each[1].op_type in ONNX.passing)
    passed = {name: str(node.input[0]) for name, node in passing if node.input}
    used = (name for node in graph.node for name in node.input)
    origins = inspection.find_origins(used, passed)
    names: list[str] = []
    for node in graph.node:
        if node.op_type in ONNX.weighted:
            # QLinear operators have the scale and zero point of their input as well.
            names += node.input[3 if node.op_type.startswith("QLinear") else 1 :]
        elif node.op_type == "Add":
            # The bias of a MatMul is an addition of its own.
            products = [made.get(origins[name] or "") for name in node.input]
            if any(maker and maker.op_type == "MatMul" for maker in products):
                names += node.input
    found = {origins[name] for name in names}
    return {name for name in found if name and name in constants}


def makers(graph: Any) -> dict[str, Any]:
    """Return the nodes of a graph, by the names of their outputs."""
    return {output: node for node in graph.node for output in node.output}


def _precision(graph: Any, weights: Iterable[Any]) -> str:
    sizes: Counter[str] = Counter()
    for tensor in weights:
        sizes[_dtype(tensor.data_type)] += math.prod(tensor.dims)
    stored = sizes.most_common(1)[0][0] if sizes else "float32"
    precision = _PRECISIONS.get(stored, "float32")
    operators = {node.op_type for node in graph.node}
    static = operators & {"QuantizeLinear", "QLinearConv", "QLinearMatMul"}
    return "dynamic" if precision == "int8" and not static else precision


def _describe_tensor(value: Any) -> inspection.TensorDescription:
    tensor = value.type.tensor_type
    sides = tuple(
        side.dim_value if side.HasField("dim_value") else side.dim_param or "?"
        for side in tensor.shape.dim
    )
    return inspection.TensorDescription(value.name, _dtype(tensor.elem_type), sides)


def _dtype(number: int) -> str:
    tensor = model_class().DESCRIPTOR.file.message_types_by_name["TensorProto"]
    named = tensor.enum_types_by_name["DataType"].values_by_number
    name = named[number].name.lower() if number in named else f"type {number}"
    return _NUMPY_DTYPES.get(name, name)


def properties(card: Card) -> dict[str, str]:
    """Return the `metadata_props` of a file, in order.

    The card is for reszoo, the others are for people and other programs.
    """
    record = card.preprocessing
    size = shown_size(record.eval_sides)
    found = {
        CARD_KEY: card.to_text(), "description": summary(card),
        "input": f"image: {record.colours}, 0 to 255, {size} pixels",
        "license": licence(card), "preprocessing": ", ".join(record.steps()),
    }  # fmt: skip
    if card.labels:
        found[LABELS_KEY] = json.dumps(card.labels, ensure_ascii=False)
    return {key: found[key] for key in sorted(found) if found[key]}


def ir_version(opset: int) -> int:
    """Return the IR version that came out with an opset, for runtimes of its time."""
    return 7 if opset < 15 else 8


def find_problems(
    path: Path, row: Format, card: Card, images: Pixels, options: ExportOptions
) -> list[str]:
    """Find what keeps a file from opening, or from equal outputs, elsewhere."""
    model = _load(path)
    problems = []
    opsets = {each.domain or "ai.onnx": each.version for each in model.opset_import}
    opset = options.opset or OPSET
    if opsets != {"ai.onnx": opset}:
        shown = ", ".join(f"{name} {number}" for name, number in opsets.items())
        problems.append(f"its operators must be ai.onnx {opset}, not {shown}")
    if model.ir_version != ir_version(opset):
        expected = f"its IR version must be {ir_version(opset)}"
        problems.append(f"{expected}, not {model.ir_version}")
    if model.functions or model.training_info:
        problems.append("it defines functions or training of its own")
    told = dict(properties(card), graph=card.architecture.name)
    found = dict(_properties(model), graph=model.graph.name)
    other = [key for key in {**told, **found} if told.get(key) != found.get(key)]
    if other or len(model.metadata_props) >= len(found):
        problems.append(f"properties are not the card's: {', '.join(other) or 'twice'}")
    graph = model.graph
    names = [each.name for each in (*graph.input, *graph.initializer)]
    if len({*names}) < len(names):
        problems.append("a weight is also an input, or has two values")
    return problems + _integer_problems(graph, row)


def _integer_problems(graph: Any, row: Format) -> list[str]:
    """Check the steps (see `step_problems`) and the weights of a file of integers.

    ONNX Runtime is 3 to 4 times slower with int8 activations, and weights that overflow
    give other outputs on processors of another kind.
    """
    from onnx import numpy_helper

    constants = _constants(graph).items()
    known = {name: numpy_helper.to_array(tensor) for name, tensor in constants}
    scales, pairs, kinds = dict[str, Any](), [(0, "")], set[str]()
    biases, steps = list[list[Any]](), list[tuple[float, float]]()
    for node in graph.node:
        value, scale, zero = [*map(known.get, node.input), None, None, None][:3]
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and scale is not None:
            scales[node.output[0]] = scale
            kind = "uint8" if zero is None else zero.dtype.name
            if node.op_type == "QuantizeLinear":
                kinds.add(kind)
            if zero is not None and kind == "uint8":
                steps.append((scale.item(), zero.item()))
            if value is not None and value.dtype == np.int8:
                axes = [x.i for x in node.attribute if x.name == "axis"] or [1]
                wide = np.moveaxis(value.astype(np.int32), axes[0], -1)
                name = node.input[0].removesuffix(".quantized")
                pairs.append((int(greatest_pairs(wide).max()), name))
        elif node.op_type in ("Conv", "Gemm") and {*node.input[2:]} & scales.keys():
            biases.append([scales.get(name, np.nan) for name in node.input])
    others = ", ".join(sorted(kinds - {"uint8"}))
    problems = [f"activations must be uint8, not {others}"] if others else []
    largest, name = max(pairs)
    if largest > MAX_PAIR:
        problems.append(
            "its weights overflow on x86 processors without VNNI: two of "
            f"{name} add up to {largest}, and at most {MAX_PAIR} fit; export it again"
        )
    return problems + step_problems(biases, steps, row.spans)
