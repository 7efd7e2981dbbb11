"""Does `reszoo predict --resume` give the same file however often it is killed?

Run: python stress/predict_kills.py MODEL INPUT [--kills 10] [--seed 0] [--suffix .csv]

The inputs are classified without interruption, and then by processes that are ended by
`kill -9` behind random numbers of rows, each continuing the last. Until
the end no output may exist under its name; then it must have the same bytes, and
nothing else may be left beside it. Exits 1 if any of this fails.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def start(model: str, inputs: str, output: Path, *more: str) -> subprocess.Popen[bytes]:
    """Start the command in a process of its own."""
    words = [sys.executable, "-m", "reszoo", "predict", model, inputs]
    return subprocess.Popen(
        [*words, "--output", str(output), "--json", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def rows_on_disk(output: Path) -> int:
    """Return how many rows the journal of an unfinished output tells of."""
    journal = output.with_name(f".{output.name}.partial") / "journal"
    lines = journal.read_text().split("\n")[:-1] if journal.exists() else []
    return int(lines[-1][1:].split(",")[0]) if len(lines) > 1 else 0


def kill_behind(
    process: subprocess.Popen[bytes], output: Path, rows: int, seconds: float
) -> None:
    """End a process some time after it has written a number of rows."""
    while process.poll() is None and rows_on_disk(output) < rows:
        time.sleep(0.01)
    time.sleep(seconds)
    process.kill()
    process.communicate()
    if process.returncode != -signal.SIGKILL:
        raise SystemExit("It ended before the last kill: give it more images.")
    if output.exists():
        raise SystemExit("The output has its name before it is complete.")


def main() -> None:
    """Compare an uninterrupted run with a killed one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("input")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--suffix", default=".csv", help=".csv, .jsonl or .parquet")
    options = parser.parse_args()
    draw, job = random.Random(options.seed), (options.model, options.input)
    with tempfile.TemporaryDirectory() as name:
        whole, output = (Path(name) / f"{each}{options.suffix}" for each in ("a", "b"))
        process = start(*job, whole)
        images = json.loads(process.communicate()[0])["images"]
        code, size = process.returncode, whole.stat().st_size
        print(f"without a kill: exit {code}, {images:,} rows, {size:,} bytes")
        for number in range(1, options.kills + 1):
            # Some while the last rows are found again, most behind new ones; the last
            # one behind two thirds at most.
            share = draw.uniform(0.5, 1) * number / options.kills
            rows = int(share * images * 2 / 3)
            seconds = draw.uniform(0, 0.5)
            kill_behind(start(*job, output, "--resume"), output, rows, seconds)
            print(f"kill {number}: {rows_on_disk(output):,} rows", flush=True)
        process = start(*job, output, "--resume")
        process.communicate()
        left = sorted(path.name for path in Path(name).iterdir())
        same = output.exists() and output.read_bytes() == whole.read_bytes()
    print(f"then: exit {process.returncode}, same bytes: {same}, files: {left}")
    if not same or process.returncode != code or left != [whole.name, output.name]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
