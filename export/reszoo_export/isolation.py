"""Run a function or a model file in a subprocess: its crash ends no other.

`run_in_subprocess` passes arguments and result through a folder. `open_isolated` is
`Predictor(path, isolated=True)`: requests and replies are a header of JSON and an
array's bytes. Nothing is unpickled.
"""

import json
import math
import os
import pkgutil
import signal
import struct
import subprocess
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from reszoo import errors
from reszoo.cards import Card
from reszoo.console import enable_quiet_cli
from reszoo.errors import CheckpointError, ReszooError
from reszoo.files import JSON_BYTES, parse_json, read_json
from reszoo_export.runtimes import Runtime, find_runtime, open_runtime
from reszoo_export.sessions import Sessions

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
    """What a subprocess may take: time, memory (Linux), open and written files."""

    seconds: float
    memory: int
    open_files: int = 512
    written: int = 64 * 2**20  # bytes of each file


def limits_for(
    path: Path, seconds: float = _SECONDS, *, pixels: int = 0, images: int = 32
) -> Limits:
    """Return limits that any genuine model file of this size stays within.

    `pixels` are those of an image that it is run on, `images` at a time; 0 if it is
    not.
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
        process = _start(function, str(folder), hide_gpus=hide_gpus, stdout=output)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise SubprocessError(_late(seconds or 0)) from None
        finally:
            _end(process)
    return _result(folder, process.returncode)


def _start(
    *arguments: str,
    hide_gpus: bool = True,
    stdout: Any,
    stderr: int = subprocess.STDOUT,
) -> "subprocess.Popen[bytes]":
    """Run this module in a subprocess that imports what this process does."""
    # A notebook may have changed sys.path.
    path = os.pathsep.join(filter(None, sys.path))
    hidden = {"CUDA_VISIBLE_DEVICES": "-1"} if hide_gpus else {}
    environment = {**os.environ, "PYTHONPATH": path, **hidden}
    # -P: modules in the current folder are not ours.
    command = [sys.executable, "-P", "-m", __name__, *arguments]
    pipes = {"stdin": subprocess.PIPE, "stdout": stdout, "stderr": stderr}
    return subprocess.Popen(command, env=environment, **pipes)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    for pipe in filter(None, (process.stdin, process.stdout)):
        pipe.close()


def _result(folder: Path, code: int) -> Any:
    if code:
        text = (folder / _OUTPUT).read_text(encoding="utf-8", errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        tail = [f"    {line}" for line in lines[-_LINES:]]
        raise SubprocessError(_crashed(code), *tail)
    try:
        result = read_json(folder / _RESULT)
    except (OSError, ValueError) as error:
        raise SubprocessError(f"it left no result ({error})") from error
    return _checked(result)["value"]


def _checked(reply: dict[str, Any]) -> dict[str, Any]:
    """Return what a subprocess replied; raise the error that it had."""
    if "error" in reply:
        raise errors.named(str(reply["error"]), str(reply["message"]))
    return reply


def _failure(error: ReszooError | MemoryError, memory: str) -> dict[str, str]:
    """Return the reply for an error; one of memory says that it takes too much."""
    if isinstance(error, MemoryError):
        error = CheckpointError(f"It takes more {memory}.")
    return {"error": type(error).__name__, "message": str(error)}


def _late(seconds: float) -> str:
    return f"it did not finish within {seconds:g} seconds"


def _crashed(code: int) -> str:
    """Tell how a subprocess ended, by its exit code or the signal that ended it."""
    status = f"exit {code}" if code > 0 else signal.Signals(-code).name
    # The kernel sends it when memory runs out.
    often = ", often because memory ran out" if status == "SIGKILL" else ""
    return f"its runtime crashed ({status}{often})"


def call_stored(function: str, folder: Path) -> None:
    """Call a function with what is stored in a folder, and store its result there."""
    enable_quiet_cli()

    def end_with_parent() -> None:
        os.read(sys.stdin.fileno(), 1)
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    stored = json.loads((folder / _ARGUMENTS).read_text(encoding="utf-8"))
    limits = stored["limits"] and Limits(**stored["limits"])
    called = pkgutil.resolve_name(function)
    if limits:
        set_limits(limits)
    try:
        result = {"value": called(folder, **stored["arguments"])}
    except (ReszooError, MemoryError) as error:
        if isinstance(error, MemoryError) and not limits:
            raise
        most = limits.memory / _GIB if limits else 0
        result = _failure(error, f"than {most:.1f} GiB of memory")
    (folder / _RESULT).write_text(json.dumps(result), encoding="utf-8")
    # Some runtimes crash at exit, after all work is done.
    os._exit(0)


def set_limits(limits: Limits, *, final: bool = True) -> None:
    """Limit what this process may take from now on (but time), where the system can.

    Unless they are final, they can be raised again.
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


# Lengths of a header and of what follows it.
_LENGTHS = struct.Struct("<QQ")
_CALL_SECONDS = 600.0
_Message = tuple[dict[str, Any], bytes]


def open_isolated(
    path: Path, threads: int | None = None, *, trust_saved_model: bool = False
) -> Runtime:
    """Open a file in a subprocess that may take only so much memory and time.

    Arguments and errors are those of `open_runtime`; SubprocessError for a crash.
    """
    find_runtime(path)  # Refuses other paths, without a process.
    request = {
        "path": str(path.absolute()),
        "threads": threads,
        "trust_saved_model": trust_saved_model,
    }
    sessions = Sessions(lambda: _Worker(request, _CALL_SECONDS), path, most=1)
    with sessions.borrow() as worker:
        facts = {**worker.facts, "card": Card.from_text(worker.facts["card"])}

    def operators() -> Counter[str]:
        with sessions.borrow() as worker:
            return Counter(worker.ask({"operators": True})[0]["operators"])

    return Runtime(
        path=path, sessions=sessions, compute=_Worker.run, count=operators, **facts
    )


class _Worker:
    """A subprocess that has opened a file, tells its `facts`, and runs it if asked."""

    def __init__(self, request: dict[str, Any], seconds: float) -> None:
        self._seconds = seconds
        pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
        self._process = _start(stdout=pipe, stderr=nothing)
        # Not at exit: then the pipe ends, and a fork must not end its parent's.
        weakref.finalize(self, _end, self._process).atexit = False
        self.facts = self.ask(request)[0]

    def run(self, pixels: NDArray[Any], output: str) -> NDArray[Any]:
        header, content = self.ask({"output": output, **_described(pixels)}, pixels)
        return _array(header, content)

    def ask(self, header: dict[str, Any], body: Any = b"") -> _Message:
        """Send a request and return the reply, or raise the subprocess's error."""
        process, stopped = self._process, threading.Event()

        def stop() -> None:
            stopped.set()
            process.kill()

        timer = threading.Timer(self._seconds, stop)
        timer.start()
        try:
            _send(process.stdin, header, body)
            reply, content = _receive(process.stdout)
        except (OSError, EOFError, ValueError) as error:
            process.kill()
            status = process.wait()
            if stopped.is_set():
                raise SubprocessError(_late(self._seconds)) from error
            raise SubprocessError(_crashed(status)) from error
        finally:
            timer.cancel()
        return _checked(reply), content


def _described(array: NDArray[Any]) -> dict[str, Any]:
    return {"dtype": array.dtype.str, "shape": list(array.shape)}


def _array(header: dict[str, Any], content: bytes) -> NDArray[Any]:
    dtype = np.dtype(str(header["dtype"]))
    shape = tuple(int(side) for side in header["shape"])
    if dtype.kind not in "fiu" or math.prod(shape) * dtype.itemsize != len(content):
        raise SubprocessError(f"it returned no array of {dtype} {shape}")
    return np.frombuffer(content, dtype).reshape(shape)


def _send(file: Any, header: dict[str, Any], body: Any = b"") -> None:
    content = body.tobytes() if isinstance(body, np.ndarray) else body
    head = json.dumps(header).encode()
    file.write(_LENGTHS.pack(len(head), len(content)) + head + content)
    file.flush()


def _receive(file: Any, most: int = 2**31) -> _Message:
    head, body = _LENGTHS.unpack(_exactly(file, _LENGTHS.size))
    if head > JSON_BYTES or body > most:
        raise ValueError(f"a message of {head + body:,} bytes")
    header = parse_json(_exactly(file, head))
    if not isinstance(header, dict):
        raise ValueError("a message without a header")
    return header, _exactly(file, body)


def _exactly(file: BinaryIO, count: int) -> bytes:
    content = file.read(count)
    if len(content) < count:
        raise EOFError("the other side has ended")
    return content


def serve() -> None:
    """Open a file and answer requests, until the parent ends."""
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    # What runtimes print is no reply.
    os.dup2(2, 1)
    enable_quiet_cli()
    runtime = None
    while True:
        try:
            header, content = _receive(requests)
        except EOFError:
            os._exit(0)
        try:
            if runtime is None:
                path = Path(header.pop("path"))
                set_limits(limits_for(path, _CALL_SECONDS), final=False)
                runtime = open_runtime(path, **header)
                pixels = math.prod(runtime.card.preprocessing.eval_sides)
                set_limits(limits_for(path, _CALL_SECONDS, pixels=pixels))
                names = ("name", "threads", "inputs", "outputs")
                facts = {name: getattr(runtime, name) for name in names}
                _send(replies, facts | {"card": runtime.card.to_text()})
            elif "operators" in header:
                _send(replies, {"operators": dict(runtime.operators)})
            else:
                found = runtime.call(_array(header, content), str(header["output"]))
                _send(replies, _described(found), np.ascontiguousarray(found))
        except (ReszooError, MemoryError) as error:
            _send(replies, _failure(error, "memory than a file of its size may"))


if __name__ == "__main__":
    if sys.argv[1:]:
        call_stored(sys.argv[1], Path(sys.argv[2]))
    serve()
