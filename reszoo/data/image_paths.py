"""List the paths of images: of files, folders, globs, and CSV files that name them."""

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from reszoo.data.image_files import SUFFIXES, image_kind
from reszoo.data.tables import is_table, names_image, open_table
from reszoo.errors import DataError

# What Macs put into zip files, and network drives and systems beside images.
_OF_SYSTEMS = (
    *("__macosx", "@eadir", "$recycle.bin", "system volume information"),
    *("lost+found", "__pycache__"),
)
_REMEDY = 'Expected one path a line, or a column called "path".'


def iterate_paths(inputs: Iterable[str | os.PathLike[str]]) -> Iterator[str]:
    """Yield the path of each image once for every time that it is named.

    Paths are listed lazily and none is opened, so that a million of them take no
    memory. Equal inputs give the same order: as given, folders and globs sorted. Each
    is the path of an image, whether it exists or not; a folder, whose image files are
    found at any depth (hidden ones are ignored); a glob, where `**` matches any number
    of folders; or a `.csv` file with a column "path" or one path a line, relative to
    the file's folder. A DataError if a folder has no images or cannot be read, a glob
    matches nothing, or a CSV file is missing or invalid.
    """
    for each in inputs:
        yield from _listed(os.path.expanduser(os.fspath(each)))  # noqa: PTH111


def check_inputs(inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Raise what `iterate_paths` raises for a folder, a glob or a file without images.

    Looks for the first image of each only.
    """
    for each in inputs:
        next(iterate_paths([each]), None)


def _listed(given: str) -> Iterator[str]:
    if os.path.isdir(given):  # noqa: PTH112
        yield from _of_folder(given)
    elif is_table(given):
        yield from _of_csv(given)
    elif glob.has_magic(given) and not os.path.lexists(given):
        yield from _of_glob(given)
    else:
        yield given


def _of_folder(folder: str) -> Iterator[str]:
    found = False
    try:
        for path in walk_images(folder):
            found = True
            yield path
    except OSError as error:
        raise DataError(
            f"{error.filename or folder} cannot be listed ({error.strerror}). "
            "Change its permissions or leave it out."
        ) from error
    if not found:
        raise DataError(f"{folder} has no images ({', '.join(SUFFIXES)}).")


def _of_glob(pattern: str) -> Iterator[str]:
    matches = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207
    if not matches:
        raise DataError(
            f"{pattern} matches no file. Check the pattern; in quotes, ** matches any "
            "number of folders."
        )
    for match in matches:
        # `**` matches the folders as well as what they contain.
        if not ("**" in pattern and os.path.isdir(match)):  # noqa: PTH112
            yield from _listed(match)


def _of_csv(data: str) -> Iterator[str]:
    table = open_table(data, ["path"])
    empty = True
    for line, fields in table.rows():
        path = table.path(fields)
        if not path:
            raise table.wrong(line, "has no path", _REMEDY)
        # The names of other columns must not become an image.
        if empty and not table.names and not names_image(path):
            raise table.wrong(line, f"names no image ({fields[0]})", _REMEDY)
        yield path
        empty = False
    if empty:
        raise DataError(f"{table.file} lists no images. {_REMEDY}")


def walk_images(folder: str) -> Iterator[str]:
    """Yield the image files under a folder lazily, also those that are not supported.

    In the order of their paths' parts; hidden files and folders are ignored. A
    DataError if a link leads to a folder that contains it.
    """
    for path in walk(folder, os.path.realpath(folder)):
        if image_kind(path):
            yield path


def is_visible(name: str) -> bool:
    """Return whether a file or folder counts: hidden ones and a system's own do not."""
    return not name.startswith(".") and name.casefold() not in _OF_SYSTEMS


def walk(folder: str, real: str, crossed: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the visible files under a folder, in the order of their paths' parts.

    Strings, one folder at a time: a million `Path`s would fill a gigabyte. `real` is
    the folder without links, `crossed` are real folders of the links that led here; a
    DataError names a link to a folder that contains it.
    """
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if is_visible(entry.name)]
    for entry in sorted(visible, key=lambda entry: entry.name):
        if entry.is_dir(follow_symlinks=False):
            inner = f"{real.rstrip(os.sep)}{os.sep}{entry.name}"
            yield from walk(entry.path, inner, crossed)
        elif entry.is_symlink() and Path(entry.path).is_dir():
            target, parents = os.path.realpath(entry.path), (*crossed, real)
            if any(Path(parent).is_relative_to(target) for parent in parents):
                raise DataError(
                    f"{entry.path} is a link to {target}, which contains it: its "
                    "images would be found without end. Remove the link."
                )
            yield from walk(entry.path, target, parents)
        else:
            yield entry.path
