"""Open encoded images with Pillow, many in threads, each in a bounded memory.

How much one may take is the same in Pillow, TensorFlow, SavedModels and snippets:

* An image may take `MEMORY` bytes: 4 bytes a pixel, which is 134 megapixels; WebP,
  whose decoder keeps two more copies, a third of them.
* A JPEG of more than `LARGE` pixels is decoded at 1/2, 1/4 or 1/8 of its size, the
  largest with at most `LARGE` pixels, unless its short side would fall below `SHORT`.
  So a JPEG of any size is within the limit.
* A progressive JPEG takes 2 bytes more for each pixel and channel, because its decoder
  keeps all coefficients, and may have `SCANS` scans.
"""

import math
import mimetypes
import mmap
import os
import re
import struct
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from io import BytesIO
from itertools import islice
from typing import IO, Any, NamedTuple, TypeVar

from PIL import ExifTags, Image, ImageOps, JpegImagePlugin, UnidentifiedImageError

from reszoo.console import Progress
from reszoo.data.splits import WORDS
from reszoo.environment import usable_cores
from reszoo.errors import DataError
from reszoo.files import StrPath, open_regular, read_regular
from reszoo.preprocessing import LARGE as LARGE
from reszoo.preprocessing import Box, Pixels, Preprocessing, to_rgb

# What Pillow decodes; the pipeline has it decode what TensorFlow cannot.
JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")
SUFFIXES = (*JPEG_SUFFIXES, ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff")
_UNSUPPORTED = tuple(WORDS["unsupported"])
# First bytes of the formats of `SUFFIXES`, where dots stand for any byte.
_STARTS = (
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF....WEBP|II\*\0|MM\0\*"
    rb"|BM....\0\0\0\0"
)
# Formats that TensorFlow decodes to Pillow's pixels, whatever their mode. It reads
# the indices of a palette BMP as grey, gives a transparent GIF another background,
# and refuses WebP with alpha or several frames.
_ALIKE = ("JPEG", "MPO", "PNG")
_JPEGS = ("JPEG", "MPO")  # an MPO is several JPEGs
# What Pillow's decoders raise on damaged files; AVIF's and DDS' a RuntimeError, that of
# PNG's colour profiles an IndexError, and it asserts that there is a palette.
_DAMAGED = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, RuntimeError,
    LookupError, ArithmeticError, TypeError, AttributeError, AssertionError,
)  # fmt: skip
# Filters of warnings belong to the whole process, images are opened in threads.
_FILTERS = threading.Lock()
# A large image takes up to half a gigabyte, so one is decoded at a time.
_ALONE = threading.RLock()
# Images that are handed to threads at a time: what an interruption waits for.
_WAVE = 128
# Start and end of a JPEG; ITU-T T.81, table B.1.
_JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
# Start and last chunk of a PNG; W3C PNG, 5.2 and 11.2.5.
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
MEMORY = 1 << 29
SHORT = 1 << 10
SCANS = 256
PIXEL, COEFFICIENT = 4, 2
_WEBP_PIXEL = 12
# TIFF 6.0, section 15: width and length of the tiles, decoded one by one.
_TILE = (322, 323)
# ITU-T T.81, table B.1: markers of frames that are not sequential, markers without
# parameters, start of a scan, end of the image, and those in place of a frame's.
PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
BARE = (0x01, *range(0xD0, 0xD9))
SCAN, END, NO_FRAME = 0xDA, 0xD9, (0xC4, 0xC8, 0xCC)


def image_kind(path: str) -> str:
    """Return what a file is by its name, and without a known ending by its content.

    Returns "" for no image; "unsupported"; "image"; or "unnamed" for an image that only
    its first bytes tell.
    """
    name = path.lower()
    if name.endswith(SUFFIXES):
        return "image"
    if name.endswith(_UNSUPPORTED):
        return "unsupported"
    # Texts, annotations and archives need not be opened.
    if mimetypes.guess_type(name)[0]:
        return ""
    try:
        with open_regular(path) as file:
            start = file.read(12)
    except OSError:
        return ""
    if re.match(rb"....ftyp(hei|hev|mif|avif)", start, re.DOTALL):
        return "unsupported"
    return "unnamed" if re.match(_STARTS, start, re.DOTALL) else ""


class Header(NamedTuple):
    """What has to be known of an image before it is decoded."""

    orientation: int  # 1 (upright) to 8; EXIF 2.3, 4.6.4 A
    by_pillow: bool  # only Pillow decodes it right, or in bounded memory
    height: int  # of the upright image, in pixels
    width: int


def open_image(
    source: StrPath | bytes,
    name: str = "",
    *,
    recover: bool = False,
    reduced: bool = False,
) -> Image.Image:
    """Open one image file as upright RGB.

    A camera's rotation (EXIF) is applied, transparency dropped, the first frame of
    several taken, and of 16 bits a channel the upper eight. A JPEG of more than 16.8
    megapixels is decoded at a fraction of its size; see above. The source is the file,
    or its content, which messages call by `name`. `recover` decodes a truncated JPEG as
    far as it goes, `reduced` reduces any image of more pixels than that, by averaging.

    A DataError if the file is missing, no regular file, truncated, no image, would take
    more memory than the rule above allows, or has more pixels than Pillow opens (twice
    `Image.MAX_IMAGE_PIXELS`); names the path. Below that, nothing is printed about its
    size.
    """
    with opened(source, name, recover=recover) as image:
        rgb = upright_rgb(image)
        factor = math.ceil(math.sqrt(rgb.width * rgb.height / LARGE))
        return rgb.reduce(factor) if reduced and factor > 1 else rgb


def prepare_image(
    source: StrPath | bytes,
    preprocessing: Preprocessing,
    name: str = "",
    *,
    recover: bool = False,
) -> Pixels:
    """Resize and crop one image file, of which only parts are converted at a time.

    The pixels are those of `preprocessing.prepare(open_image(source))`, in half of the
    memory or less. Arguments and errors are those of `open_image`. Returns uint8 of
    `preprocessing.input_shape`.
    """
    with opened(source, name, recover=recover) as image:
        size, part = upright_parts(image)
        return preprocessing.prepare_parts(size, part)


def read_header(source: str | bytes, name: str) -> Header:
    """Read the header of an image file, given its path or its content.

    A DataError if it is missing or no image; calls it by the name.
    """
    with opened(source, name) as image:
        by_pillow = image.format not in _ALIKE or is_large(image)
        held = orientation_of(image)
        width, height = image.size[::-1] if held > 4 else image.size
        return Header(held, by_pillow, height, width)


def orientation_of(image: Image.Image) -> int:
    """Return how the camera was held (EXIF), 1 (upright) to 8."""
    held = image.getexif().get(ExifTags.Base.Orientation, 1)
    return held if held in range(1, 9) else 1


def read_file(path: str) -> bytes:
    """Return the bytes of a file.

    A DataError if it is missing or cannot be read; names the path.
    """
    with _readable(path):
        return read_regular(path, MEMORY)


def is_jpeg(data: bytes) -> bool:
    """Return whether bytes begin as a JPEG does."""
    return data.startswith(_JPEG_START)


def reason_of(error: BaseException) -> str:
    """Return in a few words why Pillow refused an image."""
    if isinstance(error, UnidentifiedImageError):
        return "no known image format"
    # Without number and path, where the system refused it.
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def upright_rgb(image: Image.Image) -> Image.Image:
    """Decode an opened image as upright RGB; see `open_image`."""
    reduce_jpeg(image)
    if orientation_of(image) > 1:
        image = ImageOps.exif_transpose(image)
    image.load()
    return to_rgb(image)


# By EXIF 2.3, section 4.6.4 A, Orientation: whether the columns or the rows of the
# upright image are in reverse order in the stored one, of which those above 4 are
# transposed.
ACROSS = (False, False, True, True, False, False, True, True, False)
DOWN = (False, False, False, True, True, False, False, True, True)


def upright_parts(
    image: Image.Image,
) -> tuple[tuple[int, int], Callable[[Box], Image.Image]]:
    """Return the size of an opened image once upright, and a reader of its parts.

    The reader takes left, top, right and bottom, and returns RGB.
    """
    reduce_jpeg(image)
    held = orientation_of(image)
    swapped = held > 4
    width, height = image.size[::-1] if swapped else image.size

    def part(box: Box) -> Image.Image:
        left, top, right, bottom = box
        if ACROSS[held]:
            left, right = width - right, width - left
        if DOWN[held]:
            top, bottom = height - bottom, height - top
        stored = (top, left, bottom, right) if swapped else (left, top, right, bottom)
        cut = to_rgb(image.crop(stored))
        cut = cut.transpose(Image.Transpose.TRANSPOSE) if swapped else cut
        cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if ACROSS[held] else cut
        return cut.transpose(Image.Transpose.FLIP_TOP_BOTTOM) if DOWN[held] else cut

    return (width, height), part


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
    source: StrPath | bytes, name: str = "", *, recover: bool = False
) -> Iterator[Image.Image]:
    """Open an image with Pillow, undecoded and in silence about its size.

    The arguments are those of `open_image`. A DataError if Pillow refused it, here or
    in the body.
    """
    if not isinstance(source, bytes):
        source = name = os.fspath(source)
    if recover and isinstance(source, str):
        source = read_file(source)
    if recover and isinstance(source, bytes) and is_jpeg(source):
        # Gives the pixels of Pillow's switch LOAD_TRUNCATED_IMAGES, but touches no
        # other thread, and TensorFlow can do it too. A whole JPEG stays the same.
        source += JPEG_END
    with (
        _readable(name),
        open_regular(source, MEMORY)
        if isinstance(source, str)
        else BytesIO(source) as file,
    ):
        jpeg = is_jpeg(file.read(len(_JPEG_START)))
        file.seek(0)
        with _FILTERS, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Pillow's own limit leaves out that JPEGs are decoded at a smaller scale.
            image = JpegImagePlugin.jpeg_factory(file) if jpeg else Image.open(file)
        with image:
            check_memory(image, source if isinstance(source, bytes) else file)
            # Mode I is a PNG of 16 bits or a TIFF of 32.
            if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
                raise ValueError("32 bits a channel, of which none says what is white")
            with _ALONE if is_large(image) else nullcontext():
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


def reduction(width: Any, height: Any) -> Any:
    """Return by how much a JPEG is reduced while it is decoded: 1, 2, 4 or 8.

    Works on Python integers and on int64 tensors alike.
    """
    factor = 1
    for smaller in (2, 4, 8):
        pixels = -(-width // factor) * -(-height // factor)
        enough = (width >= smaller * SHORT) & (height >= smaller * SHORT)
        # Once it is not reduced any further, `factor` is less than half of `smaller`.
        goes_on = (pixels > LARGE) & enough & (2 * factor == smaller)
        if isinstance(width, int):
            factor = smaller if goes_on else factor
        else:
            import tensorflow as tf

            factor = tf.where(goes_on, tf.constant(smaller, tf.int64), factor)
    return factor


def check_memory(image: Image.Image, source: bytes | IO[bytes]) -> None:
    """Refuse an opened, undecoded image that would take too much memory or time.

    A DecompressionBombError if it would take more than `MEMORY`, or has too many scans.
    """
    width, height = image.size
    pixels, extra = width * height, 0
    if image.format in _JPEGS:
        factor = reduction(width, height)
        pixels = -(-width // factor) * -(-height // factor)
        scans = _scans(source, SCANS + 1)
        if scans > SCANS:
            raise Image.DecompressionBombError(f"more than {SCANS} scans")
        if scans:
            extra = COEFFICIENT * width * height * len(image.getbands())
    elif image.format == "TIFF":
        across, down = (image.tag_v2.get(tag, 0) for tag in _TILE)  # type: ignore[attr-defined]
        extra = PIXEL * across * down if across * down > LARGE else 0
    needed = (_WEBP_PIXEL if image.format == "WEBP" else PIXEL) * pixels + extra
    if needed > MEMORY:
        raise Image.DecompressionBombError(
            f"{width} x {height} pixels take {needed >> 20:,} MiB, more than "
            f"{MEMORY >> 20}"
        )


def is_large(image: Image.Image) -> bool:
    """Return whether an opened image is decoded alone, and by Pillow only."""
    return image.width * image.height > LARGE


def reduce_jpeg(image: Image.Image) -> None:
    """Have an opened JPEG decoded at the scale that `reduction` gives."""
    factor = reduction(*image.size) if image.format in _JPEGS else 1
    if factor > 1:
        image.draft(None, (image.width // factor, image.height // factor))


def _scans(source: bytes | IO[bytes], most: int) -> int:
    """Count up to `most` scans of a JPEG; 0 where no coefficients are kept for them."""
    content: Any = source
    if not isinstance(source, bytes):
        content = mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ)
    at, channels, progressive = 2, 0, False
    while at + 10 < len(content):
        marker = content[at + 1]
        if content[at] != 0xFF:
            at = content.find(b"\xff", at)
            if at < 0:
                break
        elif marker == 0xFF:
            at += 1
        elif marker in BARE:
            at += 2
        elif marker == END:
            break
        elif marker == SCAN:
            if not progressive and content[at + 4] >= channels:
                return 0
            scans = re.compile(re.escape(bytes((0xFF, SCAN)))).finditer(content, at)
            return sum(1 for _ in islice(scans, most))
        else:
            if 0xC0 <= marker <= 0xCF and marker not in NO_FRAME:
                channels = content[at + 9]
                progressive = progressive or marker in PROGRESSIVE
            at += 2 + max(2, int.from_bytes(content[at + 2 : at + 4], "big"))
    return 0
