"""Let every call of the operating system fail in turn: nothing is lost, one sentence.

    python stress/injected_faults.py [--commands train export] [--results FILE]
        [--most 300]

Each command runs in this process on small files below one folder, with a library
preloaded (`faults.c`) that makes the n-th read, write, sync, close, rename or open
there fail once: ENOSPC, EIO, EINTR or half of the bytes. n runs over all calls that the
command makes, or over `--most` of them, evenly spaced and moved by the seed. Then the
command either succeeds with the usual result, or prints one line and exits with 1 or 2
and leaves what was there before; and a second call gives the usual result. Counts are
added up in FILE. Exits with 1 if anything else happened.
"""

import argparse
import contextlib
import ctypes
import errno
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
KINDS = ("read", "write", "sync", "close", "rename", "open")
SHORT = -1
_UNREADABLE = re.compile(r"\d+ of \d+ images are unreadable\.")
ERRORS: dict[str, tuple[int, ...]] = {
    "read": (errno.EIO, errno.EINTR, SHORT),
    "write": (errno.ENOSPC, errno.EIO, errno.EINTR, SHORT),
    "sync": (errno.EIO, errno.ENOSPC),
    "close": (errno.EIO, errno.ENOSPC),
    "rename": (errno.EIO, errno.ENOSPC),
    "open": (errno.ENOSPC, errno.EIO, errno.EINTR),
}


@dataclass(frozen=True)
class Command:
    """What is run.

    Attributes:
        words: The command line, in the folder of one trial.
        again: What is added to repeat it after a fault.
        output: What it makes there.
        earlier: Whether an earlier result is there, which must survive.
    """

    words: tuple[str, ...]
    again: tuple[str, ...]
    output: str
    earlier: bool = True


COMMANDS = {
    "train": Command(
        ("train", "photos", "--model", "resnet8", "--epochs", "2", "--batch-size", "8",
         "--output", "run", "--precision", "float32"),
        ("--resume",), "run", earlier=False,
    ),
    "export": Command(
        ("export", "model.safetensors", "--formats", "tflite,onnx", "--output", "out",
         "--overwrite"), (), "out",
    ),
    "export_saved_model": Command(
        ("export", "model.safetensors", "--formats", "saved_model", "--output", "out",
         "--overwrite"), (), "out",
    ),
    "resize": Command(
        ("resize", "photos", "--side", "24", "--output", "small"), (), "small",
        earlier=False,
    ),
    "predict": Command(
        ("predict", "model.onnx", "photos", "--output", "rows.csv", "--overwrite"),
        (), "rows.csv",
    ),
}  # fmt: skip


class Faults:
    """The preloaded library."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None)
        self._library.faults_arm.argtypes = [
            ctypes.c_char_p, ctypes.c_int, ctypes.c_long, ctypes.c_int,
        ]  # fmt: skip
        self._library.faults_seen.restype = ctypes.c_long

    @contextlib.contextmanager
    def armed(
        self, folder: Path, kind: str = "read", number: int = 0, error: int = 0
    ) -> Iterator[None]:
        """Let a call on files below a folder fail; 0 only counts."""
        index = KINDS.index(kind)
        self._library.faults_arm(f"{folder}/".encode(), index, number, error)
        try:
            yield
        finally:
            self._library.faults_disarm()

    def seen(self, kind: str) -> int:
        """Return the number of calls since the last arming."""
        return int(self._library.faults_seen(KINDS.index(kind)))


def call(words: tuple[str, ...]) -> tuple[int, str]:
    """Run a command here; return its exit code and what it wrote to stderr."""
    from reszoo.cli import app
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


def tree(path: Path) -> dict[str, str]:
    """Return the digests of the files below a path, or of the file itself."""
    files = [each for each in [path, *path.rglob("*")] if each.is_file()]
    return {
        str(each.relative_to(path)): hashlib.sha256(each.read_bytes()).hexdigest()
        for each in sorted(files)
    }


class Trials:
    """Runs one command again and again, each time with another fault."""

    def __init__(self, name: str, base: Path, faults: Faults) -> None:
        self.command, self._faults = COMMANDS[name], faults
        self._inputs, self._place = base / "inputs", base / "trial"
        make_inputs(self._inputs, self.command)
        self.usual = self._after_success()
        again = self._after_success()
        # Times, latencies and logs differ from run to run.
        self._varying = {key for key in again if again[key] != self.usual.get(key)}
        if set(again) != set(self.usual):
            raise RuntimeError(f"{name}: {set(again) ^ set(self.usual)}")

    def _after_success(self) -> dict[str, str]:
        self._reset()
        with self._faults.armed(self._place):
            code, said = call(self.command.words)
        if code:
            raise RuntimeError(f"Without a fault the command fails: {said}")
        self.calls = {kind: self._faults.seen(kind) for kind in KINDS}
        self._names = {each.name for each in self._place.iterdir()}
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

    def trial(self, kind: str, number: int, error: int) -> str:
        """Let one call fail; return what came of it, "FAILED: ..." if that is wrong."""
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
        left = {each.name for each in self._place.iterdir()} - self._names
        return f"FAILED: left behind: {left}" if left else result


def make_inputs(folder: Path, command: Command) -> None:
    """Write what the commands read, and an earlier result."""
    from conftest import photos, randomise

    import reszoo

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    photos(folder / "photos", each=8)
    model = randomise(reszoo.build("resnet8", classes=2), seed=0)
    os.chdir(folder)
    reszoo.save(model, "model.safetensors")
    if "model.onnx" in command.words:
        reszoo.export(model, "once", formats=["onnx"])
        shutil.move("once/model.onnx", "model.onnx")
        shutil.rmtree("once")
    if command.earlier:
        code, said = call(command.words)
        if code:
            raise RuntimeError(said)
        # Another result than the one that replaces it.
        later = randomise(reszoo.build("resnet8", classes=2), seed=1)
        reszoo.save(later, "model.safetensors")
        if command.output.endswith(".csv"):
            Path(command.output).write_text("path\nan earlier file\n")


def numbers(calls: int, most: int, draw: np.random.Generator) -> list[int]:
    """Return the calls that fail in turn: all, or evenly spaced ones."""
    if calls <= most:
        return [*range(1, calls + 1)]
    spaced = np.arange(most) * calls / most + draw.random() * calls / most
    return [int(each) + 1 for each in spaced]


def run(name: str, most: int, seed: int, faults: Faults) -> dict[str, object]:
    """Try the faults of one command; return counts and what went wrong."""
    draw = np.random.default_rng([seed, [*COMMANDS].index(name)])
    started, results, failures = time.monotonic(), {}, {}
    with tempfile.TemporaryDirectory() as base:
        os.environ["RESZOO_HOME"] = f"{base}/cache"
        trials = Trials(name, Path(base), faults)
        for kind, errors in ERRORS.items():
            for error in errors:
                called = errno.errorcode.get(error, "half")
                for number in numbers(trials.calls[kind], most, draw):
                    found = trials.trial(kind, number, error)
                    key = "FAILED" if found.startswith("FAILED") else found
                    results[key] = results.get(key, 0) + 1
                    if key == "FAILED":
                        failures[f"{kind} {number} {called}"] = found
                        print(f"    {name}, {kind} {number}, {called}: {found}")
        os.chdir(HERE)
    return {
        "calls": trials.calls,
        "faults": sum(results.values()),
        "results": results,
        "failures": failures,
        "seconds": round(time.monotonic() - started, 1),
    }


def preloaded() -> None:
    """Start this program again with the library, once."""
    library = Path(tempfile.gettempdir()) / f"reszoo-faults-{os.getuid()}.so"
    words = ["-shared", "-fPIC", "-O1", str(HERE / "faults.c"), "-o", str(library)]
    subprocess.run(["cc", *words, "-ldl"], check=True)
    os.environ |= {"LD_PRELOAD": str(library), "TF_CPP_MIN_LOG_LEVEL": "3"}
    os.execv(sys.executable, [sys.executable, __file__, *sys.argv[1:]])


def main() -> None:
    """Run what is asked for and print what came of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=[*COMMANDS])
    parser.add_argument("--most", type=int, default=300, help="of each kind and error")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path("injected-faults.json"))
    given = parser.parse_args()
    if "faults" not in os.environ.get("LD_PRELOAD", ""):
        preloaded()
    faults, path = Faults(), given.results.absolute()
    kept = json.loads(path.read_text()) if path.exists() else {}
    for name in given.commands:
        found = run(name, given.most, given.seed, faults)
        kept[f"{name} / {given.seed} / {given.most}"] = found
        path.write_text(json.dumps(kept, indent=1))
        print(f"{name}: {found['faults']} faults, {found['results']}", flush=True)
    sys.exit(any(each["failures"] for each in kept.values()))


if __name__ == "__main__":
    main()
