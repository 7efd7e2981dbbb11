"""Time one file: in this process, or as a fresh process that prints what it found.

`python -m reszoo_export.stopwatch REQUEST` takes and prints JSON. A fresh process is
the only one that can tell what opening a file costs in time and memory.
"""

import contextlib
import importlib
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reszoo.errors import ReszooError
from reszoo.preprocessing import Pixels
from reszoo.quiet import quiet_tensorflow
from reszoo_export.runtimes.opening import Runtime, library_of, open_runtime

# Calls before any counts: memory is laid out and clocks rise in them.
_WARM_UP = 3
_LEAST_RUNS = 5
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be timed.

    Attributes:
        file: Its path.
        threads: Of the runtime; None for its own number.
        batch_sizes: Images a call, one after the other.
        seconds: Of calls for each batch size, warming up not counted.
        most_runs: Calls for each batch size at most.
    """

    file: str
    threads: int | None
    batch_sizes: tuple[int, ...]
    seconds: float
    most_runs: int


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What one process found out about one file.

    Attributes:
        runtime: Its name and version.
        threads: That it used.
        load_ms: Opening the file.
        first_ms: The first answer, to one image.
        base_mb: Resident with the libraries loaded and no file opened; None where
            the system does not tell.
        peak_mb: Most resident so far, at the end of each batch size.
        times_ms: Of each call, for each batch size.
    """

    runtime: str
    threads: int
    load_ms: float
    first_ms: float
    base_mb: float | None
    peak_mb: tuple[float | None, ...]
    times_ms: tuple[tuple[float, ...], ...]


def noise(runtime: Runtime, batch: int) -> Pixels:
    """Return seeded images of a file's size, uint8 `(batch, size, size, 3)`."""
    size = runtime.card.preprocessing.eval_size
    draw = np.random.default_rng(0)
    return draw.integers(0, 256, (batch, size, size, 3), np.uint8)


def time_calls(
    runtime: Runtime, images: Pixels, *, seconds: float, most_runs: int
) -> tuple[float, ...]:
    """Return the milliseconds of calls, warmed up, until time or number run out."""
    for _ in range(_WARM_UP):
        runtime.run(images)
    times: list[float] = []
    while len(times) < most_runs and (
        len(times) < _LEAST_RUNS or sum(times) < 1000 * seconds
    ):
        times.append(_call(runtime, images))
    return tuple(times)


def time_file(request: Request) -> Timing:
    """Open a file and time it; truthful only where nothing was loaded before."""
    path = Path(request.file)
    quiet_tensorflow()
    importlib.import_module(library_of(path))
    base = _resident("VmRSS")
    started = time.perf_counter()
    runtime = open_runtime(path, request.threads)
    load = 1000 * (time.perf_counter() - started)
    first = _call(runtime, noise(runtime, 1))
    times, peaks = [], []
    for batch in request.batch_sizes:
        images = noise(runtime, batch)
        times.append(
            time_calls(
                runtime, images, seconds=request.seconds, most_runs=request.most_runs
            )
        )
        peaks.append(_resident("VmHWM"))
    return Timing(
        runtime=runtime.name,
        threads=runtime.threads,
        load_ms=load,
        first_ms=first,
        base_mb=base,
        peak_mb=tuple(peaks),
        times_ms=tuple(times),
    )


def main(request: str) -> None:
    """Time what the JSON of a request names; print JSON, also of what went wrong."""
    # Libraries may print; only our line may reach the output stream.
    output = os.dup(1)
    os.dup2(2, 1)
    told: dict[str, Any]
    try:
        told = asdict(time_file(Request(**json.loads(request))))
    except ReszooError as error:
        told = {"error": type(error).__name__, "message": str(error)}
    os.write(output, json.dumps(told).encode())


def _call(runtime: Runtime, images: Pixels) -> float:
    started = time.perf_counter()
    runtime.run(images)
    return 1000 * (time.perf_counter() - started)


def _resident(kind: str) -> float | None:
    """Return megabytes held now (VmRSS) or at most so far (VmHWM); see proc(5).

    `getrusage` would count what the parent held when it started this process.
    """
    with contextlib.suppress(OSError):
        for line in _STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith(f"{kind}:"):
                return int(line.split()[1]) * 1024 / 1e6
    return None


if __name__ == "__main__":
    main(sys.argv[1])
