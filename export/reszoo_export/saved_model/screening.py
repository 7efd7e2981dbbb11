"""Check what a SavedModel would execute, in its protocol buffer, before it is loaded.

Loading a SavedModel runs its initialisers, and calling a signature whatever its graph
contains: the operators include ones that read and write any file. Here every node of
the graph and of every function is compared with a list. TensorFlow is imported for the
generated class of the protocol buffer only.

The list is explicit. That an operator is stateless says nothing: `ReadFile` is. Each of
those listed computes its outputs from its inputs alone, and neither reads nor writes
files, nor prints, nor runs Python, nor reaches other processes or resources by name.
"""

import math
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from graphlib import CycleError, TopologicalSorter
from itertools import chain
from pathlib import Path
from typing import Any

from reszoo.errors import CheckpointError
from reszoo.fields import read_tables
from reszoo.files import read_regular
from reszoo_export.protobuf import MAX_BYTES, MAX_NODES, check_fields

CALLS = frozenset({"PartitionedCall", "StatefulPartitionedCall"})
# The functions that they call are in the same file, and checked as well.
CALLING = CALLS | {
    "Case", "If", "StatelessCase", "StatelessIf", "StatelessWhile", "While",
}  # fmt: skip
_ALLOWED = read_tables("reszoo_export.saved_model", "operators.toml")
COMPUTING = CALLING.union(*_ALLOWED["computing"].values())
IN_GRAPH, IN_SAVE, IN_RESTORE, _KINDS, _OBJECTS = (
    frozenset(_ALLOWED[name])
    for name in ("in_graph", "in_save", "in_restore", "kinds", "objects")
)

MODEL_FILE, WARMUP_FILE = "saved_model.pb", "tf_serving_warmup_requests"
# What TensorFlow may read besides: nothing but these.
_DATA_FILE = re.compile(r"variables\.(index|data-\d{5}-of-\d{5})")
_MAX_INLINED = 2_000_000
# A constant of equal numbers is stored as one of them.
_MAX_CONSTANTS = 256 * 2**20
_MAX_ENTRIES = 10_000
_MAX_SHOWN, _MAX_NAME = 8, 80
# Bytes of an element by DataType; complex128 is the largest (types.proto).
_ITEM_BYTES = {1: 4, 3: 4, 4: 1, 6: 1, 10: 1, 14: 2, 19: 2}
_LARGEST_ITEM = 16
# A function is called by several others, but never by itself.
Functions = Mapping[str, Sequence[Any]]


def check_folder(folder: Path) -> None:
    """Refuse a SavedModel that could do more than compute, without loading it.

    A CheckpointError tells of operators, objects or files that are not allowed, and of
    a file that is too large.
    """
    if problems := [*layout_problems(folder), *find_problems(read_model(folder))]:
        more = len(problems) - _MAX_SHOWN
        shown = problems[:_MAX_SHOWN] + [f"and {more} more"] * (more > 0)
        raise CheckpointError(
            f"{folder} is a SavedModel that could do more than compute: "
            f"{'; '.join(shown)}. If you trust its origin, open it with "
            "trust_saved_model=True (--trust-saved-model)."
        )


def read_model(folder: Path) -> Any:
    """Return the parsed protocol buffer of a SavedModel."""
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    path = folder / MODEL_FILE
    if not path.exists():
        raise CheckpointError(
            f"{folder} is not a whole SavedModel (it has no {MODEL_FILE})."
        )
    check_fields(path, lambda: SavedModel)
    saved = SavedModel.FromString(read_regular(path, MAX_BYTES))
    if not saved.meta_graphs:
        raise CheckpointError(f"{folder} is not a whole SavedModel (it has no graph).")
    return saved


def layout_problems(folder: Path) -> list[str]:
    """Find files in a SavedModel's folder that TensorFlow must not read."""
    problems, entries = [], 0
    for root, folders, files in os.walk(folder):
        for path in (Path(root, name) for name in (*folders, *files)):
            entries += 1
            if entries > _MAX_ENTRIES:
                return [f"more than {_MAX_ENTRIES:,} files"]
            if not _fits(path, place := path.relative_to(folder)):
                problems.append(f"file {shown_name(str(place))}")
    return problems


def _fits(path: Path, place: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    if stat.S_ISDIR(mode):
        # A link to a folder may lead anywhere.
        return not path.is_symlink() and place.name != "debug"
    if not stat.S_ISREG(mode):
        return False
    if len(place.parts) > 1 and place.parts[0] == "variables":
        return len(place.parts) == 2 and bool(_DATA_FILE.fullmatch(place.name))
    # Files of initialisers, and the same model in another form.
    other = place.stem == Path(MODEL_FILE).stem and place.name != MODEL_FILE
    return place.parts[0] != "assets" and not other


def find_problems(saved: Any) -> list[str]:
    """Return what in a parsed SavedModel is not allowed."""
    if len(saved.meta_graphs) != 1:
        return [f"{len(saved.meta_graphs)} graphs in place of one"]
    graph = saved.meta_graphs[0]
    library = graph.graph_def.library.function
    nodes = len(graph.graph_def.node) + sum(len(each.node_def) for each in library)
    if nodes > MAX_NODES:
        return [f"{nodes:,} nodes; at most {MAX_NODES:,} are allowed"]
    functions = {each.signature.name: each.node_def for each in library}
    if len(functions) != len(library):
        return ["two functions of one name"]
    return [
        *_operator_problems(graph, functions),
        *_object_problems(graph),
        *_structure_problems(graph, functions),
    ]


def _operator_problems(graph: Any, functions: Functions) -> Iterator[str]:
    save, restore = _saver(graph, functions)
    bodies = {"": graph.graph_def.node, **functions}
    for name, nodes in bodies.items():
        extra = IN_GRAPH if not name else frozenset()
        extra |= IN_SAVE if name == save else frozenset()
        extra |= IN_RESTORE if name == restore else frozenset()
        place = _place(name)
        others = {node.op for node in nodes} - COMPUTING - extra
        yield from (f"operator {shown_name(op)} in {place}" for op in sorted(others))
        if name == restore:
            library = graph.graph_def.library.function
            (signature,) = (x.signature for x in library if x.signature.name == name)
            first = signature.input_arg[0].name if signature.input_arg else None
            reads = [node for node in nodes if node.op == "RestoreV2"]
            if any(not node.input or node.input[0] != first for node in reads):
                yield f"operator RestoreV2 with a file name of its own in {place}"


def _place(function: str) -> str:
    return f"function {shown_name(function)}" if function else "the graph"


def _saver(graph: Any, functions: Functions) -> tuple[str | None, str | None]:
    """Return the functions that save and restore, if nothing else can run them."""
    saver = graph.saver_def
    wanted = map(node_name, (saver.save_tensor_name, saver.restore_op_name))
    file = node_name(saver.filename_tensor_name)
    nodes = {node.name: node for node in graph.graph_def.node}
    used = {node_name(name) for node in graph.graph_def.node for name in node.input}
    for each in graph.signature_def.values():
        tensors = (*each.inputs.values(), *each.outputs.values())
        used |= {node_name(tensor.name) for tensor in tensors}
    counts = sum((called(each) for each in functions.values()), Counter[str]())
    counts += called(graph.graph_def.node)
    objects = graph.object_graph_def.concrete_functions
    found: list[str | None] = []
    for call in map(nodes.get, wanted):
        if call is None or call.op not in CALLS or call.name in used:
            found.append(None)
            continue
        name = call.attr["f"].func.name
        alone = counts[name] == 1 and name not in objects and call.input
        found.append(name if alone and node_name(call.input[0]) == file else None)
    return found[0], found[1]


def _object_problems(graph: Any) -> Iterator[str]:
    """Check what Python makes of the file: variables, functions and their owners."""
    objects = graph.object_graph_def.nodes
    if not objects:
        yield "no objects, as in files of TensorFlow 1"
    if graph.asset_file_def or "saved_model_assets" in graph.collection_def:
        yield "assets, which are files that are read"
    kinds = {node.WhichOneof("kind") or "none" for node in objects}
    yield from (f"object of kind {kind}" for kind in sorted(kinds - _KINDS))
    named = {node.user_object.identifier for node in objects}
    for node in objects:
        named |= {node.registered_name, node.registered_saver}
    others = named - _OBJECTS - {""}
    yield from (f"object {shown_name(name)}" for name in sorted(others))


def _structure_problems(graph: Any, functions: Functions) -> Iterator[str]:
    """Check what takes long or fills the memory although the file is small."""
    bodies = {"": graph.graph_def.node, **functions}
    for name, nodes in bodies.items():
        if has_cycle(nodes):
            yield f"a cycle in {_place(name)}"
    order, recursive = call_order(functions)
    if recursive:
        yield f"function {shown_name(recursive[0])}, which calls itself"
    sizes: dict[str, int] = {}
    for name in reversed(order):
        inner = called(functions[name]).items()
        sizes[name] = len(functions[name]) + sum(
            count * sizes.get(each, 0) for each, count in inner
        )
    if max(sizes.values(), default=0) > _MAX_INLINED:
        yield f"more than {_MAX_INLINED:,} operators in a call"
    nodes = chain.from_iterable(bodies.values())
    tensors = (node.attr["value"].tensor for node in nodes if node.op == "Const")
    total = sum(
        _ITEM_BYTES.get(each.dtype, _LARGEST_ITEM)
        * math.prod(max(0, side.size) for side in each.tensor_shape.dim)
        for each in tensors
    )
    if total > _MAX_CONSTANTS + graph.ByteSize():
        yield f"constants of {total:,} bytes in a smaller file"


def called(nodes: Iterable[Any]) -> Counter[str]:
    """Count how often nodes call each function."""
    counts: Counter[str] = Counter()
    for node in nodes:
        if node.op not in CALLING:
            continue
        waiting = list(node.attr.values())
        while waiting:
            for each in functions_in(waiting.pop()):
                counts[each.name] += 1
                waiting += each.attr.values()
    return counts


def functions_in(value: Any) -> list[Any]:
    """Return the functions that an attribute of a node names."""
    return [value.func] if value.HasField("func") else list(value.list.func)


def call_order(functions: Functions) -> tuple[list[str], list[str]]:
    """Return functions with callers first, and those that reach themselves."""
    callers: dict[str, list[str]] = {name: [] for name in functions}
    for name, nodes in functions.items():
        for callee in called(nodes):
            if callee in functions:
                callers[callee].append(name)
    order = _sorted(callers)
    done = set(order)
    return order, [name for name in functions if name not in done]


def has_cycle(nodes: Sequence[Any]) -> bool:
    """Tell whether nodes depend on themselves."""
    inputs = {node.name: list(map(node_name, node.input)) for node in nodes}
    known = {each for names in inputs.values() for each in names} | {*inputs}
    return len(_sorted(inputs)) < len(known)


def _sorted(before: Mapping[str, Iterable[str]]) -> list[str]:
    """Return names behind those before them, without those in cycles and behind."""
    sorter, order = TopologicalSorter(before), list[str]()
    with suppress(CycleError):
        sorter.prepare()
    while ready := sorter.get_ready():
        order += ready
        sorter.done(*ready)
    return order


def node_name(name: str) -> str:
    """Return the node of a tensor or of a control input."""
    return name.removeprefix("^").partition(":")[0]


def shown_name(name: str) -> str:
    """Return a name from a file as it can be printed."""
    plain = name.isprintable() and name.isascii() and len(name) <= _MAX_NAME
    return name if plain and name else repr(name[:_MAX_NAME])
