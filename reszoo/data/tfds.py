"""Data sets that TensorFlow Datasets has prepared on this machine, by name."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np

from reszoo.data.examples import Records
from reszoo.data.listing import Listing
from reszoo.data.splits import WORDS, complete, split_name
from reszoo.errors import DataError, UsageError

PREFIX = "tfds:"
_CHARACTERS = tuple(WORDS["characters"])
_NAME = re.compile(r"(?P<name>\w+)(/(?P<config>[\w.+-]+))?(:(?P<version>[\d.]+))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_PREPARE = (
    "python -c \"import tensorflow_datasets as tfds; tfds.builder('{name}', "
    "file_format='array_record').download_and_prepare()\""
)


def is_of_characters(data_set: str) -> bool:
    """Return whether a data set of TensorFlow Datasets shows digits or letters."""
    return data_set.removeprefix(PREFIX).lower().startswith(_CHARACTERS)


def read(data: str, validation_share: float | None = None) -> Listing:
    """List the images of a prepared data set; nothing is ever downloaded.

    It is named `tfds:NAME`, `tfds:NAME:VERSION` or `tfds:NAME/CONFIG:VERSION`, by
    default of the latest version, and looked for where `TFDS_DATA_DIR` says, else in
    `~/tensorflow_datasets`. It has to be prepared for random access, as ArrayRecord
    files. The splits are those called train, validation and test; others are named and
    ignored. Classes are sorted by code point, unless their names are the numbers from
    0. `validation_share` is that of `reszoo.data.splits.complete`.

    A DataError if TensorFlow Datasets is not installed, or the data set is not prepared
    or has no labelled images; a UsageError for an invalid name.
    """
    folder = _find(data)
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DataError(
            f'{data} needs TensorFlow Datasets: pip install "reszoo[tfds]".'
        ) from error
    builder = tfds.builder_from_directory(str(folder))
    image, label = _features(builder.info, data)
    sizes = _split_sizes(builder.info, data)
    try:
        source = builder.as_data_source(
            split="+".join(sizes), decoders={image: tfds.decode.SkipDecoding()}
        )
    except NotImplementedError as error:
        raise DataError(
            f"{data} is stored as {builder.info.file_format.value}, which has no "
            "random access. Prepare it as ArrayRecord in another TFDS_DATA_DIR: "
            f"{_PREPARE.format(name=data.removeprefix(PREFIX))}."
        ) from error
    rows = map(source.__getitem__, range(len(source)))
    found = np.asarray([(row[label], len(row[image])) for row in rows], np.int64)
    targets, lengths = found.reshape(-1, 2).T.copy()
    if len(targets) and targets.min() < 0:
        # TensorFlow Datasets writes -1 where no label is known.
        raise DataError(
            f"{data} has images without a label. Only splits whose images are all "
            "labelled can be used."
        )
    words = builder.info.features[label].names
    labels = tuple(normalize("NFC", word) for word in words)
    order = np.arange(len(labels))
    if labels != tuple(map(str, order)):
        # In our order, and the target of each of theirs.
        order, labels = np.argsort(np.argsort(labels)), tuple(sorted(labels))
    # Some data sets declare classes of which they have no image, as emnist/letters.
    present, targets = np.unique(order[targets], return_inverse=True)
    labels = tuple(labels[number] for number in present)
    name, numbers = f"tfds:{builder.info.full_name}", np.arange(len(source))
    records = Records(
        f"{name} {'+'.join(sizes)}", lambda n: source[n][image], numbers, lengths
    )
    parts = np.split(np.arange(len(targets)), np.cumsum([*sizes.values()])[:-1])
    given = {str(split_name(n)): part for n, part in zip(sizes, parts, strict=True)}
    splits, notes = complete(given, targets, labels, data, validation_share)
    if others := ", ".join(name for name in builder.info.splits if name not in sizes):
        notes = (f"not used are the splits {others} of {data}", *notes)
    return Listing(
        labels=labels, targets=targets, splits=splits, records=records, notes=notes
    )


def _split_sizes(info: Any, data: str) -> dict[str, int]:
    """Return the number of images of each split that has a known name."""
    known = {name: each for name, each in info.splits.items() if split_name(name)}
    if not known:
        raise DataError(
            f"{data} has no split called train, validation or test. "
            f"It has: {', '.join(info.splits)}."
        )
    if len({*map(split_name, known)}) < len(known):
        raise DataError(
            f"{data} has two splits of one kind among {', '.join(known)}; reszoo uses "
            "one each for training, validation and test."
        )
    return {name: int(split.num_examples) for name, split in known.items()}


def _find(data: str) -> Path:
    """Return the folder of the wanted version."""
    if not (wanted := _NAME.fullmatch(data.removeprefix(PREFIX))):
        raise UsageError(
            "A data set of TensorFlow Datasets is named tfds:NAME, tfds:NAME:VERSION "
            f"or tfds:NAME/CONFIG:VERSION. Received: {data}."
        )
    home = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    root = Path(home).expanduser() / wanted["name"] / (wanted["config"] or "")
    versions = {_number(folder.name): folder for folder in _prepared(root)}
    version = wanted["version"]
    if found := [v for v in versions if not version or v == _number(version)]:
        return versions[max(found)]
    configs = sorted(each.name for each in root.glob("*/") if any(_prepared(each)))
    if configs:
        raise UsageError(
            f"{data} has configurations: {', '.join(configs)}. "
            f"Name one, as in tfds:{wanted['name']}/{configs[0]}."
        )
    there = ", ".join(sorted(folder.name for folder in versions.values()))
    raise DataError(
        f"{data} is not prepared in {root}"
        f"{f' (versions there: {there})' if there else ''}. Prepare it once, which "
        f"may download it: {_PREPARE.format(name=data.removeprefix(PREFIX))}."
    )


def _prepared(root: Path) -> Iterator[Path]:
    for file in root.glob("*/features.json"):
        if _VERSION.fullmatch(file.parent.name):
            yield file.parent


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part)


def _features(info: Any, data: str) -> tuple[str, str]:
    """Return the names of the features with the image and with the label."""
    from tensorflow_datasets.core.features import ClassLabel, Image

    image, label = info.supervised_keys or ("image", "label")
    for name, kind in ((image, Image), (label, ClassLabel)):
        if not isinstance(dict(info.features).get(name), kind):
            raise DataError(
                f"{data} is no set of labelled images: it needs one Image and one "
                f"ClassLabel. It has: {', '.join(sorted(info.features))}."
            )
    return image, label
