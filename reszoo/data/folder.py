"""Read a folder of class folders with images, with or without split folders."""

from pathlib import Path

from reszoo.data.examples import Examples
from reszoo.errors import DataError

# What both TensorFlow and Pillow decode.
SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp")
_SPLITS = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}


def read(root: Path) -> tuple[tuple[str, ...], dict[str, Examples]]:
    """List the classes and the examples of a folder.

    Classes are sorted by code point, files by path, so that every machine and
    every run agrees on the labels. Hidden files and folders are passed over.

    Args:
        root: `root/class/*.jpg` or `root/train/class/*.jpg`; deeper folders under
            a class belong to it.

    Returns:
        Class names, and examples by split; a single split "all" without split
        folders.

    Raises:
        DataError: No images, fewer than two classes, a class without images, or
            splits whose classes differ.
    """
    folders = _visible_folders(root)
    if "train" in [folder.name for folder in folders]:
        split_folders = {_SPLITS[f.name]: f for f in folders if f.name in _SPLITS}
    else:
        split_folders = {"all": root}
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
    examples = {split: _examples(split_folders[split], names) for split in classes}
    return names, examples


def _examples(folder: Path, names: tuple[str, ...]) -> Examples:
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
    bare = [name for name, paths in by_class.items() if len(paths) < 2]
    if bare:
        raise DataError(
            f"Every class needs at least two images. Too few in {folder}: "
            f"{', '.join(bare)}."
        )
    paths = [path for name in names for path in by_class[name]]
    labels = [label for label, name in enumerate(names) for _ in by_class[name]]
    return Examples.from_paths(paths, labels)


def _images(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )


def _visible_folders(folder: Path) -> list[Path]:
    return [f for f in folder.iterdir() if f.is_dir() and not f.name.startswith(".")]
