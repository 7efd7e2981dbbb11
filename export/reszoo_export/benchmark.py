"""How long files take to answer, each in fresh processes, in turns with the others."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reszoo import errors
from reszoo.errors import ReszooError, UsageError
from reszoo.progress import Progress
from reszoo_export.latency import Latency
from reszoo_export.manifest import size_and_hash
from reszoo_export.runtimes.opening import Runtime, library_of
from reszoo_export.stopwatch import Request, Timing, noise, time_calls

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
    batch_sizes: Sequence[int] = (1, 8),
    rounds: int = 4,
    seconds: float = 1.0,
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
        [sys.executable, "-P", "-m", "reszoo_export.stopwatch",
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
