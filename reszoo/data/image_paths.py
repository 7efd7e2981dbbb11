"""Paths of images: of files, folders, globs, and CSV files that list them."""

import csv
import glob
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from io import StringIO, TextIOWrapper
from pathlib import Path
from typing import Any
from unicodedata import normalize

from reszoo.data.image_files import SUFFIXES, image_kind
from reszoo.data.splits import WORDS
from reszoo.errors import DataError, UsageError
from reszoo.files import StrPath, open_regular, read_errors

_REMEDY = 'Expected one path a line, or a column called "path".'
COLUMNS: tuple[str, ...] = tuple(WORDS["columns"])
FORM = "A line is path,label or path,label,split."
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
# Bytes that the encoding and the delimiter are told by.
_SAMPLE = 1 << 16
_NAMED = re.compile(r"(.+\.[ct]sv)((:(path|label|split|encoding)=[^:]*)*)", re.I | re.S)


def iterate_paths(inputs: Iterable[StrPath]) -> Iterator[str]:
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


def check_inputs(inputs: Iterable[StrPath]) -> None:
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
    path = None
    for path in walk_images(folder):
        yield path
    if path is None:
        raise DataError(f"{folder} has no images ({', '.join(SUFFIXES)}).")


def _of_glob(pattern: str) -> Iterator[str]:
    if not (matches := sorted(glob.glob(pattern, recursive=True))):  # noqa: PTH207
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
    path = None
    for line, fields in table.rows():
        first, path = path is None, table.path(fields)
        if not path:
            raise table.wrong(line, "has no path", _REMEDY)
        # The names of other columns must not become an image.
        if first and not table.names and not names_image(path):
            raise table.wrong(line, f"names no image ({fields[0]})", _REMEDY)
        yield path
    if path is None:
        raise DataError(f"{table.file} lists no images. {_REMEDY}")


def walk_images(folder: str) -> Iterator[str]:
    """Yield the image files under a folder lazily, also those that are not supported.

    In the order of their paths' parts; hidden files and folders are ignored. A
    DataError if a link leads to a folder that contains it.
    """
    yield from filter(image_kind, walk(folder))


def visible(folder: StrPath) -> list["os.DirEntry[str]"]:
    """Return what is in a folder by name, but hidden entries and a system's own.

    A DataError if the folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            named = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"{folder} cannot be listed ({error.strerror}). "
            "Change its permissions or leave it out."
        ) from error
    ignored = WORDS["ignored"]
    return [e for e in named if e.name[0] != "." and e.name.casefold() not in ignored]


def walk(folder: str, real: str = "", crossed: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the visible files under a folder, in the order of their paths' parts.

    Strings, one folder at a time: a million `Path`s would fill a gigabyte. `real` is
    the folder without links, `crossed` are real folders of the links that led here; a
    DataError names a link to a folder that contains it.
    """
    real = real or os.path.realpath(folder)
    for entry in visible(folder):
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


def is_table(data: str) -> bool:
    """Return whether a name is one of a CSV file, perhaps with columns behind it."""
    return _NAMED.fullmatch(data) is not None


@dataclass(frozen=True)
class Table:
    """A CSV file whose form is known."""

    file: Path  # the file
    names: tuple[str, ...]  # the columns as its first line names them, if it does
    columns: Mapping[str, int]  # number of each known column, from 0
    delimiter: str  # between fields
    encoding: str  # python's name

    @cached_property
    def _folder(self) -> str:
        return os.path.join(self.file.parent, "")  # noqa: PTH118

    @property
    def notes(self) -> tuple[str, ...]:
        """How the file was understood, unless it is of the plainest form."""
        plain = {name.casefold() for name in self.names} <= set(COLUMNS)
        if plain and (self.delimiter, self.encoding) == (",", "utf-8-sig"):
            return ()
        encoding = self.encoding.removesuffix("-sig").upper()
        between = _DELIMITERS[self.delimiter]
        text = f"{self.file.name}: {encoding}, fields between {between}"
        for column, place in self.columns.items():
            text += f", {column} from {self.names[place]!r}" if self.names else ""
        rest = set(range(len(self.names))) - set(self.columns.values())
        ignored = ", ".join(repr(self.names[place]) for place in sorted(rest))
        return (f"{text}; not used: {ignored}" if ignored else text,)

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the number and the fields of each line that is not blank.

        Bytes that are no UTF-8 come through as surrogates (PEP 383). A DataError if the
        file cannot be read or is no CSV; names the line.
        """
        errors = "surrogateescape" if self.encoding.startswith("utf-8") else "strict"
        with (
            read_errors(self.file, DataError),
            open_regular(self.file) as binary,
            TextIOWrapper(binary, self.encoding, errors, newline="") as text,
        ):
            reader = _parsed(text, self.delimiter)
            try:
                lines = filter(any, reader)
                if self.names:
                    next(lines)
                for fields in lines:
                    yield reader.line_num, fields
            except csv.Error as error:
                what = f"is not valid CSV ({error})"
                raise self.wrong(reader.line_num, what) from error
            except UnicodeError as error:
                what = f"is not {self.encoding.upper()}"
                raise self.wrong(reader.line_num + 1, what) from error

    def path(self, fields: Sequence[str]) -> str:
        """Return the path that a line names, or ""."""
        place = self.columns["path"]
        if not (name := fields[place].strip() if place < len(fields) else ""):
            return ""
        path = name if name.startswith(os.sep) else self._folder + name
        odd = "\\" in name or not name.isascii()
        if odd and "\0" not in name and not os.path.lexists(path):
            # The list may be made on Windows, and a Mac's file be named in another form
            # of Unicode than in the list.
            ways = (path, path.replace("\\", "/"))
            forms = (normalize(f, way) for way in ways for f in ("NFC", "NFD"))
            path = next(filter(os.path.lexists, forms), path)
        return path

    def wrong(self, line: int, what: str, remedy: str = FORM) -> DataError:
        """Return the error about a line."""
        return DataError(f"{self.file} line {line} {what}. {remedy}")


def names_image(path: str) -> bool:
    """Return whether a path is likely to be one, not a name of a column."""
    return path.lower().endswith(SUFFIXES) or os.path.lexists(path)


def open_table(data: str, needed: Sequence[str] = ("path", "label")) -> Table:
    """Find the encoding, the delimiter and the columns of a CSV file.

    Columns are found by their usual names, or named behind the file's name:
    `photos.csv:path=photo:label=breed`; with nothing behind the sign there is no such
    column. So is an encoding other than UTF-8 and UTF-16: `photos.csv:encoding=cp1252`.
    A DataError if it cannot be read, or a needed column is missing (it lists those
    there are); a UsageError if there is no such encoding.
    """
    file, given = data, {}
    if not os.path.lexists(data) and (named := _NAMED.fullmatch(data)):
        file = named[1]
        parts = (each.split("=", 1) for each in named[2].split(":")[1:])
        given = {key.lower(): value.strip() for key, value in parts}
    with read_errors(file, DataError), open_regular(file) as binary:
        sample = binary.read(_SAMPLE)
    encoding = given.pop("encoding", "") or _encoding(sample)
    try:
        text = sample.decode(encoding, "ignore")
    except LookupError as error:
        unknown = f"Unknown encoding {encoding!r}; see Python's codecs."
        raise UsageError(unknown) from error
    found = ((each, *_form(text, each, given)) for each in _DELIMITERS)
    # Of equals the first: a comma.
    delimiter, _, names, columns = max(found, key=lambda each: each[1])
    table = Table(Path(file), names, columns, delimiter, encoding)
    if missing := {*needed, *(k for k, v in given.items() if v)} - set(columns):
        example = "".join(f":{name}=COLUMN" for name in sorted(missing))
        raise DataError(
            f"{file} line 1 names no column that is known as {' or '.join(missing)}, "
            f"only {', '.join(map(repr, names))}. Name it: {file}{example}."
        )
    return table


def _encoding(sample: bytes) -> str:
    if sample.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    # Without a mark, every other byte of Western text is 0.
    zeros = [sample[start::2].count(0) * 4 > len(sample) for start in (0, 1)]
    return "utf-16-be" if zeros[0] else "utf-16-le" if zeros[1] else "utf-8-sig"


def _parsed(text: Any, delimiter: str) -> Any:
    return csv.reader(text, strict=True, skipinitialspace=True, delimiter=delimiter)


def _form(
    text: str, delimiter: str, given: Mapping[str, str]
) -> tuple[tuple[int, bool, int], tuple[str, ...], dict[str, int]]:
    """Return how well a delimiter fits, and the columns that it gives."""
    first: list[str] = []
    # The sample may end within a quotation.
    with suppress(csv.Error):
        first = next(filter(any, _parsed(StringIO(text, newline=""), delimiter)), [])
    names = tuple(field.strip() for field in first)
    is_image = any(name.lower().endswith(SUFFIXES) for name in names)
    columns: dict[str, int] = {}
    if not is_image:
        plain = [re.sub(r"[\W_]", "", name).casefold() for name in names]
        for column, words in WORDS["columns"].items():
            usual = next((word for word in words if word in plain), None)
            if usual is not None and column not in given:
                columns[column] = plain.index(usual)
        columns |= {k: names.index(v) for k, v in given.items() if v in names}
    rest = set(range(len(names))) - set(columns.values())
    if "path" in columns and "label" not in columns and len(rest) == 1:
        columns["label"] = rest.pop()
    fit = (len(columns), is_image and len(names) > 1, len(names))
    if columns or given:
        return fit, names, columns
    return fit, (), {column: place for place, column in enumerate(COLUMNS)}
