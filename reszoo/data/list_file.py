"""Read a list file: a CSV that names images, their classes and their splits."""

import csv
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from reszoo.data.folder import SUFFIXES
from reszoo.data.listing import Files, Listing, check_counts, with_held_out
from reszoo.data.splits import SPLIT_WORDS, split_name
from reszoo.errors import DataError

_COLUMNS = ("path", "label", "split")
_FORM = "A line is path,label or path,label,split."


class _Row(NamedTuple):
    path: str
    label: str
    split: str


def read(file: Path) -> Listing:
    """List the classes and the images of a CSV file; open no image.

    A line is `path,label` or `path,label,split`. Paths are relative to the file's
    folder, labels are class names, splits are train, val (or validation) and test;
    without them a fifth of every class becomes the validation split. A first line
    that names the columns may bring them in another order. The text is UTF-8;
    fields with commas stand in double quotes.

    Classes are sorted by code point and images by path, so that the order of the
    lines means nothing.

    Raises:
        DataError: A line that cannot be meant, named by its number; no images,
            fewer than two classes, or a class with too few images to train on.
    """
    rows = sorted(_checked(file))
    names = tuple(sorted({row.label for row in rows}))
    if len(names) < 2:
        found = f"the one class {names[0]!r}" if names else "no images"
        raise DataError(
            f"{file} lists {found}. A classifier needs at least two classes. {_FORM}"
        )
    numbers = {name: number for number, name in enumerate(names)}
    splits = {
        split: _files([row for row in rows if row.split == split], numbers)
        for split in sorted({row.split for row in rows})
    }
    trained_on = splits.get("all") or splits.get("train")
    if trained_on:
        # A split that we are to draw needs an image on either side.
        least = 2 if "all" in splits else 1
        check_counts(trained_on.labels, names, least, str(file))
    if "all" in splits:
        splits = with_held_out(splits["all"])
    return Listing(str(file.parent), names, splits)


def _files(rows: Sequence[_Row], numbers: dict[str, int]) -> Files:
    labels = np.asarray([numbers[row.label] for row in rows], np.int64)
    return Files(tuple(row.path for row in rows), labels)


def _checked(file: Path) -> Iterator[_Row]:
    """Yield the rows; "all" stands for the split where the file has none."""
    lines: dict[str, int] = {}
    with_splits: bool | None = None
    for line, row in _rows(file):
        _check_text(file, line, row)
        if row.path in lines:
            raise _wrong(
                file, line, f"lists {row.path} again, as line {lines[row.path]} did"
            )
        lines[row.path] = line
        if with_splits is None:
            with_splits = bool(row.split)
            _check_first(file, line, row)
        if with_splits != bool(row.split):
            raise _wrong(
                file, line, "differs from those above: all lines name a split, or none"
            )
        yield row._replace(split=_split(file, line, row.split))


def _rows(file: Path) -> Iterator[tuple[int, _Row]]:
    columns: Sequence[str] = _COLUMNS
    for line, fields in _fields(file):
        if line == 1 and _is_header(fields):
            columns = [field.casefold() for field in fields]
            continue
        if not 2 <= len(fields) <= len(columns):
            raise _wrong(file, line, f"has {len(fields)} fields")
        named = dict(zip(columns, fields, strict=False))
        name = named.get("path", "")
        path = os.path.join(file.parent, name) if name else ""  # noqa: PTH118
        # Of a million lines the label of each would otherwise be a string of its own.
        label = sys.intern(named.get("label", ""))
        yield line, _Row(path, label, named.get("split", ""))


def _fields(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of each line that is not blank, and its fields."""
    # Bytes that are no UTF-8 come through, so that their line can be named.
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        reader = csv.reader(text, strict=True, skipinitialspace=True)
        try:
            for fields in reader:
                if any(fields):
                    yield reader.line_num, [field.strip() for field in fields]
        except csv.Error as error:
            raise _wrong(file, reader.line_num, f"is no CSV ({error})") from error


def _is_header(fields: Iterable[str]) -> bool:
    named = [field.casefold() for field in fields]
    return {"path", "label"} <= set(named) <= set(_COLUMNS)


def _check_text(file: Path, line: int, row: _Row) -> None:
    try:
        "".join(row).encode()
    except UnicodeEncodeError as error:
        raise _wrong(file, line, "is not UTF-8") from error
    if not row.path or not row.label:
        raise _wrong(file, line, f"has no {'label' if row.path else 'path'}")
    if not row.label.isprintable():
        raise _wrong(file, line, f"has a label that is not printable, {row.label!r}")


def _check_first(file: Path, line: int, row: _Row) -> None:
    """Refuse column names that are none of ours before they become an image."""
    if not row.path.lower().endswith(SUFFIXES) and not Path(row.path).exists():
        raise _wrong(
            file,
            line,
            f"names no image ({row.path}); as names of columns, "
            f"{', '.join(_COLUMNS)} are known",
        )


def _split(file: Path, line: int, word: str) -> str:
    split = split_name(word) if word else "all"
    if split is None:
        known = ", ".join(SPLIT_WORDS)
        raise _wrong(file, line, f"has the split {word!r}; known are {known}")
    return split


def _wrong(file: Path, line: int, what: str) -> DataError:
    return DataError(f"{file} line {line} {what}. {_FORM}")
