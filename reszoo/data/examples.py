"""Examples: labelled images that are still on disk, or small enough for memory."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from reszoo.data.image_files import (
    Header,
    decode_image,
    open_image,
    read_file,
    read_header,
)
from reszoo.data.records import Records
from reszoo.preprocessing import Pixels, Preprocessing, to_rgb

# As NumPy's rows, headers take five bytes an image instead of a hundred.
_HEADER = np.dtype([("orientation", np.int32), ("by_pillow", np.bool_)])


@dataclass(frozen=True)
class Examples:
    """Images and their targets; one of `images`, `paths` and `records` is given.

    Attributes:
        targets: int64 `(n,)`, indices into the labels.
        images: uint8 RGB `(n, height, width, 3)`.
        paths: Image files.
        records: Encoded images inside larger files.
        orientations: With paths and records: how a camera was held, 1 (upright) to
            8, int32 `(n,)`.
        by_pillow: With paths and records: whether only Pillow decodes the image
            right, `(n,)`.
        recover: Whether JPEGs that are cut short are decoded as far as they go.
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
    def from_paths(
        cls, paths: Sequence[str | Path], targets: Sequence[int]
    ) -> "Examples":
        """Wrap image files and their targets; their headers are read.

        Raises:
            DataError: A file is no image; names the path.
        """
        names = tuple(map(str, paths))
        orientations, by_pillow = columns(read_header(name, name) for name in names)
        return cls(
            np.asarray(targets, np.int64),
            paths=names,
            orientations=orientations,
            by_pillow=by_pillow,
        )

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, indices: NDArray[np.int64]) -> "Examples":
        """Return the examples at `indices`, in that order."""
        held, odd, records = self.orientations, self.by_pillow, self.records
        return replace(
            self,
            targets=self.targets[indices],
            images=None if self.images is None else self.images[indices],
            paths=self.paths and tuple(self.paths[i] for i in indices),
            records=None if records is None else records.take(indices),
            orientations=None if held is None else held[indices],
            by_pillow=None if odd is None else odd[indices],
        )

    def name(self, index: int) -> str:
        """Return what messages call one image: its path, record or number."""
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
            data = self.records.read(index)
            return decode_image(data, self.name(index), recover=self.recover)
        return to_rgb(Image.fromarray(np.asarray(self.images)[index]))

    def encoded(self, index: int) -> bytes | None:
        """Return one image's file as it is stored; None for arrays.

        Raises:
            DataError: It cannot be read; names it.
        """
        if self.paths is not None:
            return read_file(self.paths[index])
        return None if self.records is None else self.records.read(index)

    def prepared(self, index: int, record: Preprocessing) -> Pixels:
        """Return one image, resized and cropped by Pillow.

        Returns:
            uint8 RGB `(eval_size, eval_size, 3)`.
        """
        return record.prepare(self.open(index))


def columns(headers: Iterable[Header]) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Return the headers' orientations and whether Pillow must decode, `(n,)`."""
    rows = np.fromiter(headers, _HEADER)
    return rows["orientation"].copy(), rows["by_pillow"].copy()
