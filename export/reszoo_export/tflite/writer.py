"""Write TFLite files: float32, float16, dynamic, int8 and int16x8."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from reszoo.console import quiet
from reszoo.errors import ExportError
from reszoo.preprocessing import Pixels
from reszoo_export.quantization.integer_model import as_bytes, build_integer_net
from reszoo_export.quantization.ranges import LEAST, Calibration, choose
from reszoo_export.saved_model.writer import save
from reszoo_export.serving import Serving
from reszoo_export.tflite.metadata import with_card
from reszoo_export.tflite.model import halve_kernels

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
    with tempfile.TemporaryDirectory() as folder, quiet():
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


# How many images have one in glaring colours, and how many times the contrast that has.
_GLARING, _CONTRAST = 4, 8


def write_int8(serving: Serving, path: Path, calibration: Calibration | None) -> None:
    """Write an int8 file: uint8 pixels in, float32 answers out.

    Classifier and softmax answer in floating point: integers would round to steps of
    1/256 and tie. With `integer_io` they are integers as well, for devices that have
    nothing else: uint8 probabilities in steps of 1/256.

    Args:
        serving: What to write.
        path: The file to make.
        calibration: Images that set and judge the ranges of the activations.
    """
    images = _given(calibration, "tflite-int8")
    chosen = choose(serving.net, serving.card.preprocessing, images)
    integer_io = serving.options.integer_io
    net = build_integer_net(
        serving.net,
        chosen.weights,
        chosen.ranges if integer_io else chosen.inner_ranges,
    )

    def prepare(converter: Any) -> None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.inference_input_type = tf.uint8
        converter.inference_output_type = tf.uint8 if integer_io else tf.float32

    content = flatbuffer(as_bytes(serving, net), prepare)
    write_flatbuffer(content, serving, path)


def write_int16x8(
    serving: Serving, path: Path, calibration: Calibration | None
) -> None:
    """Write a file with int8 weights and int16 activations; pixels and answers float32.

    Its answers are nearly those of float32. LiteRT computes it by its plain kernels,
    so it is made for accelerators and signal processors.

    Args:
        serving: What to write.
        path: The file to make.
        calibration: Images that set the ranges of the activations.
    """
    images = _given(calibration, "tflite-int16x8")

    def prepare(converter: Any) -> None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: _wide(images)
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        ]

    convert(serving, path, prepare)


def _wide(calibration: Calibration) -> Iterator[dict[str, Pixels]]:
    """Yield images, some of them once more in glaring colours.

    Ranges of int16 may be many times too wide before its steps are felt, but what lies
    outside of them is cut off. More images would only take time.
    """
    for index, image in zip(range(LEAST), calibration.batches(), strict=False):
        yield {"image": image}
        if index % _GLARING == 0:
            yield {"image": np.clip(128 + _CONTRAST * (image - 128), 0, 255)}


def _given(calibration: Calibration | None, name: str) -> Calibration:
    if calibration is None:
        raise ExportError(f"{name} needs calibration images, and there are none.")
    return calibration
