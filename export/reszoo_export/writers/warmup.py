"""Requests that TF Serving runs when it loads a SavedModel, so that users don't wait.

They lie in `assets.extra/tf_serving_warmup_requests`: a TFRecord of `PredictionLog`
messages. TF Serving asks each of them and does not load a model that refuses one.
Source: https://www.tensorflow.org/tfx/serving/saved_model_warmup and, for the numbers
of the fields, `tensorflow_serving/apis/{prediction_log,predict,model}.proto`.
"""

import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from reszoo_export.serving import INPUT, Serving

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
