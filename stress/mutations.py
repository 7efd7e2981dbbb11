"""Damage files by their structure: what a reader meets behind an intact header.

A mutation takes the bytes of a valid file and a NumPy generator, and returns other
bytes. Those of containers keep lengths, checksums and lists of members right in most of
the files, so that the damage is found only by what reads the content.
"""

import collections
import io
import json
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

Draw = np.random.Generator
Mutation = Callable[[bytes, Draw], bytes]

# Lengths, offsets and counts are most often wrong at these.
NUMBERS = (0, 1, -1, 2, 7, 127, 128, 255, 256, 4095, 65535, 65536, 2**24, 2**31 - 1,
           2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)  # fmt: skip
# Texts that are names, paths, markup or control sequences elsewhere.
TEXTS = ("", "a", "../../escape", "/etc/passwd", "\x1b[31m", "\u202e", "\ud800", "é",
         "x" * 5000, "NaN", "<script>", "a\nb", "%s%n", "\x00", "1e999")  # fmt: skip


def position(size: int, draw: Draw) -> int:
    """Draw a place in a file: anywhere, or among the first or last 4 KB."""
    near = min(size, 4096)
    place = (size, near, near)[kind := int(draw.integers(3))]
    at = int(draw.integers(max(1, place)))
    return size - 1 - at if kind == 2 else at


def edited(data: bytes, draw: Draw) -> bytes:
    """Change one to six places: bits, numbers of 1 to 8 bytes, slices."""
    changed = bytearray(data)
    for _ in range(int(draw.integers(1, 7))):
        at = position(len(changed), draw)
        kind = int(draw.integers(8))
        if not changed:
            changed += draw.bytes(8)
        elif kind == 0:
            changed[at] ^= 1 << int(draw.integers(8))
        elif kind < 4:
            width = int(draw.choice([1, 2, 4, 8]))
            number = NUMBERS[draw.integers(len(NUMBERS))] % 256**width
            order = "little" if draw.random() < 0.7 else "big"
            changed[at : at + width] = number.to_bytes(width, order)
        elif kind == 4:
            del changed[at : at + int(draw.integers(1, 64))]
        elif kind == 5:
            changed[at:at] = draw.bytes(int(draw.integers(1, 64)))
        elif kind == 6:
            other = position(len(changed), draw)
            changed[at:at] = changed[other : other + int(draw.integers(1, 256))]
        else:
            del changed[max(at, 1) :]
    return bytes(changed)


def words(data: bytes, draw: Draw) -> bytes:
    """Change aligned words of 4 bytes: offsets, tables and lengths of FlatBuffers."""
    changed = bytearray(data)
    for _ in range(int(draw.integers(1, 9))):
        at = position(len(changed), draw) // 4 * 4
        if draw.random() < 0.5:
            number = NUMBERS[draw.integers(len(NUMBERS))]
        else:
            old = int.from_bytes(changed[at : at + 4], "little")
            number = old + int(draw.integers(-16, 17))
        changed[at : at + 4] = (number % 2**32).to_bytes(4, "little")
    return bytes(changed[: len(data)])


def value(draw: Draw, depth: int = 0) -> Any:
    """Draw any value of JSON."""
    kind = int(draw.integers(9))
    if kind < 2:
        return NUMBERS[draw.integers(len(NUMBERS))]
    if kind == 2:
        return float(draw.choice([0.5, -0.0, 1e308, -1e-308, 3.0]))
    if kind < 5:
        return TEXTS[draw.integers(len(TEXTS))]
    if kind == 5:
        return [None, True, False][draw.integers(3)]
    if depth > 3:
        return []
    inner = [value(draw, depth + 1) for _ in range(int(draw.integers(4)))]
    return inner if kind < 8 else {TEXTS[i]: each for i, each in enumerate(inner)}


def _places(tree: Any) -> list[tuple[Any, Any]]:
    found, waiting = [], [tree]
    while waiting:
        node = waiting.pop()
        keys = node if isinstance(node, dict) else range(len(node))
        for key in keys:
            found.append((node, key))
            if isinstance(node[key], dict | list):
                waiting.append(node[key])
    return found


def tree_changed(tree: Any, draw: Draw) -> Any:
    """Change one to four values of a tree of dictionaries and lists."""
    for _ in range(int(draw.integers(1, 5))):
        places = _places(tree) if isinstance(tree, dict | list) else []
        if not places:
            return value(draw)
        node, key = places[draw.integers(len(places))]
        kind = int(draw.integers(6))
        if kind < 3:
            node[key] = value(draw)
        elif kind == 3:
            del node[key]
        elif kind == 4:
            node[key] = [node[key]] * int(draw.integers(4))
        elif isinstance(node, dict):
            node[TEXTS[draw.integers(len(TEXTS))]] = node[key]
        else:
            node.append(node[key])
    return tree


def text_of_json(data: bytes, draw: Draw) -> bytes:
    """Change values of a JSON file; in one of five files also bytes."""
    tree = tree_changed(json.loads(data), draw)
    new = json.dumps(tree).encode("utf-8", "surrogatepass")
    if draw.random() < 0.05:
        depth = int(draw.choice([50, 5000, 200_000]))
        new = new.replace(b":", b":" + b"[" * depth, 1)
    return edited(new, draw) if draw.random() < 0.2 else new


def safetensors(data: bytes, draw: Draw) -> bytes:
    """Change the header as a tree, its length and the card in it."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    if (
        card := header.get("__metadata__", {}).get("reszoo_card")
    ) and draw.random() < 0.4:
        changed = text_of_json(card.encode(), draw).decode("utf-8", "replace")
        header["__metadata__"]["reszoo_card"] = changed
    else:
        header = tree_changed(header, draw)
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    length = len(text) if draw.random() < 0.9 else int(NUMBERS[draw.integers(20)])
    return (length % 2**64).to_bytes(8, "little") + text + data[8 + size :]


def pickled(data: bytes, draw: Draw) -> bytes:
    """Change opcodes: repeat, drop, swap and replace them, also by calls of a shell."""
    ends, parts = [], []
    for _, _, at in pickletools.genops(data):
        ends.append(at)
    for start, end in zip(ends, [*ends[1:], len(data)], strict=True):
        parts.append(data[start:end])
    for _ in range(int(draw.integers(1, 5))):
        at, other = (int(draw.integers(len(parts))) for _ in range(2))
        kind = int(draw.integers(7))
        if kind == 0:
            parts.insert(at, parts[other])
        elif kind == 1 and len(parts) > 2:
            del parts[at]
        elif kind == 2:
            parts[at], parts[other] = parts[other], parts[at]
        elif kind == 3:
            parts[at] = edited(parts[at], draw)
        elif kind == 4:
            number = NUMBERS[draw.integers(len(NUMBERS))]
            width = int(draw.choice([4, 8, 200]))
            number = (number % 256**width).to_bytes(width, "little")
            parts[at] = b"\x8a" + bytes([width]) + number
        elif kind == 5:
            parts.insert(at, CALLS[draw.integers(len(CALLS))])
        else:
            parts[at] = bytes([int(draw.integers(256))]) + parts[at][1:]
    return b"".join(parts)


def legacy(data: bytes, draw: Draw) -> bytes:
    """Change one of the pickles that a torch file before version 1.6 begins with."""
    file, ends = io.BytesIO(data), [0]
    for _ in range(5):
        collections.deque(pickletools.genops(file), maxlen=0)
        ends.append(file.tell())
    # The first three tell the format; tensors are in the fourth, storages in the last.
    chosen = int(draw.choice(5, p=[0.05, 0.05, 0.1, 0.6, 0.2]))
    start, end = ends[chosen : chosen + 2]
    return data[:start] + pickled(data[start:end], draw) + data[end:]


# Opcodes that write CANARY if anything runs them.
CANARY = "canary"
CALLS = tuple(
    f"c{module}\n{name}\n(X".encode() + struct.pack("<I", len(text)) + text + b"tR"
    for module, name, text in (
        ("os", "system", f"touch {CANARY}".encode()),
        ("posix", "system", f"touch {CANARY}".encode()),
        ("subprocess", "getoutput", f"touch {CANARY}".encode()),
        ("builtins", "eval", f"open('{CANARY}', 'w')".encode()),
        ("builtins", "exec", f"open('{CANARY}', 'w')".encode()),
        ("torch.hub", "load", CANARY.encode()),
        ("numpy", "load", CANARY.encode()),
    )
)  # fmt: skip


def zipped(inner: Callable[[str], Mutation]) -> Mutation:
    """Change one member of a zip archive and write it anew, or the archive's records.

    Args:
        inner: Gives the mutation of a member from its name.
    """

    def mutation(data: bytes, draw: Draw) -> bytes:
        if draw.random() < 0.2:
            return edited(data, draw)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(each, archive.read(each)) for each in archive.infolist()]
        # What is no weight is where the structure is.
        sizes = np.array([len(content) for _, content in members])
        odds = 1 / np.sqrt(sizes + 64.0)
        chosen = int(draw.choice(len(members), p=odds / odds.sum()))
        new, written = io.BytesIO(), []
        for index, (info, content) in enumerate(members):
            if index == chosen:
                content = inner(info.filename)(content, draw)
            written.append((info.filename, info.compress_type, content))
        kind = draw.random()
        if kind < 0.05:
            written.append(written[chosen])
        elif kind < 0.1:
            del written[chosen]
        elif kind < 0.15:
            name = TEXTS[draw.integers(len(TEXTS))].encode("utf-8", "replace").decode()
            written[chosen] = (name or "x", zipfile.ZIP_DEFLATED, written[chosen][2])
        with zipfile.ZipFile(new, "w") as archive:
            for name, method, content in written:
                archive.writestr(zipfile.ZipInfo(name), content, method)
        return new.getvalue()

    return mutation


def appended_zip(front: Mutation, inner: Callable[[str], Mutation]) -> Mutation:
    """Change what stands before an archive at the end of a file, or the archive."""

    def mutation(data: bytes, draw: Draw) -> bytes:
        at = data.find(b"PK\x03\x04")
        if at < 0 or draw.random() < 0.7:
            at = len(data) if at < 0 else at
            return front(data[:at], draw) + data[at:]
        return data[:at] + zipped(inner)(data[at:], draw)

    return mutation


def _varint(number: int) -> bytes:
    number %= 2**64
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def _fields(data: bytes) -> list[tuple[int, int, Any]] | None:
    """Split a message into (number, wire type, content); None if it is none."""
    found, at = [], 0

    def number() -> int:
        nonlocal at
        result = shift = 0
        while True:
            byte = data[at]
            at += 1
            result |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return result
            if shift > 63:
                raise ValueError

    try:
        while at < len(data):
            key = number()
            field, wire = key >> 3, key & 7
            if not field or wire not in (0, 1, 2, 5):
                return None
            if wire == 0:
                content: Any = number()
            else:
                length = {1: 8, 5: 4}.get(wire) or number()
                content = data[at : at + length]
                at += length
                if at > len(data):
                    return None
            found.append((field, wire, content))
    except (IndexError, ValueError):
        return None
    return found


def _encoded(fields: list[tuple[int, int, Any]]) -> bytes:
    parts = []
    for number, wire, content in fields:
        parts.append(_varint(number << 3 | wire))
        if wire == 0:
            parts.append(_varint(content))
        elif wire == 2:
            parts += [_varint(len(content)), content]
        else:
            parts.append(content)
    return b"".join(parts)


def protobuf(data: bytes, draw: Draw, depth: int = 0) -> bytes:
    """Change a field of a message, or of a message within it, with right lengths."""
    if depth == 0 and draw.random() < 0.1:
        return edited(data, draw)
    fields = _fields(data) if len(data) < 2**22 else None
    if not fields:
        return edited(data, draw)
    for _ in range(int(draw.integers(1, 4)) if depth else 1):
        at = int(draw.integers(len(fields)))
        number, wire, content = fields[at]
        nested = wire == 2 and len(content) > 1 and depth < 12
        kind = int(draw.integers(10))
        if nested and kind < 7:
            fields[at] = number, wire, protobuf(content, draw, depth + 1)
        elif kind == 0:
            del fields[at]
            if not fields:
                break
        elif kind == 1:
            fields[at:at] = [fields[at]] * int(draw.choice([1, 2, 50]))
        elif kind == 2:
            fields[at] = int(draw.integers(1, 30)), wire, content
        elif kind == 3 or wire == 0:
            fields[at] = number, 0, NUMBERS[draw.integers(len(NUMBERS))]
        elif wire == 2 and kind < 8:
            text = TEXTS[draw.integers(len(TEXTS))].encode("utf-8", "surrogatepass")
            fields[at] = number, 2, text
        else:
            fields[at] = number, wire, edited(content, draw)[: len(content)]
            if wire != 2:
                fields[at] = number, wire, draw.bytes(len(content))
    return _encoded(fields)


def table(data: bytes, draw: Draw) -> bytes:
    """Change cells, rows and separators of a CSV file."""
    lines = [line.split(",") for line in data.decode().splitlines()]
    for _ in range(int(draw.integers(1, 6))):
        row = lines[draw.integers(len(lines))]
        kind = int(draw.integers(6))
        if kind < 3 and row:
            row[draw.integers(len(row))] = str(value(draw))
        elif kind == 3:
            row.append(TEXTS[draw.integers(len(TEXTS))])
        elif kind == 4:
            lines.insert(int(draw.integers(len(lines))), list(row))
        elif row:
            del row[draw.integers(len(row))]
    separator = ("," if draw.random() < 0.9 else ";").join
    text = "\n".join(map(separator, lines)).encode("utf-8", "surrogatepass")
    return edited(text, draw) if draw.random() < 0.3 else text


def png(data: bytes, draw: Draw) -> bytes:
    """Change chunks of a PNG; their lengths and checksums stay right."""
    at, chunks = 8, []
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += size + 12
    for _ in range(int(draw.integers(1, 4))):
        index = int(draw.integers(len(chunks)))
        name, content = chunks[index]
        kind = int(draw.integers(5))
        if kind == 0:
            chunks.insert(int(draw.integers(len(chunks))), (name, content))
        elif kind == 1 and len(chunks) > 1:
            del chunks[index]
        elif kind == 2:
            names = (b"IHDR", b"PLTE", b"tRNS", b"iCCP", b"eXIf", b"zTXt", b"acTL")
            chunks[index] = names[draw.integers(len(names))], content
        elif kind == 3 and name == b"IDAT":
            # Not if an earlier edit was of this chunk.
            with suppress(zlib.error):
                pixels = edited(zlib.decompress(content), draw)
                chunks[index] = name, zlib.compress(pixels, 1)
        else:
            chunks[index] = name, edited(content, draw)
        name, content = chunks[min(index, len(chunks) - 1)]
    parts = [data[:8]]
    for name, content in chunks:
        check = zlib.crc32(name + content)
        parts += [struct.pack(">I", len(content)), name, content]
        parts.append(struct.pack(">I", check))
    return b"".join(parts)


def jpeg(data: bytes, draw: Draw) -> bytes:
    """Change segments of a JPEG; their lengths stay right in most files."""
    at, segments = 2, []
    while at + 4 <= len(data) and data[at] == 255:
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        segments.append((data[at + 1], data[at + 4 : at + 2 + size]))
        at += 2 + size
        if segments[-1][0] == 0xDA:
            break
    scan = data[at:]
    for _ in range(int(draw.integers(1, 4))):
        index = int(draw.integers(len(segments)))
        marker, content = segments[index]
        kind = int(draw.integers(5))
        if kind == 0:
            segments.insert(int(draw.integers(len(segments))), (marker, content))
        elif kind == 1 and len(segments) > 1:
            del segments[index]
        elif kind == 2:
            markers = (0xC0, 0xC1, 0xC2, 0xC4, 0xDB, 0xDD, 0xE1, 0xEE, 0xFE)
            segments[index] = int(draw.choice(markers)), content
        elif kind == 3:
            scan = edited(scan, draw)
        else:
            segments[index] = marker, edited(content, draw)[:65_000]
    parts = [data[:2]]
    for marker, content in segments:
        parts += [bytes([255, marker]), struct.pack(">H", len(content) + 2), content]
    return b"".join(parts) + scan


def either(*mutations: Mutation) -> Mutation:
    """Draw one of several mutations for each file."""
    return lambda data, draw: mutations[draw.integers(len(mutations))](data, draw)
