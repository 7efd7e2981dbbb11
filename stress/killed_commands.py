"""What is killed: five commands on small files, and what they may leave behind."""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / name) for name in ("tests", "benchmarks")]
from resume import arrays_of, content_of, history_of  # noqa: E402

_SIDE = 16

Content = dict[str, str]


def digest(content: bytes) -> str:
    """Return the SHA-256 of bytes."""
    return hashlib.sha256(content).hexdigest()


def tree(path: Path) -> Content:
    """Return the digests of the files below a path, or of the file itself.

    TensorBoard's logs have the time in their names.
    """
    files = [each for each in [path, *path.rglob("*")] if each.is_file()]
    return {
        re.sub(r"(tfevents)\..*", r"\1", str(each.relative_to(path))): digest(
            each.read_bytes()
        )
        for each in sorted(files)
    }


def save_model(path: Path, seed: int) -> None:
    """Write a checkpoint of a small model with random weights."""
    from conftest import randomise
    from tiny import TWO_BLOCKS

    import reszoo

    spec = dataclasses.replace(TWO_BLOCKS, classes=2)
    reszoo.save(randomise(reszoo.build(spec), seed=seed), path)


class Command(ABC):
    """A command, in a folder with its inputs.

    Attributes:
        name: Its name in the results.
        output: What it makes, below the folder.
        chain: How many processes are ended before one may go to the end.
        share: Of a run that one process gets to at most, before its end.
        tidy: Whether Ctrl-C leaves nothing beside the output.
        refuses: Whether it refuses an output that is complete.
        staged: Whether it works in the temporary folder.
    """

    name: str
    output: str
    chain = 8
    share = 0.95
    tidy, refuses, staged = True, False, False

    @abstractmethod
    def make_inputs(self) -> None:
        """Write the inputs here."""

    @abstractmethod
    def run(self) -> None:
        """Start or resume it here."""

    def run_earlier(self) -> None:
        """Make another result here, which it replaces."""
        raise NotImplementedError

    def content(self, folder: Path) -> Content:
        """Return what a complete result consists of; {} where there is none."""
        return tree(folder / self.output)

    def unfinished(self, folder: Path) -> str | None:
        """Tell what an unfinished result is; None where there is none."""
        return None

    def reset(self) -> None:  # noqa: B027
        """Forget what earlier runs did elsewhere."""


class Train(Command):
    """Training with a state after each step."""

    name, output, tidy = "train", "run", False
    # So that a run takes several processes, each of which traces the model anew.
    chain, share = 12, 0.15

    def make_inputs(self) -> None:
        """Write photos."""
        from conftest import photos

        photos(Path("photos"), each=24)

    def run(self) -> None:
        """Train two blocks for 48 steps."""
        from tiny import TWO_BLOCKS

        import reszoo

        reszoo.train(
            dataclasses.replace(TWO_BLOCKS, classes=2), "photos", output="run",
            resume=True, save_every=0.0, epochs=8, batch_size=6, size=_SIDE,
            precision="float32", ema=0.95, mixup=0.2,
        )  # fmt: skip

    def content(self, folder: Path) -> Content:
        """Return the digests of all arrays, and the history without its times."""
        run = folder / "run"
        if not (run / "report.html").exists():
            return {}
        found = {}
        for name in ("best", "last", "state"):
            for key, array in arrays_of(run / f"{name}.safetensors").items():
                found[f"{name}/{key}"] = digest(array.tobytes())
        for number, row in enumerate(history_of(run)):
            found[f"history {number}"] = json.dumps(row)
        return found

    def unfinished(self, folder: Path) -> str | None:
        """Tell what the kill interrupted, judging by the folder."""
        run = folder / "run"
        for path in run.glob("*"):
            if problem := damage(path):
                return f"something incomplete: {path.name} {problem}"
        for path in run.glob(".*.tmp"):
            return f"in saving {path.name.split('.')[1]}"
        if not (run / "state.safetensors").exists():
            return "before the first state"
        content = content_of(run / "state.safetensors")
        return "within an epoch" if content["tally"]["steps"] else "between epochs"


class Export(Command):
    """An export of two formats, verified in a subprocess; an earlier one is there."""

    name, output, chain = "export", "exports/model", 3

    def make_inputs(self) -> None:
        """Write two checkpoints."""
        for seed, name in enumerate(("earlier", "new")):
            save_model(Path(f"{name}.safetensors"), seed)

    def run(self) -> None:
        """Export."""
        self._export("new")

    def run_earlier(self) -> None:
        """Export the other checkpoint."""
        self._export("earlier")

    def _export(self, name: str) -> None:
        import reszoo

        reszoo.export(
            f"{name}.safetensors", self.output, formats=["onnx", "tflite"],
            overwrite=True,
        )  # fmt: skip

    def content(self, folder: Path) -> Content:
        """Return the SHA-256 of all that the manifest vouches for, and other names."""
        from reszoo_export.manifest import MANIFEST_FILE, size_and_hash

        output = folder / self.output
        if not output.exists():
            return {}
        try:
            content = json.loads((output / MANIFEST_FILE).read_text(encoding="utf-8"))
            digests = {each["file"]: each["sha256"] for each in content["files"]}
            digests |= content["beside"]
            for name, wanted in digests.items():
                if size_and_hash(output / name)[1] != wanted:
                    digests[name] = "not what was verified"
            bad = any(each["verification"]["problems"] for each in content["files"])
        except (OSError, ValueError, KeyError) as error:
            return {"manifest": f"{type(error).__name__}: {error}"}
        others = {
            path.name: "" for path in output.iterdir() if path.name not in digests
        }
        return {**digests, **others, "problems": str(bad)}


class Resize(Command):
    """Photos made smaller."""

    name, output, chain, refuses = "resize", "small", 5, True

    def make_inputs(self) -> None:
        """Write photos."""
        from conftest import photos

        photos(Path("photos"), each=40)

    def run(self) -> None:
        """Resize."""
        import reszoo

        reszoo.resize_images("photos", "small", side=24)


class Predict(Command):
    """Answers that are written to a file, resumed where they ended."""

    name, output, tidy, refuses = "predict", "rows.csv", False, True
    share = 0.15

    def make_inputs(self) -> None:
        """Write a model and photos."""
        from conftest import photos

        import reszoo

        save_model(Path("model.safetensors"), 0)
        reszoo.export("model.safetensors", "once", formats=["onnx"])
        shutil.move("once/model.onnx", "model.onnx")
        shutil.rmtree("once")
        photos(Path("photos"), each=400)

    def run(self) -> None:
        """Classify the photos, a journal entry for nearly every group."""
        import reszoo
        from reszoo_export import batch

        # Seconds: so that small files have many of them.
        batch._COMMIT_SECONDS = 0.001
        batch.GROUP = 8
        reszoo.predict_files(
            "model.onnx", "photos", self.output, threads=2, resume=True
        )

    def unfinished(self, folder: Path) -> str | None:
        """Tell whether rows are kept."""
        journal = folder / f".{self.output}.partial" / "journal"
        lines = journal.read_text().split("\n") if journal.exists() else []
        if (folder / self.output).exists():
            return None
        return "some rows are kept" if len(lines) > 2 else "no rows are kept"


class Push(Command):
    """A checkpoint, an export and samples, staged for the hub and uploaded."""

    name, output, staged = "push", "pushed", True

    def __init__(self) -> None:
        from loopback import serve

        self._serving = serve()
        self.site = self._serving.__enter__()
        os.environ |= {
            "HF_ENDPOINT": self.site.url, "HF_TOKEN": "hf_secret",
            "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }  # fmt: skip
        os.environ.pop("HF_HUB_OFFLINE", None)
        # It reads its environment now.
        import huggingface_hub  # noqa: F401

    def make_inputs(self) -> None:
        """Write a checkpoint and its export."""
        import reszoo

        save_model(Path("model.safetensors"), 0)
        reszoo.export("model.safetensors", "export", formats=["onnx"])

    def run(self) -> None:
        """Push."""
        import reszoo

        reszoo.push("model.safetensors", "me/model", export="export")

    def content(self, folder: Path) -> Content:
        """Return the files on the hub."""
        return {name: digest(each) for name, each in [*self.site.files.items()]}

    def reset(self) -> None:
        """Empty the hub."""
        self.site.files.clear()
        self.site.uploaded.clear()


def damage(path: Path) -> str | None:
    """Tell why a file of a run is incomplete, None if it is not."""
    try:
        content = path.read_bytes() if path.is_file() else b""
    except FileNotFoundError:
        return None
    if path.name.startswith(".") or path.is_dir():
        return None
    if path.suffix == ".safetensors":
        try:
            arrays_of(path)
        except Exception as error:
            return str(error)
        return None
    ends: dict[str, Iterable[bytes]] = {
        ".json": [b"}\n"], ".csv": [b"\n"], ".html": [b"</html>\n", b"</html>"],
        ".png": [b"IEND\xaeB`\x82"],
    }  # fmt: skip
    expected = tuple(ends.get(path.suffix, [b""]))
    return None if content.endswith(expected) else f"ends with {content[-20:]!r}"


COMMANDS: dict[str, type[Command]] = {
    each.name: each for each in (Train, Export, Resize, Predict, Push)
}
