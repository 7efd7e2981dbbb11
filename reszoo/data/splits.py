"""Splits: what they are called, and how one is drawn where there is none."""

import numpy as np
from numpy.typing import NDArray

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


def hold_out(labels: NDArray[np.int64]) -> dict[str, Indices]:
    """Draw a fifth of every class as the validation split.

    Args:
        labels: int64 `(n,)`, of all images in a fixed order.

    Returns:
        Indices of "train" and "validation", the same for the same labels.
    """
    held, rest = _draw(labels, _HELD_OUT, _SEED)
    return {"train": rest, "validation": held}


def hold_out_test(labels: NDArray[np.int64]) -> dict[str, Indices]:
    """Draw a fifth of every class as the test split, a tenth as validation.

    Args:
        labels: int64 `(n,)`, of all images in a fixed order.

    Returns:
        Indices of "train", "validation" and "test", the same for the same labels.
    """
    test, rest = _draw(labels, _NAMED_TEST, _SEED)
    share = _NAMED_VALIDATION / (1 - _NAMED_TEST)
    validation, train = _draw(labels[rest], share, _SEED + 1)
    return {"train": rest[train], "validation": rest[validation], "test": test}


def _draw(
    labels: NDArray[np.int64], share: float, seed: int
) -> tuple[Indices, Indices]:
    """Draw a share of every class; at least one image stays on either side."""
    generator = np.random.default_rng(seed)
    held = []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        count = min(max(1, round(share * len(members))), len(members) - 1)
        held.append(members[:count])
    first = np.sort(np.concatenate(held))
    return first, np.setdiff1d(np.arange(len(labels)), first)
