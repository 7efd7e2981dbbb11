"""Turn the kernels of a float32 TFLite model to float16, and nothing else.

The converter's own float16 turns biases and normalisation constants as well. They are
few, and cost more accuracy than all kernels together.
"""

from collections.abc import Sequence
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from reszoo_export.writers.flatbuffer import aligned_bytes, table
from reszoo_export.writers.half import round_kernel
from reszoo_export.writers.tflite_model import ALIGNMENT, IDENTIFIER

_OPERATORS, _TYPES = schema.BuiltinOperator, schema.TensorType
_WITH_KERNEL = (_OPERATORS.CONV_2D, _OPERATORS.FULLY_CONNECTED)
# The first version of DEQUANTIZE that knows float16 (`register.cc`).
_DEQUANTIZE_VERSION = 3


class _AlignedBuffer(schema.BufferT):  # type: ignore[misc]
    """A buffer whose data, once packed, begins where runtimes can map it.

    The generated class begins it anywhere (flatc leaves out `force_align`).
    """

    def Pack(self, builder: flatbuffers.Builder) -> int:  # noqa: N802
        if self.data is None:
            return table(builder, 3, {})
        data = np.asarray(self.data, np.uint8).tobytes()
        return table(builder, 3, {0: aligned_bytes(builder, data, ALIGNMENT)})


def halve_kernels(content: bytes) -> bytes:
    """Return a model with float16 kernels, each widened by a DEQUANTIZE.

    Runtimes widen them once, when they load the file.

    Args:
        content: A float32 model of one subgraph, as the converter made it.

    Raises:
        ExportError: A weight is too large for float16.
    """
    model = schema.ModelT.InitFromPackedBuf(content)
    (graph,) = model.subgraphs
    kernels = _kernels(model, graph)
    whole = {tensor: len(graph.tensors) + i for i, tensor in enumerate(kernels)}
    for operator in graph.operators:
        operator.inputs = np.array([whole.get(i, i) for i in operator.inputs], np.int32)
    graph.tensors += [_widened(graph.tensors[tensor]) for tensor in kernels]
    _halve(model, [graph.tensors[tensor] for tensor in kernels])
    widening = [_dequantize(model, half, whole[half]) for half in kernels]
    model.operatorCodes.append(
        schema.OperatorCodeT(
            deprecatedBuiltinCode=_OPERATORS.DEQUANTIZE,
            builtinCode=_OPERATORS.DEQUANTIZE,
            version=_DEQUANTIZE_VERSION,
        )
    )
    graph.operators = [*widening, *graph.operators]
    return _packed(model)


def _kernels(model: Any, graph: Any) -> list[int]:
    """Return the tensors that are kernels, each once, in order of use."""
    found = [
        int(operator.inputs[1])
        for operator in graph.operators
        if model.operatorCodes[operator.opcodeIndex].builtinCode in _WITH_KERNEL
    ]
    return list(dict.fromkeys(found))


def _widened(kernel: Any) -> Any:
    """Return a new float32 tensor without data, for what a kernel is widened to."""
    return schema.TensorT(
        shape=kernel.shape,
        type=_TYPES.FLOAT32,
        name=kernel.name + b"_float32",
        hasRank=kernel.hasRank,
    )


def _halve(model: Any, kernels: Sequence[Any]) -> None:
    # Equal tensors may share a buffer: all are read before any is written.
    halves = [_half(model.buffers[kernel.buffer], kernel.shape) for kernel in kernels]
    for kernel, half in zip(kernels, halves, strict=True):
        kernel.type = _TYPES.FLOAT16
        model.buffers[kernel.buffer].data = half


def _half(buffer: Any, shape: Sequence[int]) -> NDArray[np.uint8]:
    weights = np.frombuffer(buffer.data.tobytes(), "<f4")
    halves = round_kernel(weights.reshape(shape[0], -1, shape[-1]))
    return np.frombuffer(halves.astype("<f2").tobytes(), np.uint8)


def _dequantize(model: Any, half: int, whole: int) -> Any:
    return schema.OperatorT(
        opcodeIndex=len(model.operatorCodes),
        inputs=np.array([half], np.int32),
        outputs=np.array([whole], np.int32),
    )


def _packed(model: Any) -> bytes:
    for buffer in model.buffers:
        buffer.__class__ = _AlignedBuffer
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())
