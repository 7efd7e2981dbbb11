"""Torch's checkpoints, read without torch and without executing anything.

Two layouts: a zip archive (torch 1.6 and later) whose `data.pkl` tells what the
files under `data/` mean, and before that five pickles followed by raw numbers.
"""

import io
import os
import textwrap
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reszoo.checkpoints.torch_objects import KNOWN, Block, Kind, Order, Storage
from reszoo.checkpoints.unpickle import MOST_BYTES, RefusalError, Unpickler
from reszoo.errors import CheckpointError

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
