"""The folder of an export: an earlier one is kept until the next is proven."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import randomise

import reszoo
from reszoo_export import serving
from reszoo_export.folding import fold
from reszoo_export.onnx import writer

pytestmark = pytest.mark.usefixtures("untimed")


def small() -> Any:
    shape: dict[str, Any] = {"input_shape": (32, 32, 3), "classes": ("a", "b", "c")}
    return randomise(reszoo.build("resnet20", **shape))


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_an_export_that_is_there_is_kept_unless_told_otherwise(
    exported: Any, tmp_path: Path
) -> None:
    before = (exported.folder / "manifest.json").read_bytes()
    with pytest.raises(
        reszoo.UsageError, match=r"already holds an export.*--overwrite"
    ):
        reszoo.export(small(), exported.folder)
    assert (exported.folder / "manifest.json").read_bytes() == before
    (tmp_path / "thesis.txt").write_text("years of work")
    (tmp_path / "manifest.json").write_text('{"name": "a web page"}')
    with pytest.raises(reszoo.UsageError, match="is not an export of reszoo"):
        reszoo.export(small(), tmp_path, overwrite=True)
    assert files(tmp_path) == {"thesis.txt", "manifest.json"}


def test_overwriting_replaces_the_whole_folder(tmp_path: Path) -> None:
    output = tmp_path / "export"
    reszoo.export(small(), output, formats="tflite")
    reszoo.export(small(), output, formats=["onnx"], overwrite=True)
    beside = {"manifest.json", "reference.npz", "labels.txt", "snippets"}
    assert files(output) == {"model.onnx", "REPORT.md", "report.html", *beside}
    assert files(tmp_path) == {"export"}


def test_a_file_that_does_not_match_is_not_left_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "export"
    reszoo.export(small(), output, formats="onnx")
    before = (output / "model.onnx").read_bytes()
    convert = writer.convert

    def swapped(graph: Any) -> Any:
        """Write an ONNX file that takes BGR for RGB."""
        record = graph.card.preprocessing
        turned = replace(record, mean=record.mean[::-1], std=record.std[::-1])
        card = replace(graph.card, preprocessing=turned)
        return convert(serving.Serving(graph.model, card))

    monkeypatch.setattr(writer, "convert", swapped)
    with pytest.raises(reszoo.VerificationError, match=r"model\.onnx: "):
        reszoo.export(small(), output, formats="tflite,onnx", overwrite=True)
    assert (output / "model.onnx").read_bytes() == before
    assert files(tmp_path) == {"export", "export.failed"}
    failed = files(tmp_path / "export.failed")
    assert "model.onnx.failed" in failed
    assert "model.onnx" not in failed
    assert "model.tflite" in failed


def test_only_a_failed_export_makes_room_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(graph: Any) -> Any:
        return {**fold(graph), "fc.bias": np.full(3, 9, np.float32) * [0, 1, 2]}

    monkeypatch.setattr("reszoo_export.serving.fold", nothing)
    mine = tmp_path / "x.failed"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    for _ in range(2):
        with pytest.raises(reszoo.VerificationError, match=r"kept in .*x\.failed-2\."):
            reszoo.export(small(), tmp_path / "x", formats="tflite")
        assert files(tmp_path) == {"x.failed", "x.failed-2"}
        assert files(mine) == {"thesis.txt"}
        assert "model.tflite.failed" in files(tmp_path / "x.failed-2")


def test_what_is_exported_already_is_not_exported_again(
    exported: Any, tmp_path: Path
) -> None:
    for name in ("model.onnx", "model.tflite", "saved_model", "."):
        with pytest.raises(reszoo.UsageError, match="export takes a checkpoint or"):
            reszoo.export(exported.folder / name, tmp_path / "export")
    assert files(tmp_path) == set()


def test_a_full_disk_leaves_the_earlier_export(tmp_path: Path) -> None:
    output = tmp_path / "export"
    reszoo.save(small(), tmp_path / "model.safetensors")
    reszoo.export(small(), output, formats="onnx")
    before = (output / "model.onnx").read_bytes()
    script = (
        "import resource, signal, sys, reszoo.cli\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))\n"
        "sys.argv = ['reszoo', 'export', 'model.safetensors', '--output', 'export',\n"
        "            '--formats', 'onnx', '--overwrite']\n"
        "reszoo.cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("reszoo: ")
    assert "could not be written" in done.stderr
    assert (output / "model.onnx").read_bytes() == before
    assert files(tmp_path) == {"export", "model.safetensors"}
