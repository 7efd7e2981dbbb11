"""Examples: labelled images that are still on disk, or small enough for memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from reszoo.errors import DataError
from reszoo.preprocessing import Pixels, Preprocessing


@dataclass(frozen=True)
class Examples:
    """Images and their labels; either `paths` or `images` is given.

    Attributes:
        labels: int64 `(n,)`, indices into the class names.
        paths: Image files.
        images: uint8 RGB `(n, height, width, 3)`.
    """

    labels: NDArray[np.int64]
    paths: tuple[Path, ...] | None = None
    images: Pixels | None = None

    @classmethod
    def from_arrays(cls, images: Pixels, labels: Sequence[int]) -> "Examples":
        """Wrap arrays: uint8 `(n, height, width, 3)` and `(n,)`."""
        return cls(np.asarray(labels, np.int64), images=images)

    @classmethod
    def from_paths(cls, paths: Sequence[Path], labels: Sequence[int]) -> "Examples":
        """Wrap image files and their labels."""
        return cls(np.asarray(labels, np.int64), paths=tuple(paths))

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: NDArray[np.int64]) -> "Examples":
        """Return the examples at `indices`, in that order."""
        labels = self.labels[indices]
        if self.paths is None:
            images = None if self.images is None else self.images[indices]
            return Examples(labels, images=images)
        return Examples(labels, paths=tuple(self.paths[i] for i in indices))

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
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError as error:
        raise DataError(f"There is no image {path}.") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise DataError(
            f"{path} is not a readable image ({_reason(error)}). "
            "Replace the file or take it out of the folder."
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "no known image format"
    return str(error) or type(error).__name__
