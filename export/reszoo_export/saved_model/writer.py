"""Write SavedModels for TensorFlow and TF Serving."""

import io
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from PIL import Image
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from reszoo.console import quiet
from reszoo_export.metadata import EXTRA_FOLDER, card_files
from reszoo_export.quantization.ranges import Calibration
from reszoo_export.saved_model.encoded import prepare_encoded
from reszoo_export.serving import INPUT, Serving

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


WARMUP_FILE = "tf_serving_warmup_requests"
SIGNATURES = ("serving_default", "serving_bytes")
BYTES_INPUT = "image_bytes"
# Batches that are asked where the size is open: TensorFlow plans each size anew.
_BATCHES = (1, 8)
_GREY = 128
_LENGTH_DELIMITED = 2
# Numbers of fields.
_PREDICT_LOG, _REQUEST = 6, 1
_MODEL_SPEC, _INPUTS = 1, 2
_SIGNATURE_NAME = 3
_KEY, _VALUE = 1, 2


def warmup_requests(serving: Serving, signatures: Sequence[str] = SIGNATURES) -> bytes:
    """Return the content of the file of warm-up requests.

    Args:
        serving: What the SavedModel holds.
        signatures: Those that it has, of `SIGNATURES`.
    """
    fixed = serving.options.batch
    batches = (fixed,) if isinstance(fixed, int) else _BATCHES
    return _records(
        [
            _request(signature, *_example(signature, serving, batch))
            for signature in signatures
            for batch in batches
        ]
    )


def _example(signature: str, serving: Serving, batch: int) -> tuple[str, bytes]:
    """Return the name of a signature's input and a tensor for it."""
    if signature == "serving_bytes":
        images = [_jpeg(serving)] * batch
        return BYTES_INPUT, tf.make_tensor_proto(images).SerializeToString()
    shape = serving.spec(batch, tf.uint8).shape.as_list()
    # A tensor of one number only keeps it once, and no megabytes of grey.
    tensor = tf.make_tensor_proto(_GREY, dtype=tf.uint8, shape=shape)
    return INPUT, tensor.SerializeToString()


def _jpeg(serving: Serving) -> bytes:
    """Make a grey JPEG that is larger than the net's input and not square."""
    side = serving.card.preprocessing.resize_size
    pixels = np.full((2 * side, 3 * side, 3), _GREY, np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def _request(signature: str, name: str, tensor: bytes) -> bytes:
    """Return a PredictionLog; the name of the model is the server's own affair."""
    entry = _field(_KEY, name.encode()) + _field(_VALUE, tensor)
    spec = _field(_SIGNATURE_NAME, signature.encode())
    request = _field(_MODEL_SPEC, spec) + _field(_INPUTS, entry)
    return _field(_PREDICT_LOG, _field(_REQUEST, request))


def _field(number: int, content: bytes) -> bytes:
    """Encode a message's field: https://protobuf.dev/programming-guides/encoding."""
    tag = number << 3 | _LENGTH_DELIMITED
    return bytes([tag]) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    low = bytearray()
    while value > 127:
        low.append(value & 127 | 128)
        value >>= 7
    return bytes([*low, value])


def _records(messages: Sequence[bytes]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / WARMUP_FILE
        with tf.io.TFRecordWriter(str(file)) as writer:
            for message in messages:
                writer.write(message)
        return file.read_bytes()


OUTPUTS = ("logits", "probabilities")


def write(serving: Serving, path: Path, calibration: Calibration | None) -> None:
    """Write a SavedModel folder as TF Serving reads it, `<path>/<version>`.

    It has two signatures with the same outputs: `serving_default` takes `image`, uint8
    `(batch, height, width, 3)`, and `serving_bytes` takes `image_bytes`, a string
    `(batch,)` of JPEG or PNG files, which it decodes, resizes and crops.

    Args:
        serving: What to write.
        path: The folder to make.
        calibration: Not used; floating point needs none.
    """
    folder = path / str(serving.options.version)
    _save(tf.Module(), _signatures(serving), folder)
    make_repeatable(folder)
    extra = folder / EXTRA_FOLDER
    extra.mkdir()
    for name, text in card_files(serving.card).items():
        (extra / name).write_text(text, encoding="utf-8")
    (extra / WARMUP_FILE).write_bytes(warmup_requests(serving))


def save(
    serving: Serving, function: tf.types.experimental.PolymorphicFunction, path: Path
) -> None:
    """Save one serving function as `serving_default`, its weights as variables.

    This is what converters want; `write` makes what is served.
    """
    module = tf.Module()
    module.weights = [variable.value for variable in serving.net.variables]
    _save(module, {"serving_default": function.get_concrete_function()}, path)


def _save(module: tf.Module, signatures: Mapping[str, Any], path: Path) -> None:
    with quiet():
        tf.saved_model.save(module, str(path), signatures)


def _signatures(serving: Serving) -> dict[str, Any]:
    batch = serving.batch(None)
    answer = _with_constants(serving, batch)

    def serve_bytes(image_bytes: tf.Tensor) -> Any:
        return answer(prepare_encoded(image_bytes, serving.card.preprocessing))

    encoded = tf.function(
        serve_bytes,
        input_signature=[tf.TensorSpec((batch,), tf.string, BYTES_INPUT)],
        autograph=False,
    )
    return {
        "serving_default": answer.get_concrete_function(),
        "serving_bytes": encoded.get_concrete_function(),
    }


def _with_constants(serving: Serving, batch: int | None) -> Any:
    """Return the serving function with its weights as constants of the graph.

    Of constants oneDNN keeps the layout that its convolutions want; variables it lays
    out again in every call.
    """
    outputs = serving.outputs(OUTPUTS)
    answer = serving.function(*outputs).python_function
    weights = [(variable, variable.numpy()) for variable in serving.net.variables]

    def serve(image: tf.Tensor) -> Any:
        constants = [(variable, tf.constant(value)) for variable, value in weights]
        with keras.StatelessScope(constants):
            return answer(image)

    return tf.function(
        serve, input_signature=[serving.spec(batch, tf.uint8)], autograph=False
    )
