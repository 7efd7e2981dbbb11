"""A process of its own: what it says, and what is told when it dies."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import reszoo
from reszoo_export.isolation import SubprocessError, run_in_subprocess

# What the child runs: this module, found by the path that it inherits.
HERE = Path(__file__).stem


def greet(folder: Path, **arguments: Any) -> Any:
    sys.stdout.write("noise\n")
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
    return {"from": folder.name, "gpus": gpus, **arguments}


def crash(folder: Path) -> None:
    sys.stderr.write("one\n\nlast words\n")
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGSEGV)


def starve(folder: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stumble(folder: Path) -> None:
    raise RuntimeError("no such kernel")


def refuse(folder: Path) -> None:
    raise reszoo.CheckpointError("it is damaged")


def misname(folder: Path) -> None:
    raise reszoo.UnknownNameError("model", "x", ["y"])


def hang(folder: Path) -> None:
    (folder / "pid").write_text(str(os.getpid()))
    time.sleep(600)


def hanging(folder: Path) -> None:
    """Run in a process that the test ends."""
    run_in_subprocess(f"{HERE}:hang", folder, {}, seconds=600)


def test_it_returns_what_the_function_returned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    found = run_in_subprocess(f"{HERE}:greet", tmp_path, {"size": [1, "two"]})
    assert found == {"from": tmp_path.name, "gpus": "-1", "size": [1, "two"]}
    found = run_in_subprocess(f"{HERE}:greet", tmp_path, {}, hide_gpus=False)
    assert found == {"from": tmp_path.name, "gpus": "1"}


@pytest.mark.parametrize(
    ("function", "told"),
    [
        ("crash", r"its runtime crashed \(SIGSEGV\)\n    one\n    last words$"),
        ("starve", r"its runtime crashed \(SIGKILL, often because memory ran out\)$"),
        ("stumble", r"(?s)crashed \(exit 1\).*RuntimeError: no such kernel$"),
    ],
)
def test_a_crash_is_told_with_the_last_words(
    function: str, told: str, tmp_path: Path
) -> None:
    with pytest.raises(SubprocessError, match=told):
        run_in_subprocess(f"{HERE}:{function}", tmp_path, {}, seconds=60)


def test_errors_of_ours_are_raised_as_they_were(tmp_path: Path) -> None:
    with pytest.raises(reszoo.CheckpointError, match=r"^it is damaged$"):
        run_in_subprocess(f"{HERE}:refuse", tmp_path, {}, seconds=60)
    with pytest.raises(reszoo.UsageError, match=r"^Unknown model 'x'\. Known: y\.$"):
        run_in_subprocess(f"{HERE}:misname", tmp_path, {}, seconds=60)


def test_what_takes_too_long_is_ended(tmp_path: Path) -> None:
    with pytest.raises(SubprocessError, match=r"did not finish within 3 seconds"):
        run_in_subprocess(f"{HERE}:hang", tmp_path, {}, seconds=3)
    assert not alive(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_the_child_ends_with_its_parent(end: signal.Signals, tmp_path: Path) -> None:
    # Where tests run in the background, Ctrl-C is ignored and processes inherit that.
    code = (
        "import pathlib, signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"import {HERE}\n"
        f"{HERE}.hanging(pathlib.Path({str(tmp_path)!r}))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL
    ) as parent:
        try:
            while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
                assert parent.poll() is None
                time.sleep(0.05)
            parent.send_signal(end)
            assert parent.wait(60) != 0
        finally:
            parent.kill()
    child = int((tmp_path / "pid").read_text())
    for _ in range(100):
        if not alive(child):
            return
        time.sleep(0.1)
    pytest.fail("the child lives on")


def alive(pid: int) -> bool:
    """Tell whether a process runs; one that only waits to be buried does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
