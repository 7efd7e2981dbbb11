"""Walk through folders, links to folders included, and end where they go round."""

import os
from collections.abc import Iterator
from pathlib import Path

from reszoo.errors import DataError


def files_under(folder: str) -> Iterator[str]:
    """Yield the files under a folder, in the order of their paths' parts.

    Hidden files and folders are passed over. Strings, one folder at a time: a million
    `Path`s would fill a gigabyte.

    Raises:
        DataError: A link leads to a folder that it lies in; names the link.
    """
    return _walk(folder, os.path.realpath(folder), ())


def _walk(folder: str, real: str, crossed: tuple[str, ...]) -> Iterator[str]:
    """Walk on; `crossed` are the real folders of the links that led here."""
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    for entry in sorted(visible, key=lambda entry: entry.name):
        if entry.is_dir(follow_symlinks=False):
            inner = f"{real.rstrip(os.sep)}{os.sep}{entry.name}"
            yield from _walk(entry.path, inner, crossed)
        elif entry.is_symlink() and Path(entry.path).is_dir():
            target, behind = os.path.realpath(entry.path), (*crossed, real)
            if any(Path(place).is_relative_to(target) for place in behind):
                raise DataError(
                    f"{entry.path} is a link to {target}, in which it lies: its images "
                    "would be found without end. Remove the link."
                )
            yield from _walk(entry.path, target, behind)
        else:
            yield entry.path
