"""SavedModels that do more than compute: ways to change the one that is bundled."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.core.framework.attr_value_pb2 import AttrValue
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

BUNDLED = Path(__file__).parents[1] / "saved_models/resnet20-cifar10"
# From a graph and the name of the file that must not be written.
Change = Callable[[Any, str], object]


def hostile(target: Path, change: Change, canary: Path) -> Path:
    """Copy the bundled SavedModel, change its graph, and return the folder."""
    shutil.copytree(BUNDLED / "saved_model", target)
    file = target / "1" / "saved_model.pb"
    saved = SavedModel.FromString(file.read_bytes())
    change(saved.meta_graphs[0], str(canary))
    file.write_bytes(saved.SerializeToString())
    return target


def functions(graph: Any, start: str) -> list[Any]:
    """Return the functions of a name, whatever their number is."""
    return [
        each
        for each in graph.graph_def.library.function
        if re.fullmatch(rf"{start}_\d+", each.signature.name)
    ]


def function(graph: Any, start: str) -> Any:
    return functions(graph, start)[0]


def text(name: str, content: str) -> NodeDef:
    node = NodeDef(name=name, op="Const")
    node.attr["dtype"].type = tf.string.as_datatype_enum
    tensor = tf.make_tensor_proto(content.encode())
    node.attr["value"].CopyFrom(AttrValue(tensor=tensor))
    return node


def write_nodes(canary: str, inside: bool) -> list[NodeDef]:
    """Return nodes that write a file; tensors in functions have longer names."""
    end = ":output:0" if inside else ""
    nodes = [text("evil_name", canary), text("evil_content", "written")]
    inputs = [f"evil_name{end}", f"evil_content{end}"]
    return [*nodes, NodeDef(name="evil", op="WriteFile", input=inputs)]


def in_function(start: str) -> Change:
    """Write the file whenever a function runs."""

    def change(graph: Any, canary: str) -> None:
        for found in functions(graph, start):
            results = {name.partition(":")[0] for name in found.ret.values()}
            for node in found.node_def:
                if node.name in results:
                    node.input.append("^evil")
            found.node_def.extend(write_nodes(canary, inside=True))

    return change


def in_graph(graph: Any, canary: str) -> None:
    """Write the file in the initialiser."""
    graph.graph_def.node.extend(write_nodes(canary, inside=False))
    graph.signature_def["__saved_model_init_op"].outputs[
        "__saved_model_init_op"
    ].name = "evil"
    graph.collection_def["saved_model_main_op"].node_list.value[:] = ["evil"]


def operator(op: str, start: str = "") -> Change:
    """Put one operator into a function, or into the graph."""

    def change(graph: Any, canary: str) -> None:
        nodes = function(graph, start).node_def if start else graph.graph_def.node
        nodes.append(NodeDef(name="evil", op=op))

    return change


def cycle(start: str) -> Change:
    def change(graph: Any, canary: str) -> None:
        nodes = function(graph, start).node_def if start else graph.graph_def.node
        nodes.append(NodeDef(name="first", op="Identity", input=["second"]))
        nodes.append(NodeDef(name="second", op="Identity", input=["first"]))

    return change


def call(nodes: Any, name: str, callee: str) -> None:
    node = NodeDef(name=name, op="PartitionedCall")
    node.attr["f"].func.name = callee
    nodes.append(node)


def recursion(graph: Any, canary: str) -> None:
    found = function(graph, "__inference_serve")
    call(found.node_def, "again", found.signature.name)


def doubling(graph: Any, canary: str) -> None:
    """30 functions that each call the next one twice: 2 ** 30 calls."""
    for number in range(30):
        made = graph.graph_def.library.function.add()
        made.signature.name = f"double_{number}"
        for name in ("left", "right") * (number < 29):
            call(made.node_def, name, f"double_{number + 1}")
    call(function(graph, "__inference_serve").node_def, "all", "double_0")


def large_constant(graph: Any, canary: str) -> None:
    """8 GB of equal numbers, stored as one."""
    node = NodeDef(name="large", op="Const")
    tensor = node.attr["value"].tensor
    tensor.dtype = tf.float32.as_datatype_enum
    for _ in range(2):
        tensor.tensor_shape.dim.add().size = 44721
    tensor.float_val.append(0)
    function(graph, "__inference_serve").node_def.append(node)


def restore_elsewhere(graph: Any, canary: str) -> None:
    """Let TF Serving read any file when it restores the variables."""
    found = function(graph, "__inference__traced_restore")
    found.node_def.append(text("evil", canary))
    restore = next(node for node in found.node_def if node.op == "RestoreV2")
    restore.input[0] = "evil:output:0"


def served_saver(graph: Any, canary: str) -> None:
    """Offer what saves as a signature."""
    name = graph.saver_def.save_tensor_name
    graph.signature_def["serving_default"].outputs["saved"].name = name


def object_of(kind: str) -> Change:
    def change(graph: Any, canary: str) -> None:
        made = graph.object_graph_def.nodes.add()
        getattr(made, kind).SetInParent()

    return change


def owner(identifier: str) -> Change:
    def change(graph: Any, canary: str) -> None:
        made = graph.object_graph_def.nodes.add()
        made.user_object.identifier = identifier

    return change


def registered(graph: Any, canary: str) -> None:
    graph.object_graph_def.nodes[0].registered_name = "Somebody.Class"


def assets(graph: Any, canary: str) -> None:
    asset = graph.asset_file_def.add()
    asset.filename, asset.tensor_info.name = "../../../etc/passwd", "Const:0"


def without_objects(graph: Any, canary: str) -> None:
    graph.ClearField("object_graph_def")


def twice(graph: Any, canary: str) -> None:
    graph.graph_def.library.function.append(function(graph, "map_while_body"))


def empty_nodes(graph: Any, canary: str) -> None:
    """600,000 nodes in 1.2 MB."""
    graph.graph_def.MergeFromString(b"\x0a\x00" * 600_000)


# An operator that is refused, in the function that a signature runs.
_OPERATORS = (
    "BatchFunction", "CollectiveReduceV2", "CopyHost", "DebugIdentityV3",
    "EagerPyFunc", "FixedLengthRecordReaderV2", "HashTableV2", "ImmutableConst",
    "InitializeTableFromTextFileV2", "IteratorFromStringHandleV2", "LoadDataset",
    "LookupTableImportV2", "MatchingFiles", "ParseExampleV2", "PrintV2", "PyFunc",
    "PyFuncStateless", "QueueEnqueueV2", "RandomUniform", "ReadFile", "RemoteCall",
    "RestoreV2", "SaveDatasetV2", "SaveV2", "SdcaFprint", "SymbolicGradient",
    "TFRecordDataset", "TPUReplicate", "VarHandleOp", "WholeFileReaderV2",
    "WriteAudioSummary", "WriteFile", "XlaLaunch", "no such operator\x1b[2J",
    "__inference_serve_5",
)  # fmt: skip
_PLACES = (
    "__inference_serve", "__inference_serve_bytes", "__inference__traced_restore",
    "__inference__traced_save", "map_while_body", "map_while_cond_true",
    "__inference_signature_wrapper",
)  # fmt: skip
CHANGES: dict[str, Change] = {
    **{f"{op.split()[0]} is called": operator(op, _PLACES[0]) for op in _OPERATORS},
    **{f"WriteFile in {place}": in_function(place) for place in _PLACES},
    "WriteFile in the initialiser": in_graph,
    "SaveV2 in the graph": operator("SaveV2"),
    "MergeV2Checkpoints in the restorer": operator("MergeV2Checkpoints", _PLACES[2]),
    "RestoreV2 in the saver": operator("RestoreV2", _PLACES[3]),
    "restore elsewhere": restore_elsewhere,
    "the saver as a signature": served_saver,
    "cycle in the graph": cycle(""),
    "cycle in a function": cycle(_PLACES[0]),
    "recursion": recursion,
    "doubling": doubling,
    "large constant": large_constant,
    "asset object": object_of("asset"),
    "resource object": object_of("resource"),
    "optimizer": owner("optimizer"),
    "registered class": registered,
    "assets": assets,
    "no objects": without_objects,
    "two functions of one name": twice,
    "empty nodes": empty_nodes,
}


def _pipe(folder: Path) -> None:
    os.mkfifo(folder / "variables" / "variables.data-00001-of-00002")


FILES: dict[str, Callable[[Path], object]] = {
    "text form": lambda folder: (folder / "saved_model.pbtxt").write_text("{}"),
    "parts": lambda folder: (folder / "saved_model.cpb").write_text("{}"),
    "debug": lambda folder: (folder / "debug").mkdir(),
    "asset": lambda folder: (folder / "assets" / "words.txt").write_text("x"),
    "variables": lambda folder: (folder / "variables" / "more").write_text("x"),
    "pipe": _pipe,
    "link": lambda folder: (folder / "linked").symlink_to(folder.parent),
    "broken link": lambda folder: (folder / "x").symlink_to("nothing"),
}


def initialised(target: Path, canary: Path) -> Path:
    """Write a genuine SavedModel that writes a file as soon as it is loaded."""

    class Resource(tf.saved_model.experimental.TrackableResource):  # type: ignore[misc]
        def _create_resource(self) -> Any:
            return tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=())

        def _initialize(self) -> None:
            tf.io.write_file(str(canary), "written")

    module = tf.Module()
    module.resource = Resource()
    spec = tf.TensorSpec((None, 32, 32, 3), tf.uint8, "image")

    @tf.function(input_signature=[spec])  # type: ignore[untyped-decorator]
    def serve(image: Any) -> Any:
        return {"probabilities": tf.zeros((tf.shape(image)[0], 10))}

    tf.saved_model.save(module, str(target / "1"), {"serving_default": serve})
    canary.unlink(missing_ok=True)
    extra = target / "1" / "assets.extra"
    shutil.copytree(BUNDLED / "saved_model" / "1" / "assets.extra", extra)
    return target
