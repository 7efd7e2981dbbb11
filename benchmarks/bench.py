"""Ask every question once and write one file of answers: `make bench`.

Run: python benchmarks/bench.py [--quick | --all] [--peers PYTHON] [--results FOLDER]
     [--only tools]

It takes half an hour on two cores, with `--all` three quarters. The scripts run one
after another, each with its own fresh processes. A script that fails is told of at the
end and does not keep the others from running. The results are written after each answer
as `benchmarks/results/DATE.json` (`--quick`: `DATE-quick`; on another machine on the
same day: `DATE-2`); `benchmarks/table.py` makes the README's table and plot of them.
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
class Question:
    """One run of a script.

    Attributes:
        name: Of its answer among the results.
        script: The script.
        usual: Options of a whole run.
        quick: Options of a quick run; None where the question is left out of one.
        late: Whether only `--all` and `--only` ask it.
        files: Whether it shares the folder of exported nets.
        peers: Whether it takes their Python.
    """

    name: str
    script: str
    usual: Options
    quick: Options | None = None
    late: bool = False
    files: bool = False
    peers: bool = True


_TWICE = ("--rounds", "2")
_ONCE = ("--rounds", "1")
_SMALL = (*_TWICE, "--models", "resnet18", "--batches", "1")
_NETS = ("--models", "resnet20", "resnet50")
_LARGE = (*_TWICE, "--models", "resnet50", "--batches", "1", "8")
QUESTIONS = (
    Question("tools", "tools", _TWICE, _TWICE),
    Question("inference", "inference", _LARGE, files=True),
    Question("first_answer", "first_answer", ("--rounds", "4"), files=True),
    Question("training", "training", (*_TWICE, *_NETS), (*_TWICE, *_NETS[:2])),
    Question("input", "input", _TWICE, _TWICE),
    Question("export", "export", _TWICE, peers=False),
    Question("losses", "losses", _ONCE),
    Question("inference18", "inference", _SMALL, _SMALL, late=True, files=True),
    Question("training18", "training", (*_TWICE, "--models", "resnet18"), late=True),
    Question("growth", "growth", _ONCE, late=True, peers=False),
)


def ask(
    question: Question, options: Options, root: Path, peers: str | None
) -> dict[str, Any] | None:
    """Run one script and return what it found; None where it failed."""
    answer = root / f"{question.name}.json"
    command = [sys.executable, str(HERE / f"{question.script}.py"), *options]
    command += ["--json", str(answer)]
    if question.files:
        command += ["--files", str(root / "files")]
    if peers and question.peers:
        command += ["--peers", peers]
    print(f"\n{' '.join(command[1:])}", flush=True)
    begun = time.monotonic()
    if subprocess.run(command, check=False).returncode:
        return None
    told: dict[str, Any] = json.loads(answer.read_text())
    return {**told, "minutes": round((time.monotonic() - begun) / 60, 1)}


def options_of(question: Question, given: argparse.Namespace) -> Options | None:
    """Return how a question is asked, None where it is not."""
    if given.only and question.name not in given.only:
        return None
    if given.quick:
        return question.quick
    if question.late and not (given.all or given.only):
        return None
    return question.usual


def results_file(folder: Path, name: str) -> Path:
    """Return where this machine's answers go: not among those of another one."""
    here = harness.machine()
    for number in itertools.count(1):
        file = folder / f"{name}{f'-{number}' if number > 1 else ''}.json"
        if not file.exists():
            break
        answers = json.loads(file.read_text())
        if all(each["machine"] == here for each in answers.values()):
            break
    return file


def bench(given: argparse.Namespace) -> list[str]:
    """Ask all questions; return the names of those without an answer."""
    from reszoo.files import write_json

    today = datetime.now(UTC).strftime("%Y-%m-%d")
    given.results.mkdir(parents=True, exist_ok=True)
    file = results_file(given.results, today + ("-quick" if given.quick else ""))
    answers = json.loads(file.read_text()) if file.exists() else {}
    failed = []
    with tempfile.TemporaryDirectory() as root:
        for question in QUESTIONS:
            options = options_of(question, given)
            if options is None:
                continue
            answer = ask(question, options, Path(root), given.peers)
            if answer is None:
                failed.append(question.name)
                continue
            answers[question.name] = answer
            write_json(file, answers)
    print(f"\nLook at: {file}")
    return failed


def main() -> None:
    """Ask them."""
    names = [question.name for question in QUESTIONS]
    parser = argparse.ArgumentParser(description=__doc__)
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--quick", action="store_true", help="a few minutes")
    extent.add_argument("--all", action="store_true", help="late questions as well")
    parser.add_argument("--peers", help="python of an environment with the peers")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--only", nargs="+", choices=names, help="whenever asked")
    failed = bench(parser.parse_args())
    if failed:
        raise SystemExit(f"No answer from: {', '.join(failed)}")


if __name__ == "__main__":
    main()
