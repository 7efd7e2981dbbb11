"""Export random models correctly: verification must refuse none of the files.

The models and files are those of `benchmarks/good_exports.py`, each in a process forked
from this one.
"""

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from forks import Fork
from results import Outcome

# Files of each seed of the models, 300 in all.
TARGETS = {"seed 0": 150, "seed 1": 150}
# Seconds that a file may take, on a busy machine.
_PATIENCE = 1800.0


def work(row: str, first: int, until: float) -> Iterator[Outcome]:
    """Yield what verification says of the files from a number on."""
    number, seed = first, int(row.removeprefix("seed "))
    while time.monotonic() < until:
        yield _outcome(number, seed)
        number += 1


def _outcome(number: int, seed: int) -> Outcome:
    from good_exports import alarms

    started, outcome = time.monotonic(), Outcome(number, number + 1, done=1)
    with tempfile.TemporaryDirectory(prefix="good-") as name:
        place = Path(name)
        told = place / "told.json"

        def export() -> None:
            (place / "export").mkdir()
            told.write_text(json.dumps(alarms(number, seed, place / "export")))

        fork = Fork(export, place, place / "log")
        code = fork.wait(_PATIENCE)
        if code == 0:
            found = json.loads(told.read_text())
            outcome.count(found["format"])
            if found["problems"]:
                what = f"{found['model']} as {found['format']}"
                outcome.failures[str(number)] = (
                    f"{what}: {'; '.join(found['problems'])}"
                )
        else:
            outcome.failures[str(number)] = f"exit {code}: {fork.printed()[-300:]}"
    outcome.seconds = time.monotonic() - started
    return outcome
