"""Check a data set before training: `reszoo.scan` and its report."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reszoo.console import printable
from reszoo.data.duplicates import Entries, Group
from reszoo.data.image_checks import Facts, FactTable, Rows, examine
from reszoo.data.listing import Listing, why_unread
from reszoo.data.sources import NAMED, list_images
from reszoo.errors import UsageError

# Kind of warning -> what it means. Such images are used.
KINDS = {
    "misnamed": "named wrongly: the ending belongs to another format",
    "cmyk": "CMYK, for print: converted to RGB",
    "sixteen_bit": "16 bits a channel: the upper 8 are used",
    "transparent": "with transparency: it is dropped",
    "palette": "with a palette: converted to RGB",
    "animated": "animated: the first frame is used",
    "rotated": "rotated by EXIF: turned upright",
    "tiny": "under 32 pixels wide or high",
}
# Paths that are shown of a kind, and places of one picture, and classes of a split.
_PATHS, _PLACES, _CLASSES = 10, 3, 6


@dataclass(frozen=True, kw_only=True)
class ScanReport:
    """What a scan found.

    Attributes:
        data: What was scanned.
        root: The folder that lines tell paths against.
        labels: Sorted by code point.
        counts: Usable images of each class, in the order of the labels, by split.
        unreadable: Files that cannot be used.
        warnings: Usable files by kind, a key of `KINDS`.
        leaks: Pictures in more than one split.
        conflicts: Pictures in more than one class.
        duplicates: Pictures more than once in a split, always in the same class.
    """

    data: str
    root: str
    labels: tuple[str, ...]
    counts: Mapping[str, tuple[int, ...]]
    unreadable: tuple[Facts, ...]
    warnings: Mapping[str, tuple[str, ...]]
    leaks: tuple[Group, ...]
    conflicts: tuple[Group, ...]
    duplicates: tuple[Group, ...]

    @property
    def ok(self) -> bool:
        """Whether every image can be used and none is in two splits."""
        return not self.unreadable and not self.leaks

    @property
    def imbalance(self) -> float:
        """Training images of the largest class to those of the smallest.

        Infinite if a class has none.
        """
        counts = self.counts.get("train") or next(iter(self.counts.values()))
        return max(counts) / min(counts) if min(counts) else float("inf")

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON values, with all paths."""
        finite = self.imbalance != float("inf")
        return {
            "data": printable(self.data),
            "ok": self.ok,
            "splits": {
                split: dict(zip(map(printable, self.labels), found, strict=True))
                for split, found in self.counts.items()
            },
            "imbalance": round(self.imbalance, 2) if finite else None,
            "unreadable": [
                {
                    "path": printable(facts.path),
                    "reason": facts.problem,
                    "recoverable": facts.recoverable,
                }
                for facts in self.unreadable
            ],
            "leaks": _groups_json(self.leaks),
            "conflicts": _groups_json(self.conflicts),
            "duplicates": _groups_json(self.duplicates),
            "warnings": {
                kind: [printable(path) for path in paths]
                for kind, paths in self.warnings.items()
            },
        }

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> Iterator[str]:
        """Yield the report for people; lists are cut, and what to do comes last."""
        yield from self._summary()
        yield from self._unreadable()
        yield from self._groups("In more than one split", self.leaks)
        yield from self._groups("In more than one class", self.conflicts)
        yield from self._groups("More than once", self.duplicates)
        yield from self._warnings()
        yield from self._advice()

    def _summary(self) -> Iterator[str]:
        usable = sum(map(sum, self.counts.values()))
        images = _count(usable, "usable image")
        yield f"{printable(self.data)}: {images} in {len(self.labels)} classes"
        width = max(map(len, self.counts))
        for split, counts in self.counts.items():
            yield f"  {split:{width}} {sum(counts):9,}  {self._classes(counts)}"

    def _classes(self, counts: tuple[int, ...]) -> str:
        named = zip(map(printable, self.labels), counts, strict=True)
        told = [f"{name} {count:,}" for name, count in named]
        if len(told) <= _CLASSES:
            return ", ".join(told)
        if min(counts) == max(counts):
            return f"{counts[0]:,} each"
        least, most = (counts.index(end(counts)) for end in (min, max))
        return f"from {told[least]} to {told[most]}"

    def _unreadable(self) -> Iterator[str]:
        if self.unreadable:
            yield f"Cannot be used: {_count(len(self.unreadable), 'image')}"
            yield from _cut(
                f"{self._short(facts.path)}: {facts.problem}"
                for facts in self.unreadable
            )

    def _groups(self, title: str, groups: tuple[Group, ...]) -> Iterator[str]:
        if groups:
            yield f"{title}: {_count(len(groups), 'picture')}"
            yield from _cut(map(self._group, groups))

    def _group(self, group: Group) -> str:
        shown = [
            f"{self._short(place.path)} ({place.split}, {printable(place.label)})"
            for place in group.places[:_PLACES]
        ]
        more = len(group.places) - len(shown)
        return " = ".join(shown) + (f" and {more:,} more" if more else "")

    def _warnings(self) -> Iterator[str]:
        if self.warnings:
            yield "Worth knowing, though all of these are used:"
        for kind, paths in self.warnings.items():
            first = ", ".join(self._short(path) for path in paths[:_PLACES])
            more = ", ..." if len(paths) > _PLACES else ""
            yield f"  {len(paths):,} {KINDS[kind]} ({first}{more})"

    def _advice(self) -> Iterator[str]:
        todo = list(self._todo())
        yield "To do:" if todo else "Nothing to do."
        yield from (f"  {line}" for line in todo)

    def _todo(self) -> Iterator[str]:
        if self.unreadable:
            yield (
                "Replace what cannot be used or take it out; or train without it: "
                '--bad-images skip (bad_images="skip").'
            )
        part = sum(facts.recoverable for facts in self.unreadable)
        if part:
            yield f"--bad-images recover would use {part:,} of these as far as they go."
        if self.leaks:
            yield "Keep each picture in one split: scores on training pictures mislead."
        if self.conflicts:
            yield "Decide which class each picture in several classes belongs to."
        if self.duplicates:
            yield "Remove copies, unless a picture is meant to count more than once."

    def _short(self, path: str) -> str:
        return printable(path.removeprefix(f"{self.root}{os.sep}"))


def _cut(lines: Iterable[str]) -> Iterator[str]:
    remaining = iter(lines)
    for line in islice(remaining, _PATHS):
        yield f"  {line}"
    more = sum(1 for _ in remaining)
    if more:
        yield f"  and {more:,} more (all: --json)"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + "s" * (number != 1)


def _groups_json(groups: Iterable[Group]) -> list[list[dict[str, str]]]:
    return [
        [
            {name: printable(text) for name, text in place._asdict().items()}
            for place in group.places
        ]
        for group in groups
    ]


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
        labels=listing.labels,
        counts=entries.counts(),
        unreadable=tuple(_unreadable(listing, table)),
        warnings=_warnings(table),
        leaks=tuple(group for group in groups if group.splits > 1),
        conflicts=tuple(group for group in groups if group.labels > 1),
        duplicates=tuple(
            group
            for group in groups
            if group.labels == 1 and len(group.places) > group.splits
        ),
    )


def _unreadable(listing: Listing, table: FactTable) -> Iterator[Facts]:
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
