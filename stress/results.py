"""Results of stress tests, which add up over many runs in one file."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
# Failures that are kept of one run.
_KEPT = 200


@dataclass
class Outcome:
    """What came of the trials with the numbers `first` to `last - 1`, their seeds.

    Attributes:
        done: Number of kills, faults or files.
        results: How often something was found.
        failures: What is wrong, by trial.
        highest: Largest values, such as of memory; of several outcomes the largest.
        sums: Other numbers, which are added.
        seconds: How long it took.
    """

    first: int
    last: int
    done: int = 0
    results: dict[str, int] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    highest: dict[str, float] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    def count(self, result: str, times: int = 1) -> None:
        """Count a result."""
        self.results[result] = self.results.get(result, 0) + times


# Yields outcomes from a number on until a time of `time.monotonic`.
Work = Callable[[str, int, float], Iterator[Outcome]]


class Results:
    """A file of results: a list of runs, each of one part, row, commit and machine.

    Args:
        path: The file, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        from harness import machine

        self.path = path
        self._here = {"commit": _commit(), "machine": machine()}
        text = path.read_text(encoding="utf-8") if path.exists() else '{"runs": []}'
        self.runs: list[dict[str, Any]] = json.loads(text)["runs"]

    def of(self, part: str, row: str) -> list[dict[str, Any]]:
        """Return the runs of one row."""
        return [run for run in self.runs if (run["part"], run["row"]) == (part, row)]

    def done(self, part: str, row: str) -> int:
        """Return how many trials were done."""
        return sum(run["done"] for run in self.of(part, row))

    def next_number(self, part: str, row: str) -> int:
        """Return the first number that no run had."""
        return max((run["last"] for run in self.of(part, row)), default=0)

    def add(self, part: str, row: str, outcome: Outcome) -> None:
        """Add an outcome and write the file."""
        run = self._run_of(part, row, outcome)
        run["last"] = outcome.last
        run["done"] += outcome.done
        run["seconds"] = round(run["seconds"] + outcome.seconds, 2)
        for name in ("results", "sums"):
            for key, value in getattr(outcome, name).items():
                run[name][key] = run[name].get(key, 0) + value
        for key, value in outcome.highest.items():
            run["highest"][key] = max(run["highest"].get(key, 0), value)
        room = _KEPT - len(run["failures"])
        run["failures"] |= dict([*outcome.failures.items()][:room])
        run["failed"] += len(outcome.failures)
        self._write()

    def _run_of(self, part: str, row: str, outcome: Outcome) -> dict[str, Any]:
        runs = self.of(part, row)
        if runs and runs[-1]["last"] == outcome.first:
            same = {key: runs[-1][key] for key in self._here} == self._here
            if same:
                return runs[-1]
        today = datetime.now(UTC).strftime("%Y-%m-%d")
        run: dict[str, Any] = {"part": part, "row": row, "date": today, **self._here}
        run |= {"first": outcome.first, "last": outcome.first, "done": 0, "seconds": 0}
        run |= {"failed": 0, "results": {}, "sums": {}, "highest": {}, "failures": {}}
        self.runs.append(run)
        return run

    def _write(self) -> None:
        from reszoo.files import write_json

        write_json(self.path, {"runs": self.runs})


def _commit() -> str:
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    found = subprocess.run(words, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def results_file(folder: Path, targets: Mapping[tuple[str, str], int]) -> Path:
    """Return the newest file that has not reached its targets, or today's."""
    for path in sorted(folder.glob("*-stress.json"), reverse=True):
        results = Results(path)
        if any(results.done(*key) < least for key, least in targets.items()):
            return path
    return folder / f"{datetime.now(UTC).strftime('%Y-%m-%d')}-stress.json"


def carry_out(
    results: Results, part: str, row: str, work: Work, target: int, seconds: float
) -> int:
    """Do what a row lacks, for some seconds; return the number of failures."""
    until, failed = time.monotonic() + seconds, 0
    shown = time.monotonic()
    if results.done(part, row) >= target:
        return 0
    outcomes = work(row, results.next_number(part, row), until)
    for outcome in outcomes:
        results.add(part, row, outcome)
        failed += len(outcome.failures)
        done = results.done(part, row)
        for trial, why in outcome.failures.items():
            print(f"    FAILED {part} {row} {trial}: {why[:300]}", flush=True)
        if time.monotonic() - shown > 20:
            shown = time.monotonic()
            print(f"  {part} {row}: {done:,} of {target:,}", flush=True)
        if done >= target:
            outcomes.close()  # type: ignore[attr-defined]
            break
    return failed
