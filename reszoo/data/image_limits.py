"""How much memory one image may take while it is decoded, and how that is kept.

The rule is the same in Pillow, TensorFlow, exported SavedModels and snippets:

* An image may take `MEMORY` bytes: 4 bytes a pixel, which is 134 megapixels; WebP,
  whose decoder keeps two more copies, a third of them.
* A JPEG of more than `LARGE` pixels is decoded at 1/2, 1/4 or 1/8 of its size, the
  largest with at most `LARGE` pixels, unless its short side would fall below `SHORT`.
  So a JPEG of any size is within the limit.
* A progressive JPEG takes 2 bytes more for each pixel and channel, because its decoder
  keeps all coefficients, and may have `SCANS` scans.
"""

import mmap
from typing import IO, Any

from PIL import Image

from reszoo.preprocessing import LARGE as LARGE

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
    if is_jpeg(image):
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


def is_jpeg(image: Image.Image) -> bool:
    """Return whether an opened image is a JPEG; an MPO is several."""
    return image.format in ("JPEG", "MPO")


def is_large(image: Image.Image) -> bool:
    """Return whether an opened image is decoded alone, and by Pillow only."""
    return image.width * image.height > LARGE


def reduce_jpeg(image: Image.Image) -> None:
    """Have an opened JPEG decoded at the scale that `reduction` gives."""
    factor = reduction(*image.size) if is_jpeg(image) else 1
    if factor > 1:
        image.draft(None, (image.width // factor, image.height // factor))


def _scans(source: bytes | IO[bytes], most: int) -> int:
    """Count the scans of a JPEG whose decoder keeps all coefficients, up to `most`.

    Returns 0 for a JPEG of a single scan.
    """
    if isinstance(source, bytes):
        content: Any = source
    else:
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
            return _count(content, bytes((0xFF, SCAN)), at, most)
        else:
            if 0xC0 <= marker <= 0xCF and marker not in NO_FRAME:
                channels = content[at + 9]
                progressive = progressive or marker in PROGRESSIVE
            at += 2 + max(2, int.from_bytes(content[at + 2 : at + 4], "big"))
    return 0


def _count(content: Any, part: bytes, at: int, most: int) -> int:
    found = 0
    while found < most and at >= 0:
        at = content.find(part, at)
        found, at = (found + 1, at + len(part)) if at >= 0 else (found, -1)
    return found
