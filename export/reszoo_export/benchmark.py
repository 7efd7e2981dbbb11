"""Measure latencies of files in fresh, interleaved processes."""

import contextlib
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reszoo import defaults, errors
from reszoo.console import Progress, enable_quiet_cli
from reszoo.errors import ReszooError, UsageError
from reszoo.preprocessing import Pixels
from reszoo_export.manifest import Latency, size_and_hash
from reszoo_export.runtimes import Runtime, library_of, open_runtime

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
    enable_quiet_cli()
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


Files = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
_MOST_RUNS = 1000
# Medians of quiet machines lie closer; beyond it small differences mean nothing.
_SPREAD = 0.25
_BUSY = ": others were at work on this machine, measure again"
# What an export takes the time for: enough for a median that repeats within 5 %.
_QUICK_RUNS = 100


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One file at one batch size.

    Attributes:
        file: Its path, as given.
        runtime: What ran it, with its version.
        bytes: Its size; of a folder, that of all files in it.
        latency: Over the calls of all processes.
        medians_ms: Of each process: where they lie apart, others were at work.
    """

    file: str
    runtime: str
    bytes: int
    latency: Latency
    medians_ms: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {**asdict(self), "medians_ms": list(self.medians_ms)}


def benchmark(
    files: Files,
    *,
    threads: int | None = None,
    batch_sizes: Sequence[int] = defaults.BATCH_SIZES,
    rounds: int = defaults.ROUNDS,
    seconds: float = defaults.SECONDS,
) -> list[Measurement]:
    """Measure how long files take to answer, beside each other.

    Each file is opened in a fresh process of its own once a round; rounds go forwards
    and backwards by turns (A B B A), so that what warms up or slows down the machine
    meets all alike. Images are noise of the size the file wants.

    Args:
        files: Checkpoints or exported files, or a single one.
        threads: Threads of the runtime; one for each core if None.
        batch_sizes: Images a call. A file of a fixed batch gets as many calls as that
            takes.
        rounds: Processes for each file.
        seconds: Of calls in each process, for each batch size.

    Returns:
        A measurement for each file and batch size, files in the order given.

    Raises:
        CheckpointError: There is no such file, or it is damaged.
        UsageError: No files, no batch sizes, or a number that is not positive.
    """
    names = _names(files)
    sizes = tuple(batch_sizes)
    numbers = (rounds, seconds, *sizes, *([] if threads is None else [threads]))
    if not names or not sizes or min(numbers) <= 0:
        raise UsageError(
            "benchmark takes at least one file and one batch size, and numbers above "
            f"0. Received: {len(names)} files, batch_sizes={sizes}, rounds={rounds}, "
            f"seconds={seconds:g}, threads={threads}."
        )
    for name in names:
        library_of(Path(name))
    requests = [
        Request(
            file=name,
            threads=threads,
            batch_sizes=sizes,
            seconds=seconds,
            most_runs=_MOST_RUNS,
        )
        for name in names
    ]
    timings = _in_turns(requests, rounds)
    return [
        _measurement(request, found, place)
        for request, found in zip(requests, timings, strict=True)
        for place in range(len(sizes))
    ]


def measure_files(
    paths: Iterable[Path], *, threads: int | None = None, seconds: float = 0.5
) -> dict[Path, Latency]:
    """Measure each file for a moment, one image a call, in one fresh process each.

    This is what an export takes the time for; `benchmark` is what to compare with.

    Args:
        paths: Files to open.
        threads: Threads of the runtime; one for each core if None.
        seconds: Of calls for each file.
    """
    found = {}
    for path in paths:
        request = Request(
            file=str(path),
            threads=threads,
            batch_sizes=(1,),
            seconds=seconds,
            most_runs=_QUICK_RUNS,
        )
        found[path] = _latency([_timing(request)], batch=1, place=0)
    return found


def measure(runtime: Runtime) -> Latency:
    """Measure one opened file for at most a second, one image a call."""
    times = time_calls(runtime, noise(runtime, 1), seconds=1.0, most_runs=_QUICK_RUNS)
    return Latency.of(times, batch=1, threads=runtime.threads)


def benchmark_table(
    measurements: Sequence[Measurement],
) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows that show measurements to people."""
    columns = [
        "file", "size", "batch", "median", "p90", "p99", "images/s", "cold start",
        "memory", "peak",
    ]  # fmt: skip
    return columns, [_row(each) for each in measurements]


def benchmark_note(measurements: Sequence[Measurement]) -> str:
    """Return the sentences below the table: on what, with what, how sure."""
    first = measurements[0].latency
    spread = max(max(m.medians_ms) / min(m.medians_ms) - 1 for m in measurements)
    runtimes = ", ".join(sorted({each.runtime for each in measurements}))
    return (
        f"{first.threads} threads on {first.processor}; {runtimes}. Cold start is "
        "opening the file and answering once; memory is what both and the calls took, "
        "peak includes the libraries. The processes' medians lie within "
        f"{spread:.0%} of each other{_BUSY if spread > _SPREAD else ''}."
    )


def _names(files: Files) -> list[str]:
    several = [files] if isinstance(files, str | os.PathLike) else files
    return [os.fspath(file) for file in several]


def _in_turns(requests: Sequence[Request], rounds: int) -> list[list[Timing]]:
    timings: list[list[Timing]] = [[] for _ in requests]
    with Progress("benchmarking", rounds * len(requests)) as progress:
        for turn in range(rounds):
            forwards = list(range(len(requests)))
            for index in forwards if turn % 2 == 0 else forwards[::-1]:
                progress.advance(0, requests[index].file)
                timings[index].append(_timing(requests[index]))
                progress.advance()
    return timings


def _timing(request: Request) -> Timing:
    """Time a file in a fresh process.

    Raises:
        ReszooError: As raised there.
    """
    done = subprocess.run(
        # -P: what lies in the current folder is no module of ours.
        [sys.executable, "-P", "-m", "reszoo_export.benchmark",
         json.dumps(asdict(request))],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    if done.returncode or not done.stdout:
        last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        raise ReszooError(
            f"Timing {request.file} ended with exit status {done.returncode}: {last}"
        )
    told = json.loads(done.stdout)
    if "error" in told:
        raise _raised(told["error"])(told["message"])
    return Timing(**told)


def _raised(name: str) -> type[ReszooError]:
    kind: type[ReszooError] = getattr(errors, name)
    # Its own text is whole already; it would be made anew of other arguments.
    return UsageError if issubclass(kind, UsageError) else kind


def _measurement(
    request: Request, timings: Sequence[Timing], place: int
) -> Measurement:
    return Measurement(
        file=request.file,
        runtime=timings[0].runtime,
        bytes=size_and_hash(Path(request.file))[0],
        latency=_latency(timings, request.batch_sizes[place], place),
        medians_ms=tuple(float(np.median(each.times_ms[place])) for each in timings),
    )


def _latency(timings: Sequence[Timing], batch: int, place: int) -> Latency:
    times = [time for each in timings for time in each.times_ms[place]]
    memory = [(each.base_mb, each.peak_mb[place]) for each in timings]
    grown = [peak - base for base, peak in memory if peak and base]
    return Latency.of(
        times,
        batch=batch,
        threads=timings[0].threads,
        load_ms=float(np.median([each.load_ms for each in timings])),
        first_ms=float(np.median([each.first_ms for each in timings])),
        memory_mb=_median(grown),
        peak_mb=_median([peak for _, peak in memory if peak]),
    )


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None


def _row(measurement: Measurement) -> list[str]:
    latency = measurement.latency
    times = (latency.median_ms, latency.p90_ms, latency.p99_ms)
    return [
        measurement.file,
        f"{measurement.bytes / 1e6:,.2f} MB",
        str(latency.batch),
        *(f"{each:,.2f} ms" for each in times),
        f"{latency.images_per_second:,.1f}",
        _number(latency.cold_ms, "ms"),
        _number(latency.memory_mb, "MB"),
        _number(latency.peak_mb, "MB"),
    ]


def _number(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:,.0f} {unit}"


if __name__ == "__main__":
    main(sys.argv[1])
