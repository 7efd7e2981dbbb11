"""Keep facts about image files on disk, so that no file is decoded twice.

One file for the folder that all of the images are in. A row is found again by the
path's hash and holds while size and time of the file stay the same.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from reszoo import files
from reszoo.checkpoints.download import cache_folder
from reszoo.data.facts import ROW, Rows

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


def recollect(file: Path) -> Kept:
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
