"""Write the SavedModel: for TensorFlow, TF Serving and further conversion."""

from pathlib import Path

import tensorflow as tf

from reszoo.quiet import quiet_converters
from reszoo_export.metadata import EXTRA_FOLDER, card_files
from reszoo_export.quantization import Calibration
from reszoo_export.serving import Serving


def write(serving: Serving, path: Path, calibration: Calibration | None) -> None:
    """Write a SavedModel folder with one signature, `serving_default`.

    Input `image` is uint8 `(batch, height, width, 3)`; outputs are `logits` and
    `probabilities`.

    Args:
        serving: What to write.
        path: The folder to make.
        calibration: Not used; floating point needs none.
    """
    save(serving, serving.function("logits", "probabilities"), path)
    extra = path / EXTRA_FOLDER
    extra.mkdir()
    for name, text in card_files(serving.card).items():
        (extra / name).write_text(text, encoding="utf-8")


def save(
    serving: Serving, function: tf.types.experimental.PolymorphicFunction, path: Path
) -> None:
    """Save one serving function as `serving_default`, its weights as variables."""
    module = tf.Module()
    module.weights = [variable.value for variable in serving.net.variables]
    with quiet_converters():
        tf.saved_model.save(
            module, str(path), {"serving_default": function.get_concrete_function()}
        )
