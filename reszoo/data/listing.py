"""Listings: which image files there are and what is on them; none is opened."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reszoo.data.splits import hold_out
from reszoo.errors import DataError

_COUNTS = {1: "one image", 2: "two images"}


class Files(NamedTuple):
    """Image files and their labels, int64 `(n,)`."""

    paths: tuple[str, ...]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Listing:
    """Image files by split.

    Attributes:
        root: The folder that the names of images are told against.
        class_names: Names in label order: sorted by code point.
        splits: Files by name: "train", "validation", "test". Where the data has no
            splits, "train" and "validation" were drawn from "all", which is listed
            too.
        unread: Pictures of formats that are not read.
    """

    root: str
    class_names: tuple[str, ...]
    splits: Mapping[str, Files]
    unread: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """Every path once, whatever the number of splits it is in."""
        if "all" in self.splits:
            return self.splits["all"].paths
        every = chain.from_iterable(files.paths for files in self.splits.values())
        return tuple(dict.fromkeys(every))


def why_unread(path: str) -> str:
    """Return why a picture of `Listing.unread` cannot be used."""
    ending = Path(path).suffix.lower()
    return f"files ending in {ending} are not read; convert them to PNG or JPEG"


def with_held_out(files: Files) -> dict[str, Files]:
    """Return the files as "all", and the "train" and "validation" drawn from them."""
    parts = {
        name: Files(tuple(files.paths[i] for i in indices), files.labels[indices])
        for name, indices in hold_out(files.labels).items()
    }
    return {"all": files, **parts}


def check_counts(
    labels: NDArray[np.int64], class_names: Sequence[str], least: int, where: str
) -> None:
    """Refuse labels in which a class has too few images.

    Args:
        labels: int64 `(n,)`, indices into `class_names`.
        class_names: All classes.
        least: 1, or 2 where a split is drawn and needs an image on either side.
        where: The folder, file or split, for the message.

    Raises:
        DataError: A class has fewer; lists all such classes.
    """
    counts = np.bincount(labels, minlength=len(class_names))
    bare = [name for name, n in zip(class_names, counts, strict=True) if n < least]
    if bare:
        raise DataError(
            f"Every class needs at least {_COUNTS[least]}. Too few in {where}: "
            f"{', '.join(bare)}."
        )
