"""Image files of every kind, good and bad, and the facts expected of each."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

DRAW = np.random.default_rng(0)
PIXELS = DRAW.integers(0, 256, (48, 64, 3), np.uint8)
PICTURE = Image.fromarray(PIXELS)
OTHER = Image.fromarray(255 - PIXELS)
DEEP = Image.fromarray(DRAW.integers(0, 65_536, (40, 40), np.uint16))
CLEAR = Image.fromarray(DRAW.integers(0, 256, (40, 40, 4), np.uint8))
PAGE = b"<!DOCTYPE html>\n<title>404 Not Found</title>\n"


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    stream = BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


JPEG, PNG = encoded(PICTURE, "JPEG"), encoded(PICTURE, "PNG")
MOVING = {"save_all": True, "append_images": [OTHER]}
GIF = encoded(PICTURE, "GIF", **MOVING)
# File -> its content, and what is to be found besides its size and picture.
ZOO: dict[str, tuple[bytes, dict[str, Any]]] = {
    "60percent.jpg": (
        JPEG[: len(JPEG) * 6 // 10],
        {"problem": "truncated", "recoverable": True, "format": "JPEG"},
    ),
    "10bytes.jpg": (JPEG[:-10], {"problem": "truncated", "recoverable": True}),
    "header.jpg": (JPEG[:100], {"problem": "truncated", "recoverable": False}),
    "60percent.png": (PNG[: len(PNG) * 6 // 10], {"problem": "truncated"}),
    "4bytes.png": (PNG[:-4], {"problem": "damaged PNG data", "recoverable": False}),
    "short.bmp": (encoded(PICTURE, "BMP")[:-9], {"problem": "truncated"}),
    "page.jpg": (PAGE, {"problem": "text, not an image", "format": ""}),
    "noise.jpg": (PIXELS.tobytes(), {"problem": "no known image format"}),
    "empty.jpg": (b"", {"problem": "empty file"}),
    "plain.jpg": (JPEG, {"format": "JPEG", "mode": "RGB", "wrong_extension": False}),
    "upper.JPEG": (JPEG, {"wrong_extension": False}),
    "png.jpg": (PNG, {"format": "PNG", "wrong_extension": True}),
    "jpeg.png": (JPEG, {"format": "JPEG", "wrong_extension": True}),
    "pair.jpg": (
        encoded(PICTURE, "MPO", **MOVING),
        {"wrong_extension": False, "frames": 2},
    ),
    "cmyk.jpg": (encoded(PICTURE.convert("CMYK"), "JPEG"), {"mode": "CMYK"}),
    "grey.jpg": (encoded(PICTURE.convert("L"), "JPEG"), {"mode": "L"}),
    "deep.png": (encoded(DEEP, "PNG"), {"mode": "L;16", "height": 40}),
    "clear.png": (encoded(CLEAR, "PNG"), {"mode": "RGBA"}),
    "key.png": (encoded(PICTURE, "PNG", transparency=(1, 2, 3)), {"mode": "RGBA"}),
    "palette.png": (encoded(PICTURE.convert("P"), "PNG"), {"mode": "P"}),
    "moving.gif": (GIF, {"format": "GIF", "frames": 2, "by_pillow": True}),
    "second.gif": (GIF[:-900], {"problem": None, "by_pillow": True}),
    "lossless.webp": (encoded(PICTURE, "WEBP", lossless=True), {"by_pillow": True}),
}


STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def orientation_exif(orientation: int) -> Image.Exif:
    """What a camera writes that is held so; EXIF 2.3, 4.6.4 A."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def held(picture: Image.Image, orientation: int, kind: str) -> bytes:
    """Encode a picture as a camera does that is held so."""
    turn = STORED[orientation]
    stored = picture if turn is None else picture.transpose(turn)
    return encoded(stored, kind, exif=orientation_exif(orientation), lossless=True)


def paths_in(root: Path) -> list[str]:
    return sorted(str(path) for path in root.rglob("*.*"))
