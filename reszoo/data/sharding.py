"""Write shards: images made smaller once, in files that are read fast."""

import errno
import os
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image

from reszoo import defaults
from reszoo.console import Progress
from reszoo.data.bad_images import Unreadable
from reszoo.data.examples import Examples
from reszoo.data.image_files import JPEG_END, is_jpeg, opened
from reszoo.data.shards import (
    IMAGE,
    INDEX,
    LABEL,
    ROW,
    Index,
    Shard,
    is_sharded,
    table_name,
)
from reszoo.data.sources import Data, Source, open_source
from reszoo.data.tfrecord import HEAD, TAIL
from reszoo.errors import DataError, UsageError
from reszoo.files import atomic_folder, write_json
from reszoo.preprocessing import scaled_side

# Images that are handed to the threads at a time.
_WAVE = 128
_PER_SHARD = 128 << 20  # bytes: TensorFlow's guide names 100 MB and more.


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """What was written.

    Attributes:
        folder: Where.
        images: Number of images by split.
        copied: How many of them are the very bytes of their files.
        files: Number of TFRecord files.
        bytes: Their size together.
        unreadable: Images that were left out, and why.
    """

    folder: Path
    images: dict[str, int]
    copied: int
    files: int
    bytes: int
    unreadable: tuple[Unreadable, ...]


class _Jpeg(NamedTuple):
    data: bytes
    copied: bool


def write_shards(
    data: Data,
    output: str | os.PathLike[str],
    *,
    side: int = 256,
    quality: int = 95,
    per_shard: int = _PER_SHARD,
    bad_images: str = defaults.BAD_IMAGES,
    overwrite: bool = False,
) -> ShardResult:
    """Write a data set as TFRecord shards of JPEGs, small enough to be read fast.

    Images are turned upright and made smaller, never larger. A JPEG that needs
    neither is copied byte for byte. Equal data gives equal files. Splits stay as they
    are, those that were drawn included.

    Args:
        data: What `open_source` takes.
        output: A new folder.
        side: Length of the short side, in pixels, to which larger images are brought.
        quality: Of the JPEGs that are written anew, 1 to 95 (with colours at half
            the resolution, as cameras do).
        per_shard: Size at which the next file is begun, in bytes.
        bad_images: As for `open_source`.
        overwrite: Whether shards that are there already may be replaced.

    Raises:
        DataError: An image is unreadable, or the data cannot be used.
        UsageError: The output holds something else, or an argument cannot be meant.
        ReszooError: The disk refused the write.

    Example:
        >>> write_shards("photos", "photos-256", side=256)
    """
    _check(side, quality, per_shard)
    folder = _free_folder(Path(output), overwrite)
    source = open_source(data, bad_images=bad_images)
    # "all" is what the others were drawn from.
    splits = {name: part for name, part in source.splits.items() if name != "all"}
    total = sum(map(len, splits.values()))
    copied = 0
    with atomic_folder(folder) as unfinished, Progress("sharding", total) as progress:
        written = {}
        for split, examples in splits.items():
            writer = _SplitWriter(unfinished, split, per_shard)
            jpegs = _jpegs(examples, side, quality)
            for jpeg, label in zip(jpegs, examples.targets, strict=True):
                writer.add(jpeg.data, int(label))
                copied += jpeg.copied
                progress.advance()
            written[split] = writer.finish()
        index = _index(source, side, quality, written)
        write_json(unfinished / INDEX, index.to_json())
    shards = [shard for split in written.values() for shard in split]
    return ShardResult(
        folder=folder,
        images={split: len(examples) for split, examples in splits.items()},
        copied=copied,
        files=len(shards),
        bytes=sum(shard.bytes for shard in shards),
        unreadable=source.unreadable,
    )


class _SplitWriter:
    """Writes the files of one split, and the table of where its images are."""

    def __init__(self, folder: Path, split: str, per_shard: int) -> None:
        self.folder, self.split, self.per_shard = folder, split, per_shard
        self.shards: list[Shard] = []
        self.rows = array("q")
        self.file: Any = None
        self.records = self.bytes = 0

    def add(self, jpeg: bytes, label: int) -> None:
        example = _example(jpeg, label)
        size = HEAD + len(example) + TAIL
        if self.file and self.bytes + size > self.per_shard:
            self._close()
        with _disk_errors():
            if not self.file:
                self.file = tf.io.TFRecordWriter(str(self.folder / self._name()))
            self.file.write(example)
        self.rows.extend((label, self.bytes + HEAD + example.index(jpeg), len(jpeg)))
        self.records, self.bytes = self.records + 1, self.bytes + size

    def finish(self) -> tuple[Shard, ...]:
        if self.file:
            self._close()
        table = np.array(self.rows, np.int64).view(ROW)
        np.save(self.folder / table_name(self.split), table, allow_pickle=False)
        return tuple(self.shards)

    def _name(self) -> str:
        return f"{self.split}-{len(self.shards):05d}.tfrecord"

    def _close(self) -> None:
        with _disk_errors():
            self.file.close()
        self.shards.append(
            Shard(file=self._name(), records=self.records, bytes=self.bytes)
        )
        self.file, self.records, self.bytes = None, 0, 0


@contextmanager
def _disk_errors() -> Iterator[None]:
    """Turn TensorFlow's errors into the system's, which `atomic_folder` explains."""
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
    except tf.errors.OpError as error:
        raise OSError(errno.EIO, os.strerror(errno.EIO)) from error


def _example(jpeg: bytes, label: int) -> bytes:
    features = {
        IMAGE: tf.train.Feature(bytes_list=tf.train.BytesList(value=[jpeg])),
        LABEL: tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
    }
    example = tf.train.Example(features=tf.train.Features(feature=features))
    # Otherwise the order of the two would be left to chance.
    return bytes(example.SerializeToString(deterministic=True))


def _jpegs(examples: Examples, side: int, quality: int) -> Iterator[_Jpeg]:
    """Yield every image in order, made in threads."""
    with ThreadPoolExecutor() as threads:
        for start in range(0, len(examples), _WAVE):
            wave = range(start, min(start + _WAVE, len(examples)))
            yield from threads.map(lambda i: _jpeg(examples, i, side, quality), wave)


def _jpeg(examples: Examples, index: int, side: int, quality: int) -> _Jpeg:
    data = examples.encoded(index)
    if data is not None and _is_fine(data, examples, index, side):
        return _Jpeg(data, copied=True)
    image = examples.open(index)
    short = min(image.size)
    if short > side:
        width, height = (scaled_side(length, short, side) for length in image.size)
        # The gap makes large photos four times faster and differs in no eye.
        image = image.resize(
            (width, height), Image.Resampling.BICUBIC, reducing_gap=3.0
        )
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return _Jpeg(buffer.getvalue(), copied=False)


def _is_fine(data: bytes, examples: Examples, index: int, side: int) -> bool:
    """Return whether a file can stay as it is: a whole, upright, small RGB JPEG."""
    upright = examples.orientations is None or examples.orientations[index] == 1
    if not (upright and is_jpeg(data) and data.endswith(JPEG_END)):
        return False
    try:
        with opened(BytesIO(data), examples.name(index)) as image:
            small = min(image.size) <= side
            fine = (image.format, image.mode) == ("JPEG", "RGB") and small
            if fine:
                image.load()
    except DataError:
        # Opening it for good will tell, or recover what is there.
        return False
    return fine


def _index(
    source: Source, side: int, quality: int, splits: dict[str, tuple[Shard, ...]]
) -> Index:
    return Index(
        class_names=source.labels,
        mirror_safe=source.mirror_safe,
        side=side,
        quality=quality,
        splits=splits,
    )


def _check(side: int, quality: int, per_shard: int) -> None:
    # Above 95 JPEGs grow and gain nothing; Pillow's documentation of `quality`.
    if side < 1 or per_shard < 1 or not 1 <= quality <= 95:
        raise UsageError(
            "side and per_shard must be positive and quality in 1..95. Received: "
            f"side={side}, per_shard={per_shard}, quality={quality}."
        )


def _free_folder(folder: Path, overwrite: bool) -> Path:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return folder
    if not is_sharded(folder):
        raise UsageError(f"{folder} exists and holds no shards. Choose another folder.")
    if not overwrite:
        raise UsageError(
            f"{folder} holds shards already. Choose another folder, or pass "
            "overwrite=True (--overwrite) to replace them."
        )
    return folder
