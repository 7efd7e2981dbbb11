"""Does `reszoo predict --resume` give the same file however often it is killed?

Run: python stress/predict_kills.py MODEL INPUT [--kills 10] [--seed 0] [--suffix .csv]

The inputs are classified without interruption, and then by processes that are ended by
`kill -9` at moments drawn over the length of the whole, each continuing the last. Until
the end no output may exist under its name; then it must have the same bytes, and
nothing else may be left beside it. Exits 1 if any of this fails.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def start(model: str, inputs: str, output: Path, *more: str) -> subprocess.Popen[bytes]:
    """Start the command in a process of its own."""
    words = [sys.executable, "-m", "reszoo", "predict", model, inputs]
    return subprocess.Popen(
        [*words, "--output", str(output), *more],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def rows_on_disk(output: Path) -> int:
    """Return how many rows the journal of an unfinished output tells of."""
    journal = output.with_name(f".{output.name}.partial") / "journal"
    lines = journal.read_text().split("\n")[:-1] if journal.exists() else []
    return int(lines[-1][1:].split(",")[0]) if len(lines) > 1 else 0


def is_killed(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """End a process after a while; return whether it was still running."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True
    return False


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
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        whole, output = (Path(name) / f"{each}{options.suffix}" for each in ("a", "b"))
        started = time.perf_counter()
        code = start(options.model, options.input, whole).wait()
        seconds = time.perf_counter() - started
        size = whole.stat().st_size
        print(f"without a kill: exit {code}, {seconds:.1f} s, {size:,} bytes")
        for number in range(1, options.kills + 1):
            process = start(options.model, options.input, output, "--resume")
            # All kills together take two thirds of the whole, on average.
            moment = draw.uniform(0, 4 / 3 * seconds / options.kills)
            if not is_killed(process, moment):
                raise SystemExit("It ended before the last kill: give it more images.")
            if output.exists():
                raise SystemExit("The output has its name before it is complete.")
            print(f"kill {number} after {moment:.1f} s: {rows_on_disk(output):,} rows")
        again = start(options.model, options.input, output, "--resume").wait()
        left = sorted(path.name for path in Path(name).iterdir())
        same = output.exists() and output.read_bytes() == whole.read_bytes()
    print(f"continued to the end: exit {again}, same bytes: {same}, files: {left}")
    if not same or again != code or left != [whole.name, output.name]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
