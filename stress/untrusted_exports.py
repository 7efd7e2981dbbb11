"""Measure time and peak memory of the readers of exported files on hostile ones.

Each reader opens the largest legal and the worst hostile files of at most 50 MB, each
in a process of its own. Exits with 1 if one takes more than 10 s or 2 GB beyond its
libraries.

    python stress/untrusted_exports.py
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
BUNDLED = ROOT / "saved_models" / "resnet20-cifar10"
MB = 2**20
SIZE = 50 * MB
SECONDS, BYTES = 10.0, 2e9


def field(number: int, content: bytes) -> bytes:
    """Encode a length-delimited field of a protocol buffer."""
    length, size = b"", len(content)
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def many(number: int, inner: bytes = b"", size: int = SIZE) -> bytes:
    """Repeat a field up to a size."""
    entry = field(number, inner)
    return entry * (size // len(entry) - 10)


def onnx_files() -> Iterator[tuple[str, bytes]]:
    """ModelProto: graph 7, metadata 14; GraphProto: node 1, initializer 5, input 11."""
    genuine = (BUNDLED / "model.onnx").read_bytes()
    yield (
        "legal: metadata of 49 MB",
        genuine + field(14, field(1, b"x") + field(2, b"x" * (SIZE - 2 * MB))),
    )
    yield (
        "legal: weights of 49 MB",
        genuine
        + field(
            7,
            field(
                5, field(9, bytes(SIZE - 2 * MB)) + b"\x10\x03\x08" + b"\x80\x80\x40"
            ),
        ),
    )
    yield "nodes", field(7, many(1, b"\x0a\x00"))
    yield "nodes just below the limit", field(7, many(1, size=3_900_000))
    yield "inputs of a node", field(7, field(1, many(1)))
    yield "dimensions", field(7, field(11, field(2, field(1, field(2, many(1))))))
    yield "integers", field(7, field(5, field(7, b"\x01" * (SIZE - 100))))
    yield "metadata", many(14, b"\x0a\x00")
    card = field(1, b"reszoo_card") + field(2, b"[]," * (SIZE // 3 - 100))
    yield "a card of lists", genuine + field(14, card)
    yield "noise", np.random.default_rng(0).bytes(SIZE)


def saved_models() -> Iterator[tuple[str, bytes]]:
    """SavedModel: meta_graphs 2; MetaGraphDef: graph_def 2, object_graph_def 7."""
    genuine = (BUNDLED / "saved_model/1/saved_model.pb").read_bytes()
    constant = field(1, b"c") + field(2, b"Const")
    tensor = b"\x08\x01" + field(4, bytes(SIZE - 2 * MB))
    constant += field(5, field(1, b"value") + field(2, field(8, tensor)))
    yield "legal: a constant of 48 MB", genuine + field(2, field(2, field(1, constant)))
    yield "nodes", field(2, field(2, many(1, b"\x0a\x00")))
    yield "nodes just below the limit", field(2, field(2, many(1, size=3_900_000)))
    yield "inputs of a node", field(2, field(2, field(1, many(3))))
    yield "attributes", field(2, field(2, field(1, many(5))))
    yield "functions", field(2, field(2, field(2, many(1, b"\x0a\x00"))))
    yield "objects", field(2, field(7, many(1)))
    yield "collections", field(2, many(4))
    yield "noise", np.random.default_rng(0).bytes(SIZE)


def zipped(members: dict[str, bytes], *, deflated: bool = True) -> bytes:
    """Return a zip archive."""
    with tempfile.TemporaryFile() as file:
        kind = zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED
        with zipfile.ZipFile(file, "w", kind) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        file.seek(0)
        return file.read()


def tflite_files() -> Iterator[tuple[str, bytes]]:
    """Pad and damage the FlatBuffer, and spoil the archive behind it."""
    genuine = (BUNDLED / "model.tflite").read_bytes()
    model = genuine[: genuine.index(b"PK\x03\x04")]
    yield "legal: padded to 49 MB", model + bytes(SIZE - 2 * MB) + genuine[len(model) :]
    yield "deflated card of 3 GB", model + zipped({"card.json": bytes(3000 * MB)})
    card = b"[]," * (32 * MB // 3)
    yield "deflated card of lists", model + zipped({"card.json": card})
    names = {f"{number:06}": b"" for number in range(400_000)}
    yield "400,000 members", model + zipped(names, deflated=False)
    yield "noise", model[:8] + np.random.default_rng(0).bytes(SIZE)
    for place in (8, 24, 44):
        changed = bytearray(model + bytes(SIZE - len(model) - 100))
        changed[place : place + 4] = b"\xff\xff\xff\x7f"
        yield f"offset {place} is large", bytes(changed)


def manifests() -> Iterator[tuple[str, bytes]]:
    """Exports' manifests."""
    content = json.loads((BUNDLED / "manifest.json").read_text())
    content["card"]["provenance"]["note"] = "x" * (30 * MB)
    yield "legal: 30 MB", json.dumps(content).encode()
    yield "deep", b"[" * SIZE
    yield "lists", b"[" + b"[]," * (30 * MB // 3) + b"[]]"
    yield "50 MB", b" " * SIZE
    yield "numbers", b"[" + b"0," * (15 * MB) + b"0]"


def npy(shape: str, content: bytes) -> bytes:
    """Return an array's file with any shape in its header."""
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


def references() -> Iterator[tuple[str, bytes]]:
    """Files of images and outputs beside an export."""
    count, legal = 16 * MB // 3072, io.BytesIO()
    np.savez(
        legal,
        images=np.zeros((count, 32, 32, 3), np.uint8),
        answers=np.full((count, 10), 0.1, np.float32),
        labels=np.zeros(count, np.int64),
        synthetic=0,
    )
    yield "legal: 16 MB of images", legal.getvalue()
    yield (
        "6 GB of zeros",
        zipped({"images.npy": npy("(6000000000,)", bytes(2000 * MB))}),
    )
    yield "large shape", zipped({"images.npy": npy("(10**12,)", b"")})
    names = {f"{number:06}.npy": b"" for number in range(400_000)}
    yield "400,000 arrays", zipped(names, deflated=False)


# Kind -> its hostile files, and the name of such a file in a folder.
KINDS: dict[str, tuple[Callable[[], Iterator[tuple[str, bytes]]], str]] = {
    "onnx": (onnx_files, "model.onnx"),
    "saved_model": (saved_models, "saved_model.pb"),
    "tflite": (tflite_files, "model.tflite"),
    "manifest": (manifests, "manifest.json"),
    "reference": (references, "reference.npz"),
}
# What opens a file in this process; the memory of libraries is measured before.
READERS: dict[str, list[str]] = {
    "onnx": ["Predictor", "describe"],
    "saved_model": ["Predictor", "describe"],
    "tflite": ["Predictor", "describe"],
    "manifest": ["read_manifest"],
    "reference": ["read_reference"],
}


def resident(kind: str) -> float:
    """Return resident bytes now (VmRSS) or at their peak (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) * 1024.0
    return float("nan")


def read(kind: str, reader: str, path: Path) -> dict[str, Any]:
    """Open a file here; return seconds, bytes and what came of it."""
    import reszoo
    from reszoo_export.inspection import describe_file
    from reszoo_export.manifest import read_manifest
    from reszoo_export.verification.reference import read_reference

    if kind == "saved_model":
        import tensorflow  # noqa: F401
        from tensorflow.core.protobuf import saved_model_pb2  # noqa: F401
    functions: dict[str, Callable[[], object]] = {
        "Predictor": lambda: reszoo.Predictor(path),
        "describe": lambda: describe_file(path),
        "read_manifest": lambda: read_manifest(path),
        "read_reference": lambda: read_reference(path, read_manifest(BUNDLED).card),
    }
    genuine = {"manifest": "", "reference": ""}.get(kind, KINDS[kind][1])
    if kind in ("onnx", "tflite"):
        describe_file(BUNDLED / genuine)
        reszoo.Predictor(BUNDLED / genuine)
    base, started = resident("VmRSS"), time.perf_counter()
    try:
        functions[reader]()
        result = "read"
    except reszoo.ReszooError as error:
        result = f"{type(error).__name__}: {str(error)[-60:]}"
    return {
        "seconds": time.perf_counter() - started,
        "bytes": resident("VmHWM") - base,
        "result": result,
    }


def measure(kind: str, reader: str, path: Path) -> dict[str, Any]:
    """Call `read` in a process of its own."""
    command = [sys.executable, __file__, "--read", kind, reader, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [""]
        return {"seconds": float("nan"), "bytes": float("nan"), "result": lines[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def place(kind: str, folder: Path, content: bytes) -> Path:
    """Write a file where its reader looks for it, and return what that opens."""
    file = folder / KINDS[kind][1]
    if kind != "saved_model":
        file.write_bytes(content)
        return file if kind in ("onnx", "tflite") else folder
    extra = folder / "assets.extra"
    extra.mkdir()
    card = BUNDLED / "saved_model/1/assets.extra/card.json"
    (extra / "card.json").write_bytes(card.read_bytes())
    file.write_bytes(content)
    return folder


def main() -> None:
    """Measure everything and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--read", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    arguments = parser.parse_args()
    if arguments.read:
        kind, reader, path = arguments.read
        print(json.dumps(read(kind, reader, Path(path))))
        return
    failed = 0
    for kind in arguments.kinds:
        for name, content in KINDS[kind][0]():
            with tempfile.TemporaryDirectory() as folder:
                path = place(kind, Path(folder), content)
                for reader in READERS[kind]:
                    found = measure(kind, reader, path)
                    bad = not (found["seconds"] <= SECONDS and found["bytes"] <= BYTES)
                    failed += bad
                    print(
                        f"{kind:12} {reader:14} {name:34} {len(content) / MB:5.1f} MB "
                        f"{found['seconds']:6.2f} s {found['bytes'] / 1e6:8,.0f} MB "
                        f"{'FAILED ' * bad}{found['result']!r}",
                        flush=True,
                    )
    sys.exit(bool(failed))


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main()
