"""Write TFLite files: for phones, in LiteRT."""

import tempfile
from pathlib import Path
from typing import Any

import tensorflow as tf

from reszoo.errors import ExportError
from reszoo.quiet import quiet_converters
from reszoo_export.metadata import append_zip, card_files
from reszoo_export.quantization import Calibration
from reszoo_export.saved_model import save
from reszoo_export.serving import Serving


def write(serving: Serving, path: Path, calibration: Calibration | None) -> None:
    """Write a float32 file: float32 pixels in 0..255 in, probabilities out.

    The input is float32 because GPU delegates cannot cast bytes.

    Args:
        serving: What to write.
        path: The file to make.
        calibration: Not used; floating point needs none.
    """
    _convert(serving, path, lambda converter: None)


def write_int8(serving: Serving, path: Path, calibration: Calibration | None) -> None:
    """Write a full-integer file: uint8 pixels in, float32 probabilities out.

    Args:
        serving: What to write.
        path: The file to make.
        calibration: Images that set the ranges of the activations.
    """
    if calibration is None:
        raise ExportError("tflite-int8 needs calibration images, and there are none.")

    def prepare(converter: Any) -> None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: (
            {"image": image} for image in calibration.batches()
        )
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = tf.uint8
        converter.inference_output_type = tf.float32

    _convert(serving, path, prepare)


def _convert(serving: Serving, path: Path, prepare: Any) -> None:
    function = serving.function("probabilities", batch=1, dtype=tf.float32)
    with tempfile.TemporaryDirectory() as folder, quiet_converters():
        save(serving, function, Path(folder))
        converter = tf.lite.TFLiteConverter.from_saved_model(
            folder, signature_keys=["serving_default"]
        )
        # Only what every LiteRT runtime has: no Flex operations.
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        prepare(converter)
        content = converter.convert()
    path.write_bytes(append_zip(content, card_files(serving.card)))
