"""Show that long work goes on: a live bar on a terminal, plain lines elsewhere.

Everything goes to the error stream, so that results on the output stream can be
piped.
"""

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar


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
