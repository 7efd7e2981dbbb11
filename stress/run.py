"""Stress tests at scale, in parts that add up: `make stress MINUTES=30`.

Run: python stress/run.py [--minutes 30] [--only kills faults mutations ...]
     [--rows train export ...] [--results FILE]

kills         1,000 processes ended by `kill -9` in train, export, resize, predict and
              push, and resumed (kills.py)
faults        10,000 calls of the operating system that fail (injected_faults.py)
mutations     1,000,000 damaged files, read by every reader (mutated_files.py)
defects       every kind of defect, planted in exported files (seeded_defects.py)
good_exports  300 correct exports of random models: no false alarm (false_alarms.py)

Each run goes on where the last one ended, with new seeds, until the targets are
reached; results, seeds, durations, machine and commit are added to
`benchmarks/results/DATE-stress.json`, of the day of the first run. Exits with 1 if
anything failed.
"""

import argparse
import sys
import time
from pathlib import Path

import false_alarms
import injected_faults
import kills
import mutated_files
import seeded_defects
from forks import load
from preloaded import preload
from results import ROOT, Results, Work, carry_out, results_file

PARTS: dict[str, tuple[Work, dict[str, int]]] = {
    "kills": (kills.work, kills.TARGETS),
    "faults": (injected_faults.work, injected_faults.TARGETS),
    "mutations": (mutated_files.work, mutated_files.TARGETS),
    "defects": (seeded_defects.work, seeded_defects.TARGETS),
    "good_exports": (false_alarms.work, false_alarms.TARGETS),
}
TARGETS = {
    (part, row): n for part, (_, rows) in PARTS.items() for row, n in rows.items()
}


def table(results: Results) -> str:
    """Return a line for each row: trials, target, hours, failures."""
    lines = [f"{'':34}{'done':>10}{'target':>11}{'minutes':>9}{'failed':>8}"]
    totals: dict[str, list[float]] = {}
    for (part, row), target in TARGETS.items():
        runs = results.of(part, row)
        done, failed = (sum(run[key] for run in runs) for key in ("done", "failed"))
        minutes = sum(run["seconds"] for run in runs) / 60
        numbers = (done, target, minutes, failed)
        total = totals.setdefault(part, [0, 0, 0, 0])
        totals[part] = [a + b for a, b in zip(total, numbers, strict=True)]
        lines.append(_line(f"{part} {row}", numbers))
    return "\n".join([*lines, *(_line(part, each) for part, each in totals.items())])


def _line(name: str, numbers: "list[float] | tuple[float, ...]") -> str:
    done, target, minutes, failed = numbers
    return f"{name:34}{done:10,.0f}{target:11,.0f}{minutes:9.1f}{failed:8,.0f}"


def stress(results: Results, keys: list[tuple[str, str]], seconds: float) -> int:
    """Share the time between parts, and between the rows of each; count failures."""
    failed, parts = 0, [*dict.fromkeys(part for part, _ in keys)]
    end = time.monotonic() + seconds
    for number, part in enumerate(parts):
        now = time.monotonic()
        until = now + (end - now) / (len(parts) - number)
        rows = [row for each, row in keys if each == part]
        for place, row in enumerate(rows):
            left = (until - time.monotonic()) / (len(rows) - place)
            started, target = time.monotonic(), TARGETS[part, row]
            failed += carry_out(results, part, row, PARTS[part][0], target, left)
            done, took = results.done(part, row), time.monotonic() - started
            print(f"{part} {row}: {done:,} of {target:,}, {took:.0f} s", flush=True)
    return failed


def main() -> None:
    """Go on for some time, and print what there is then."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=1e6)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=[*PARTS])
    parser.add_argument("--rows", nargs="+", help="of these parts; all by default")
    parser.add_argument("--results", type=Path)
    given = parser.parse_args()
    preload()
    file = given.results or results_file(ROOT / "benchmarks" / "results", TARGETS)
    results = Results(file)
    keys = [
        (part, row)
        for part, row in TARGETS
        if part in given.only and (not given.rows or row in given.rows)
    ]
    load()
    failed = stress(results, keys, given.minutes * 60)
    print(f"\n{file}\n{table(results)}")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
