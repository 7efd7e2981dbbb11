"""Read folders of class folders and CSV files that list images."""

import csv
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from reszoo.data.listing import (
    SPLIT_WORDS,
    Files,
    Listing,
    check_counts,
    split_name,
    with_held_out,
)
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


# What Pillow decodes; the pipeline has it decode what TensorFlow cannot.
_JPEG = (".jpg", ".jpeg", ".jpe", ".jfif")
SUFFIXES = (*_JPEG, ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff")
# Pictures that not every Pillow decodes, or none. Other files are no images.
_UNREAD = (
    *(".heic", ".heif", ".avif", ".jp2", ".j2k", ".jxl", ".svg", ".psd", ".exr"),
    *(".ppm", ".pgm", ".tga", ".dng", ".cr2", ".cr3", ".nef", ".arw"),
)


def read_folder(root: Path) -> Listing:
    """List the classes and the image files of a folder; open none.

    Classes are sorted by code point, files by path, so that every machine and
    every run agrees on the labels. Hidden files and folders are passed over, links
    are followed.

    Split folders may be written in capitals. A lone `train` beside no other split
    folder, with images and no folders in it, is a class of that name; so are `val`
    and `test` without `train`, unless both are there and hold folders.

    Args:
        root: `root/class/*.jpg` or `root/train/class/*.jpg`; deeper folders under
            a class belong to it.

    Raises:
        DataError: No images, fewer than two classes, a class without images (with
            fewer than two, where there are no split folders), two folders for one
            split, splits whose classes differ, a class whose name is not one line
            of printable text, or a link to a folder that it lies in.
    """
    split_folders = _split_folders(root)
    # A split that we are to draw needs an image on either side.
    least = 1 if split_folders else 2
    split_folders = split_folders or {"all": root}
    classes = {
        split: tuple(sorted(f.name for f in _visible_folders(folder)))
        for split, folder in split_folders.items()
    }
    names = next(iter(classes.values()))
    for split, folder in split_folders.items():
        _check_names(folder, classes[split])
    odd = {name for found in classes.values() for name in set(found) ^ set(names)}
    if odd:
        raise DataError(
            f"The splits of {root} have different classes. Not in all of them: "
            f"{', '.join(sorted(odd))}."
        )
    files, unread = {}, []
    for split, folder in split_folders.items():
        files[split], others = _files(folder, names, least)
        unread.extend(others)
    splits = with_held_out(files["all"]) if set(files) == {"all"} else files
    return Listing(str(root), names, splits, tuple(unread))


def _split_folders(root: Path) -> dict[str, Path]:
    """Return the folder of each split; nothing where the folders are classes."""
    found: dict[str, list[Path]] = {}
    for folder in sorted(_visible_folders(root)):
        split = split_name(folder.name)
        if split:
            found.setdefault(split, []).append(folder)
    if not _are_splits(found):
        return {}
    for split, folders in found.items():
        if len(folders) > 1:
            raise DataError(
                f"{root} has more than one folder for its {split} split: "
                f"{', '.join(folder.name for folder in folders)}. Keep one of them."
            )
    return {split: folder for split, (folder,) in found.items()}


def _are_splits(found: dict[str, list[Path]]) -> bool:
    """Tell split folders from classes that are called "train", "val" or "test"."""
    if "train" not in found:
        folders = [folder for same in found.values() for folder in same]
        return len(found) > 1 and all(map(_visible_folders, folders))
    return len(found) > 1 or not all(map(_is_class, found["train"]))


def _check_names(folder: Path, names: tuple[str, ...]) -> None:
    odd = [str(folder / name) for name in names if not name.isprintable()]
    if odd:
        raise DataError(
            "A class folder must have a name of printable text, for it becomes a "
            f"label. Rename {', '.join(map(repr, odd))}."
        )


def _files(folder: Path, names: tuple[str, ...], least: int) -> tuple[Files, list[str]]:
    """List the images of one split, and its pictures that are not read."""
    by_class, unread = {}, []
    for name in names:
        by_class[name], others = _pictures(str(folder / name))
        unread.extend(others)
    if not any(by_class.values()):
        raise DataError(
            f"{folder} has no images in class folders. Expected {folder}/CLASS/*.jpg "
            f"({', '.join(SUFFIXES)}){_passed_over(unread)}."
        )
    if len(names) < 2:
        raise DataError(
            f"{folder} has one class, {names[0]!r}. A classifier needs at least two "
            "class folders."
        )
    paths = tuple(path for name in names for path in by_class[name])
    counts = [len(by_class[name]) for name in names]
    targets = np.repeat(np.arange(len(names)), counts).astype(np.int64)
    check_counts(targets, names, least, f"{folder}{_passed_over(unread)}")
    return Files(paths, targets), unread


def _passed_over(unread: list[str]) -> str:
    endings = sorted({Path(path).suffix.lower() for path in unread})
    if not endings:
        return ""
    return f" (files there that are not read: {', '.join(endings)})"


def _pictures(folder: str) -> tuple[list[str], list[str]]:
    """Return the images under a folder, and the pictures that are not read."""
    images, unread = [], []
    for path in files_under(folder):
        ending = path.lower()
        if ending.endswith(SUFFIXES):
            images.append(path)
        elif ending.endswith(_UNREAD):
            unread.append(path)
    return images, unread


def _is_class(folder: Path) -> bool:
    return not _visible_folders(folder) and any(map(any, _pictures(str(folder))))


def _visible_folders(folder: Path) -> list[Path]:
    return [f for f in folder.iterdir() if f.is_dir() and not f.name.startswith(".")]


_COLUMNS = ("path", "label", "split")
_FORM = "A line is path,label or path,label,split."


class _Row(NamedTuple):
    path: str
    label: str
    split: str


def read_table(file: Path) -> Listing:
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
        split: _table_files([row for row in rows if row.split == split], numbers)
        for split in sorted({row.split for row in rows})
    }
    trained_on = splits.get("all") or splits.get("train")
    if trained_on:
        # A split that we are to draw needs an image on either side.
        least = 2 if "all" in splits else 1
        check_counts(trained_on.targets, names, least, str(file))
    if "all" in splits:
        splits = with_held_out(splits["all"])
    return Listing(str(file.parent), names, splits)


def _table_files(rows: Sequence[_Row], numbers: dict[str, int]) -> Files:
    targets = np.asarray([numbers[row.label] for row in rows], np.int64)
    return Files(tuple(row.path for row in rows), targets)


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
