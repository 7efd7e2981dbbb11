"""Read the FlatBuffer of a TFLite file and add metadata to it."""

import io
import math
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import number_types
from flatbuffers.table import Table

from reszoo.cards import Card
from reszoo.errors import CheckpointError
from reszoo.files import read_regular
from reszoo_export.formats import TFLITE
from reszoo_export.inspection import Contents, TensorDescription, card_or_note
from reszoo_export.metadata import LABELS_FILE, card_files, licence, summary
from reszoo_export.protobuf import MAX_BYTES
from reszoo_export.runtimes import name_open_sides

FILE_IDENTIFIER = b"TFL3"
# Data of buffers begins at multiples of this (`schema.fbs`, force_align).
ALIGNMENT = 16
# Of a model that is described: a hundred times those of the largest ones. Lists and
# texts in a FlatBuffer may share their bytes, so a small file can have any number.
_MAX_PARTS, _MAX_LIST, _MAX_TEXT, _MAX_SIDES = 500_000, 200, 65536, 8
# Fields of the table `Model` in TensorFlow Lite's `schema.fbs`.
_VERSION, _BUFFERS, _METADATA = 0, 4, 6
_UINT16, _INT32 = number_types.Uint16Flags, number_types.Int32Flags
Model = Any


def _names(enumeration: Any) -> dict[int, str]:
    members = vars(enumeration).items()
    return {number: name for name, number in members if not name.startswith("_")}


OPERATORS = _names(schema.BuiltinOperator)
DTYPES = {number: name.lower() for number, name in _names(schema.TensorType).items()}


def write(builder: flatbuffers.Builder, value: Any) -> int:
    """Write a value and return its offset.

    A mapping becomes a table by the numbers of its fields, in which NumPy's integers
    are stored as they are; bytes begin at a multiple of `ALIGNMENT`. An int is the
    offset of what has been written before.
    """
    if isinstance(value, int):
        return value
    if isinstance(value, Mapping):
        fields = {
            field: each if isinstance(each, np.integer) else write(builder, each)
            for field, each in value.items()
        }
        builder.StartObject(max(fields, default=-1) + 1)
        slots = {"uint8": builder.PrependUint8Slot, "uint32": builder.PrependUint32Slot}
        for field, each in fields.items():
            put = slots.get(type(each).__name__, builder.PrependUOffsetTRelativeSlot)
            put(field, int(each), 0)
        written: int = builder.EndObject()
    elif isinstance(value, list):
        offsets = [write(builder, each) for each in value]
        builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        written = builder.EndVector()
    elif isinstance(value, bytes):
        builder.Prep(ALIGNMENT, len(value))
        written = builder.CreateByteVector(value)
    elif isinstance(value, str):
        written = builder.CreateString(value)
    else:
        written = builder.CreateNumpyVector(value)
    return written


class _AlignedBuffer(schema.BufferT):  # type: ignore[misc]
    """A buffer whose data, once packed, begins where runtimes can map it.

    The generated class begins it anywhere (flatc leaves out `force_align`).
    """

    def Pack(self, builder: flatbuffers.Builder) -> int:  # noqa: N802
        if self.data is None:
            return write(builder, {})
        return write(builder, {0: np.asarray(self.data, np.uint8).tobytes()})


def packed(model: Any) -> bytes:
    """Return the bytes of a `schema.ModelT`, whose buffers keep their alignment."""
    for buffer in model.buffers:
        buffer.__class__ = _AlignedBuffer
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), FILE_IDENTIFIER)
    return bytes(builder.Output())


def read_model(content: bytes) -> Model:
    """Return the root table of a TFLite file."""
    return schema.Model.GetRootAs(content)


def subgraphs(model: Model) -> list[Any]:
    """Return the subgraphs; ValueError if they have more parts than models have."""
    graphs, left = entries(model, "Subgraphs"), _MAX_PARTS
    for graph in graphs:
        left -= graph.OperatorsLength() + graph.InputsLength() + graph.OutputsLength()
        if left < 0:
            break
        for operator in map(graph.Operators, range(graph.OperatorsLength())):
            left -= operator.InputsLength() + operator.OutputsLength()
    if left < 0:
        raise ValueError(f"more than {_MAX_PARTS:,} operators, inputs and outputs")
    return graphs


def entries(owner: Any, name: str) -> list[Any]:
    """Return the entries of a table's list; ValueError if it is a long one."""
    if (count := getattr(owner, f"{name}Length")()) > _MAX_LIST:
        raise ValueError(f"a list of {count:,} entries")
    return list(map(getattr(owner, name), range(count)))


def text(content: bytes | None) -> str:
    """Return a text, which must be short (see `entries`); "" where there is none."""
    if content and len(content) > _MAX_TEXT:
        raise ValueError(f"a text of {len(content):,} bytes")
    return (content or b"").decode()


def sides(tensor: Any) -> list[int]:
    """Return the shape of a tensor, as it is stored."""
    if tensor.ShapeLength() > _MAX_SIDES or tensor.ShapeSignatureLength() > _MAX_SIDES:
        raise ValueError(f"a tensor of more than {_MAX_SIDES} dimensions")
    return [tensor.Shape(place) for place in range(tensor.ShapeLength())]


def read_tensors(
    model: Model,
) -> tuple[tuple[TensorDescription, ...], tuple[TensorDescription, ...]]:
    """Return the inputs and the outputs of a model, by the names of its signature."""
    graph, names = model.Subgraphs(0), {}
    if model.SignatureDefsLength():
        signature = model.SignatureDefs(0)
        for each in entries(signature, "Inputs") + entries(signature, "Outputs"):
            names[each.TensorIndex()] = text(each.Name())
    inputs, outputs = (
        tuple(_describe(graph, each, names) for each in entries(graph, kind))
        for kind in ("Inputs", "Outputs")
    )
    return inputs, outputs


def _describe(graph: Any, index: int, names: Mapping[int, str]) -> TensorDescription:
    tensor = graph.Tensors(index)
    shape = sides(tensor)
    if tensor.ShapeSignatureLength():
        shape = tensor.ShapeSignatureAsNumpy().tolist()
    name = names.get(index) or text(tensor.Name())
    return TensorDescription(name, dtype(tensor), name_open_sides(shape))


def dtype(tensor: Any) -> str:
    """Return the name of a tensor's dtype."""
    return DTYPES.get(tensor.Type(), f"type {tensor.Type()}")


def read_data(model: Model, name: str) -> bytes | None:
    """Return the data that a model keeps under a name in its list of metadata."""
    for entry in entries(model, "Metadata"):
        if entry.Name() == name.encode():
            buffer = model.Buffers(entry.Buffer())
            return bytes(buffer.DataAsNumpy()) if buffer.DataLength() else b""
    return None


def with_data(content: bytes, name: str, data: bytes) -> bytes:
    """Return a model with data added to its list of metadata under a name.

    The model's own bytes and their alignment stay as they are: a new root table with
    longer lists goes in front of them and points into them. (Unpacking and packing the
    model, as the generated classes do, would lose the alignment of its weights.)
    """
    content += bytes(-len(content) % ALIGNMENT)
    model = read_model(content)
    builder = flatbuffers.Builder(len(content) + len(data) + 4096)
    # A FlatBuffer is written from its end: old offsets from there stay valid.
    write(builder, content)
    buffers = [model.Buffers(index) for index in range(model.BuffersLength())]
    metadata = [model.Metadata(index) for index in range(model.MetadataLength())]
    buffer = write(builder, {0: data})
    entry = write(builder, {0: name, 1: np.uint32(len(buffers))})
    changed = {
        _BUFFERS: [*_offsets(content, buffers), buffer],
        _METADATA: [*_offsets(content, metadata), entry],
        _VERSION: np.uint32(model.Version()),
    }
    root = write(builder, _pointers(content, model) | changed)
    builder.Finish(root, FILE_IDENTIFIER)
    return bytes(builder.Output())


def _offsets(content: bytes, tables: Iterable[Any]) -> list[int]:
    return [len(content) - each._tab.Pos for each in tables]


def _pointers(content: bytes, model: Model) -> dict[int, int]:
    """Return the offsets of what `Model`'s fields point to; all but the version do."""
    own = model._tab
    fields = (own.Get(_UINT16, own.Pos - own.Get(_INT32, own.Pos)) - 4) // 2
    found = {}
    for field in range(_VERSION + 1, fields):
        if offset := own.Offset(4 + 2 * field):
            found[field] = len(content) - own.Indirect(own.Pos + offset)
    return found


# TensorFlow Lite Metadata, `metadata_schema.fbs`: name of the entry, file identifier,
# and the version of the schema that has every field used here.
METADATA_NAME = "TFLITE_METADATA"
_METADATA_IDENTIFIER = b"M001"
_MIN_PARSER_VERSION = "1.0.0"
# Fields of `ModelMetadata` that are strings.
_TEXTS = {"name": 0, "description": 1, "version": 2, "author": 4, "license": 5}
# Members of enumerations and unions.
_FEATURE, _IMAGE, _RGB, _GREY, _NORMALIZATION, _AXIS_LABELS = 1, 2, 1, 2, 1, 2
# Zip entries carry a date; a fixed one keeps files of the same weights identical.
_DATE = (1980, 1, 1, 0, 0, 0)


def with_card(content: bytes, card: Card) -> bytes:
    """Return a TFLite file with its card, as metadata and in a zip behind it."""
    tensors = read_tensors(read_model(content))
    archive = io.BytesIO()
    archive.write(with_data(content, METADATA_NAME, model_metadata(card, *tensors)))
    with zipfile.ZipFile(archive, "a") as target:
        for name, text in card_files(card).items():
            target.writestr(zipfile.ZipInfo(name, _DATE), text.encode())
    return archive.getvalue()


def model_metadata(
    card: Card,
    inputs: Sequence[TensorDescription],
    outputs: Sequence[TensorDescription],
) -> bytes:
    """Return TensorFlow Lite Metadata for a model with these inputs and outputs.

    Labels are attached to the outputs with a number for each class.
    """
    builder = flatbuffers.Builder()
    ins = [write(builder, _image(each)) for each in inputs]
    outs = [write(builder, _output(each, card)) for each in outputs]
    graph = write(builder, {2: ins, 3: outs})
    reszoo = card.versions.get("reszoo")
    texts = {
        "name": card.architecture.name, "description": summary(card),
        "version": f"reszoo {reszoo}" if reszoo is not None else "",
        "author": "made with reszoo", "license": licence(card),
    }  # fmt: skip
    fields = {_TEXTS[word]: text for word, text in texts.items() if text}
    root = write(builder, {**fields, 7: _MIN_PARSER_VERSION, 3: [graph]})
    builder.Finish(root, _METADATA_IDENTIFIER)
    return bytes(builder.Output())


def read_texts(model: Model) -> dict[str, str]:
    """Return the strings of a model's metadata, whoever wrote it."""
    data = read_data(model, METADATA_NAME)
    if not data or data[4:8] != _METADATA_IDENTIFIER:
        return {}
    root = Table(data, int.from_bytes(data[:4], "little"))
    places = {word: root.Offset(4 + 2 * field) for word, field in _TEXTS.items()}
    return {word: text(root.String(root.Pos + at)) for word, at in places.items() if at}


def _image(tensor: TensorDescription) -> dict[int, Any]:
    height, width, channels = map(np.uint32, tensor.shape[1:])
    kind, name = (_GREY, "Grey") if channels == 1 else (_RGB, "RGB")
    image = {1: {0: width, 1: height}, 0: np.uint8(kind)}
    # The graph normalises; readers require this of float32 inputs.
    unit = {1: _floats(0, 1), 0: np.uint8(_NORMALIZATION)}
    text = f"{name} image with pixels from 0 to 255"
    content = {1: image, 0: np.uint8(_IMAGE)}
    return {3: content, 4: [unit], 5: _floats(255, 0), 0: tensor.name, 1: text}


def _output(tensor: TensorDescription, card: Card) -> dict[int, Any]:
    fields: dict[int, Any] = {3: {1: {}, 0: np.uint8(_FEATURE)}}
    if tensor.name == "probabilities":
        fields[5] = _floats(1, 0)
    if card.labels and tensor.name != "features":
        text = "Names of the classes, one a line"
        fields[6] = [{0: LABELS_FILE, 1: text, 2: np.uint8(_AXIS_LABELS)}]
    return {**fields, 0: tensor.name, 1: f"{tensor.name} of the image"}


def _floats(*values: float) -> dict[int, Any]:
    """Return a table of vectors of one number: mean and deviation, or a range."""
    return {field: np.array([value], np.float32) for field, value in enumerate(values)}


# dtype of activations and of weights -> precision of the table of formats.
_INTEGERS = {"int8": "int8", "uint8": "int8", "int16": "int16x8"}
_STORED = {"int8": "dynamic", "int4": "dynamic", "float16": "float16"}


def describe_file(path: Path, read: Callable[[], Card]) -> Contents:
    """Describe a file (see `Reader.describe`); `read` returns the card in it.

    A CheckpointError if it is no TFLite file, a ValueError if its lists are too long;
    of a damaged one, any error.
    """
    content = read_regular(path, MAX_BYTES)
    if content[4:8] != FILE_IDENTIFIER:
        raise CheckpointError(
            f"{path} is not a TFLite file: it has no {FILE_IDENTIFIER!r}."
        )
    model = read_model(content)
    graphs = subgraphs(model)
    inputs, outputs = read_tensors(model)
    card, note = card_or_note(read)
    counts = [_count(model, graph) for graph in graphs]
    sizes = sum((each for _, each, _ in counts), Counter[str]())
    return Contents(
        precision=sizes.most_common(1)[0][0] if sizes else "float32",
        inputs=inputs, outputs=outputs, card=card, note=note,
        operators=sum((each for each, _, _ in counts), Counter[str]()),
        parameters=sum(each for _, _, each in counts),
        details={} if card else read_texts(model),
    )  # fmt: skip


def _count(model: Any, graph: Any) -> tuple[Counter[str], Counter[str], int]:
    """Count a subgraph's operators, its weights by precision, and its parameters."""
    operators = [graph.Operators(i) for i in range(graph.OperatorsLength())]
    codes = {each.OpcodeIndex() for each in operators}
    if len(codes) > len(OPERATORS):
        raise ValueError(f"{len(codes):,} kinds of operators")
    names = {code: _operator_name(model, code) for code in codes}
    named = [(names[each.OpcodeIndex()], each) for each in operators]
    # Tensor that is dequantized at run time -> the constant that is stored.
    converted = (each for name, each in named if name == "DEQUANTIZE")
    stored = {x.Outputs(0): x.Inputs(0) for x in converted if x.OutputsLength()}
    sizes, constants = Counter[str](), set[int]()
    for operator in (each for name, each in named if name in TFLITE.weighted):
        inputs = [operator.Inputs(place) for place in range(operator.InputsLength())]
        weights = [stored.get(index, index) for index in inputs[1:]]
        constants.update(weights)
        if weights:
            weight, activation = map(graph.Tensors, (weights[0], inputs[0]))
            precision = _STORED.get(dtype(weight), "float32")
            sizes[_INTEGERS.get(dtype(activation), precision)] += _size(weight)
    # An optional input that is missing has the index -1.
    tensors = [graph.Tensors(index) for index in constants if index >= 0]
    filled = (t for t in tensors if model.Buffers(t.Buffer()).DataLength())
    return Counter(name for name, _ in named), sizes, sum(map(_size, filled))


def _operator_name(model: Any, index: int) -> str:
    code = model.OperatorCodes(index)
    # Codes above 127 do not fit into the older field.
    builtin = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
    name = OPERATORS.get(builtin, str(builtin))
    return name if name != "CUSTOM" else f"CUSTOM {text(code.CustomCode())}"


def _size(tensor: Any) -> int:
    return math.prod(sides(tensor))
