"""Say in a line each which pictures are in two splits, or in two classes."""

import os
from itertools import combinations

from reszoo.data.copies import Entries, Group, Place
from reszoo.data.facts import FactTable
from reszoo.data.listing import Listing
from reszoo.data.scan_report import printable

_Pair = tuple[Place, Place]


def leak_warnings(listing: Listing, table: FactTable) -> tuple[str, ...]:
    """Return a line for every two splits that share pictures, and one for classes.

    Args:
        listing: Image files by split.
        table: The facts about `listing.paths`.

    Returns:
        Such as "2 pictures are in both train and test, e.g. train/a.jpg = test/b.jpg".
    """
    shared: dict[str, list[_Pair]] = {}
    for group in Entries(listing, table).groups():
        for first, second in _across(group, "split"):
            splits = f"both {first.split} and {second.split}"
            shared.setdefault(splits, []).append((first, second))
        for pair in _across(group, "label")[:1]:
            shared.setdefault("more than one class", []).append(pair)
    return tuple(_line(where, pairs, listing.root) for where, pairs in shared.items())


def _across(group: Group, field: str) -> list[_Pair]:
    """Return the first places of every two splits, or of every two classes."""
    firsts: dict[str, Place] = {}
    for place in group.places:
        firsts.setdefault(getattr(place, field), place)
    return list(combinations(firsts.values(), 2))


def _line(where: str, pairs: list[_Pair], root: str) -> str:
    names = (printable(p.path.removeprefix(f"{root}{os.sep}")) for p in pairs[0])
    are = "picture is" if len(pairs) == 1 else "pictures are"
    return f"{len(pairs):,} {are} in {where}, e.g. {' = '.join(names)}"
