"""Labelled images in NumPy arrays, and scikit-learn's digits."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from reszoo.data.examples import Examples
from reszoo.data.splits import (
    SPLIT_NAMES,
    check_counts,
    hold_out,
    hold_out_test,
    split_name,
)
from reszoo.errors import DataError, UnknownNameError, UsageError
from reszoo.preprocessing import Pixels

DIGITS = tuple("0123456789")
# The scans hold 0 (paper) to 16 (ink).
_DARKEST = 16


def read_digits() -> dict[str, Examples]:
    """Return the digits by split, as RGB of 8x8 pixels.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits,
    UCI Machine Learning Repository, 1998 (CC BY 4.0); the test part, as shipped
    with scikit-learn.

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            'The digits come with scikit-learn: pip install "reszoo[demo]".'
        ) from error
    scans = load_digits()
    grey = np.round(scans.images * (255 / _DARKEST)).astype(np.uint8)
    images = np.repeat(grey[..., None], 3, axis=-1)
    everything = Examples(np.asarray(scans.target, np.int64), images=images)
    return everything.split(hold_out_test(everything.targets))


# Images and labels of a split.
_Part: TypeAlias = tuple[Pixels, NDArray[Any]]


def read_arrays(data: Any) -> tuple[tuple[str, ...], dict[str, Examples], bool]:
    """Check arrays and turn their labels into targets.

    Images are uint8 `(n, height, width, 3)`, or grey without the 3 or with 1.
    Labels `(n,)` are integers from 0, whose classes are called "0", "1", ..., or
    strings, which are sorted by code point.

    Args:
        data: `(images, labels)`, of which a fifth of every class becomes the
            validation split; or pairs by split, `{"train": (images, labels),
            "test": (images, labels)}`.

    Returns:
        Labels, examples by split, and whether images may be flipped: not where
        strings name the ten digits, nor where ten integer labels come with grey
        images, as those of MNIST do.

    Raises:
        UsageError: Other shapes or types, or an unknown split.
        DataError: Fewer than two classes, or one without images to train on.
    """
    given = _by_split(data) if isinstance(data, Mapping) else {"all": data}
    parts = {split: _part(pair, split) for split, pair in given.items()}
    labels, targets = _numbered({split: part for split, (_, part) in parts.items()})
    if len(labels) < 2:
        raise DataError(
            f"The labels name {len(labels)} class. A classifier needs at least two."
        )
    splits = {s: Examples(targets[s], images=part) for s, (part, _) in parts.items()}
    if "train" in splits:
        check_counts(targets["train"], labels, 1, "the train split")
    if "all" in splits:
        # A split that is drawn needs an image on either side.
        check_counts(targets["all"], labels, 2, "the arrays")
        splits = splits["all"].split(hold_out(targets["all"]))
    # Integer labels may count anything: CIFAR-10 has them too, but in colour.
    are_digits = labels == DIGITS and all(
        given.dtype.kind == "U" or (images == images[..., :1]).all()
        for images, given in parts.values()
    )
    return labels, splits, not are_digits


def _by_split(data: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for word, pair in data.items():
        split = split_name(word)
        if split is None:
            raise UnknownNameError("split", word, SPLIT_NAMES)
        if split in found:
            raise UsageError(
                f"The arrays have two {split} splits: {', '.join(data)}. Keep one."
            )
        found[split] = pair
    if not found:
        raise UsageError('No arrays were given. Give {"train": (images, labels)}.')
    return found


def _part(pair: Any, split: str) -> _Part:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise UsageError(
            f"Arrays come as a pair (images, labels). Received for {split}: "
            f"{type(pair).__name__}."
        )
    images, labels = _images(pair[0]), np.asarray(pair[1])
    # Keras' own data sets have labels of shape (n, 1).
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind not in "iuU" or labels.shape != images.shape[:1]:
        raise UsageError(
            "Labels must be integers or strings, one an image, not one-hot. "
            f"Received: {labels.dtype} {labels.shape} for {len(images)} images."
        )
    if not len(images):
        raise UsageError(f"A split needs images. Received none for {split}.")
    return images, labels


def _images(given: Any) -> Pixels:
    if isinstance(given, tuple | list):
        raise UsageError(
            f"Images must be one array. Received: a {type(given).__name__}. Stack "
            'images with np.stack; name splits: {"train": (x, y), "test": (x, y)}.'
        )
    images = np.asarray(given)
    if images.dtype != np.uint8:
        raise UsageError(
            f"Images must be uint8 in 0..255. Received: {images.dtype}. From floats "
            "in 0..1: np.round(images * 255).astype(np.uint8)."
        )
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise UsageError(
            "Images must have the shape (n, height, width, 3), or (n, height, width) "
            f"if grey. Received: {np.shape(given)}."
        )
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


def _numbered(
    labels: Mapping[str, NDArray[Any]],
) -> tuple[tuple[str, ...], dict[str, NDArray[np.int64]]]:
    """Return the labels in order and each split's targets."""
    kinds = {part.dtype.kind == "U" for part in labels.values()}
    if len(kinds) > 1:
        raise UsageError("The splits must all have integer labels, or all strings.")
    everything = np.unique(np.concatenate(list(labels.values())))
    if kinds == {True}:
        # NumPy sorts strings by code point, as Python does.
        names = tuple(map(str, everything))
        return names, {s: np.searchsorted(everything, p) for s, p in labels.items()}
    if everything[0] < 0:
        raise UsageError(
            f"Integer labels must count from 0. Received: {everything[0]} among them."
        )
    names = tuple(map(str, range(int(everything[-1]) + 1)))
    return names, {split: part.astype(np.int64) for split, part in labels.items()}
