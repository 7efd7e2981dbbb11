"""Labelled images in NumPy arrays, and scikit-learn's digits."""

from collections.abc import Mapping, Sequence
from typing import Any
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from reszoo.data.examples import Examples
from reszoo.data.image_facts import ANOMALIES, DARK
from reszoo.data.splits import SPLIT_NAMES, complete, hold_out_test, split_name
from reszoo.errors import DataError, UnknownNameError, UsageError
from reszoo.preprocessing import Pixels

DIGITS = tuple("0123456789")
# The scans hold 0 (paper) to 16 (ink).
_DARKEST = 16


def read_digits() -> dict[str, Examples]:
    """Return the digits by split, as RGB of 8x8 pixels.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI
    Machine Learning Repository, 1998 (CC BY 4.0); the test part, as shipped with
    scikit-learn. A DataError if scikit-learn is not installed.
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


def read_arrays(data: Any, validation_share: float | None = None) -> dict[str, Any]:
    """Check arrays and turn their labels into targets.

    Images are `(n, height, width, 3)`, or grey without the 3 or with 1, and hold 0 to
    255: as uint8, or as other numbers, which are rounded. Labels `(n,)` are strings,
    which are sorted by code point, or integers from 0, whose classes are called "0",
    "1", ...; also as Python objects, bytes, booleans or whole floats.

    Args:
        data: `(images, labels)`, of which a fifth of every class becomes the
            validation split; or pairs by split, `{"train": (images, labels),
            "test": (images, labels)}`.
        validation_share: See `reszoo.data.splits.complete`.

    Returns:
        The fields of a `Source`. Images may not be flipped where strings name the ten
        digits, nor where ten integer labels come with grey images, as those of MNIST
        do. Splits whose images are nearly black have a warning.

    Raises:
        UsageError: Other shapes, types or values, or an unknown split.
        DataError: Fewer than two classes, or one without images to train on.
    """
    given = _by_split(data) if isinstance(data, Mapping) else {"all": data}
    parts = {split: _part(pair, split) for split, pair in given.items()}
    labels, targets = _numbered([part for _, part in parts.values()])
    if len(labels) < 2:
        raise DataError(
            f"The labels name {len(labels)} class. A classifier needs at least two."
        )
    ends = np.cumsum([0, *(len(part) for part, _ in parts.values())])
    places = {s: np.arange(*ends[n : n + 2]) for n, s in enumerate(parts)}
    splits = {
        split: Examples(targets[places[split]], images=images)
        for split, (images, _) in parts.items()
    }
    first = "all" if "all" in splits else "train"
    where = "the arrays" if first == "all" else "the train split"
    drawn, notes = complete(places, targets, labels, where, validation_share)
    found = {}
    for split, part in drawn.items():
        whole = split if split in places else first
        same = len(part) == len(places[whole])
        start = int(places[whole][0])
        found[split] = splits[whole] if same else splits[whole].take(part - start)
    # Integer labels may count anything: CIFAR-10 has them too, but in colour.
    are_digits = labels == DIGITS and all(
        given.dtype.kind == "U" or (images == images[..., :1]).all()
        for images, given in parts.values()
    )
    return {
        "labels": labels,
        "splits": found,
        "flip_safe": not are_digits,
        "numbered": all(given.dtype.kind != "U" for _, given in parts.values()),
        "notes": notes,
        "warnings": tuple(
            f"the images ({split}) are {ANOMALIES['dark'][0]}"
            for split, part in found.items()
            if part.images is not None and part.images.max(initial=0) <= DARK
        ),
    }


def _by_split(data: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for word, pair in data.items():
        split = split_name(word)
        if split is None:
            raise UnknownNameError("split", word, SPLIT_NAMES)
        if split in found:
            same = ", ".join(name for name in data if split_name(name) == split)
            raise UsageError(f"The arrays have two {split} splits: {same}. Keep one.")
        found[split] = pair
    if not found:
        raise UsageError('No arrays were given. Give {"train": (images, labels)}.')
    return found


def _part(pair: Any, split: str) -> tuple[Pixels, NDArray[Any]]:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise UsageError(
            f"Arrays come as a pair (images, labels). Received for {split}: "
            f"{type(pair).__name__}."
        )
    images, labels = _images(pair[0]), _plain(np.asarray(pair[1]))
    if labels.dtype.kind not in "iuU" or labels.shape != images.shape[:1]:
        raise UsageError(
            "Labels must be integers or strings, one an image, not one-hot. "
            f"Received: {labels.dtype} {labels.shape} for {len(images)} images."
        )
    if not len(images):
        raise UsageError(f"A split needs images. Received none for {split}.")
    return images, labels


def _plain(labels: NDArray[Any]) -> NDArray[Any]:
    """Return labels as what they hold; what is neither integers nor strings stays."""
    # Keras' own data sets have labels of shape (n, 1).
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    # Columns of pandas are objects; NumPy's own strings are S, T and U.
    if labels.dtype.kind in "OST" and labels.ndim == 1:
        items = [x.decode() if isinstance(x, bytes) else x for x in labels.tolist()]
        other = [x for x in items if not isinstance(x, str)]
        if other and (len(other) < len(items) or None in other):
            raise UsageError(
                "Labels must be all strings or all integers. "
                f"Received: {other[0]!r} among them."
            )
        labels = np.asarray(items)
    whole = labels.dtype.kind == "f" and (labels == np.rint(labels)).all()
    return labels.astype(np.int64) if whole or labels.dtype.kind == "b" else labels


def _images(given: Any) -> Pixels:
    if isinstance(given, tuple | list):
        raise UsageError(
            f"Images must be one array. Received: a {type(given).__name__}. Stack "
            'images with np.stack; name splits: {"train": (x, y), "test": (x, y)}.'
        )
    images = np.asarray(given)
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise UsageError(
            "Images must have the shape (n, height, width, 3), or (n, height, width) "
            f"if grey. Received: {np.shape(given)}."
        )
    images = images if images.dtype == np.uint8 else _rounded(images)
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


def _rounded(images: NDArray[Any]) -> Pixels:
    """Return numbers in 0..255 as uint8."""
    low = high = np.nan
    if images.size and images.dtype.kind in "iuf":
        low, high = images.min(), images.max()
    # Floats up to 1 may be an image in 0..1, or a black one.
    known = high > 1 or images.dtype.kind != "f"
    if not (known and low >= 0 and high <= 255):
        advice = "Give pixels as they were before they were normalised."
        if low >= 0 and high <= 1:
            advice = "From floats in 0..1: np.round(images * 255).astype(np.uint8)."
        raise UsageError(
            "Images must be uint8 in 0..255, or other numbers in that range. Received: "
            f"{images.dtype} from {low:g} to {high:g}. {advice}"
        )
    rounded = np.empty(images.shape, np.uint8)
    for number, image in enumerate(images):
        rounded[number] = np.rint(image)
    return rounded


def _numbered(
    labels: Sequence[NDArray[Any]],
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Return the labels in order, and the targets of all splits one after another."""
    kinds = {part.dtype.kind == "U" for part in labels}
    if len(kinds) > 1:
        raise UsageError("The splits must all have integer labels, or all strings.")
    everything, inverse = np.unique(np.concatenate(labels), return_inverse=True)
    if kinds == {True}:
        words = [normalize("NFC", word) for word in everything.tolist()]
        names = tuple(sorted({*words}))
        return names, np.asarray([names.index(word) for word in words])[inverse]
    if everything[0] < 0:
        raise UsageError(
            f"Integer labels must count from 0. Received: {everything[0]} among them."
        )
    names = tuple(map(str, range(int(everything[-1]) + 1)))
    return names, everything.astype(np.int64)[inverse]
