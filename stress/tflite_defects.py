"""Plant defects in TFLite files: in the FlatBuffer, its metadata and the zip behind it.

Kernels are OHWI; convolutions are counted from the end, where all files are alike.
"""

import io
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import defect_arrays as arrays
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import number_types
from flatbuffers.table import Table
from planting import (
    Edit,
    Export,
    of_json,
    of_labels,
)

from reszoo_export.tflite import flatbuffer

OPS, TYPES = schema.BuiltinOperator, schema.TensorType
ACTIVATIONS = schema.ActivationFunctionType
FLOAT, INT8, INTEGERS = "tflite", "tflite-int8", "tflite-int8 integers"
# Places of convolutions from the end.
LAST, ONE_BUT_LAST, PROJECTION, STRIDED, STEM = -1, -2, -3, -5, -10
# The first one of the second block, of a kernel with as many inputs as outputs.
BLOCK = -7
METADATA = b"TFLITE_METADATA"
DTYPES = {TYPES.FLOAT32: "<f4", TYPES.INT8: "i1", TYPES.INT32: "<i4", TYPES.UINT8: "u1"}


class File:
    """A TFLite file as objects."""

    def __init__(self, content: bytes) -> None:
        self.model = schema.ModelT.InitFromPackedBuf(content)
        self.graph = self.model.subgraphs[0]
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            self.members = {name: archive.read(name) for name in archive.namelist()}

    def packed(self) -> bytes:
        """Return the file's bytes."""
        archive = io.BytesIO()
        archive.write(flatbuffer.packed(self.model))
        with zipfile.ZipFile(archive, "a") as target:
            for name, text in self.members.items():
                target.writestr(name, text)
        return archive.getvalue()

    def kind(self, operator: Any) -> int:
        """Return an operator's built-in code."""
        return int(self.model.operatorCodes[operator.opcodeIndex].builtinCode)

    def operators(self, kind: int) -> list[Any]:
        """Return the operators of a kind, in order."""
        return [each for each in self.graph.operators if self.kind(each) == kind]

    def become(
        self, operator: Any, kind: int, options: Any = None, type_: int = 0
    ) -> None:
        """Make another operator of one."""
        code = schema.OperatorCodeT()
        code.builtinCode = kind
        code.deprecatedBuiltinCode, code.version = min(kind, 127), 1
        self.model.operatorCodes.append(code)
        operator.opcodeIndex = len(self.model.operatorCodes) - 1
        operator.builtinOptions, operator.builtinOptionsType = options, type_

    def array(self, tensor: int) -> Any:
        """Return a copy of a constant."""
        described = self.graph.tensors[tensor]
        data = bytes(self.model.buffers[described.buffer].data)
        return (
            np.frombuffer(data, DTYPES[described.type]).reshape(described.shape).copy()
        )

    def store(self, tensor: int, array: Any) -> None:
        """Replace the data of a constant."""
        data = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
        self.model.buffers[self.graph.tensors[tensor].buffer].data = data

    def new_tensor(self, like: int) -> int:
        """Add a tensor of activations like another one; return its index."""
        old = self.graph.tensors[like]
        made = schema.TensorT(old.shape, old.type, 0, b"planted", old.quantization)
        made.hasRank = old.hasRank
        self.graph.tensors.append(made)
        return len(self.graph.tensors) - 1


Change = Callable[[File], None]


def of_file(change: Change) -> Edit:
    """Change the objects of a file."""

    def edit(export: Export) -> None:
        file = File(export.path.read_bytes())
        change(file)
        export.path.write_bytes(file.packed())

    return edit


def constant(kind: int, place: int, argument: int, change: arrays.Change) -> Change:
    """Change a constant that is an operator's argument."""

    def edit(file: File) -> None:
        tensor = int(file.operators(kind)[place].inputs[argument])
        file.store(tensor, change(file.array(tensor)))

    return edit


def kernel(place: int, change: arrays.Change) -> Change:
    """Change the kernel of a convolution."""
    return constant(OPS.CONV_2D, place, 1, change)


def bias(place: int, change: arrays.Change) -> Change:
    """Change the bias of a convolution."""
    return constant(OPS.CONV_2D, place, 2, change)


def classifier(change: arrays.Change, argument: int = 1) -> Change:
    """Change the matrix or the bias of the classifier."""
    return constant(OPS.FULLY_CONNECTED, -1, argument, change)


def all_weights(change: arrays.Change) -> Change:
    """Change every kernel and the classifier's matrix."""

    def edit(file: File) -> None:
        for place in range(len(file.operators(OPS.CONV_2D))):
            kernel(place, change)(file)
        classifier(change)(file)

    return edit


def options(kind: int, place: int, **fields: Any) -> Change:
    """Give an operator other options."""

    def edit(file: File) -> None:
        for name, value in fields.items():
            setattr(file.operators(kind)[place].builtinOptions, name, value)

    return edit


def kind_of(
    kind: int, place: int, other: int, made: Any = None, type_: int = 0
) -> Change:
    """Make another kind of operator of one."""
    return lambda file: file.become(
        file.operators(kind)[place], other, made and made(), type_
    )


def skipped(kind: int, place: int, keep: int = 0) -> Change:
    """Leave an operator out: who reads its output gets one of its inputs."""

    def edit(file: File) -> None:
        operator = file.operators(kind)[place]
        into, out = int(operator.inputs[keep]), int(operator.outputs[0])
        file.graph.operators.remove(operator)
        for each in file.graph.operators:
            each.inputs = np.where(np.asarray(each.inputs) == out, into, each.inputs)
        file.graph.outputs = [into if x == out else x for x in file.graph.outputs]
        for tensor in file.model.signatureDefs[0].outputs:
            tensor.tensorIndex = (
                into if tensor.tensorIndex == out else tensor.tensorIndex
            )

    return edit


def argument_of(
    kind: int, place: int, argument: int, source: Callable[[File], int]
) -> Change:
    """Let an operator read another tensor."""

    def edit(file: File) -> None:
        inputs = np.array(file.operators(kind)[place].inputs)
        inputs[argument] = source(file)
        file.operators(kind)[place].inputs = inputs

    return edit


def output_of(kind: int, place: int) -> Callable[[File], int]:
    """Name the output of an operator."""
    return lambda file: int(file.operators(kind)[place].outputs[0])


def doubled(kind: int, place: int) -> Change:
    """Apply an operator twice."""

    def edit(file: File) -> None:
        first = file.operators(kind)[place]
        middle = file.new_tensor(int(first.outputs[0]))
        second = schema.OperatorT()
        second.opcodeIndex, second.builtinOptions = (
            first.opcodeIndex,
            first.builtinOptions,
        )
        second.builtinOptionsType = first.builtinOptionsType
        second.inputs = np.array([middle, *first.inputs[1:]], np.int32)
        second.outputs, first.outputs = first.outputs, np.array([middle], np.int32)
        file.graph.operators.insert(file.graph.operators.index(first) + 1, second)

    return edit


def exchanged(one: int, other: int) -> Change:
    """Exchange the kernels of two convolutions."""

    def edit(file: File) -> None:
        tensors = [file.graph.tensors[int(file.operators(OPS.CONV_2D)[p].inputs[1])]
                   for p in (one, other)]  # fmt: skip
        tensors[0].buffer, tensors[1].buffer = tensors[1].buffer, tensors[0].buffer

    return edit


def shared(one: int, other: int) -> Change:
    """Let two convolutions share one kernel."""

    def edit(file: File) -> None:
        tensors = [file.graph.tensors[int(file.operators(OPS.CONV_2D)[p].inputs[1])]
                   for p in (one, other)]  # fmt: skip
        tensors[0].buffer = tensors[1].buffer

    return edit


def shortened(file: File) -> None:
    """Cut off the end of a kernel."""
    tensor = file.graph.tensors[int(file.operators(OPS.CONV_2D)[LAST].inputs[1])]
    buffer = file.model.buffers[tensor.buffer]
    buffer.data = buffer.data[:-64]


def permuted_bias_only(file: File) -> None:
    """Lose the classifier's bias."""
    operator = file.operators(OPS.FULLY_CONNECTED)[-1]
    operator.inputs = np.array([*operator.inputs[:2], -1], np.int32)


def tensor_shape(index: Callable[[File], int], *shape: int) -> Change:
    """Declare another shape of a tensor."""

    def edit(file: File) -> None:
        file.graph.tensors[index(file)].shape = np.array(shape, np.int32)

    return edit


def graph_input(file: File) -> int:
    """Return the index of the input."""
    return int(file.graph.inputs[0])


def graph_output(file: File) -> int:
    """Return the index of the output."""
    return int(file.graph.outputs[0])


def tensor_type(index: Callable[[File], int], type_: int) -> Change:
    """Declare another type of a tensor."""

    def edit(file: File) -> None:
        file.graph.tensors[index(file)].type = type_

    return edit


def output_tensor(index: Callable[[File], int], *, signature: bool) -> Change:
    """Make another tensor the output, in the signature as well or in the graph only."""

    def edit(file: File) -> None:
        if signature:
            file.model.signatureDefs[0].outputs[0].tensorIndex = index(file)
        file.graph.outputs = np.array([index(file)], np.int32)

    return edit


def second_output(file: File) -> None:
    """Make the logits a second output."""
    index = output_of(OPS.FULLY_CONNECTED, -1)(file)
    made = schema.TensorMapT()
    made.name, made.tensorIndex = b"logits", index
    file.model.signatureDefs[0].outputs.append(made)
    file.graph.outputs = np.array([*file.graph.outputs, index], np.int32)


def second_input(file: File) -> None:
    """Make an inner tensor a second input."""
    index = output_of(OPS.CONV_2D, LAST)(file)
    made = schema.TensorMapT()
    made.name, made.tensorIndex = b"mask", index
    file.model.signatureDefs[0].inputs.append(made)
    file.graph.inputs = np.array([*file.graph.inputs, index], np.int32)


def signature(**fields: Any) -> Change:
    """Change the signature, its input's or its output's name."""

    def edit(file: File) -> None:
        made = file.model.signatureDefs[0]
        if "key" in fields:
            made.signatureKey = fields["key"]
        for side in ("inputs", "outputs"):
            if side in fields:
                getattr(made, side)[0].name = fields[side]

    return edit


def second_signature(file: File) -> None:
    """Add a signature for training."""
    first = file.model.signatureDefs[0]
    made = schema.SignatureDefT()
    made.inputs, made.outputs = first.inputs, first.outputs
    made.signatureKey, made.subgraphIndex = b"train", 0
    file.model.signatureDefs.append(made)


def quantization(
    index: Callable[[File], int], **changes: Callable[[Any], Any]
) -> Change:
    """Change scales, zero points or the axis of a tensor."""

    def edit(file: File) -> None:
        tensor = file.graph.tensors[index(file)]
        # Others may refer to the same parameters.
        old, made = tensor.quantization, schema.QuantizationParametersT()
        made.scale, made.zeroPoint = np.array(old.scale), np.array(old.zeroPoint)
        made.quantizedDimension = old.quantizedDimension
        for name, change in changes.items():
            setattr(made, name, change(getattr(made, name)))
        tensor.quantization = made

    return edit


def argument(kind: int, place: int, number: int) -> Callable[[File], int]:
    """Name an operator's argument."""
    return lambda file: int(file.operators(kind)[place].inputs[number])


def member(name: str, change: Callable[[bytes], bytes | None]) -> Change:
    """Change a file of the archive; None removes it."""

    def edit(file: File) -> None:
        made = change(file.members.pop(name))
        if made is not None:
            file.members[name] = made

    return edit


def labels(change: Callable[[list[str]], list[str]]) -> Change:
    """Change the labels for other programs."""
    return member("labels.txt", of_labels(change))


def card(change: Callable[[Any], None]) -> Change:
    """Change the card in the file."""
    return member("card.json", of_json(change))


def metadata(change: Callable[[bytearray], Any]) -> Change:
    """Change the bytes of the TFLite metadata in place; None removes them."""

    def edit(file: File) -> None:
        (entry,) = [each for each in file.model.metadata if each.name == METADATA]
        data = bytearray(file.model.buffers[entry.buffer].data)
        change(data)
        file.model.buffers[entry.buffer].data = np.frombuffer(bytes(data), np.uint8)

    return edit


def no_metadata(file: File) -> None:
    """Lose the metadata."""
    file.model.metadata = [
        each for each in file.model.metadata if each.name != METADATA
    ]


def _field(data: bytearray, *path: int | tuple[int, int]) -> tuple[Table, int]:
    """Follow fields of tables, `(field, place)` of lists, to the last one."""
    table = Table(data, struct.unpack_from("<I", data)[0])
    *before, last = path
    for step in before:
        field, place = step if isinstance(step, tuple) else (step, -1)
        at = table.Pos + table.Offset(4 + 2 * field)
        if place >= 0:
            at = table.Vector(table.Offset(4 + 2 * field)) + 4 * place
        table = Table(data, table.Indirect(at))
    return table, table.Offset(4 + 2 * int(last))  # type: ignore[arg-type]


GRAPH, INPUT, OUTPUT = (3, 0), (2, 0), (3, 0)
PROCESS, LABEL_FILE, STATS = (4, 0), (6, 0), 5


def number(path: tuple[Any, ...], value: float) -> Change:
    """Change the first number of a list in the metadata."""

    def change(data: bytearray) -> None:
        table, offset = _field(data, *path)
        struct.pack_into("<f", data, table.Vector(offset), value)

    return metadata(change)


def byte(path: tuple[Any, ...], value: int) -> Change:
    """Change a byte in the metadata."""

    def change(data: bytearray) -> None:
        table, offset = _field(data, *path)
        data[table.Pos + offset] = value

    return metadata(change)


def side(path: tuple[Any, ...], value: int) -> Change:
    """Change an integer in the metadata."""

    def change(data: bytearray) -> None:
        table, offset = _field(data, *path)
        struct.pack_into("<I", data, table.Pos + offset, value)

    return metadata(change)


def string(path: tuple[Any, ...], change_: Callable[[bytes], bytes]) -> Change:
    """Change a text of the metadata without changing its length."""

    def change(data: bytearray) -> None:
        table, offset = _field(data, *path)
        at = table.Indirect(table.Pos + offset)
        length = table.Get(number_types.Uint32Flags, at)
        new = change_(bytes(data[at + 4 : at + 4 + length]))
        data[at + 4 : at + 4 + length] = new[:length].ljust(length)

    return metadata(change)


def absent(path: tuple[Any, ...]) -> Change:
    """Remove a field from a table of the metadata."""

    def change(data: bytearray) -> None:
        table, _ = _field(data, *path)
        vtable = table.Pos - table.Get(number_types.Int32Flags, table.Pos)
        struct.pack_into("<H", data, vtable + 4 + 2 * path[-1], 0)

    return metadata(change)


def root(field: str, value: Any) -> Change:
    """Change a field of the model."""
    return lambda file: setattr(file.model, field, value)


def versions(number_: int) -> Change:
    """Declare a version of the first operator that no runtime has."""
    return lambda file: setattr(file.model.operatorCodes[0], "version", number_)


def custom(file: File) -> None:
    """Make an operator one that no runtime knows."""
    operator = file.operators(OPS.MEAN)[0]
    file.become(operator, OPS.CUSTOM)
    file.model.operatorCodes[operator.opcodeIndex].customCode = b"Averaging"


def averaged(file: File) -> None:
    """Make an average pooling of the max pooling."""
    pool = file.operators(OPS.MAX_POOL_2D)[0]
    kept = pool.builtinOptions, pool.builtinOptionsType
    file.become(pool, OPS.AVERAGE_POOL_2D, *kept)


def same_of_strided(file: File) -> None:
    """Drop the padding before the strided convolution, and let it pad as TensorFlow."""
    skipped(OPS.PAD, -1)(file)
    options(OPS.CONV_2D, STRIDED, padding=schema.Padding.SAME)(file)


def operand(place: int, which: int) -> Callable[[File], int]:
    """Name an operand of the addition at the end of a block."""
    return argument(OPS.ADD, place, which)


def byte_of_value(text: bytes, value: int) -> bytes:
    """Replace the fifth byte of a file."""
    return text[:4] + bytes([value]) + text[5:]


def latin(text: bytes) -> bytes:
    """Store the labels as Latin-1."""
    return text.decode().encode("latin-1", "replace")
