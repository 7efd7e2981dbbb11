"""The table of formats, and the words that stand for its rows."""

import importlib

import pytest

import reszoo
from reszoo_export.formats import FORMATS, GROUPS, find_formats


def names(words: str | list[str]) -> list[str]:
    return [row.name for row in find_formats(words)]


def test_groups_stand_for_what_their_users_can_open() -> None:
    assert names("all") == list(FORMATS)
    assert names("mobile") == ["tflite", "tflite-fp16", "tflite-int8"]
    assert names("server") == ["saved_model", "onnx", "onnx-int8"]
    assert names("web") == ["onnx", "onnx-fp16", "onnx-int8"]


def test_names_and_groups_mix_in_the_order_of_the_table() -> None:
    assert names("onnx, tflite") == ["tflite", "onnx"]
    assert names(["web", "tflite", "onnx"]) == [
        "tflite", "onnx", "onnx-fp16", "onnx-int8",
    ]  # fmt: skip


def test_what_is_not_in_the_table_is_refused() -> None:
    with pytest.raises(reszoo.UnknownNameError, match="no format 'tflite-int9'"):
        find_formats("tflite-int9")
    with pytest.raises(reszoo.UnknownNameError, match=r"'mobil'.*'mobile'"):
        find_formats("mobil")
    with pytest.raises(reszoo.UsageError, match=r"each once\. Received: onnx, onnx"):
        find_formats("onnx,onnx")
    with pytest.raises(reszoo.UsageError, match=r"at least one.*Received: none"):
        find_formats([])


@pytest.mark.parametrize("row", FORMATS.values(), ids=list(FORMATS))
def test_every_row_has_a_writer_and_a_file_of_its_own(row: object) -> None:
    assert row in FORMATS.values()
    found = FORMATS[getattr(row, "name", "")]
    module, function = found.writer.split(":")
    assert callable(getattr(importlib.import_module(module), function))
    ending = {"saved_model": "", "tflite": ".tflite", "onnx": ".onnx"}[found.runtime]
    assert found.file.endswith(ending)
    assert [each.file for each in FORMATS.values()].count(found.file) == 1
    assert found.groups <= set(GROUPS)
    # int8 needs images to set its ranges, unless it sets them while it runs.
    assert found.calibrated == found.precision.startswith("int")


def test_no_format_allows_operators_that_some_runtimes_lack() -> None:
    for row in FORMATS.values():
        assert not [name for name in row.operators if "Flex" in name or "." in name]
        assert not {"BatchNormalization", "FusedBatchNormV3"} & row.operators
