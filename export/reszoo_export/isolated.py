"""Run a model file in a subprocess with limits: `Predictor(path, isolated=True)`.

Requests and replies are a header of JSON and an array's bytes; nothing is unpickled.
"""

import json
import math
import os
import struct
import subprocess
import sys
import threading
import weakref
from collections import Counter
from pathlib import Path
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
from reszoo_export.verification.isolation import (
    SubprocessError,
    child_environment,
    exit_status,
    limits_for,
    set_limits,
)

# Lengths of a header and of what follows it.
_LENGTHS = struct.Struct("<QQ")
_SECONDS = 600.0
_Message = tuple[dict[str, Any], bytes]


def open_isolated(
    path: Path, threads: int | None = None, *, trust_saved_model: bool = False
) -> Runtime:
    """Open a file in a subprocess that may take only so much memory and time.

    Arguments and errors are those of `reszoo_export.runtimes.open_runtime`.

    Raises:
        SubprocessError: It crashed, or took too long.
    """
    find_runtime(path)  # Refuses other paths, without a process.
    request = {
        "path": str(path.absolute()),
        "threads": threads,
        "trust_saved_model": trust_saved_model,
    }
    sessions = Sessions(lambda: _Worker(request, _SECONDS), path, most=1)
    with sessions.borrow() as worker:
        facts = worker.facts

    def operators() -> Counter[str]:
        with sessions.borrow() as worker:
            return Counter(worker.ask({"operators": True})[0]["operators"])

    return Runtime(
        path,
        name=str(facts["name"]),
        card=Card.from_text(facts["card"]),
        threads=int(facts["threads"]),
        inputs=facts["inputs"],
        outputs=facts["outputs"],
        sessions=sessions,
        call=lambda worker, pixels, output: worker.run(pixels, output),
        operators=operators,
    )


class _Worker:
    """A subprocess that has opened a file, and runs it on request.

    Attributes:
        facts: Name, card, threads, inputs and outputs of the runtime.
    """

    def __init__(self, request: dict[str, Any], seconds: float) -> None:
        self._seconds = seconds
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=child_environment(hide_gpus=True),
        )
        # Not at exit: then the pipe ends, and a fork must not end its parent's.
        weakref.finalize(self, _end, self._process).atexit = False
        self.facts = self.ask(request)[0]

    def run(self, pixels: NDArray[Any], output: str) -> NDArray[Any]:
        header, content = self.ask({"output": output, **_described(pixels)}, pixels)
        return _array(header, content)

    def ask(self, header: dict[str, Any], body: Any = b"") -> _Message:
        """Send a request and return the reply.

        Raises:
            ReszooError: As raised in the subprocess.
            SubprocessError: It crashed, or took too long.
        """
        process, stopped = self._process, threading.Event()

        def stop() -> None:
            stopped.set()
            process.kill()

        timer = threading.Timer(self._seconds, stop)
        timer.start()
        try:
            _send(self._process.stdin, header, body)
            reply, content = _receive(self._process.stdout)
        except (OSError, EOFError, ValueError) as error:
            self._process.kill()
            status = exit_status(self._process.wait())
            reason = f"its runtime crashed ({status})"
            if stopped.is_set():
                reason = f"it did not finish within {self._seconds:g} seconds"
            raise SubprocessError(reason) from error
        finally:
            timer.cancel()
        if "error" in reply:
            raise errors.named(str(reply["error"]), str(reply["message"]))
        return reply, content


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


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


def main() -> None:
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
                runtime = _open(header)
                _send(replies, _facts(runtime))
            elif "operators" in header:
                _send(replies, {"operators": dict(runtime.operators)})
            else:
                found = runtime.call(_array(header, content), str(header["output"]))
                _send(replies, _described(found), np.ascontiguousarray(found))
        except ReszooError as error:
            _send(replies, {"error": type(error).__name__, "message": str(error)})
        except MemoryError:
            message = "It takes more memory than a file of its size may."
            _send(replies, {"error": CheckpointError.__name__, "message": message})


def _open(header: dict[str, Any]) -> Runtime:
    path = Path(header.pop("path"))
    limits = limits_for(path, _SECONDS)
    set_limits(limits, final=False)
    runtime = open_runtime(path, **header)
    size = runtime.card.preprocessing.eval_size
    set_limits(limits_for(path, _SECONDS, pixels=size * size))
    return runtime


def _facts(runtime: Runtime) -> dict[str, Any]:
    return {
        "name": runtime.name,
        "card": runtime.card.to_text(),
        "threads": runtime.threads,
        "inputs": runtime.inputs,
        "outputs": runtime.outputs,
    }


if __name__ == "__main__":
    main()
