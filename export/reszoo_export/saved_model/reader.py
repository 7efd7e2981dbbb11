"""Run SavedModels with TensorFlow, describe them, and check their contents."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reszoo.cards import Card
from reszoo.errors import CheckpointError
from reszoo.files import JSON_BYTES, read_regular
from reszoo.preprocessing import Pixels, Preprocessing
from reszoo_export import inspection, runtimes
from reszoo_export.formats import SAVED_MODEL, ExportOptions, Format
from reszoo_export.metadata import CARD_FILE, LABELS_FILE, parse_card, split_labels
from reszoo_export.runtimes import Activations, TensorInfo
from reszoo_export.saved_model import screening
from reszoo_export.saved_model.screening import MODEL_FILE, WARMUP_FILE, node_name
from reszoo_export.sessions import Sessions

EXTRA_FOLDER = "assets.extra"
SIGNATURES = ("serving_default", "serving_bytes")
ENCODED_INPUT, _PREDICT = "image_bytes", "tensorflow/serving/predict"


def check_file(path: Path, *, trusted: bool = False) -> None:
    """See `Reader.check_file`."""
    if not trusted:
        screening.check_folder(newest_version(path))


def open_file(path: Path, threads: int | None) -> runtimes.Runtime:
    """See `Reader.open_file`; of several versions the highest is opened."""
    import tensorflow as tf

    path = newest_version(path)
    runtimes.limit_tensorflow(threads)
    card = read_card(path)
    model = tf.saved_model.load(str(path))
    signature = model.signatures["serving_default"]
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

    # A signature without its model would lose the weights.
    sessions = Sessions(lambda: model, path, forkable=False)
    return runtimes.Runtime(
        path=path, name=f"tensorflow {tf.__version__}", card=card,
        threads=runtimes.tensorflow_threads(),
        inputs=[_tensor_info(spec, spec.name) for spec in specs],
        outputs=[_tensor_info(tensor, name) for name, tensor in outputs],
        sessions=sessions, compute=call, count=operators,
    )  # fmt: skip


def _tensor_info(spec: Any, name: str) -> TensorInfo:
    sides = (side if side is not None else -1 for side in spec.shape)
    shape = list(runtimes.name_open_sides(sides))
    return {"name": name, "dtype": spec.dtype.name, "shape": shape}


def newest_version(path: Path) -> Path:
    """Return the folder with `saved_model.pb`: itself, or the highest version in it."""
    numbered = (folder for folder in path.iterdir() if folder.name.isdecimal())
    versions = [folder for folder in numbered if (folder / MODEL_FILE).is_file()]
    if (path / MODEL_FILE).exists() or not versions:
        return path
    return max(versions, key=lambda folder: int(folder.name))


def read_card(path: Path) -> Card:
    """Read the card of a SavedModel folder (see `parse_card`)."""
    file = path / EXTRA_FOLDER / CARD_FILE
    return parse_card(path, lambda: _read_text(file))


def stored_labels(path: Path) -> Sequence[str] | None:
    """See `Reader.stored_labels`."""
    file = newest_version(path) / EXTRA_FOLDER / LABELS_FILE
    return split_labels(_read_text(file)) if file.exists() else None


def _read_text(file: Path) -> str:
    return read_regular(file, JSON_BYTES).decode("utf-8")


def activation_reader(path: Path) -> Callable[[NDArray[Any]], Activations]:
    """See `Reader.activation_reader`."""
    import tensorflow as tf
    from tensorflow.python.framework import convert_to_constants

    loaded = tf.saved_model.load(str(newest_version(path)))
    # One graph, without functions.
    whole = convert_to_constants.convert_variables_to_constants_v2(
        loaded.signatures["serving_default"]
    )
    operations = whole.graph.get_operations()
    inner = (each for each in operations if each.type not in ("Const", "Placeholder"))
    tensors = [t for each in inner for t in each.outputs if t.dtype == tf.float32]
    pruned = whole.prune(whole.inputs[0], tensors)

    def run(pixels: NDArray[Any]) -> Activations:
        arrays = pruned(tf.constant(pixels))
        return runtimes.float_activations(
            {t.name: a.numpy() for t, a in zip(tensors, arrays, strict=True)}
        )

    return run


# Nodes of the graph or of a function, and how often a call runs them.
_Body = tuple[Sequence[Any], int]


def describe(path: Path) -> inspection.Contents:
    """See `Reader.describe`."""
    folder = newest_version(path)
    if not (folder / MODEL_FILE).is_file():
        raise CheckpointError(f"{path} is not a SavedModel: it has no {MODEL_FILE}.")
    saved = screening.read_model(folder)
    graph = saved.meta_graphs[0]
    card, note = inspection.card_or_note(lambda: read_card(folder))
    signatures = dict(sorted(graph.signature_def.items()))
    signatures.pop("__saved_model_init_op", None)
    default = signatures.pop("serving_default", None)
    problems = [*screening.layout_problems(folder), *screening.find_problems(saved)]
    bodies = _bodies(graph, default) if default else []
    sizes = _sizes(graph, bodies)
    details = {f"signature {name}": _line(each) for name, each in signatures.items()}
    details["tensorflow"] = graph.meta_info_def.tensorflow_version
    if problems:
        details["not allowed"] = "; ".join(problems)
    return inspection.Contents(
        precision=sizes.most_common(1)[0][0] if sizes else "float32",
        inputs=_tensors(default.inputs) if default else (),
        outputs=_tensors(default.outputs) if default else (),
        operators=_operators(bodies), parameters=sizes.total(),
        card=card, note=note, details=details,
    )  # fmt: skip


def _operators(bodies: Sequence[_Body]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for nodes, times in bodies:
        for node in nodes:
            counts[node.op] += times * (node.op not in screening.CALLS)
    return +counts


def _line(signature: Any) -> str:
    ins, outs = (
        ", ".join(f"{each.name} {each.text()}" for each in _tensors(tensors))
        for tensors in (signature.inputs, signature.outputs)
    )
    return f"{ins} -> {outs}"


def _tensors(tensors: Mapping[str, Any]) -> tuple[inspection.TensorDescription, ...]:
    return tuple(
        inspection.TensorDescription(
            name,
            _dtype(info.dtype),
            runtimes.name_open_sides(side.size for side in info.tensor_shape.dim),
        )
        for name, info in sorted(tensors.items())
    )


def _dtype(number: int) -> str:
    import tensorflow as tf

    try:
        return str(tf.dtypes.as_dtype(number).name)
    except TypeError:
        return f"type {number}"


def _sizes(graph: Any, bodies: Sequence[_Body]) -> Counter[str]:
    """Count the numbers in variables, and in constants used as weights, by dtype."""
    sizes: Counter[str] = Counter()
    for node in graph.object_graph_def.nodes:
        if node.WhichOneof("kind") == "variable":
            sizes[_dtype(node.variable.dtype)] += _size(node.variable.shape)
    for constant in chain.from_iterable(_weights(nodes) for nodes, _ in bodies):
        sizes[_dtype(constant.dtype)] += _size(constant.tensor_shape)
    return sizes


def _weights(nodes: Sequence[Any]) -> list[Any]:
    passing = (node for node in nodes if node.op in SAVED_MODEL.passing and node.input)
    passed = {node.name: node_name(node.input[0]) for node in passing}
    users = (node for node in nodes if node.op in SAVED_MODEL.weighted)
    used = (node_name(name) for node in users for name in node.input[1:])
    origins = set(inspection.find_origins(used, passed).values())
    constants = (node for node in nodes if node.op == "Const" and node.name in origins)
    return [node.attr["value"].tensor for node in constants]


def _size(shape: Any) -> int:
    return math.prod(side.size for side in shape.dim)


def _bodies(graph: Any, signature: Any) -> list[_Body]:
    """Return what computes a signature: the graph, and the functions that it calls."""
    library = graph.graph_def.library.function
    functions = {each.signature.name: each.node_def for each in library}
    nodes = {node.name: node for node in graph.graph_def.node}
    wanted = [node_name(info.name) for info in signature.outputs.values()]
    reached: dict[str, Any] = {}
    while wanted:
        name = wanted.pop()
        if name in nodes and name not in reached:
            reached[name] = nodes[name]
            wanted += map(node_name, nodes[name].input)
    body = list(reached.values())
    times = screening.called(body)
    bodies: list[_Body] = [(body, 1)]
    # Functions that call themselves are in no order, and left out.
    for name in screening.call_order(functions)[0]:
        if times[name]:
            bodies.append((functions[name], times[name]))
            for callee, count in screening.called(functions[name]).items():
                times[callee] += count * times[name]
    return bodies


# TensorFlow and Pillow round resized pixels differently, by one grey level at most.
_LEVELS = 1
# How far that changes the outputs is estimated several times, and doubled.
_DRAWS, _MARGIN = 4, 2.0
_ROUNDING = 1e-4


def find_problems(
    path: Path, row: Format, card: Card, images: Pixels, options: ExportOptions
) -> list[str]:
    """Compare the signature for encoded images with the one for pixels.

    Both get the same images; for the second Pillow resizes and crops them. And compare
    both with what TF Serving computes, which reads other parts of the file than Python.
    """
    import tensorflow as tf

    folder = newest_version(path)
    loaded = tf.saved_model.load(str(folder))
    missing = [name for name in SIGNATURES if name not in loaded.signatures]
    if missing:
        return [f"it has no signature {' and '.join(missing)}"]
    of_pixels, of_bytes = (loaded.signatures[name] for name in SIGNATURES)
    specs = of_bytes.structured_input_signature[1]
    if list(specs) != [ENCODED_INPUT]:
        return [f"serving_bytes must take {ENCODED_INPUT}, not {', '.join(specs)}"]
    count = specs[ENCODED_INPUT].shape[0] or 2
    originals = _large_images(card.preprocessing, count)
    files = tf.stack([tf.io.encode_png(image) for image in originals])
    prepared = np.stack([card.preprocessing.prepare(each) for each in originals])
    answers = [of_pixels(image=tf.constant(prepared)), of_bytes(image_bytes=files)]
    expected, encoded = map(_most_exact, answers)
    difference = np.abs(encoded - expected).max()
    draw, by_rounding = np.random.default_rng(1), []
    for _ in range(_DRAWS):
        change = draw.integers(-_LEVELS, _LEVELS, prepared.shape, endpoint=True)
        near = np.clip(prepared + change, 0, 255).astype(np.uint8)
        outputs = _most_exact(of_pixels(image=tf.constant(near)))
        by_rounding.append(np.abs(outputs - expected).max())
    allowed = _MARGIN * max(by_rounding) + _ROUNDING
    problem = (
        "serving_bytes and serving_default differ on the same images by "
        f"{difference:.2g}; rounding by one grey level explains {allowed:.2g}"
    )
    problems = [] if difference <= allowed else [problem]
    if [each.name for each in path.iterdir()] != [str(options.version)]:
        problems.append(f"its only version must be {options.version}")
    if not np.allclose(_most_exact(loaded.serve(prepared)), expected, 1e-3, 1e-4):
        problems.append("its function `serve` differs from serving_default")
    v1, warmup = tf.compat.v1, str(folder / EXTRA_FOLDER / WARMUP_FILE)
    requests = b"".join(v1.io.tf_record_iterator(warmup))
    inputs = {"image": prepared}, {ENCODED_INPUT: files.numpy()}
    with tf.Graph().as_default(), v1.Session() as session:
        graph = v1.saved_model.load(session, ["serve"], str(folder))
        for name, given, answer in zip(SIGNATURES, inputs, answers, strict=True):
            made = graph.signature_def[name]
            feed = {made.inputs[key].name: value for key, value in given.items()}
            found = session.run({k: x.name for k, x in made.outputs.items()}, feed)
            alike = [np.allclose(found[x], answer[x], 1e-3, 1e-4) for x in answer]
            known = made.method_name == _PREDICT and name.encode() in requests
            if not known or not all(alike):
                problems.append(f"TF Serving has another {name}, or no warm-up for it")
    return problems


def _large_images(preprocessing: Preprocessing, count: int) -> list[Pixels]:
    """Make noise, wide and high, which every method of resizing changes."""
    draw = np.random.default_rng(0)
    high, wide = preprocessing.resize_sides
    sizes = [(high * 3 // 2 + 1, wide * 2 + 3), (high * 2 + 5, wide * 5 // 4 + 1)]
    shapes = [(*sizes[number % 2], 3) for number in range(count)]
    return [draw.integers(0, 256, shape, np.uint8) for shape in shapes]


def _most_exact(outputs: Mapping[str, Any]) -> NDArray[np.float32]:
    """Return the logits if there are any: probabilities may hide a difference."""
    name = "logits" if "logits" in outputs else next(iter(outputs))
    return np.asarray(outputs[name], np.float32)
