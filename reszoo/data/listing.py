"""List the image files, targets and splits of a folder or a CSV file."""

import csv
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from reszoo.data.examples import Examples, Records
from reszoo.data.splits import SPLIT_NAMES, Indices, check_counts, hold_out, split_name
from reszoo.errors import DataError, UnknownNameError, UsageError
from reszoo.files import open_regular

# Data sets that are opened by name; a folder of that name comes first.
BUILT_IN = ("digits",)
# What Pillow decodes; the pipeline has it decode what TensorFlow cannot.
JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")
SUFFIXES = (*JPEG_SUFFIXES, ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff")
# Images that not every Pillow decodes, or none. Other files are no images.
_UNSUPPORTED = (
    *(".heic", ".heif", ".avif", ".jp2", ".j2k", ".jxl", ".svg", ".psd", ".exr"),
    *(".ppm", ".pgm", ".tga", ".dng", ".cr2", ".cr3", ".nef", ".arw"),
)


class Unreadable(NamedTuple):
    """An image that cannot be used: its path or record, and why."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Encoded images, their targets and splits; no image has been opened.

    Attributes:
        labels: Sorted by code point.
        targets: int64 `(n,)`, indices into `labels`.
        splits: Indices of images by name: "train", "validation", "test". Where the
            data has no splits, "all", and "train" and "validation" drawn from it.
        paths: Every image file once.
        records: The images, where they are not in files of their own.
        root: The folder that paths in messages and fingerprints are relative to.
        unsupported: Files of formats that are not supported, such as HEIC.
    """

    labels: tuple[str, ...]
    targets: NDArray[np.int64]
    splits: Mapping[str, Indices]
    paths: tuple[str, ...] = ()
    records: Records | None = None
    root: str = ""
    unsupported: tuple[Unreadable, ...] = ()

    @property
    def examples(self) -> Examples:
        """All images, without their headers."""
        paths = self.paths if self.records is None else None
        return Examples(self.targets, paths=paths, records=self.records)

    @property
    def disjoint_splits(self) -> dict[str, Indices]:
        """The splits without "all": every image is in one of them."""
        return {name: part for name, part in self.splits.items() if name != "all"}


def list_images(data: str | os.PathLike[str]) -> Listing:
    """List the image files of a folder or a CSV file; open none of them.

    Args:
        data: A folder of class folders, or a `.csv` file.

    Raises:
        DataError: There are no images or one class, or a line of the file is invalid.
        UsageError: The data is of another kind, or there is no such folder or file.
    """
    is_path = isinstance(data, str | os.PathLike)
    named = is_path and (data in BUILT_IN or str(data).startswith("tfds:"))
    if not is_path or (named and not Path(data).exists()):
        raise UsageError(
            "Expected a folder of images or a .csv file that lists images. "
            f"Received: {data if is_path else type(data)!r}."
        )
    root = Path(data)
    if not root.exists():
        raise UnknownNameError("folder, .csv file or data set", str(root), BUILT_IN)
    if root.is_dir():
        return _read_folder(root)
    if root.suffix.lower() != ".csv":
        raise DataError(
            f"{root} is a file. Give a folder of class folders with images, or a .csv "
            "file with a line path,label for each."
        )
    return _read_csv(root)


def _read_folder(root: Path) -> Listing:
    """List the classes and the image files of a folder.

    Classes are sorted by code point, files by path, so that every machine and every
    run agrees on the targets. Hidden files and folders are ignored, links are
    followed.

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
            of printable text, or a link to a folder that contains it.
    """
    folders = _split_folders(root) or {"all": root}
    labels = _common_labels(root, folders)
    # A split that is drawn needs an image on either side.
    least = 2 if "all" in folders else 1
    paths: list[str] = []
    unsupported: list[Unreadable] = []
    targets, splits = [], {}
    for split, folder in folders.items():
        images, found, others = _class_images(folder, labels, least)
        splits[split] = np.arange(len(paths), len(paths) + len(images))
        targets.append(found)
        paths += images
        unsupported += others
    every = np.concatenate(targets)
    if "all" in splits:
        splits = hold_out(every)
    return Listing(
        labels=labels,
        targets=every,
        splits=splits,
        paths=tuple(paths),
        root=str(root),
        unsupported=tuple(unsupported),
    )


def _split_folders(root: Path) -> dict[str, Path]:
    """Return the folder of each split; nothing where the folders are classes."""
    found: dict[str, list[Path]] = {}
    for folder in sorted(_visible_folders(root)):
        split = split_name(folder.name)
        if split:
            found.setdefault(split, []).append(folder)
    # A class may be called "train", "val" or "test" too.
    if "train" in found:
        are_splits = len(found) > 1 or any(
            _visible_folders(folder) or not any(_images(str(folder)))
            for folder in found["train"]
        )
    else:
        every = chain.from_iterable(found.values())
        are_splits = len(found) > 1 and all(map(_visible_folders, every))
    if not are_splits:
        return {}
    for split, folders in found.items():
        if len(folders) > 1:
            raise DataError(
                f"{root} has more than one folder for its {split} split: "
                f"{', '.join(folder.name for folder in folders)}. Keep one of them."
            )
    return {split: folder for split, (folder,) in found.items()}


def _visible_folders(folder: Path) -> list[Path]:
    return [f for f in folder.iterdir() if f.is_dir() and not f.name.startswith(".")]


def _common_labels(root: Path, folders: Mapping[str, Path]) -> tuple[str, ...]:
    """Return the names of the class folders, which all splits must have."""
    classes = [sorted(f.name for f in _visible_folders(f)) for f in folders.values()]
    for folder, names in zip(folders.values(), classes, strict=True):
        bad = [str(folder / name) for name in names if not name.isprintable()]
        if bad:
            raise DataError(
                "A class folder must have a name of printable text, for it becomes a "
                f"label. Rename {', '.join(map(repr, bad))}."
            )
    partial = set().union(*classes).difference(set(classes[0]).intersection(*classes))
    if partial:
        raise DataError(
            f"The splits of {root} have different classes. Not in all of them: "
            f"{', '.join(sorted(partial))}."
        )
    return tuple(classes[0])


def _class_images(
    folder: Path, labels: tuple[str, ...], least: int
) -> tuple[list[str], Indices, list[Unreadable]]:
    """Return one split's images, their targets, and unsupported files."""
    images: list[str] = []
    unsupported: list[Unreadable] = []
    counts = []
    for label in labels:
        found, others = _images(str(folder / label))
        images += found
        unsupported += others
        counts.append(len(found))
    suffixes = sorted({Path(path).suffix.lower() for path, _ in unsupported})
    hint = f" (unsupported files there: {', '.join(suffixes)})" if suffixes else ""
    if not images:
        raise DataError(
            f"{folder} has no images in class folders. Expected {folder}/CLASS/*.jpg "
            f"({', '.join(SUFFIXES)}){hint}."
        )
    if len(labels) < 2:
        raise DataError(
            f"{folder} has one class, {labels[0]!r}. A classifier needs at least two "
            "class folders."
        )
    targets = np.repeat(np.arange(len(labels)), counts)
    check_counts(targets, labels, least, f"{folder}{hint}")
    return images, targets, unsupported


def _images(folder: str) -> tuple[list[str], list[Unreadable]]:
    """Return the images under a folder, and the unsupported files."""
    images, unsupported = [], []
    for path in _walk(folder, os.path.realpath(folder), ()):
        name = path.lower()
        if name.endswith(SUFFIXES):
            images.append(path)
        elif name.endswith(_UNSUPPORTED):
            suffix = Path(name).suffix
            reason = f"{suffix} files are not supported; convert them to PNG or JPEG"
            unsupported.append(Unreadable(path, reason))
    return images, unsupported


def walk_images(folder: str) -> Iterator[str]:
    """Yield the image files under a folder lazily, also those that are not supported.

    In the order of their paths' parts; hidden files and folders are ignored.

    Raises:
        DataError: A link leads to a folder that contains it.
    """
    known = (*SUFFIXES, *_UNSUPPORTED)
    for path in _walk(folder, os.path.realpath(folder), ()):
        if path.lower().endswith(known):
            yield path


def _walk(folder: str, real: str, crossed: tuple[str, ...]) -> Iterator[str]:
    """Yield the visible files under a folder, in the order of their paths' parts.

    Strings, one folder at a time: a million `Path`s would fill a gigabyte.

    Args:
        folder: Where to look.
        real: The same without links.
        crossed: Real folders of the links that led here.

    Raises:
        DataError: A link leads to a folder that contains it; names the link.
    """
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    for entry in sorted(visible, key=lambda entry: entry.name):
        if entry.is_dir(follow_symlinks=False):
            inner = f"{real.rstrip(os.sep)}{os.sep}{entry.name}"
            yield from _walk(entry.path, inner, crossed)
        elif entry.is_symlink() and Path(entry.path).is_dir():
            target, parents = os.path.realpath(entry.path), (*crossed, real)
            if any(Path(parent).is_relative_to(target) for parent in parents):
                raise DataError(
                    f"{entry.path} is a link to {target}, which contains it: its "
                    "images would be found without end. Remove the link."
                )
            yield from _walk(entry.path, target, parents)
        else:
            yield entry.path


_COLUMNS = ("path", "label", "split")
_FORM = "A line is path,label or path,label,split."
# What `surrogateescape` makes of bytes that are not UTF-8.
_NO_UTF8 = re.compile("[\udc80-\udcff]")


class _Row(NamedTuple):
    split: str
    path: str
    label: str


def _read_csv(file: Path) -> Listing:
    """List the classes and the images of a CSV file.

    A first line that names the columns may bring them in another order. The text is
    UTF-8; fields with commas stand in double quotes.

    Classes are sorted by code point and images by path, so that the order of the
    lines means nothing.

    Raises:
        DataError: An invalid line, named by its number; no images, fewer than two
            classes, or a class with too few images to train on.
    """
    rows = sorted(_checked_rows(file))
    labels = tuple(sorted({row.label for row in rows}))
    if len(labels) < 2:
        found = f"the one class {labels[0]!r}" if labels else "no images"
        raise DataError(
            f"{file} lists {found}. A classifier needs at least two classes. {_FORM}"
        )
    numbers = {label: number for number, label in enumerate(labels)}
    targets = np.asarray([numbers[row.label] for row in rows], np.int64)
    names = np.asarray([row.split for row in rows])
    splits = {str(name): np.flatnonzero(names == name) for name in np.unique(names)}
    if "all" in splits:
        check_counts(targets, labels, 2, str(file))
        splits = hold_out(targets)
    elif "train" in splits:
        check_counts(targets[splits["train"]], labels, 1, str(file))
    paths, root = tuple(row.path for row in rows), str(file.parent)
    return Listing(
        labels=labels, targets=targets, splits=splits, paths=paths, root=root
    )


def _checked_rows(file: Path) -> Iterator[_Row]:
    """Yield the rows; their split is "all" where the file names none."""
    lines: dict[str, int] = {}
    first: _Row | None = None
    for line, row in _rows(file):
        first = first or row
        problem = _problem(row, first, lines)
        if problem:
            raise _wrong(file, line, problem)
        lines[row.path] = line
        yield row._replace(split=split_name(row.split) or "all")


def _problem(row: _Row, first: _Row, lines: Mapping[str, int]) -> str | None:
    """Return what is wrong with a row, given the first one and the lines of paths."""
    if _NO_UTF8.search("".join(row)):
        return "is not UTF-8"
    if not row.path or not row.label:
        return f"has no {'label' if row.path else 'path'}"
    if not row.label.isprintable():
        return f"has a label that is not printable, {row.label!r}"
    if row.path in lines:
        return f"repeats {row.path} of line {lines[row.path]}"
    # Unknown names of columns must not become an image.
    is_image = row is not first or row.path.lower().endswith(SUFFIXES)
    if not is_image and not Path(row.path).exists():
        return (
            f"names no image ({row.path}); as names of columns, "
            f"{', '.join(_COLUMNS)} are known"
        )
    if bool(row.split) != bool(first.split):
        return "differs from those above: all lines name a split, or none"
    if row.split and not split_name(row.split):
        return f"has the split {row.split!r}; known are {', '.join(SPLIT_NAMES)}"
    return None


def _opened(file: Path) -> BinaryIO:
    try:
        return open_regular(file)
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}).") from error


def _rows(file: Path) -> Iterator[tuple[int, _Row]]:
    """Yield the number and the fields of each line that is not blank."""
    columns: Sequence[str] = _COLUMNS
    # Bytes that are no UTF-8 come through, so that their line can be named.
    with (
        _opened(file) as binary,
        TextIOWrapper(binary, "utf-8-sig", "surrogateescape", newline="") as text,
    ):
        reader = csv.reader(text, strict=True, skipinitialspace=True)
        try:
            for fields in filter(any, reader):
                names = [field.strip().casefold() for field in fields]
                named = {"path", "label"} <= set(names) <= set(_COLUMNS)
                if reader.line_num == 1 and named:
                    columns = names
                elif 2 <= len(fields) <= len(columns):
                    yield reader.line_num, _row(file, columns, fields)
                else:
                    raise _wrong(file, reader.line_num, f"has {len(fields)} fields")
        except csv.Error as error:
            what = f"is not valid CSV ({error})"
            raise _wrong(file, reader.line_num, what) from error


def _row(file: Path, columns: Sequence[str], fields: Sequence[str]) -> _Row:
    named = dict(zip(columns, map(str.strip, fields), strict=False))
    name = named.get("path", "")
    path = os.path.join(file.parent, name) if name else ""  # noqa: PTH118
    # Of a million lines the label of each would otherwise be a string of its own.
    return _Row(named.get("split", ""), path, sys.intern(named.get("label", "")))


def _wrong(file: Path, line: int, what: str) -> DataError:
    return DataError(f"{file} line {line} {what}. {_FORM}")
