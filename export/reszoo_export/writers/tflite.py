"""Write TFLite files with floating-point answers: for phones, in LiteRT."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

from reszoo.quiet import quiet_converters
from reszoo_export.quantization.calibration import Calibration
from reszoo_export.serving import Serving
from reszoo_export.writers.saved_model import save
from reszoo_export.writers.tflite_fp16 import halve_kernels
from reszoo_export.writers.tflite_metadata import with_card

Prepare = Callable[[Any], None]


def write(serving: Serving, path: Path, calibration: Calibration | None) -> None:
    """Write a float32 file: float32 pixels in 0..255 in, probabilities out.

    The input is float32 because GPU delegates cannot cast bytes.

    Args:
        serving: What to write.
        path: The file to make.
        calibration: Not used; floating point needs none.
    """
    convert(serving, path)


def write_fp16(serving: Serving, path: Path, calibration: Calibration | None) -> None:
    """Write a file of half the size: kernels in float16, all else in float32.

    GPU delegates compute in float16 anyway; a CPU widens the weights when it loads
    the file, and is as fast as with float32.

    Args:
        serving: What to write.
        path: The file to make.
        calibration: Not used; floating point needs none.

    Raises:
        ExportError: A weight is too large for float16.
    """
    write_flatbuffer(halve_kernels(flatbuffer(serving)), serving, path)


def write_dynamic(
    serving: Serving, path: Path, calibration: Calibration | None
) -> None:
    """Write a file of a quarter of the size: int8 weights, float32 pixels and answers.

    The ranges of activations are measured while it runs, image by image.

    Args:
        serving: What to write.
        path: The file to make.
        calibration: Not used: nothing is measured beforehand.
    """

    def prepare(converter: Any) -> None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]

    convert(serving, path, prepare)


def convert(serving: Serving, path: Path, prepare: Prepare | None = None) -> None:
    """Convert and write a file with its card.

    Args:
        serving: What to write.
        path: The file to make.
        prepare: Sets what else the converter should do; None leaves float32.
    """
    write_flatbuffer(flatbuffer(serving, prepare), serving, path)


def flatbuffer(serving: Serving, prepare: Prepare | None = None) -> bytes:
    """Return what the converter makes, without a card.

    Input `image` is float32 in 0..255, unless `prepare` asks for another type.

    Args:
        serving: What to convert.
        prepare: Sets what else the converter should do; None leaves float32.
    """
    # One image, and no -1 in any shape: delegates refuse open shapes.
    function = serving.function(
        *serving.outputs(["probabilities"]), batch=serving.batch(1), dtype=tf.float32
    )
    # By way of a SavedModel: the converter makes one itself where it is given a
    # function, and loses the signature where that fails.
    with tempfile.TemporaryDirectory() as folder, quiet_converters():
        save(serving, function, Path(folder))
        converter = tf.lite.TFLiteConverter.from_saved_model(
            folder, signature_keys=["serving_default"]
        )
        # Only what every LiteRT runtime has: no Flex operations.
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        # Versions of the converter and a hash, for which it parses the file again.
        converter.exclude_conversion_metadata = True
        if prepare:
            prepare(converter)
        content: bytes = bytes(converter.convert())
    return content


def write_flatbuffer(content: bytes, serving: Serving, path: Path) -> None:
    """Write a converted file with its card."""
    path.write_bytes(with_card(content, serving.card))
