"""Comparisons: fresh processes, interleaved, compared pair by pair.

A contender is a command that prints one JSON line: `samples`, which are rates (more is
better), and any other figures. `sampled` measures them, `emit` prints the line. The
processor's own roof, a large matrix product (roof.py), is measured in the same rounds.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

THREADS = 2
_RESAMPLES = 2000
# The share of the processors that a large matrix product gets on a quiet machine.
_QUIET = 0.85
_NAMES = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")

# Instruction sets, by Linux' names, that make one processor of a name several times as
# fast as another.
_WIDE = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")

# What one process printed.
Run = dict[str, Any]
Runs = dict[str, list[Run]]


@dataclass(frozen=True)
class Contender:
    """One side of a comparison.

    Attributes:
        name: Its name in tables.
        command: The command that starts it.
        unit: The unit of its samples.
    """

    name: str
    command: Sequence[str]
    unit: str = "images/s"


@dataclass(frozen=True)
class Target:
    """How many times as fast as a baseline a contender should be, at least."""

    ours: str
    theirs: str
    least: float


@dataclass(frozen=True)
class Ratio:
    """Ours over theirs: the median over pairs, and the middle 95 % of resamples."""

    ours: str
    theirs: str
    median: float
    low: float
    high: float

    def verdict(self, least: float) -> str:
        """Return "met", "below target", or "no verdict" if the spread is too wide."""
        unsure = self.low <= 1 <= self.high
        if unsure and self.high - self.low > abs(least - 1):
            return "no verdict"
        return "met" if self.median >= least else "below target"


class Clock:
    """Takes the time of equal steps, and what the process and its children use."""

    def __init__(self) -> None:
        self._marks: list[tuple[float, float]] = []

    def tick(self, *_: object) -> None:
        """End one step and begin the next."""
        self._marks.append((time.perf_counter(), processor_seconds()))

    def run(self, items: int, warm_up: int) -> Run:
        """Return the rates, processor milliseconds an item, and megabytes.

        Args:
            items: How many a step processes.
            warm_up: Steps to leave out, one or more.
        """
        wall, used = np.diff(np.array(self._marks[warm_up - 1 :]), axis=0).T
        return {
            "samples": (items / wall).tolist(),
            "cpu_ms": 1000 * used.sum() / (items * len(used)),
            # Of the processors: small on a busy machine.
            "share": used.sum() / (wall.sum() * THREADS),
            "megabytes": megabytes(),
        }


def sampled(
    step: Callable[[], object], *, items: int, warm_up: int, samples: int
) -> Run:
    """Carry out equal steps and return the run, as `Clock.run` does."""
    clock = Clock()
    for _ in range(warm_up + samples):
        step()
        clock.tick()
    return clock.run(items, warm_up)


def megabytes() -> float:
    """Return the memory of this process and its children, shared pages by share."""
    lines = [
        line
        for process in _family()
        for line in (process / "smaps_rollup").read_text().splitlines()
    ]
    return sum(int(each.split()[1]) for each in lines if each.startswith("Pss:")) / 1024


def memory(kind: str) -> int:
    """Return bytes of this process: "VmRSS" held now, "VmHWM" held at most."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(kind))
    return 1024 * int(line.split()[1])


def seconds_since_start() -> float:
    """Return how long this process has run, to a hundredth (proc(5), starttime)."""
    ticks = int(_status(Path("/proc/self"))[19])
    begun = ticks / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - begun


def processor_seconds() -> float:
    """Return the processor time that this process and its children have used."""
    ticks = [sum(map(int, _status(process)[11:13])) for process in _family()]
    return sum(ticks) / os.sysconf("SC_CLK_TCK")


def _family() -> list[Path]:
    """Return the folders in /proc of this process and its children."""
    own = os.getpid()
    all_of_them = Path("/proc").glob("[0-9]*")
    return [p for p in all_of_them if own in (int(p.name), int(_status(p)[1]))]


def _status(process: Path) -> list[str]:
    # The name, in parentheses, may hold anything (proc(5)); processes come and go.
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ["0"] * 50


def emit(run: Run, **facts: object) -> None:
    """Print the JSON line of a contender: its run and other facts."""
    print(json.dumps({**run, **facts}), flush=True)


def order(count: int, turn: int) -> list[int]:
    """Return who comes when: forwards in even rounds, backwards in odd ones."""
    forwards = list(range(count))
    return forwards if turn % 2 == 0 else forwards[::-1]


def measure(contenders: Sequence[Contender], rounds: int) -> Runs:
    """Run every contender once a round, each time in a fresh process.

    Raises:
        SystemExit: One failed; the message ends with its output.
    """
    runs: Runs = {contender.name: [] for contender in contenders}
    for turn in range(rounds):
        for index in order(len(contenders), turn):
            contender = contenders[index]
            with _few_processors():
                run = _run(contender)
            runs[contender.name].append(run)
            middle = np.median(run["samples"])
            line = f"  round {turn + 1}: {contender.name}: {middle:.1f}"
            print(line, file=sys.stderr, flush=True)
    return runs


def _run(contender: Contender) -> Run:
    done = subprocess.run(
        contender.command,
        capture_output=True,
        text=True,
        env=os.environ | dict.fromkeys(_NAMES, str(THREADS)),
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise SystemExit(f"{contender.name} failed:\n{done.stderr[-2000:]}")
    run: Run = json.loads(lines[-1])
    return run


@contextmanager
def _few_processors() -> Iterator[None]:
    """Let what is started see `THREADS` processors, where the system can.

    tf.data and DataLoader count processors; variables do not limit them.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:THREADS])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def compare(runs: Runs, ours: str, theirs: str, seed: int = 0) -> Ratio:
    """Return the ratio of the medians of each pair of runs.

    The interval is of a bootstrap that draws pairs, and samples within each.
    """
    draw = np.random.default_rng(seed)
    pairs = [
        (np.asarray(one["samples"]), np.asarray(other["samples"]))
        for one, other in zip(runs[ours], runs[theirs], strict=True)
    ]
    drawn = [
        np.median(
            [
                _middle(draw.choice(pairs[i][0], len(pairs[i][0])))
                / _middle(draw.choice(pairs[i][1], len(pairs[i][1])))
                for i in draw.integers(0, len(pairs), len(pairs))
            ]
        )
        for _ in range(_RESAMPLES)
    ]
    low, high = np.percentile(drawn, [2.5, 97.5])
    median = np.median([_middle(one) / _middle(other) for one, other in pairs])
    return Ratio(ours, theirs, float(median), float(low), float(high))


def _middle(samples: Any) -> float:
    return float(np.median(samples))


def summary(
    contenders: Sequence[Contender],
    runs: Runs,
    targets: Sequence[Target],
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Return all results as plain JSON values.

    Args:
        contenders: As measured.
        runs: From `measure`.
        targets: The ratios to report and their targets.
        notes: Anything else, such as contenders that were left out.
    """
    ratios = [(compare(runs, t.ours, t.theirs), t) for t in targets]
    return {
        "machine": machine(),
        "threads": THREADS,
        "notes": [*notes, *_warnings(runs)],
        "contenders": {
            each.name: {"unit": each.unit, **_figures(runs[each.name])}
            for each in contenders
        },
        "ratios": [
            {
                **asdict(ratio),
                "claim": target.least,
                "verdict": ratio.verdict(target.least),
            }
            for ratio, target in ratios
        ],
    }


def _warnings(runs: Runs) -> list[str]:
    """Warn if other programs kept the processors busy during the roof."""
    had = [run["share"] for run in runs.get("roof float32", []) if "share" in run]
    if not had or min(had) >= _QUIET:
        return []
    share = f"the roof had {min(had):.0%} of the processors"
    return [f"The machine was busy ({share}): measure again, these do not count."]


def _figures(runs: Sequence[Run]) -> dict[str, Any]:
    samples = np.concatenate([run["samples"] for run in runs])
    low, median, high = np.percentile(samples, [10, 50, 90])
    numbers = {
        name: float(np.median([run[name] for run in runs]))
        for name, value in runs[0].items()
        if isinstance(value, int | float)
    }
    return {
        "median": float(median),
        "p10": float(low),
        "p90": float(high),
        **numbers,
        "runs": list(runs),
    }


def machine() -> dict[str, str]:
    """Return the processor, its instruction sets, the system and Python's version."""
    from reszoo.environment import processor, processor_flags

    flags = processor_flags()
    return {
        "processor": f"{processor()} x {os.cpu_count()}",
        "instructions": ", ".join(each for each in _WIDE if each in flags),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def show(results: Mapping[str, Any]) -> None:
    """Print a summary as tables."""
    about = results["machine"]
    print(f"{about['processor']}, {results['threads']} threads, {about['system']}")
    for name, row in results["contenders"].items():
        if versions := row["runs"][0].get("versions"):
            print(f"  {name}: {', '.join(f'{k} {v}' for k, v in versions.items())}")
    print(f"\n{'':34}{'median':>9}{'p10':>9}{'p90':>9}")
    known = ("unit", "median", "p10", "p90", "runs")
    for name, row in results["contenders"].items():
        numbers = "".join(f"{row[each]:9.1f}" for each in ("median", "p10", "p90"))
        others = (f"{k} {v:.4g}" for k, v in row.items() if k not in known)
        print(f"{name:34}{numbers} {row['unit']}  {', '.join(others)}")
    print()
    for row in results["ratios"]:
        span = f"{row['median']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
        target = f">= {row['claim']:g}: {row['verdict']}"
        print(f"{row['ours']} / {row['theirs']}: {span}  {target}")
    for note in results["notes"]:
        print(note)


def report(results: Mapping[str, Any], file: Path | None) -> None:
    """Print a summary, and write it to a file if there is one."""
    show(results)
    if file:
        from reszoo.files import write_json

        write_json(file, results)


def parser(description: str, rounds: int) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--json", type=Path, help="write all results to this file")
    made.add_argument(
        "--rounds", type=int, default=rounds, help="processes per contender"
    )
    made.add_argument(
        "--peers", help="Python of the environment with the other libraries"
    )
    made.add_argument("--process", nargs="+", help=argparse.SUPPRESS)
    return made


@contextmanager
def kept_folder(named: Path | None) -> Iterator[Path]:
    """Yield the folder that `--files` names, or a temporary one."""
    if named is not None:
        yield named.resolve()
        return
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def versions(*names: str) -> dict[str, str]:
    """Return the versions of installed packages."""
    from importlib.metadata import version

    return {name: version(name) for name in names}
