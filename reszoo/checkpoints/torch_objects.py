"""What the names in a torch checkpoint stand for: arrays and plain values.

Only what is in `KNOWN` can be reached from a file. Each entry is a function of
this module, never the thing that the name means to torch or Python.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from reszoo.checkpoints.unpickle import Call, RefusalError, checked_key

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
