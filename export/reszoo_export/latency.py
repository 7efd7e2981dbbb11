"""How long answers take: the record that manifests and benchmarks keep."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reszoo.machine import processor


@dataclass(frozen=True, kw_only=True)
class Latency:
    """How long one call takes, measured where the files were made.

    What only a fresh process can tell is None where none was started, and memory
    also where the system does not tell it.

    Attributes:
        batch: Images a call.
        median_ms: Median over the calls, in milliseconds.
        p90_ms: What nine of ten calls stay below.
        p99_ms: What 99 of 100 calls stay below; close to the slowest of few calls.
        images_per_second: Images answered in the median call, a second.
        runs: Number of calls measured, after warming up.
        threads: Threads of the runtime.
        processor: Its name.
        load_ms: Opening the file, its runtime's library loaded before.
        first_ms: The first answer, to one image.
        memory_mb: Most resident megabytes (10**6 bytes) that file and answers took,
            above what the process held with its libraries loaded.
        peak_mb: Most resident megabytes of the whole process.
    """

    batch: int = 1
    median_ms: float
    p90_ms: float
    p99_ms: float
    images_per_second: float
    runs: int
    threads: int
    processor: str
    load_ms: float | None = None
    first_ms: float | None = None
    memory_mb: float | None = None
    peak_mb: float | None = None

    @property
    def cold_ms(self) -> float | None:
        """From the closed file to the first answer."""
        if self.load_ms is None or self.first_ms is None:
            return None
        return self.load_ms + self.first_ms

    @classmethod
    def of(cls, times_ms: Sequence[float], *, batch: int, **others: Any) -> "Latency":
        """Return the latency of some calls.

        Args:
            times_ms: Of each call.
            batch: Images a call.
            **others: The fields that do not follow from these.
        """
        median, p90, p99 = np.percentile(times_ms, [50, 90, 99])
        return cls(
            batch=batch,
            median_ms=float(median),
            p90_ms=float(p90),
            p99_ms=float(p99),
            images_per_second=float(1000 * batch / median),
            runs=len(times_ms),
            processor=processor(),
            **others,
        )
