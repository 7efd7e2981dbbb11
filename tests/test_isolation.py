"""A process of its own: what it says, and what is told when it dies."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reszoo
from reszoo_export import isolation
from reszoo_export.isolation import SubprocessError, run_in_subprocess

# What the child runs: this module, found by the path that it inherits.
HERE = Path(__file__).stem


def greet(*arrays: Any, **arguments: Any) -> Any:
    sys.stdout.write("noise\n")
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
    given = {name: array.tolist() for each in arrays for name, array in each.items()}
    return {"gpus": gpus, **given, **arguments}


def crash() -> None:
    # What is printed is no reply, and kept as well.
    sys.stdout.write("one\n\n")
    sys.stdout.flush()
    sys.stderr.write("last words\n")
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGSEGV)


def starve() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stumble() -> None:
    raise RuntimeError("no such kernel")


def refuse() -> None:
    raise reszoo.CheckpointError("it is damaged")


def misname() -> None:
    raise reszoo.UnknownNameError("model", "x", ["y"])


def hang(folder: str) -> None:
    Path(folder, "pid").write_text(str(os.getpid()))
    time.sleep(600)


def hanging(folder: Path) -> None:
    """Run in a process that the test ends."""
    run_in_subprocess(f"{HERE}:hang", {"folder": str(folder)}, seconds=600)


def test_it_returns_what_the_function_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    found = run_in_subprocess(f"{HERE}:greet", {"size": [1, "two"]})
    assert found == {"gpus": "-1", "size": [1, "two"]}
    arrays = {"a/b": np.arange(3), "none": np.zeros((0, 2))}
    found = run_in_subprocess(f"{HERE}:greet", {}, arrays, hide_gpus=False)
    assert found == {"gpus": "1", "a/b": [0, 1, 2], "none": []}


def test_a_large_array_is_mapped(tmp_path: Path) -> None:
    np.save(tmp_path / "large.npy", np.ones(isolation._MAPPED, np.uint8))
    np.save(tmp_path / "small.npy", np.ones(9, np.uint8))
    assert isinstance(isolation._loaded(tmp_path / "large.npy"), np.memmap)
    assert not isinstance(isolation._loaded(tmp_path / "small.npy"), np.memmap)


@pytest.mark.parametrize(
    ("function", "told"),
    [
        ("crash", r"its runtime crashed \(SIGSEGV\)\n    one\n    last words$"),
        ("starve", r"its runtime crashed \(SIGKILL, often because memory ran out\)$"),
        ("stumble", r"(?s)crashed \(exit 1\).*RuntimeError: no such kernel$"),
    ],
)
def test_a_crash_is_told_with_the_last_words(function: str, told: str) -> None:
    with pytest.raises(SubprocessError, match=told):
        run_in_subprocess(f"{HERE}:{function}", {}, seconds=60)


def test_errors_of_ours_are_raised_as_they_were() -> None:
    with pytest.raises(reszoo.CheckpointError, match=r"^it is damaged$"):
        run_in_subprocess(f"{HERE}:refuse", {}, seconds=60)
    with pytest.raises(reszoo.UsageError, match=r"^Unknown model 'x'\. Known: y\.$"):
        run_in_subprocess(f"{HERE}:misname", {}, seconds=60)


def test_what_takes_too_long_is_ended(tmp_path: Path) -> None:
    with pytest.raises(SubprocessError, match=r"did not finish within 3 seconds"):
        run_in_subprocess(f"{HERE}:hang", {"folder": str(tmp_path)}, seconds=3)
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
