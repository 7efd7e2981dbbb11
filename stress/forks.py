"""Processes forked from this one, which has loaded the libraries and not used them.

TensorFlow can be forked until its first operation; each process starts its own threads.
"""

import gc
import importlib
import json
import os
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

# Of processes whose parent is gone; they look for it at once.
_GRACE = 10.0


def load() -> None:
    """Load what forked processes use, and use nothing of it."""
    import onnxruntime  # noqa: F401
    import tensorflow  # noqa: F401

    for name in (
        "reszoo.training.trainer",
        "reszoo_export.batch",
        "reszoo_export.export",
    ):
        importlib.import_module(name)


def note_modules(file: Path) -> None:
    """Write the names of the modules that this process has loaded."""
    file.write_text(json.dumps([*sys.modules]))


def load_modules(file: Path) -> None:
    """Load what another process needed, so that later ones need not."""
    for name in json.loads(file.read_text()):
        if name not in sys.modules:
            # Some names are of no module, or of one that is made while running.
            with suppress(Exception):
                importlib.import_module(name)
    # Else the collector of every process would copy all memory that they share.
    gc.collect()
    gc.freeze()


class Fork:
    """A function in a forked process, in a session of its own.

    Args:
        function: What it does. An exception is the exit code 1 (`ReszooError`: its
            own; Ctrl-C: 130) and printed.
        folder: Its working directory.
        log: Where its outputs go.
        output: A descriptor for its standard output instead.
    """

    def __init__(
        self,
        function: Callable[[], object],
        folder: Path,
        log: Path,
        output: int | None = None,
    ) -> None:
        self.log, self.returncode = log, 0
        with warnings.catch_warnings():
            # Of Python 3.12, about threads; here they sleep.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if not self.pid:
            code = 1
            try:
                self._enter(folder, output)
                code = _call(function)
            finally:
                os._exit(code)
        self._handle = os.pidfd_open(self.pid)

    def _enter(self, folder: Path, output: int | None) -> None:
        os.setsid()
        # A shell has its background jobs ignore it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(descriptor if output is None else output, 1)
        os.dup2(descriptor, 2)
        os.chdir(folder)

    def wait(self, seconds: float) -> int | None:
        """Return the exit code, as `subprocess` has it; end it after some seconds.

        None is the code of a process that did not end by itself.
        """
        ended = bool(select.select([self._handle], [], [], seconds)[0])
        if not ended:
            os.kill(self.pid, signal.SIGKILL)
        os.close(self._handle)
        status = os.waitpid(self.pid, 0)[1]
        return os.waitstatus_to_exitcode(status) if ended else None

    def succeed(self, seconds: float) -> None:
        """Wait for it; a RuntimeError unless it ended by itself with the code 0."""
        if (code := self.wait(seconds)) != 0:
            ended = f"no end in {seconds:g} s" if code is None else f"exit {code}"
            raise RuntimeError(f"{ended}: {self.printed()}")

    def printed(self) -> str:
        """Return what it printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def alive(self) -> list[str]:
        """Return the processes of its session that still run after a moment."""
        end = time.perf_counter() + _GRACE
        while (found := _members(self.pid)) and time.perf_counter() < end:
            time.sleep(0.02)
        return [f"process {pid} still runs: {words}" for pid, words in found]


def say(*words: object) -> None:
    """Write a line of JSON for `watched` at once."""
    os.write(1, json.dumps(words).encode() + b"\n")


def watched(
    function: Callable[[], object],
    folder: Path,
    log: Path,
    seconds: float,
    later: float | None = None,
) -> Iterator[list[Any]]:
    """Yield the lines that a forked process says, of JSON.

    The last is ["hung"] where it said nothing for some seconds (`later` is after its
    first line) and was ended, else ["ended", code, what it printed].
    """
    reading, writing = os.pipe()
    fork, rest, ended = Fork(function, folder, log, writing), b"", False
    os.close(writing)
    try:
        while not ended:
            if not select.select([reading], [], [], seconds)[0]:
                yield ["hung"]
                return
            data = os.read(reading, 2**16)
            ended = not data
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                yield json.loads(line)
            seconds = later or seconds
        yield ["ended", fork.wait(seconds), fork.printed()[-300:]]
    finally:
        os.close(reading)
        if not ended:
            fork.wait(0)


def _call(function: Callable[[], object]) -> int:
    from reszoo.errors import ReszooError

    try:
        function()
        return 0
    except ReszooError as error:
        os.write(2, f"reszoo: {error}\n".encode(errors="replace"))
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except SystemExit as error:
        return int(error.code or 0)
    except BaseException:
        os.write(2, traceback.format_exc().encode(errors="replace"))
        return 1


def _members(session: int) -> list[tuple[int, str]]:
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            fields = (place / "stat").read_text().rpartition(")")[2].split()
            command = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (OSError, UnicodeDecodeError):
            continue
        # A zombie waits to be buried and does nothing.
        if int(fields[3]) == session and fields[0] != "Z":
            found.append((int(place.name), command[-200:]))
    return found
