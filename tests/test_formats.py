"""The table of formats, and the words that stand for its rows."""

import ast
import importlib
from importlib import resources
from pathlib import Path

import pytest

import reszoo
import reszoo_export
from reszoo_export.formats import FORMATS, GROUPS, RUNTIMES, Reader, find_formats


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
    with pytest.raises(reszoo.UnknownNameError, match="Unknown format 'tflite-int9'"):
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
    module = importlib.import_module(f"{found.runtime.package}.writer")
    assert callable(getattr(module, found.writer))
    assert Path(found.file).suffix == found.runtime.suffix
    assert [each.file for each in FORMATS.values()].count(found.file) == 1
    assert found.groups <= set(GROUPS)
    # int8 needs images to set its ranges, unless it sets them while it runs.
    assert found.calibrated == found.precision.startswith("int")


@pytest.mark.parametrize("name", RUNTIMES)
def test_every_runtime_is_a_package_with_all_that_is_specific_to_it(name: str) -> None:
    runtime = RUNTIMES[name]
    assert runtime.name == name
    functions = [each for each in vars(Reader) if not each.startswith("_")]
    assert len(functions) == 6
    for function in functions:
        assert callable(getattr(runtime.reader, function)), function
    snippets = resources.files(runtime.package) / "snippets"
    opener = (snippets / "server.py.in").read_text(encoding="utf-8")
    assert f"def open_{name}(path):" in opener
    # The float32 format has the runtime's name, and there is one.
    assert FORMATS[name].runtime is runtime
    assert FORMATS[name].precision == "float32"


def test_nothing_but_the_tables_and_the_packages_knows_a_runtime() -> None:
    """What adding a runtime takes: its package, and tables of `formats.toml`."""
    root = Path(reszoo_export.__file__).parent
    for file in root.rglob("*.py"):
        package = file.relative_to(root).parts[0]
        if package in {*RUNTIMES, "report.py"} or file.name == "formats.py":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert node.value not in {*RUNTIMES, ".tflite", ".onnx"}, file
            if isinstance(node, ast.ImportFrom):
                package, *inside = str(node.module).split(".")
                names = inside[:1] or [each.name for each in node.names]
                assert package != "reszoo_export" or not {*names} & {*RUNTIMES}, file


def test_no_format_allows_operators_that_some_runtimes_lack() -> None:
    for row in FORMATS.values():
        assert not [name for name in row.operators if "Flex" in name or "." in name]
        assert not {"BatchNormalization", "FusedBatchNormV3"} & row.operators
