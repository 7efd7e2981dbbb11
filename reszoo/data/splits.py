"""Names of splits, and the draw of a held-out split from data without splits."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from reszoo.errors import DataError

Indices = NDArray[np.int64]

# Usual name of a split -> its name in reszoo.
_NAMES = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
SPLIT_NAMES = tuple(_NAMES)
# Shares of each class that are held out: of data without splits, and of built-in data
# sets, which get a test split too.
_VALIDATION = 0.2
_BUILT_IN_VALIDATION, _BUILT_IN_TEST = 0.1, 0.2
# The same for everybody: evaluation holds out what training held out.
_SEED = 0


def split_name(word: str) -> str | None:
    """Return "train", "validation" or "test" for a word such as "Val", else None."""
    return _NAMES.get(word.strip().casefold())


def hold_out(targets: Indices) -> dict[str, Indices]:
    """Draw a fifth of every class as the validation split.

    Args:
        targets: int64 `(n,)`, of all images in a fixed order.

    Returns:
        Indices of "all", "train" and "validation"; equal targets give equal splits.
    """
    held_out, rest = _draw(targets, _VALIDATION, _SEED)
    return {"all": np.arange(len(targets)), "train": rest, "validation": held_out}


def hold_out_test(targets: Indices) -> dict[str, Indices]:
    """Draw a fifth of every class as test, a tenth as validation; see `hold_out`."""
    test, rest = _draw(targets, _BUILT_IN_TEST, _SEED)
    share = _BUILT_IN_VALIDATION / (1 - _BUILT_IN_TEST)
    validation, train = _draw(targets[rest], share, _SEED + 1)
    return {"train": rest[train], "validation": rest[validation], "test": test}


def _draw(targets: Indices, share: float, seed: int) -> tuple[Indices, Indices]:
    """Draw a share of every class; at least one image stays on either side."""
    generator = np.random.default_rng(seed)
    drawn = []
    for target in np.unique(targets):
        members = generator.permutation(np.flatnonzero(targets == target))
        count = min(max(1, round(share * len(members))), len(members) - 1)
        drawn.append(members[:count])
    held_out = np.sort(np.concatenate(drawn))
    return held_out, np.setdiff1d(np.arange(len(targets)), held_out)


_COUNTS = {1: "one image", 2: "two images"}


def check_counts(
    targets: Indices, labels: Sequence[str], least: int, where: str
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
    few = [label for label, n in zip(labels, counts, strict=True) if n < least]
    if few:
        raise DataError(
            f"Every class needs at least {_COUNTS[least]}. Too few in {where}: "
            f"{', '.join(few)}."
        )
