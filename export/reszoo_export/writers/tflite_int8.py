"""Write TFLite files that compute in integers: for phones and microcontrollers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from reszoo.errors import ExportError
from reszoo.preprocessing import Pixels
from reszoo_export.quantization.calibration import LEAST, Calibration
from reszoo_export.quantization.integer_net import as_bytes, build_integer_net
from reszoo_export.quantization.ranges import choose
from reszoo_export.serving import Serving
from reszoo_export.writers.tflite import convert, flatbuffer, write_flatbuffer

# How many images have one in glaring colours, and how many times the contrast that has.
_GLARING, _CONTRAST = 4, 8


def write(serving: Serving, path: Path, calibration: Calibration | None) -> None:
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
