"""Read a folder of class folders with images, with or without split folders."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from reszoo.data.listing import Files, Listing, check_counts, with_held_out
from reszoo.data.splits import split_name
from reszoo.errors import DataError

# What Pillow decodes; the pipeline has it decode what TensorFlow cannot.
SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp")


def read(root: Path) -> Listing:
    """List the classes and the image files of a folder; open none.

    Classes are sorted by code point, files by path, so that every machine and
    every run agrees on the labels. Hidden files and folders are passed over.

    Split folders may be written in capitals. A lone `train` beside no other split
    folder, with images and no folders in it, is a class of that name.

    Args:
        root: `root/class/*.jpg` or `root/train/class/*.jpg`; deeper folders under
            a class belong to it.

    Raises:
        DataError: No images, fewer than two classes, a class without images (with
            fewer than two, where there are no split folders), two folders for one
            split, or splits whose classes differ.
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
    odd = {name for found in classes.values() for name in set(found) ^ set(names)}
    if odd:
        raise DataError(
            f"The splits of {root} have different classes. Not in all of them: "
            f"{', '.join(sorted(odd))}."
        )
    files = {
        split: _files(folder, names, least) for split, folder in split_folders.items()
    }
    splits = with_held_out(files["all"]) if set(files) == {"all"} else files
    return Listing(str(root), names, splits)


def _split_folders(root: Path) -> dict[str, Path]:
    """Return the folder of each split; nothing where the folders are classes."""
    found: dict[str, list[Path]] = {}
    for folder in sorted(_visible_folders(root)):
        split = split_name(folder.name)
        if split:
            found.setdefault(split, []).append(folder)
    train = found.get("train", [])
    if not train or (len(found) == 1 and all(map(_is_class, train))):
        return {}
    for split, folders in found.items():
        if len(folders) > 1:
            raise DataError(
                f"{root} has more than one folder for its {split} split: "
                f"{', '.join(folder.name for folder in folders)}. Keep one of them."
            )
    return {split: folder for split, (folder,) in found.items()}


def _files(folder: Path, names: tuple[str, ...], least: int) -> Files:
    by_class = {name: list(_images(str(folder / name))) for name in names}
    if not any(by_class.values()):
        raise DataError(
            f"{folder} has no images in class folders. Expected {folder}/CLASS/*.jpg "
            f"({', '.join(SUFFIXES)})."
        )
    if len(names) < 2:
        raise DataError(
            f"{folder} has one class, {names[0]!r}. A classifier needs at least two "
            "class folders."
        )
    paths = tuple(path for name in names for path in by_class[name])
    counts = [len(by_class[name]) for name in names]
    labels = np.repeat(np.arange(len(names)), counts).astype(np.int64)
    check_counts(labels, names, least, str(folder))
    return Files(paths, labels)


def _images(folder: str) -> Iterator[str]:
    """Yield the image files under a folder, in the order of their paths' parts.

    Strings, one folder at a time: a million `Path`s would fill a gigabyte.
    """
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    for entry in sorted(visible, key=lambda entry: entry.name):
        if entry.is_dir(follow_symlinks=False):
            yield from _images(entry.path)
        elif entry.name.lower().endswith(SUFFIXES) and not entry.is_dir():
            yield entry.path


def _is_class(folder: Path) -> bool:
    return not _visible_folders(folder) and any(_images(str(folder)))


def _visible_folders(folder: Path) -> list[Path]:
    return [f for f in folder.iterdir() if f.is_dir() and not f.name.startswith(".")]
