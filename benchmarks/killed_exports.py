"""What does a killed export leave behind? Real processes, ended at random moments.

Run: python benchmarks/killed_exports.py [--kills 30] [--seed 0] [--formats LIST]

A ResNet-20 is exported by `reszoo export` and ended by `kill -9` or Ctrl-C at moments
drawn over the whole length of an export, some as soon as an earlier export is moved
aside. Afterwards the folder must hold nothing, the earlier export byte for byte, or
the new one in full, with its manifest's sha256 and no problems; no process may keep
running, Ctrl-C must leave no other files, and the next export must succeed and tidy up.
Linux only. Exits 1 if any of this fails.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from good_exports import randomise

# Of processes whose parent is gone; they look for it at once.
_GRACE = 10.0
# Seconds: as often as an end is looked for, where it has an occasion and no moment.
_GLANCE = 0.0005
# How often a whole export follows a kill.
_EVERY = 4
# Where this runs in the background, Ctrl-C is ignored and processes inherit that.
_RUN = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from reszoo.cli import main; main()"
)


@dataclass(frozen=True)
class Plan:
    """When and how an export is ended.

    Attributes:
        how: The signal.
        moment: Seconds after the start; None as soon as the earlier one is aside.
        earlier: Whether an export is there already.
    """

    how: signal.Signals
    moment: float | None
    earlier: bool


@dataclass(frozen=True)
class Left:
    """What was found afterwards.

    Attributes:
        code: How the process ended.
        found: "nothing", "the earlier one", "the new one", or what else it is.
        wrong: What should not be.
    """

    code: int
    found: str
    wrong: tuple[str, ...]


class Scene:
    """A folder with two checkpoints, and the exports made of them."""

    def __init__(self, folder: Path, formats: str) -> None:
        self.folder, self.formats = folder, formats
        self.output = folder / "exports" / "model"
        self.output.parent.mkdir()
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        for seed, name in enumerate(("earlier", "new")):
            _checkpoint(folder / f"{name}.safetensors", seed)
        self.seconds = 0.0
        self.known: dict[str, dict[str, str]] = {}
        for name in ("earlier", "new"):
            started = time.perf_counter()
            self.start(name).wait()
            self.seconds = time.perf_counter() - started
            self.known[name] = _digests(self.output)
            shutil.copytree(self.output, folder / name)
        # What runtimes leave in the temporary folder is not of the kill.
        self.usual = {each.name for each in self.temporary.iterdir()}
        if self.known["earlier"] == self.known["new"]:
            raise SystemExit("both checkpoints gave the same export")

    def start(self, name: str) -> "subprocess.Popen[bytes]":
        """Begin to export one of the checkpoints, in a session of its own."""
        words = ["export", f"{name}.safetensors", "--output", str(self.output)]
        words += ["--formats", self.formats, "--overwrite"]
        with (self.folder / "output.txt").open("wb") as output:
            return subprocess.Popen(
                [sys.executable, "-c", _RUN, *words],
                cwd=self.folder,
                env=os.environ | {"TMPDIR": str(self.temporary)},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def printed(self) -> str:
        """Return what the last export printed."""
        return (self.folder / "output.txt").read_text(
            encoding="utf-8", errors="replace"
        )

    def carry_out(self, plan: Plan) -> Left:
        """End an export and look at what is left."""
        before = "the earlier one" if plan.earlier else "nothing"
        self._set(plan.earlier)
        wrong: list[str] = []
        process = self.start("new")
        self._wait(process, plan.moment)
        # Ctrl-C reaches every process of a terminal, `kill -9` one.
        if plan.how is signal.SIGINT and process.poll() is None:
            os.killpg(process.pid, plan.how)
        else:
            process.send_signal(plan.how)
        code = process.wait()
        wrong += _living(process.pid)
        found = self.found()
        if found not in (before, "the new one"):
            wrong.append(f"it left {found} in the place of {before}")
        if plan.how is signal.SIGINT:
            # The earlier export may still be on its way out when the new one is in.
            aside = f".{self.output.name}.old" if found == "the new one" else ""
            wrong += [f"it left {name}" for name in self.rest() if name != aside]
            if "Traceback" in self.printed():
                wrong.append(f"it printed a traceback: ...{self.printed()[-300:]}")
        return Left(code, found, tuple(wrong))

    def again(self) -> list[str]:
        """Export to the end; return what is wrong."""
        _empty(self.temporary)
        code = self.start("new").wait()
        wrong = [f"the next export ended with {code}: {self.printed()}"] if code else []
        if self.found() != "the new one":
            wrong.append(f"the next export left {self.found()}")
        return wrong + [f"the next export left {name}" for name in self.rest()]

    def rest(self) -> list[str]:
        """Return the names of all files but the export."""
        inside = {path.name for path in self.output.parent.iterdir()}
        others = {each.name for each in self.temporary.iterdir()} - self.usual
        return sorted(inside - {self.output.name}) + sorted(others)

    def found(self) -> str:
        """Return which export has the final name."""
        if not self.output.exists():
            return "nothing"
        digests = _digests(self.output)
        for name, known in self.known.items():
            if digests == known:
                return f"the {name} one"
        return f"something else ({len(digests)} files, {_trouble(self.output)})"

    def _set(self, earlier: bool) -> None:
        """Put the earlier export at the output, or nothing."""
        _empty(self.temporary)
        if not earlier:
            _empty(self.output.parent)
        elif self.found() != "the earlier one":
            shutil.rmtree(self.output, ignore_errors=True)
            shutil.copytree(self.folder / "earlier", self.output)

    def _wait(self, process: Any, moment: float | None) -> None:
        aside = self.output.with_name(f".{self.output.name}.old")
        end = time.perf_counter() + (self.seconds * 3 if moment is None else moment)
        while process.poll() is None and time.perf_counter() < end:
            if moment is None and aside.exists():
                return
            time.sleep(_GLANCE if moment is None else 0.01)


def _checkpoint(path: Path, seed: int) -> None:
    import reszoo

    model = reszoo.build("resnet20", classes=10, input_shape=(32, 32, 3))
    randomise(model, np.random.default_rng(seed))
    reszoo.save(model, path)


def _digests(folder: Path) -> dict[str, str]:
    """Return the sha256 of all that the manifest vouches for, and other names.

    What is not as the manifest says has no digest of its own.
    """
    from reszoo_export.manifest import MANIFEST_FILE, size_and_hash

    try:
        content = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        digests = {each["file"]: each["sha256"] for each in content["files"]}
        digests |= content["beside"]
        for name, digest in digests.items():
            if size_and_hash(folder / name)[1] != digest:
                digests[name] = "not what was verified"
        bad = any(each["verification"]["problems"] for each in content["files"])
    except (OSError, ValueError, KeyError) as error:
        return {"manifest": f"{type(error).__name__}: {error}"}
    others = {path.name: "" for path in folder.iterdir() if path.name not in digests}
    return {**digests, **others, "problems": str(bad)}


def _trouble(folder: Path) -> str:
    return ", ".join(f"{name}: {digest}" for name, digest in _digests(folder).items())


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _living(session: int) -> list[str]:
    """Return the processes of a session that are still running after a moment."""
    end = time.perf_counter() + _GRACE
    while (found := _members(session)) and time.perf_counter() < end:
        time.sleep(0.1)
    return [f"process {pid} is still running: {command}" for pid, command in found]


def _members(session: int) -> list[tuple[int, str]]:
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            fields = (place / "stat").read_text().rpartition(")")[2].split()
            command = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (OSError, UnicodeDecodeError):
            continue
        # A zombie waits to be buried and does nothing.
        if int(fields[3]) == session and fields[0] != "Z":
            found.append((int(place.name), command[-200:]))
    return found


def plans(kills: int, seconds: float, draw: np.random.Generator) -> list[Plan]:
    """Draw what is done: `kill -9` twice as often as Ctrl-C, half with an earlier one.

    Moments lie evenly over the length of an export; a sixth waits for the swap.
    """
    made = []
    for number, part in enumerate(draw.permutation(kills)):
        how = signal.SIGINT if number % 3 == 2 else signal.SIGKILL
        swap = number % 6 in (1, 5) and number % 12 > 3
        moment = None if swap else (part + draw.random()) / kills * seconds * 1.05
        made.append(Plan(how, moment, swap or number % 2 == 1))
    return made


def main() -> int:
    """Print a line for each export that was ended."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--formats", default="saved_model,tflite,onnx,onnx-fp16")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="killed-") as place:
        scene = Scene(Path(place), given.formats)
        print(f"An export takes {scene.seconds:.1f} s.", flush=True)
        drawn = plans(given.kills, scene.seconds, np.random.default_rng(given.seed))
        for number, plan in enumerate(drawn):
            left = scene.carry_out(plan)
            wrong = list(left.wrong)
            if number % _EVERY == _EVERY - 1 or number == len(drawn) - 1:
                wrong += scene.again()
            results.append({**asdict(plan), **asdict(left), "wrong": wrong})
            when = "swap" if plan.moment is None else f"{plan.moment:.1f} s"
            problems = "".join(f"\n      {each}" for each in wrong)
            print(
                f"{number:3}  {plan.how.name:8} {when:>7}  "
                f"{'earlier' if plan.earlier else 'nothing'} there, then {left.found}, "
                f"exit {left.code}{problems}",
                flush=True,
            )
    bad = sum(bool(each["wrong"]) for each in results)
    print(f"{bad} of {len(results)} ended exports left something wrong")
    if given.json:
        text = json.dumps(results, indent=2, default=str)
        given.json.write_text(text + "\n", encoding="utf-8")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
