"""What exports keep: evidence of a crash, and how ranges were chosen."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import randomise

import reszoo
from reszoo_export.formats import FORMATS, ExportOptions
from reszoo_export.isolation import run_in_subprocess
from reszoo_export.manifest import read_manifest
from reszoo_export.quantization.ranges import MIN_IMAGES, SHARES
from reszoo_export.verification import verify


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_that_brings_its_runtime_down_is_kept_as_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crashing(function: str, arguments: Any, arrays: Any, **options: Any) -> Any:
        """Let the process that opens the TFLite file die of a segmentation fault."""
        if arguments["format_name"] == "tflite":
            return run_in_subprocess("test_isolation:crash", {})
        return run_in_subprocess(function, arguments, arrays, **options)

    monkeypatch.setattr(verify, "run_in_subprocess", crashing)
    told = (
        r"(?s)1 check\(s\) failed.*model\.tflite: tflite could not be verified: its "
        r"runtime crashed \(SIGSEGV\)\n    one\n    last words\n"
        r"Nothing was written to .*export; the failed export is kept in .*\.failed"
    )
    net = randomise(reszoo.build("resnet8", classes=3, input_shape=(32, 32, 3)))
    with pytest.raises(reszoo.VerificationError, match=told):
        reszoo.export(net, tmp_path / "export", formats="tflite,onnx")
    assert names(tmp_path) == {"export.failed"}
    kept = names(tmp_path / "export.failed")
    assert {"model.tflite.failed", "model.onnx", "manifest.json"} <= kept
    crashed, good = read_manifest(tmp_path / "export.failed").files
    assert crashed.verification.images + crashed.verification.synthetic == 0
    assert not good.verification.problems


def test_the_manifest_tells_how_ranges_were_chosen(exported: Any) -> None:
    for record in read_manifest(exported.folder).files:
        if FORMATS[record.format].precision != "int8":
            assert record.ranges is None
            continue
        assert record.ranges is not None, record.format
        best, trials = record.ranges["best"], record.ranges["trials"]
        assert best in trials
        assert best["divergence"] == min(trial["divergence"] for trial in trials)
        assert {trial["share"] for trial in trials} == set(SHARES)
        assert record.ranges["images"] >= MIN_IMAGES


@pytest.mark.parametrize(("old", "new"), [(False, None), (True, "uint8")])
def test_manifests_from_before_int8_pixels_are_read(
    exported: Any, tmp_path: Path, old: bool, new: str | None
) -> None:
    content = json.loads((exported.folder / "manifest.json").read_text())
    content["options"] = {"batch": None, "integer_io": old}
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    assert read_manifest(tmp_path).options == ExportOptions(integer_io=new)  # type: ignore[arg-type]
