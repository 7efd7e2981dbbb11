"""Open encoded images, from files or from bytes, with Pillow; many in threads."""

import os
import struct
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import NamedTuple, TypeVar

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from reszoo.console import Progress
from reszoo.environment import usable_cores
from reszoo.errors import DataError
from reszoo.preprocessing import to_rgb

# Formats that TensorFlow decodes to Pillow's pixels, whatever their mode. It reads
# the indices of a palette BMP as grey, gives a transparent GIF another background,
# and refuses WebP with alpha or several frames.
_ALIKE = ("JPEG", "MPO", "PNG")
# What Pillow's decoders raise on damaged files; AVIF's and DDS' a RuntimeError.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, RuntimeError)
# Filters of warnings belong to the whole process, images are opened in threads.
_FILTERS = threading.Lock()
# Images that are handed to threads at a time: what an interruption waits for.
_WAVE = 128
# Start and end of a JPEG; ITU-T T.81, table B.1.
_JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
# The last chunk of a PNG; W3C PNG, 11.2.5.
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"


class Header(NamedTuple):
    """What has to be known of an image before it is decoded.

    Attributes:
        orientation: How a camera was held, 1 (upright) to 8; EXIF 2.3, 4.6.4 A.
        by_pillow: Whether only Pillow decodes it right.
    """

    orientation: int
    by_pillow: bool


def open_image(
    source: str | os.PathLike[str] | bytes, name: str = "", *, recover: bool = False
) -> Image.Image:
    """Open one image file as upright RGB.

    A camera's rotation (EXIF) is applied, transparency dropped, the first frame of
    several taken, and of 16 bits a channel the upper eight.

    Args:
        source: The file, or its content.
        name: What messages call the content.
        recover: Whether a truncated JPEG is decoded as far as it goes.

    Raises:
        DataError: The file is missing, truncated, no image, or has more pixels than
            Pillow opens (twice `Image.MAX_IMAGE_PIXELS`); names the path. Below
            that, nothing is printed about its size.
    """
    if not isinstance(source, bytes):
        name = os.fspath(source)
        source = read_file(name)
    with opened(source, name, recover=recover) as image:
        return upright_rgb(image)


def read_header(source: str | bytes, name: str) -> Header:
    """Read the header of an image file, given its path or its content.

    Raises:
        DataError: It is missing or no image; calls it by the name.
    """
    with opened(source, name) as image:
        return Header(orientation_of(image), image.format not in _ALIKE)


def orientation_of(image: Image.Image) -> int:
    """Return how the camera was held (EXIF), 1 (upright) to 8."""
    held = image.getexif().get(ExifTags.Base.Orientation, 1)
    return held if held in range(1, 9) else 1


def read_file(path: str) -> bytes:
    """Return the bytes of a file.

    Raises:
        DataError: It is missing or cannot be read; names the path.
    """
    with _readable(path):
        return Path(path).read_bytes()


def is_jpeg(data: bytes) -> bool:
    """Return whether bytes begin as a JPEG does."""
    return data.startswith(_JPEG_START)


def reason_of(error: BaseException) -> str:
    """Return in a few words why Pillow refused an image."""
    if isinstance(error, UnidentifiedImageError):
        return "no known image format"
    return str(error) or type(error).__name__


def upright_rgb(image: Image.Image) -> Image.Image:
    """Decode an opened image as upright RGB; see `open_image`."""
    return to_rgb(ImageOps.exif_transpose(image))


Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    title: str,
    *,
    progress: bool = True,
) -> Iterator[Result]:
    """Yield what a function returns for each item, in order, under a progress bar."""
    # Threads must not be the first to load Pillow's formats, each on its own; and the
    # common ones first, for they are tried in that order.
    Image.preinit()
    Image.init()
    with (
        Progress(title, len(items), shown=progress) as bar,
        ThreadPoolExecutor(usable_cores()) as pool,
    ):
        for start in range(0, len(items), _WAVE):
            for result in pool.map(function, items[start : start + _WAVE]):
                yield result
                bar.advance()


@contextmanager
def opened(
    source: str | bytes, name: str, *, recover: bool = False
) -> Iterator[Image.Image]:
    """Open an image with Pillow, undecoded and in silence about its size.

    Args:
        source: Its path, or its content.
        name: What messages call it.
        recover: Whether content that is a truncated JPEG may be decoded in part.

    Raises:
        DataError: Pillow refused it, here or in the body.
    """
    if recover and isinstance(source, bytes) and is_jpeg(source):
        # Gives the pixels of Pillow's switch LOAD_TRUNCATED_IMAGES, but touches no
        # other thread, and TensorFlow can do it too. A whole JPEG stays the same.
        source += JPEG_END
    with _readable(name):
        file = source if isinstance(source, str) else BytesIO(source)
        with _FILTERS, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(file)
        with image:
            # Mode I is a PNG of 16 bits or a TIFF of 32.
            if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
                raise ValueError("32 bits a channel, of which none says what is white")
            yield image


@contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"There is no image {name}.") from error
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{name} has too many pixels ({error}). "
            "Make it smaller or take it out of the folder."
        ) from error
    except _DAMAGED as error:
        raise DataError(
            f"{name} is not a readable image ({reason_of(error)}). "
            "Replace the file or take it out of the folder."
        ) from error
