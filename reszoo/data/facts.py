"""Facts about image files, packed: a table of a million takes 80 MB."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
