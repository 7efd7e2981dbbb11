from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from conftest import randomise
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

import reszoo
from reszoo_export.formats import FORMATS, ExportOptions
from reszoo_export.saved_model.screening import WARMUP_FILE
from reszoo_export.saved_model.writer import write_warmup
from reszoo_export.serving import Serving, make_serving

_STRING, _MESSAGE = 9, 11
# The messages of tensorflow_serving.apis, as far as they matter here.
_MESSAGES: dict[str, dict[str, tuple[int, int, str]]] = {
    "ModelSpec": {"name": (1, _STRING, ""), "signature_name": (3, _STRING, "")},
    "Entry": {
        "key": (1, _STRING, ""),
        "value": (2, _MESSAGE, "tensorflow.TensorProto"),
    },
    "PredictRequest": {
        "model_spec": (1, _MESSAGE, "w.ModelSpec"),
        "inputs": (2, _MESSAGE, "w.Entry"),
    },
    "PredictLog": {"request": (1, _MESSAGE, "w.PredictRequest")},
    "PredictionLog": {"predict_log": (6, _MESSAGE, "w.PredictLog")},
}


@pytest.fixture(scope="module")
def serving() -> Serving:
    return make_serving(randomise(reszoo.build("resnet20", classes=3)))


def _prediction_log() -> Any:
    """Return a class that reads PredictionLog messages with Google's own library."""
    file = descriptor_pb2.FileDescriptorProto(name="w.proto", package="w")
    file.dependency.append("tensorflow/core/framework/tensor.proto")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind, type_name) in fields.items():
            message.field.add(
                name=field,
                number=number,
                type=kind,
                type_name=f".{type_name}" if type_name else None,
                label=3 if field == "inputs" else 1,
            )
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(
        pool.FindMessageTypeByName("w.PredictionLog")
    )


def _records(serving: Serving, path: Path) -> list[bytes]:
    write_warmup(serving, path)
    return list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())


def test_the_requests_fit_both_signatures(serving: Serving, tmp_path: Path) -> None:
    found, message = [], _prediction_log()
    for record in _records(serving, tmp_path / "requests"):
        request = message.FromString(record).predict_log.request
        (entry,) = request.inputs
        value = tf.make_ndarray(entry.value)
        assert not request.model_spec.name
        found.append((request.model_spec.signature_name, entry.key, value))
    assert [(name, key, value.shape) for name, key, value in found] == [
        ("serving_default", "image", (1, 32, 32, 3)),
        ("serving_default", "image", (8, 32, 32, 3)),
        ("serving_bytes", "image_bytes", (1,)),
        ("serving_bytes", "image_bytes", (8,)),
    ]
    pixels, encoded = found[1][2], found[3][2]
    assert pixels.dtype == np.uint8
    assert (pixels == 128).all()
    assert tf.io.decode_jpeg(encoded[7]).shape == (64, 96, 3)
    answers = serving.function("probabilities")(tf.constant(pixels))
    assert answers["probabilities"].shape == (8, 3)


def test_a_fixed_batch_is_the_only_one_that_is_asked(tmp_path: Path) -> None:
    net = reszoo.build("resnet20", classes=3)
    serving = make_serving(net, ExportOptions(batch=3))
    of_pixels, of_bytes = _records(serving, tmp_path / "requests")
    assert b"serving_default" in of_pixels
    assert b"image" in of_pixels
    assert b"serving_bytes" in of_bytes
    assert _records(serving, tmp_path / "again") == [of_pixels, of_bytes]


def test_the_saved_model_answers_each_of_them(serving: Serving, tmp_path: Path) -> None:
    FORMATS["saved_model"].write(serving, tmp_path / "saved_model", None)
    (path,) = (tmp_path / "saved_model").glob(f"*/assets.extra/{WARMUP_FILE}")
    signatures = tf.saved_model.load(str(path.parents[1])).signatures
    message = _prediction_log()
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        request = message.FromString(record).predict_log.request
        (entry,) = request.inputs
        value = tf.constant(tf.make_ndarray(entry.value))
        answers = signatures[request.model_spec.signature_name](**{entry.key: value})
        assert answers["probabilities"].shape == (len(value), 3)


def test_tf_serving_reads_them_as_we_wrote_them(
    serving: Serving, tmp_path: Path
) -> None:
    logs = pytest.importorskip(
        "tensorflow_serving.apis.prediction_log_pb2",
        reason="reads with TF Serving's messages; pip install tensorflow-serving-api",
    )
    for record in _records(serving, tmp_path / "requests"):
        log = logs.PredictionLog.FromString(record)
        assert log.WhichOneof("log_type") == "predict_log"
        (name,) = log.predict_log.request.inputs
        assert name in ("image", "image_bytes")
        assert log.SerializeToString(deterministic=True) == record
