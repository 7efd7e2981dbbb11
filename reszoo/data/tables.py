"""CSV files that list images: their encoding, delimiter and columns."""

import csv
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from io import StringIO, TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO
from unicodedata import normalize

from reszoo.data.image_files import SUFFIXES
from reszoo.errors import DataError, UsageError
from reszoo.files import open_regular

# Column -> its usual names, without spaces and underscores; the first that is there.
_USUAL = {
    "path": (
        *("path", "filepath", "imagepath", "imgpath", "filename", "file", "imagefile"),
        *("imagename", "image", "img", "photo", "picture", "imageid", "id"),
    ),
    "label": (
        *("label", "labels", "class", "classname", "labelname", "category", "target"),
        *("species", "breed", "diagnosis"),
    ),
    "split": ("split", "subset", "partition", "set", "usage", "phase"),
}
COLUMNS = tuple(_USUAL)
FORM = "A line is path,label or path,label,split."
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
# Bytes that the encoding and the delimiter are told by.
_SAMPLE = 1 << 16
_NAMED = re.compile(r"(.+\.[ct]sv)((:(path|label|split|encoding)=[^:]*)*)", re.I | re.S)


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
        text = (
            f"{self.file.name}: {self.encoding.removesuffix('-sig').upper()}, fields "
        )
        text += f"between {_DELIMITERS[self.delimiter]}"
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
            _opened(self.file) as binary,
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
                raise self.wrong(
                    reader.line_num, f"is not valid CSV ({error})"
                ) from error
            except UnicodeError as error:
                what = f"is not {self.encoding.upper()}"
                raise self.wrong(reader.line_num + 1, what) from error

    def path(self, fields: Sequence[str]) -> str:
        """Return the path that a line names, or ""."""
        place = self.columns["path"]
        name = fields[place].strip() if place < len(fields) else ""
        if not name:
            return ""
        path = name if name.startswith(os.sep) else self._folder + name
        if not name.isascii() and "\0" not in name and not os.path.lexists(path):
            # A Mac's file may be named in another form of Unicode than in the list.
            forms = (normalize(form, path) for form in ("NFC", "NFD"))
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
    with _opened(Path(file)) as binary:
        sample = binary.read(_SAMPLE)
    encoding = given.pop("encoding", "") or _encoding(sample)
    try:
        text = sample.decode(encoding, "ignore")
    except LookupError as error:
        raise UsageError(
            f"Unknown encoding {encoding!r}; see Python's codecs."
        ) from error
    found = {each: _form(text, each, given) for each in _DELIMITERS}
    # Of equals the first: a comma.
    delimiter = max(found, key=lambda each: found[each][0])
    _, names, columns = found[delimiter]
    table = Table(Path(file), names, columns, delimiter, encoding)
    missing = {*needed, *(k for k, v in given.items() if v)} - set(columns)
    if missing:
        example = "".join(f":{name}=COLUMN" for name in sorted(missing))
        raise DataError(
            f"{file} line 1 names no column that is known as {' or '.join(missing)}, "
            f"only {', '.join(map(repr, names))}. Name it: {file}{example}."
        )
    return table


def _opened(file: Path) -> BinaryIO:
    try:
        return open_regular(file)
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}).") from error


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
        usual = [(column, word) for column in _USUAL for word in _USUAL[column]]
        for column, word in usual:
            if word in plain and column not in given:
                columns.setdefault(column, plain.index(word))
        columns |= {k: names.index(v) for k, v in given.items() if v in names}
    rest = set(range(len(names))) - set(columns.values())
    if "path" in columns and "label" not in columns and len(rest) == 1:
        columns["label"] = rest.pop()
    fit = (len(columns), is_image and len(names) > 1, len(names))
    if columns or given:
        return fit, names, columns
    return fit, (), {column: place for place, column in enumerate(COLUMNS)}
