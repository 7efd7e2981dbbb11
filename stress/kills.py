"""End commands by `kill -9` or Ctrl-C at drawn moments, and resume them.

A command runs in processes forked from this one. A library (`faults.c`) ends each at
the n-th call of the operating system that changes its files, a write in the middle, or
some time after it. Then its inputs must be as they were, its output must be
missing, the earlier one, unfinished in a way that it resumes from, or complete; no
process of it may run on; Ctrl-C leaves no traceback and no files. The next process
resumes it. After a chain of these one goes to its end: its result must be that of an
undisturbed run, bit for bit, with nothing else left behind.
"""

import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from forks import Fork, load_modules, note_modules
from killed_commands import COMMANDS, Command, Content, tree
from preloaded import Faults
from results import Outcome

# Kills of each command, 1,000 in all.
TARGETS = {"train": 200, "export": 200, "resize": 200, "predict": 200, "push": 200}
# Seconds that a process may take, on a busy machine.
_PATIENCE = 300.0


@dataclass(frozen=True)
class Moment:
    """When and how a process is ended: seconds after a call, 0 its start."""

    call: int
    delay: float
    how: signal.Signals


class Scene:
    """A command in a folder, which is ended again and again."""

    def __init__(self, command: Command, base: Path) -> None:
        self.command, self._base = command, base
        self.place, self._inputs = base / "place", base / "inputs"
        self._inputs.mkdir()
        self._tmp = base / "tmp"
        self._tmp.mkdir()
        self._counted_below = base if command.staged else self.place
        self._faults = Faults()
        Fork(command.make_inputs, self._inputs, base / "log").succeed(_PATIENCE)
        self._given = tree(self._inputs)
        self.earlier: Content = {}
        if type(command).run_earlier is not Command.run_earlier:
            self.set_up()
            self._fork(command.run_earlier).succeed(_PATIENCE)
            self.earlier = command.content(self.place)
            shutil.copytree(self.place / command.output, base / "earlier")
        self.set_up()
        started = time.monotonic()
        self._fork(self._counted).succeed(_PATIENCE)
        self.seconds = time.monotonic() - started
        load_modules(base / "modules")
        self.calls = int((base / "calls").read_text())
        self.usual, self._names = command.content(self.place), self._beside()
        if not self.usual or self.usual == self.earlier:
            raise RuntimeError(f"{command.name}: the undisturbed run shows nothing")

    def _fork(self, function: object) -> Fork:
        def run() -> None:
            # Only this process, and those that it starts, have it.
            os.environ["TMPDIR"] = tempfile.tempdir = str(self._tmp)
            function()  # type: ignore[operator]

        return Fork(run, self.place, self._base / "log")

    def _counted(self) -> None:
        with self._faults.armed(self._counted_below):
            self.command.run()
        (self._base / "calls").write_text(str(self._faults.changes()))
        note_modules(self._base / "modules")

    def _beside(self) -> set[str]:
        """Return the names of all files but the output; TensorFlow tidies its own."""
        folders = {self.place, (self.place / self.command.output).parent, self._tmp}
        # The folder that an output lies in is made with the output.
        paths = [each for f in folders if f.is_dir() for each in f.iterdir()]
        names = {os.path.relpath(each, self.place) for each in paths}
        return {n for n in names if "__autograph" not in n} - {self.command.output}

    def set_up(self, *, earlier: bool = False) -> None:
        """Start anew, where an earlier result is there or not."""
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.rmtree(self._tmp)
        self._tmp.mkdir()
        shutil.copytree(self._inputs, self.place)
        self.command.reset()
        if earlier:
            shutil.copytree(self._base / "earlier", self.place / self.command.output)

    def draw(self, random: np.random.Generator) -> Moment:
        """Draw a moment: at a call, some time after one, or after the start."""
        how = signal.SIGINT if random.random() < 0.1 else signal.SIGKILL
        kind = random.choice(3, p=[0.6, 0.35, 0.05])
        if kind == 2:
            return Moment(0, random.uniform(0, self.seconds), how)
        most = max(1, int(self.calls * self.command.share))
        call = int(random.integers(1, most + 1))
        delay = random.uniform(0, min(0.5, self.seconds / 5)) if kind else 0.0
        return Moment(call, delay, how)

    def end(self, moment: Moment) -> tuple[str, list[str]]:
        """Run until a moment; return what is left, and what is wrong with it."""
        call, delay, how = moment.call, moment.delay, moment.how
        before = self._beside()

        def run() -> None:
            self._faults.end(self._counted_below, call, how, delay)
            self.command.run()

        fork = self._fork(run)
        code = fork.wait(_PATIENCE)
        found, wrong = self._look(), fork.alive()
        usual = {signal.SIGKILL: (-9,), signal.SIGINT: (130, -2)}[how]
        if code == 0 and found == "the new one":
            return "at its end before", wrong
        if code not in usual:
            wrong.append(f"exit {code}: {fork.printed()[-300:]}")
        if found.startswith("something"):
            wrong.append(found)
        if lost := {*self._given.items()} - {*tree(self.place).items()}:
            wrong.append(f"the inputs are not what they were: {sorted(lost)[:5]}")
        if how is signal.SIGINT:
            wrong += self._after_ctrl_c(fork.printed(), found, before)
        return found, wrong

    def _after_ctrl_c(self, printed: str, found: str, before: set[str]) -> list[str]:
        wrong = []
        if "Traceback" in printed:
            wrong.append(f"it printed a traceback: ...{printed[-300:]}")
        # The earlier one may still be on its way out when the new one is in.
        output = Path(self.command.output)
        allowed = before | self._names
        if found == "the new one":
            allowed.add(str(output.with_name(f".{output.name}.old")))
        if self.command.tidy and (left := self._beside() - allowed):
            wrong.append(f"Ctrl-C left {sorted(left)}")
        return wrong

    def _look(self) -> str:
        """Tell in words what the output is."""
        content = self.command.content(self.place)
        if content == self.usual:
            return "the new one"
        if content and content == self.earlier:
            return "the earlier one"
        if unfinished := self.command.unfinished(self.place):
            return unfinished
        return f"something else: {json.dumps(content)[:300]}" if content else "nothing"

    def finish(self) -> list[str]:
        """Let a process go to its end; return what is wrong."""
        complete = self.command.refuses and self._look() == "the new one"
        fork, wrong = self._fork(self.command.run), []
        code = fork.wait(_PATIENCE)
        if code != 0 and not (complete and code == 2):
            wrong.append(f"at last it ended with {code}: {fork.printed()[-300:]}")
        if self._look() != "the new one":
            differing = {*self.command.content(self.place).items()} ^ {
                *self.usual.items()
            }
            names = sorted({name for name, _ in differing})
            wrong.append(f"at last the result is another one in {names[:5]}")
        # What killed processes left in the temporary folder nobody else may remove.
        left = {n for n in self._beside() - self._names if not n.startswith("../tmp")}
        if left:
            wrong.append(f"at last there is {sorted(left)}")
        return wrong


def work(name: str, first: int, until: float) -> Iterator[Outcome]:
    """Yield what came of each chain; the number of a chain is its seed."""
    command = COMMANDS[name]()
    with tempfile.TemporaryDirectory(prefix="killed-") as base:
        started = time.monotonic()
        scene, chain = Scene(command, Path(base)), first
        while time.monotonic() < until:
            outcome = _chain(scene, chain)
            now = time.monotonic()
            outcome.seconds, started = now - started, now
            yield outcome
            chain += 1


def _chain(scene: Scene, seed: int) -> Outcome:
    random = np.random.default_rng([*scene.command.name.encode(), seed])
    scene.set_up(earlier=bool(scene.earlier) and bool(random.integers(2)))
    outcome = Outcome(seed, seed + 1)
    for number in range(scene.command.chain):
        moment = scene.draw(random)
        found, wrong = scene.end(moment)
        killed = moment.how is signal.SIGKILL and found != "at its end before"
        outcome.done += killed
        outcome.count(found if killed else f"({moment.how.name}) {found}")
        if wrong:
            outcome.failures[f"{seed}.{number} {moment}"] = "; ".join(wrong)
        if found in ("at its end before", "the new one"):
            break
    if wrong := scene.finish():
        outcome.failures[f"{seed} in the end"] = "; ".join(wrong)
    return outcome
