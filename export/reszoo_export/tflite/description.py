"""Describe a TFLite file from its FlatBuffer, without LiteRT."""

import math
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reszoo.cards import Card
from reszoo.errors import CheckpointError
from reszoo.files import read_regular
from reszoo_export.inspection import Contents, card_or_note
from reszoo_export.protobuf import MAX_BYTES
from reszoo_export.tflite import flatbuffer

# Operators with weights.
_WEIGHTED = {
    "BATCH_MATMUL", "CONV_2D", "CONV_3D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED",
    "PRELU", "TRANSPOSE_CONV",
}  # fmt: skip
# dtype of activations and of weights -> precision of the table of formats.
_INTEGERS = {"int8": "int8", "uint8": "int8", "int16": "int16x8"}
_STORED = {"int8": "dynamic", "int4": "dynamic", "float16": "float16"}


def describe_file(path: Path, read: Callable[[], Card]) -> Contents:
    """Describe a file (see `Reader.describe`).

    Args:
        path: The file.
        read: Returns the card in it.

    Raises:
        CheckpointError: It is no TFLite file, damaged, or its lists are too long.
    """
    content = read_regular(path, MAX_BYTES)
    if content[4:8] != flatbuffer.FILE_IDENTIFIER:
        raise CheckpointError(
            f"{path} is not a TFLite file: it has no {flatbuffer.FILE_IDENTIFIER!r}."
        )
    try:
        model = flatbuffer.read_model(content)
        graphs = flatbuffer.subgraphs(model)
        inputs, outputs = flatbuffer.read_tensors(model)
        card, note = card_or_note(read)
        operators = [_Operators(model, graph) for graph in graphs]
        sizes = sum((each.sizes() for each in operators), Counter[str]())
        return Contents(
            precision=sizes.most_common(1)[0][0] if sizes else "float32",
            inputs=inputs,
            outputs=outputs,
            operators=Counter(name for each in operators for name, _ in each.named),
            parameters=sum(each.parameters() for each in operators),
            card=card,
            note=note,
            details={} if card else flatbuffer.read_texts(model),
        )
    except (struct.error, IndexError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is not a whole TFLite file ({type(error).__name__}: {error})."
        ) from error


class _Operators:
    """The operators of a subgraph, and the constants that they use as weights."""

    def __init__(self, model: Any, graph: Any) -> None:
        self.model, self.graph = model, graph
        operators = [graph.Operators(i) for i in range(graph.OperatorsLength())]
        codes = {each.OpcodeIndex() for each in operators}
        if len(codes) > len(flatbuffer.OPERATORS):
            raise ValueError(f"{len(codes):,} kinds of operators")
        names = {code: _operator_name(model, code) for code in codes}
        self.named = [(names[each.OpcodeIndex()], each) for each in operators]
        self.weighted = [each for name, each in self.named if name in _WEIGHTED]
        # Tensor that is dequantized at run time -> the constant that is stored.
        self.stored = {
            operator.Outputs(0): operator.Inputs(0)
            for name, operator in self.named
            if name == "DEQUANTIZE" and operator.OutputsLength()
        }

    def sizes(self) -> Counter[str]:
        """Count the weights of each precision."""
        sizes: Counter[str] = Counter()
        for operator in self.weighted:
            if operator.InputsLength() < 2:
                continue
            weight = self._tensor(operator.Inputs(1))
            activation = self.graph.Tensors(operator.Inputs(0))
            precision = _STORED.get(flatbuffer.dtype(weight), "float32")
            sizes[_INTEGERS.get(flatbuffer.dtype(activation), precision)] += _size(
                weight
            )
        return sizes

    def parameters(self) -> int:
        """Count the numbers in weights and biases, each constant once."""
        indices = {
            self.stored.get(operator.Inputs(place), operator.Inputs(place))
            for operator in self.weighted
            for place in range(1, operator.InputsLength())
        }
        # An optional input that is missing has the index -1.
        tensors = [self.graph.Tensors(index) for index in indices if index >= 0]
        return sum(
            _size(tensor)
            for tensor in tensors
            if self.model.Buffers(tensor.Buffer()).DataLength()
        )

    def _tensor(self, index: int) -> Any:
        return self.graph.Tensors(self.stored.get(index, index))


def _operator_name(model: Any, index: int) -> str:
    code = model.OperatorCodes(index)
    # Codes above 127 do not fit into the older field.
    builtin = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
    name = flatbuffer.OPERATORS.get(builtin, str(builtin))
    return name if name != "CUSTOM" else f"CUSTOM {flatbuffer.text(code.CustomCode())}"


def _size(tensor: Any) -> int:
    return math.prod(flatbuffer.sides(tensor))
