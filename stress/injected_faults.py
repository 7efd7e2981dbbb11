"""Let every call of the operating system fail in turn: nothing is lost, one sentence.

Each command runs in forked processes on small files below one folder, with a library
preloaded (`faults.c`) that makes the n-th read, write, sync, close, rename or open
there fail once: ENOSPC, EIO, EINTR or half of the bytes. Then the command either
succeeds with the usual result, or prints one line and exits with 1 or 2 and leaves what
was there before; and a second call gives the usual result.

Calls of one kind on files whose names differ in digits alone are of one place. A pass
fails the first call of every place with every error, then a second one, and so on; each
pass has other inputs. The number of a fault tells its pass and its place in it.
"""

import contextlib
import errno
import io
import itertools
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from forks import Fork, load_modules, note_modules, say, watched
from killed_commands import save_model, tree
from preloaded import SHORT, Faults
from results import Outcome

# Faults of each command, 10,000 in all. Training and exporting take seconds each:
# every error at every place once (130 and 369); a SavedModel most of a minute.
TARGETS = {
    "train": 265, "export": 400, "export_saved_model": 35, "resize": 4650,
    "predict": 4650,
}  # fmt: skip
# Faults with the same inputs, at most.
PASS = 400
# Faults in one process: what libraries leak does not add up.
_PER_PROCESS = 25
_PATIENCE = 300.0
_UNREADABLE = re.compile(r"\d+ of \d+ images are unreadable\.")
ERRORS: dict[str, tuple[int, ...]] = {
    "read": (errno.EIO, errno.EINTR, SHORT),
    "write": (errno.ENOSPC, errno.EIO, errno.EINTR, SHORT),
    "sync": (errno.EIO, errno.ENOSPC),
    "close": (errno.EIO, errno.ENOSPC),
    "rename": (errno.EIO, errno.ENOSPC),
    "open": (errno.ENOSPC, errno.EIO, errno.EINTR),
}
# Kind, number and error of a call that fails.
Fault = tuple[str, int, int]


@dataclass(frozen=True)
class Command:
    """What is run.

    Attributes:
        words: The command line, in the folder of one trial.
        output: What it makes there.
        again: What is added to repeat it after a fault.
        earlier: Whether an earlier result is there, which must survive.
    """

    words: tuple[str, ...]
    output: str
    again: tuple[str, ...] = ()
    earlier: bool = False


def _export(formats: str) -> Command:
    words = ("export", "model.safetensors", "--formats", formats, "--output", "out")
    return Command((*words, "--overwrite"), "out", earlier=True)


def _predict(model: str, output: str) -> Command:
    words = ("predict", model, "photos", "--output", output, "--overwrite")
    return Command(words, output, earlier=True)


# The passes take turns.
COMMANDS: dict[str, tuple[Command, ...]] = {
    "train": (
        Command(
            ("train", "photos", "--model", "resnet8", "--epochs", "2", "--size", "16",
             "--batch-size", "6", "--output", "run", "--set", "precision=float32",
             "--save-every", "0"),
            "run", ("--resume",),
        ),
    ),
    "export": (_export("tflite,onnx"),),
    "export_saved_model": (_export("saved_model"),),
    "resize": (
        Command(("resize", "photos", "--side", "24", "--output", "small"), "small"),
        Command(("resize", "list.csv", "--side", "41", "--output", "small"), "small"),
    ),
    "predict": (
        _predict("model.onnx", "rows.csv"),
        _predict("model.tflite", "rows.jsonl"),
        _predict("model.onnx", "rows.parquet"),
    ),
}  # fmt: skip


def call(words: tuple[str, ...]) -> tuple[int, str]:
    """Run a command here; return its exit code and what it wrote to stderr."""
    from reszoo.cli.options import app
    from reszoo.console import print_text
    from reszoo.errors import ReszooError

    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            app([*words], standalone_mode=True)
        except ReszooError as error:
            print_text(f"reszoo: {error}", sys.stderr)
            return error.exit_code, said.getvalue()
        except SystemExit as error:
            return int(error.code or 0), said.getvalue()
    return 0, said.getvalue()


class Trials:
    """Runs one command again and again, each time with another fault."""

    def __init__(self, command: Command, seed: int, base: Path) -> None:
        self.command, self._faults, self._base = command, Faults(), base
        self._inputs, self._place = base / "inputs", base / "trial"
        self._inputs.mkdir()
        for function in (self._make_inputs, self._learn):
            fork = Fork(lambda f=function: f(seed), self._inputs, base / "log")  # type: ignore[misc]
            fork.succeed(_PATIENCE)
        load_modules(base / "modules")
        learnt = json.loads((base / "learnt").read_text())
        self.usual, self._varying, self._names, self.faults = learnt

    def _make_inputs(self, seed: int) -> None:
        """Write what the commands read, and an earlier result."""
        from conftest import photos

        draw = np.random.default_rng(seed)
        photos(Path("photos"), each=int(draw.integers(6, 14)))
        rows = (
            f"{each},{each.parent.name}\n" for each in Path("photos").rglob("*.png")
        )
        Path("list.csv").write_text("path,label\n" + "".join(sorted(rows)))
        save_model(Path("model.safetensors"), 0)
        if self.command.words[0] == "predict":
            import reszoo

            reszoo.export("model.safetensors", "once", formats=["onnx", "tflite"])
            for name in ("model.onnx", "model.tflite"):
                shutil.move(f"once/{name}", name)
            shutil.rmtree("once")
        if self.command.earlier:
            code, said = call(self.command.words)
            if code:
                raise RuntimeError(said)
            # Another result than the one that replaces it.
            save_model(Path("model.safetensors"), 1)
            if Path(self.command.output).is_file():
                Path(self.command.output).write_text("an earlier file\n")

    def _learn(self, seed: int) -> None:
        """Learn what the usual result is, and where calls come from."""
        usual = self._after_success()
        again = self._after_success()
        # Times, latencies and logs differ from run to run.
        varying = [key for key in again if again[key] != usual.get(key)]
        if set(again) != set(usual):
            raise RuntimeError(f"{set(again) ^ set(usual)}")
        names = [each.name for each in self._place.iterdir()]
        faults = [*ordered(self._faults.sites(), np.random.default_rng(seed))]
        note_modules(self._base / "modules")
        (self._base / "learnt").write_text(json.dumps([usual, varying, names, faults]))

    def _after_success(self) -> dict[str, str]:
        self._reset()
        with self._faults.armed(self._place):
            code, said = call(self.command.words)
        if code:
            raise RuntimeError(f"Without a fault the command fails: {said}")
        return tree(self._place / self.command.output)

    def _reset(self) -> None:
        os.chdir(self._inputs)
        shutil.rmtree(self._place, ignore_errors=True)
        shutil.copytree(self._inputs, self._place)
        os.chdir(self._place)

    def _same(self, found: dict[str, str]) -> bool:
        return set(found) == set(self.usual) and all(
            found[key] == self.usual[key] for key in found if key not in self._varying
        )

    def results(self, first: int, faults: list[Fault]) -> Iterator[tuple[int, str]]:
        """Let calls fail, one after the other; yield what came of each.

        "FAILED: ..." where that is wrong. They run in one process while all goes well.
        """

        def trials() -> None:
            for number, fault in enumerate(faults[first : first + _PER_PROCESS], first):
                say("trying", number)
                say("done", number, self._trial(*fault))

        while first < len(faults):
            trying = None
            for kind, *words in watched(
                trials, self._inputs, self._base / "log", _PATIENCE
            ):
                if kind == "trying":
                    (trying,) = words
                elif kind == "done":
                    trying, first = None, words[0] + 1
                    yield words[0], words[1]
                elif trying is not None:
                    yield trying, f"FAILED: the process {kind} {words}"
                    first = trying + 1
                elif kind == "hung" or words[0]:
                    raise RuntimeError(f"No process starts: {words}")

    def _trial(self, kind: str, number: int, error: int) -> str:
        self._reset()
        output = self._place / self.command.output
        before = tree(output)
        words = self.command.words
        try:
            with self._faults.armed(self._place, kind, number, error):
                code, said = call(words)
        except BaseException as problem:
            return f"FAILED: {type(problem).__name__}: {problem}"
        after = tree(output)
        if code == 0:
            return "done" if self._same(after) else "FAILED: done, with another result"
        if _UNREADABLE.fullmatch(said.strip()):
            # An image that cannot be read is a row with the reason.
            return self._repeated((), "a row with the reason")
        lines = [line for line in said.splitlines() if line.startswith("reszoo: ")]
        if len(lines) != 1 or code not in (1, 2) or not lines[0].isprintable():
            return f"FAILED: exit {code}, {said[-300:]!r}"
        if self.command.earlier and after != before and not self._same(after):
            return "FAILED: the earlier result is lost"
        started = set(self.command.again) and output.exists()
        if not self.command.earlier and after and not started and not self._same(after):
            return "FAILED: an incomplete result"
        again = self.command.again if started else ()
        if not self.command.earlier and self._same(after) and not started:
            return "refused, with the result"
        return self._repeated(again, "refused")

    def _repeated(self, again: tuple[str, ...], result: str) -> str:
        code, said = call((*self.command.words, *again))
        if code or not self._same(tree(self._place / self.command.output)):
            return f"FAILED: the second call exits {code}: {said[-300:]!r}"
        left = {each.name for each in self._place.iterdir()} - {*self._names}
        return f"FAILED: left behind: {left}" if left else result


def ordered(
    sites: dict[tuple[str, str], list[int]], draw: np.random.Generator
) -> Iterator[Fault]:
    """Yield all faults: one of every place, with every error, then another of each."""
    shuffled = {
        (*site, error): draw.permutation(numbers).tolist()
        for site, numbers in sorted(sites.items())
        for error in ERRORS[site[0]]
    }
    for turn in itertools.zip_longest(*shuffled.values()):
        for (kind, _, error), number in zip(shuffled, turn, strict=True):
            if number is not None:
                yield kind, number, error


def work(name: str, first: int, until: float) -> Iterator[Outcome]:
    """Yield what came of each fault; its number is the seed."""
    variants = COMMANDS[name]
    for turn in itertools.count(first // PASS):
        command, started = variants[turn % len(variants)], time.monotonic()
        with tempfile.TemporaryDirectory(prefix="faults-") as base:
            os.environ["RESZOO_HOME"] = f"{base}/cache"
            trials = Trials(command, turn, Path(base))
            faults = trials.faults[:PASS]
            for index, found in trials.results(max(0, first - turn * PASS), faults):
                number = turn * PASS + index
                outcome = _outcome(faults[index], number, found)
                if index + 1 == len(faults):
                    # The rest of a pass with fewer calls stays empty.
                    outcome.last = (turn + 1) * PASS
                now = time.monotonic()
                outcome.seconds, started = now - started, now
                yield outcome
                if now > until:
                    return


def _outcome(fault: Fault, number: int, found: str) -> Outcome:
    kind, call_number, error = fault
    outcome = Outcome(number, number + 1, done=1)
    failed = found.startswith("FAILED")
    called = errno.errorcode.get(error, "half")
    outcome.count(f"{kind}, {called}: {'FAILED' if failed else found}")
    if failed:
        outcome.failures[f"{number}: {kind} {call_number}, {called}"] = found
    return outcome
