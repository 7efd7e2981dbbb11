"""Console output: progress, tables, JSON; TensorFlow's messages are suppressed."""

import importlib.util
import json
import logging
import os
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Literal, TextIO

from reszoo.errors import printable as printable

_NOISY_LOGGERS = ("tensorflow", "absl", "tf2onnx")
_NOISY_MODULES = r"(tensorflow|keras|tf2onnx|onnx|numpy|google|absl|h5py|PIL)\b"
# Seconds between lines of progress where there is no terminal.
_LINES_EVERY = 10.0
_own_process = False
_terminal: TextIO | None = None


def enable_quiet_cli() -> None:
    """Let `quiet` redirect the error stream, and import TensorFlow silently.

    For processes that are ours alone: the command line and its subprocesses. In any
    other process the error stream belongs to the program that imported reszoo, whose
    threads may write to it at any time.

    TensorFlow 2.21 logs from C++ while it is imported and while it looks for devices,
    and no longer honours TF_CPP_MIN_LOG_LEVEL there.
    """
    global _own_process, _terminal
    if _own_process:
        return
    _own_process = True
    _terminal = os.fdopen(os.dup(2), "w", errors="backslashreplace")
    if "tensorflow" not in sys.modules:
        sys.meta_path.insert(0, _QuietFinder())


@contextmanager
def quiet(*, show: bool = True) -> Iterator[None]:
    """Suppress the warnings and log messages of TensorFlow, converters and decoders.

    On our own command line also what they write to the error stream from C++, unless
    the body fails (then it is shown, if `show`). In a library the stream stays as it
    is.
    """
    with _held_stderr(show) if _own_process else nullcontext(), _LIBRARY_NOISE:
        yield


def end_quietly() -> None:
    """On our own command line, drop what C++ writes to the error stream, for good."""
    if _own_process and _terminal:
        sys.stderr.flush()
        sys.stderr = _terminal
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


@contextmanager
def _held_stderr(show: bool) -> Iterator[None]:
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except Exception:
            if show:
                held.seek(0)
                os.write(kept, held.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)


class _LibraryNoise:
    """Ignores warnings and log messages of the libraries that reszoo calls.

    Filters belong to the whole process: the first of several threads sets them, the
    last one restores them.
    """

    def __init__(self) -> None:
        self._lock, self._users, self._filters = threading.Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._filters.enter_context(warnings.catch_warnings())
                warnings.filterwarnings("ignore", module=_NOISY_MODULES)
                for logger in map(logging.getLogger, _NOISY_LOGGERS):
                    self._filters.callback(logger.setLevel, logger.level)
                    logger.setLevel(max(logger.level, logging.ERROR))

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                self._filters.close()


_LIBRARY_NOISE = _LibraryNoise()


class _QuietFinder:
    """Finds `tensorflow` as everybody does, once, and silences its loading."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_quietly(module: ModuleType) -> None:
            with _held_stderr(show=True):
                load(module)
                module.config.list_physical_devices()
            logging.getLogger("tensorflow").setLevel(logging.ERROR)

        spec.loader.exec_module = load_quietly  # type: ignore[method-assign]
        return spec


def say(text: str) -> None:
    """Print one line of progress on the error stream; line breaks are escaped."""
    print_text(printable(text), sys.stderr)


class Progress:
    """A progress bar of so many steps on a terminal; a context manager.

    Where there is no terminal, `lines` prints a line every ten seconds.
    """

    def __init__(
        self,
        what: str,
        total: int,
        done: int = 0,
        *,
        shown: bool = True,
        lines: bool = False,
    ) -> None:
        self._what, self._total, self._done = what, total, done
        # The terminal, for `quiet` may hold back what is written to sys.stderr.
        stream = _terminal or sys.stderr
        terminal = getattr(stream, "isatty", bool)()
        self._bar: Any = None
        if shown and terminal and importlib.util.find_spec("rich"):
            from rich import progress
            from rich.console import Console

            self._bar = progress.Progress(
                "{task.description}", progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TimeRemainingColumn(compact=True), "{task.fields[note]}",
                console=Console(file=stream), transient=True,
            )  # fmt: skip
            self._task = self._bar.add_task(what, total=total, completed=done, note="")
        self._lines = lines and not terminal
        self._due = time.monotonic() + _LINES_EVERY

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Advance by `steps` and show a note behind the bar."""
        self._done += steps
        if self._bar:
            self._bar.update(self._task, advance=steps, note=note)
        if self._lines and time.monotonic() >= self._due:
            self._due = time.monotonic() + _LINES_EVERY
            counted = f"{self._done:,.0f} of {self._total:,.0f}"
            say(", ".join(filter(None, [f"{self._what}: {counted}", note])))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on the output stream; the first column is text, others numbers."""
    cells = [[_encodable(printable(each), sys.stdout) for each in row] for row in rows]
    if not importlib.util.find_spec("rich"):
        print(*map("  ".join, [columns, *cells]), sep="\n")
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for n, column in enumerate(columns):
        side: Literal["right", "left"] = "right" if n else "left"
        table.add_column(column, justify=side, no_wrap=bool(n), overflow="fold")
    for row in cells:
        table.add_row(*row)
    console = Console(emoji=False)
    # In a pipe rich assumes 80 columns and would truncate names.
    console.width = max(console.width, 120)
    console.print(table, markup=False)


def print_text(text: str, file: TextIO | None = None) -> None:
    """Print lines, each `printable`, on the output stream unless `file` is given.

    Foreign text of which a line is made must be `printable` before: a line break in it
    would begin a line of its own. Characters that the stream's encoding lacks are
    escaped, never a UnicodeEncodeError.
    """
    stream = file or sys.stdout
    lines = (_encodable(printable(line), stream) for line in text.split("\n"))
    print("\n".join(lines), file=stream, flush=True)


def print_json(content: Any) -> None:
    """Print JSON on the output stream."""
    print(json_text(content))


def json_text(content: Any) -> str:
    """Return indented JSON that the output stream's encoding holds and shows as it is.

    Where the encoding lacks a character, it is ASCII. Characters that a terminal obeys,
    and lone surrogates, become JSON's own escapes.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    if _encodable(text, sys.stdout) != text:
        text = json.dumps(content, indent=2, allow_nan=False)
    # Only strings contain such characters, besides the line breaks of the layout.
    shown = (c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)
    # DEL is ASCII.
    return "".join(shown).replace("\x7f", r"\u007f")


def _encodable(text: str, stream: TextIO) -> str:
    """Return text with escapes for what the encoding of a stream lacks."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
