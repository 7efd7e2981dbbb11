"""Read what a `.tflite` file tells about itself, without running it."""

import math
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from reszoo.errors import CheckpointError
from reszoo_export.inspection.description import (
    Contents,
    TensorDescription,
    card_or_note,
)
from reszoo_export.metadata import tflite_card
from reszoo_export.writers.tflite_metadata import read_texts
from reszoo_export.writers.tflite_model import DTYPES, IDENTIFIER, Port, read_ports

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
    if content[4:8] != IDENTIFIER:
        raise CheckpointError(f"{path} is not a TFLite file: it has no {IDENTIFIER!r}.")
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
        inputs=tuple(map(_tensor, inputs)),
        outputs=tuple(map(_tensor, outputs)),
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


def _tensor(port: Port) -> TensorDescription:
    sides = tuple("?" if side < 0 else side for side in port.shape)
    if sides[:1] == ("?",):
        sides = ("batch", *sides[1:])
    return TensorDescription(port.name, port.dtype, sides)
