"""Run a function in a process of its own, so that a crash takes nobody with it."""

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from reszoo.console import enable_quiet_cli
from reszoo.errors import ReszooError, VerificationError

_ANSWER, _ERRORS = "answer.json", "errors.txt"
_LINES = 5


def run_in_subprocess(function: str, folder: Path, seconds: float) -> Any:
    """Call a function in a fresh process and return what it returns.

    The process ends with ours, also when ours is killed, and sees no GPU: what one
    process computes there is not repeated by another to the last digits, and ours
    may hold all of its memory.

    Args:
        function: "module:name" of a function from a folder to plain JSON values.
        folder: What it is called with; the answer is left there as well.
        seconds: How long it may take.

    Raises:
        VerificationError: The function raised an error of ours, or the process
            crashed or took too long; the message ends in its last words.
    """
    with (folder / _ERRORS).open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, function, str(folder)],
            stdin=subprocess.PIPE,
            stdout=errors,
            stderr=errors,
            env=_environment(),
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            late = f"it gave no answer in {seconds:g} seconds"
            raise VerificationError(late) from None
        finally:
            process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()
    return _answer(folder, process.returncode)


def _environment() -> dict[str, str]:
    # A notebook may have found its modules by what it did to sys.path.
    path = os.pathsep.join(filter(None, sys.path))
    return {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "-1"}


def _answer(folder: Path, code: int) -> Any:
    if code:
        raise VerificationError(f"its runtime crashed ({_ending(code)}){_last(folder)}")
    answer = json.loads((folder / _ANSWER).read_text(encoding="utf-8"))
    if "error" in answer:
        raise VerificationError(answer["error"])
    return answer["value"]


def _ending(code: int) -> str:
    if code > 0:
        return f"exit {code}"
    name = signal.Signals(-code).name
    # The kernel's way to say that memory ran out.
    hint = ", often for want of memory" if name == "SIGKILL" else ""
    return f"{name}{hint}"


def _last(folder: Path) -> str:
    text = (folder / _ERRORS).read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "".join(f"\n    {line}" for line in lines[-_LINES:])


def main(function: str, folder: Path) -> None:
    """Call a function with a folder and leave its answer there.

    Args:
        function: "module:name".
        folder: What it is called with.
    """
    enable_quiet_cli()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    module, name = function.split(":")
    try:
        answer = {"value": getattr(importlib.import_module(module), name)(folder)}
    except ReszooError as error:
        answer = {"error": str(error)}
    (folder / _ANSWER).write_text(json.dumps(answer), encoding="utf-8")
    # Some runtimes crash while they are taken down, after all was said.
    os._exit(0)


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
