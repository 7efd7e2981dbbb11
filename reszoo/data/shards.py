"""Shards: a data set in a few large files, as `write_shards` left it.

    shards.json           classes, and the files of each split with their sizes
    train.npy             label, offset and length of every image, in order
    train-00000.tfrecord  `tf.train.Example`s with `image` (JPEG) and `label`

Others can read the TFRecord files with `tf.data`; here every image is read by itself,
so that any order is as good as another.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reszoo.data.examples import Examples
from reszoo.data.records import Records
from reszoo.errors import DataError

INDEX = "shards.json"
IMAGE, LABEL = "image", "label"
FORMAT = "reszoo shards 1"
# One image of the table beside the TFRecord files.
ROW = np.dtype([("label", "<i8"), ("offset", "<i8"), ("length", "<i8")])


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One TFRecord file: its name, its number of images, its size."""

    file: str
    records: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Index:
    """What `shards.json` holds.

    Attributes:
        class_names: Names in label order.
        mirror_safe: Whether a mirrored image still belongs to its class.
        side: The short side to which images were made smaller, in pixels.
        quality: Of the JPEGs that were written anew, 1 to 100.
        splits: The files of each split, in order.
    """

    class_names: tuple[str, ...]
    mirror_safe: bool
    side: int
    quality: int
    splits: Mapping[str, tuple[Shard, ...]]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, content: Any) -> "Index":
        """Return what `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: It is something else.
        """
        if content.pop("format") != FORMAT:
            raise ValueError("another version")
        splits = {
            split: tuple(Shard(**shard) for shard in shards)
            for split, shards in content["splits"].items()
        }
        names = tuple(content["class_names"])
        return cls(**{**content, "class_names": names, "splits": splits})


@dataclass(frozen=True)
class Sharded:
    """Shards that were opened: classes, examples by split, and what to mirror."""

    labels: tuple[str, ...]
    splits: Mapping[str, Examples]
    mirror_safe: bool


def is_sharded(folder: str | os.PathLike[str]) -> bool:
    """Return whether a folder holds shards."""
    return (Path(folder) / INDEX).is_file()


def read(folder: Path) -> Sharded:
    """Open shards: the index and the tables are read, the images are not.

    Raises:
        DataError: A file is missing, cut short, or does not fit the index; names it.
    """
    index = _index(folder / INDEX)
    splits = {
        split: _examples(folder, split, shards, len(index.class_names))
        for split, shards in index.splits.items()
    }
    return Sharded(index.class_names, splits, index.mirror_safe)


def table_name(split: str) -> str:
    """Return the name of a split's table."""
    return f"{split}.npy"


def _index(file: Path) -> Index:
    try:
        return Index.from_json(json.loads(file.read_text(encoding="utf-8")))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{file} is no index of shards that this version reads ({error}). "
            "Write the shards again with reszoo shard."
        ) from error


def _examples(
    folder: Path, split: str, shards: tuple[Shard, ...], classes: int
) -> Examples:
    for shard in shards:
        _check_size(folder / shard.file, shard.bytes)
    counts = [shard.records for shard in shards]
    rows = _table(folder / table_name(split), sum(counts))
    if len(rows) and not 0 <= rows["label"].min() <= rows["label"].max() < classes:
        raise _unfit(folder / table_name(split), f"labels are not all below {classes}")
    records = Records.from_counts(
        [str(folder / shard.file) for shard in shards],
        counts,
        rows["offset"].copy(),
        rows["length"].copy(),
    )
    return Examples(
        rows["label"].copy(),
        records=records,
        # All images were written upright, as JPEG.
        orientations=np.ones(len(rows), np.int32),
        by_pillow=np.zeros(len(rows), np.bool_),
    )


def _check_size(file: Path, expected: int) -> None:
    if not file.exists():
        raise DataError(f"{file} is missing. Write or copy the shards again.")
    found = file.stat().st_size
    if found != expected:
        raise _unfit(file, f"it has {found} bytes, the index says {expected}")


def _table(file: Path, expected: int) -> NDArray[np.void]:
    try:
        rows: NDArray[np.void] = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{file} cannot be read ({error}). Write or copy the shards again."
        ) from error
    if rows.dtype != ROW or rows.shape != (expected,):
        raise _unfit(file, f"it has {len(rows)} records, the index says {expected}")
    return rows


def _unfit(file: Path, what: str) -> DataError:
    return DataError(
        f"{file} does not fit {file.parent / INDEX}: {what}. "
        "Write or copy the shards again."
    )
