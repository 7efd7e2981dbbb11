"""Copies: files with the same pixels, within a split, across splits or classes."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from reszoo.data.facts import FactTable
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
