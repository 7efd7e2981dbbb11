"""How long an exported file takes for one image."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from reszoo.machine import processor
from reszoo_export.manifest import Latency
from reszoo_export.runtimes import Runtime, open_runtime

_WARM_UP = 5
_MOST_RUNS = 100
_SECONDS = 1.0


def benchmark(
    files: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    threads: int | None = None,
) -> dict[str, Latency]:
    """Measure the latency of some files, one image at a time.

    Args:
        files: Checkpoints or exported files, or a single one.
        threads: Threads of the runtime; one for each core if None.

    Returns:
        The latency of each file, by its path as given.
    """
    if isinstance(files, str | os.PathLike):
        files = [files]
    return {
        os.fspath(file): measure(open_runtime(Path(file), threads)) for file in files
    }


def measure(runtime: Runtime) -> Latency:
    """Measure one opened file: the median over at most a second or 100 calls."""
    size = runtime.card.preprocessing.eval_size
    image = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), np.uint8)
    for _ in range(_WARM_UP):
        runtime.run(image)
    times: list[float] = []
    while len(times) < _MOST_RUNS and sum(times) < _SECONDS:
        started = time.perf_counter()
        runtime.run(image)
        times.append(time.perf_counter() - started)
    return Latency(
        median_ms=1000 * float(np.median(times)),
        p90_ms=1000 * float(np.percentile(times, 90)),
        runs=len(times),
        threads=runtime.threads,
        processor=processor(),
    )
