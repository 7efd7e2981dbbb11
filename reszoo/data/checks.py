"""Dataset checks: images that cannot be used, and duplicates in splits and classes."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import NamedTuple

import numpy as np

from reszoo.console import printable
from reszoo.data.examples import HEADER, Examples
from reszoo.data.image_facts import ANOMALIES, HARMLESS, FactTable, examine
from reszoo.data.listing import Listing, Unreadable
from reszoo.data.splits import Indices, check_counts
from reszoo.errors import DataError, UnknownNameError

# Policy -> what it does, for help texts.
POLICIES = {
    "error": "name the first unreadable image and stop",
    "skip": "leave unreadable images out and list them",
    "recover": "as skip, but decode truncated JPEGs as far as they go",
}


def check_policy(policy: str | None) -> None:
    """Refuse a policy that is none of `POLICIES`, nor None."""
    if policy is not None and policy not in POLICIES:
        raise UnknownNameError("policy for bad images", policy, POLICIES)


def refuse_first(unreadable: Sequence[Unreadable], policy: str) -> None:
    """Raise an error for the first unreadable image if the policy is "error".

    A DataError names the image, the reason and the remedy.
    """
    if policy == "error" and unreadable:
        path, reason = unreadable[0]
        raise DataError(
            f"{path} cannot be used ({reason}). Replace it or remove it, or continue "
            'without such images: bad_images="skip" (--bad-images skip).'
        )


def check(
    listing: Listing, policy: str | None
) -> tuple[dict[str, Examples], tuple[Unreadable, ...], tuple[str, ...]]:
    """Turn listed images into examples and treat bad ones by a policy.

    Splits were drawn before, so that what is skipped moves no image from one split to
    another. The policy is a row of `POLICIES`; None reads headers only, and refuses a
    bad one; it looks for no duplicates, and ignores unsupported files.

    Returns examples by split, what was left out, and warnings of anomalies and
    duplicates. A DataError names an image that cannot be used, or a class of which too
    few are left.
    """
    examples, splits = listing.examples, listing.splits
    if policy is None:
        return examples.read_headers().split(splits), (), ()
    refuse_first(listing.unsupported, policy)
    table, recover = _examine(examples), policy == "recover"
    unreadable = table.unreadable(recover=recover)
    refuse_first(unreadable, policy)
    if unreadable:
        readable = table.readable(recover=recover)
        splits = {name: part[readable[part]] for name, part in splits.items()}
        _check_kept(listing, splits)
    # Fields are assigned by their place.
    headers = table.rows[list(HEADER.names or ())].astype(HEADER)
    return (
        replace(examples, headers=headers, recover=recover).split(splits),
        (*listing.unsupported, *unreadable),
        (
            *(leak_warnings(listing, table) if listing.paths else ()),
            *_anomaly_warnings(listing, table, recover),
        ),
    )


def find_unreadable(examples: Examples) -> DataError | None:
    """Return an error that names the first image that cannot be decoded, if any.

    TensorFlow's own message gives the reason but not the file.
    """
    if examples.images is not None:
        return None
    table = _examine(examples, progress=False)
    for name, reason in table.unreadable(recover=examples.recover):
        return DataError(
            f"{name} is not a readable image ({reason}). "
            "Replace the file or remove it from the data."
        )
    return None


def _examine(examples: Examples, *, progress: bool = True) -> FactTable:
    return examine(examples.records or examples.paths or (), progress=progress)


def _check_kept(listing: Listing, kept: Mapping[str, Indices]) -> None:
    """Refuse data whose train split lost a class, or another split all its images."""
    for split, indices in kept.items():
        if split == "train":
            kept_targets = listing.targets[indices]
            check_counts(kept_targets, listing.labels, 1, "the readable images")
        elif not len(indices):
            raise DataError(
                f"No image of the {split} split is readable, of "
                f"{len(listing.splits[split]):,}. Replace them or remove the split; "
                "`reszoo scan` lists the reasons."
            )


def _anomaly_warnings(
    listing: Listing, table: FactTable, recover: bool
) -> Iterator[str]:
    """Yield what a scan says about unusual images, unless it changes no content."""
    for kind, names in table.anomalies(recover=recover).items():
        if kind not in HARMLESS:
            first = relative(listing.root, names[0])
            yield f"{len(names):,} images: {ANOMALIES[kind][0]}, e.g. {first}"


class Occurrence(NamedTuple):
    """One occurrence of a duplicate image: its file, split and label."""

    path: str
    split: str
    label: str


class Duplicates(NamedTuple):
    """Files with the same pixels."""

    occurrences: tuple[Occurrence, ...]

    @property
    def splits(self) -> set[str]:
        """The splits that the image is in."""
        return {occurrence.split for occurrence in self.occurrences}

    @property
    def labels(self) -> set[str]:
        """The labels that the image has."""
        return {occurrence.label for occurrence in self.occurrences}


def find_duplicates(listing: Listing, table: FactTable) -> list[Duplicates]:
    """Return the images that occur more than once, in the order of the splits."""
    parts = listing.disjoint_splits
    images = np.concatenate(list(parts.values()))
    splits = np.repeat(list(parts), list(map(len, parts.values())))
    readable = table.readable()[images]
    images, splits = images[readable], splits[readable]
    digests = table.rows["digest"][images]
    order = np.lexsort(digests.T)
    new = (np.diff(digests[order], axis=0) != 0).any(1)
    numbers = np.zeros(len(order), np.int64)
    numbers[order[1:]] = np.cumsum(new)
    counts = np.bincount(numbers)
    groups: dict[int, list[Occurrence]] = {}
    for place in np.flatnonzero(counts[numbers] > 1):
        path, target = listing.paths[images[place]], listing.targets[images[place]]
        occurrence = Occurrence(path, str(splits[place]), listing.labels[target])
        groups.setdefault(int(numbers[place]), []).append(occurrence)
    return [Duplicates(tuple(group)) for group in groups.values()]


def leak_warnings(listing: Listing, table: FactTable) -> tuple[str, ...]:
    """Return a line for every two splits that share images, and one for classes.

    Such as "2 images are in both train and test, e.g. train/a.jpg = test/b.jpg".
    """
    shared: dict[str, list[tuple[Occurrence, Occurrence]]] = {}
    for group in find_duplicates(listing, table):
        for first, second in _firsts(group, "split"):
            splits = f"both {first.split} and {second.split}"
            shared.setdefault(splits, []).append((first, second))
        for pair in _firsts(group, "label")[:1]:
            shared.setdefault("more than one class", []).append(pair)
    return tuple(
        f"{len(pairs):,} {'image is' if len(pairs) == 1 else 'images are'} in {where}, "
        f"e.g. {' = '.join(relative(listing.root, each.path) for each in pairs[0])}"
        for where, pairs in shared.items()
    )


def _firsts(group: Duplicates, field: str) -> list[tuple[Occurrence, Occurrence]]:
    """Return the first occurrences in every two splits, or in every two classes."""
    firsts: dict[str, Occurrence] = {}
    for occurrence in group.occurrences:
        firsts.setdefault(getattr(occurrence, field), occurrence)
    return list(combinations(firsts.values(), 2))


def relative(root: str, path: str) -> str:
    """Return a path relative to the data's folder, printable."""
    return printable(path.removeprefix(f"{root}{os.sep}"))
