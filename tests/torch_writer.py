"""A second implementation of torch's two layouts: it writes what the reader reads.

Everything is put together byte by byte, so that a test can also write what torch
never would.
"""

import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from reszoo.errors import CheckpointError
from reszoo.weights.torch_file import read

LAYOUTS = ("zip", "legacy")


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def many(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def mapping(**entries: bytes) -> bytes:
    return b"}(" + b"".join(text(k) + v for k, v in entries.items()) + b"u"


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def call(module: str, attribute: str, *arguments: bytes) -> bytes:
    return name(module, attribute) + many(*arguments) + b"R"


@dataclass
class Writer:
    """Writes what torch writes, in either layout, and what it never would."""

    layout: str
    order: Literal["<", ">"] = "<"
    storages: dict[str, bytes] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def storage(
        self,
        values: NDArray[Any],
        kind: str,
        key: str | None = None,
        view: bytes = b"N",
    ) -> bytes:
        key = str(len(self.storages)) if key is None else key
        ordered = values.astype(values.dtype.newbyteorder(self.order))
        self.storages.setdefault(key, ordered.tobytes())
        return self.reference(kind, key, self.counts.setdefault(key, values.size), view)

    def reference(self, kind: str, key: str, count: int, view: bytes = b"N") -> bytes:
        parts = [text("storage"), name("torch", kind), text(key), text("cpu")]
        end = [] if self.layout == "zip" else [view]
        return many(*parts, number(count), *end) + b"Q"

    def tensor(self, values: NDArray[Any], kind: str = "FloatStorage") -> bytes:
        steps = [step // values.itemsize for step in values.strides]
        return rebuilt(self.storage(values, kind), 0, values.shape, steps)

    def write(self, path: Path, tree: bytes, protocol: int = 2) -> Path:
        program = bytes([0x80, protocol]) + tree + b"."
        if self.layout == "zip":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("net/data.pkl", program)
                order = b"little" if self.order == "<" else b"big"
                archive.writestr("net/byteorder", order)
                for key, raw in self.storages.items():
                    archive.writestr(f"net/data/{key}", raw)
            return path
        head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
        raw = b"".join(pickle.dumps(part, 2) for part in head) + program
        raw += pickle.dumps(list(self.storages), 2)
        for key, data in self.storages.items():
            raw += struct.pack("<q", self.counts[key]) + data
        path.write_bytes(raw)
        return path


def rebuilt(storage: bytes, offset: int, shape: Any, steps: Any) -> bytes:
    sizes, strides = many(*map(number, shape)), many(*map(number, steps))
    hooks = call("collections", "OrderedDict")
    arguments = (storage, number(offset), sizes, strides, b"\x89", hooks)
    return call("torch._utils", "_rebuild_tensor_v2", *arguments)


def refused(path: Path, match: str) -> None:
    """Read a file that must be refused, and see that it is all there is."""
    with pytest.raises(CheckpointError, match=match):
        read(path)
    assert list(path.parent.iterdir()) == [path]


def same(tree: Any, expected: Any) -> bool:
    """Whether two trees are equal in their containers, types and every bit."""
    if isinstance(expected, np.ndarray):
        return (
            isinstance(tree, np.ndarray)
            and (tree.dtype, tree.shape) == (expected.dtype, expected.shape)
            and tree.tobytes() == expected.tobytes()
        )
    if isinstance(expected, dict):
        return list(tree) == list(expected) and all(
            same(tree[key], value) for key, value in expected.items()
        )
    return type(tree) is type(expected) and bool(tree == expected)


@contextmanager
def memory_below(limit: float) -> Iterator[None]:
    """Fail if the body ever holds more than `limit` bytes."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()
