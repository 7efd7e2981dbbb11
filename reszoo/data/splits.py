"""Names of splits, and the draw of a held-out split from data without one."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from reszoo.errors import DataError, summarized
from reszoo.fields import read_tables

Indices = NDArray[np.int64]

SPLITS = ("train", "validation", "test")
WORDS = read_tables("reszoo.data", "words.toml")
_SPLIT_OF: dict[str, str] = WORDS["splits"]
SPLIT_NAMES = tuple(_SPLIT_OF)
# As in train_set, training-data and test images.
_SUFFIX = re.compile(r"[\W_]*(sets?|data|images|split|folder)$")
# Shares of each class that are held out: of data without splits, of a train split that
# has only a test split beside it (45,000 and 5,000 images of CIFAR-10, as in He et al.
# 2015, section 4.2), and of built-in data sets, which get a test split too.
_VALIDATION, _OF_TRAIN = 0.2, 0.1
_BUILT_IN_VALIDATION, _BUILT_IN_TEST = 0.1, 0.2
# The same for everybody: evaluation holds out what training held out.
_SEED = 0


def split_name(word: str) -> str | None:
    """Return "train", "validation" or "test" for a word such as "Val", else None."""
    name = word.strip().casefold()
    return _SPLIT_OF.get(name) or _SPLIT_OF.get(_SUFFIX.sub("", name))


def complete(
    given: Mapping[str, Indices], targets: Indices, labels: Sequence[str], where: str,
    share: float | None = None,
) -> tuple[dict[str, Indices], tuple[str, ...]]:  # fmt: skip
    """Check splits and draw a validation split where there is none to train with.

    The rule is one for folders, lists, arrays and TensorFlow Datasets: what is trained
    on has images of every class; other splits may lack some, which are named. Given are
    indices by split, or of "all" for data without splits; targets are int64 `(n,)`,
    indices into `labels`, all classes; `where` names the data in messages. The share of
    each class becomes the validation split, if there is none: None is a fifth, or a
    tenth where there is a test split; 0 draws nothing. Equal targets give equal splits.

    Returns indices by split, and a line for what was drawn or is missing. A DataError
    names classes with too few images.
    """
    splits, notes = dict(given), []
    for split, part in given.items():
        if split in ("all", "train"):
            # A split that is drawn needs an image on either side.
            is_drawn = split == "all" and share != 0
            check_counts(targets[part], labels, 1 + is_drawn, where)
    if set(given) <= {"all", "train"}:
        drawn = _drawn(targets, _VALIDATION if share is None else share)
        splits = {"all": np.arange(len(targets)), **drawn}
    elif "train" in given and "validation" not in given and share != 0:
        train = given["train"]
        drawn = _drawn(targets[train], _OF_TRAIN if share is None else share)
        splits |= {name: train[part] for name, part in drawn.items()}
        notes.append(
            f"there is no validation split: {len(train) - len(splits['train']):,} of "
            f"{len(train):,} training images are held out as one; the test split is "
            "kept for the end"
        )
    for split, part in splits.items():
        absent = _with_fewer(1, targets[part], labels)
        if absent and split not in ("all", "train"):
            told = summarized(absent, 20)
            notes.append(f"the {split} split has no images of: {told}")
    return splits, tuple(notes)


def hold_out_test(targets: Indices) -> dict[str, Indices]:
    """Draw a fifth of every class as test, a tenth as validation; see `complete`."""
    test, rest = _draw(targets, _BUILT_IN_TEST, _SEED)
    share = _BUILT_IN_VALIDATION / (1 - _BUILT_IN_TEST)
    validation, train = _draw(targets[rest], share, _SEED + 1)
    return {"train": rest[train], "validation": rest[validation], "test": test}


def calibration_halves(targets: Indices) -> tuple[Indices, Indices]:
    """Return the half of a validation split to calibrate on, and the other one.

    Indices of int64 targets `(n,)`, of every class in turn: the same halves each time.
    """
    return _draw(targets, 0.5, _SEED + 2)


def _drawn(targets: Indices, share: float) -> dict[str, Indices]:
    if not share:
        return {"train": np.arange(len(targets))}
    held_out, rest = _draw(targets, share, _SEED)
    # With one image of each class there is nothing to hold out.
    return {"train": rest} | ({"validation": held_out} if len(held_out) else {})


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


def _with_fewer(least: int, targets: Indices, labels: Sequence[str]) -> list[str]:
    counts = np.bincount(targets, minlength=len(labels))
    return [label for label, n in zip(labels, counts, strict=True) if n < least]


def check_counts(
    targets: Indices, labels: Sequence[str], least: int, where: str
) -> None:
    """Raise DataError, which names them, for classes with too few images.

    The least is 1, or 2 where a split is drawn and needs an image on either side.
    """
    if few := _with_fewer(least, targets, labels):
        raise DataError(
            f"Every class needs at least {('one image', 'two images')[least - 1]}. Too "
            f"few in {where}: {summarized(few, 20)}."
            + ' What is only measured is a test split: {"test": (images, labels)}, or '
            "a folder test/." * (least > 1)
        )
