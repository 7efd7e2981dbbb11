"""Write FlatBuffers tables with no code made from their schema.

A place is what the builder counts in: bytes from the end of what it makes, where it
begins. Source: https://flatbuffers.dev/internals.
"""

from collections.abc import Mapping, Sequence

import flatbuffers


def table(
    builder: flatbuffers.Builder,
    fields: int,
    places: Mapping[int, int],
    *,
    numbers: Mapping[int, int] | None = None,
    small: Mapping[int, int] | None = None,
) -> int:
    """Write a table and return its place.

    Args:
        builder: What it is written into.
        fields: How many the schema has.
        places: What fields point to, by the number of the field.
        numbers: Fields of 32 bits without sign.
        small: Fields of one byte.
    """
    builder.StartObject(fields)
    for field, place in places.items():
        builder.PrependUOffsetTRelativeSlot(field, place, 0)
    for field, number in (numbers or {}).items():
        builder.PrependUint32Slot(field, number, 0)
    for field, number in (small or {}).items():
        builder.PrependUint8Slot(field, number, 0)
    written: int = builder.EndObject()
    return written


def vector(builder: flatbuffers.Builder, places: Sequence[int]) -> int:
    """Write a list of what lies at some places and return its own place."""
    builder.StartVector(4, len(places), 4)
    for place in reversed(places):
        builder.PrependUOffsetTRelative(place)
    found: int = builder.EndVector()
    return found


def floats(builder: flatbuffers.Builder, *values: float) -> int:
    """Write a list of float32 and return its place."""
    builder.StartVector(4, len(values), 4)
    for value in reversed(values):
        builder.PrependFloat32(value)
    place: int = builder.EndVector()
    return place


def aligned_bytes(builder: flatbuffers.Builder, content: bytes, alignment: int) -> int:
    """Write bytes that begin at a multiple of `alignment` and return their place."""
    builder.Prep(alignment, len(content))
    place: int = builder.CreateByteVector(content)
    return place
