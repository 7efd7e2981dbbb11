"""What an export may be asked for, and what it refuses before any work is done."""

from typing import Any

import pytest

import reszoo
from reszoo_export.formats import ExportOptions, check_options, find_formats


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, r"batch must be at least 1. Received: batch=0"),
        ({"batch": "open"}, r"batch must be a whole number or \"dynamic\".*'open'"),
        ({"batch": 1.5}, r"batch must be a whole number or \"dynamic\".*1\.5"),
        ({"batch": True}, r"batch must be a whole number or \"dynamic\".*True"),
        ({"input_size": -3}, r"input_size must be at least 1. .*: input_size=-3"),
        ({"input_size": "3"}, r"input_size must be a whole number.*'3'"),
        ({"input_size": (3, 4, 3)}, r"a whole number or 2 whole numbers.*\(3, 4, 3\)"),
        ({"version": 0}, r"version must be at least 1. Received: version=0"),
        ({"version": None}, r"version must be a whole number.*None"),
        (
            {"layout": "NCHW"},
            r"Unknown layout 'NCHW'\. Did you mean.*Known: nhwc, nchw",
        ),
        (
            {"input_dtype": "int8"},
            r"Unknown input_dtype 'int8'\. .*Known: uint8, float32",
        ),
        ({"integer_io": True}, r"Unknown integer_io 'True'\. Known: uint8, int8"),
        ({"opset": "17"}, r"opset must be a whole number \(or None\)\. .*'17'"),
        ({"outputs": "maps"}, r"Unknown outputs 'maps'\. Known: probabilities, "),
    ],
)
def test_an_option_out_of_range_is_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(reszoo.UsageError, match=message):
        ExportOptions(**options)


@pytest.mark.parametrize(
    ("formats", "options", "message"),
    [
        (
            "onnx,tflite",
            {"layout": "nchw"},
            r"layout='nchw' is not supported by tflite\.",
        ),
        (
            "onnx,saved_model",
            {"input_dtype": "float32"},
            r"input_dtype='float32' is not supported by saved_model\.",
        ),
        (
            "onnx,tflite",
            {"input_dtype": "uint8"},
            r"input_dtype='uint8' is not supported by tflite\.",
        ),
        (
            "onnx,onnx-int8",
            {"opset": 18},
            r"opset=18 is not supported by onnx-int8 \(13 to 17\)\.",
        ),
        (
            "onnx,onnx-fp16",
            {"opset": 19},
            r"opset=19 is not supported by onnx \(13 to 18\), onnx-fp16 \(13 to 18\)",
        ),
        (
            "tflite,onnx",
            {"opset": 17},
            r"opset=17 is not supported by tflite\.",
        ),
        (
            "tflite,tflite-int8",
            {"integer_io": "int8"},
            r"integer_io='int8' is not supported by tflite\.",
        ),
        (
            "tflite-int8",
            {"integer_io": "int8", "input_dtype": "uint8"},
            r"input_dtype='uint8' is not supported by tflite-int8\.",
        ),
        (
            "tflite-int8",
            {"integer_io": "uint8", "outputs": "logits"},
            r"known steps of 1/256\. Received: outputs='logits'",
        ),
    ],
)
def test_what_a_format_cannot_do_is_refused(
    formats: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(reszoo.UsageError, match=message):
        check_options(find_formats(formats), ExportOptions(**options))


def test_what_every_format_can_do_is_not() -> None:
    check_options(
        find_formats("all"), ExportOptions(batch=2, input_size=40, outputs="features")
    )
    onnx = ExportOptions(layout="nchw", input_dtype="float32", opset=13)
    check_options(find_formats("onnx,onnx-fp16,onnx-int8"), onnx)
    check_options(find_formats("onnx,tflite"), ExportOptions(input_dtype="float32"))
    check_options(find_formats("tflite-int8"), ExportOptions(integer_io="uint8"))
