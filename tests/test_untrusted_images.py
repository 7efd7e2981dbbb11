"""Images of any size and shape take bounded memory; all readers give their pixels."""

import os
import runpy
import socket
import struct
import subprocess
import sys
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from conftest import photos, within
from made_card import made_card
from PIL import Image
from sample_images import orientation_exif
from test_snippets import _ONNX, written_snippets

import reszoo
from reszoo.data import image_files
from reszoo.data.decoding import decode_bounded
from reszoo.data.examples import Examples
from reszoo.data.image_facts import inspect_file
from reszoo.data.image_files import open_image, prepare_image
from reszoo.data.image_paths import iterate_paths
from reszoo.data.pipeline import Augmentation, evaluation_batches, training_batches
from reszoo.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from reszoo_export.saved_model.writer import prepare_encoded

pytestmark = pytest.mark.usefixtures("home")
USUAL = Preprocessing(
    train_size=224,
    eval_size=224,
    crop_pct=0.875,
    interpolation="bilinear",
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
)
LONG = [(60_000, 1), (1, 60_000)]
KINDS = ("JPEG", "PNG", "GIF", "TIFF")


def file_of(kind: str, width: int, height: int, **options: Any) -> bytes:
    """A picture whose columns and rows all differ."""
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([columns % 251, rows % 241, (rows + columns) % 239], -1)
    image = Image.fromarray(pixels.astype(np.uint8))
    buffer = BytesIO()
    (image.convert("L") if kind == "GIF" else image).save(buffer, kind, **options)
    return buffer.getvalue()


def served(content: bytes, preprocessing: Preprocessing = USUAL) -> Any:
    function = tf.function(
        lambda files: prepare_encoded(files, preprocessing), autograph=False
    )
    return function(tf.constant([content]))[0].numpy().astype(int)


def empty_png(width: int, height: int) -> bytes:
    """A PNG of any size in a hundred bytes; its pixels are missing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return (
            struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (
        chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )
    return b"\x89PNG\r\n\x1a\n" + parts


def resized_jpeg(content: bytes, width: int, height: int) -> bytes:
    """A JPEG whose header names another size than it was encoded with."""
    marker = next(m for m in (b"\xff\xc0", b"\xff\xc2") if m in content)
    at = content.index(marker) + 5
    return content[:at] + struct.pack(">HH", height, width) + content[at + 4 :]


@pytest.mark.parametrize("size", LONG, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_long_pictures_are_the_same_everywhere(
    kind: str, size: tuple[int, int], tmp_path: Path
) -> None:
    content = file_of(kind, *size)
    path = tmp_path / f"long.{kind.lower()}"
    path.write_bytes(content)
    expected = prepare_image(path, USUAL).astype(int)
    whole = USUAL.prepare(open_image(path)).astype(int)
    np.testing.assert_array_equal(whole, expected)
    examples = Examples(np.zeros(1, np.int64), paths=(str(path),)).read_headers()
    ((images, _),) = evaluation_batches(examples, USUAL, 1)
    assert np.abs(images[0].numpy() - expected).max() <= 1
    written_snippets(tmp_path, made_card(), _ONNX)
    server = runpy.run_path(str(tmp_path / "snippets/server.py"))
    small = made_card().preprocessing
    shown = server["prepare"](path).astype(int)
    assert np.abs(shown - prepare_image(path, small)).max() <= 1
    if kind in ("JPEG", "PNG"):
        assert np.abs(served(content) - expected).max() <= 1
    else:
        with pytest.raises(tf.errors.InvalidArgumentError, match="JPEG or PNG"):
            served(content)


def test_the_middle_of_a_long_picture_is_resized_as_torchvision_does() -> None:
    """Against the whole picture, resized and then cut, where that fits memory."""
    content = file_of("PNG", 1200, 10)
    image = Image.open(BytesIO(content))
    resized = image.resize((1200 * 256 // 10, 256), Image.Resampling.BILINEAR)
    left, top = ((side - 224) // 2 for side in resized.size)
    expected = np.asarray(resized.crop((left, top, left + 224, top + 224)), int)
    assert np.abs(prepare_image(content, USUAL, "it") - expected).max() <= 1
    assert np.abs(served(content) - expected).max() <= 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_a_long_picture_takes_no_memory() -> None:
    program = (
        "import sys\n"
        "from reszoo.data.image_files import prepare_image\n"
        "from reszoo.preprocessing import *\n"
        "usual = Preprocessing(train_size=224, eval_size=224, crop_pct=0.875,\n"
        "    interpolation='bilinear', mean=IMAGENET_MEAN, std=IMAGENET_STD)\n"
        "prepare_image(sys.stdin.buffer.read(), usual, 'it')\n"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=file_of("JPEG", 60_000, 1),
        capture_output=True,
        check=False,
    )
    assert not done.returncode, done.stderr.decode()
    # In KiB; it took 15.9 GB.
    assert int(done.stdout) < 200_000


@pytest.mark.parametrize(
    ("width", "height", "factor"),
    [
        (4096, 4096, 1), (4097, 4096, 2), (8192, 8192, 2), (8193, 8192, 4),
        (30_000, 30_000, 8), (65_500, 65_500, 8), (65_535, 2047, 1), (20_000, 2048, 2),
    ],
)  # fmt: skip
def test_large_jpegs_are_decoded_at_a_scale_that_is_enough(
    width: int, height: int, factor: int
) -> None:
    sides = (tf.constant(width, tf.int64), tf.constant(height, tf.int64))
    assert image_files.reduction(width, height) == factor
    assert int(image_files.reduction(*sides)) == factor
    assert int(image_files.reduction(*sides[::-1])) == factor
    kept = -(-width // factor) * -(-height // factor)
    assert image_files.PIXEL * kept <= image_files.MEMORY


@pytest.fixture
def lower(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits of small pictures, for which tests need not make large ones."""
    for module in ("decoding", "image_files"):
        for name, value in {"LARGE": 4096, "SHORT": 16, "MEMORY": 1 << 19}.items():
            monkeypatch.setattr(f"reszoo.data.{module}.{name}", value, raising=False)


@pytest.mark.usefixtures("lower")
@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_large_picture_is_the_same_everywhere(
    kind: str, orientation: int, tmp_path: Path
) -> None:
    exif = orientation_exif(orientation)
    content = file_of(kind, 300, 210, exif=exif)
    path = tmp_path / f"large.{kind.lower()}"
    path.write_bytes(content)
    small = made_card(crop_pct=0.875).preprocessing
    expected = prepare_image(path, small).astype(int)
    image = open_image(path)
    factor = 4 if kind == "JPEG" else 1
    assert sorted(image.size) == [-(-210 // factor), 300 // factor]
    np.testing.assert_array_equal(small.prepare(image), expected)
    examples = Examples(np.zeros(1, np.int64), paths=(str(path),)).read_headers()
    ((images, _),) = evaluation_batches(examples, small, 1)
    assert np.abs(images[0].numpy() - expected).max() <= 1
    if kind == "JPEG" or orientation == 1:
        assert np.abs(served(content, small) - expected).max() <= 1


@pytest.mark.usefixtures("lower")
@pytest.mark.parametrize("kind", KINDS)
def test_training_reads_large_pictures_too(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"large.{kind.lower()}"
    path.write_bytes(file_of(kind, 300, 210))
    examples = Examples(np.zeros(2, np.int64), paths=(str(path),) * 2).read_headers()
    batches = training_batches(
        examples, USUAL, Augmentation(crop="resized"), batch_size=2, seed=0, epoch=0
    )
    ((images, _),) = batches
    assert images.shape == (2, 224, 224, 3)
    assert images.numpy().std() > 10


@pytest.mark.parametrize(
    "size", [(30_000, 30_000), (2**31 - 1, 1000), (11_586, 11_586)]
)
def test_what_would_not_fit_is_refused_from_its_header(size: tuple[int, int]) -> None:
    content = empty_png(*size)
    with pytest.raises(reszoo.DataError, match=r"too many pixels|too large"):
        prepare_image(content, USUAL, "it.png")
    with pytest.raises(tf.errors.InvalidArgumentError, match="takes at most 512 MiB"):
        decode_bounded(tf.constant(content))


def test_a_progressive_jpeg_counts_what_its_decoder_keeps() -> None:
    content = file_of("JPEG", 64, 64, progressive=True)
    bomb = resized_jpeg(content, 30_000, 30_000)
    with pytest.raises(reszoo.DataError, match=r"too many pixels \(30000 x 30000"):
        prepare_image(bomb, USUAL, "it")
    with pytest.raises(tf.errors.InvalidArgumentError, match="takes at most 512 MiB"):
        decode_bounded(tf.constant(bomb))
    sequential = resized_jpeg(file_of("JPEG", 64, 64), 30_000, 30_000)
    assert prepare_image(sequential, USUAL, "it").shape == (224, 224, 3)


def test_a_jpeg_of_very_many_scans_is_refused() -> None:
    content = file_of("JPEG", 64, 64, progressive=True)
    scan = content[content.rindex(b"\xff\xda") : -2]
    bomb = content[:-2] + scan * 300 + b"\xff\xd9"
    with pytest.raises(reszoo.DataError, match="more than 256 scans"):
        prepare_image(bomb, USUAL, "it")
    padded = bomb + bytes(1 << 20)
    with pytest.raises(tf.errors.InvalidArgumentError, match="256 scans"):
        decode_bounded(tf.constant(padded))


def test_ordinary_pictures_are_decoded_as_ever() -> None:
    for options in ({}, {"progressive": True}):
        content = file_of("JPEG", 640, 427, **options)
        whole = tf.io.decode_jpeg(content, 3, dct_method="INTEGER_ACCURATE")
        np.testing.assert_array_equal(decode_bounded(tf.constant(content)), whole)
        np.testing.assert_array_equal(np.asarray(open_image(content, "it")), whole)


def test_a_tile_of_a_tiff_counts_too() -> None:
    buffer = BytesIO()
    Image.new("RGB", (16, 16)).save(
        buffer, "TIFF", tiffinfo={40_001: 60_000, 40_002: 60_000}
    )
    content = buffer.getvalue()
    for private, tag in ((40_001, 322), (40_002, 323)):
        content = content.replace(
            struct.pack("<HHI", private, 3, 1), struct.pack("<HHI", tag, 3, 1)
        )
    with pytest.raises(reszoo.DataError, match=r"too many pixels \(16 x 16"):
        prepare_image(content, USUAL, "it")


def special_files(folder: Path) -> list[Path]:
    os.mkfifo(folder / "pipe.jpg")
    (folder / "device.jpg").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "s.jpg"))
    return [folder / "pipe.jpg", folder / "device.jpg", folder / "s.jpg"]


def test_pipes_and_devices_are_no_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = photos(Path("photos"))
    specials = special_files(root / "cat")
    for path in specials:
        error = within(20, open_image, path)
        assert isinstance(error, reszoo.DataError)
        assert "not a regular file" in str(error)
    report = within(60, reszoo.scan, root)
    assert sorted(report.unreadable) == sorted(
        (str(path), "not a regular file") for path in specials
    )
    table = root / "pipe.csv"
    os.mkfifo(table)
    for reader in (reszoo.scan, lambda path: list(iterate_paths([path]))):
        error = within(20, reader, table)
        assert isinstance(error, reszoo.DataError)
        assert "not a regular file" in str(error)


def test_the_scan_names_what_exceeds_the_limits(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos")
    (root / "cat" / "huge.png").write_bytes(empty_png(12_000, 12_000))
    report = reszoo.scan(root)
    (found,) = report.unreadable
    assert found.path.endswith("huge.png")
    assert "12000 x 12000 pixels take 549 MiB, more than 512" in found.reason


@pytest.mark.parametrize("profile", [b"", b"name\0"])
def test_a_damaged_colour_profile_behind_the_pixels_is_one_sentence(
    profile: bytes, tmp_path: Path
) -> None:
    """Pillow reads that chunk after the pixels, and raises an IndexError."""
    content, path = BytesIO(), tmp_path / "image.png"
    Image.new("RGB", (40, 40)).save(content, "PNG")
    chunk = b"iCCP" + profile
    check = zlib.crc32(chunk).to_bytes(4, "big")
    end = content.getvalue()[-12:]
    damaged = len(profile).to_bytes(4, "big") + chunk + check
    path.write_bytes(content.getvalue()[:-12] + damaged + end)
    with pytest.raises(reszoo.DataError, match="is not a readable image"):
        prepare_image(path, USUAL)


def test_an_image_without_its_palette_is_unreadable(tmp_path: Path) -> None:
    content, path = BytesIO(), tmp_path / "image.png"
    Image.new("P", (40, 40)).save(content, "PNG")
    data = content.getvalue()
    start = data.index(b"PLTE") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    path.write_bytes(data[:start] + data[end:])
    assert inspect_file(str(path))["problem"]
