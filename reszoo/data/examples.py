"""Examples: labelled images that are still on disk, or small enough for memory."""

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from reszoo.errors import DataError
from reszoo.preprocessing import Pixels, Preprocessing


@dataclass(frozen=True)
class Examples:
    """Images and their labels; either `paths` or `images` is given.

    Attributes:
        labels: int64 `(n,)`, indices into the class names.
        paths: Image files.
        images: uint8 RGB `(n, height, width, 3)`.
        orientations: With paths: how a camera was held, 1 (upright) to 8, `(n,)`.
    """

    labels: NDArray[np.int64]
    paths: tuple[Path, ...] | None = None
    images: Pixels | None = None
    orientations: NDArray[np.int32] | None = None

    @classmethod
    def from_arrays(cls, images: Pixels, labels: ArrayLike) -> "Examples":
        """Wrap arrays: uint8 `(n, height, width, 3)` and `(n,)`."""
        return cls(np.asarray(labels, np.int64), images=images)

    @classmethod
    def from_paths(cls, paths: Sequence[Path], labels: Sequence[int]) -> "Examples":
        """Wrap image files and their labels.

        Raises:
            DataError: A file is no image; names the path.
        """
        orientations = np.asarray([_orientation(path) for path in paths], np.int32)
        labelled = np.asarray(labels, np.int64)
        return cls(labelled, paths=tuple(paths), orientations=orientations)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: NDArray[np.int64]) -> "Examples":
        """Return the examples at `indices`, in that order."""
        return Examples(
            self.labels[indices],
            paths=self.paths and tuple(self.paths[i] for i in indices),
            images=None if self.images is None else self.images[indices],
            orientations=(
                None if self.orientations is None else self.orientations[indices]
            ),
        )

    def prepared(self, index: int, record: Preprocessing) -> Pixels:
        """Return one image, resized and cropped by Pillow.

        Returns:
            uint8 RGB `(eval_size, eval_size, 3)`.
        """
        if self.images is not None:
            return record.prepare(self.images[index])
        paths = self.paths or ()
        return record.prepare(open_image(paths[index]))


def open_image(path: Path) -> Image.Image:
    """Open one image file as upright RGB.

    A camera's rotation (EXIF) is applied.

    Raises:
        DataError: The file is missing, cut short or no image; names the path.
    """
    with _readable(path), Image.open(path) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def _orientation(path: Path) -> int:
    with _readable(path), Image.open(path) as image:
        held = image.getexif().get(ExifTags.Base.Orientation, 1)
    return held if held in range(1, 9) else 1


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"There is no image {path}.") from error
    # Pillow's decoders raise all of these on damaged files.
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        reason = str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "no known image format"
        raise DataError(
            f"{path} is not a readable image ({reason}). "
            "Replace the file or take it out of the folder."
        ) from error
