"""Read a folder of class folders with images, with or without split folders."""

from pathlib import Path

import numpy as np

from reszoo.data.listing import Files, Listing, check_counts, with_held_out
from reszoo.data.splits import split_name
from reszoo.data.walk import files_under
from reszoo.errors import DataError

# What Pillow decodes; the pipeline has it decode what TensorFlow cannot.
_JPEG = (".jpg", ".jpeg", ".jpe", ".jfif")
SUFFIXES = (*_JPEG, ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff")
# Pictures that not every Pillow decodes, or none. Other files are no images.
_UNREAD = (
    *(".heic", ".heif", ".avif", ".jp2", ".j2k", ".jxl", ".svg", ".psd", ".exr"),
    *(".ppm", ".pgm", ".tga", ".dng", ".cr2", ".cr3", ".nef", ".arw"),
)


def read(root: Path) -> Listing:
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
    labels = np.repeat(np.arange(len(names)), counts).astype(np.int64)
    check_counts(labels, names, least, f"{folder}{_passed_over(unread)}")
    return Files(paths, labels), unread


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
