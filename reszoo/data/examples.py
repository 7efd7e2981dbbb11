"""Examples: labelled images that are still on disk, or small enough for memory."""

import struct
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from reszoo.errors import DataError
from reszoo.preprocessing import Pixels, Preprocessing, to_rgb

# Formats that TensorFlow decodes to Pillow's pixels, whatever their mode. It reads
# the indices of a palette BMP as grey, gives a transparent GIF another background,
# and refuses WebP with alpha or several frames.
_ALIKE = ("JPEG", "MPO", "PNG")
# Filters of warnings belong to the whole process, images are opened in threads.
_FILTERS = threading.Lock()


@dataclass(frozen=True)
class Examples:
    """Images and their labels; either `paths` or `images` is given.

    Attributes:
        labels: int64 `(n,)`, indices into the class names.
        paths: Image files.
        images: uint8 RGB `(n, height, width, 3)`.
        orientations: With paths: how a camera was held, 1 (upright) to 8, `(n,)`.
        by_pillow: With paths: whether only Pillow decodes the file right, `(n,)`.
    """

    labels: NDArray[np.int64]
    paths: tuple[Path, ...] | None = None
    images: Pixels | None = None
    orientations: NDArray[np.int32] | None = None
    by_pillow: NDArray[np.bool_] | None = None

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
        headers = [_header(path) for path in paths]
        return cls(
            np.asarray(labels, np.int64),
            paths=tuple(paths),
            orientations=np.asarray([held for held, _ in headers], np.int32),
            by_pillow=np.asarray([odd for _, odd in headers], np.bool_),
        )

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
            by_pillow=None if self.by_pillow is None else self.by_pillow[indices],
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

    A camera's rotation (EXIF) is applied, transparency dropped, the first frame of
    several taken, and of 16 bits a channel the upper eight.

    Raises:
        DataError: The file is missing, cut short, no image, or has more pixels than
            Pillow opens (twice `Image.MAX_IMAGE_PIXELS`); names the path. Below
            that, nothing is printed about its size.
    """
    with _opened(path) as image:
        return to_rgb(ImageOps.exif_transpose(image))


def _header(path: Path) -> tuple[int, bool]:
    """Return the orientation, and whether only Pillow decodes the file right."""
    with _opened(path) as image:
        held = image.getexif().get(ExifTags.Base.Orientation, 1)
        by_pillow = image.format not in _ALIKE
    return (held if held in range(1, 9) else 1), by_pillow


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    with _readable(path):
        with _FILTERS, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path)
        with image:
            yield image


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"There is no image {path}.") from error
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{path} has too many pixels ({error}). "
            "Make it smaller or take it out of the folder."
        ) from error
    # Pillow's decoders raise all of these on damaged files.
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        reason = str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "no known image format"
        raise DataError(
            f"{path} is not a readable image ({reason}). "
            "Replace the file or take it out of the folder."
        ) from error
