"""Run a function in a subprocess, so that a crash does not end this process."""

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reszoo import errors
from reszoo.console import enable_quiet_cli
from reszoo.errors import ReszooError, UsageError

_ARGUMENTS, _RESULT, _OUTPUT = "arguments.json", "result.json", "output.txt"
_LINES = 5


class SubprocessError(ReszooError):
    """A subprocess that crashed or took too long."""


def run_in_subprocess(
    function: str,
    folder: Path,
    arguments: Mapping[str, Any],
    *,
    seconds: float | None = None,
    hide_gpus: bool = True,
) -> Any:
    """Call a function in a new process and return its result.

    The process ends with this one, also when this one is killed.

    Args:
        function: "module:name" of a function that takes a folder and the arguments.
        folder: Its first argument, for arrays. Arguments and result are stored there.
        arguments: Its keyword arguments, JSON values as the result.
        seconds: Timeout; None for none.
        hide_gpus: Whether it sees no GPU: results computed there are not exactly
            reproducible, and this process may have allocated all of the memory.

    Raises:
        ReszooError: As raised by the function.
        SubprocessError: It crashed or took too long; with its last lines of output.
    """
    (folder / _ARGUMENTS).write_text(json.dumps(dict(arguments)), encoding="utf-8")
    with (folder / _OUTPUT).open("wb") as output:
        process = subprocess.Popen(
            # -P: modules in the current folder are not ours.
            [sys.executable, "-P", "-m", __name__, function, str(folder)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=_environment(hide_gpus),
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


def _environment(hide_gpus: bool) -> dict[str, str]:
    # A notebook may have changed sys.path.
    path = os.pathsep.join(filter(None, sys.path))
    hidden = {"CUDA_VISIBLE_DEVICES": "-1"} if hide_gpus else {}
    return {**os.environ, "PYTHONPATH": path, **hidden}


def _result(folder: Path, code: int) -> Any:
    if code:
        raise SubprocessError(f"its runtime crashed ({_status(code)}){_tail(folder)}")
    result = json.loads((folder / _RESULT).read_text(encoding="utf-8"))
    if "error" in result:
        kind: type[ReszooError] = getattr(errors, result["error"], ReszooError)
        # Its subclasses take other arguments than the message.
        kind = UsageError if issubclass(kind, UsageError) else kind
        raise kind(result["message"])
    return result["value"]


def _status(code: int) -> str:
    if code > 0:
        return f"exit {code}"
    name = signal.Signals(-code).name
    # The kernel sends it when memory runs out.
    return f"{name}, often because memory ran out" if name == "SIGKILL" else name


def _tail(folder: Path) -> str:
    text = (folder / _OUTPUT).read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "".join(f"\n    {line}" for line in lines[-_LINES:])


def main(function: str, folder: Path) -> None:
    """Call a function with what is stored in a folder, and store its result there."""
    enable_quiet_cli()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    module, name = function.split(":")
    arguments = json.loads((folder / _ARGUMENTS).read_text(encoding="utf-8"))
    try:
        value = getattr(importlib.import_module(module), name)(folder, **arguments)
        result = {"value": value}
    except ReszooError as error:
        result = {"error": type(error).__name__, "message": str(error)}
    (folder / _RESULT).write_text(json.dumps(result), encoding="utf-8")
    # Some runtimes crash at exit, after all work is done.
    os._exit(0)


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
