"""Sources: they list examples and class names, and load nothing heavy.

A source is a folder of images or a name such as "digits". It offers its examples
by split, and knows the names of the classes in the order of the labels.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reszoo.data import digits, folder
from reszoo.data.examples import Examples
from reszoo.errors import DataError, UnknownNameError


@dataclass(frozen=True)
class Source:
    """Labelled images in splits.

    Attributes:
        name: What it was opened as, for messages and cards.
        class_names: Names in label order: sorted by code point.
        splits: Examples by name: "train", "validation", "test", or "all".
        mirror_safe: Whether a mirrored image still belongs to its class; a mirrored
            digit does not.
    """

    name: str
    class_names: tuple[str, ...]
    splits: Mapping[str, Examples]
    mirror_safe: bool = True

    def examples(self, split: str | None = None) -> Examples:
        """Return the examples of one split.

        Args:
            split: Its name. None takes what a model should be judged on: "test",
                else "validation", else "train". "all" is taken only by name, as it
                holds what a model was trained on.

        Raises:
            UnknownNameError: The source has no such split.
        """
        name = split or self.judging_split
        if name not in self.splits:
            raise UnknownNameError(f"split of {self.name}", name, self.splits)
        return self.splits[name]

    @property
    def judging_split(self) -> str:
        """Name of the split that `examples()` returns."""
        unseen = ("test", "validation")
        return next((name for name in unseen if name in self.splits), "train")


# A name that is not a folder -> how it is read.
NAMED: dict[str, Callable[[], Source]] = {
    "digits": lambda: _from_arrays("digits", digits.read(), mirror_safe=False)
}
# Shares of the images: of named arrays, and of a folder without split folders.
_HELD_OUT = {"validation": 0.1, "test": 0.2}
_HELD_OUT_OF_FOLDERS = 0.2
# One seed for everybody: what was held out in training is held out in judging.
_SPLIT_SEED = 0


def open_source(data: str | os.PathLike[str]) -> Source:
    """Open a folder of images or a named data set.

    A folder holds `class/image.jpg`, or splits of that: `train/class/image.jpg`
    with `val` (or `validation`) and perhaps `test` beside it. Without split
    folders a fifth of every class becomes the validation split, the same fifth
    whenever the same folder is opened.

    Args:
        data: The folder, or a name such as "digits".

    Raises:
        DataError: The folder has no images, one class, or an unreadable image.
        UsageError: The data is neither a folder nor a known name.
    """
    if str(data) in NAMED and not Path(data).exists():
        return NAMED[str(data)]()
    root = Path(data)
    if not root.exists():
        raise UnknownNameError("folder or data set", str(data), NAMED)
    if not root.is_dir():
        raise DataError(
            f"{root} is a file. Give a folder of class folders with images."
        )
    names, splits = folder.read(root)
    if set(splits) == {"all"}:
        splits = {**splits, **_held_out(splits["all"])}
    return Source(str(root), names, splits)


def check_classes(source: Source, labels: Sequence[str] | None, whose: str) -> None:
    """Refuse a source whose classes are not those of a model.

    Args:
        source: The images.
        labels: The model's class names in order; None if it was never told.
        whose: The model, for the message.

    Raises:
        DataError: The classes differ; the message lists the difference.
    """
    if labels is None or tuple(labels) == source.class_names:
        return
    only_model = sorted(set(labels) - set(source.class_names))
    only_data = sorted(set(source.class_names) - set(labels))
    difference = "; ".join(
        f"only {where}: {', '.join(names)}"
        for where, names in (
            (f"in {whose}", only_model),
            (f"in {source.name}", only_data),
        )
        if names
    )
    raise DataError(
        f"{source.name} has other classes than {whose} "
        f"({difference or 'the same names in another order'}). "
        "Use data with the same class folders, or train on the new ones."
    )


def _from_arrays(name: str, read: digits.Arrays, *, mirror_safe: bool) -> Source:
    everything = Examples.from_arrays(read.images, read.labels)
    test, rest = _split(everything.labels, _HELD_OUT["test"], _SPLIT_SEED)
    share = _HELD_OUT["validation"] / (1 - _HELD_OUT["test"])
    validation, train = _split(everything.labels[rest], share, _SPLIT_SEED + 1)
    splits = {
        "train": everything.take(rest[train]),
        "validation": everything.take(rest[validation]),
        "test": everything.take(test),
    }
    return Source(name, read.class_names, splits, mirror_safe)


def _held_out(everything: Examples) -> dict[str, Examples]:
    held, rest = _split(everything.labels, _HELD_OUT_OF_FOLDERS, _SPLIT_SEED)
    return {"train": everything.take(rest), "validation": everything.take(held)}


def _split(
    labels: NDArray[np.int64], share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw a share of every class; at least one image stays on either side."""
    generator = np.random.default_rng(seed)
    held = []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        count = min(max(1, round(share * len(members))), len(members) - 1)
        held.append(members[:count])
    first = np.sort(np.concatenate(held))
    return first, np.setdiff1d(np.arange(len(labels)), first)
