"""Bound the memory of a protocol buffer before it is parsed.

An empty message takes two bytes in a file and some 100 in memory, so that a file of
50 MB can take gigabytes. https://protobuf.dev/programming-guides/encoding
"""

import mmap
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from reszoo.errors import CheckpointError
from reszoo.files import check_regular

# Of all messages in a file: NASNetMobile as a SavedModel has 730,000, the most of
# keras.applications' models for mobile devices, with 27,000 nodes.
MAX_FIELDS, MAX_NODES = 2_000_000, 500_000
# Protocol buffers cannot be larger, nor can FlatBuffers.
MAX_BYTES = 2**31 - 1
# Wire types; bytes of those of fixed size; numbers are in groups of 7 bits.
_VARINT, _LENGTH_DELIMITED = 0, 2
_FIXED = {1: 8, 5: 4}
_ONE_BYTE, _LONGEST = 127, 10


def check_fields(path: Path, load_class: Callable[[], Any]) -> None:
    """Count the fields of a message and of all messages in it, without parsing it.

    `load_class` returns its generated class; it is called for large files only. A
    CheckpointError if it is too large, a ValueError or IndexError if there are more
    than `MAX_FIELDS`, or it is damaged; an OSError if it is no regular file.
    """
    size = check_regular(path).st_size
    if size > MAX_BYTES:
        raise CheckpointError(
            f"{path} must have at most {MAX_BYTES:,} bytes. Received: {size:,}."
        )
    if size < 2 * MAX_FIELDS:  # A field has a byte beside its tag.
        return
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        waiting, left = [(0, len(content), load_class().DESCRIPTOR)], MAX_FIELDS
        while waiting:
            start, end, descriptor = waiting.pop()
            left -= _count(content, start, end, _inner(descriptor), waiting, left)


@lru_cache(maxsize=256)
def _inner(descriptor: Any) -> dict[int, Any]:
    fields = (field for field in descriptor.fields if field.message_type)
    return {field.number: field.message_type for field in fields}


def _count(
    content: mmap.mmap,
    start: int,
    end: int,
    inner: dict[int, Any],
    waiting: list[tuple[int, int, Any]],
    most: int,
) -> int:
    """Return the number of fields in a message; add the messages in it to `waiting`."""
    at, count = start, 0
    # Numbers of one byte are read here: a call for each would take twice the time.
    while at < end:
        count += 1
        if count > most:
            raise ValueError(f"more than {MAX_FIELDS:,} fields")
        tag = content[at]
        at += 1
        if tag > _ONE_BYTE:
            tag, at = _varint(content, at - 1)
        kind = tag & 7
        if kind == _LENGTH_DELIMITED:
            length = content[at]
            at += 1
            if length > _ONE_BYTE:
                length, at = _varint(content, at - 1)
            if length and (tag >> 3) in inner:
                waiting.append((at, at + length, inner[tag >> 3]))
            at += length
        elif kind == _VARINT:
            while content[at] > _ONE_BYTE:
                at += 1
            at += 1
        elif kind in _FIXED:
            at += _FIXED[kind]
        else:
            raise ValueError(f"wire type {kind}")
    if at != end:
        raise ValueError("a field ends behind its message")
    return count


def _varint(content: mmap.mmap, at: int) -> tuple[int, int]:
    """Read a number of any length and return it and where it ends."""
    value = 0
    for place in range(_LONGEST):
        octet = content[at + place]
        value |= (octet & _ONE_BYTE) << (7 * place)
        if octet <= _ONE_BYTE:
            return value, at + place + 1
    raise ValueError(f"a number of more than {_LONGEST} bytes")
