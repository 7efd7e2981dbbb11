"""Decode every image file once, in threads, and remember what was found."""

import contextlib
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reszoo.data import fact_cache
from reszoo.data.facts import ROW, FactTable
from reszoo.errors import ReszooError
from reszoo.progress import Progress, say
from reszoo.quiet import held_stderr

# Files that are handed to the threads at a time: what an interruption waits for.
_WAVE = 256


def examine(paths: Sequence[str], *, progress: bool = True) -> FactTable:
    """Find out what can be used, by decoding each file as training would.

    The facts are kept under `cache_folder()/scans`, in one file for the folder that
    all paths are in; a file whose size and time are as they were is not opened
    again. So ask for all splits of a data set in one call. An interrupted call keeps
    what it has.

    Args:
        paths: Image files. One that is missing is a fact as well.
        progress: Whether to show a bar on a terminal.

    Returns:
        The facts, in the order of `paths`.
    """
    if not paths:
        return FactTable(paths, np.zeros(0, ROW), [""])
    file = fact_cache.place(paths)
    before = fact_cache.recollect(file)
    rows = before.recall(fact_cache.keys_of(paths), *_sizes_and_times(paths))
    table = FactTable(paths, rows, list(before.problems))
    new = np.flatnonzero(rows["orientation"] == 0)
    if len(new):
        try:
            _look(table, new, progress)
        finally:
            _keep(file, before, table)
    return table


def _sizes_and_times(
    paths: Sequence[str],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    found = np.full((2, len(paths)), -1, np.int64)
    for index, path in enumerate(paths):
        with contextlib.suppress(OSError):
            status = Path(path).stat()
            found[:, index] = status.st_size, status.st_mtime_ns
    return found[0], found[1]


def _look(table: FactTable, new: NDArray[np.int64], progress: bool) -> None:
    # TensorFlow is loaded only where a file has to be decoded.
    from reszoo.data.inspection import inspect

    # Threads must not be the first to load Pillow's formats, each on its own; and the
    # common ones first, for they are tried in that order.
    Image.preinit()
    Image.init()
    with (
        _quietly(len(new), progress) as bar,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        for start in range(0, len(new), _WAVE):
            wave = new[start : start + _WAVE]
            found = pool.map(inspect, [table.paths[index] for index in wave])
            for index, facts in zip(wave, found, strict=True):
                table[index] = facts
            bar.advance(len(wave))


@contextlib.contextmanager
def _quietly(total: int, progress: bool) -> Iterator[Progress]:
    """Keep back what decoders print and warn of; the bar has a stream of its own."""
    own = os.dup(2) if progress else os.open(os.devnull, os.O_WRONLY)
    with (
        os.fdopen(own, "w") as stream,
        contextlib.redirect_stderr(stream),
        Progress("Looking at images", total) as bar,
        held_stderr(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield bar


def _keep(file: Path, before: fact_cache.Kept, table: FactTable) -> None:
    looked_at = table.rows[table.rows["orientation"] > 0]
    try:
        fact_cache.keep(file, before, looked_at, table.problems)
    except ReszooError as error:
        say(f"The next run will look at every image again: {error}")
