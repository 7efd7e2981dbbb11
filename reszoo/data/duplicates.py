"""Find duplicate images within and across splits and classes."""

import os
from collections.abc import Iterator
from itertools import combinations
from typing import NamedTuple

import numpy as np

from reszoo.console import printable
from reszoo.data.image_checks import FactTable
from reszoo.data.listing import Listing


class Place(NamedTuple):
    """One occurrence of a picture: its file, split and class."""

    path: str
    split: str
    label: str


class Group(NamedTuple):
    """The occurrences of one picture: files with the same pixels."""

    places: tuple[Place, ...]

    @property
    def splits(self) -> int:
        """Number of splits that it is in."""
        return len({place.split for place in self.places})

    @property
    def labels(self) -> int:
        """Number of classes that it is in."""
        return len({place.label for place in self.places})


class Entries:
    """The images of all splits in one row: where each is, and its label."""

    def __init__(self, listing: Listing, table: FactTable) -> None:
        # Where splits were drawn, "all" lists the same images once more.
        drawn = {name: f for name, f in listing.splits.items() if name != "all"}
        splits = drawn or listing.splits
        position = {path: index for index, path in enumerate(table.paths)}
        self._classes, self._splits = listing.labels, tuple(splits)
        self._table = table
        self._at = np.asarray(
            [position[path] for files in splits.values() for path in files.paths],
            np.int64,
        )
        sizes = [len(files.paths) for files in splits.values()]
        self._split = np.repeat(np.arange(len(sizes)), sizes)
        self._label = np.concatenate([files.targets for files in splits.values()])

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
        more = lengths > 1
        groups = [
            usable[order[start : start + length]]
            for start, length in zip(starts[more], lengths[more], strict=True)
        ]
        for members in sorted(groups, key=lambda group: int(group[0])):
            yield Group(tuple(self._place(int(member)) for member in members))

    def _place(self, entry: int) -> Place:
        return Place(
            self._table.paths[self._at[entry]],
            self._splits[self._split[entry]],
            self._classes[self._label[entry]],
        )


_Pair = tuple[Place, Place]


def leak_warnings(listing: Listing, table: FactTable) -> tuple[str, ...]:
    """Return a line for every two splits that share pictures, and one for classes.

    Args:
        listing: Image files by split.
        table: The facts about `listing.paths`.

    Returns:
        Such as "2 pictures are in both train and test, e.g. train/a.jpg = test/b.jpg".
    """
    shared: dict[str, list[_Pair]] = {}
    for group in Entries(listing, table).groups():
        for first, second in _across(group, "split"):
            splits = f"both {first.split} and {second.split}"
            shared.setdefault(splits, []).append((first, second))
        for pair in _across(group, "label")[:1]:
            shared.setdefault("more than one class", []).append(pair)
    return tuple(_line(where, pairs, listing.root) for where, pairs in shared.items())


def _across(group: Group, field: str) -> list[_Pair]:
    """Return the first places of every two splits, or of every two classes."""
    firsts: dict[str, Place] = {}
    for place in group.places:
        firsts.setdefault(getattr(place, field), place)
    return list(combinations(firsts.values(), 2))


def _line(where: str, pairs: list[_Pair], root: str) -> str:
    names = (printable(p.path.removeprefix(f"{root}{os.sep}")) for p in pairs[0])
    are = "picture is" if len(pairs) == 1 else "pictures are"
    return f"{len(pairs):,} {are} in {where}, e.g. {' = '.join(names)}"
