"""The folder of an export: an earlier one is kept until the next is proven."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import randomise

import reszoo
from reszoo_export import serving
from reszoo_export.formats import FORMATS
from reszoo_export.keras_models.resnet import fold
from reszoo_export.onnx import writer


def small(classes: Sequence[str] = "abc", name: str = "resnet8") -> Any:
    shape: dict[str, Any] = {"input_shape": (32, 32, 3), "classes": tuple(classes)}
    return randomise(reszoo.build(name, **shape))


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

    monkeypatch.setattr("reszoo_export.keras_models.resnet.fold", nothing)
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
    for name in ("resnet50", "gone.onnx"):
        with pytest.raises(reszoo.UsageError, match="Unknown file or published"):
            reszoo.export(name, tmp_path / "export")
    assert files(tmp_path) == set()


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_a_full_disk_leaves_the_earlier_export(tmp_path: Path, name: str) -> None:
    output = tmp_path / "export"
    options = {"calibration": "digits"} if FORMATS[name].calibrated else {}
    # Its files are larger than the reference beside them.
    model = small("0123456789", "resnet20")
    reszoo.save(model, tmp_path / "model.safetensors")
    reszoo.export(model, output, formats=name, **options)  # type: ignore[arg-type]
    before = {p: p.read_bytes() for p in output.rglob("*") if p.is_file()}
    limit = max(map(len, before.values())) // 2
    script = (
        "import resource, signal, sys, reszoo.cli\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "sys.argv = ['reszoo', 'export', 'model.safetensors', '--output', 'export',\n"
        f"            '--formats', '{name}', '--overwrite']\n"
        f"sys.argv += ['--calibration', 'digits'] * {bool(options)}\n"
        "reszoo.cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("reszoo: ")
    assert "could not be written" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert before == {p: p.read_bytes() for p in output.rglob("*") if p.is_file()}
    assert files(tmp_path) == {"export", "model.safetensors"}
