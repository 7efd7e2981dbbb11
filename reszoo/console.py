"""Console output: progress, tables, JSON, and TensorFlow's log noise kept away."""

import importlib.util
import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType, TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar


def quiet_tensorflow() -> None:
    """Have TensorFlow's first import say nothing, whoever imports it.

    TensorFlow 2.21 logs from C++ while it is imported and while it looks for
    devices, and no longer heeds TF_CPP_MIN_LOG_LEVEL there. Does nothing where
    TensorFlow is loaded already.
    """
    waiting = any(isinstance(finder, _QuietFinder) for finder in sys.meta_path)
    if "tensorflow" not in sys.modules and not waiting:
        sys.meta_path.insert(0, _QuietFinder())


@contextmanager
def held_stderr(show: bool = True) -> Iterator[None]:
    """Hold back what the process writes to its error stream, also from C++.

    Args:
        show: Whether to show it after all if the body fails.
    """
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


@contextmanager
def quiet_converters() -> Iterator[None]:
    """Hold back what converters print, log and warn, unless the body fails."""
    with held_stderr(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(max(before, logging.WARNING))
        try:
            yield
        finally:
            logging.disable(before)


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
            with held_stderr():
                load(module)
                module.config.list_physical_devices()
            logging.getLogger("tensorflow").setLevel(logging.ERROR)

        spec.loader.exec_module = load_quietly  # type: ignore[method-assign]
        return spec


def say(line: str) -> None:
    """Print one plain line of progress."""
    print(line, file=sys.stderr, flush=True)


class Progress:
    """A bar that lives while its body runs; nothing where there is no terminal.

    Args:
        what: What is being done, as shown before the bar.
        total: Number of steps.
        done: Steps done before.
    """

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        console = Console(file=sys.stderr)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(what, total=total, completed=done, note="")

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Move on by `steps`, with a note behind the bar."""
        self._bar.update(self._task, advance=steps, note=note)


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None
) -> None:
    """Print a table on the output stream; the first column is text, others numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(
            column,
            justify="right" if index else "left",
            no_wrap=bool(index),
            overflow="fold",
        )
    for row in rows:
        table.add_row(*row)
    console = Console(emoji=False)
    # In a pipe rich assumes 80 columns and would cut names off.
    console.width = max(console.width, 120)
    console.print(table, markup=False)


def printable(text: str) -> str:
    r"""Return a file name with bytes that are no UTF-8 written as `\xff`."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def print_json(content: Any) -> None:
    """Print JSON on the output stream."""
    print(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))
