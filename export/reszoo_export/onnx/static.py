"""Quantize a graph of unknown structure with ONNX Runtime's quantizer."""

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reszoo.console import quiet
from reszoo.preprocessing import Pixels
from reszoo_export.onnx.reader import activation_reader
from reszoo_export.quantization.integer_model import Ranges

# Least and largest value in each image `(n, 2)`, by tensor.
Extremes = dict[str, NDArray[np.float32]]
# Operators with weights; the others lose more by rounding than they gain in time.
WEIGHTED = ("Conv", "Gemm", "MatMul")
# They lead from the classifier to the scores.
_AFTER_HEAD = (
    "Add", "Concat", "Flatten", "Identity", "Pad", "Reshape", "Sigmoid", "Softmax",
    "Squeeze", "Transpose",
)  # fmt: skip


def find_extremes(model: Any, batches: Iterable[Pixels]) -> Extremes:
    """Measure the activations of a float32 model.

    Args:
        model: An `onnx.ModelProto`.
        batches: Each of one image, or of repetitions of one, as the model takes them.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="reszoo-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model.SerializeToString())
        read = activation_reader(path)
        for batch in batches:
            for name, array in read(batch).items():
                ends = (float(array.min()), float(array.max()))
                found.setdefault(name, []).append(ends)
    return {name: np.array(ends, np.float32) for name, ends in found.items()}


def quantized(model: Any, ranges: Ranges, kinds: Iterable[str] | None) -> Any:
    """Return a model in integers: uint8 activations, int8 weights for each channel.

    Weights have 7 bits, so that two products fit 16 bits on processors without VNNI.
    The classifier stays in float32, as in files of our own models.

    Args:
        model: An `onnx.ModelProto`, which stays as it is.
        ranges: Of its activations, by tensor.
        kinds: The operators that are quantized; None for all that can be.
    """
    with quiet():
        from onnxruntime.quantization import CalibrationMethod, QuantType
        from onnxruntime.quantization.calibrate import TensorsData
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
        from onnxruntime.quantization.quant_utils import (
            save_and_reload_model_with_shape_infer,
        )
        from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

        spans: Mapping[str, Any] = {
            name: (np.float32(low), np.float32(high))
            for name, (low, high) in ranges.items()
        }
        quantizer = QDQQuantizer(
            save_and_reload_model_with_shape_infer(model),
            per_channel=True,
            reduce_range=True,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, spans),
            nodes_to_quantize=[],
            nodes_to_exclude=_head(model.graph),
            op_types_to_quantize=sorted(kinds or {*QDQRegistry, *QLinearOpsRegistry}),
            extra_options={"QDQOpTypePerChannelSupportToAxis": {"MatMul": 1}},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
    made = quantizer.model.model
    # The shapes that were inferred name the batch otherwise.
    del made.graph.value_info[:]
    return made


def _head(graph: Any) -> list[str]:
    """Name the nodes from the classifier on, and those before the first weights."""
    makers = {output: node for node in graph.node for output in node.output}
    names = []
    for output in graph.output:
        node = makers.get(output.name)
        while node is not None:
            names.append(node.name)
            if node.op_type not in _AFTER_HEAD:
                break
            node = next((makers[each] for each in node.input if each in makers), None)
    for node in graph.node:
        if node.op_type in WEIGHTED:
            break
        names.append(node.name)
    return names
