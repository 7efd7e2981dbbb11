"""What to do about images that cannot be used: refuse, skip or mend them."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from reszoo.console import Progress
from reszoo.data.duplicates import leak_warnings
from reszoo.data.examples import Examples, columns
from reszoo.data.image_checks import FactTable, examine
from reszoo.data.image_files import Header, decode_image, read_header, reason_of
from reszoo.data.listing import Listing, check_counts, why_unread
from reszoo.data.records import Records
from reszoo.errors import DataError, UnknownNameError

# Policy -> what it does, for help texts.
POLICIES = {
    "error": "name the first unreadable image and stop",
    "skip": "leave unreadable images out and list them",
    "recover": "as skip, but decode JPEGs that are cut short as far as they go",
}
# Images that are handed to the threads at a time.
_WAVE = 256


class Unreadable(NamedTuple):
    """An image that is left out: its path or record, and why."""

    path: str
    reason: str


Splits = Mapping[str, Examples]


def check_policy(policy: str | None) -> None:
    """Refuse a policy that is none of `POLICIES`, nor None."""
    if policy is not None and policy not in POLICIES:
        raise UnknownNameError("policy for bad images", policy, POLICIES)


class Opened(NamedTuple):
    """Examples by split, what was left out, and pictures in two splits or classes."""

    splits: Splits
    unreadable: tuple[Unreadable, ...]
    warnings: tuple[str, ...]


def open_listing(listing: Listing, policy: str | None) -> Opened:
    """Turn listed files into examples, by a policy.

    Splits were drawn before, so that what is skipped moves no image from one split
    to another.

    Args:
        listing: Image files by split.
        policy: A row of `POLICIES`; None reads headers only, and refuses a bad one;
            it looks for no copies, and passes over pictures that are not read.

    Raises:
        DataError: An image cannot be used and the policy does not allow for that,
            or too few are left; names the path or the class.
    """
    paths = listing.paths
    problems: dict[str, str] = {}
    warnings: tuple[str, ...] = ()
    headers: Iterator[Header]
    if policy is None:
        headers = (read_header(path, path) for path in paths)
    else:
        for path in listing.unread:
            _note(problems, path, why_unread(path), policy)
        table = examine(paths)
        headers = _examined(table, policy, problems)
        warnings = leak_warnings(listing, table)
    orientations, by_pillow = columns(headers)
    position = {path: index for index, path in enumerate(paths)}
    splits = {}
    for split, files in listing.splits.items():
        indices = np.asarray([position[path] for path in files.paths], np.int64)
        splits[split] = Examples(
            files.targets,
            paths=files.paths,
            orientations=orientations[indices],
            by_pillow=by_pillow[indices],
        )
    kept, unreadable = _without(splits, problems, policy, listing.labels)
    return Opened(kept, unreadable, warnings)


def screen_records(
    splits: Splits, policy: str | None, labels: tuple[str, ...]
) -> tuple[Splits, tuple[Unreadable, ...]]:
    """Decode every image inside records and treat bad ones by a policy.

    Raises:
        DataError: An image cannot be used and the policy does not allow for that,
            or too few are left; names the record or the class.
    """
    if policy is None:
        return splits, ()
    problems: dict[str, str] = {}
    pools = [splits["all"]] if "all" in splits else list(splits.values())
    for pool in pools:
        for name, reason in _record_problems(pool, policy):
            _note(problems, name, reason, policy)
    return _without(splits, problems, policy, labels)


def _examined(
    table: FactTable, policy: str, problems: dict[str, str]
) -> Iterator[Header]:
    for facts in table:
        if facts.problem and not (policy == "recover" and facts.recoverable):
            _note(problems, facts.path, facts.problem, policy)
        yield Header(facts.orientation, facts.by_pillow)


def _record_problems(pool: Examples, policy: str) -> Iterator[tuple[str, str]]:
    records = pool.records
    if records is None:
        return

    def look(index: int) -> str | None:
        return _record_problem(records, index, policy)

    with ThreadPoolExecutor() as threads, Progress("examining", len(pool)) as progress:
        for start in range(0, len(pool), _WAVE):
            wave = range(start, min(start + _WAVE, len(pool)))
            for index, reason in zip(wave, threads.map(look, wave), strict=True):
                if reason:
                    yield pool.name(index), reason
            progress.advance(len(wave))


def _record_problem(records: Records, index: int, policy: str) -> str | None:
    # A file that cannot be read at all is no matter of one image.
    data = records.read(index)
    try:
        decode_image(data, records.name(index), recover=policy == "recover")
    except DataError as error:
        return reason_of(error.__cause__ or error)
    return None


def _note(problems: dict[str, str], name: str, reason: str, policy: str) -> None:
    if policy == "error":
        raise DataError(
            f"{name} cannot be used ({reason}). Replace it or take it out, or go on "
            'without such images: bad_images="skip" (--bad-images skip).'
        )
    problems[name] = reason


def _without(
    splits: Splits,
    problems: Mapping[str, str],
    policy: str | None,
    labels: tuple[str, ...],
) -> tuple[Splits, tuple[Unreadable, ...]]:
    kept = {
        split: replace(_usable(examples, problems), recover=policy == "recover")
        for split, examples in splits.items()
    }
    if problems:
        for split, examples in kept.items():
            if split == "train":
                check_counts(examples.targets, labels, 1, "the usable images")
            elif not len(examples):
                raise DataError(
                    f"No image of the {split} split can be used. The first: "
                    f"{splits[split].name(0)} ({problems[splits[split].name(0)]})."
                )
    unreadable = tuple(Unreadable(*problem) for problem in problems.items())
    return kept, unreadable


def _usable(examples: Examples, problems: Mapping[str, str]) -> Examples:
    if not problems:
        return examples
    names = (examples.name(index) for index in range(len(examples)))
    kept = [index for index, name in enumerate(names) if name not in problems]
    if len(kept) == len(examples):
        return examples
    return examples.take(np.asarray(kept, np.int64))
