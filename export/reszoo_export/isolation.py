"""Run a function or a model file in a subprocess: its crash ends no other.

Requests and replies are a header of JSON and an array's bytes; nothing is unpickled.
`open_isolated` is `Predictor(path, isolated=True)`.
"""

import json
import math
import os
import pkgutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import weakref
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from reszoo import errors
from reszoo.cards import Card
from reszoo.console import enable_quiet_cli
from reszoo.errors import CheckpointError, ReszooError
from reszoo.files import JSON_BYTES, parse_json
from reszoo_export.runtimes import Runtime, find_runtime, open_runtime
from reszoo_export.sessions import Sessions

_OUTPUT, _LINES = "output.txt", 5
_GIB = 2**30
# Of a runtime's libraries and of its threads; and times the size of the file: what it
# is converted to, optimized and loaded again by.
_BASE, _PER_THREAD, _PER_FILE = 3 * _GIB, 32 * 2**20, 8
# Activations of a batch: ResNet-50 has some 500 bytes per pixel of an image.
_PER_PIXEL = 512
_SECONDS, _CALL_SECONDS = 120.0, 600.0
# Lengths of a header and of what follows it.
_LENGTHS = struct.Struct("<QQ")
# Bytes of a file of an array that is mapped, which keeps it open, and not read.
_MAPPED = 64 * 2**20
Arrays = Mapping[str, NDArray[Any]]
_Message = tuple[dict[str, Any], bytes]


class SubprocessError(CheckpointError):
    """A subprocess that crashed or took too long, mostly because of a file."""


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
    function: str, arguments: Mapping[str, Any], arrays: Arrays | None = None, *,
    seconds: float | None = None, limits: Limits | None = None, hide_gpus: bool = True,
    problem: str = "",
) -> Any:  # fmt: skip
    """Call a function in a new process and return its result.

    `function` is "module:name", `arguments` are its keyword arguments, JSON values as
    the result, and `arrays` its first argument, if there are any; large ones are
    memory-mapped. `limits` are for a function that opens a file of others; `seconds` of
    None are no timeout. It sees no GPU unless asked to: results computed there are not
    exactly reproducible, and this process may have allocated all of the memory. The
    process ends with this one, also when this one is killed.

    A ReszooError as raised by the function; a SubprocessError, which begins with
    `problem`, if it crashed or took too long, with its last lines of output.
    """
    seconds = limits.seconds if limits else seconds
    with tempfile.TemporaryDirectory(prefix="reszoo-") as place:
        folder = Path(place)
        files: dict[str, str] = {}
        for name, array in (arrays or {}).items():
            files[name] = str(folder / f"{len(files)}.npy")
            np.save(files[name], array)
        process = _Subprocess(seconds, folder / _OUTPUT, problem, hide_gpus=hide_gpus)
        header = {"files": files, "limits": limits and asdict(limits)}
        try:
            return process.call(function, arguments, **header)
        finally:
            process.end()


def open_isolated(
    path: Path, threads: int | None = None, *, trust_saved_model: bool = False
) -> Runtime:
    """Open a file in a subprocess that may take only so much memory and time.

    Arguments and errors are those of `open_runtime`; SubprocessError for a crash.
    """
    find_runtime(path)  # Refuses other paths, without a process.
    options = {"threads": threads, "trust_saved_model": trust_saved_model}

    def open_session() -> _Subprocess:
        process = _Subprocess(_CALL_SECONDS)
        request = {"path": str(path.absolute()), **options}
        process.facts = process.call(f"{__name__}:open_stored", request)
        return process

    def run(process: _Subprocess, pixels: NDArray[Any], output: str) -> Any:
        return process.call(f"{__name__}:run_stored", {"output": output}, pixels)

    def operators() -> Counter[str]:
        with sessions.borrow() as process:
            return Counter(process.call(f"{__name__}:count_stored"))

    sessions = Sessions(open_session, path, most=1)
    with sessions.borrow() as process:
        facts = {**process.facts, "card": Card.from_text(process.facts["card"])}
    return Runtime(path=path, sessions=sessions, compute=run, count=operators, **facts)


class _Subprocess:
    """A subprocess that calls functions; what it prints is in a file."""

    facts: dict[str, Any]  # of the file that it has opened

    def __init__(
        self,
        seconds: float | None,
        output: Path = Path(os.devnull),
        problem: str = "",
        *,
        hide_gpus: bool = True,
    ) -> None:
        self._seconds, self._output = seconds or threading.TIMEOUT_MAX, output
        self._problem = problem and f"{problem}: "
        # A notebook may have changed sys.path.
        path = os.pathsep.join(filter(None, sys.path))
        hidden = {"CUDA_VISIBLE_DEVICES": "-1"} if hide_gpus else {}
        # -P: modules in the current folder are not ours.
        code = f"from {__name__} import serve; serve()"
        with output.open("wb") as printed:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", code],
                env={**os.environ, "PYTHONPATH": path, **hidden},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=printed,
            )  # fmt: skip
        self.end = weakref.finalize(self, _end, self._process)
        # Then the pipe ends, and a fork must not end its parent's.
        self.end.atexit = False

    def call(
        self,
        function: str,
        arguments: Mapping[str, Any] | None = None,
        *array: NDArray[Any],
        **header: Any,
    ) -> Any:
        """Return what a function returns, an array or a JSON value.

        Its arguments and errors are those of `run_in_subprocess`, and an array.
        """
        process, stopped = self._process, threading.Event()

        def stop() -> None:
            stopped.set()
            process.kill()

        timer = threading.Timer(self._seconds, stop)
        timer.start()
        try:
            header |= {"function": function, "arguments": dict(arguments or {})}
            _send(process.stdin, header, *array)
            reply, content = _receive(process.stdout)
        except (OSError, EOFError, ValueError) as error:
            process.kill()
            told, lines = _crashed(process.wait()), []
            if stopped.is_set():
                told = f"it did not finish within {self._seconds:g} seconds"
            elif isinstance(error, ValueError):
                told = f"it left no result ({error})"
            else:
                text = self._output.read_text(encoding="utf-8", errors="replace")
                lines = [line.strip() for line in text.splitlines() if line.strip()]
            tail = [f"    {line}" for line in lines[-_LINES:]]
            raise SubprocessError(self._problem + told, *tail) from error
        finally:
            timer.cancel()
        if "error" in reply:
            raise errors.named(str(reply["error"]), str(reply["message"]))
        return _array(reply, content) if "dtype" in reply else reply["value"]


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    for pipe in filter(None, (process.stdin, process.stdout)):
        pipe.close()


def _crashed(code: int) -> str:
    """Tell how a subprocess ended, by its exit code or the signal that ended it."""
    status = signal.Signals(-code).name if code < 0 else f"exit {code}"
    # The kernel sends it when memory runs out.
    often = ", often because memory ran out" if status == "SIGKILL" else ""
    return f"its runtime crashed ({status}{often})"


def _send(file: Any, header: dict[str, Any], *array: NDArray[Any]) -> None:
    content = b""
    for each in array:
        header |= {"dtype": each.dtype.str, "shape": list(each.shape)}
        content = each.tobytes()
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


def _array(header: dict[str, Any], content: bytes) -> NDArray[Any]:
    dtype = np.dtype(str(header["dtype"]))
    shape = tuple(int(side) for side in header["shape"])
    if dtype.kind not in "fiu" or math.prod(shape) * dtype.itemsize != len(content):
        raise SubprocessError(f"it returned no array of {dtype} {shape}")
    return np.frombuffer(content, dtype).reshape(shape)


def _loaded(file: Path) -> Any:
    return np.load(file, "r" if file.stat().st_size > _MAPPED else None)


# Of the process that serves: its limits, and the file that it has opened.
_LIMITS: list[Limits] = []
_OPENED: list[Runtime] = []


def serve() -> None:
    """Call functions as the parent asks, until it ends."""
    # Open until the process has ended, which then is known how.
    requests, replies = (
        os.fdopen(os.dup(number), mode, closefd=False)
        for number, mode in enumerate(("rb", "wb"))
    )
    # What runtimes print is no reply.
    os.dup2(2, 1)
    enable_quiet_cli()
    pending: SimpleQueue[_Message] = SimpleQueue()

    def read() -> None:
        try:
            while True:
                pending.put(_receive(requests))
        finally:
            os._exit(1)

    threading.Thread(target=read, daemon=True).start()
    while True:
        header, content = pending.get()
        called = pkgutil.resolve_name(header["function"])
        given: list[Any] = [_array(header, content)] if "dtype" in header else []
        if files := header.get("files"):
            given.append({name: _loaded(Path(file)) for name, file in files.items()})
        if header.get("limits"):
            set_limits(Limits(**header["limits"]))
        try:
            found = called(*given, **header["arguments"])
        except ReszooError as error:
            _send(replies, {"error": type(error).__name__, "message": str(error)})
        except MemoryError:
            if not _LIMITS:
                raise
            told = f"It takes more than {_LIMITS[-1].memory / _GIB:.1f} GiB of memory."
            _send(replies, {"error": CheckpointError.__name__, "message": told})
        else:
            array = [found] if isinstance(found, np.ndarray) else []
            _send(replies, {} if array else {"value": found}, *array)


def open_stored(path: str, **options: Any) -> dict[str, Any]:
    """Open a file in the subprocess of `open_isolated`; return what it tells."""
    runtime = open_limited(Path(path), **options)
    _OPENED.append(runtime)
    names = ("name", "threads", "inputs", "outputs")
    facts = {name: getattr(runtime, name) for name in names}
    return facts | {"card": runtime.card.to_text()}


def count_stored() -> dict[str, int]:
    """Return how often each operator occurs in the opened file."""
    return dict(_OPENED[0].operators)


def run_stored(pixels: NDArray[Any], output: str) -> NDArray[Any]:
    """Run the opened file."""
    return _OPENED[0].call(pixels, output)


def open_limited(
    path: Path, threads: int | None, *, images: int = 32, **options: bool
) -> Runtime:
    """Open a file in this process, which may then take only so much (`limits_for`).

    Otherwise as `open_runtime`; `images` are run at a time.
    """
    set_limits(limits_for(path), final=False)
    runtime = open_runtime(path, threads, **options)
    pixels = math.prod(runtime.card.preprocessing.eval_sides)
    set_limits(limits_for(path, pixels=pixels, images=images))
    return runtime


def set_limits(limits: Limits, *, final: bool = True) -> None:
    """Limit what this process may take from now on (but time), where the system can.

    Unless they are final, they can be raised again.
    """
    _LIMITS.append(limits)
    try:
        import resource
    except ImportError:  # Windows has none.
        return
    # The address space is no measure: runtimes reserve far more than they use.
    wanted = {
        resource.RLIMIT_DATA: limits.memory, resource.RLIMIT_NOFILE: limits.open_files,
        resource.RLIMIT_FSIZE: limits.written, resource.RLIMIT_CORE: 0,
    }  # fmt: skip
    for kind, most in wanted.items():
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most if final else hard))
