"""Find images inside TFRecord files of `tf.train.Example`s without loading them.

A file is a row of records: the length of the data (8 bytes, little-endian), a
checksum (4), the data, a checksum (4). Source: TensorFlow,
`tensorflow/core/lib/io/record_writer.h`. The data is an Example in Protocol Buffers'
wire format. Source: `tensorflow/core/example/{example,feature}.proto`,
https://protobuf.dev/programming-guides/encoding.
"""

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from reszoo.errors import DataError

# Bytes of a record before its data, and behind it.
HEAD, TAIL = 12, 4
# Sizes of the wire types whose size is fixed.
_FIXED = {1: 8, 5: 4}
_VARINT, _LENGTH_DELIMITED = 0, 2
# Numbers of the fields of a Feature.
_BYTES_LIST, _INT64_LIST = 1, 3


class Found(NamedTuple):
    """One labelled image: where its bytes are in the file, and its label."""

    offset: int
    length: int
    label: int


class _Field(NamedTuple):
    number: int
    start: int
    end: int


def find_images(path: str, image: str, label: str) -> Iterator[Found]:
    """Yield where the images of a file are; their bytes are not read.

    Args:
        path: A TFRecord file without compression.
        image: Name of the feature with the encoded image.
        label: Name of the feature with the integer label.

    Raises:
        DataError: The file is cut short, or a record has no such features.
    """
    if not Path(path).stat().st_size:
        return
    with (
        Path(path).open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        for number, (start, end) in enumerate(_records(data, path)):
            try:
                yield _find(data, start, end, (image.encode(), label.encode()))
            except (KeyError, ValueError, IndexError) as error:
                raise DataError(
                    f"{path} record {number} is no Example with the features "
                    f"{image!r} (one encoded image) and {label!r} (one integer). "
                    "Give files that hold them, or write them again."
                ) from error


def _records(data: mmap.mmap, path: str) -> Iterator[tuple[int, int]]:
    at = 0
    while at < len(data):
        end = at + HEAD + TAIL
        if end <= len(data):
            end += struct.unpack_from("<Q", data, at)[0]
        if end > len(data):
            raise DataError(
                f"{path} is cut short: it ends inside a record. Write or copy it again."
            )
        yield at + HEAD, end - TAIL
        at = end


def _find(data: mmap.mmap, start: int, end: int, wanted: tuple[bytes, bytes]) -> Found:
    features = dict(_features(data, start, end))
    image, label = (features[name] for name in wanted)
    if (image.number, label.number) != (_BYTES_LIST, _INT64_LIST):
        raise ValueError
    (encoded,) = _fields(data, image.start, image.end)
    (number,) = _fields(data, label.start, label.end)
    value, after = _varint(data, number.start)
    # Integers may be packed; then there could be several of them.
    if after != number.end:
        raise ValueError
    # Negative integers are their two's complement in 64 bits.
    signed = value - (1 << 64) if value >> 63 else value
    return Found(encoded.start, encoded.end - encoded.start, signed)


def _features(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[bytes, _Field]]:
    """Yield the name of each feature of an Example, and its list of values."""
    for example in _fields(data, start, end):
        for entry in _fields(data, example.start, example.end):
            name, feature = _fields(data, entry.start, entry.end)
            for values in _fields(data, feature.start, feature.end):
                yield data[name.start : name.end], values


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[_Field]:
    """Yield the fields of a message: their numbers and where their bytes are."""
    while start < end:
        tag, start = _varint(data, start)
        wire = tag & 7
        if wire == _VARINT:
            _, after = _varint(data, start)
        elif wire == _LENGTH_DELIMITED:
            size, start = _varint(data, start)
            after = start + size
        else:
            after = start + _FIXED[wire]
        if after > end:
            raise ValueError
        yield _Field(tag >> 3, start, after)
        start = after


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    """Return an integer of seven bits a byte, low ones first, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
