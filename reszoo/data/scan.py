"""Scan a data set before training: bad, odd, doubled and leaking images."""

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reszoo.data.copies import Entries
from reszoo.data.examine import examine
from reszoo.data.facts import Facts, FactTable, Rows
from reszoo.data.listing import Listing, why_unread
from reszoo.data.scan_report import ScanReport
from reszoo.data.sources import NAMED, list_images
from reszoo.errors import UsageError

# The smallest input of any net in the zoo (CIFAR): smaller images are blown up.
_TINY = 32
Mask = NDArray[np.bool_]


def scan(data: str | os.PathLike[str], *, progress: bool = True) -> ScanReport:
    """Decode every image of a data set once and tell what training should know.

    Nothing is changed. What was found about a file is remembered under
    `RESZOO_HOME`, so that a second scan, or a training, opens only new and changed
    files.

    Args:
        data: A folder of class folders (or of `train`, `val`, `test` folders of
            these), or a `.csv` file that lists images.
        progress: Whether to show a bar on a terminal.

    Raises:
        DataError: The data has no images or fewer than two classes.
        UsageError: The data is of another kind.
    """
    if not isinstance(data, str | os.PathLike) or os.fspath(data) in NAMED:
        raise UsageError(
            "What can be scanned is a folder of images or a .csv file that lists "
            f"images. Received: {data if isinstance(data, str) else type(data)!r}."
        )
    listing = list_images(data)
    table = examine(listing.paths, progress=progress)
    return _report(os.fspath(data), listing, table)


def _report(data: str, listing: Listing, table: FactTable) -> ScanReport:
    entries = Entries(listing, table)
    groups = list(entries.groups())
    return ScanReport(
        data=data,
        root=listing.root,
        class_names=listing.class_names,
        counts=entries.counts(),
        unusable=tuple(_unusable(listing, table)),
        warnings=_warnings(table),
        leaks=tuple(group for group in groups if group.splits > 1),
        conflicts=tuple(group for group in groups if group.labels > 1),
        duplicates=tuple(
            group
            for group in groups
            if group.labels == 1 and len(group.places) > group.splits
        ),
    )


def _unusable(listing: Listing, table: FactTable) -> Iterator[Facts]:
    for index in np.flatnonzero(~table.usable):
        yield table[int(index)]
    for path in listing.unread:
        yield Facts(path=path, problem=why_unread(path))


def _warnings(table: FactTable) -> dict[str, tuple[str, ...]]:
    found = {}
    for kind, has in _KINDS.items():
        indices = np.flatnonzero(table.usable & has(table.rows))
        if len(indices):
            found[kind] = tuple(table.paths[int(index)] for index in indices)
    return found


def _mode(fits: Callable[[str], bool]) -> Callable[[Rows], Mask]:
    def has(rows: Rows) -> Mask:
        fitting = [mode for mode in np.unique(rows["mode"]) if fits(mode.decode())]
        return np.isin(rows["mode"], np.asarray(fitting, rows["mode"].dtype))

    return has


# Kind -> which images are of it; `scan_report.KINDS` tells what it means.
_KINDS: Mapping[str, Callable[[Rows], Any]] = {
    "misnamed": lambda rows: rows["misnamed"],
    "cmyk": _mode(lambda mode: mode == "CMYK"),
    "sixteen_bit": _mode(lambda mode: mode.endswith(";16")),
    "transparent": _mode(lambda mode: mode.removesuffix(";16").upper().endswith("A")),
    "palette": _mode(lambda mode: mode.startswith("P")),
    # The second picture of an MPO is a camera's other eye, or a map of brightness.
    "animated": lambda rows: (rows["frames"] > 1) & (rows["format"] != b"MPO"),
    "rotated": lambda rows: rows["orientation"] > 1,
    "tiny": lambda rows: np.minimum(rows["width"], rows["height"]) < _TINY,
}
