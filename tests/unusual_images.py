"""One set of unusual image files, for everything that shows images to a model."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sample_images import orientation_exif

_SIDE = (60, 44)


def _draw(*shape: int, top: int = 256, dtype: Any = np.uint8) -> Any:
    """Make ramps with noise."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    ramp = rows / shape[0] + columns / shape[1]
    noise = np.random.default_rng(7).random(shape)
    weights = np.linspace(0.3, 0.5, shape[2]) if len(shape) > 2 else 0.4
    ramp = ramp[..., None] if len(shape) > 2 else ramp
    return (np.clip(ramp * weights + 0.2 * noise, 0, 1) * (top - 1)).astype(dtype)


def _rgb() -> Image.Image:
    return Image.fromarray(_draw(*_SIDE, 3))


def _alpha() -> Image.Image:
    """A colour everywhere, also where it is fully transparent."""
    alpha = np.random.default_rng(8).choice([0, 90, 255], (*_SIDE, 1)).astype(np.uint8)
    return Image.fromarray(np.concatenate([_draw(*_SIDE, 3), alpha], -1))


def _png16(path: Path, pixels: Any) -> None:
    """Write RGB of 16 bits per channel, which Pillow cannot."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    height, width, _ = pixels.shape
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )


def _saved(make: Callable[[], Image.Image], **options: Any) -> Callable[[Path], None]:
    return lambda path: make().save(path, **options)


def _moving(path: Path) -> None:
    frames = [Image.fromarray(255 - _draw(*_SIDE, 3)) for _ in range(2)]
    lossless: dict[str, Any] = {"lossless": True} if path.suffix == ".webp" else {}
    _rgb().save(path, save_all=True, append_images=frames, **lossless)


def _cut(path: Path) -> None:
    _rgb().save(path)
    path.write_bytes(path.read_bytes()[:400])


_GREY16 = _draw(*_SIDE, top=65536, dtype=np.uint16)
_WRITERS: dict[str, Callable[[Path], Any]] = {
    "16-bit.png": _saved(lambda: Image.fromarray(_GREY16)),
    "16-bit.tif": _saved(lambda: Image.fromarray(_GREY16)),
    "16-bit-rgb.png": lambda path: _png16(
        path, _draw(*_SIDE, 3, top=65536, dtype=np.uint16)
    ),
    "1-bit.png": _saved(lambda: _rgb().convert("1")),
    "grey.jpg": _saved(lambda: _rgb().convert("L")),
    "grey-alpha.png": _saved(lambda: _alpha().convert("LA")),
    "alpha.png": _saved(_alpha),
    "alpha.webp": _saved(_alpha, lossless=True, exact=True),
    "palette.png": _saved(lambda: _rgb().convert("P")),
    "palette-transparent.png": _saved(lambda: _rgb().convert("P"), transparency=3),
    "cmyk.jpg": _saved(lambda: _rgb().convert("CMYK")),
    "cmyk.tif": _saved(lambda: _rgb().convert("CMYK")),
    "progressive.jpg": _saved(_rgb, progressive=True),
    **{f"held-{n}.jpg": _saved(_rgb, exif=orientation_exif(n)) for n in range(2, 9)},
    "held-6.png": _saved(_rgb, exif=orientation_exif(6)),
    "held-6.webp": _saved(_rgb, exif=orientation_exif(6), lossless=True),
    "animated.gif": _moving,
    "animated.png": _moving,
    "animated.webp": _moving,
    "indexed.bmp": _saved(lambda: _rgb().convert("P")),
    "one-pixel.png": _saved(lambda: Image.new("RGB", (1, 1), (200, 30, 90))),
    "one-line.png": _saved(lambda: Image.fromarray(_draw(1, 7, 3))),
    "large.jpg": _saved(lambda: _rgb().resize((4000, 3000)), quality=60),
    "large-palette.png": _saved(lambda: _rgb().convert("P").resize((3000, 1500))),
}  # fmt: skip
# A range that is not known; refused by everything.
_REFUSED: dict[str, Callable[[Path], Any]] = {
    "float.tif": _saved(lambda: Image.fromarray(_draw(*_SIDE, dtype=np.float32))),
    "32-bit.tif": _saved(lambda: Image.fromarray(_draw(*_SIDE, dtype=np.int32))),
    "text.png": lambda path: path.write_bytes(b"no image"),
    "cut.png": _cut,
    "empty.jpg": lambda path: path.write_bytes(b""),
}


def write_unusual_images(folder: Path) -> tuple[list[Path], list[Path]]:
    """Write the files; return those that can be shown to a model, and the others."""
    written = []
    for writers in (_WRITERS, _REFUSED):
        for name, write in writers.items():
            write(folder / name)
        written.append([folder / name for name in writers])
    return written[0], written[1]
