"""Check a data set before training: `reszoo.scan` and its report."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from reszoo.console import printable
from reszoo.data.checks import Duplicates, find_duplicates, relative
from reszoo.data.image_facts import ANOMALIES, examine
from reszoo.data.listing import Unreadable, list_images

# Paths that are shown of a kind, occurrences of an image, and classes of a split.
_PATHS, _OCCURRENCES, _CLASSES = 10, 3, 6


@dataclass(frozen=True, kw_only=True)
class ScanReport:
    """What a scan found.

    Attributes:
        data: What was scanned.
        root: The folder that paths in the report are relative to.
        labels: Sorted by code point.
        counts: Readable images of each class, in the order of the labels, by split.
        unreadable: Files that cannot be used, and why.
        recoverable: Paths of those that are truncated JPEGs and decode in part.
        anomalies: Readable but unusual files by kind, a key of `ANOMALIES`.
        leaks: Images in more than one split.
        conflicts: Images in more than one class.
        duplicates: Images more than once in a split, always in the same class.
        notes: How the data was understood, and what of it is not used; a line each.
    """

    data: str
    root: str
    labels: tuple[str, ...]
    counts: Mapping[str, tuple[int, ...]]
    unreadable: tuple[Unreadable, ...]
    recoverable: frozenset[str]
    anomalies: Mapping[str, tuple[str, ...]]
    leaks: tuple[Duplicates, ...]
    conflicts: tuple[Duplicates, ...]
    duplicates: tuple[Duplicates, ...]
    notes: tuple[str, ...] = ()

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
            "notes": [printable(note) for note in self.notes],
            "imbalance": round(self.imbalance, 2) if finite else None,
            "unreadable": [
                {
                    "path": printable(path),
                    "reason": reason,
                    "recoverable": path in self.recoverable,
                }
                for path, reason in self.unreadable
            ],
            **{
                kind: [
                    [
                        {key: printable(text) for key, text in each._asdict().items()}
                        for each in group.occurrences
                    ]
                    for group in getattr(self, kind)
                ]
                for kind in ("leaks", "conflicts", "duplicates")
            },
            "anomalies": {
                kind: [printable(path) for path in paths]
                for kind, paths in self.anomalies.items()
            },
        }

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> Iterator[str]:
        """Yield the report as text; lists are cut, and what to do comes last."""
        readable = sum(map(sum, self.counts.values()))
        images = _count(readable, "readable image")
        yield f"{printable(self.data)}: {images} in {len(self.labels)} classes"
        width = max(map(len, self.counts))
        for split, counts in self.counts.items():
            yield f"  {split:{width}} {sum(counts):9,}  {self._classes(counts)}"
        yield from (f"Note: {printable(note)}" for note in self.notes)
        if self.unreadable:
            yield f"Unreadable: {_count(len(self.unreadable), 'image')}"
            yield from _cut(
                f"{relative(self.root, path)}: {reason}"
                for path, reason in self.unreadable
            )
        for title, groups in (
            ("In more than one split", self.leaks),
            ("In more than one class", self.conflicts),
            ("Duplicates within a split", self.duplicates),
        ):
            if groups:
                yield f"{title}: {_count(len(groups), 'image')}"
                yield from _cut(map(self._occurrences, groups))
        if self.anomalies:
            yield "Anomalies (these images are used):"
        for kind, paths in self.anomalies.items():
            first = ", ".join(relative(self.root, p) for p in paths[:_OCCURRENCES])
            more = ", ..." if len(paths) > _OCCURRENCES else ""
            yield f"  {len(paths):,} {ANOMALIES[kind][0]} ({first}{more})"
        advice = list(self._advice())
        yield "To do:" if advice else "Nothing to do."
        yield from (f"  {line}" for line in advice)

    def _classes(self, counts: tuple[int, ...]) -> str:
        labelled = zip(map(printable, self.labels), counts, strict=True)
        texts = [f"{label} {count:,}" for label, count in labelled]
        if len(texts) <= _CLASSES:
            return ", ".join(texts)
        if min(counts) == max(counts):
            return f"{counts[0]:,} each"
        least, most = (counts.index(end(counts)) for end in (min, max))
        return f"from {texts[least]} to {texts[most]}"

    def _occurrences(self, group: Duplicates) -> str:
        shown = [
            f"{relative(self.root, path)} ({split}, {printable(label)})"
            for path, split, label in group.occurrences[:_OCCURRENCES]
        ]
        more = len(group.occurrences) - len(shown)
        return " = ".join(shown) + (f" and {more:,} more" if more else "")

    def _advice(self) -> Iterator[str]:
        if self.unreadable:
            yield (
                "Replace or remove unreadable images; or train without them: "
                '--bad-images skip (bad_images="skip").'
            )
        part = len(self.recoverable)
        if part:
            yield f"--bad-images recover would use {part:,} of these as far as they go."
        if self.leaks:
            yield (
                "Keep each image in one split: scores on training images are too high."
            )
        if self.conflicts:
            yield "Decide which class each image in several classes belongs to."
        if self.duplicates:
            yield "Remove duplicates, unless an image should count more than once."


def _cut(lines: Iterable[str]) -> Iterator[str]:
    remaining = iter(lines)
    for line in islice(remaining, _PATHS):
        yield f"  {line}"
    more = sum(1 for _ in remaining)
    if more:
        yield f"  and {more:,} more (all: --json)"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + "s" * (number != 1)


def scan(data: str | os.PathLike[str], *, progress: bool = True) -> ScanReport:
    """Decode every image of a data set once and report what is wrong or unusual.

    Nothing is changed. What was found about a file is cached under `RESZOO_HOME`, so
    that a second scan, or a training, opens only new and changed files.

    Args:
        data: A folder of class folders (or of `train`, `val`, `test` folders of
            these), or a `.csv` file that lists images.
        progress: Whether to show a bar on a terminal.

    Raises:
        DataError: The data has no images or fewer than two classes.
        UsageError: The data is of another kind.
    """
    listing = list_images(data)
    table = examine(listing.paths, progress=progress)
    recoverable = np.flatnonzero(table.rows["recoverable"]).tolist()
    groups = find_duplicates(listing, table)
    readable, classes = table.readable(), len(listing.labels)
    counts = {}
    for split, indices in listing.disjoint_splits.items():
        targets = listing.targets[indices[readable[indices]]]
        counts[split] = tuple(np.bincount(targets, minlength=classes).tolist())
    return ScanReport(
        data=os.fspath(data),
        root=listing.root,
        labels=listing.labels,
        counts=counts,
        unreadable=(*table.unreadable(), *listing.unsupported),
        recoverable=frozenset(table.names[index] for index in recoverable),
        anomalies=table.anomalies(),
        notes=listing.notes,
        leaks=tuple(group for group in groups if len(group.splits) > 1),
        conflicts=tuple(group for group in groups if len(group.labels) > 1),
        duplicates=tuple(
            group
            for group in groups
            if len(group.labels) == 1 and len(group.occurrences) > len(group.splits)
        ),
    )
