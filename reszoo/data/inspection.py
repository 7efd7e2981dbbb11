"""Look at one image file: whether training can decode it, and what is odd about it."""

import hashlib
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image, UnidentifiedImageError

from reszoo.data.decoding import decode
from reszoo.data.facts import Facts
from reszoo.data.image_files import (
    Header,
    decode_image,
    is_jpeg,
    opened,
    read_header,
    reason_of,
)
from reszoo.errors import DataError


def inspect(path: str) -> Facts:
    """Decode one image file as training does and tell what was found.

    What is wrong with a file is told, not raised. A problem that lies not in the
    file (no permission, no memory) leaves `mtime_ns` at -1.
    """
    try:
        status = Path(path).stat()
        content = Path(path).read_bytes()
        found = _looks(content, path)
    except OSError as error:
        return Facts(path=path, problem=error.strerror or str(error))
    except tf.errors.OpError as error:
        return Facts(path=path, problem=error.message)
    return Facts(path=path, bytes=status.st_size, mtime_ns=status.st_mtime_ns, **found)


def _looks(content: bytes, path: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    try:
        with opened(BytesIO(content), path) as image:
            found |= _outside(image, path)
        header = read_header(content, path)
        found |= header._asdict()
        if header.orientation > 4:
            found |= {"width": found["height"], "height": found["width"]}
        found["digest"] = _digest(_decode(content, path, header))
    except DataError as error:
        found["problem"] = _reason(error.__cause__ or error, content)
    except tf.errors.InvalidArgumentError:
        found["recoverable"] = is_jpeg(content) and _recovers(content)
        damaged = f"damaged {found['format']} data"
        found["problem"] = "cut short" if found["recoverable"] else damaged
    return found


def _outside(image: Image.Image, path: str) -> dict[str, Any]:
    """Tell what needs no decoding; Pillow forgets some of it when it decodes."""
    deep = image.mode.startswith("I") or ";16" in str(getattr(image, "tile", ""))
    mode = "L" if image.mode.startswith("I") else image.mode
    if image.has_transparency_data and not mode.upper().endswith("A"):
        mode += "A"
    return {
        "format": str(image.format),
        "misnamed": _is_misnamed(path, str(image.format)),
        "mode": mode + ";16" * deep,
        "width": image.width,
        "height": image.height,
        "frames": _frames(image),
    }


def _is_misnamed(path: str, kind: str) -> bool:
    ending = Path(path).suffix.lower()
    meant = Image.registered_extensions().get(ending)
    # Cameras put pairs of JPEGs into files that are called .jpg.
    return meant != ("JPEG" if kind == "MPO" and meant == "JPEG" else kind)


def _frames(image: Image.Image) -> int:
    # Only the first frame is used: damage behind it is no problem.
    with suppress(OSError, SyntaxError, ValueError, EOFError):
        return int(getattr(image, "n_frames", 1))
    return 1


def _decode(content: bytes, path: str, header: Header) -> Any:
    """Return the upright picture, uint8 RGB `(height, width, 3)`."""
    if header.by_pillow:
        return np.asarray(decode_image(content, path))
    # Not on a graphics card, which several threads would have to share.
    with tf.device("CPU:0"):
        return decode(content, header.orientation if header.orientation > 1 else None)


def _recovers(content: bytes) -> bool:
    try:
        decode(content, recover=True)
    except tf.errors.InvalidArgumentError:
        return False
    return True


def _digest(pixels: Any) -> str:
    # Processors have instructions for SHA-256: it is faster than BLAKE2.
    # Tensors have the buffer protocol too: nothing is copied.
    view = memoryview(pixels)
    found = hashlib.sha256(str(view.shape).encode())
    found.update(view)
    return found.hexdigest()[:32]


def _reason(cause: BaseException, content: bytes) -> str:
    if not content:
        return "empty file"
    if isinstance(cause, Image.DecompressionBombError):
        return f"too many pixels ({cause})"
    if isinstance(cause, UnidentifiedImageError) and _is_text(content):
        return "text, no image"
    reason = reason_of(cause)
    return "cut short" if "truncated" in reason.lower() else reason


def _is_text(content: bytes) -> bool:
    # Most often a web page that says why there is no image.
    start = content[:64].decode("ascii", "replace")
    return " ".join(start.split()).isprintable() and "\ufffd" not in start
