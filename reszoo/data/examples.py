"""Examples: images and targets, on disk or small enough for memory."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reszoo.data.image_files import open_image, opened, prepare_image, read_header
from reszoo.data.splits import Indices
from reszoo.preprocessing import Pixels, Preprocessing, to_rgb

# A `Header`, in 13 bytes an image instead of hundreds.
HEADER = np.dtype(
    [("orientation", "i4"), ("by_pillow", "?"), ("height", "i4"), ("width", "i4")]
)


@dataclass(frozen=True)
class Records:
    """Encoded images that a data source reads by number."""

    source: str  # name of the data source, for messages
    # Returns the encoded image with a number; safe in threads.
    read_record: Callable[[int], bytes]
    numbers: Indices  # int64 `(n,)`
    lengths: Indices  # sizes of the encoded images in bytes, int64 `(n,)`

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
    """Images and their targets; one of `images`, `paths` and `records` is given."""

    targets: NDArray[np.int64]  # int64 `(n,)`, indices into the labels
    images: Pixels | None = None  # uint8 RGB `(n, height, width, 3)`
    paths: tuple[str, ...] | None = None  # image files
    records: Records | None = None  # encoded images of a data source
    # With paths and records: what their headers tell, `(n,)` of `HEADER`.
    headers: NDArray[np.void] | None = None
    recover: bool = False  # whether truncated JPEGs are decoded as far as they go

    def __post_init__(self) -> None:
        given = [self.images, self.paths, self.records]
        if sum(content is not None for content in given) != 1:
            raise TypeError("Examples need one of images, paths and records.")

    @property
    def encoded(self) -> "tuple[str, ...] | Records":
        """The paths or records of the images."""
        return self.records or self.paths or ()

    def read_headers(self) -> "Examples":
        """Return the same with the headers of its paths or records.

        A DataError if one is no image; names it.
        """
        headers = (read_header(self.file(i), self.name(i)) for i in range(len(self)))
        return replace(self, headers=np.fromiter(headers, HEADER))

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, indices: Indices) -> "Examples":
        """Return the examples at `indices`, in that order."""
        return replace(
            self,
            targets=self.targets[indices],
            images=None if self.images is None else self.images[indices],
            paths=self.paths and tuple(self.paths[i] for i in indices),
            records=self.records and self.records.take(indices),
            headers=None if self.headers is None else self.headers[indices],
        )

    def split(self, splits: Mapping[str, Indices]) -> "dict[str, Examples]":
        """Return the examples of each split, given its indices."""
        return {name: self.take(indices) for name, indices in splits.items()}

    def name(self, index: int) -> str:
        """Return the name of one image for messages: its path, record or number."""
        if self.paths is not None:
            return self.paths[index]
        return self.records.name(index) if self.records else f"image {index}"

    def sides(self, indices: Indices | slice = np.s_[:]) -> NDArray[np.int32]:
        """Return height and width of images once they are upright: `(n, 2)`."""
        if self.images is not None:
            sides = np.array(self.images.shape[1:3], np.int32)
            return np.broadcast_to(sides, (len(self.targets[indices]), 2))
        headers = np.asarray(self.headers)[indices]
        return np.stack([headers["height"], headers["width"]], 1)

    def median_side(self, most: int = 25) -> int:
        """Return the median of the short sides of some images, in pixels."""
        if self.images is not None:
            return int(min(self.images.shape[1:3]))
        sides = []
        for index in range(0, len(self), max(1, len(self) // most)):
            with opened(self.file(index), self.name(index), recover=True) as image:
                sides.append(min(image.size))
        return int(np.median(sides))

    def open(self, index: int, *, reduced: bool = False) -> Image.Image:
        """Open one image as upright RGB, a large one reduced if `reduced`.

        A DataError names it if it cannot be read.
        """
        if self.images is not None:
            return to_rgb(Image.fromarray(self.images[index]))
        file, name = self.file(index), self.name(index)
        return open_image(file, name, recover=self.recover, reduced=reduced)

    def file(self, index: int) -> str | bytes:
        """Return the path of one image file, or the content of one record."""
        return self.records.read(index) if self.records else (self.paths or ())[index]

    def prepared(self, index: int, preprocessing: Preprocessing) -> Pixels:
        """Return one image, prepared by Pillow: uint8 of `input_shape`."""
        if self.images is not None:
            return preprocessing.prepare(self.images[index])
        file, name = self.file(index), self.name(index)
        return prepare_image(file, preprocessing, name, recover=self.recover)
