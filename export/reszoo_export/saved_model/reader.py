"""Run SavedModels with TensorFlow, describe them, and check their contents."""

import io
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from PIL import Image

from reszoo.cards import Card
from reszoo.errors import CheckpointError
from reszoo.preprocessing import Pixels, Preprocessing
from reszoo_export.formats import ExportOptions, Format
from reszoo_export.inspection import Contents, TensorDescription, card_or_note
from reszoo_export.metadata import CARD_FILE, LABELS_FILE, parse_card, split_labels
from reszoo_export.runtimes import (
    Activations,
    Runtime,
    TensorInfo,
    float_activations,
    limit_tensorflow,
    name_open_sides,
    tensorflow_threads,
)
from reszoo_export.sessions import Sessions

MODEL_FILE = "saved_model.pb"
EXTRA_FOLDER = "assets.extra"
SIGNATURES = ("serving_default", "serving_bytes")
ENCODED_INPUT = "image_bytes"


def open_file(path: Path, threads: int | None) -> Runtime:
    """See `Reader.open_file`; of several versions the highest is opened."""
    import tensorflow as tf

    path = newest_version(path)
    limit_tensorflow(threads)
    card = read_card(path)
    try:
        model = tf.saved_model.load(str(path))
        signature = model.signatures["serving_default"]
    except Exception as error:
        raise CheckpointError(
            f"{path} is not a whole SavedModel ({type(error).__name__}: {error})."
        ) from error
    specs = signature.structured_input_signature[1].values()
    outputs = sorted(signature.structured_outputs.items())

    def call(model: Any, pixels: NDArray[Any], output: str) -> Any:
        run = model.signatures["serving_default"]
        return run(image=tf.constant(pixels))[output].numpy()

    def operators() -> Counter[str]:
        """Count those of the signature, and of all functions that it may call."""
        graph = signature.graph.as_graph_def()
        inside = [node for each in graph.library.function for node in each.node_def]
        return Counter(node.op for node in (*graph.node, *inside))

    return Runtime(
        path,
        name=f"tensorflow {tf.__version__}",
        card=card,
        threads=tensorflow_threads(),
        inputs=[_tensor_info(spec, spec.name) for spec in specs],
        outputs=[_tensor_info(tensor, name) for name, tensor in outputs],
        # A signature without its model would lose the weights.
        sessions=Sessions(lambda: model, path, forkable=False),
        call=call,
        operators=operators,
    )


def _tensor_info(spec: Any, name: str) -> TensorInfo:
    shape = [*name_open_sides(side if side is not None else -1 for side in spec.shape)]
    return {"name": name, "dtype": spec.dtype.name, "shape": shape}


def newest_version(path: Path) -> Path:
    """Return the folder with `saved_model.pb`: itself, or the highest version in it."""
    versions = [
        folder
        for folder in path.iterdir()
        if folder.name.isdecimal() and (folder / MODEL_FILE).is_file()
    ]
    if (path / MODEL_FILE).exists() or not versions:
        return path
    return max(versions, key=lambda folder: int(folder.name))


def read_card(path: Path) -> Card:
    """Read the card of a SavedModel folder.

    Raises:
        CheckpointError: It has no card, or is damaged.
    """
    file = path / EXTRA_FOLDER / CARD_FILE
    return parse_card(path, lambda: file.read_text(encoding="utf-8"))


def stored_labels(path: Path) -> Sequence[str] | None:
    """See `Reader.stored_labels`."""
    file = newest_version(path) / EXTRA_FOLDER / LABELS_FILE
    return split_labels(file.read_text(encoding="utf-8")) if file.exists() else None


def activation_reader(path: Path) -> Callable[[NDArray[Any]], Activations]:
    """See `Reader.activation_reader`."""
    import tensorflow as tf
    from tensorflow.python.framework import convert_to_constants

    loaded = tf.saved_model.load(str(newest_version(path)))
    # One graph, without functions.
    whole = convert_to_constants.convert_variables_to_constants_v2(
        loaded.signatures["serving_default"]
    )
    tensors = [
        tensor
        for operation in whole.graph.get_operations()
        if operation.type not in ("Const", "Placeholder")
        for tensor in operation.outputs
        if tensor.dtype == tf.float32
    ]
    pruned = whole.prune(whole.inputs[0], tensors)

    def run(pixels: NDArray[Any]) -> Activations:
        arrays = pruned(tf.constant(pixels))
        return float_activations(
            {t.name: a.numpy() for t, a in zip(tensors, arrays, strict=True)}
        )

    return run


# Operators that only call functions, that have weights, and that only pass weights on.
_CALLS = {"PartitionedCall", "StatefulPartitionedCall"}
_WEIGHTED = {"BiasAdd", "Conv2D", "DepthwiseConv2dNative", "MatMul"}
_PASSING = {"Cast", "Identity", "Reshape", "Squeeze"}
# Name of a function, "" for the graph itself, and its nodes.
_Body = tuple[str, list[Any]]


def describe(path: Path) -> Contents:
    """See `Reader.describe`."""
    from tensorflow.core.protobuf import saved_model_pb2

    folder = newest_version(path)
    if not (folder / MODEL_FILE).is_file():
        raise CheckpointError(f"{path} is not a SavedModel: it has no {MODEL_FILE}.")
    saved = saved_model_pb2.SavedModel()
    try:
        saved.ParseFromString((folder / MODEL_FILE).read_bytes())
        graph = saved.meta_graphs[0]
    except (DecodeError, IndexError) as error:
        raise CheckpointError(f"{path} is not a whole SavedModel ({error}).") from error
    card, note = card_or_note(lambda: read_card(folder))
    signatures = dict(sorted(graph.signature_def.items()))
    signatures.pop("__saved_model_init_op", None)
    default = signatures.pop("serving_default", None)
    bodies = _bodies(graph, default) if default else []
    sizes = _sizes(graph, bodies)
    return Contents(
        precision=sizes.most_common(1)[0][0] if sizes else "float32",
        inputs=_tensors(default.inputs) if default else (),
        outputs=_tensors(default.outputs) if default else (),
        operators=Counter(
            node.op for _, nodes in bodies for node in nodes if node.op not in _CALLS
        ),
        parameters=sizes.total(),
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
            name,
            _dtype(info.dtype),
            name_open_sides(side.size for side in info.tensor_shape.dim),
        )
        for name, info in sorted(tensors.items())
    )


def _dtype(number: int) -> str:
    import tensorflow as tf

    return str(tf.dtypes.as_dtype(number).name)


def _sizes(graph: Any, bodies: Sequence[_Body]) -> Counter[str]:
    """Count the numbers in variables, and in constants used as weights, by dtype."""
    sizes: Counter[str] = Counter()
    for node in graph.object_graph_def.nodes:
        if node.WhichOneof("kind") == "variable":
            sizes[_dtype(node.variable.dtype)] += _size(node.variable.shape)
    for nodes in dict(bodies).values():
        for constant in _weights(nodes):
            sizes[_dtype(constant.dtype)] += _size(constant.tensor_shape)
    return sizes


def _weights(nodes: Sequence[Any]) -> list[Any]:
    named = {node.name: node for node in nodes}

    def origin(name: str) -> Any:
        node = named.get(_node_name(name))
        while node is not None and node.op in _PASSING:
            node = named.get(_node_name(node.input[0]))
        return node

    users = [node for node in nodes if node.op in _WEIGHTED]
    origins = [origin(name) for node in users for name in node.input[1:]]
    constants = {node.name: node for node in origins if node and node.op == "Const"}
    return [node.attr["value"].tensor for node in constants.values()]


def _size(shape: Any) -> int:
    return math.prod(side.size for side in shape.dim)


def _bodies(graph: Any, signature: Any) -> list[_Body]:
    """Return what computes a signature: the graph, and the functions that it calls.

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
            called = [value.func.name for value in node.attr.values()]
            bodies += [
                (name, list(functions[name].node_def))
                for name in called
                if name in functions
            ]
    return bodies


def _node_name(name: str) -> str:
    return name.removeprefix("^").partition(":")[0]


# TensorFlow and Pillow round resized pixels differently, by one grey level at most.
_LEVELS = 1
# How far that changes the outputs is estimated several times, and doubled.
_DRAWS, _MARGIN = 4, 2.0
_ROUNDING = 1e-4


def find_problems(
    path: Path, row: Format, card: Card, images: Pixels, options: ExportOptions
) -> list[str]:
    """Compare the signature for encoded images with the one for pixels.

    Both get the same images; for the second Pillow resizes and crops them.
    """
    import tensorflow as tf

    loaded = tf.saved_model.load(str(newest_version(path)))
    missing = [name for name in SIGNATURES if name not in loaded.signatures]
    if missing:
        return [f"it has no signature {' and '.join(missing)}"]
    of_pixels, of_bytes = (loaded.signatures[name] for name in SIGNATURES)
    specs = of_bytes.structured_input_signature[1]
    if list(specs) != [ENCODED_INPUT]:
        return [f"serving_bytes must take {ENCODED_INPUT}, not {', '.join(specs)}"]
    count = specs[ENCODED_INPUT].shape[0] or 2
    originals = _large_images(card.preprocessing, count)
    files = tf.constant([_png(image) for image in originals])
    prepared = np.stack([card.preprocessing.prepare(each) for each in originals])
    expected = _most_exact(of_pixels(image=tf.constant(prepared)))
    difference = np.abs(_most_exact(of_bytes(image_bytes=files)) - expected).max()
    by_rounding = [
        np.abs(_most_exact(of_pixels(image=tf.constant(near))) - expected).max()
        for near in _nearly(prepared)
    ]
    allowed = _MARGIN * max(by_rounding) + _ROUNDING
    if difference <= allowed:
        return []
    problem = (
        "serving_bytes and serving_default differ on the same images by "
        f"{difference:.2g}; rounding by one grey level explains {allowed:.2g}"
    )
    return [problem]


def _large_images(preprocessing: Preprocessing, count: int) -> list[Pixels]:
    """Make noise, wide and high, which every method of resizing changes."""
    draw = np.random.default_rng(0)
    side = preprocessing.resize_size
    sizes = [(side * 3 // 2 + 1, side * 2 + 3), (side * 2 + 5, side * 5 // 4 + 1)]
    return [
        draw.integers(0, 256, (*sizes[number % 2], 3), np.uint8)
        for number in range(count)
    ]


def _png(image: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def _nearly(images: Pixels) -> list[Pixels]:
    draw = np.random.default_rng(1)
    changes = [
        draw.integers(-_LEVELS, _LEVELS, images.shape, endpoint=True)
        for _ in range(_DRAWS)
    ]
    return [np.clip(images + each, 0, 255).astype(np.uint8) for each in changes]


def _most_exact(outputs: Mapping[str, Any]) -> NDArray[np.float32]:
    """Return the logits if there are any: probabilities may hide a difference."""
    name = "logits" if "logits" in outputs else next(iter(outputs))
    return np.asarray(outputs[name], np.float32)
