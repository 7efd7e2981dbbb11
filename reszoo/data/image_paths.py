"""List the paths of images: of files, folders, globs, and CSV files that name them."""

import csv
import glob
import os
from collections.abc import Iterable, Iterator
from io import TextIOWrapper
from pathlib import Path

from reszoo.data.listing import SUFFIXES, walk_images
from reszoo.errors import DataError
from reszoo.files import open_regular

_REMEDY = 'Expected one path a line, or a column called "path".'


def iterate_paths(inputs: Iterable[str | os.PathLike[str]]) -> Iterator[str]:
    """Yield the path of each image once for every time that it is named.

    Paths are listed lazily and none is opened, so that a million of them take no
    memory. Equal inputs give the same order: as given, folders and globs sorted.

    Args:
        inputs: Each is the path of an image, whether it exists or not; a folder, whose
            image files are found at any depth (hidden ones are ignored); a glob, where
            `**` matches any number of folders; or a `.csv` file with a column "path"
            or one path a line, relative to the file's folder.

    Raises:
        DataError: A folder has no images, a glob matches nothing, a CSV file is
            missing or invalid, or a folder cannot be read.
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
    elif given.lower().endswith(".csv"):
        yield from _of_csv(Path(given))
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


def _of_csv(file: Path) -> Iterator[str]:
    column: int | None = None
    try:
        # Names of files need not be UTF-8; see PEP 383.
        with (
            open_regular(file) as binary,
            TextIOWrapper(binary, "utf-8-sig", "surrogateescape", newline="") as text,
        ):
            lines = csv.reader(text, strict=True, skipinitialspace=True)
            for fields in filter(any, lines):
                if column is None:
                    column, is_header = _path_column(file, fields)
                    if is_header:
                        continue
                name = fields[column].strip() if column < len(fields) else ""
                if not name:
                    raise DataError(
                        f"{file} line {lines.line_num} has no path. {_REMEDY}"
                    )
                yield os.path.join(file.parent, name)  # noqa: PTH118
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}).") from error
    except csv.Error as error:
        raise DataError(f"{file} is not valid CSV ({error}). {_REMEDY}") from error
    if column is None:
        raise DataError(f"{file} lists no images. {_REMEDY}")


def _path_column(file: Path, first: list[str]) -> tuple[int, bool]:
    """Return which column has the paths, and whether the first line names columns."""
    names = [field.strip().casefold() for field in first]
    if "path" in names:
        return names.index("path"), True
    # The names of other columns must not become an image.
    if not names[0].endswith(SUFFIXES) and not (file.parent / first[0]).exists():
        raise DataError(f"{file} line 1 names no image ({first[0]}). {_REMEDY}")
    return 0, False
