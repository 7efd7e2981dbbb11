"""`reszoo doctor`."""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import reszoo
from reszoo.cli.publishing import describe_environment

_COMMAND = """
import sys
from reszoo.cli import main
sys.argv = ["reszoo", "doctor", *sys.argv[1:]]
try:
    main()
finally:
    heavy = {"tensorflow", "keras", "onnx", "onnxruntime", "jax"} & {*sys.modules}
    print(sorted(heavy), file=sys.stderr)
"""


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_doctor_prints_versions_and_loads_no_library(options: tuple[str, ...]) -> None:
    command = [sys.executable, "-c", _COMMAND, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
    versions = {name: metadata.version(name) for name in ("tensorflow", "keras")}
    if options:
        found = json.loads(done.stdout)
        assert found["reszoo"] == reszoo.__version__
        assert versions.items() <= found["libraries"].items()
    else:
        assert f"reszoo: {reszoo.__version__}\n" in done.stdout
        for name, version in versions.items():
            assert f"  {name}: {version}\n" in done.stdout


def test_a_report_tells_settings_but_neither_home_nor_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RESZOO_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "2")
    monkeypatch.setenv("HF_TOKEN", "secret")
    # Terraform's, whose names begin as TensorFlow's.
    for name in ("TF_TOKEN_app_terraform_io", "TF_VAR_key", "TF_HTTP_PASSWORD"):
        monkeypatch.setenv(name, "secret")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/weights").write_bytes(bytes(3_000_000))
    found = describe_environment()
    assert found["cache"] == {"folder": "~/cache", "mb": 3.0}
    assert found["variables"]["RESZOO_HOME"] == "~/cache"
    assert found["variables"]["TF_CPP_MIN_LOG_LEVEL"] == "2"
    text = json.dumps(found)
    assert str(tmp_path) not in text
    assert "secret" not in text


def test_files_that_cannot_be_read_are_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESZOO_HOME", str(tmp_path))
    (tmp_path / "weights").write_bytes(bytes(3_000_000))
    (tmp_path / "removed").touch()  # while the folder is read
    real = Path.stat

    def stat(path: Path, **options: Any) -> os.stat_result:
        if path.name == "removed":
            raise PermissionError(13, "Permission denied")
        return real(path, **options)

    monkeypatch.setattr(Path, "stat", stat)
    assert describe_environment()["cache"]["mb"] == 3.0
