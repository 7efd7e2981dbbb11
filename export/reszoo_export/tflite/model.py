"""Read and modify the FlatBuffer of a TFLite file."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import number_types
from numpy.typing import NDArray

from reszoo_export.quantization.grids import round_kernel


def table(
    builder: flatbuffers.Builder,
    fields: int,
    places: Mapping[int, int],
    *,
    numbers: Mapping[int, int] | None = None,
    small: Mapping[int, int] | None = None,
) -> int:
    """Write a table and return its place.

    Args:
        builder: What it is written into.
        fields: How many the schema has.
        places: What fields point to, by the number of the field.
        numbers: Fields of 32 bits without sign.
        small: Fields of one byte.
    """
    builder.StartObject(fields)
    for field, place in places.items():
        builder.PrependUOffsetTRelativeSlot(field, place, 0)
    for field, number in (numbers or {}).items():
        builder.PrependUint32Slot(field, number, 0)
    for field, number in (small or {}).items():
        builder.PrependUint8Slot(field, number, 0)
    written: int = builder.EndObject()
    return written


def vector(builder: flatbuffers.Builder, places: Sequence[int]) -> int:
    """Write a list of what lies at some places and return its own place."""
    builder.StartVector(4, len(places), 4)
    for place in reversed(places):
        builder.PrependUOffsetTRelative(place)
    found: int = builder.EndVector()
    return found


def floats(builder: flatbuffers.Builder, *values: float) -> int:
    """Write a list of float32 and return its place."""
    builder.StartVector(4, len(values), 4)
    for value in reversed(values):
        builder.PrependFloat32(value)
    place: int = builder.EndVector()
    return place


def aligned_bytes(builder: flatbuffers.Builder, content: bytes, alignment: int) -> int:
    """Write bytes that begin at a multiple of `alignment` and return their place."""
    builder.Prep(alignment, len(content))
    place: int = builder.CreateByteVector(content)
    return place


FILE_IDENTIFIER = b"TFL3"
# Data of buffers begins at multiples of this (`schema.fbs`, force_align).
ALIGNMENT = 16
# Places of fields in the table `Model` of TensorFlow Lite's `schema.fbs`.
_VERSION, _BUFFERS, _METADATA = 0, 4, 6
DTYPES = {
    number: name.lower()
    for name, number in vars(schema.TensorType).items()
    if not name.startswith("_")
}
_UINT16, _INT32 = number_types.Uint16Flags, number_types.Int32Flags
Model = Any


@dataclass(frozen=True)
class Port:
    """An input or an output of a model.

    Attributes:
        name: In the signature, or the tensor's where there is none.
        dtype: NumPy's name of it.
        shape: Sides, -1 for open ones.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


def read_ports(model: Model) -> tuple[list[Port], list[Port]]:
    """Return the inputs and the outputs of a model, in its order."""
    graph = model.Subgraphs(0)
    names: dict[int, str] = {}
    if model.SignatureDefsLength():
        signature = model.SignatureDefs(0)
        for count, entry in (
            (signature.InputsLength(), signature.Inputs),
            (signature.OutputsLength(), signature.Outputs),
        ):
            for each in map(entry, range(count)):
                names[each.TensorIndex()] = each.Name().decode()
    ins = [_port(graph, graph.Inputs(i), names) for i in range(graph.InputsLength())]
    outs = [_port(graph, graph.Outputs(i), names) for i in range(graph.OutputsLength())]
    return ins, outs


def read_data(model: Model, name: str) -> bytes | None:
    """Return the data that a model keeps under a name in its list of metadata."""
    for index in range(model.MetadataLength()):
        entry = model.Metadata(index)
        if entry.Name() == name.encode():
            buffer = model.Buffers(entry.Buffer())
            return bytes(buffer.DataAsNumpy()) if buffer.DataLength() else b""
    return None


def with_data(content: bytes, name: str, data: bytes) -> bytes:
    """Return a model with data added to its list of metadata.

    The model's own bytes stay as they are, to the last one, and so does their
    alignment: a new beginning with longer lists goes in front of them and points
    into them. (Unpacking and packing the model again, as the generated classes do,
    would lose the alignment of its weights.)

    Args:
        content: The model, as the converter made it.
        name: What to find the data by.
        data: The data.
    """
    content += bytes(-len(content) % ALIGNMENT)
    model = schema.Model.GetRootAs(content)
    builder = flatbuffers.Builder(len(content) + len(data) + 4096)
    # Written first, the old bytes come last; so old places are what they were.
    aligned_bytes(builder, content, ALIGNMENT)
    buffers = [model.Buffers(index) for index in range(model.BuffersLength())]
    entries = [model.Metadata(index) for index in range(model.MetadataLength())]
    buffer = table(builder, 3, {0: aligned_bytes(builder, data, ALIGNMENT)})
    label = builder.CreateString(name)
    entry = table(builder, 2, {0: label}, numbers={1: len(buffers)})
    pointers = _pointers(content, model) | {
        _BUFFERS: vector(builder, [*_places(content, buffers), buffer]),
        _METADATA: vector(builder, [*_places(content, entries), entry]),
    }
    version = {_VERSION: model.Version()}
    root = table(builder, max(pointers) + 1, pointers, numbers=version)
    builder.Finish(root, FILE_IDENTIFIER)
    return bytes(builder.Output())


def _places(content: bytes, tables: Iterable[Any]) -> list[int]:
    return [len(content) - each._tab.Pos for each in tables]


def _pointers(content: bytes, model: Model) -> dict[int, int]:
    """Return the places that the fields of `Model` point to; all do but the version."""
    own = model._tab
    fields = (own.Get(_UINT16, own.Pos - own.Get(_INT32, own.Pos)) - 4) // 2
    found = {}
    for field in range(_VERSION + 1, fields):
        if offset := own.Offset(4 + 2 * field):
            found[field] = len(content) - own.Indirect(own.Pos + offset)
    return found


def _port(graph: Any, index: int, names: dict[int, str]) -> Port:
    tensor = graph.Tensors(index)
    shape = tensor.ShapeSignatureAsNumpy()
    if not tensor.ShapeSignatureLength():
        shape = tensor.ShapeAsNumpy() if tensor.ShapeLength() else ()
    name = names.get(index) or tensor.Name().decode()
    return Port(name, DTYPES[tensor.Type()], tuple(int(side) for side in shape))


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
    builder.Finish(model.Pack(builder), FILE_IDENTIFIER)
    return bytes(builder.Output())
