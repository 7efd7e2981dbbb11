"""Describe a SavedModel without loading it."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from reszoo.errors import CheckpointError
from reszoo_export.inspection import Contents, TensorDescription, card_or_note
from reszoo_export.metadata import saved_model_card
from reszoo_export.saved_model.runtime import newest_version

_DEFAULT = "serving_default"
_FILE = "saved_model.pb"
# Operators that only call functions, that have weights, and that stand between.
_CALLS = {"PartitionedCall", "StatefulPartitionedCall"}
_WEIGHTED = {"BiasAdd", "Conv2D", "DepthwiseConv2dNative", "MatMul"}
_BETWEEN = {"Cast", "Identity", "Reshape", "Squeeze"}
# Name of a function, "" for the graph itself, and what is in it.
_Body = tuple[str, list[Any]]


def read(path: Path) -> Contents:
    """Read a folder, or the newest version in it.

    Raises:
        CheckpointError: It is no SavedModel, or damaged.
    """
    from tensorflow.core.protobuf import saved_model_pb2

    folder = newest_version(path)
    if not (folder / _FILE).is_file():
        raise CheckpointError(f"{path} is not a SavedModel: it has no {_FILE}.")
    saved = saved_model_pb2.SavedModel()
    try:
        saved.ParseFromString((folder / _FILE).read_bytes())
        graph = saved.meta_graphs[0]
    except (DecodeError, IndexError) as error:
        raise CheckpointError(f"{path} is not a whole SavedModel ({error}).") from error
    card, note = card_or_note(lambda: saved_model_card(folder))
    signatures = dict(sorted(graph.signature_def.items()))
    signatures.pop("__saved_model_init_op", None)
    default = signatures.pop(_DEFAULT, None)
    bodies = _bodies(graph, default) if default else []
    numbers = _parameters(graph, bodies)
    return Contents(
        kind="saved_model",
        precision=numbers.most_common(1)[0][0] if numbers else "float32",
        inputs=_tensors(default.inputs) if default else (),
        outputs=_tensors(default.outputs) if default else (),
        operators=Counter(
            node.op for _, nodes in bodies for node in nodes if node.op not in _CALLS
        ),
        parameters=numbers.total(),
        card=card,
        note=note,
        details={
            **{f"signature {name}": _line(each) for name, each in signatures.items()},
            "tensorflow": graph.meta_info_def.tensorflow_version,
        },
    )


def _line(signature: Any) -> str:
    ins, outs = (
        ", ".join(f"{each.name} {each.text()}" for each in _tensors(tensors))
        for tensors in (signature.inputs, signature.outputs)
    )
    return f"{ins} -> {outs}"


def _tensors(tensors: Mapping[str, Any]) -> tuple[TensorDescription, ...]:
    return tuple(
        TensorDescription(
            name, _dtype(info.dtype), tuple(_sides(info.tensor_shape.dim))
        )
        for name, info in sorted(tensors.items())
    )


def _sides(sides: Any) -> Iterator[int | str]:
    for axis, side in enumerate(sides):
        yield side.size if side.size >= 0 else "?" if axis else "batch"


def _dtype(number: int) -> str:
    import tensorflow as tf

    return str(tf.dtypes.as_dtype(number).name)


def _parameters(graph: Any, bodies: Sequence[_Body]) -> Counter[str]:
    """Count numbers in variables, and in constants used as weights, by dtype."""
    found: Counter[str] = Counter()
    for node in graph.object_graph_def.nodes:
        if node.WhichOneof("kind") == "variable":
            found[_dtype(node.variable.dtype)] += _size(node.variable.shape)
    for nodes in dict(bodies).values():
        for constant in _weights(nodes):
            found[_dtype(constant.dtype)] += _size(constant.tensor_shape)
    return found


def _weights(nodes: Sequence[Any]) -> list[Any]:
    named = {node.name: node for node in nodes}

    def origin(name: str) -> Any:
        node = named.get(_node_name(name))
        while node is not None and node.op in _BETWEEN:
            node = named.get(_node_name(node.input[0]))
        return node

    users = [node for node in nodes if node.op in _WEIGHTED]
    origins = [origin(name) for node in users for name in node.input[1:]]
    constants = {node.name: node for node in origins if node and node.op == "Const"}
    return [node.attr["value"].tensor for node in constants.values()]


def _size(shape: Any) -> int:
    return math.prod(side.size for side in shape.dim)


def _bodies(graph: Any, signature: Any) -> list[_Body]:
    """Return what leads to a signature's outputs: the graph, and functions it calls.

    A function is there as often as it is called.
    """
    functions = {each.signature.name: each for each in graph.graph_def.library.function}
    nodes = {node.name: node for node in graph.graph_def.node}
    wanted = [_node_name(info.name) for info in signature.outputs.values()]
    reached: dict[str, Any] = {}
    while wanted:
        name = wanted.pop()
        if name in nodes and name not in reached:
            reached[name] = nodes[name]
            wanted += map(_node_name, nodes[name].input)
    bodies: list[_Body] = [("", list(reached.values()))]
    for _, body in bodies:  # Grows while it is walked.
        for node in body:
            called = _called(node, functions)
            bodies += [(name, list(functions[name].node_def)) for name in called]
    return bodies


def _called(node: Any, functions: Mapping[str, Any]) -> list[str]:
    names = [value.func.name for value in node.attr.values()]
    return [name for name in names if name in functions]


def _node_name(name: str) -> str:
    return name.removeprefix("^").partition(":")[0]
