"""Plant defects in SavedModels: in the graph, the variables, signatures and assets.

Kernels are HWIO. A change of "the body" is one of the function that computes the model.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import defect_arrays as arrays
import numpy as np
from planting import Edit, Export, of_json, of_labels

FORMAT = "saved_model"
EXTRA = "assets.extra"
# Layers of the body, by the names of their nodes without the model's.
LAST, BEFORE, STRIDED, STEM = (
    f"{name}_1/convolution"
    for name in ("layer2.1.conv2", "layer2.1.conv1", "layer2.0.conv1", "conv1")
)
POOL, MEAN, MATMUL = "maxpool_1/MaxPool2d", "avgpool_1/Mean", "fc_1/MatMul"
RELU, ADD = "layer2.1.relu1_1/Relu", "layer2.1.add_1/Add"
SOFTMAX, LOGITS = "probabilities", "fc_1/BiasAdd"
CAST, SCALE, SHIFT = "Cast", "mul", "add"
# Variables, in the order in which the checkpoint numbers them.
VARIABLES = {"conv1": 0, "block": 6, "before": 16, "last": 18, "last.bias": 19,
             "fc": 20, "fc.bias": 21}  # fmt: skip
Change = Callable[[Any], object]


def version(export: Export) -> Path:
    """Return the folder of the only version."""
    return export.path / "1"


def of_model(change: Change) -> Edit:
    """Change the protocol buffer of the model."""

    def edit(export: Export) -> None:
        from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

        path = version(export) / "saved_model.pb"
        saved = SavedModel.FromString(path.read_bytes())
        change(saved)
        path.write_bytes(saved.SerializeToString(deterministic=True))

    return edit


def of_graph(change: Change) -> Edit:
    """Change the meta graph."""
    return of_model(lambda saved: change(saved.meta_graphs[0]))


def functions(graph: Any) -> dict[str, Any]:
    """Return the library's functions by name."""
    return {each.signature.name: each for each in graph.graph_def.library.function}


def bodies(graph: Any) -> list[Any]:
    """Return the functions that compute the model; Python's attribute is the first."""
    return [f for f in functions(graph).values()
            if any(node.op == "Conv2D" for node in f.node_def)]  # fmt: skip


def of_body(change: Change) -> Edit:
    """Change what computes the model, wherever it is."""
    return of_graph(lambda graph: [change(body) for body in bodies(graph)])


def node(body: Any, name: str) -> Any:
    """Return a node by its name, the model's name left out."""
    (found,) = [
        e for e in body.node_def if e.name.removeprefix("two-stages_1/") == name
    ]
    return found


def redirect(body: Any, old: str, new: str) -> None:
    """Let whoever reads a tensor read another one."""
    for each in body.node_def:
        each.input[:] = [new if name == old else name for name in each.input]
    for key, value in body.ret.items():
        body.ret[key] = new if value == old else value


def outputs(body: Any, name: str) -> set[str]:
    """Return the tensors of a node that others read."""
    used = {each for other in body.node_def for each in other.input}
    used |= set(body.ret.values())
    return {each for each in used if each.startswith(f"{node(body, name).name}:")}


def become(name: str, kind: str, output: str, *drop: str, **types: int) -> Change:
    """Make an operator of another kind, whose output has another name."""

    def edit(body: Any) -> None:
        for old in outputs(body, name):
            redirect(body, old, f"{node(body, name).name}:{output}:0")
        found = node(body, name)
        found.op = kind
        for key in drop:
            found.attr.pop(key, None)
        for key, value in types.items():
            found.attr[key].type = value

    return edit


def skipped(name: str, place: int = 0) -> Change:
    """Leave an operator out: who reads it gets one of its inputs."""

    def edit(body: Any) -> None:
        source = node(body, name).input[place]
        for old in outputs(body, name):
            redirect(body, old, source)

    return edit


def reads(name: str, place: int, source: str) -> Change:
    """Let an operator read another one's output."""

    def edit(body: Any) -> None:
        (tensor,) = outputs(body, source)
        node(body, name).input[place] = tensor

    return edit


def attribute(name: str, key: str, value: Any) -> Change:
    """Change an attribute: a text, a list of integers, a flag or a number."""

    def edit(body: Any) -> None:
        held = node(body, name).attr[key]
        if isinstance(value, list):
            held.list.i[:] = value
        else:
            kind = {bytes: "s", bool: "b", float: "f", int: "type"}[type(value)]
            setattr(held, kind, value)

    return edit


def both(*changes: Change) -> Change:
    """Make several changes."""
    return lambda owner: [change(owner) for change in changes]


def constant_of(name: str, place: int, change: arrays.Change) -> Change:
    """Change a constant that an operator reads."""

    def edit(body: Any) -> None:
        import tensorflow as tf

        source = node(body, name).input[place].partition(":")[0]
        (found,) = [each for each in body.node_def if each.name == source]
        old = tf.make_ndarray(found.attr["value"].tensor)
        made = tf.make_tensor_proto(change(old.copy()))
        found.attr["value"].tensor.CopyFrom(made)

    return edit


def const(body: Any, name: str, value: Any) -> str:
    """Add a constant; return its output."""
    import tensorflow as tf

    made = body.node_def.add(name=name, op="Const")
    made.attr["dtype"].type = tf.as_dtype(value.dtype).as_datatype_enum
    made.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
    return f"{name}:output:0"


def inserted(
    name: str, place: int, kind: str, output: str, constants: tuple[Any, ...] = (),
    **types: int,
) -> Change:  # fmt: skip
    """Insert an operator in front of another one's input."""

    def edit(body: Any) -> None:
        after = node(body, name)
        extra = [const(body, f"planted/{i}", c) for i, c in enumerate(constants)]
        made = body.node_def.add(name="planted", op=kind)
        made.input[:] = [after.input[place], *extra]
        for key, value in types.items():
            made.attr[key].type = value
        after.input[place] = f"planted:{output}:0"

    return edit


def trained(body: Any) -> None:
    """Normalise by the statistics of the batch."""
    import tensorflow as tf

    after = node(body, RELU)
    ones, zeros = (np.full(32, value, np.float32) for value in (1, 0))
    empty = np.zeros(0, np.float32)
    made = body.node_def.add(name="planted", op="FusedBatchNormV3")
    extra = [
        const(body, f"planted/{i}", c)
        for i, c in enumerate((ones, zeros, empty, empty))
    ]
    made.input[:] = [after.input[0], *extra]
    for key in ("T", "U"):
        made.attr[key].type = tf.float32.as_datatype_enum
    made.attr["is_training"].b = True
    after.input[0] = "planted:y:0"


def batch_mean(body: Any) -> None:
    """Add the mean of the batch to the features of each image."""
    import tensorflow as tf

    after, kind = node(body, MATMUL), tf.float32.as_datatype_enum
    mean = body.node_def.add(name="planted/mean", op="Mean")
    mean.input[:] = [
        after.input[0],
        const(body, "planted/axis", np.array([0], np.int32)),
    ]
    mean.attr["T"].type, mean.attr["Tidx"].type = kind, tf.int32.as_datatype_enum
    mean.attr["keep_dims"].b = True
    made = body.node_def.add(name="planted", op="AddV2")
    made.input[:] = [after.input[0], "planted/mean:output:0"]
    made.attr["T"].type = kind
    after.input[0] = "planted:z:0"


def renamed_operator(body: Any) -> None:
    """Name an operator that TensorFlow does not have."""
    node(body, MEAN).op = "GlobalAveragePooling"


def in_functions(kind: str, change: Callable[[Any], object]) -> Edit:
    """Change all operators of a kind that decode and resize encoded images."""

    def edit(graph: Any) -> None:
        found = [
            n for f in functions(graph).values() for n in f.node_def if n.op == kind
        ]
        for each in found:
            change(each)

    return of_graph(edit)


def text_attribute(key: str, value: bytes) -> Callable[[Any], object]:
    """Change an attribute of a node that is a text."""
    return lambda found: setattr(found.attr[key], "s", value)


def flag(key: str, value: bool) -> Callable[[Any], object]:
    """Change an attribute of a node that is a flag."""
    return lambda found: setattr(found.attr[key], "b", value)


def own_body(change: Change, caller: str) -> Edit:
    """Change what computes the model for one signature only."""

    def edit(graph: Any) -> None:
        library = functions(graph)
        (entry,) = [f for name, f in library.items() if caller in name]
        (call,) = [n for n in entry.node_def if n.op == "StatefulPartitionedCall"]
        copy = graph.graph_def.library.function.add()
        copy.CopyFrom(library[call.attr["f"].func.name])
        copy.signature.name = call.attr["f"].func.name = "__inference_planted_99"
        change(copy)

    return of_graph(edit)


def python_body(change: Change) -> Edit:
    """Change only what `loaded.serve` computes for programs in Python."""
    return of_graph(lambda graph: change(bodies(graph)[0]))


def tensors(change: Callable[[dict[str, Any]], None]) -> Edit:
    """Change the variables by their numbers in the checkpoint, and write it again."""

    def edit(export: Export) -> None:
        import tensorflow as tf

        folder = version(export) / "variables"
        reader = tf.train.load_checkpoint(str(folder / "variables"))
        content = {
            name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()
        }
        del reader
        change(content)
        shutil.rmtree(folder)
        folder.mkdir()
        tf.raw_ops.SaveV2(
            prefix=str(folder / "variables"), tensor_names=list(content),
            shape_and_slices=[""] * len(content),
            tensors=[tf.constant(each) for each in content.values()],
        )  # fmt: skip

    return edit


def key(name: str) -> str:
    """Return a variable's name in the checkpoint."""
    return f"weights/{VARIABLES[name]}/.ATTRIBUTES/VARIABLE_VALUE"


def variable(name: str, change: arrays.Change) -> Edit:
    """Change one variable."""

    def edit(content: dict[str, Any]) -> None:
        content[key(name)] = np.ascontiguousarray(change(content[key(name)].copy()))

    return tensors(edit)


def all_variables(change: arrays.Change) -> Edit:
    """Change every variable."""

    def edit(content: dict[str, Any]) -> None:
        for name, array in content.items():
            if name.startswith("weights/"):
                content[name] = change(array)

    return tensors(edit)


def exchanged(content: dict[str, Any]) -> None:
    """Exchange two kernels of one shape."""
    one, other = key("last"), key("before")
    content[one], content[other] = content[other], content[one]


def lost(content: dict[str, Any]) -> None:
    """Lose a variable."""
    del content[key("last")]


def initial(export: Export) -> None:
    """Put random numbers of the same size into every variable."""

    def drawn(array: Any) -> Any:
        numbers = export.draw.normal(0, array.std() + 1e-3, array.shape)
        return numbers.astype(np.float32)

    all_variables(drawn)(export)


def signature(name: str, change: Callable[[Any], object]) -> Edit:
    """Change a signature as TF Serving reads it."""
    return of_graph(lambda graph: change(graph.signature_def[name]))


def renamed_signature(old: str, new: str) -> Edit:
    """Give a signature another name, for TF Serving and for Python."""

    def edit(graph: Any) -> None:
        graph.signature_def[new].CopyFrom(graph.signature_def[old])
        del graph.signature_def[old]
        for each in graph.object_graph_def.nodes:
            for child in each.children:
                child.local_name = new if child.local_name == old else child.local_name

    return of_graph(edit)


def without_signature(name: str) -> Edit:
    """Remove a signature for TF Serving only."""

    def edit(graph: Any) -> None:
        del graph.signature_def[name]

    return of_graph(edit)


def renamed_tensor(side: str, old: str, new: str) -> Callable[[Any], object]:
    """Rename an input or an output of a signature."""

    def edit(made: Any) -> None:
        held = getattr(made, side)
        held[new].CopyFrom(held[old])
        del held[old]

    return edit


def tensor(
    side: str, name: str, change: Callable[[Any], object]
) -> Callable[[Any], object]:
    """Change what a signature says of an input or output."""
    return lambda made: change(getattr(made, side)[name])


def dimension(axis: int, size: int) -> Callable[[Any], object]:
    """Declare another side."""
    return lambda info: setattr(info.tensor_shape.dim[axis], "size", size)


def extra_output(made: Any) -> None:
    """Declare an output more."""
    made.outputs["features"].CopyFrom(made.outputs["logits"])


def other_wrapper(graph: Any) -> None:
    """Let the signature's wrapper give logits out as probabilities."""
    (entry,) = [f for name, f in functions(graph).items() if name.endswith("wrapper_1")]
    first, second = sorted(entry.ret)
    entry.ret[first], entry.ret[second] = entry.ret[second], entry.ret[first]


def warmup(change: Callable[[bytes], bytes]) -> Edit:
    """Change the warm-up requests for TF Serving."""

    def edit(export: Export) -> None:
        import tensorflow as tf

        path = str(version(export) / EXTRA / "tf_serving_warmup_requests")
        records = [*tf.data.TFRecordDataset(path).as_numpy_iterator()]
        with tf.io.TFRecordWriter(path) as writer:
            for record in records:
                writer.write(change(record))

    return edit


def without_function(graph: Any) -> None:
    """Lose a function that a signature calls."""
    library = graph.graph_def.library.function
    library.remove(bodies(graph)[-1])


def second_graph(saved: Any) -> None:
    """Put a graph with the tag of training in front."""
    copy = saved.meta_graphs.add()
    copy.CopyFrom(saved.meta_graphs[0])
    copy.meta_info_def.tags[:] = ["train"]


def file(name: str, change: Callable[[bytes], bytes | None]) -> Edit:
    """Change a file of the version; None removes it."""

    def edit(export: Export) -> None:
        path = version(export) / name
        made = change(path.read_bytes())
        path.unlink()
        if made is not None:
            path.write_bytes(made)

    return edit


def extra(name: str, change: Callable[[bytes], bytes | None]) -> Edit:
    """Change a file of the assets; None removes it."""
    return file(f"{EXTRA}/{name}", change)


def labels(change: Callable[[list[str]], list[str]]) -> Edit:
    """Change the labels for other programs."""
    return extra("labels.txt", of_labels(change))


def card(change: Callable[[Any], None]) -> Edit:
    """Change the card in the folder."""
    return extra("card.json", of_json(change))


def in_record(**fields: Any) -> Edit:
    """Put other values into the preprocessing of that card."""
    return card(lambda content: content["preprocessing"].update(fields))


def flipped_bit(content: bytes) -> bytes:
    """Flip a bit in the middle."""
    half = len(content) // 2
    return content[:half] + bytes([content[half] ^ 64]) + content[half + 1 :]


def without_folder(name: str) -> Edit:
    """Remove a folder of the version."""
    return lambda export: shutil.rmtree(version(export) / name)


def other_variables(export: Export) -> None:
    """Use the variables of another model."""
    shutil.rmtree(version(export) / "variables")
    shutil.copytree(export.other / "1" / "variables", version(export) / "variables")


def other_version(export: Export) -> None:
    """Number the folder otherwise than the export was asked to."""
    version(export).rename(export.path / "7")


def newer_version(export: Export) -> None:
    """Leave another model behind as a newer version."""
    shutil.copytree(export.other / "1", export.path / "2")
