"""`reszoo.benchmark`: latency and memory of files, in interleaved subprocesses."""

import contextlib
import importlib
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from reszoo import defaults
from reszoo.console import Progress
from reszoo.errors import UsageError
from reszoo.files import StrPath, as_path
from reszoo.preprocessing import Pixels
from reszoo_export.isolation import open_limited, run_in_subprocess
from reszoo_export.manifest import Latency, size_and_hash
from reszoo_export.runtimes import Runtime, find_runtime, open_runtime

Files = StrPath | Sequence[StrPath]
# Calls before measuring: memory is allocated and the processor's clock rises.
_WARM_UP = 3
_MIN_RUNS, _MAX_RUNS = 5, 1000
# Of the measurement in an export: enough for a median that repeats within 5 %.
_EXPORT_RUNS = 100
_STATUS = Path("/proc/self/status")
# On an idle machine the medians of the processes differ by less.
_MAX_SPREAD = 0.25
# Time of an isolated process.
_SECONDS = 600.0
_BUSY = ": other programs were running, measure again"
LATENCY_COLUMNS = ("median", "p90", "p99", "images/s", "cold start", "memory", "peak")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One file at one batch size."""

    file: str  # its path, as given
    runtime: str  # name and version of what ran it
    bytes: int  # its size; of a folder, that of all files in it
    latency: Latency  # over the calls of all processes
    # Of each process; they differ if other programs were running.
    medians_ms: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {**asdict(self), "medians_ms": list(self.medians_ms)}


def benchmark(
    files: Files, *, threads: int | None = None,
    batch_sizes: Sequence[int] = defaults.BATCH_SIZES, rounds: int = defaults.ROUNDS,
    seconds: float = defaults.SECONDS, trust_saved_model: bool = False,
    isolated: bool = defaults.ISOLATED,
) -> list[Measurement]:  # fmt: skip
    """Measure latency, cold start and memory of model files.

    Each file is opened in a new process once per round. The order of the files is
    reversed in every other round (A B B A), so that a drift of the machine affects all
    of them equally. Images are noise of the size that the file requires.

    Args:
        files: Checkpoints or exported files, or a single one.
        threads: Threads of the runtime; one for each core if None.
        batch_sizes: Images in a call. A file with a fixed batch is called as often as
            that takes.
        rounds: Processes for each file.
        seconds: Time of the calls in each process, for each batch size.
        trust_saved_model: See `reszoo.Predictor`.
        isolated: Whether each process may take only so much memory and time.

    Returns:
        A measurement for each file and batch size, files in the order given.

    Raises:
        CheckpointError: There is no such file, or it is damaged.
        UsageError: No files, no batch sizes, or a number that is not positive.
    """
    several = [files] if isinstance(files, str | os.PathLike) else files
    names, sizes = [str(as_path(file)) for file in several], tuple(batch_sizes)
    numbers = (rounds, seconds, *sizes, *([] if threads is None else [threads]))
    if not names or not sizes or min(numbers) <= 0:
        raise UsageError(
            "benchmark takes at least one file and one batch size, and numbers above "
            f"0. Received: {len(names)} files, batch_sizes={sizes}, rounds={rounds}, "
            f"seconds={seconds:g}, threads={threads}."
        )
    for name in names:
        find_runtime(Path(name))
    options = {"trust_saved_model": trust_saved_model, "isolated": isolated}
    timings = _interleaved(
        names, rounds, threads=threads, batch_sizes=sizes, seconds=seconds, **options
    )
    return [
        Measurement(
            file=name, runtime=found[0].runtime, bytes=size_and_hash(Path(name))[0],
            latency=_latency(found, size, place),
            medians_ms=tuple(float(np.median(each.times_ms[place])) for each in found),
        )
        for name, found in zip(names, timings, strict=True)
        for place, size in enumerate(sizes)
    ]  # fmt: skip


def measure_files(
    paths: Iterable[Path], *, threads: int | None = None, seconds: float = 0.5
) -> dict[Path, Latency]:
    """Measure each file with one image in a call, in one new process each.

    For the manifest of an export; use `benchmark` to compare files.
    """
    request = {"threads": threads, "seconds": seconds, "max_runs": _EXPORT_RUNS}
    timings = {
        path: [_time_in_subprocess(str(path), batch_sizes=(1,), **request)]
        for path in paths
    }
    return {path: _latency(each, batch=1, place=0) for path, each in timings.items()}


@dataclass(frozen=True, kw_only=True)
class Timing:
    """The measurements of one process."""

    runtime: str  # with its version
    threads: int
    load_ms: float  # to open the file
    first_ms: float  # of the first call, with one image
    # Resident megabytes with the libraries loaded and no file opened; None where the
    # system does not report them.
    base_mb: float | None
    peak_mb: Sequence[float | None]  # so far, at the end of each batch size
    times_ms: Sequence[Sequence[float]]  # of each call, for each batch size


def _interleaved(
    files: Sequence[str], rounds: int, **request: Any
) -> list[list[Timing]]:
    timings: list[list[Timing]] = [[] for _ in files]
    with Progress("benchmarking", rounds * len(files)) as progress:
        for number in range(rounds):
            order = range(len(files))
            for index in order if number % 2 == 0 else order[::-1]:
                progress.advance(0, files[index])
                timings[index].append(_time_in_subprocess(files[index], **request))
                progress.advance()
    return timings


def _time_in_subprocess(file: str, **request: Any) -> Timing:
    found = run_in_subprocess(
        f"{__name__}:time_file", {"file": file, **request}, hide_gpus=False,
        seconds=_SECONDS if request.get("isolated") else None,
        problem=f"{file} could not be timed",
    )  # fmt: skip
    return Timing(**found)


def time_file(
    file: str, *, threads: int | None, batch_sizes: Sequence[int], seconds: float,
    max_runs: int = _MAX_RUNS, isolated: bool = False, **options: bool,
) -> dict[str, Any]:  # fmt: skip
    """Open a file and time it, in the subprocess of `benchmark`.

    Accurate only in a process that loaded nothing else. Times calls for so many seconds
    for each batch size, without warming up; returns a `Timing` as plain JSON values.
    """
    path = Path(file)
    row = find_runtime(path)
    importlib.import_module(row.library if row else "reszoo.zoo")
    base = _resident_mb("VmRSS")
    limited = partial(open_limited, images=max(batch_sizes))
    open_file = limited if isolated else open_runtime
    started = time.perf_counter()
    runtime = open_file(path, threads, **options)
    load = 1000 * (time.perf_counter() - started)
    first = _time_call(runtime, _noise(runtime, 1))
    times, peaks = [], []
    for batch in batch_sizes:
        images = _noise(runtime, batch)
        times.append(_time_calls(runtime, images, seconds, max_runs))
        peaks.append(_resident_mb("VmHWM"))
    timing = Timing(
        runtime=runtime.name, threads=runtime.threads, load_ms=load, first_ms=first,
        base_mb=base, peak_mb=peaks, times_ms=times,
    )  # fmt: skip
    return asdict(timing)


def _noise(runtime: Runtime, batch: int) -> Pixels:
    shape = (batch, *runtime.card.preprocessing.input_shape)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def _time_calls(
    runtime: Runtime, images: Pixels, seconds: float, most: int
) -> list[float]:
    """Return the milliseconds of each call, after warming up."""
    for _ in range(_WARM_UP):
        runtime.run(images)
    times: list[float] = []
    while len(times) < most and (len(times) < _MIN_RUNS or sum(times) < 1000 * seconds):
        times.append(_time_call(runtime, images))
    return times


def _time_call(runtime: Runtime, images: Pixels) -> float:
    started = time.perf_counter()
    runtime.run(images)
    return 1000 * (time.perf_counter() - started)


def _resident_mb(kind: str) -> float | None:
    """Return resident megabytes now (VmRSS) or at their peak (VmHWM); see proc(5).

    `getrusage` would include the memory of the parent when it started this process.
    """
    with contextlib.suppress(OSError):
        for line in _STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith(f"{kind}:"):
                return int(line.split()[1]) * 1024 / 1e6
    return None


def _latency(timings: Sequence[Timing], batch: int, place: int) -> Latency:
    times = [time for each in timings for time in each.times_ms[place]]
    memory = [(each.base_mb, each.peak_mb[place]) for each in timings]
    grown = [peak - base for base, peak in memory if peak and base]
    return Latency.of(
        times, batch=batch, threads=timings[0].threads,
        load_ms=_median([each.load_ms for each in timings]),
        first_ms=_median([each.first_ms for each in timings]),
        memory_mb=_median(grown),
        peak_mb=_median([peak for _, peak in memory if peak]),
    )  # fmt: skip


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None


def benchmark_table(
    measurements: Sequence[Measurement],
) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of a table of measurements."""
    columns = ["file", "size", "batch", *LATENCY_COLUMNS]
    rows = []
    for each in measurements:
        cells = [each.file, f"{each.bytes / 1e6:,.2f} MB", str(each.latency.batch)]
        rows.append([*cells, *latency_cells(each.latency, ",.1f")])
    return columns, rows


def latency_cells(latency: Latency | None, rate: str) -> list[str]:
    """Return the cells of a row in `LATENCY_COLUMNS`."""
    if latency is None:
        return ["-"] * len(LATENCY_COLUMNS)
    times = (latency.median_ms, latency.p90_ms, latency.p99_ms)
    memory = (latency.memory_mb, latency.peak_mb)
    return [
        *(f"{each:,.2f} ms" for each in times),
        format(latency.images_per_second, rate),
        "-" if latency.cold_ms is None else f"{latency.cold_ms:,.0f} ms",
        *("-" if each is None else f"{each:,.0f} MB" for each in memory),
    ]


def benchmark_note(measurements: Sequence[Measurement]) -> str:
    """Return the text below the table: machine, runtimes, columns and spread."""
    first = measurements[0].latency
    spread = max(max(m.medians_ms) / min(m.medians_ms) - 1 for m in measurements)
    runtimes = ", ".join(sorted({each.runtime for each in measurements}))
    return (
        f"{first.threads} threads on {first.processor}; {runtimes}. Cold start is the "
        "time to open the file and to run it once; memory is what file and calls "
        "needed, peak includes the libraries. The medians of the processes are within "
        f"{spread:.0%} of each other{_BUSY if spread > _MAX_SPREAD else ''}."
    )
