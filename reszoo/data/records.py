"""Records: encoded images inside larger files, read one at a time."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reszoo.errors import DataError

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Records:
    """Byte ranges of files, each of which is an encoded image.

    24 bytes an image stay in memory; the images stay on disk.

    Attributes:
        files: The files.
        shards: Which of them holds an image, int32 `(n,)`.
        numbers: The image's record in its file, from 0, int32 `(n,)`.
        offsets: Where the encoded image begins, in bytes, int64 `(n,)`.
        lengths: Its length in bytes, int64 `(n,)`.
    """

    files: tuple[str, ...]
    shards: NDArray[np.int32]
    numbers: NDArray[np.int32]
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]

    @classmethod
    def from_counts(
        cls,
        files: Sequence[str],
        counts: Sequence[int],
        offsets: NDArray[np.int64],
        lengths: NDArray[np.int64],
    ) -> "Records":
        """Wrap files that hold `counts` records each, in order."""
        return cls(
            tuple(files),
            np.repeat(np.arange(len(files), dtype=np.int32), counts),
            np.concatenate(
                [np.zeros(0, np.int32)]
                + [np.arange(count, dtype=np.int32) for count in counts]
            ),
            offsets,
            lengths,
        )

    def __len__(self) -> int:
        return len(self.offsets)

    def take(self, indices: Indices) -> "Records":
        """Return the records at `indices`, in that order."""
        return Records(
            self.files,
            self.shards[indices],
            self.numbers[indices],
            self.offsets[indices],
            self.lengths[indices],
        )

    def name(self, index: int) -> str:
        """Return "FILE record NUMBER" for messages."""
        return f"{self.files[self.shards[index]]} record {self.numbers[index]}"

    def read(self, index: int, most: int | None = None) -> bytes:
        """Return the encoded image, or its first `most` bytes; safe in threads.

        The file is opened each time: that costs some ten microseconds, holds no
        descriptors, and unlike a memory map adds nothing to what a process keeps.

        Raises:
            DataError: The file is gone or has become shorter.
        """
        length = int(self.lengths[index])
        wanted = length if most is None else min(length, most)
        try:
            with Path(self.files[self.shards[index]]).open("rb", buffering=0) as file:
                data = os.pread(file.fileno(), wanted, int(self.offsets[index]))
        except OSError as error:
            raise DataError(
                f"{self.name(index)} cannot be read ({error.strerror}). "
                "Keep the shards in place while they are in use."
            ) from error
        if len(data) < wanted:
            raise DataError(
                f"{self.name(index)} is cut short ({len(data)} of {wanted} bytes). "
                "Write or copy the shards again."
            )
        return data
