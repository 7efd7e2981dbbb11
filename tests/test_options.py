"""What an export may be asked for, and what it refuses before any work is done."""

from typing import Any

import pytest

import reszoo
from reszoo_export.formats import ExportOptions, check_options, find_formats


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, r"batch must be at least 1\. Received: 0"),
        ({"batch": "open"}, r"batch must be a number or \"dynamic\".*'open'"),
        ({"batch": 1.5}, r"batch must be a number or \"dynamic\".*1\.5"),
        ({"batch": True}, r"batch must be a number or \"dynamic\".*True"),
        ({"input_size": -3}, r"input_size must be at least 1\. Received: -3"),
        ({"input_size": (3, 4)}, r"input_size must be a whole number.*\(3, 4\)"),
        ({"version": 0}, r"version must be at least 1\. Received: 0"),
        ({"version": None}, r"version must be a whole number.*None"),
        ({"layout": "NCHW"}, r'layout must be "nhwc" or "nchw"\. Received: \'NCHW\''),
        ({"outputs": "maps"}, r"outputs must be one of probabilities, .*'maps'"),
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
            "tflite,tflite-int8",
            {"integer_io": True},
            r"integer_io is not supported by tflite\.",
        ),
        (
            "tflite-int8",
            {"integer_io": True, "outputs": "logits"},
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
    check_options(find_formats("onnx,onnx-int8"), ExportOptions(layout="nchw"))
    check_options(find_formats("tflite-int8"), ExportOptions(integer_io=True))
