"""Read PyTorch checkpoints without torch and without executing anything.

`torch.save` writes a pickle of the object and the elements of its tensors ("storages"):
since torch 1.6 as members of a zip archive, before that one after the other.
"""

import io
import math
import os
import textwrap
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from reszoo.errors import CheckpointError
from reszoo.files import StrPath
from reszoo.weights import unpickler
from reszoo.weights.unpickler import Call, RefusalError, Unpickler, Unread, checked_key

Array = NDArray[Any]
ByteOrder = Literal["<", ">"]
_ORDERS: dict[bytes, ByteOrder] = {b"little": "<", b"big": ">"}

_ZIP = b"PK\x03\x04"
_MAGIC = 0x1950A86A20F9469CFC6C
# As a pickle holds it: the instruction LONG1 and ten bytes of number.
_MAGIC_BYTES = b"\x8a\x0a" + _MAGIC.to_bytes(10, "little")
_PROTOCOL = 1001
# Bytes read at a time, so that a byte-swapped or widened copy stays small.
_CHUNK = 1 << 20
_MAX_AXES = 64  # of a NumPy array
_MAX_ELEMENTS = 1 << 48
_MAX_DEVICE = 32  # characters of a device's name
_NUMBERS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")


class _BoundedReader(io.BufferedReader):
    """A file of which one call reads at most 1 MiB.

    A zip directory or a pickled string can claim any length, and a reader allocates
    that much before it notices the end of the file.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(_CHUNK if size is None or size < 0 else min(size, _CHUNK))

    def readline(self, size: int | None = -1, /) -> bytes:
        return super().readline(_CHUNK)


def looks_like_torch(path: StrPath) -> bool:
    """Tell by its content whether a file is a torch checkpoint of either layout."""
    try:
        with _BoundedReader(io.FileIO(path)) as stream:
            head = _head(stream)
            if not head.startswith(_ZIP):
                return _is_legacy(head)
            with zipfile.ZipFile(stream) as archive:
                return len(_pickles(archive)) == 1
    # A file that makes the zip reader fail in any way is not one.
    except Exception:
        return False


def read(path: StrPath) -> Any:
    """Read the object in a torch checkpoint as plain containers and arrays.

    Dicts of all kinds and `argparse.Namespace` become dicts, tensors and parameters
    become arrays, bfloat16 becomes float32 exactly, and dtypes and devices become their
    names. Nothing in the file is imported, called or written. Tensors on one storage
    share memory, as they did in torch. A CheckpointError if there is no such file, it
    is damaged, or needs more than weights do.
    """
    file = Path(path)
    if not file.is_file():
        raise CheckpointError(f"There is no checkpoint {file}.")
    try:
        with _BoundedReader(io.FileIO(file)) as stream:
            return _read(stream)
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(f"{file} could not be read: {reason}.") from error
    # A crafted file can provoke any error in the readers of zips, pickles and numbers.
    except Exception as error:
        # A name in a file can be as long as the file.
        told = textwrap.shorten(str(error), 600)
        if not isinstance(error, RefusalError):
            kind = f"{type(error).__name__}: {told}"
            told = f"is damaged or not a torch checkpoint ({kind}). Copy it again."
        raise CheckpointError(f"{file} {told}") from error


def _read(stream: _BoundedReader) -> Any:
    head = _head(stream)
    if _is_legacy(head):
        return _read_legacy(stream)
    if not head.startswith(_ZIP):
        raise RefusalError(
            "is not a torch checkpoint: neither a zip archive nor torch's older "
            "layout. Check what it is, and copy it again if it should be one."
        )
    with zipfile.ZipFile(stream) as archive:
        return _read_zip(archive, os.fstat(stream.fileno()).st_size)


def _head(stream: _BoundedReader) -> bytes:
    head = stream.read(32)
    stream.seek(0)
    return head


def _is_legacy(head: bytes) -> bool:
    return head.startswith(b"\x80") and _MAGIC_BYTES in head


@dataclass(frozen=True)
class StorageType:
    """A class of torch storages, and NumPy's type of its elements in the file."""

    name: str
    stored: str


class Storage:
    """Elements that are still to be read, and the tensors that view them."""

    def __init__(self, key: str, type_: StorageType, count: int) -> None:
        self.key, self.type, self.count = key, type_, count
        self.values: Array = np.empty(count, _LOADED.get(type_.name, type_.stored))
        self.tensors: dict[tuple[object, ...], Array] = {}
        self.viewed = 0

    def fill(self, stream: IO[bytes], order: ByteOrder) -> None:
        """Read the elements, the first of which is next in the stream.

        A RefusalError if the stream ends early, or a truth value is neither 0 nor 1.
        """
        stored = np.dtype(self.type.stored).newbyteorder(order)
        step = _CHUNK // stored.itemsize
        for start in range(0, self.count, step):
            part = self.values[start : start + step]
            raw = stream.read(part.size * stored.itemsize)
            if len(raw) < part.size * stored.itemsize:
                raise RefusalError(f"ends within storage {self.key!r}. Copy it again.")
            values: Array = np.frombuffer(raw, stored)
            if self.type.name == "BFloat16Storage":
                values = (values.astype(np.uint32) << 16).view(np.float32)
            elif self.type.name == "BoolStorage" and values.max() > 1:
                reason = f"has truth values other than 0 and 1 in {self.key!r}."
                raise RefusalError(reason)
            part[...] = values

    def tensor(
        self, start: int, shape: tuple[int, ...], steps: tuple[int, ...]
    ) -> Array:
        """Return a view of the elements; shape and steps are known to fit."""
        if (start, shape, steps) in self.tensors:
            return self.tensors[start, shape, steps]
        if _repeats_elements(shape, steps):
            raise RefusalError(
                f"has a tensor that holds elements of storage {self.key!r} more than "
                "once. Save a clone of an expanded tensor."
            )
        self.viewed += math.prod(shape)
        if self.viewed > self.count:
            raise RefusalError(
                f"has tensors of more elements than the {self.count} of their storage "
                f"{self.key!r}. Save clones of tensors that overlap."
            )
        # Along an axis of one element, torch's stride may be any number.
        strides = [
            step * self.values.itemsize if size > 1 else 0
            for size, step in zip(shape, steps, strict=True)
        ]
        view = np.lib.stride_tricks.as_strided(self.values[start:], shape, strides)
        self.tensors[start, shape, steps] = view
        return view


@dataclass(frozen=True)
class StorageView:
    """A range of a storage; old torch files can have views of a part."""

    storage: Storage
    start: int
    count: int


def _repeats_elements(shape: tuple[int, ...], steps: tuple[int, ...]) -> bool:
    pairs = zip(steps, shape, strict=True)
    axes = sorted((step, size) for step, size in pairs if size > 1)
    return 0 not in shape and any(
        step <= _reach(axes[:place]) for place, (step, _) in enumerate(axes)
    )


def _reach(axes: Iterable[tuple[int, int]]) -> int:
    return sum(step * (size - 1) for step, size in axes)


def _rebuild_tensor(
    view: object, offset: object, sizes: object, strides: object,
    _requires_grad: object = False, _hooks: object = None, metadata: object = None,
) -> Array:  # fmt: skip
    if not isinstance(view, StorageView) or metadata:
        raise RefusalError("has a tensor of a kind that weights do not have.")
    shape, steps = _counts(sizes), _counts(strides)
    (start,) = _counts((offset,))
    if len(shape) != len(steps) or not _fits(start, shape, steps, view.count):
        raise RefusalError(
            f"has a tensor that reaches outside its storage {view.storage.key!r} of "
            f"{view.storage.count} elements. Nothing of it was read."
        )
    return view.storage.tensor(view.start + start, shape, steps)


def _counts(numbers: object = ()) -> tuple[int, ...]:
    if not isinstance(numbers, (tuple, list)) or len(numbers) > _MAX_AXES:
        raise RefusalError("has a tensor whose shape is not a list of sizes.")
    if not all(type(each) is int and 0 <= each < _MAX_ELEMENTS for each in numbers):
        raise RefusalError(
            "has a tensor with a size, stride or offset that is not a count of "
            "elements."
        )
    return tuple(numbers)


def _fits(
    start: int, shape: tuple[int, ...], steps: tuple[int, ...], count: int
) -> bool:
    if 0 in shape:
        return start <= count and math.prod(size or 1 for size in shape) < _MAX_ELEMENTS
    return start + _reach(zip(steps, shape, strict=True)) < count


class Namespace(dict[str, Any]):
    """The attributes of an `argparse.Namespace`."""

    def build(self, state: object) -> None:
        """Take attributes as entries."""
        if type(state) is not dict or not all(type(key) is str for key in state):
            raise RefusalError("has an argparse.Namespace without named values.")
        self.update(state)


class NumberType:
    """A `numpy.dtype` of plain numbers."""

    def __init__(self, code: str) -> None:
        self.dtype = np.dtype(code)

    def build(self, state: object) -> None:
        """Take the byte order."""
        match state:
            case (_, "<" | ">" | "|" as order, *_):
                self.dtype = self.dtype.newbyteorder(order)
            case _:
                raise RefusalError("has a NumPy type of unknown byte order.")


def _dict(entries: object = ()) -> dict[Any, Any]:
    pairs = entries.items() if isinstance(entries, dict) else entries
    if not isinstance(pairs, Iterable):
        raise RefusalError("has a dict that is made of no entries.")
    return {checked_key(key): value for key, value in pairs}


def _device(name: object, index: object = None) -> str:
    if not isinstance(name, str) or len(name) > _MAX_DEVICE:
        raise RefusalError("has a torch.device without a name.")
    return f"{name}:{index}" if type(index) is int else name


def _latin1(text: object, encoding: object) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise RefusalError("has bytes in an encoding other than latin1.")
    return text.encode("latin1")


def _dtype(code: object, *_: object) -> NumberType | Unread:
    if isinstance(code, str) and code in _NUMBERS:
        return NumberType(code)
    return Unread("numpy.dtype of what is not a plain number")


def _number(kind: object, raw: object) -> Any:
    if isinstance(kind, Unread):
        return kind
    if not isinstance(kind, NumberType) or not isinstance(raw, bytes):
        raise RefusalError("has a NumPy value that is not a plain number.")
    if len(raw) != kind.dtype.itemsize:
        raise RefusalError(f"has a NumPy number of {len(raw)} bytes.")
    return np.frombuffer(raw, kind.dtype)[0].item()


_STORAGES = {
    "Float": "f4", "Double": "f8", "Half": "f2", "BFloat16": "u2", "Long": "i8",
    "Int": "i4", "Short": "i2", "Char": "i1", "Byte": "u1", "Bool": "u1",
}  # fmt: skip
# Those of another type in memory.
_LOADED = {"BFloat16Storage": "f4", "BoolStorage": "?"}
_DTYPES = (
    *("float64", "float32", "float16", "bfloat16"),
    *("int64", "int32", "int16", "int8", "uint8", "bool"),
)
_FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _dict,
    # MultiStepLR keeps its milestones in one.
    ("collections", "Counter"): _dict,
    ("builtins", "set"): lambda items=(): set(map(checked_key, items)),
    ("__builtin__", "set"): lambda items=(): set(map(checked_key, items)),
    ("argparse", "Namespace"): Namespace,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("torch.nn.parameter", "Parameter"): lambda data, *_: data,
    ("torch", "Size"): _counts,
    ("torch", "device"): _device,
    ("numpy.core.multiarray", "scalar"): _number,
    ("numpy._core.multiarray", "scalar"): _number,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _latin1,
}
# Everything that a pickle may name.
_ALLOWED: unpickler.Allowed = {
    **{name: Call(".".join(name), run) for name, run in _FUNCTIONS.items()},
    **{
        ("torch", f"{kind}Storage"): StorageType(f"{kind}Storage", stored)
        for kind, stored in _STORAGES.items()
    },
    ("torch.storage", "UntypedStorage"): StorageType("UntypedStorage", "u1"),
    **{("torch", name): f"torch.{name}" for name in _DTYPES},
}


# From type, key and count to a storage that the file is known to have.
New = Callable[[StorageType, str, int], Storage]


def _load(
    stream: IO[bytes], new: New, more: int, allowed: unpickler.Allowed = _ALLOWED
) -> tuple[Any, dict[str, Storage]]:
    """Return what the next pickle holds, and the storages that it refers to."""
    # `more` are the fields of a reference after its count.
    storages: dict[str, Storage] = {}

    def persistent_load(identity: object) -> StorageView:
        match identity:
            case ("storage", StorageType() as kind, str(key), str(), int(count), *part):
                if len(part) == more:
                    if key not in storages:
                        storages[key] = new(kind, key, count)
                    return _part(storages[key], kind, count, *part)
        raise RefusalError("refers to data in a way that torch does not.")

    return Unpickler(allowed, persistent_load).load(stream), storages


def _read_zip(archive: zipfile.ZipFile, size: int) -> Any:
    pickles, names = _pickles(archive), archive.namelist()
    if len(pickles) != 1:
        raise RefusalError(
            "is a zip archive without torch's data.pkl, so not a torch checkpoint."
        )
    root = pickles[0].removesuffix("data.pkl")
    if any(name.startswith((f"{root}constants.pkl", f"{root}code/")) for name in names):
        raise RefusalError(
            "is a TorchScript archive, a program with weights in it. Save only the "
            "weights where you trust it: "
            "`torch.save(torch.jit.load(path).state_dict(), new_path)`."
        )
    _check_members(archive.infolist(), size)
    text, order = b"little", f"{root}byteorder"
    text = _content(archive, order) if order in names else text
    if text not in _ORDERS:
        raise RefusalError(f"has an unknown byte order, {text[:20]!r}.")

    def new(kind: StorageType, key: str, count: int) -> Storage:
        name = f"{root}data/{key}"
        if name not in archive.NameToInfo:
            raise RefusalError(f"lacks the data of storage {key!r}. Copy it again.")
        size = archive.getinfo(name).file_size
        if size != count * np.dtype(kind.stored).itemsize:
            raise RefusalError(
                f"has {size} bytes for the {count} elements of storage {key!r}, a "
                f"{kind.name}."
            )
        storage = Storage(key, kind, count)
        with archive.open(name) as member:
            storage.fill(member, _ORDERS[text])
        return storage

    return _load(io.BytesIO(_content(archive, pickles[0])), new, 0)[0]


def _content(archive: zipfile.ZipFile, name: str) -> bytes:
    if archive.getinfo(name).file_size > unpickler.MAX_BYTES:
        file = name.rpartition("/")[2]
        raise RefusalError(f"has a {file} of more than {unpickler.MAX_BYTES:,} bytes.")
    with archive.open(name) as member:
        return b"".join(iter(lambda: member.read(_CHUNK), b""))


def _pickles(archive: zipfile.ZipFile) -> list[str]:
    names = archive.namelist()
    return [n for n in names if n.endswith("/data.pkl") and n.count("/") == 1]


def _check_members(members: list[zipfile.ZipInfo], size: int) -> None:
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise RefusalError(
                f"has a compressed or encrypted member, {member.filename[:80]!r}; "
                "torch writes none. Nothing was unpacked."
            )
    if sum(member.file_size for member in members) > size:
        raise RefusalError(
            f"claims to hold more than its own {size} bytes. Nothing was unpacked."
        )
    if len({member.filename for member in members}) < len(members):
        raise RefusalError("has two members of one name. Nothing was unpacked.")


def _read_legacy(stream: _BoundedReader) -> Any:
    size, claimed = os.fstat(stream.fileno()).st_size, 0

    def new(kind: StorageType, key: str, count: int) -> Storage:
        nonlocal claimed
        claimed += max(count, 0) * np.dtype(kind.stored).itemsize
        if count < 0 or claimed > size:
            raise RefusalError(
                f"claims {count} elements for storage {key!r}, more than its own "
                f"{size} bytes can hold."
            )
        return Storage(key, kind, count)

    # After them comes the machine that wrote the file. All of them wrote little-endian
    # numbers.
    magic, protocol, _ = (_load(stream, new, 1, {})[0] for _ in range(3))
    if (magic, protocol) != (_MAGIC, _PROTOCOL):
        raise RefusalError("has an unknown version of torch's older layout.")
    tree, storages = _load(stream, new, 1)
    keys = _load(stream, new, 1, {})[0]
    if not isinstance(keys, list) or sorted(keys) != sorted(storages):
        raise RefusalError("lists other storages than its tensors use.")
    for storage in map(storages.__getitem__, keys):
        # A storage begins with its count, eight bytes.
        if stream.read(8) != storage.count.to_bytes(8, "little"):
            raise RefusalError(
                f"does not have the {storage.count} elements of storage "
                f"{storage.key!r} where they belong. Copy it again."
            )
        storage.fill(stream, "<")
    if stream.read(1):
        raise RefusalError("continues after its last tensor. Copy it again.")
    return tree


def _part(
    storage: Storage, type_: StorageType, count: int, part: object = None
) -> StorageView:
    if storage.type is not type_ or storage.count != count:
        raise RefusalError(
            f"uses storage {storage.key!r} of {storage.count} elements, a "
            f"{storage.type.name}, as a {type_.name} of {count}."
        )
    match part:
        case None:
            return StorageView(storage, 0, count)
        case (str(), int(start), int(size)) if 0 <= start <= start + size <= count:
            return StorageView(storage, start, size)
    raise RefusalError(f"has a view outside its storage {storage.key!r}.")
