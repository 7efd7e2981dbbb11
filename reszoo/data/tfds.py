"""Data sets that TensorFlow Datasets has prepared on this machine, by name."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reszoo.data.examples import Examples, columns
from reszoo.data.image_files import Header, is_jpeg, read_header
from reszoo.data.listing import hold_out, split_name
from reszoo.data.records import Records
from reszoo.data.tfrecord import find_images
from reszoo.errors import DataError, UsageError

PREFIX = "tfds:"
_NAME = re.compile(r"(?P<name>\w+)(/(?P<config>[\w.+-]+))?(:(?P<version>[\d.]+))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
# A JPEG's header with its EXIF lies in here, thumbnails and all; the rest is pixels.
_HEADER_BYTES = 1 << 17
_FOUND = np.dtype([("offset", "<i8"), ("length", "<i8"), ("label", "<i8")])


def read(
    word: str, *, strict: bool = True
) -> tuple[tuple[str, ...], Mapping[str, Examples]]:
    """List the images of a prepared data set; nothing is ever downloaded.

    The splits are those called train, validation and test; others are passed over.
    Where only train is known, a fifth of every class becomes the validation split.
    Classes are sorted by code point, unless their names are the numbers from 0.

    Args:
        word: `tfds:NAME`, `tfds:NAME:VERSION` or `tfds:NAME/CONFIG:VERSION`; the
            latest version by default. It is looked for where `TFDS_DATA_DIR` says,
            else in `~/tensorflow_datasets`.
        strict: Whether an image without a readable header is an error; otherwise
            whoever decodes it will find out.

    Returns:
        Class names, and examples by split.

    Raises:
        DataError: TensorFlow Datasets is not installed, the data set is not prepared
            or holds no labelled images.
        UsageError: The name is none.
    """
    folder = _find(word)
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise DataError(
            f'{word} needs TensorFlow Datasets: pip install "reszoo[tfds]".'
        ) from error
    info = tensorflow_datasets.builder_from_directory(str(folder)).info
    if info.file_format.value != "tfrecord":
        raise DataError(
            f"{word} is stored as {info.file_format.value}. Prepare it as TFRecord: "
            'tfds.builder(NAME, file_format="tfrecord").download_and_prepare().'
        )
    image, label = _features(info, word)
    names, numbers = _in_order(tuple(info.features[label].names))
    splits = {
        name: _examples(_list(split, image, label), numbers, strict)
        for name, split in _splits(info, word).items()
    }
    if set(splits) == {"train"}:
        everything = splits["train"]
        drawn = hold_out(everything.targets).items()
        splits = {"all": everything} | {s: everything.take(i) for s, i in drawn}
    return names, splits


def _splits(info: Any, word: str) -> dict[str, Any]:
    named = {split_name(name): split for name, split in info.splits.items()}
    known = {name: split for name, split in named.items() if name}
    if not known:
        raise DataError(
            f"{word} has no split called train, validation or test. "
            f"It has: {', '.join(info.splits)}."
        )
    return known


def _find(word: str) -> Path:
    asked = _NAME.fullmatch(word.removeprefix(PREFIX))
    if not asked:
        raise UsageError(
            "A data set of TensorFlow Datasets is named tfds:NAME, tfds:NAME:VERSION "
            f"or tfds:NAME/CONFIG:VERSION. Received: {word}."
        )
    home = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    root = Path(home).expanduser() / asked["name"] / (asked["config"] or "")
    versions = {_number(folder.name): folder for folder in _prepared(root)}
    wanted = asked["version"]
    found = [v for v in versions if not wanted or v == _number(wanted)]
    if found:
        return versions[max(found)]
    configs = sorted(
        folder.name for folder in root.glob("*/") if any(_prepared(folder))
    )
    if configs:
        raise UsageError(
            f"{word} has configurations: {', '.join(configs)}. "
            f"Name one, as in tfds:{asked['name']}/{configs[0]}."
        )
    there = ", ".join(sorted(folder.name for folder in versions.values()))
    name = word.removeprefix(PREFIX)
    raise DataError(
        f"{word} is not prepared in {root}"
        f"{f' (versions there: {there})' if there else ''}. Prepare it once, which "
        f'may download it: python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}').download_and_prepare()\"."
    )


def _prepared(root: Path) -> Iterator[Path]:
    for folder in root.glob("*/"):
        if _VERSION.fullmatch(folder.name) and (folder / "features.json").exists():
            yield folder


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part)


def _features(info: Any, word: str) -> tuple[str, str]:
    """Return the names of the features with the image and with the label."""
    import tensorflow_datasets

    kinds = tensorflow_datasets.features
    image, label = info.supervised_keys or ("image", "label")
    wanted = ((image, kinds.Image), (label, kinds.ClassLabel))
    for name, kind in wanted:
        if not isinstance(dict(info.features).get(name), kind):
            raise DataError(
                f"{word} is no set of labelled images: it needs one Image and one "
                f"ClassLabel. It has: {', '.join(sorted(info.features))}."
            )
    return image, label


def _in_order(names: tuple[str, ...]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Return the names in our order, and the number there of each of theirs."""
    if names == tuple(map(str, range(len(names)))):
        return names, np.arange(len(names))
    order = sorted(range(len(names)), key=lambda number: names[number])
    return tuple(names[number] for number in order), np.argsort(order)


def _list(split: Any, image: str, label: str) -> tuple[Records, NDArray[np.int64]]:
    """Return where the images of a split are, and their labels as stored."""
    files = [str(file) for file in split.filepaths]
    rows = [np.fromiter(find_images(file, image, label), _FOUND) for file in files]
    for file, found, expected in zip(files, rows, split.shard_lengths, strict=True):
        if len(found) != expected:
            raise DataError(
                f"{file} has {len(found)} records, its data set says {expected}. "
                "Prepare the data set again."
            )
    every = np.concatenate(rows)
    counts = [len(found) for found in rows]
    offsets, lengths = every["offset"].copy(), every["length"].copy()
    return Records.from_counts(files, counts, offsets, lengths), every["label"].copy()


def _examples(
    listed: tuple[Records, NDArray[np.int64]],
    numbers: NDArray[np.int64],
    strict: bool,
) -> Examples:
    records, labels = listed
    # TensorFlow Datasets writes -1 where no label is known.
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(numbers):
        raise DataError(
            f"{records.files[0]} holds images without a label. Only splits whose "
            "images are all labelled can be used."
        )
    headers = (_header(records, index, strict) for index in range(len(records)))
    orientations, by_pillow = columns(headers)
    return Examples(
        numbers[labels],
        records=records,
        orientations=orientations,
        by_pillow=by_pillow,
    )


def _header(records: Records, index: int, strict: bool) -> Header:
    name = records.name(index)
    start = records.read(index, _HEADER_BYTES)
    if is_jpeg(start):
        with suppress(DataError):
            return read_header(start, name)
    try:
        return read_header(records.read(index), name)
    except DataError:
        if strict:
            raise
        # Pillow's message will name the record.
        return Header(orientation=1, by_pillow=True)
