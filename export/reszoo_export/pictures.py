"""What people hand over as an image, and what is refused with how to mend it."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from reszoo.data.image_files import open_image
from reszoo.errors import UsageError
from reszoo.preprocessing import Pixels

Picture = str | os.PathLike[str] | Image.Image | Pixels


def each_picture(images: Picture | Sequence[Picture]) -> list[Picture]:
    """Return the images that were handed over, one by one."""
    if isinstance(images, np.ndarray):
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, str | os.PathLike | Image.Image):
        return [images]
    return list(images)


def upright(picture: Picture) -> Image.Image | Pixels:
    """Return one image with a camera's rotation (EXIF) applied.

    Raises:
        UsageError: An array is not uint8 RGB in 0..255 of shape (height, width, 3),
            or a PIL image has 32 bits a channel.
        DataError: A path is no readable image.
    """
    if isinstance(picture, str | os.PathLike):
        return open_image(Path(picture))
    if isinstance(picture, Image.Image):
        if picture.mode == "F":
            raise UsageError(
                "A PIL image must say what is white. Received: mode 'F', 32 bits a "
                "pixel; scale it to 0..255 and convert it to 'L' or 'RGB'."
            )
        return ImageOps.exif_transpose(picture)
    array = np.asarray(picture)
    rgb = array.dtype == np.uint8 and array.ndim == 3 and array.shape[-1] == 3
    if not rgb or not array.size:
        raise _refused(array)
    return array


def _refused(array: NDArray[Any]) -> UsageError:
    span = f" in {array.min():g}..{array.max():g}" if _has_numbers(array) else ""
    return UsageError(
        "An image array must be uint8 RGB in 0..255 of shape (height, width, 3). "
        f"Received: {array.dtype} {array.shape}{span}; "
        f"{_shape_remedy(array) or _range_remedy(array)}."
    )


def _has_numbers(array: NDArray[Any]) -> bool:
    return bool(array.size) and array.dtype.kind in "iuf"


def _shape_remedy(array: NDArray[Any]) -> str:
    shape = array.shape
    if 0 in shape:
        return "it has no pixels"
    if array.ndim == 2 or (array.ndim == 3 and shape[-1] == 1):
        return (
            "a grey picture needs its level three times: "
            "PIL.Image.fromarray(array.squeeze()).convert('RGB')"
        )
    if array.ndim == 3 and shape[0] == 3 and shape[-1] != 3:
        return "channels come last: array.transpose(1, 2, 0)"
    if array.ndim == 3 and shape[-1] == 4:
        return "drop the transparency: array[..., :3]"
    return "" if array.ndim == 3 and shape[-1] == 3 else "this is no picture"


def _range_remedy(array: NDArray[Any]) -> str:
    """Tell what numbers of another dtype probably are, and how to get bytes."""
    if not _has_numbers(array) or not np.isfinite(array).all():
        return "normalisation happens inside, from whole numbers"
    low, high = array.min(), array.max()
    if low < 0:
        return (
            "it seems to be normalised already; the file normalises inside, so pass "
            "the picture as it was before"
        )
    if high <= 1:
        return (
            "it seems to be scaled to 0..1; the file scales inside, so pass "
            "(255 * array).round().astype(np.uint8)"
        )
    if high <= 255:
        return "normalisation happens inside: pass array.round().astype(np.uint8)"
    return "beyond 255 nothing says what is white: scale it to 0..255 first"
