"""Scan a data set before training: bad, odd, doubled and leaking images."""

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reszoo.data.examine import examine
from reszoo.data.facts import FactTable, Rows
from reszoo.data.listing import Listing
from reszoo.data.scan_report import Group, Place, ScanReport
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
    entries = _Entries(listing, table)
    groups = list(entries.groups())
    return ScanReport(
        data=data,
        root=listing.root,
        class_names=listing.class_names,
        counts=entries.counts(),
        unusable=tuple(table[int(i)] for i in np.flatnonzero(~table.usable)),
        warnings=_warnings(table),
        leaks=tuple(group for group in groups if group.splits > 1),
        conflicts=tuple(group for group in groups if group.labels > 1),
        duplicates=tuple(
            group
            for group in groups
            if group.labels == 1 and len(group.places) > group.splits
        ),
    )


class _Entries:
    """The images of all splits in one row: where each is, and its label."""

    def __init__(self, listing: Listing, table: FactTable) -> None:
        # Where splits were drawn, "all" lists the same images once more.
        drawn = {name: f for name, f in listing.splits.items() if name != "all"}
        splits = drawn or listing.splits
        position = {path: index for index, path in enumerate(table.paths)}
        self._classes, self._splits = listing.class_names, tuple(splits)
        self._table = table
        self._at = np.asarray(
            [position[path] for files in splits.values() for path in files.paths],
            np.int64,
        )
        sizes = [len(files.paths) for files in splits.values()]
        self._split = np.repeat(np.arange(len(sizes)), sizes)
        self._label = np.concatenate([files.labels for files in splits.values()])

    def counts(self) -> dict[str, tuple[int, ...]]:
        """Return the number of usable images a class, by split."""
        usable = self._table.usable[self._at]
        counts = {}
        for number, name in enumerate(self._splits):
            labels = self._label[usable & (self._split == number)]
            found = np.bincount(labels, minlength=len(self._classes))
            counts[name] = tuple(found.tolist())
        return counts

    def groups(self) -> Iterator[Group]:
        """Yield the pictures that occur more than once."""
        usable = np.flatnonzero(self._table.usable[self._at])
        digests = self._table.rows["digest"][self._at[usable]]
        # A stable sort: within a group, the order of the listing.
        order = np.lexsort(digests.T)
        digests = digests[order]
        ends = np.flatnonzero((digests[1:] != digests[:-1]).any(1)) + 1
        starts = np.concatenate([[0], ends])
        lengths = np.diff(np.append(starts, len(order)))
        groups = [
            usable[order[start : start + length]]
            for start, length in zip(starts, lengths, strict=True)
            if length > 1
        ]
        for members in sorted(groups, key=lambda group: int(group[0])):
            yield Group(tuple(self._place(int(member)) for member in members))

    def _place(self, entry: int) -> Place:
        return Place(
            self._table.paths[self._at[entry]],
            self._splits[self._split[entry]],
            self._classes[self._label[entry]],
        )


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
