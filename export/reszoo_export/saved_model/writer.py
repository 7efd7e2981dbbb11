"""Write SavedModels for TensorFlow and TF Serving."""

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import tensorflow as tf
from PIL import Image
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from reszoo.console import quiet
from reszoo.data.decoding import decode_bounded, upright
from reszoo.preprocessing import Preprocessing
from reszoo_export.formats import SAVED_MODEL
from reszoo_export.metadata import card_files
from reszoo_export.saved_model.reader import ENCODED_INPUT, EXTRA_FOLDER, SIGNATURES
from reszoo_export.saved_model.screening import MODEL_FILE, WARMUP_FILE, functions_in
from reszoo_export.serving import INPUT, Serving


def write(serving: Serving, path: Path) -> None:
    """Write a SavedModel folder as TF Serving reads it, `<path>/<version>`.

    It has two signatures with the same outputs: `serving_default` takes `image`, uint8
    `(batch, height, width, 3)`, and `serving_bytes` takes `image_bytes`, a string
    `(batch,)` of JPEG or PNG files, which it decodes, resizes and crops. One that is
    unreadable fails the request: an operation of TensorFlow cannot fail for a row only.
    """
    folder = path / str(serving.options.version)
    save(serving, _endpoints(serving), folder)
    make_repeatable(folder)
    extra = folder / EXTRA_FOLDER
    extra.mkdir()
    for name, text in card_files(serving.card).items():
        (extra / name).write_text(text, encoding="utf-8")
    write_warmup(serving, extra / WARMUP_FILE)


def save(serving: Serving, functions: Mapping[str, Any], path: Path) -> None:
    """Save serving functions as signatures, with the weights as variables.

    As constants of the graph they would take three times the memory and nearly twice
    the time to load for answers that are a few per cent faster.
    """
    module = tf.Module()
    module.weights = [variable.value for variable in serving.model.variables]
    # Named as in Keras' `Model.export`: by it TFLiteConverter.from_saved_model knows
    # that it should convert `serving_default` only (tensorflow 2.21, lite.py).
    module.serve = functions["serving_default"]
    signatures = {
        name: function.get_concrete_function() for name, function in functions.items()
    }
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    with quiet(show=False):
        tf.saved_model.save(module, str(path), signatures, options)


def _endpoints(serving: Serving) -> dict[str, Any]:
    """Return the `tf.function` of each signature."""
    batch = serving.batch(SAVED_MODEL.batch)
    outputs = serving.options.names(SAVED_MODEL)
    serve = serving.function(*outputs, batch=batch)

    def serve_bytes(image_bytes: tf.Tensor) -> Any:
        return serve(prepare_encoded(image_bytes, serving.card.preprocessing))

    encoded = tf.function(
        serve_bytes,
        input_signature=[tf.TensorSpec((batch,), tf.string, ENCODED_INPUT)],
        autograph=False,
    )
    return {"serving_default": serve, "serving_bytes": encoded}


# JEITA CP-3451 (EXIF 2.3): the mark of its segment in a JPEG (4.7.2), and the most
# bytes of the TIFF structure behind it, as a segment's length has 16 bits.
_MARK = b"Exif\x00\x00"
_SEGMENT = 65536
# PNG (third edition): its signature (5.2), and its chunk for EXIF (11.3.4.5), which may
# also come after the pixels; that four bytes of these are the same is unlikely, and
# that they are followed by an orientation, too.
_PNG, _CHUNK = b"\x89PNG\r\n\x1a\n", b"eXIf"
# TIFF 6.0, section 2: an entry's length and the tag of the orientation (section 8).
_ENTRY = 12
_ORIENTATION = 0x0112


def prepare_encoded(files: tf.Tensor, preprocessing: Preprocessing) -> tf.Tensor:
    """Decode, rotate, resize and crop images as `Predictor` does.

    From a string `(batch,)` of whole JPEG or PNG files to uint8 `(batch, height, width,
    channels)`.
    """

    def prepare(content: tf.Tensor) -> tf.Tensor:
        # Rotated after decoding: a smaller graph than a rotation for each kind of file.
        held = orientation(content)
        return preprocessing.prepare_tensor(upright(decode_bounded(content), held))

    spec = tf.TensorSpec(preprocessing.input_shape, tf.uint8)
    # Each image may take half a gigabyte, so they are not prepared ten at a time.
    return tf.map_fn(prepare, files, fn_output_signature=spec, parallel_iterations=1)


def orientation(content: tf.Tensor) -> tf.Tensor:
    """Read the EXIF orientation of a JPEG or PNG, a string `()`; 1 for other files.

    Returns int64 `()`, 1 (upright) to 8; EXIF 2.3, section 4.6.4 A.
    """
    is_png = tf.strings.substr(content, 0, len(_PNG)) == _PNG
    searched = tf.where(is_png, content, tf.strings.substr(content, 0, 2 * _SEGMENT))
    parts = tf.strings.split(searched, tf.where(is_png, _CHUNK, _MARK), 1)
    found = (tf.io.is_jpeg(content) | is_png) & (tf.size(parts) == 2)
    return tf.cond(found, lambda: _of_tiff(parts[1]), lambda: tf.constant(1, tf.int64))


def _of_tiff(structure: tf.Tensor) -> tf.Tensor:
    octets = tf.cast(tf.io.decode_raw(structure, tf.uint8), tf.int64)[:_SEGMENT]
    # A truncated structure is read as one without orientation.
    octets = tf.pad(octets, [(0, 16)])
    little = octets[0] == ord("I")

    def number(at: tf.Tensor, weights: tuple[int, ...]) -> tf.Tensor:
        places = at[..., None] + tf.range(len(weights), dtype=tf.int64)
        places = tf.minimum(places, tf.size(octets, tf.int64) - 1)
        order = tf.where(little, weights, weights[::-1])
        return tf.reduce_sum(tf.gather(octets, places) * tf.cast(order, tf.int64), -1)

    short, long = (1, 1 << 8), (1, 1 << 8, 1 << 16, 1 << 24)
    directory = number(tf.constant(4, tf.int64), long)
    entries = directory + 2 + _ENTRY * tf.range(number(directory, short))
    held = number(entries + 8, short)
    fits = (number(entries, short) == _ORIENTATION) & (held >= 1) & (held <= 8)
    return tf.concat([tf.boolean_mask(held, fits), [1]], 0)[0]


# Used in log messages only: tensorflow 2.21, `saved_model/load.py`.
_FINGERPRINT = "fingerprint.pb"
# In arguments that a loop's condition does not use: tensorflow 2.21,
# `ops/while_v2.py`. The number is a counter of the process.
_COUNTED = re.compile(r"_\d+(?=___redundant_placeholder)")
# Of an argument; captured variables have an identifier of the process as their name.
_NAME = "_user_specified_name"
# Of what has a gradient of its own, such as SiLU.
_GRADIENT = "_gradient_op_type"


def make_repeatable(folder: Path) -> None:
    """Rewrite a SavedModel so that the same model always has the same bytes.

    Functions are numbered in the order in which the signatures reach them.
    """
    file = folder / MODEL_FILE
    model = SavedModel.FromString(file.read_bytes())
    for graph in model.meta_graphs:
        _renumber(graph)
    file.write_bytes(model.SerializeToString(deterministic=True))
    (folder / _FINGERPRINT).unlink(missing_ok=True)


def _renumber(graph: Any) -> None:
    library = graph.graph_def.library
    functions = {each.signature.name: each for each in library.function}
    # Attributes in Python, such as `serve`.
    held = (node.function.concrete_functions for node in graph.object_graph_def.nodes)
    names = _numbered([*_called(graph.graph_def.node), *chain(*held)], functions)
    for function in library.function:
        function.signature.name = names.get(function.signature.name, "")
        for argument in function.signature.input_arg:
            argument.name = _COUNTED.sub("", argument.name)
        for argument in function.arg_attr.values():
            if argument.attr[_NAME].s.isdigit():
                del argument.attr[_NAME]
        _rename([function, *function.node_def], names)
    _rename(graph.graph_def.node, names)
    # Unreachable functions have no name now, and come first.
    order = ["", *names.values()]
    library.function.sort(key=lambda each: order.index(each.signature.name))
    del library.function[: len(library.function) - len(names)], library.gradient[:]
    _rename_objects(graph.object_graph_def, names)


def _numbered(waiting: list[str], functions: dict[str, Any]) -> dict[str, str]:
    """Return new names by old ones, in the order in which functions are reached."""
    names: dict[str, str] = {}
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
            yield from (each.name for each in functions_in(node.attr[key]))


def _rename(owners: Iterable[Any], names: dict[str, str]) -> None:
    """Rename the functions in the attributes of nodes, or of functions."""
    for owner in owners:
        # Counted in the process, and of no use without the function that it names.
        owner.attr.pop(_GRADIENT, None)
        for value in owner.attr.values():
            for function in functions_in(value):
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
    # Taken out first, because a new name can be another's old one.
    kept = {
        new: objects.concrete_functions[old].SerializeToString()
        for old, new in names.items()
        if old in objects.concrete_functions
    }
    objects.ClearField("concrete_functions")
    for name, content in kept.items():
        objects.concrete_functions[name].ParseFromString(content)


# Sizes of a batch that is not fixed: TensorFlow initialises each size separately.
_BATCHES = (1, 8)
_GREY = 128
_LENGTH_DELIMITED = 2
# Field numbers in tensorflow_serving.apis.
_PREDICT_LOG, _REQUEST = 6, 1
_MODEL_SPEC, _INPUTS = 1, 2
_SIGNATURE_NAME = 3
_KEY, _VALUE = 1, 2


def write_warmup(serving: Serving, path: Path) -> None:
    """Write the file of warm-up requests, for each signature and size of a batch."""
    fixed = serving.options.batch
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature in SIGNATURES:
            for batch in (fixed,) if isinstance(fixed, int) else _BATCHES:
                name, tensor = _example(signature, serving, batch)
                entry = _field(_KEY, name.encode()) + _field(_VALUE, tensor)
                spec = _field(_SIGNATURE_NAME, signature.encode())
                # A PredictionLog, to which the server adds the model's name.
                request = _field(_MODEL_SPEC, spec) + _field(_INPUTS, entry)
                writer.write(_field(_PREDICT_LOG, _field(_REQUEST, request)))


def _example(signature: str, serving: Serving, batch: int) -> tuple[str, bytes]:
    """Return the name of a signature's input and a tensor for it."""
    if signature == "serving_bytes":
        # A grey JPEG that is larger than the model's input and not square.
        height, width = serving.card.preprocessing.resize_sides
        image = Image.new("RGB", (3 * width, 2 * height), (_GREY,) * 3)
        image.save(file := io.BytesIO(), "JPEG")
        images = [file.getvalue()] * batch
        return ENCODED_INPUT, tf.make_tensor_proto(images).SerializeToString()
    shape = serving.spec(batch, tf.uint8).shape.as_list()
    # A constant tensor is stored as one number.
    tensor = tf.make_tensor_proto(_GREY, dtype=tf.uint8, shape=shape)
    return INPUT, tensor.SerializeToString()


def _field(number: int, content: bytes) -> bytes:
    """Encode a message's field: https://protobuf.dev/programming-guides/encoding."""
    head, length = [number << 3 | _LENGTH_DELIMITED], len(content)
    while length > 127:
        head.append(length & 127 | 128)
        length >>= 7
    return bytes([*head, length]) + content
