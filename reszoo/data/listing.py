"""List the image files, targets and splits of a folder or a CSV file."""

import os
import re
from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from reszoo.data import image_paths
from reszoo.data.examples import Examples, Records
from reszoo.data.image_files import SUFFIXES, image_kind
from reszoo.data.splits import SPLIT_NAMES, SPLITS, Indices, complete, split_name
from reszoo.errors import DataError, UnknownNameError, UsageError
from reszoo.files import StrPath, as_path

# Data sets that are opened by name; a folder of that name comes first.
BUILT_IN = ("digits",)
_CONVERT = "convert them to PNG or JPEG"
# Bytes that are no UTF-8, as Python has them (PEP 383).
_NO_UTF8 = re.compile("[\udc80-\udcff]")


class Unreadable(NamedTuple):
    """An image that cannot be used: its path or record, and why."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Encoded images, their targets and splits; no image has been opened."""

    labels: tuple[str, ...]  # sorted by code point
    targets: NDArray[np.int64]  # int64 `(n,)`, indices into `labels`
    # Indices of images by name: "train", "validation", "test". Where the data has no
    # splits, "all", and "train" and "validation" drawn from it.
    splits: Mapping[str, Indices]
    paths: tuple[str, ...] = ()  # every image file once
    # The images, where they are not in files of their own.
    records: Records | None = None
    root: str = ""  # the folder that paths in messages and fingerprints are relative to
    # Files of formats that are not supported, such as HEIC.
    unsupported: tuple[Unreadable, ...] = ()
    # How the data was understood, and what of it is not used; a line each.
    notes: tuple[str, ...] = ()

    @property
    def examples(self) -> Examples:
        """All images, without their headers."""
        paths = self.paths if self.records is None else None
        return Examples(self.targets, paths=paths, records=self.records)

    @property
    def disjoint_splits(self) -> dict[str, Indices]:
        """The splits without "all": every image is in one of them."""
        return {name: part for name, part in self.splits.items() if name != "all"}


def list_images(data: StrPath, validation_share: float | None = None) -> Listing:
    """List the image files of a folder of class folders or a CSV file, undecoded.

    A DataError if there are no images, fewer than two classes, or too few images of one
    to train on; for two folders of one split or class, a split with classes of its own,
    folders that look like splits of unknown names, a class whose name is not one line
    of printable text, and a link to a folder that contains it; for an invalid line,
    with its number. A UsageError if the data is of another kind, or there is no such
    folder or file.
    """
    is_path = isinstance(data, str | os.PathLike)
    named = is_path and (data in BUILT_IN or str(data).startswith("tfds:"))
    if not is_path or (named and not Path(data).exists()):
        raise UsageError(
            "Expected a folder of images or a .csv file that lists images. "
            f"Received: {data if is_path else type(data)!r}."
        )
    root = as_path(data)
    if root.is_dir():
        return _read_folder(root, validation_share)
    if image_paths.is_table(str(root)) and (root.exists() or ":" in root.name):
        return _read_csv(image_paths.open_table(str(root)), validation_share)
    if not root.exists():
        raise UnknownNameError("folder, .csv file or data set", str(root), BUILT_IN)
    raise DataError(
        f"{root} is a file. Give a folder of class folders with images, or a .csv "
        "file with a line path,label for each."
    )


def _read_folder(root: Path, validation_share: float | None) -> Listing:
    """List `root/class/*.jpg` or `root/train/class/*.jpg`, at any depth under a class.

    Classes are sorted by code point, files by path, so that every machine and every
    run agrees on the targets. Hidden files and folders are ignored, links are followed.
    """
    folders, notes = _split_folders(root)
    notes += filter(None, map(_loose_images, dict.fromkeys([root, *folders.values()])))
    classes = {split: _class_folders(folder) for split, folder in folders.items()}
    # A test split without class folders, as in competitions, has no labels.
    classes = {split: found for split, found in classes.items() if found} or classes
    labels = _common_labels(root, classes)
    paths: list[str] = []
    unsupported: list[Unreadable] = []
    unnamed: list[str] = []
    targets, given = array("q"), {}
    for split, found in classes.items():
        start = len(paths)
        for target, label in enumerate(labels):
            for path in image_paths.walk(str(found[label])) if label in found else ():
                kind = image_kind(path)
                if kind == "unsupported":
                    ending = Path(path).suffix.lower() or "HEIC and AVIF"
                    reason = f"{ending} files are not supported; {_CONVERT}"
                    unsupported.append(Unreadable(path, reason))
                elif kind:
                    paths.append(path)
                    targets.append(target)
                    unnamed += [path] * (kind == "unnamed")
        given[split] = np.arange(start, len(paths))
        if start == len(paths):
            raise DataError(
                f"{folders[split]} has no images in class folders. Expected "
                f"{folders[split]}/CLASS/*.jpg ({', '.join(SUFFIXES)})"
                f"{_suffixes(unsupported)}."
            )
    first = next(iter(classes))
    if len(labels) < 2:
        only = classes[first][labels[0]]
        inside = f" Or did you mean {only}?" if len(_folders(only)) > 1 else ""
        raise DataError(
            f"{folders[first]} has one class, {labels[0]!r}. A classifier needs at "
            f"least two class folders.{inside}"
        )
    if unnamed:
        notes.append(
            f"{len(unnamed):,} files without an image's ending are images by their "
            f"first bytes and are used, e.g. {unnamed[0]}"
        )
    numbers = np.asarray(targets, np.int64)
    where = f"{folders[first]}{_suffixes(unsupported)}"
    splits, more = complete(given, numbers, labels, where, validation_share)
    return Listing(
        labels=labels, targets=numbers, splits=splits, paths=tuple(paths),
        root=str(root), unsupported=tuple(unsupported), notes=(*notes, *more),
    )  # fmt: skip


def _suffixes(unsupported: list[Unreadable]) -> str:
    found = sorted({Path(path).suffix.lower() for path, _ in unsupported})
    return f" (unsupported files there: {', '.join(found)})" if found else ""


def _split_folders(root: Path) -> tuple[dict[str, Path], list[str]]:
    """Return the folder of each split, or `root` for "all", and what is notable."""
    folders = _folders(root)
    found: dict[str, list[Path]] = {}
    for folder in folders:
        if split := split_name(folder.name):
            found.setdefault(split, []).append(folder)
    # A class may be called "train", "val" or "test" too.
    if "train" in found:
        are_splits = len(found) > 1 or any(
            _folders(folder) or next(image_paths.walk_images(str(folder)), None) is None
            for folder in found["train"]
        )
    else:
        named = [*chain.from_iterable(found.values())]
        several = len(found) > 1 or len(named) == len(folders) == 1
        are_splits = several and all(map(_folders, named))
    if not are_splits:
        _refuse_hidden_splits(root, folders)
        return {"all": root}, []
    for split, same in found.items():
        if len(same) > 1:
            raise DataError(
                f"{root} has more than one folder for its {split} split: "
                f"{', '.join(folder.name for folder in same)}. Keep one of them."
            )
    splits = {split: same[0] for split, same in found.items()}
    notes = [
        f"{folder.name}/ is the {split} split"
        for split, folder in splits.items()
        if folder.name.casefold() not in (split, "val")
    ]
    return splits, notes + [
        f"{folder.name}/ is no known name of a split: its {images:,} images are not "
        f"used. Known are {', '.join(SPLIT_NAMES)}"
        for folder in folders
        if folder not in splits.values()
        and (images := sum(1 for _ in image_paths.walk_images(str(folder))))
    ]


def _refuse_hidden_splits(root: Path, folders: list[Path]) -> None:
    """Refuse folders as classes that have the same sub-folders and no images."""
    inner = {folder: {*_class_folders(folder)} for folder in folders}
    inner = {f: n for f, n in inner.items() if len(n) > 1 and not _loose_images(f)}
    counts = Counter(chain.from_iterable(inner.values()))
    shared = {name for name, times in counts.items() if times > 1}
    alike = [folder.name for folder, names in inner.items() if len(names & shared) > 1]
    if len(alike) > 1:
        raise DataError(
            f"The folders {', '.join(alike)} of {root} are no classes: they have the "
            f"same sub-folders ({', '.join(sorted(shared)[:5])}). Call splits train, "
            "val and test; list the images of other layouts in a .csv file."
        )


def _folders(folder: Path) -> list[Path]:
    """Return the visible folders in a folder, in order."""
    # Archives often hold a folder within one of the same name, which is passed through.
    names = [e.name for e in image_paths.visible(folder) if _is_folder(e)]
    inner = _folders(folder / folder.name) if names == [folder.name] else []
    return inner or [folder / name for name in names]


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    # A link to itself is none, and `is_dir` raises.
    linked = entry.is_symlink() and Path(entry.path).is_dir()
    return linked or entry.is_dir(follow_symlinks=False)


def _class_folders(folder: Path) -> dict[str, Path]:
    """Return the folder of each label, which is the folder's name in NFC."""
    found: dict[str, Path] = {}
    for each in _folders(folder):
        label = normalize("NFC", each.name)
        if label in found:
            raise DataError(
                f"{folder} has two folders for the class {label!r}, in two forms of "
                "Unicode. Move their images into one of them."
            )
        found[label] = each
    return found


def _loose_images(folder: Path) -> str:
    """Return a note about images that lie beside class folders, or ""."""
    files = [e.path for e in image_paths.visible(folder) if not _is_folder(e)]
    if not (loose := [*filter(image_kind, files)]):
        return ""
    where = f"directly in {folder} are in no class folder and not used"
    return f"{len(loose):,} images {where}, e.g. {min(loose)}"


def _common_labels(
    root: Path, classes: Mapping[str, Mapping[str, Path]]
) -> tuple[str, ...]:
    """Return the names of the class folders; other splits have none but train's."""
    for found in classes.values():
        bad = [str(path) for label, path in found.items() if not label.isprintable()]
        if bad:
            raise DataError(
                "A class folder must have a name of printable text, for it becomes a "
                f"label. Rename {', '.join(map(repr, bad))}."
            )
    everything = {*chain.from_iterable(classes.values())}
    if other := everything - {*classes.get("train", everything)}:
        raise DataError(
            f"The splits of {root} have different classes. Not in its train split: "
            f"{', '.join(sorted(other))}."
        )
    return tuple(sorted(everything))


def _read_csv(table: image_paths.Table, validation_share: float | None) -> Listing:
    """List the images of a CSV file, sorted as those of folders are."""
    lines, numbers, parts, known = _rows(table)
    labels = sorted(known)
    if len(labels) < 2:
        found = f"the one class {labels[0]!r}" if labels else "no images"
        raise DataError(
            f"{table.file} lists {found}. A classifier needs at least two classes. "
            f"{image_paths.FORM}"
        )
    paths = [*lines]
    order = np.asarray(sorted(range(len(paths)), key=paths.__getitem__))
    ranks = np.asarray([labels.index(label) for label in known])
    targets = ranks[np.frombuffer(numbers, np.int64)[order]]
    split_of = np.frombuffer(parts, np.int8)[order]
    places = {split: np.flatnonzero(split_of == n) for n, split in enumerate(_PARTS)}
    given = {split: place for split, place in places.items() if len(place)}
    splits, notes = complete(given, targets, labels, str(table.file), validation_share)
    return Listing(
        labels=tuple(labels), targets=targets, splits=splits,
        paths=tuple(paths[n] for n in order.tolist()),
        root=str(table.file.parent), notes=(*table.notes, *notes),
    )  # fmt: skip


_NO_IMAGE = (
    f"names no image ({{}}); as names of columns, {', '.join(image_paths.COLUMNS)} and "
    "usual words for them are known, others are named behind the file: "
    ":path=COLUMN:label=COLUMN"
)
_MIXED = "differs from those above: all lines name a split, or none"
_PARTS = ("all", *sorted(SPLITS))


def _rows(
    table: image_paths.Table,
) -> tuple[dict[str, int], "array[int]", "array[int]", dict[str, int]]:
    """Read and check the rows.

    What many rows share is checked once: two million of them take seconds. Returns the
    line of each path; of each row the number of its label and that of its split in
    `_PARTS`; and the numbers of the labels.
    """
    lines: dict[str, int] = {}
    numbers, parts = array("q"), array("b")
    labels: dict[str, int] = {}
    known: dict[tuple[str, str], tuple[int, int]] = {}
    width = len(table.names) or len(image_paths.COLUMNS)
    label_at, split_at = (table.columns.get(c, width) for c in ("label", "split"))
    for line, fields in table.rows():
        path, count = table.path(fields), len(fields)
        label = fields[label_at].strip() if label_at < count else ""
        split = fields[split_at].strip() if split_at < count else ""
        pair = known.get((label, split))
        earlier = lines.setdefault(path, line)
        odd = earlier != line or not path.isascii() or not path
        if pair is None or odd or not 2 <= count <= width:
            problem = f"has {count} fields" if not 2 <= count <= width else None
            problem = problem or _problem(path, label, split)
            if earlier != line:
                problem = problem or f"repeats {path} of line {earlier}"
            # The name of a column must not become an image.
            if not known and not table.names and not image_paths.names_image(path):
                problem = problem or _NO_IMAGE.format(path)
            elif known and bool(split) != bool(next(iter(known))[1]):
                problem = problem or _MIXED
            if problem:
                raise table.wrong(line, problem)
            number = labels.setdefault(normalize("NFC", label), len(labels))
            pair = number, _PARTS.index(split_name(split) or "all")
            known[label, split] = pair
        numbers.append(pair[0])
        parts.append(pair[1])
    return lines, numbers, parts, labels


def _problem(path: str, label: str, split: str) -> str | None:
    """Return what is wrong with a row by itself."""
    if _NO_UTF8.search(f"{path}{label}{split}"):
        return "is not UTF-8; name another encoding behind the file: :encoding=cp1252"
    if not path or not label:
        return f"has no {'label' if path else 'path'}"
    if not label.isprintable():
        return f"has a label that is not printable, {label!r}"
    if split and not split_name(split):
        return f"has the split {split!r}; known are {', '.join(SPLIT_NAMES)}"
    return None
