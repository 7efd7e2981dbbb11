"""Dataset checks: images that cannot be used, duplicates, and the report of a scan."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from reszoo.console import printable
from reszoo.data.examples import HEADER, Examples
from reszoo.data.image_facts import ANOMALIES, HARMLESS, FactTable, examine
from reszoo.data.listing import Listing, Unreadable, list_images
from reszoo.data.splits import check_counts
from reszoo.errors import DataError, known
from reszoo.files import StrPath
from reszoo.report.page import render

# What to do about unreadable images: see `reszoo.data.sources.open_source`.
POLICIES = ("error", "skip", "recover")
# What a report shows: paths of a kind, occurrences of an image, classes of a split.
_PATHS, _OCCURRENCES, _CLASSES = 10, 3, 6


def check_policy(policy: str | None) -> None:
    """Refuse a policy that is none of `POLICIES`, nor None."""
    if policy is not None:
        known("policy for bad images", policy, POLICIES)


def refuse_first(unreadable: Sequence[Unreadable], policy: str) -> None:
    """Raise an error for the first unreadable image if the policy is "error".

    A DataError names the image, the reason and the remedy.
    """
    if policy == "error" and unreadable:
        path, reason = unreadable[0]
        raise DataError(
            f"{path} cannot be used ({reason}). Replace it or remove it, or continue "
            'without such images: bad_images="skip" (--bad-images skip).'
        )


def check(
    listing: Listing, policy: str | None
) -> tuple[dict[str, Examples], tuple[Unreadable, ...], tuple[str, ...]]:
    """Turn listed images into examples and treat bad ones by a policy.

    Splits were drawn before, so that what is skipped moves no image from one split to
    another. The policy is a row of `POLICIES`; None reads headers only, and refuses a
    bad one; it looks for no duplicates, and ignores unsupported files.

    Returns examples by split, what was left out, and warnings of anomalies and
    duplicates. A DataError names an image that cannot be used, or a class of which too
    few are left.
    """
    examples, splits = listing.examples, listing.splits
    if policy is None:
        return examples.read_headers().split(splits), (), ()
    refuse_first(listing.unsupported, policy)
    table, recover = examine(examples.encoded), policy == "recover"
    unreadable = table.unreadable(recover=recover)
    refuse_first(unreadable, policy)
    readable = table.readable(recover=recover)
    splits = {name: part[readable[part]] for name, part in splits.items()}
    for split, part in splits.items() if unreadable else ():
        if split == "train":
            targets = listing.targets[part]
            check_counts(targets, listing.labels, 1, "the readable images")
        elif not len(part):
            count = f"{len(listing.splits[split]):,}"
            where, remedy = f"the {split} split", " or remove the split"
            if split == "all":
                where, remedy = listing.root or "the data", ""
            raise DataError(
                f"No image of {where} is readable, of {count}. Replace them{remedy}; "
                "`reszoo scan` lists the reasons."
            )
    warnings = leak_warnings(listing, table) if listing.paths else []
    for kind, names in table.anomalies(recover=recover).items():
        # What a scan says, unless it changes no content.
        if kind not in HARMLESS:
            what, first = ANOMALIES[kind][0], relative(listing.root, names[0])
            warnings.append(f"{len(names):,} images: {what}, e.g. {first}")
    # Fields are assigned by their place.
    headers = table.rows[list(HEADER.names or ())].astype(HEADER)
    found = replace(examples, headers=headers, recover=recover).split(splits)
    return found, (*listing.unsupported, *unreadable), tuple(warnings)


def find_unreadable(examples: Examples) -> DataError | None:
    """Return an error that names the first image that cannot be decoded or changed.

    TensorFlow's own message gives the reason but not the file.
    """
    table = examine(examples.encoded, progress=False)
    for name, reason in table.unreadable(recover=examples.recover):
        return DataError(
            f"{name} is not a readable image ({reason}). "
            "Replace the file or remove it from the data."
        )
    if examples.headers is None:
        return None
    before, now = examples.headers[["width", "height"]], table.rows[["width", "height"]]
    for index in np.flatnonzero(before != now.astype(before.dtype)):
        width, height = before[index]
        return DataError(
            f"{examples.name(int(index))} no longer has {width} x {height} pixels. "
            "Images must not change while they are in use. Start again or resume."
        )
    return None


class Occurrence(NamedTuple):
    """One occurrence of a duplicate image: its file, split and label."""

    path: str
    split: str
    label: str


class Duplicates(NamedTuple):
    """Files with the same pixels."""

    occurrences: tuple[Occurrence, ...]

    @property
    def splits(self) -> set[str]:
        """The splits that the image is in."""
        return {occurrence.split for occurrence in self.occurrences}

    @property
    def labels(self) -> set[str]:
        """The labels that the image has."""
        return {occurrence.label for occurrence in self.occurrences}


def find_duplicates(listing: Listing, table: FactTable) -> list[Duplicates]:
    """Return the images that occur more than once, in the order of the splits."""
    parts = listing.disjoint_splits
    images = np.concatenate(list(parts.values()))
    splits = np.repeat(list(parts), list(map(len, parts.values())))
    readable = table.readable()[images]
    images, splits = images[readable], splits[readable]
    digests = table.rows["digest"][images]
    found = np.unique(digests, axis=0, return_inverse=True, return_counts=True)
    # NumPy 2.0 has another shape of the inverse.
    numbers, counts = found[1].ravel(), found[2]
    groups: dict[int, list[Occurrence]] = {}
    for place in np.flatnonzero(counts[numbers] > 1):
        path, target = listing.paths[images[place]], listing.targets[images[place]]
        occurrence = Occurrence(path, str(splits[place]), listing.labels[target])
        groups.setdefault(int(numbers[place]), []).append(occurrence)
    return [Duplicates(tuple(group)) for group in groups.values()]


def leak_warnings(listing: Listing, table: FactTable) -> list[str]:
    """Return a line for every two splits that share images, and one for classes.

    Such as "2 images are in both train and test, e.g. train/a.jpg = test/b.jpg".
    """
    shared: dict[str, list[tuple[Occurrence, Occurrence]]] = {}
    for group in find_duplicates(listing, table):
        for first, second in _firsts(group, "split"):
            splits = f"both {first.split} and {second.split}"
            shared.setdefault(splits, []).append((first, second))
        for pair in _firsts(group, "label")[:1]:
            shared.setdefault("more than one class", []).append(pair)
    return [
        f"{len(pairs):,} {'image is' if len(pairs) == 1 else 'images are'} in {where}, "
        f"e.g. {' = '.join(relative(listing.root, each.path) for each in pairs[0])}"
        for where, pairs in shared.items()
    ]


def _firsts(group: Duplicates, field: str) -> list[tuple[Occurrence, Occurrence]]:
    """Return the first occurrences in every two splits, or in every two classes."""
    firsts: dict[str, Occurrence] = {}
    for occurrence in group.occurrences:
        firsts.setdefault(getattr(occurrence, field), occurrence)
    return list(combinations(firsts.values(), 2))


def relative(root: str, path: str) -> str:
    """Return a path relative to the data's folder, printable."""
    return printable(path.removeprefix(f"{root}{os.sep}"))


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
        counts = self.counts.items()
        found: dict[str, Any] = {
            "data": self.data,
            "ok": self.ok,
            "splits": {s: dict(zip(self.labels, n, strict=True)) for s, n in counts},
            "notes": self.notes,
            "imbalance": round(self.imbalance, 2) if finite else None,
            "unreadable": [
                {**each._asdict(), "recoverable": each.path in self.recoverable}
                for each in self.unreadable
            ],
        }
        for kind in _TITLES:
            groups = (group.occurrences for group in getattr(self, kind))
            found[kind] = [[each._asdict() for each in group] for group in groups]
        shown: dict[str, Any] = _shown({**found, "anomalies": self.anomalies})
        return shown

    def __str__(self) -> str:
        repeated = [(title, getattr(self, kind)) for kind, title in _TITLES.items()]
        return render(
            "scan_text.j2", report=self, repeated=repeated, anomalies=ANOMALIES,
            classes=self._classes, relative=partial(relative, self.root), most=_PATHS,
            shown=_OCCURRENCES,
        )  # fmt: skip

    def _classes(self, counts: tuple[int, ...]) -> str:
        labelled = zip(map(printable, self.labels), counts, strict=True)
        texts = [f"{label} {count:,}" for label, count in labelled]
        if len(texts) <= _CLASSES:
            return ", ".join(texts)
        if min(counts) == max(counts):
            return f"{counts[0]:,} each"
        least, most = (counts.index(end(counts)) for end in (min, max))
        return f"from {texts[least]} to {texts[most]}"


_TITLES = {
    "leaks": "In more than one split",
    "conflicts": "In more than one class",
    "duplicates": "Duplicates within a split",
}


def _shown(value: Any) -> Any:
    """Return plain JSON values whose texts are printable."""
    if isinstance(value, Mapping):
        return {printable(key): _shown(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [*map(_shown, value)]
    return printable(value) if isinstance(value, str) else value


def scan(data: StrPath, *, progress: bool = True) -> ScanReport:
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
    same_class = (group for group in groups if len(group.labels) == 1)
    return ScanReport(
        data=os.fspath(data), root=listing.root, labels=listing.labels, counts=counts,
        unreadable=(*table.unreadable(), *listing.unsupported),
        recoverable=frozenset(table.names[index] for index in recoverable),
        anomalies=table.anomalies(), notes=listing.notes,
        leaks=tuple(group for group in groups if len(group.splits) > 1),
        conflicts=tuple(group for group in groups if len(group.labels) > 1),
        duplicates=tuple(g for g in same_class if len(g.occurrences) > len(g.splits)),
    )  # fmt: skip
