"""Resize the images of a data set once, so that training reads small files."""

import os
import shlex
import shutil
import timeit
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import chain, count
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from reszoo import defaults
from reszoo.console import say
from reszoo.data import image_files as files
from reszoo.data.checks import check_policy, refuse_first
from reszoo.data.examples import Examples
from reszoo.data.listing import Listing, Unreadable, list_images
from reszoo.data.splits import check_counts, split_name
from reszoo.errors import DataError
from reszoo.fields import check_range
from reszoo.files import StrPath, atomic_folder, check_outside, free_folder
from reszoo.preprocessing import scaled_sides

# A much larger image is first reduced to this many times its final size, by the JPEG
# decoder or by averaging: large photos take a quarter of the time, with no visible
# difference. See Pillow's documentation of `reducing_gap`.
_REDUCING_GAP = 3.0
# Images that the gain of resizing is measured on, and from what gain it is advised.
_MEASURED, _WORTHWHILE = 8, 1.5
# Split -> the usual name of its folder.
_FOLDERS = {"train": "train", "validation": "val", "test": "test"}
_LOSSLESS = ("PNG", "BMP", "GIF", "TIFF")
_SUFFIXES = {"JPEG": files.JPEG_SUFFIXES, "PNG": (".png",)}
# Files that any library reads as the same RGB: the modes of a format, and how a
# complete file ends.
_COPIED = {
    "JPEG": (("RGB", "L"), files.JPEG_END),
    "PNG": (("RGB", "L", "P", "1"), files.PNG_END),
}


@dataclass(frozen=True, kw_only=True)
class ResizeResult:
    """What was written.

    Attributes:
        folder: Where.
        images: Number of images by split.
        copied: How many of them are the unchanged bytes of their files.
        bytes_before: Size of these images before.
        bytes_after: Their size now.
        unreadable: Images that were left out, and why.
    """

    folder: Path
    images: dict[str, int]
    copied: int
    bytes_before: int
    bytes_after: int
    unreadable: tuple[Unreadable, ...]


def resize_images(
    data: StrPath,
    output: StrPath,
    *,
    side: int = defaults.RESIZE_SIDE,
    quality: int = defaults.JPEG_QUALITY,
    bad_images: str = defaults.BAD_IMAGES,
) -> ResizeResult:
    """Write a data set as a folder of smaller JPEG and PNG files.

    Images are turned upright and made smaller, never larger. A small upright JPEG or
    PNG is copied unchanged. Lossless formats (PNG, BMP, GIF, TIFF) become PNGs, others
    JPEGs. Equal data gives equal files.

    The folder has the same class folders, in the same splits (`train`, `val`, `test`).
    Where the data has no splits, neither has the folder, provided that the same images
    are held out from it; otherwise, as when images were left out, they are in `train`
    and `val` folders.

    Args:
        data: A folder of class folders, or a `.csv` file that lists images.
        output: A new folder.
        side: Length of the short side, in pixels, to which larger images are brought.
        quality: Of the JPEGs that are written anew, 1 to 95 (with colours at half
            the resolution, as cameras do).
        bad_images: "error" stops at the first unreadable image, "skip" leaves
            unreadable ones out and lists them, "recover" does too but keeps truncated
            JPEGs.

    Raises:
        DataError: An image is unreadable, or the data cannot be used.
        UsageError: The output exists, or an argument is invalid.
        ReszooError: The disk refused the write.

    Example:
        >>> resize_images("photos", "photos-256", side=256)
    """
    check_policy(bad_images)
    # Above 95 JPEGs grow and gain nothing; Pillow's documentation of `quality`.
    check_range("quality", quality, "[1, 95]", int)
    check_range("side", side, "[1, inf)", int)
    check_outside(folder := free_folder(output), data)
    listing = list_images(data)
    bad = [label for label in listing.labels if "/" in label or label.startswith(".")]
    if bad:
        raise DataError(
            "Labels become names of folders. Rename those that contain a slash or "
            f"begin with a dot: {', '.join(bad)}."
        )
    unreadable = list(listing.unsupported)
    refuse_first(unreadable, bad_images)
    for note in listing.notes:
        say(note)
    names: dict[int, str] = {}
    # Of the written images: unchanged ones, bytes before and after.
    totals = np.zeros(3, np.int64)
    encode = partial(_encode, side=side, quality=quality, bad_images=bad_images)
    with atomic_folder(folder, partial(free_folder, folder)) as unfinished:
        taken: set[str] = set()
        encoded = files.in_threads(encode, listing.paths, "Resizing images")
        named = zip(_names(listing), encoded, strict=True)
        for index, (name, image) in enumerate(named):
            if isinstance(image, Unreadable):
                unreadable.append(image)
                refuse_first(unreadable, bad_images)
                continue
            names[index] = _free_name(name, image.format, taken)
            file = unfinished / names[index]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(image.content)
            totals += image.copied, image.bytes_before, len(image.content)
        splits = _written_splits(listing, names)
        if "all" in listing.splits and not _reads_as(unfinished, splits):
            _move_into_splits(unfinished, splits)
    copied, before, after = totals.tolist()
    images = {split: len(paths) for split, paths in splits.items()}
    return ResizeResult(
        folder=folder, images=images, copied=copied, bytes_before=before,
        bytes_after=after, unreadable=tuple(unreadable),
    )  # fmt: skip


def resizing_gain(examples: Examples, data: str) -> str:
    """Return a sentence about what resizing would bring, measured on some images.

    `data` is where they are, for the command; images that are not in files cannot be
    resized for good.
    """
    remedy = "more processor cores decode faster."
    if examples.paths is None:
        return remedy
    paths = examples.paths[:: max(1, len(examples) // _MEASURED)][:_MEASURED]
    sizes, seconds = np.zeros(2), np.zeros(2)
    for path in paths:
        small = _encode(path, defaults.RESIZE_SIDE, defaults.JPEG_QUALITY, "recover")
        if isinstance(small, Unreadable):
            continue
        for n, content in enumerate((files.read_file(path), small.content)):
            # The first time is longer.
            decode = partial(files.open_image, content, path, recover=True)
            seconds[n] += min(timeit.repeat(decode, repeat=2, number=1))
            sizes[n] += len(content)
    before, after = 1000 * seconds / len(paths)
    measured = f"{before:.1f} ms to decode one, {after:.1f} ms once resized"
    if before < _WORTHWHILE * after:
        return f"resizing would bring little ({measured}); {remedy}"
    command = ["reszoo", "resize", data, "--output", f"{data.rstrip('/')}-resized"]
    return (
        f"`{shlex.join(command)}` would make reading {before / after:.1f} times faster "
        f"and files {sizes[0] / sizes[1]:.1f} times smaller: {measured}, measured on "
        f"{len(paths)} of your images."
    )


class _Encoded(NamedTuple):
    """An image to write: its file, format, whether it is unchanged, and old size."""

    content: bytes
    format: str
    copied: bool
    bytes_before: int


def _encode(
    path: str, side: int, quality: int, bad_images: str
) -> _Encoded | Unreadable:
    try:
        content = files.read_file(path)
        with files.opened(content, path, recover=bad_images == "recover") as image:
            kind = str(image.format)
            if _is_copied(image, content, side):
                image.load()
                return _Encoded(content, kind, True, len(content))
            resized = _resized(image, side)
    except DataError as error:
        return Unreadable(path, files.reason_of(error.__cause__ or error))
    kind = "PNG" if kind in _LOSSLESS else "JPEG"
    buffer = BytesIO()
    resized.save(buffer, kind, **({"quality": quality} if kind == "JPEG" else {}))
    return _Encoded(buffer.getvalue(), kind, False, len(content))


def _is_copied(image: Image.Image, content: bytes, side: int) -> bool:
    """Return whether a file stays as it is: complete, upright, small, plain RGB."""
    modes, end = _COPIED.get(str(image.format), ((), b""))
    return (
        min(image.size) <= side
        and image.mode in modes
        and ";16" not in str(getattr(image, "tile", ""))
        and not image.has_transparency_data
        and files.orientation_of(image) == 1
        and content.endswith(end)
    )


def _resized(image: Image.Image, side: int) -> Image.Image:
    grey, short = image.mode == "L", min(image.size)
    if short <= side:
        resized = files.upright_rgb(image)
    else:
        sides = (image.height, image.width, (side, side))
        height, width = scaled_sides(*sides, covering=True)
        swapped = files.orientation_of(image) > 4
        image.draft(None, (int(_REDUCING_GAP * width), int(_REDUCING_GAP * height)))
        resized = files.upright_rgb(image).resize(
            (height, width) if swapped else (width, height),
            Image.Resampling.BICUBIC,
            reducing_gap=_REDUCING_GAP,
        )
    return resized.convert("L") if grey else resized


def _names(listing: Listing) -> Iterator[str]:
    """Yield each image's path in the new folder; its extension may change."""
    split_of = np.full(len(listing.paths), "", object)
    if "all" not in listing.splits:
        for split, indices in listing.splits.items():
            split_of[indices] = split
    rows = zip(listing.paths, split_of, listing.targets, strict=True)
    for path, split, target in rows:
        label = listing.labels[target]
        *parts, file = Path(os.path.relpath(path, listing.root)).parts
        parts = [] if parts[:1] == [os.pardir] else parts
        if split and parts and split_name(parts[0]) == split:
            del parts[0]
        if parts[:1] == [label]:
            del parts[0]
        yield "/".join([*([_FOLDERS[split]] if split else []), label, *parts, file])


def _free_name(name: str, kind: str, taken: set[str]) -> str:
    """Return a name with the format's extension that no other image has."""
    suffix = Path(name).suffix
    if suffix.lower() not in _SUFFIXES[kind]:
        name, suffix = f"{name}{_SUFFIXES[kind][0]}", _SUFFIXES[kind][0]
    numbered = (f"{name.removesuffix(suffix)}-{number}{suffix}" for number in count(2))
    free = next(n for n in chain([name], numbered) if n not in taken)
    taken.add(free)
    return free


def _written_splits(listing: Listing, names: Mapping[int, str]) -> dict[str, list[str]]:
    """Return the written images by split; a DataError if a class has none in one."""
    splits = {}
    for split, indices in listing.disjoint_splits.items():
        kept = [index for index in indices.tolist() if index in names]
        where = f"the readable images of the {split} split"
        check_counts(listing.targets[kept], listing.labels, 1, where)
        splits[split] = [names[index] for index in kept]
    return splits


def _reads_as(folder: Path, splits: Mapping[str, list[str]]) -> bool:
    """Return whether a folder without split folders is split as expected."""
    try:
        listing = list_images(folder)
    except DataError:
        return False
    found = {
        split: {os.path.relpath(listing.paths[index], folder) for index in indices}
        for split, indices in listing.disjoint_splits.items()
    }
    return found == {split: {*names} for split, names in splits.items()}


def _move_into_splits(folder: Path, splits: Mapping[str, list[str]]) -> None:
    # Out of the way first: a class may be called "train".
    classes, labels = folder / ".classes", list(folder.iterdir())
    classes.mkdir()
    for label in labels:
        label.rename(classes / label.name)
    for split, names in splits.items():
        for name in names:
            moved = folder / _FOLDERS[split] / name
            moved.parent.mkdir(parents=True, exist_ok=True)
            (classes / name).rename(moved)
    shutil.rmtree(classes)
