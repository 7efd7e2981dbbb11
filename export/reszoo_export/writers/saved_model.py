"""Write the SavedModel: for TensorFlow, TF Serving and further conversion."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from reszoo.quiet import quiet_converters
from reszoo_export.encoded import prepare_encoded
from reszoo_export.metadata import EXTRA_FOLDER, card_files
from reszoo_export.quantization.calibration import Calibration
from reszoo_export.serving import Serving
from reszoo_export.writers.saved_model_bytes import make_repeatable
from reszoo_export.writers.warmup import BYTES_INPUT, WARMUP_FILE, warmup_requests

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
    with quiet_converters():
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
