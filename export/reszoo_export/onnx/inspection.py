"""Describe an ONNX file without running it, and check its contents."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from reszoo.errors import CheckpointError
from reszoo_export.inspection import Contents, TensorDescription, card_or_note
from reszoo_export.metadata import onnx_card
from reszoo_export.onnx.graph import constants
from reszoo_export.quantization.grids import MOST_OF_PAIR, greatest_pairs

# Operators that have weights, and how many inputs come before them.
_WEIGHTED = {
    "BatchNormalization": 1,
    "Conv": 1,
    "ConvInteger": 1,
    "ConvTranspose": 1,
    "Gemm": 1,
    "MatMul": 1,
    "MatMulInteger": 1,
    "PRelu": 1,
    "QLinearConv": 3,
    "QLinearMatMul": 3,
}
# Operators between a stored weight and its use.
_BETWEEN = {"Cast", "DequantizeLinear", "Identity", "QuantizeLinear", "Transpose"}
_PRECISIONS = {"int8": "int8", "uint8": "int8", "float16": "float16"}
# What a line of foreign metadata may take.
_LINE = 200


def read(path: Path) -> Contents:
    """Read a file.

    Raises:
        CheckpointError: It is no ONNX model, or damaged.
    """
    try:
        # Weights in files beside it are not needed to tell their shapes.
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole ONNX file ({error}).") from error
    if not model.graph.node:
        raise CheckpointError(f"{path} is not an ONNX file: it has no operators.")
    properties = {entry.key: entry.value for entry in model.metadata_props}
    card, note = card_or_note(lambda: onnx_card(path, properties))
    graph = model.graph
    constants = _constants(graph)
    weights = _weights(graph, constants)
    # Old files list weights among the inputs.
    inputs = [value for value in graph.input if value.name not in constants]
    return Contents(
        kind="onnx",
        precision=_precision(graph, [constants[name] for name in weights]),
        inputs=tuple(map(_tensor, inputs)),
        outputs=tuple(map(_tensor, graph.output)),
        operators=Counter(
            f"{node.domain}.{node.op_type}".lstrip(".") for node in graph.node
        ),
        parameters=sum(math.prod(constants[name].dims) for name in weights),
        card=card,
        note=note,
        details=_details(model, {} if card else properties),
    )


def _details(model: Any, properties: Mapping[str, str]) -> dict[str, str]:
    opsets = [f"{each.domain} {each.version}".strip() for each in model.opset_import]
    found = {"opset": ", ".join(opsets), "IR version": str(model.ir_version)}
    if model.producer_name:
        found["producer"] = f"{model.producer_name} {model.producer_version}".strip()
    return found | {key: value[:_LINE] for key, value in properties.items()}


def _constants(graph: Any) -> dict[str, Any]:
    inside = {
        node.output[0]: attribute.t
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    }
    return {tensor.name: tensor for tensor in graph.initializer} | inside


def _weights(graph: Any, constants: Mapping[str, Any]) -> set[str]:
    """Return the constants that operators use as weights or biases."""
    makers = {output: node for node in graph.node for output in node.output}

    def origin(name: str) -> str:
        while name in makers and makers[name].op_type in _BETWEEN:
            name = makers[name].input[0]
        return name

    names: list[str] = []
    for node in graph.node:
        if node.op_type in _WEIGHTED:
            names += node.input[_WEIGHTED[node.op_type] :]
        elif node.op_type == "Add":
            # The bias of a product is a sum of its own.
            products = [makers.get(origin(name)) for name in node.input]
            if any(maker and maker.op_type == "MatMul" for maker in products):
                names += node.input
    return {origin(name) for name in names} & set(constants)


def _precision(graph: Any, weights: Iterable[Any]) -> str:
    kinds: Counter[str] = Counter()
    for tensor in weights:
        kinds[_dtype(tensor.data_type)] += math.prod(tensor.dims)
    stored = kinds.most_common(1)[0][0] if kinds else "float32"
    precision = _PRECISIONS.get(stored, "float32")
    operators = {node.op_type for node in graph.node}
    fixed = operators & {"QuantizeLinear", "QLinearConv", "QLinearMatMul"}
    return "dynamic" if precision == "int8" and not fixed else precision


def _tensor(value: Any) -> TensorDescription:
    kind = value.type.tensor_type
    sides = tuple(
        side.dim_value if side.HasField("dim_value") else side.dim_param or "?"
        for side in kind.shape.dim
    )
    return TensorDescription(value.name, _dtype(kind.elem_type), sides)


def _dtype(number: int) -> str:
    name: str = onnx.TensorProto.DataType.Name(number).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)


# Later ones do not open in runtimes that are in use (ONNX Runtime 1.13, 2022).
_LATEST_OPSET, _LATEST_IR = 17, 8


def wrong_onnx(path: Path) -> list[str]:
    """Tell what keeps a file from opening, or from the same answers, elsewhere.

    Args:
        path: The file.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    problems = []
    opsets = {each.domain or "ai.onnx": each.version for each in model.opset_import}
    if set(opsets) != {"ai.onnx"} or opsets["ai.onnx"] > _LATEST_OPSET:
        shown = ", ".join(f"{name} {number}" for name, number in opsets.items())
        problems.append(f"its operators must be ai.onnx {_LATEST_OPSET}, not {shown}")
    if model.ir_version > _LATEST_IR:
        problems.append(f"its IR version must be {_LATEST_IR}, not {model.ir_version}")
    if model.functions or model.training_info:
        problems.append("it defines functions or training of its own")
    return problems + _wrong_activations(model.graph) + _overflowing(model.graph)


def _wrong_activations(graph: Any) -> list[str]:
    """Refuse int8 activations: ONNX Runtime computes them 3 to 4 times slower."""
    import onnx

    values = constants(graph)
    zeros = {
        values[node.input[2]].data_type
        for node in graph.node
        if node.op_type == "QuantizeLinear" and node.input[2] in values
    }
    odd = sorted(map(onnx.TensorProto.DataType.Name, zeros - {onnx.TensorProto.UINT8}))
    if not odd:
        return []
    return [f"activations must be uint8, not {', '.join(odd).lower()}"]


def _overflowing(graph: Any) -> list[str]:
    """Refuse weights that processors of another kind answer otherwise with."""
    most, name = max(_pairs(graph), default=(0, ""))
    if most <= MOST_OF_PAIR:
        return []
    told = (
        "its weights overflow on x86 processors without VNNI: two of "
        f"{name} add up to {most}, and at most {MOST_OF_PAIR} fit; export it anew"
    )
    return [told]


def _pairs(graph: Any) -> list[tuple[int, str]]:
    """Return what two int8 weights of an output add up to, and where."""
    import onnx

    values = constants(graph)
    found = []
    for node in graph.node:
        weights = values.get(node.input[0])
        if node.op_type != "DequantizeLinear" or weights is None:
            continue
        if weights.data_type == onnx.TensorProto.INT8:
            axis = next((each.i for each in node.attribute if each.name == "axis"), 1)
            array = onnx.numpy_helper.to_array(weights).astype(np.int32)
            pairs = greatest_pairs(np.moveaxis(array, axis, -1))
            found.append((int(pairs.max()), weights.name.removesuffix(".quantized")))
    return found
