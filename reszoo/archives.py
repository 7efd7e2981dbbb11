"""Read zip archives of strangers and arrays in them; sizes are checked first."""

import io
import math
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reszoo.files import check_regular

# Of a zip archive: the list of its members, some 50 bytes each.
_MAX_DIRECTORY = 2**20
# The others may take gigabytes for their dictionaries.
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@contextmanager
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive, or a file with one at its end.

    An OSError if it is no regular file, a BadZipFile if there is no archive in it, and
    a ValueError if it is damaged, or has more members than any of reszoo's.
    """
    check_regular(path)
    try:
        with _Directory(path) as file, zipfile.ZipFile(file) as archive:
            file.most = None
            yield archive
    except (RuntimeError, EOFError, OverflowError, zlib.error) as error:
        # Encrypted, of an unknown version, or cut off.
        raise ValueError(f"{type(error).__name__}: {error}") from error


class _Directory(io.FileIO):
    """A file of which only a little is read at a time, until `most` is None."""

    most: int | None = _MAX_DIRECTORY

    def read(self, size: int | None = -1) -> bytes:
        size = -1 if size is None else size
        if self.most is not None:
            left = os.fstat(self.fileno()).st_size - self.tell()
            if (left if size < 0 else size) > self.most:
                raise ValueError("its list of members is too long")
        return super().read(size) or b""


def read_member(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """Return a member of an archive, uncompressed.

    A KeyError if there is none; a ValueError if it is larger than `most`, or compressed
    in another way than by deflating.
    """
    info = archive.getinfo(name)
    if info.file_size > most or info.compress_type not in _COMPRESSIONS:
        raise ValueError(f"{name} has {info.file_size:,} bytes; at most {most:,}")
    with archive.open(info) as file:
        return file.read(most)


def read_arrays(path: Path, names: Sequence[str], most: int) -> dict[str, NDArray[Any]]:
    """Return the named arrays of an `.npz` file; others are not read.

    An OSError if it is no regular file, a BadZipFile if it is no archive, a KeyError if
    an array is missing, and a ValueError if they take more than `most` bytes, are
    damaged, or hold Python objects.
    """
    found = {}
    with open_archive(path) as archive:
        for name in names:
            content = read_member(archive, f"{name}.npy", most)
            most -= len(content)
            found[name] = _array(name, content)
    return found


def _array(name: str, content: bytes) -> NDArray[Any]:
    file = io.BytesIO(content)
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("unknown version")
        shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
    except Exception as error:  # The header is Python's syntax: any of its errors.
        raise ValueError(f"{name} has no whole header ({error!r:.80})") from error
    size, place = math.prod(shape) * dtype.itemsize, file.tell()
    if dtype.hasobject or size != len(content) - place or min(shape, default=0) < 0:
        raise ValueError(f"{name} is no array of {dtype} {shape}")
    flat = np.frombuffer(content, dtype, math.prod(shape), place)
    return flat.reshape(shape, order="F" if by_columns else "C")
