"""How much memory and time do readers take on the largest and the worst files?

Run: python stress/untrusted_readers.py [--megabytes 50] [--only images]

Each reader runs in a process of its own on files that this program makes: the largest
legal one of at most so many megabytes, and others that are made to do harm. Lines tell
the peak of resident memory, the seconds, and whether the file was read or refused by
an error of reszoo. Exits 1 above 2 GB or 10 seconds, or on any other error.
"""

import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

MOST_MEGABYTES, MOST_SECONDS = 2000, 10
_CHILD = """
import sys, time
path, expression = sys.argv[1:]
import reszoo
from reszoo.cards import Card
from reszoo.data.image_files import prepare_image
from reszoo.data.listing import list_images
from reszoo.files import read_json
from reszoo.preprocessing import Preprocessing, IMAGENET_MEAN, IMAGENET_STD
from reszoo.weights import location
from reszoo.weights.configs import read_config
from pathlib import Path
usual = Preprocessing(train_size=224, eval_size=224, crop_pct=0.875,
    interpolation="bilinear", mean=IMAGENET_MEAN, std=IMAGENET_STD)
if "serve" in expression:
    import tensorflow as tf
    from reszoo_export.saved_model.writer import prepare_encoded
    function = tf.function(lambda files: prepare_encoded(files, usual),
        input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    function.get_concrete_function()
def serve(path):
    try:
        function(tf.constant([Path(path).read_bytes()]))
    except tf.errors.InvalidArgumentError as error:
        raise reszoo.DataError(error.message) from error
began, answer = time.perf_counter(), "read"
try:
    eval(expression)
except reszoo.ReszooError as error:
    answer = f"refused: {error}"[:70]
except Exception as error:
    answer = f"FAILED: {type(error).__name__}: {error}"[:70]
seconds = time.perf_counter() - began
status = open("/proc/self/status").read()
print(int(status.split("VmHWM:")[1].split()[0]) // 1000, f"{seconds:.2f}", answer)
"""
_PREPARE, _SERVE = "prepare_image(path, usual)", "serve(path)"
Maker = Callable[[Path, int], None]


def _image(kind: str, width: int, height: int, **options: object) -> Maker:
    def make(path: Path, size: int) -> None:
        from PIL import Image

        Image.MAX_IMAGE_PIXELS = None
        mode = "L" if kind == "GIF" else "RGB"
        if kind == "TIFF":
            options["compression"] = "tiff_deflate"
        Image.new(mode, (width, height), 100).save(path, kind, **options)

    return make


def _header(path: Path, size: int) -> None:
    """A safetensors file that is one header of empty lists."""
    body = b'{"__metadata__":{"a":"' + b"x" * (size - 60) + b'"}}'
    path.write_bytes(struct.pack("<Q", len(body)) + body)


def _nested(path: Path, size: int) -> None:
    size = min(size, (1 << 24) - 100)
    path.write_text('{"pretrained_cfg":[' + "[]," * (size // 3 - 20) + "0]}")


def _brackets(path: Path, size: int) -> None:
    path.write_text("[" * min(size, (1 << 24) - 100))


def _tensors(path: Path, size: int) -> None:
    from safetensors.numpy import save_file

    save_file({"fc.weight": np.zeros((1000, size // 4000), np.float32)}, path)


def _hdf5_links(path: Path, size: int) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        first = file.create_group("layer0")
        data = first.create_dataset("kernel:0", data=np.zeros(size // 5, np.float32))
        for number in range(2000):
            file.create_group(f"other{number}")["kernel:0"] = data


def _hdf5_groups(path: Path, size: int) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        group = file
        for _ in range(6):
            inside = group.create_group(None)
            for number in range(40):
                group[str(number)] = inside
            group = inside


def _hdf5(path: Path, size: int) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file.create_group("predictions")["kernel:0"] = np.zeros(size // 4, np.float32)


def _table(path: Path, size: int) -> None:
    rows = (f"images/{number:08}.jpg,{number % 100}\n" for number in range(size // 24))
    path.write_text("path,label\n" + "".join(rows))


def _png_header(path: Path, size: int) -> None:
    """A PNG of 2**31 - 1 squared pixels, most of which are missing."""
    body = b"IHDR" + struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0)
    end = b"\0\0\0\0IEND\xaeB`\x82"
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + end)


def _scans(path: Path, size: int) -> None:
    """A progressive JPEG whose last scan is there as often as fits."""
    _image("JPEG", 512, 512, progressive=True)(path, size)
    content = path.read_bytes()
    scan = content[content.rindex(b"\xff\xda") : -2]
    path.write_bytes(content[:-2] + scan * (size // len(scan)) + b"\xff\xd9")


SHAPES = [(60_000, 1), (1, 60_000), (30_000, 30_000)]
# Kind -> name -> expression and maker.
CASES: dict[str, dict[str, tuple[str, Maker]]] = {
    "images": {
        **{
            f"{kind} {width} x {height}{how}": (expression, _image(kind, width, height))
            for kind in ("JPEG", "PNG", "GIF", "TIFF")
            for width, height in SHAPES
            for expression, how in ((_PREPARE, ""), (_SERVE, ", serving_bytes"))
        },
        "JPEG 14200 x 14200": (_PREPARE, _image("JPEG", 14_200, 14_200)),
        "JPEG 9000 x 9000, progressive": (
            _PREPARE, _image("JPEG", 9000, 9000, progressive=True),
        ),
        "JPEG 30000 x 30000, progressive": (
            _PREPARE, _image("JPEG", 30_000, 30_000, progressive=True),
        ),
        "PNG 11500 x 11500": (_PREPARE, _image("PNG", 11_500, 11_500)),
        "PNG 11500 x 11500, serving_bytes": (_SERVE, _image("PNG", 11_500, 11_500)),
        "PNG of 2**62 pixels": (_PREPARE, _png_header),
        "PNG of 2**62 pixels, serving_bytes": (_SERVE, _png_header),
        "WebP 6600 x 6600": (_PREPARE, _image("WEBP", 6600, 6600)),
        "TIFF 11500 x 11500": (_PREPARE, _image("TIFF", 11_500, 11_500)),
        "JPEG of many scans": (_PREPARE, _scans),
        "JPEG of many scans, serving_bytes": (_SERVE, _scans),
    },
    "weights": {
        "safetensors, largest": ("location.read(path)", _tensors),
        "safetensors, one header": ("location.read(path)", _header),
        "HDF5, largest": ("location.read(path)", _hdf5),
        "HDF5, a dataset under 2,000 names": ("location.read(path)", _hdf5_links),
        "HDF5, 6 levels of 40 links": ("location.read(path)", _hdf5_groups),
    },
    "texts": {
        "timm config of empty lists": ("read_config(Path(path))", _nested),
        "JSON of brackets": ("read_config(Path(path))", _brackets),
        "CSV, largest": ("list_images(path)", _table),
    },
}  # fmt: skip
_SUFFIXES = {"safetensors": ".safetensors", "HDF5": ".h5", "CSV": ".csv"}


def measure(expression: str, path: Path) -> tuple[int, float, str]:
    """Return megabytes, seconds and the answer of a reader in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(path), expression],
        capture_output=True, text=True, check=False, timeout=600,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        return 0, 0.0, f"FAILED: exit {done.returncode} {done.stderr[-200:]}"
    megabytes, seconds, answer = lines[-1].split(" ", 2)
    return int(megabytes), float(seconds), answer


def rows(size: int, only: str | None) -> Iterator[tuple[str, int, int, float, str]]:
    """Yield name, bytes, megabytes, seconds and answer of each case."""
    for kind, cases in CASES.items():
        for name, (expression, make) in cases.items() if only in (None, kind) else ():
            with tempfile.TemporaryDirectory() as folder:
                suffix = _SUFFIXES.get(name.split(",")[0].split(" ")[0], "")
                path = Path(folder) / f"file{suffix}"
                make(path, size)
                yield name, path.stat().st_size, *measure(expression, path)


def main() -> None:
    """Print a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=50)
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    failed = 0
    for row in rows(arguments.megabytes * 10**6, arguments.only):
        name, size, megabytes, seconds, answer = row
        bad = megabytes > MOST_MEGABYTES or seconds > MOST_SECONDS
        failed += bad or answer.startswith("FAILED")
        print(
            json.dumps(row)
            if arguments.json
            else f"{name:40} {size / 1e6:7.2f} MB file {megabytes:6} MB "
            f"{seconds:6.2f} s  {answer}",
            flush=True,
        )
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
