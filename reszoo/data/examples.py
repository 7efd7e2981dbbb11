"""Examples: images and targets, on disk or small enough for memory."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from reszoo.data.image_files import (
    Header,
    decode_image,
    open_image,
    read_header,
)
from reszoo.data.splits import Indices
from reszoo.preprocessing import Pixels, Preprocessing, to_rgb

# As NumPy's rows, headers take five bytes an image instead of a hundred.
_HEADER = np.dtype([("orientation", np.int32), ("by_pillow", np.bool_)])


@dataclass(frozen=True)
class Records:
    """Encoded images that a data source reads by number.

    Attributes:
        source: Name of the data source, for messages.
        read_record: Returns the encoded image with a number; safe in threads.
        numbers: int64 `(n,)`.
        lengths: Sizes of the encoded images in bytes, int64 `(n,)`.
    """

    source: str
    read_record: Callable[[int], bytes]
    numbers: Indices
    lengths: Indices

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, indices: Indices) -> "Records":
        """Return the records at `indices`, in that order."""
        numbers, lengths = self.numbers[indices], self.lengths[indices]
        return replace(self, numbers=numbers, lengths=lengths)

    def name(self, index: int) -> str:
        """Return "SOURCE record NUMBER" for messages."""
        return f"{self.source} record {self.numbers[index]}"

    def read(self, index: int) -> bytes:
        """Return one encoded image."""
        return self.read_record(int(self.numbers[index]))


@dataclass(frozen=True)
class Examples:
    """Images and their targets; one of `images`, `paths` and `records` is given.

    Attributes:
        targets: int64 `(n,)`, indices into the labels.
        images: uint8 RGB `(n, height, width, 3)`.
        paths: Image files.
        records: Encoded images of a data source.
        orientations: With paths and records: how a camera was held, 1 (upright) to
            8, int32 `(n,)`.
        by_pillow: With paths and records: whether only Pillow decodes the image
            right, `(n,)`.
        recover: Whether truncated JPEGs are decoded as far as they go.
    """

    targets: NDArray[np.int64]
    images: Pixels | None = None
    paths: tuple[str, ...] | None = None
    records: Records | None = None
    orientations: NDArray[np.int32] | None = None
    by_pillow: NDArray[np.bool_] | None = None
    recover: bool = False

    def __post_init__(self) -> None:
        given = [self.images, self.paths, self.records]
        if sum(content is not None for content in given) != 1:
            raise TypeError("Examples need one of images, paths and records.")

    @classmethod
    def from_arrays(cls, images: Pixels, targets: ArrayLike) -> "Examples":
        """Wrap arrays: uint8 `(n, height, width, 3)` and `(n,)`."""
        return cls(np.asarray(targets, np.int64), images=images)

    @classmethod
    def from_paths(cls, paths: Sequence[str | Path], targets: ArrayLike) -> "Examples":
        """Wrap image files and their targets; their headers are read.

        Raises:
            DataError: A file is no image; names the path.
        """
        names = tuple(map(str, paths))
        examples = cls(np.asarray(targets, np.int64), paths=names)
        return examples.with_headers(read_header(name, name) for name in names)

    @classmethod
    def from_records(cls, records: Records, targets: ArrayLike) -> "Examples":
        """Wrap records and their targets; their headers are read.

        Raises:
            DataError: A record is no image; names it.
        """
        examples = cls(np.asarray(targets, np.int64), records=records)
        return examples.with_headers(
            read_header(records.read(index), records.name(index))
            for index in range(len(records))
        )

    def with_headers(
        self, headers: Iterable[Header], *, recover: bool = False
    ) -> "Examples":
        """Return the same with orientations and `by_pillow` from headers."""
        rows = np.fromiter(headers, _HEADER)
        return replace(
            self,
            recover=recover,
            orientations=rows["orientation"].copy(),
            by_pillow=rows["by_pillow"].copy(),
        )

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, indices: Indices) -> "Examples":
        """Return the examples at `indices`, in that order."""
        orientations, by_pillow = self.orientations, self.by_pillow
        return replace(
            self,
            targets=self.targets[indices],
            images=None if self.images is None else self.images[indices],
            paths=self.paths and tuple(self.paths[i] for i in indices),
            records=self.records and self.records.take(indices),
            orientations=None if orientations is None else orientations[indices],
            by_pillow=None if by_pillow is None else by_pillow[indices],
        )

    def split(self, splits: Mapping[str, Indices]) -> "dict[str, Examples]":
        """Return the examples of each split, given its indices."""
        return {name: self.take(indices) for name, indices in splits.items()}

    def name(self, index: int) -> str:
        """Return the name of one image for messages: its path, record or number."""
        if self.paths is not None:
            return self.paths[index]
        return self.records.name(index) if self.records else f"image {index}"

    def open(self, index: int) -> Image.Image:
        """Open one image as upright RGB.

        Raises:
            DataError: It cannot be read; names it.
        """
        if self.paths is not None:
            return open_image(self.paths[index], recover=self.recover)
        if self.records is not None:
            content, name = self.records.read(index), self.records.name(index)
            return decode_image(content, name, recover=self.recover)
        return to_rgb(Image.fromarray(np.asarray(self.images)[index]))

    def prepared(self, index: int, preprocessing: Preprocessing) -> Pixels:
        """Return one image, resized and cropped by Pillow.

        Returns:
            uint8 RGB `(eval_size, eval_size, 3)`.
        """
        return preprocessing.prepare(self.open(index))
