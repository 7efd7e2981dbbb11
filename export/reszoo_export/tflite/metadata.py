"""TFLite metadata, and what `reszoo inspect` tells of a TFLite file."""

import math
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flatbuffers
from ai_edge_litert import schema_py_generated as schema
from flatbuffers.table import Table

from reszoo.cards import Card
from reszoo.errors import CheckpointError
from reszoo_export.inspection import Contents, TensorDescription, card_or_note
from reszoo_export.metadata import (
    LABELS_FILE,
    append_zip,
    card_files,
    licence,
    summary,
    tflite_card,
)
from reszoo_export.tflite.model import (
    DTYPES,
    FILE_IDENTIFIER,
    Port,
    floats,
    read_data,
    read_ports,
    table,
    vector,
    with_data,
)

NAME = "TFLITE_METADATA"
IDENTIFIER = b"M001"
# Every field used here is in the first version of the schema.
_PARSER = "1.0.0"
# Number of fields of each table.
_MODEL, _SUBGRAPH, _TENSOR, _CONTENT, _UNIT, _FILE = 8, 10, 7, 3, 2, 5
# Fields of the model's table that are texts.
_TEXTS = {"name": 0, "description": 1, "version": 2, "author": 4, "license": 5}
# Members of enumerations and unions.
_FEATURE, _IMAGE, _RGB, _NORMALIZATION, _AXIS_LABELS = 1, 2, 1, 1, 2


def with_card(content: bytes, card: Card) -> bytes:
    """Return a TFLite file that tells what it is: to readers of metadata and of zips.

    Args:
        content: The model, as the converter made it.
        card: Of the model.
    """
    ports = read_ports(schema.Model.GetRootAs(content))
    described = with_data(content, NAME, model_metadata(card, *ports))
    return append_zip(described, card_files(card))


def model_metadata(
    card: Card, inputs: Sequence[Port], outputs: Sequence[Port]
) -> bytes:
    """Return the description of a model as a flatbuffer.

    Args:
        card: Of the model.
        inputs: Those of the model, in its order.
        outputs: The same of the outputs; the labels belong to those that have one
            number a class.
    """
    builder = flatbuffers.Builder()
    ins = [_image(builder, port) for port in inputs]
    outs = [_answer(builder, port, card) for port in outputs]
    lists = {2: vector(builder, ins), 3: vector(builder, outs)}
    graph = table(builder, _SUBGRAPH, lists)
    texts = {
        "name": card.architecture.spec,
        "description": summary(card),
        "version": _version(card),
        "author": "made with reszoo",
        "license": licence(card),
    }
    fields = {
        _TEXTS[word]: builder.CreateString(text) for word, text in texts.items() if text
    }
    fields[7] = builder.CreateString(_PARSER)
    fields[3] = vector(builder, [graph])
    builder.Finish(table(builder, _MODEL, fields), IDENTIFIER)
    return bytes(builder.Output())


def read_texts(model: Any) -> dict[str, str]:
    """Return what the description in a model, anybody's, says of it in words."""
    data = read_data(model, NAME)
    if not data or data[4:8] != IDENTIFIER:
        return {}
    root = Table(data, int.from_bytes(data[:4], "little"))
    places = {word: root.Offset(4 + 2 * field) for word, field in _TEXTS.items()}
    return {
        word: root.String(root.Pos + place).decode()
        for word, place in places.items()
        if place
    }


def _version(card: Card) -> str:
    return f"reszoo {card.versions['reszoo']}" if "reszoo" in card.versions else ""


def _image(builder: flatbuffers.Builder, port: Port) -> int:
    height, width = port.shape[1:3]
    size = table(builder, 2, {}, numbers={0: width, 1: height})
    image = table(builder, 2, {1: size}, small={0: _RGB})
    content = table(builder, _CONTENT, {1: image}, small={0: _IMAGE})
    # The graph normalises: pixels go in as they are. Readers demand this of float32.
    identity = {0: floats(builder, 0), 1: floats(builder, 1)}
    options = table(builder, 2, identity)
    unit = table(builder, _UNIT, {1: options}, small={0: _NORMALIZATION})
    fields = {3: content, 4: vector(builder, [unit]), 5: _stats(builder, 0, 255)}
    return _tensor(builder, port, "RGB image with pixels from 0 to 255", fields)


def _answer(builder: flatbuffers.Builder, port: Port, card: Card) -> int:
    feature = table(builder, 0, {})
    fields = {3: table(builder, _CONTENT, {1: feature}, small={0: _FEATURE})}
    if port.name == "probabilities":
        fields[5] = _stats(builder, 0, 1)
    if card.labels and port.name != "features":
        texts = {0: LABELS_FILE, 1: "Names of the classes, one a line"}
        file = {slot: builder.CreateString(text) for slot, text in texts.items()}
        labels = table(builder, _FILE, file, small={2: _AXIS_LABELS})
        fields[6] = vector(builder, [labels])
    return _tensor(builder, port, f"{port.name} of the image", fields)


def _tensor(
    builder: flatbuffers.Builder, port: Port, text: str, fields: dict[int, int]
) -> int:
    fields[0] = builder.CreateString(port.name)
    fields[1] = builder.CreateString(text)
    return table(builder, _TENSOR, fields)


def _stats(builder: flatbuffers.Builder, low: float, high: float) -> int:
    return table(builder, 2, {0: floats(builder, high), 1: floats(builder, low)})


_OPERATORS = {
    number: name
    for name, number in vars(schema.BuiltinOperator).items()
    if not name.startswith("_")
}
# Operators that have weights.
_WEIGHTED = {
    "BATCH_MATMUL",
    "CONV_2D",
    "CONV_3D",
    "DEPTHWISE_CONV_2D",
    "FULLY_CONNECTED",
    "PRELU",
    "TRANSPOSE_CONV",
}
# Number formats of activations and of weights -> precision of the table of formats.
_INTEGERS = {"int8": "int8", "uint8": "int8", "int16": "int16x8"}
_STORED = {"int8": "dynamic", "int4": "dynamic", "float16": "float16"}


def read(path: Path) -> Contents:
    """Read a file.

    Raises:
        CheckpointError: It is no TFLite model, or damaged.
    """
    content = path.read_bytes()
    if content[4:8] != FILE_IDENTIFIER:
        raise CheckpointError(
            f"{path} is not a TFLite file: it has no {FILE_IDENTIFIER!r}."
        )
    try:
        return _read(path, schema.Model.GetRootAs(content))
    except (struct.error, IndexError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is not a whole TFLite file ({type(error).__name__}: {error})."
        ) from error


def _read(path: Path, model: Any) -> Contents:
    inputs, outputs = read_ports(model)
    card, note = card_or_note(lambda: tflite_card(path))
    operators: Counter[str] = Counter()
    precisions: Counter[str] = Counter()
    parameters = 0
    for number in range(model.SubgraphsLength()):
        graph = model.Subgraphs(number)
        named = list(_operators(model, graph))
        operators.update(name for name, _ in named)
        weighted = [operator for name, operator in named if name in _WEIGHTED]
        stored = _stored(named)
        for each in weighted:
            weight = graph.Tensors(stored.get(each.Inputs(1), each.Inputs(1)))
            precisions[_precision(graph, each, weight)] += _size(weight)
        parameters += _parameters(model, graph, weighted, stored)
    return Contents(
        kind="tflite",
        precision=precisions.most_common(1)[0][0] if precisions else "float32",
        inputs=tuple(map(_describe_tensor, inputs)),
        outputs=tuple(map(_describe_tensor, outputs)),
        operators=operators,
        parameters=parameters,
        card=card,
        note=note,
        details={} if card else read_texts(model),
    )


def _operators(model: Any, graph: Any) -> Iterator[tuple[str, Any]]:
    for index in range(graph.OperatorsLength()):
        operator = graph.Operators(index)
        code = model.OperatorCodes(operator.OpcodeIndex())
        # Codes above 127 did not fit into the older field.
        builtin = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        name = _OPERATORS.get(builtin, str(builtin))
        if name == "CUSTOM":
            name = f"CUSTOM {(code.CustomCode() or b'').decode()}"
        yield name, operator


def _stored(named: Sequence[tuple[str, Any]]) -> dict[int, int]:
    """Return, for tensors that are made of constants while running, the constants."""
    return {
        operator.Outputs(0): operator.Inputs(0)
        for name, operator in named
        if name == "DEQUANTIZE"
    }


def _precision(graph: Any, operator: Any, weight: Any) -> str:
    activations = DTYPES[graph.Tensors(operator.Inputs(0)).Type()]
    stored = DTYPES[weight.Type()]
    return _INTEGERS.get(activations) or _STORED.get(stored, "float32")


def _size(tensor: Any) -> int:
    return math.prod(tensor.ShapeAsNumpy().tolist()) if tensor.ShapeLength() else 1


def _parameters(
    model: Any, graph: Any, weighted: Sequence[Any], stored: Mapping[int, int]
) -> int:
    """Count the constants that operators get beside their first input, each once."""
    indices = {
        stored.get(operator.Inputs(position), operator.Inputs(position))
        for operator in weighted
        for position in range(1, operator.InputsLength())
    }
    # An input that was left out has the index -1.
    tensors = [graph.Tensors(index) for index in indices if index >= 0]
    return sum(
        _size(tensor)
        for tensor in tensors
        if model.Buffers(tensor.Buffer()).DataLength()
    )


def _describe_tensor(port: Port) -> TensorDescription:
    sides = tuple("?" if side < 0 else side for side in port.shape)
    if sides[:1] == ("?",):
        sides = ("batch", *sides[1:])
    return TensorDescription(port.name, port.dtype, sides)
