"""The flatbuffer of a `.tflite` file: its inputs and outputs, and data put into it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import flatbuffers
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import number_types

from reszoo_export.writers.flatbuffer import aligned_bytes, table, vector

IDENTIFIER = b"TFL3"
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
    builder.Finish(root, IDENTIFIER)
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
