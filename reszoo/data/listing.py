"""List image files, their targets and their splits without opening them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reszoo.errors import DataError
from reszoo.preprocessing import Pixels

Indices = NDArray[np.int64]

# What people call a split -> what reszoo calls it.
_NAMES = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
# Words for a split, for messages.
SPLIT_WORDS = tuple(_NAMES)
# Shares of the images: of named arrays, and of data that comes without splits.
_NAMED_VALIDATION, _NAMED_TEST = 0.1, 0.2
_HELD_OUT = 0.2
# One seed for everybody: what was held out in training is held out in judging.
_SEED = 0


def split_name(word: str) -> str | None:
    """Return "train", "validation" or "test" for a word such as "Val", else None."""
    return _NAMES.get(word.strip().casefold())


def hold_out(targets: NDArray[np.int64]) -> dict[str, Indices]:
    """Draw a fifth of every class as the validation split.

    Args:
        targets: int64 `(n,)`, of all images in a fixed order.

    Returns:
        Indices of "train" and "validation", the same for the same targets.
    """
    held, rest = _draw(targets, _HELD_OUT, _SEED)
    return {"train": rest, "validation": held}


def hold_out_test(targets: NDArray[np.int64]) -> dict[str, Indices]:
    """Draw a fifth of every class as the test split, a tenth as validation.

    Args:
        targets: int64 `(n,)`, of all images in a fixed order.

    Returns:
        Indices of "train", "validation" and "test", the same for the same targets.
    """
    test, rest = _draw(targets, _NAMED_TEST, _SEED)
    share = _NAMED_VALIDATION / (1 - _NAMED_TEST)
    validation, train = _draw(targets[rest], share, _SEED + 1)
    return {"train": rest[train], "validation": rest[validation], "test": test}


def _draw(
    targets: NDArray[np.int64], share: float, seed: int
) -> tuple[Indices, Indices]:
    """Draw a share of every class; at least one image stays on either side."""
    generator = np.random.default_rng(seed)
    held = []
    for label in np.unique(targets):
        members = generator.permutation(np.flatnonzero(targets == label))
        count = min(max(1, round(share * len(members))), len(members) - 1)
        held.append(members[:count])
    first = np.sort(np.concatenate(held))
    return first, np.setdiff1d(np.arange(len(targets)), first)


_COUNTS = {1: "one image", 2: "two images"}


class Files(NamedTuple):
    """Image files and their targets, int64 `(n,)`."""

    paths: tuple[str, ...]
    targets: NDArray[np.int64]


@dataclass(frozen=True)
class Listing:
    """Image files by split.

    Attributes:
        root: The folder that the names of images are told against.
        labels: Names in label order: sorted by code point.
        splits: Files by name: "train", "validation", "test". Where the data has no
            splits, "train" and "validation" were drawn from "all", which is listed
            too.
        unread: Pictures of formats that are not read.
    """

    root: str
    labels: tuple[str, ...]
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
        name: Files(tuple(files.paths[i] for i in indices), files.targets[indices])
        for name, indices in hold_out(files.targets).items()
    }
    return {"all": files, **parts}


def check_counts(
    targets: NDArray[np.int64], labels: Sequence[str], least: int, where: str
) -> None:
    """Refuse targets in which a class has too few images.

    Args:
        targets: int64 `(n,)`, indices into `labels`.
        labels: All classes.
        least: 1, or 2 where a split is drawn and needs an image on either side.
        where: The folder, file or split, for the message.

    Raises:
        DataError: A class has fewer; lists all such classes.
    """
    counts = np.bincount(targets, minlength=len(labels))
    bare = [name for name, n in zip(labels, counts, strict=True) if n < least]
    if bare:
        raise DataError(
            f"Every class needs at least {_COUNTS[least]}. Too few in {where}: "
            f"{', '.join(bare)}."
        )


_DIGITS = tuple("0123456789")
# How names of data sets of characters begin; fashion_mnist is none of them.
_OF_CHARACTERS = (
    *("mnist", "emnist", "kmnist", "svhn", "cmaterdb", "omniglot"),
    "binary_alpha_digits",
)


def are_digits(labels: Sequence[str]) -> bool:
    """Return whether the classes are the ten digits, "0" to "9", by name."""
    return tuple(labels) == _DIGITS


def is_of_characters(data_set: str) -> bool:
    """Return whether a data set of TensorFlow Datasets shows digits or letters."""
    return data_set.lower().startswith(_OF_CHARACTERS)


def are_grey(images: Iterable[Pixels]) -> bool:
    """Return whether all images `(height, width, 3)` are without colour."""
    return all(bool((image == image[..., :1]).all()) for image in images)
