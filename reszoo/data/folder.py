"""Read a folder of class folders with images, with or without split folders."""

from pathlib import Path

from reszoo.data.examples import Examples
from reszoo.errors import DataError

# What Pillow decodes; the pipeline has it decode what TensorFlow cannot.
SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp")
_SPLITS = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
_COUNTS = {1: "one image", 2: "two images"}


def read(root: Path) -> tuple[tuple[str, ...], dict[str, Examples]]:
    """List the classes and the examples of a folder.

    Classes are sorted by code point, files by path, so that every machine and
    every run agrees on the labels. Hidden files and folders are passed over.

    Split folders may be written in capitals. A lone `train` beside no other split
    folder, with images and no folders in it, is a class of that name.

    Args:
        root: `root/class/*.jpg` or `root/train/class/*.jpg`; deeper folders under
            a class belong to it.

    Returns:
        Class names, and examples by split; a single split "all" without split
        folders.

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
    examples = {
        split: _examples(folder, names, least)
        for split, folder in split_folders.items()
    }
    return names, examples


def _split_folders(root: Path) -> dict[str, Path]:
    """Return the folder of each split; nothing where the folders are classes."""
    found: dict[str, list[Path]] = {}
    for folder in sorted(_visible_folders(root)):
        split = _SPLITS.get(folder.name.casefold())
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


def _examples(folder: Path, names: tuple[str, ...], least: int) -> Examples:
    by_class = {name: _images(folder / name) for name in names}
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
    bare = [name for name, paths in by_class.items() if len(paths) < least]
    if bare:
        raise DataError(
            f"Every class needs at least {_COUNTS[least]}. Too few in {folder}: "
            f"{', '.join(bare)}."
        )
    paths = [path for name in names for path in by_class[name]]
    labels = [label for label, name in enumerate(names) for _ in by_class[name]]
    return Examples.from_paths(paths, labels)


def _images(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not _is_hidden(path.relative_to(folder))
    )


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _is_class(folder: Path) -> bool:
    return not _visible_folders(folder) and bool(_images(folder))


def _visible_folders(folder: Path) -> list[Path]:
    return [f for f in folder.iterdir() if f.is_dir() and not f.name.startswith(".")]
