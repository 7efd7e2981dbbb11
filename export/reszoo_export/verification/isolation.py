"""Run a function in a subprocess: its crash ends no other, and it has limits."""

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reszoo import errors
from reszoo.console import enable_quiet_cli
from reszoo.errors import ReszooError
from reszoo.files import read_json

_ARGUMENTS, _RESULT, _OUTPUT = "arguments.json", "result.json", "output.txt"
_LINES = 5
_GIB = 2**30
# Of a runtime's libraries and of its threads; and times the size of the file: what it
# is converted to, optimized and loaded again by.
_BASE, _PER_THREAD, _PER_FILE = 3 * _GIB, 32 * 2**20, 8
# Activations of a batch: ResNet-50 has some 500 bytes per pixel of an image.
_PER_PIXEL = 512
_SECONDS = 120.0


class SubprocessError(ReszooError):
    """A subprocess that crashed or took too long."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a subprocess may take.

    Attributes:
        seconds: Time.
        memory: Bytes that it may allocate (Linux).
        open_files: At one time.
        written: Bytes of each file that it writes.
    """

    seconds: float
    memory: int
    open_files: int = 512
    written: int = 64 * 2**20


def limits_for(
    path: Path, seconds: float = _SECONDS, *, pixels: int = 0, images: int = 32
) -> Limits:
    """Return limits that any genuine model file of this size stays within.

    Args:
        path: The file or folder.
        seconds: Time.
        pixels: Of an image that it is run on; 0 if it is not run.
        images: In a batch.
    """
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files if file.is_file())
    memory = _BASE + _PER_THREAD * (os.cpu_count() or 1) + _PER_FILE * size
    return Limits(seconds=seconds, memory=memory + images * pixels * _PER_PIXEL)


def run_in_subprocess(
    function: str,
    folder: Path,
    arguments: Mapping[str, Any],
    *,
    seconds: float | None = None,
    limits: Limits | None = None,
    hide_gpus: bool = True,
) -> Any:
    """Call a function in a new process and return its result.

    The process ends with this one, also when this one is killed.

    Args:
        function: "module:name" of a function that takes a folder and the arguments.
        folder: Its first argument, for arrays. Arguments and result are stored there.
        arguments: Its keyword arguments, JSON values as the result.
        seconds: Timeout; None for none.
        limits: Of time, memory and files; for a function that opens a file of others.
        hide_gpus: Whether it sees no GPU: results computed there are not exactly
            reproducible, and this process may have allocated all of the memory.

    Raises:
        ReszooError: As raised by the function.
        SubprocessError: It crashed or took too long; with its last lines of output.
    """
    if limits:
        seconds = limits.seconds
    stored = {"arguments": dict(arguments), "limits": limits and asdict(limits)}
    (folder / _ARGUMENTS).write_text(json.dumps(stored), encoding="utf-8")
    with (folder / _OUTPUT).open("wb") as output:
        process = subprocess.Popen(
            # -P: modules in the current folder are not ours.
            [sys.executable, "-P", "-m", __name__, function, str(folder)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=child_environment(hide_gpus),
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            message = f"it did not finish within {seconds:g} seconds"
            raise SubprocessError(message) from None
        finally:
            process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()
    return _result(folder, process.returncode)


def child_environment(hide_gpus: bool) -> dict[str, str]:
    """Return the environment of a subprocess that imports what this one does."""
    # A notebook may have changed sys.path.
    path = os.pathsep.join(filter(None, sys.path))
    hidden = {"CUDA_VISIBLE_DEVICES": "-1"} if hide_gpus else {}
    return {**os.environ, "PYTHONPATH": path, **hidden}


def _result(folder: Path, code: int) -> Any:
    if code:
        reason = f"its runtime crashed ({exit_status(code)})"
        raise SubprocessError(reason, *_tail(folder))
    try:
        result = read_json(folder / _RESULT)
    except (OSError, ValueError) as error:
        raise SubprocessError(f"it left no result ({error})") from error
    if "error" in result:
        raise errors.named(str(result["error"]), str(result["message"]))
    return result["value"]


def exit_status(code: int) -> str:
    """Tell how a subprocess ended."""
    if code > 0:
        return f"exit {code}"
    name = signal.Signals(-code).name
    # The kernel sends it when memory runs out.
    return f"{name}, often because memory ran out" if name == "SIGKILL" else name


def _tail(folder: Path) -> list[str]:
    text = (folder / _OUTPUT).read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [f"    {line}" for line in lines[-_LINES:]]


def main(function: str, folder: Path) -> None:
    """Call a function with what is stored in a folder, and store its result there."""
    enable_quiet_cli()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    module, name = function.split(":")
    stored = json.loads((folder / _ARGUMENTS).read_text(encoding="utf-8"))
    limits = stored["limits"] and Limits(**stored["limits"])
    called = getattr(importlib.import_module(module), name)
    if limits:
        set_limits(limits)
    try:
        result = {"value": called(folder, **stored["arguments"])}
    except ReszooError as error:
        result = {"error": type(error).__name__, "message": str(error)}
    except MemoryError:
        if not limits:
            raise
        message = f"It takes more than {limits.memory / _GIB:.1f} GiB of memory."
        result = {"error": "CheckpointError", "message": message}
    (folder / _RESULT).write_text(json.dumps(result), encoding="utf-8")
    # Some runtimes crash at exit, after all work is done.
    os._exit(0)


def set_limits(limits: Limits, *, final: bool = True) -> None:
    """Limit what this process may take from now on, where the system can.

    Args:
        limits: Time is not among what is limited here.
        final: Whether they cannot be raised again.
    """
    try:
        import resource
    except ImportError:  # Windows has none.
        return
    # The address space is no measure: runtimes reserve far more than they use.
    wanted = {
        resource.RLIMIT_DATA: limits.memory,
        resource.RLIMIT_NOFILE: limits.open_files,
        resource.RLIMIT_FSIZE: limits.written,
        resource.RLIMIT_CORE: 0,
    }
    for kind, most in wanted.items():
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most if final else hard))


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
