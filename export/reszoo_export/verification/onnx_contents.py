"""Whether an ONNX file suits the runtimes and processors that are in use."""

from pathlib import Path
from typing import Any

import numpy as np

from reszoo_export.quantization.grids import MOST_OF_PAIR, greatest_pairs
from reszoo_export.writers.onnx_graph import constants

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
