"""Print results: a table for people, JSON for programs."""

import json
from collections.abc import Sequence
from typing import Any


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


def print_json(content: Any) -> None:
    """Print JSON on the output stream."""
    print(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))
