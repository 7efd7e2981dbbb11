"""Run every benchmark once and write one file of results: `make bench`.

Run: python benchmarks/bench.py [--quick | --all] [--peers PYTHON] [--results FOLDER]
     [--only tools]

It takes half an hour on two cores, with `--all` twice that. The scripts run one
after another, each with its own fresh processes. A script that fails is named at the
end; the others still run. The results are written after each benchmark to
`benchmarks/results/DATE.json` (`--quick`: `DATE-quick`; on another machine on the same
day: `DATE-2`); `benchmarks/table.py` makes the tables and the plot of the docs.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import harness

HERE = Path(__file__).parent
Options = tuple[str, ...]


@dataclass(frozen=True)
class Benchmark:
    """One run of a script.

    Attributes:
        name: Its name in the results.
        script: The script.
        usual: Options of a usual run.
        quick: Options of a quick run; None where a quick run skips it.
        extra: Whether only `--all` and `--only` run it.
        files: Whether it shares the folder of exported models.
        peers: Whether it takes the Python of the other libraries' environment.
    """

    name: str
    script: str
    usual: Options
    quick: Options | None = None
    extra: bool = False
    files: bool = False
    peers: bool = True


_TWICE = ("--rounds", "2")
_ONCE = ("--rounds", "1")
_SMALL = (*_TWICE, "--models", "resnet18", "--batches", "1")
_MODELS = ("--models", "resnet20", "resnet50")
_ONE = ("--models", "resnet50", "--batches", "1")
_EIGHT = (*_TWICE, "--models", "resnet50", "--batches", "8")
_COMPILED = ("--libraries", "reszoo", "torch.compile", "KerasHub")
_INT8 = (
    "onnx-int8",
    "tflite-int8",
    "quantize_static, defaults",
    "quantize_static, minmax",
)
BENCHMARKS = (
    Benchmark("tools", "tools", _TWICE, _TWICE),
    Benchmark("inference", "inference", (*_TWICE, *_ONE), files=True),
    Benchmark(
        "inference_int8",
        "inference",
        (*_ONE, "--rounds", "4", "--only", *_INT8),
        files=True,
        peers=False,
    ),
    Benchmark("first_answer", "first_answer", ("--rounds", "4"), files=True),
    Benchmark("saved_model", "saved_model", ("--rounds", "4"), peers=False),
    Benchmark("training", "training", (*_TWICE, *_MODELS), (*_TWICE, *_MODELS[:2])),
    Benchmark("input", "input", _TWICE, _TWICE),
    Benchmark("export", "export", _ONCE, peers=False),
    Benchmark("losses", "losses", _ONCE),
    Benchmark("inference18", "inference", _SMALL, _SMALL, extra=True, files=True),
    Benchmark("training18", "training", (*_TWICE, "--models", "resnet18"), extra=True),
    Benchmark("inference8", "inference", _EIGHT, extra=True, files=True),
    Benchmark(
        "training_compiled", "training", (*_TWICE, *_ONE[:2], *_COMPILED), extra=True
    ),
    Benchmark("growth", "growth", _ONCE, extra=True, peers=False),
)


def run(
    benchmark: Benchmark, options: Options, root: Path, peers: str | None
) -> dict[str, Any] | None:
    """Run one script and return its results; None where it failed."""
    output = root / f"{benchmark.name}.json"
    command = [sys.executable, str(HERE / f"{benchmark.script}.py"), *options]
    command += ["--json", str(output)]
    if benchmark.files:
        command += ["--files", str(root / "files")]
    if peers and benchmark.peers:
        command += ["--peers", peers]
    print(f"\n{' '.join(command[1:])}", flush=True)
    begun = time.monotonic()
    if subprocess.run(command, check=False).returncode:
        return None
    results: dict[str, Any] = json.loads(output.read_text())
    return {**results, "minutes": round((time.monotonic() - begun) / 60, 1)}


def options_of(benchmark: Benchmark, given: argparse.Namespace) -> Options | None:
    """Return the options of a benchmark; None where it is not to run."""
    if given.only and benchmark.name not in given.only:
        return None
    if given.quick:
        return benchmark.quick
    if benchmark.extra and not (given.all or given.only):
        return None
    return benchmark.usual


def results_file(folder: Path, name: str) -> Path:
    """Return where this machine's results go: never to another machine's file."""
    here = harness.machine()
    for number in itertools.count(1):
        file = folder / f"{name}{f'-{number}' if number > 1 else ''}.json"
        if not file.exists():
            break
        results = json.loads(file.read_text())
        if all(each["machine"] == here for each in results.values()):
            break
    return file


def bench(given: argparse.Namespace) -> list[str]:
    """Run the benchmarks; return the names of those that failed."""
    from reszoo.files import write_json

    today = datetime.now(UTC).strftime("%Y-%m-%d")
    given.results.mkdir(parents=True, exist_ok=True)
    file = results_file(given.results, today + ("-quick" if given.quick else ""))
    results = json.loads(file.read_text()) if file.exists() else {}
    failed = []
    with tempfile.TemporaryDirectory() as root:
        for benchmark in BENCHMARKS:
            options = options_of(benchmark, given)
            if options is None:
                continue
            found = run(benchmark, options, Path(root), given.peers)
            if found is None:
                failed.append(benchmark.name)
                continue
            results[benchmark.name] = found
            write_json(file, results)
    print(f"\nResults: {file}")
    return failed


def main() -> None:
    """Run them."""
    names = [benchmark.name for benchmark in BENCHMARKS]
    parser = argparse.ArgumentParser(description=__doc__)
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--quick", action="store_true", help="a few minutes")
    extent.add_argument(
        "--all", action="store_true", help="the extra benchmarks as well"
    )
    parser.add_argument(
        "--peers", help="Python of the environment with the other libraries"
    )
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--only", nargs="+", choices=names, help="run these")
    failed = bench(parser.parse_args())
    if failed:
        raise SystemExit(f"Failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
