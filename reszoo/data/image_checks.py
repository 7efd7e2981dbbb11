"""Decode every image file once and record facts about it in a cached table."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import tensorflow as tf
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from reszoo import files
from reszoo.console import Progress, quiet, say
from reszoo.data.decoding import decode
from reszoo.data.image_files import (
    Header,
    decode_image,
    is_jpeg,
    opened,
    read_header,
    reason_of,
)
from reszoo.errors import DataError, ReszooError
from reszoo.files import cache_folder

Rows = NDArray[np.void]
# One image in 80 bytes. `key` stands for the path in the cache; an orientation of 0
# says that the file has not been looked at yet.
ROW = np.dtype(
    [
        ("key", "<u8"),
        ("bytes", "<i8"),
        ("mtime_ns", "<i8"),
        ("digest", "<u8", (2,)),
        ("width", "<i4"),
        ("height", "<i4"),
        ("frames", "<i4"),
        ("problem", "<i4"),
        ("format", "S10"),
        ("mode", "S9"),
        ("orientation", "u1"),
        ("misnamed", "?"),
        ("by_pillow", "?"),
        ("recoverable", "?"),
    ]
)
# Stored as they are; the others need a conversion.
_AS_IT_IS = (
    *("bytes", "mtime_ns", "width", "height", "frames", "format", "mode"),
    *("orientation", "misnamed", "by_pillow", "recoverable"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What is known of one image file.

    Attributes:
        path: The file.
        bytes: Its size.
        mtime_ns: When it was changed, in nanoseconds; -1 if it could not be read.
        problem: Why it cannot be used; None if it can.
        recoverable: Whether it is a JPEG that was cut short and decodes in part.
        format: Pillow's name of the format, by content: "JPEG", "PNG"; "" if unknown.
        misnamed: Whether the ending of the name belongs to another format.
        mode: Pillow's name of the mode: "RGB", "L" (grey), "P" (palette), "CMYK";
            with "A" behind it where parts are transparent, and then ";16" where a
            channel has 16 bits.
        frames: Number of pictures in the file.
        orientation: How the camera was held (EXIF), 1 (upright) to 8.
        by_pillow: Whether only Pillow decodes the file right.
        width: Of the upright picture, in pixels; 0 if unknown.
        height: Of the upright picture, in pixels; 0 if unknown.
        digest: Hash of the decoded upright RGB pixels and their shape, in hex: equal
            for the same picture in another lossless format. "" if it cannot be used.
    """

    path: str
    bytes: int = 0
    mtime_ns: int = -1
    problem: str | None = None
    recoverable: bool = False
    format: str = ""
    misnamed: bool = False
    mode: str = ""
    frames: int = 1
    orientation: int = 1
    by_pillow: bool = False
    width: int = 0
    height: int = 0
    digest: str = ""


class FactTable:
    """Facts about many files, in the order of their paths; each is made when asked for.

    Args:
        paths: The files.
        rows: `(n,)` of `ROW`.
        problems: The texts that the rows' `problem` counts through; the first is "".
    """

    def __init__(self, paths: Sequence[str], rows: Rows, problems: list[str]) -> None:
        self.paths, self.rows, self.problems = paths, rows, problems
        self._numbers = {text: number for number, text in enumerate(problems)}

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Facts]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Facts:
        row = self.rows[index]
        return Facts(
            path=self.paths[index],
            problem=self.problems[row["problem"]] or None,
            format=row["format"].decode(),
            mode=row["mode"].decode(),
            digest=row["digest"].tobytes().hex() if row["digest"].any() else "",
            bytes=int(row["bytes"]),
            mtime_ns=int(row["mtime_ns"]),
            frames=int(row["frames"]),
            orientation=int(row["orientation"]),
            width=int(row["width"]),
            height=int(row["height"]),
            misnamed=bool(row["misnamed"]),
            by_pillow=bool(row["by_pillow"]),
            recoverable=bool(row["recoverable"]),
        )

    def __setitem__(self, index: int, facts: Facts) -> None:
        row = self.rows[index]
        for name in _AS_IT_IS:
            row[name] = getattr(facts, name)
        digest = bytes.fromhex(facts.digest or "00" * 16)
        row["digest"] = np.frombuffer(digest, np.uint64)
        row["problem"] = self._number(facts.problem or "")

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Whether each file can be used, `(n,)`."""
        return np.asarray(self.rows["problem"] == 0)

    def _number(self, problem: str) -> int:
        if problem not in self._numbers:
            self._numbers[problem] = len(self.problems)
            self.problems.append(problem)
        return self._numbers[problem]


# To be raised when another file counts as usable, or a fact changes its meaning.
_RULES = 2
_SEAL = 32  # bytes of SHA-256


@dataclass(frozen=True)
class Kept:
    """What was found out before.

    Attributes:
        rows: `(n,)` of `ROW`, sorted by key.
        problems: What the rows' `problem` counts through.
    """

    rows: Rows
    problems: list[str]

    def recall(
        self,
        keys: NDArray[np.uint64],
        sizes: NDArray[np.int64],
        times: NDArray[np.int64],
    ) -> Rows:
        """Return a row for each file; zeros for new and changed ones.

        Args:
            keys: Of the paths, `(n,)`.
            sizes: Of the files now, in bytes, `(n,)`.
            times: When they were last changed, in nanoseconds, `(n,)`; -1 is never
                found.
        """
        rows = np.zeros(len(keys), ROW)
        if len(self.rows):
            at = np.searchsorted(self.rows["key"], keys)
            near = np.minimum(at, len(self.rows) - 1)
            same = (self.rows["key"][near] == keys) & (times >= 0)
            same &= self.rows["bytes"][near] == sizes
            same &= self.rows["mtime_ns"][near] == times
            rows[same] = self.rows[near[same]]
        rows["key"] = keys
        return rows


def keys_of(paths: Sequence[str]) -> NDArray[np.uint64]:
    """Return a number for each path as it is written, `(n,)`."""
    encoded = map(os.fsencode, paths)
    hashes = (hashlib.blake2b(path, digest_size=8).digest() for path in encoded)
    return np.frombuffer(b"".join(hashes), "<u8")


def place(paths: Sequence[str]) -> Path:
    """Return the file that keeps the facts about `paths`."""
    # What the first and the last share, all share.
    ends = [Path(end(paths)).absolute().parent for end in (min, max)]
    folder = os.fsencode(os.path.commonpath(ends))
    return cache_folder() / "scans" / hashlib.sha256(folder).hexdigest()[:32]


def load_kept(file: Path) -> Kept:
    """Read what `keep` wrote; nothing from a damaged or outdated file."""
    nothing = Kept(np.zeros(0, ROW), [""])
    try:
        content = memoryview(file.read_bytes())
    except OSError:
        return nothing
    if hashlib.sha256(content[_SEAL:]).digest() != content[:_SEAL]:
        return nothing
    length = int.from_bytes(content[_SEAL : _SEAL + 8], "little")
    rows_at = _SEAL + 8 + length
    header = json.loads(bytes(content[_SEAL + 8 : rows_at]))
    if header["made_by"] != _made_by():
        return nothing
    return Kept(np.frombuffer(content, ROW, offset=rows_at), header["problems"])


def keep(file: Path, before: Kept, rows: Rows, problems: list[str]) -> None:
    """Write new rows and the older ones of other files.

    Args:
        file: From `place`.
        before: What the file held.
        rows: `(n,)` of `ROW`, whose `problem` counts through `problems`.
        problems: Those of `before`, continued.

    Raises:
        ReszooError: The disk refused the write.
    """
    # Of equal keys `unique` takes the first: the new one.
    together = np.concatenate([rows, before.rows])
    _, firsts = np.unique(together["key"], return_index=True)
    header = json.dumps({"made_by": _made_by(), "problems": problems}).encode()
    body = len(header).to_bytes(8, "little") + header + together[firsts].tobytes()
    with files.atomic_file(file) as temporary, temporary.open("wb") as stream:
        stream.write(hashlib.sha256(body).digest())
        stream.write(body)


def _made_by() -> str:
    """Tell everything but the file that decides whether it can be used."""
    return f"rules {_RULES}, {ROW}, Pillow {PIL.__version__}, {Image.MAX_IMAGE_PIXELS}"


def inspect(path: str) -> Facts:
    """Decode one image file as training does and tell what was found.

    What is wrong with a file is told, not raised. A problem that lies not in the
    file (no permission, no memory) leaves `mtime_ns` at -1.
    """
    try:
        status = Path(path).stat()
        content = Path(path).read_bytes()
        found = _looks(content, path)
    except OSError as error:
        return Facts(path=path, problem=error.strerror or str(error))
    except tf.errors.OpError as error:
        return Facts(path=path, problem=error.message)
    return Facts(path=path, bytes=status.st_size, mtime_ns=status.st_mtime_ns, **found)


def _looks(content: bytes, path: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    try:
        with opened(BytesIO(content), path) as image:
            found |= _outside(image, path)
        header = read_header(content, path)
        found |= header._asdict()
        if header.orientation > 4:
            found |= {"width": found["height"], "height": found["width"]}
        found["digest"] = _digest(_decode(content, path, header))
    except DataError as error:
        found["problem"] = _reason(error.__cause__ or error, content)
    except tf.errors.InvalidArgumentError:
        found["recoverable"] = is_jpeg(content) and _recovers(content)
        damaged = f"damaged {found['format']} data"
        found["problem"] = "cut short" if found["recoverable"] else damaged
    return found


def _outside(image: Image.Image, path: str) -> dict[str, Any]:
    """Tell what needs no decoding; Pillow forgets some of it when it decodes."""
    deep = image.mode.startswith("I") or ";16" in str(getattr(image, "tile", ""))
    mode = "L" if image.mode.startswith("I") else image.mode
    if image.has_transparency_data and not mode.upper().endswith("A"):
        mode += "A"
    return {
        "format": str(image.format),
        "misnamed": _is_misnamed(path, str(image.format)),
        "mode": mode + ";16" * deep,
        "width": image.width,
        "height": image.height,
        "frames": _frames(image),
    }


def _is_misnamed(path: str, kind: str) -> bool:
    ending = Path(path).suffix.lower()
    meant = Image.registered_extensions().get(ending)
    # Cameras put pairs of JPEGs into files that are called .jpg.
    return meant != ("JPEG" if kind == "MPO" and meant == "JPEG" else kind)


def _frames(image: Image.Image) -> int:
    # Only the first frame is used: damage behind it is no problem.
    with suppress(OSError, SyntaxError, ValueError, EOFError):
        return int(getattr(image, "n_frames", 1))
    return 1


def _decode(content: bytes, path: str, header: Header) -> Any:
    """Return the upright picture, uint8 RGB `(height, width, 3)`."""
    if header.by_pillow:
        return np.asarray(decode_image(content, path))
    # Not on a graphics card, which several threads would have to share.
    with tf.device("CPU:0"):
        return decode(content, header.orientation if header.orientation > 1 else None)


def _recovers(content: bytes) -> bool:
    try:
        decode(content, recover=True)
    except tf.errors.InvalidArgumentError:
        return False
    return True


def _digest(pixels: Any) -> str:
    # Processors have instructions for SHA-256: it is faster than BLAKE2.
    # Tensors have the buffer protocol too: nothing is copied.
    view = memoryview(pixels)
    found = hashlib.sha256(str(view.shape).encode())
    found.update(view)
    return found.hexdigest()[:32]


def _reason(cause: BaseException, content: bytes) -> str:
    if not content:
        return "empty file"
    if isinstance(cause, Image.DecompressionBombError):
        return f"too many pixels ({cause})"
    if isinstance(cause, UnidentifiedImageError) and _is_text(content):
        return "text, no image"
    reason = reason_of(cause)
    return "cut short" if "truncated" in reason.lower() else reason


def _is_text(content: bytes) -> bool:
    # Most often a web page that says why there is no image.
    start = content[:64].decode("ascii", "replace")
    return " ".join(start.split()).isprintable() and "\ufffd" not in start


# Files that are handed to the threads at a time: what an interruption waits for.
_WAVE = 256


def examine(paths: Sequence[str], *, progress: bool = True) -> FactTable:
    """Find out what can be used, by decoding each file as training would.

    The facts are kept under `cache_folder()/scans`, in one file for the folder that
    all paths are in; a file whose size and time are as they were is not opened
    again. So ask for all splits of a data set in one call. An interrupted call keeps
    what it has.

    Args:
        paths: Image files. One that is missing is a fact as well.
        progress: Whether to show a bar on a terminal.

    Returns:
        The facts, in the order of `paths`.
    """
    if not paths:
        return FactTable(paths, np.zeros(0, ROW), [""])
    file = place(paths)
    before = load_kept(file)
    rows = before.recall(keys_of(paths), *_sizes_and_times(paths))
    table = FactTable(paths, rows, list(before.problems))
    new = np.flatnonzero(rows["orientation"] == 0)
    if len(new):
        try:
            _look(table, new, progress)
        finally:
            _keep(file, before, table)
    return table


def _sizes_and_times(
    paths: Sequence[str],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    found = np.full((2, len(paths)), -1, np.int64)
    for index, path in enumerate(paths):
        with contextlib.suppress(OSError):
            status = Path(path).stat()
            found[:, index] = status.st_size, status.st_mtime_ns
    return found[0], found[1]


def _look(table: FactTable, new: NDArray[np.int64], progress: bool) -> None:
    # TensorFlow is loaded only where a file has to be decoded.

    # Threads must not be the first to load Pillow's formats, each on its own; and the
    # common ones first, for they are tried in that order.
    Image.preinit()
    Image.init()
    with (
        quiet(),
        Progress("Looking at images", len(new), shown=progress) as bar,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        for start in range(0, len(new), _WAVE):
            wave = new[start : start + _WAVE]
            found = pool.map(inspect, [table.paths[index] for index in wave])
            for index, facts in zip(wave, found, strict=True):
                table[index] = facts
            bar.advance(len(wave))


def _keep(file: Path, before: Kept, table: FactTable) -> None:
    looked_at = table.rows[table.rows["orientation"] > 0]
    try:
        keep(file, before, looked_at, table.problems)
    except ReszooError as error:
        say(f"The next run will look at every image again: {error}")
