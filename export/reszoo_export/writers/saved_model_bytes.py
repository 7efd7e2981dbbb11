"""Make a SavedModel the same bytes whoever saved it, whenever.

TensorFlow names functions after counters of the process, orders them by a hash of
these names, and writes a random number into `fingerprint.pb`.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

_SAVED_MODEL = "saved_model.pb"
# Read for log entries only: tensorflow 2.21, `saved_model/load.py`.
_FINGERPRINT = "fingerprint.pb"
# In what a loop's condition is handed and does not read: tensorflow 2.21,
# `ops/while_v2.py`. The number is the counter of the process.
_COUNTED = re.compile(r"_\d+(?=___redundant_placeholder)")


def make_repeatable(folder: Path) -> None:
    """Rewrite a SavedModel that was just saved: the same bytes for the same net.

    Functions are numbered in the order in which the signatures reach them.

    Args:
        folder: With `saved_model.pb`.
    """
    file = folder / _SAVED_MODEL
    model = SavedModel.FromString(file.read_bytes())
    for graph in model.meta_graphs:
        _renumber(graph)
    file.write_bytes(model.SerializeToString(deterministic=True))
    (folder / _FINGERPRINT).unlink(missing_ok=True)


def _renumber(graph: Any) -> None:
    library = graph.graph_def.library
    functions = {each.signature.name: each for each in library.function}
    names = _numbered(graph.graph_def.node, functions)
    for function in library.function:
        function.signature.name = names.get(function.signature.name, "")
        for argument in function.signature.input_arg:
            argument.name = _COUNTED.sub("", argument.name)
        _rename_calls(function.node_def, names)
        _rename_attributes(function.attr.values(), names)
    _rename_calls(graph.graph_def.node, names)
    # Those that nothing reaches have no name now, and come first.
    order = ["", *names.values()]
    library.function.sort(key=lambda each: order.index(each.signature.name))
    del library.function[: len(library.function) - len(names)], library.gradient[:]
    _rename_objects(graph.object_graph_def, names)


def _numbered(nodes: Sequence[Any], functions: dict[str, Any]) -> dict[str, str]:
    """Return new names by old ones, in the order in which nodes reach functions."""
    names: dict[str, str] = {}
    waiting = list(_called(nodes))
    while waiting:
        name = waiting.pop(0)
        if name in functions and name not in names:
            stem = name.rstrip("0123456789").rstrip("_")
            names[name] = f"{stem}_{len(names)}"
            waiting += _called(functions[name].node_def)
    return names


def _called(nodes: Sequence[Any]) -> Iterator[str]:
    for node in nodes:
        for key in sorted(node.attr):
            for function in _functions_in(node.attr[key]):
                yield function.name


def _functions_in(value: Any) -> list[Any]:
    return [value.func] if value.HasField("func") else list(value.list.func)


def _rename_calls(nodes: Sequence[Any], names: dict[str, str]) -> None:
    for node in nodes:
        _rename_attributes(node.attr.values(), names)


def _rename_attributes(values: Any, names: dict[str, str]) -> None:
    for value in values:
        for function in _functions_in(value):
            function.name = names.get(function.name, function.name)


def _rename_objects(objects: Any, names: dict[str, str]) -> None:
    """Rename the functions in what Python sees after loading."""
    for node in objects.nodes:
        if node.HasField("function"):
            old = list(node.function.concrete_functions)
            node.function.concrete_functions[:] = [names[name] for name in old]
        elif node.HasField("bare_concrete_function"):
            bare = node.bare_concrete_function
            bare.concrete_function_name = names[bare.concrete_function_name]
    # Taken out first, for a new name can be another's old one.
    kept = {
        new: objects.concrete_functions[old].SerializeToString()
        for old, new in names.items()
        if old in objects.concrete_functions
    }
    objects.ClearField("concrete_functions")
    for name, content in kept.items():
        objects.concrete_functions[name].ParseFromString(content)
