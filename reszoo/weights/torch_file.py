"""Read PyTorch checkpoints without torch and without executing anything."""

import io
import math
import os
import textwrap
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from reszoo.errors import CheckpointError
from reszoo.weights.unpickler import (
    MOST_BYTES,
    Call,
    RefusalError,
    Unpickler,
    checked_key,
)

Array = NDArray[Any]
Order = Literal["<", ">"]

# Bytes read at a time, so that a swapped or widened copy stays small.
_PIECE = 1 << 20
# NumPy's own limits.
_MOST_AXES = 64
_MOST = 1 << 48
_LONGEST_NAME = 32
_NUMBERS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")


@dataclass(frozen=True)
class Kind:
    """A class of torch storages: NumPy's type in the file and in memory."""

    name: str
    stored: str
    shown: str

    @property
    def width(self) -> int:
        """Bytes of an element in the file."""
        return np.dtype(self.stored).itemsize


@dataclass
class Block:
    """The elements of one storage, still to be filled, and the tensors on them."""

    key: str
    kind: Kind
    count: int
    values: Array = field(init=False)
    views: dict[tuple[object, ...], Array] = field(default_factory=dict)
    viewed: int = 0

    def __post_init__(self) -> None:
        self.values = np.empty(self.count, self.kind.shown)

    def fill(self, stream: IO[bytes], order: Order) -> None:
        """Read the elements.

        Args:
            stream: Stands at the first byte.
            order: "<" if the lowest byte comes first, ">" if the highest does.

        Raises:
            RefusalError: The stream ends early, or a truth value is neither 0 nor 1.
        """
        stored = np.dtype(self.kind.stored).newbyteorder(order)
        step = _PIECE // stored.itemsize
        for start in range(0, self.count, step):
            part = self.values[start : start + step]
            raw = stream.read(part.size * stored.itemsize)
            if len(raw) < part.size * stored.itemsize:
                raise RefusalError(f"ends within storage {self.key!r}. Copy it again.")
            part[...] = self._decoded(np.frombuffer(raw, stored))

    def _decoded(self, raw: Array) -> Array:
        if self.kind.name == "BFloat16Storage":
            return (raw.astype(np.uint32) << 16).view(np.float32)
        if self.kind.name == "BoolStorage" and raw.max() > 1:
            raise RefusalError(f"has truth values other than 0 and 1 in {self.key!r}.")
        return raw


@dataclass(frozen=True)
class Storage:
    """A stretch of a block, in elements: all of it, but for old storage views."""

    block: Block
    start: int
    count: int


class Namespace(dict[str, Any]):
    """What an `argparse.Namespace` held, as a dict."""

    def build(self, state: object) -> None:
        """Take attributes as entries."""
        if type(state) is not dict or not all(type(key) is str for key in state):
            raise RefusalError("has an argparse.Namespace without named values.")
        self.update(state)


class NumberType:
    """A `numpy.dtype` of plain numbers."""

    def __init__(self, code: object, *_: object) -> None:
        if code not in _NUMBERS:
            raise RefusalError("has a NumPy value that is no plain number.")
        self.dtype = np.dtype(str(code))

    def build(self, state: object) -> None:
        """Take the order of the bytes."""
        match state:
            case (_, "<" | ">" | "|" as order, *_):
                self.dtype = self.dtype.newbyteorder(order)
            case _:
                raise RefusalError("has a NumPy type of unknown byte order.")


def rebuild_tensor(
    storage: object,
    offset: object,
    sizes: object,
    strides: object,
    _requires_grad: object = False,
    _hooks: object = None,
    metadata: object = None,
) -> Array:
    """Return the view of a storage that a tensor is, once it is known to fit.

    Raises:
        RefusalError: It reaches outside its storage, or holds an element twice, or
            the tensors of the storage take more than it has.
    """
    if not isinstance(storage, Storage) or metadata:
        raise RefusalError("has a tensor of a kind that weights are not.")
    shape, steps = _counts(sizes), _counts(strides)
    (start,) = _counts((offset,))
    if len(shape) != len(steps) or not _fits(start, shape, steps, storage.count):
        raise RefusalError(
            f"has a tensor that reaches outside its storage {storage.block.key!r} of "
            f"{storage.count} elements, or is no tensor. Nothing of it was read."
        )
    return _view(storage.block, storage.start + start, shape, steps)


def _counts(numbers: object) -> tuple[int, ...]:
    if not isinstance(numbers, (tuple, list)) or len(numbers) > _MOST_AXES:
        raise RefusalError("has a tensor whose shape is no list of sizes.")
    if not all(type(number) is int and 0 <= number < _MOST for number in numbers):
        raise RefusalError(
            "has a tensor with a size, stride or offset that is no count of elements."
        )
    return tuple(numbers)


def _fits(
    start: int, shape: tuple[int, ...], steps: tuple[int, ...], count: int
) -> bool:
    if 0 in shape:
        return start <= count and math.prod(size or 1 for size in shape) < _MOST
    return start + _reach(zip(shape, steps, strict=True)) < count


def _reach(axes: Iterable[tuple[int, int]]) -> int:
    return sum((size - 1) * step for size, step in axes)


def _view(
    block: Block, start: int, shape: tuple[int, ...], steps: tuple[int, ...]
) -> Array:
    if (start, shape, steps) in block.views:
        return block.views[start, shape, steps]
    _check_distinct(block, shape, steps)
    block.viewed += math.prod(shape)
    if block.viewed > block.count:
        raise RefusalError(
            f"has tensors of more elements than the {block.count} of their storage "
            f"{block.key!r}. Save clones of tensors that overlap."
        )
    strides = [step * block.values.itemsize for step in steps]
    # Where there is one element or none, torch's stride may be any number.
    strides = [s if size > 1 else 0 for s, size in zip(strides, shape, strict=True)]
    view = np.lib.stride_tricks.as_strided(block.values[start:], shape, strides)
    block.views[start, shape, steps] = view
    return view


def _check_distinct(
    block: Block, shape: tuple[int, ...], steps: tuple[int, ...]
) -> None:
    if math.prod(shape) <= 1:
        return
    axes = sorted(zip(steps, shape, strict=True))
    axes = [(size, step) for step, size in axes if size > 1]
    for place, (_, step) in enumerate(axes):
        if step <= _reach(axes[:place]):
            raise RefusalError(
                f"has a tensor that holds elements of storage {block.key!r} more than "
                "once. Save a clone of an expanded tensor."
            )


def _rebuild_parameter(data: object, *_: object) -> object:
    return data


def _dict(entries: object = ()) -> dict[Any, Any]:
    pairs = entries.items() if isinstance(entries, dict) else entries
    if not isinstance(pairs, Iterable):
        raise RefusalError("has a dict that is made of no entries.")
    return {checked_key(key): value for key, value in pairs}


def _size(sizes: object = ()) -> tuple[int, ...]:
    return _counts(sizes)


def _set(items: list[object] | tuple[object, ...] = ()) -> set[Any]:
    return set(map(checked_key, items))


def _device(name: object, index: object = None) -> str:
    if not isinstance(name, str) or len(name) > _LONGEST_NAME:
        raise RefusalError("has a torch.device without a name.")
    return f"{name}:{index}" if type(index) is int else name


def _latin1(text: object, encoding: object) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise RefusalError("has bytes in an encoding other than latin1.")
    return text.encode("latin1")


def _number(kind: object, raw: object) -> Any:
    if not isinstance(kind, NumberType) or not isinstance(raw, bytes):
        raise RefusalError("has a NumPy value that is no plain number.")
    if len(raw) != kind.dtype.itemsize:
        raise RefusalError(f"has a NumPy number of {len(raw)} bytes.")
    return np.frombuffer(raw, kind.dtype)[0].item()


_KINDS = (
    Kind("FloatStorage", "f4", "f4"),
    Kind("DoubleStorage", "f8", "f8"),
    Kind("HalfStorage", "f2", "f2"),
    Kind("BFloat16Storage", "u2", "f4"),
    Kind("LongStorage", "i8", "i8"),
    Kind("IntStorage", "i4", "i4"),
    Kind("ShortStorage", "i2", "i2"),
    Kind("CharStorage", "i1", "i1"),
    Kind("ByteStorage", "u1", "u1"),
    Kind("BoolStorage", "u1", "?"),
)
_TYPES = (
    *("float64", "float32", "float16", "bfloat16"),
    *("int64", "int32", "int16", "int8", "uint8", "bool"),
)
_CALLS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _dict,
    # MultiStepLR keeps its milestones in one.
    ("collections", "Counter"): _dict,
    ("builtins", "set"): _set,
    ("__builtin__", "set"): _set,
    ("argparse", "Namespace"): Namespace,
    ("torch._utils", "_rebuild_tensor"): rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch.nn.parameter", "Parameter"): _rebuild_parameter,
    ("torch", "Size"): _size,
    ("torch", "device"): _device,
    ("numpy.core.multiarray", "scalar"): _number,
    ("numpy._core.multiarray", "scalar"): _number,
    ("numpy", "dtype"): NumberType,
    ("_codecs", "encode"): _latin1,
}
KNOWN: dict[tuple[str, str], object] = {
    **{name: Call(".".join(name), run) for name, run in _CALLS.items()},
    **{("torch", kind.name): kind for kind in _KINDS},
    ("torch.storage", "UntypedStorage"): Kind("UntypedStorage", "u1", "u1"),
    **{("torch", name): f"torch.{name}" for name in _TYPES},
}


_MAGIC = 0x1950A86A20F9469CFC6C
# As a pickle holds it: the instruction LONG1 and ten bytes of number.
_MAGIC_BYTES = b"\x8a\x0a" + _MAGIC.to_bytes(10, "little")
_PROTOCOL = 1001
_ZIP = b"PK\x03\x04"
_GULP = 1 << 20


class _Sips(io.BufferedReader):
    """A file that never gives more than a gulp at once.

    A zip directory or a pickled text can claim any length, and who reads it asks for
    that much memory first.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(_GULP if size is None or size < 0 else min(size, _GULP))

    def readline(self, size: int | None = -1, /) -> bytes:
        return super().readline(_GULP)


def looks_like_torch(path: str | os.PathLike[str]) -> bool:
    """Tell by its content whether a file is a torch checkpoint of either layout."""
    if not Path(path).is_file():
        return False
    try:
        with _Sips(io.FileIO(path)) as stream:
            head = _head(stream)
            if not head.startswith(_ZIP):
                return _is_legacy(head)
            with zipfile.ZipFile(stream) as archive:
                return len(_pickles(archive)) == 1
    # Whatever a strange file provokes in a reader of zips says that it is none.
    except Exception:
        return False


def read(path: str | os.PathLike[str]) -> Any:
    """Read the object in a torch checkpoint as plain containers and arrays.

    Dicts of all kinds and `argparse.Namespace` become dicts, tensors and parameters
    become arrays, bfloat16 becomes float32 exactly, and dtypes and devices become
    their names. Nothing in the file is imported, called or written.

    Args:
        path: A file that `torch.save` wrote.

    Returns:
        What was saved. Tensors on one storage share memory, as they did in torch.

    Raises:
        CheckpointError: No such file, damaged, or it wants what weights do not need.
    """
    file = Path(path)
    if not file.is_file():
        raise CheckpointError(f"There is no checkpoint {file}.")
    with _only_checkpoint_errors(file), _Sips(io.FileIO(file)) as stream:
        head = _head(stream)
        if _is_legacy(head):
            return _LegacyReader(stream).read()
        if not head.startswith(_ZIP):
            raise RefusalError(
                "is no torch checkpoint: neither a zip archive nor torch's older "
                "layout. Check what it is, and copy it again if it should be one."
            )
        with zipfile.ZipFile(stream) as archive:
            return _ZipReader(archive, file.stat().st_size).read()


@contextmanager
def _only_checkpoint_errors(file: Path) -> Iterator[None]:
    try:
        yield
    except RefusalError as error:
        raise CheckpointError(f"{file} {_short(error)}") from error
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(f"{file} could not be read: {reason}.") from error
    # Bytes that someone chose can provoke any error in the readers of zips, pickles
    # and numbers.
    except Exception as error:
        raise CheckpointError(
            f"{file} is damaged or no torch checkpoint ({type(error).__name__}: "
            f"{_short(error)}). Copy it again."
        ) from error


def _short(error: Exception) -> str:
    # A name in a file can be as long as the file.
    return textwrap.shorten(str(error), 600)


def _head(stream: _Sips) -> bytes:
    head = stream.read(32)
    stream.seek(0)
    return head


def _is_legacy(head: bytes) -> bool:
    return head.startswith(b"\x80") and _MAGIC_BYTES in head


def _pickles(archive: zipfile.ZipFile) -> list[str]:
    names = archive.namelist()
    return [n for n in names if n.endswith("/data.pkl") and n.count("/") == 1]


class _ZipReader:
    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        self._archive = archive
        self._blocks: dict[str, Block] = {}
        pickles = _pickles(archive)
        if len(pickles) != 1:
            raise RefusalError(
                "is a zip archive without torch's data.pkl, so no torch checkpoint."
            )
        self._root = pickles[0].removesuffix("data.pkl")
        self._refuse_programs()
        _check_members(archive.infolist(), size)
        self._order = self._byte_order()

    def read(self) -> Any:
        content = self._content("data.pkl")
        return Unpickler(KNOWN, self._storage).load(io.BytesIO(content))

    def _refuse_programs(self) -> None:
        marks = (f"{self._root}constants.pkl", f"{self._root}code/")
        if any(name.startswith(marks) for name in self._archive.namelist()):
            raise RefusalError(
                "is a TorchScript archive, a program with weights in it. Save the "
                "weights alone where you trust it: "
                "`torch.save(torch.jit.load(path).state_dict(), new_path)`."
            )

    def _byte_order(self) -> Order:
        if f"{self._root}byteorder" not in self._archive.namelist():
            return "<"
        text = self._content("byteorder")
        if text not in (b"little", b"big"):
            raise RefusalError(f"has an unknown byte order, {text[:20]!r}.")
        return "<" if text == b"little" else ">"

    def _content(self, name: str) -> bytes:
        info = self._archive.getinfo(self._root + name)
        if info.file_size > MOST_BYTES:
            raise RefusalError(f"has a {name} of more than {MOST_BYTES:,} bytes.")
        with self._archive.open(info) as member:
            return b"".join(iter(lambda: member.read(_GULP), b""))

    def _storage(self, identity: object) -> Storage:
        match identity:
            case ("storage", Kind() as kind, str(key), str(), int(count)):
                block = self._blocks.get(key) or self._load(kind, key, count)
                return _storage_of(block, kind, count)
        raise RefusalError("refers to data in a way that torch does not.")

    def _load(self, kind: Kind, key: str, count: int) -> Block:
        name = f"{self._root}data/{key}"
        if name not in self._archive.NameToInfo:
            raise RefusalError(f"lacks the data of storage {key!r}. Copy it again.")
        size = self._archive.getinfo(name).file_size
        if size != count * kind.width:
            raise RefusalError(
                f"has {size} bytes for the {count} elements of storage {key!r}, a "
                f"{kind.name}."
            )
        block = self._blocks[key] = Block(key, kind, count)
        with self._archive.open(name) as member:
            block.fill(member, self._order)
        return block


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


def _storage_of(block: Block, kind: Kind, count: int) -> Storage:
    if block.kind is not kind or block.count != count:
        raise RefusalError(
            f"uses storage {block.key!r} of {block.count} elements, a "
            f"{block.kind.name}, as a {kind.name} of {count}."
        )
    return Storage(block, 0, count)


class _LegacyReader:
    def __init__(self, stream: _Sips) -> None:
        self._stream = stream
        self._size = os.fstat(stream.fileno()).st_size
        self._blocks: dict[str, Block] = {}
        self._claimed = 0

    def read(self) -> Any:
        if (self._simple(), self._simple()) != (_MAGIC, _PROTOCOL):
            raise RefusalError("has an unknown version of torch's older layout.")
        # What the machine was like that wrote it. Numbers are little-endian from all.
        self._simple()
        tree = Unpickler(KNOWN, self._storage).load(self._stream)
        self._fill(self._simple())
        return tree

    def _simple(self) -> Any:
        return Unpickler({}, self._storage).load(self._stream)

    def _storage(self, identity: object) -> Storage:
        match identity:
            case ("storage", Kind() as kind, str(key), str(), int(count), view):
                block = self._blocks.get(key) or self._claim(kind, key, count)
                return _part_of(_storage_of(block, kind, count), view)
        raise RefusalError("refers to data in a way that torch does not.")

    def _claim(self, kind: Kind, key: str, count: int) -> Block:
        self._claimed += max(count, 0) * kind.width
        if count < 0 or self._claimed > self._size:
            raise RefusalError(
                f"claims {count} elements for storage {key!r}, more than its own "
                f"{self._size} bytes can hold."
            )
        self._blocks[key] = Block(key, kind, count)
        return self._blocks[key]

    def _fill(self, keys: object) -> None:
        if not isinstance(keys, list) or sorted(keys) != sorted(self._blocks):
            raise RefusalError("lists other storages than its tensors use.")
        for key in keys:
            block = self._blocks[key]
            # A storage begins with its count, eight bytes.
            if self._stream.read(8) != block.count.to_bytes(8, "little"):
                raise RefusalError(
                    f"does not have the {block.count} elements of storage {key!r} "
                    "where they belong. Copy it again."
                )
            block.fill(self._stream, "<")
        if self._stream.read(1):
            raise RefusalError("goes on after its last tensor. Copy it again.")


def _part_of(storage: Storage, view: object) -> Storage:
    match view:
        case None:
            return storage
        case (str(), int(start), int(count)) if 0 <= start <= start + count:
            if start + count <= storage.count:
                return Storage(storage.block, start, count)
    raise RefusalError(f"has a view outside its storage {storage.block.key!r}.")
