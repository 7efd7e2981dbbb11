"""Is a run that `kill -9` ends resumed exactly? reszoo and Keras' BackupAndRestore.

Run: python benchmarks/resume.py [--kills 30] [--seed 0] [--only reszoo]

A small run goes to its end twice: once undisturbed, once killed at random moments
(at any time, while a state is written, at the end of an epoch) and resumed, each time
in a fresh process. Everything that both leave is then compared bit for bit. Keras'
side is the same model and images with `fit`, a seeded shuffle and `BackupAndRestore`.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

EPOCHS, BATCH, SIDE, RATE = 12, 64, 8, 0.05
TIMES = {"images_per_second", "data_wait", "seconds"}
# Seconds from a first sign of training until a kill, at most.
WINDOW = 0.5
PATIENCE = 300.0


@dataclass(frozen=True)
class Contender:
    """A library, and the files that show what its run is doing."""

    name: str
    state: str
    end: str


CONTENDERS = (
    Contender("reszoo", ".state.safetensors.*.tmp", ".[bhl]*.tmp"),
    Contender("keras", "backup/*", "history.csv"),
)


def train_reszoo(folder: Path, save_every: float) -> None:
    """Start or resume the run."""
    import reszoo

    reszoo.train(
        "resnet20",
        "digits",
        recipe="cifar",
        output=folder,
        resume=True,
        save_every=save_every,
        epochs=EPOCHS - 1,
        head_epochs=1,
        batch_size=BATCH,
        train_size=SIDE,
        eval_size=SIDE,
        learning_rate=RATE,
        head_learning_rate=0.001,
        ema=0.95,
        mixup=0.2,
        stochastic_depth=0.1,
    )


def train_keras(folder: Path) -> None:
    """Start or resume the run as Keras' documentation shows."""
    import keras
    import tensorflow as tf

    import reszoo
    from reszoo.data.sources import open_source

    keras.utils.set_random_seed(0)
    examples = open_source("digits").examples("train")
    images = np.asarray(examples.images, np.float32) / 255
    batches = tf.data.Dataset.from_tensor_slices((images, examples.targets))
    batches = batches.shuffle(len(examples), seed=0)
    batches = batches.map(lambda x, y: (tf.image.random_brightness(x, 0.2, 0), y))
    model = reszoo.build("resnet20", classes=10, input_shape=(SIDE, SIDE, 3), seed=0)
    model.compile(
        keras.optimizers.SGD(RATE, momentum=0.9, nesterov=True, use_ema=True),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(
        batches.batch(BATCH, drop_remainder=True),
        epochs=EPOCHS,
        verbose=0,
        callbacks=[
            keras.callbacks.BackupAndRestore(folder / "backup"),
            keras.callbacks.CSVLogger(folder / "history.csv", append=True),
        ],
    )
    weights: Any = {each.path: np.asarray(each) for each in model.variables}
    np.savez(folder / "final.npz", **weights)


def command(contender: Contender, folder: Path, save_every: float) -> list[str]:
    """Return what starts one process of a contender."""
    words = [contender.name, str(folder), str(save_every)]
    return [sys.executable, __file__, "--process", *words]


def undisturbed(contender: Contender, folder: Path) -> None:
    """Run to the end at once; reszoo then writes states at epoch ends only."""
    folder.mkdir()
    words = command(contender, folder, 1e9)
    subprocess.run(words, check=True, capture_output=True)


def killed(contender: Contender, folder: Path, kills: int, seed: int) -> Counter[str]:
    """Run to the end through `kills` kills; return what they hit, and failures."""
    folder.mkdir()
    draw, hit = np.random.default_rng(seed), Counter[str]()
    while True:
        errors = (folder.parent / "errors.txt").open("w+b")
        often = draw.choice([0.0, 0.2])
        left = leftovers(folder)
        process = subprocess.Popen(command(contender, folder, often), stderr=errors)
        if sum(hit.values()) - hit["could not resume"] < kills:
            wait_for_moment(contender, folder, process, draw)
            process.kill()
        code = process.wait()
        if code == 0:
            return hit
        if code > 0:
            errors.seek(0)
            print(errors.read()[-300:].decode(), flush=True)
            clear(folder)
        place = where(contender, folder, left) if code < 0 else "could not resume"
        hit[place] += 1
        print(f"  {contender.name}: {dict(hit)}", flush=True)


def wait_for_moment(
    contender: Contender, folder: Path, process: Any, draw: np.random.Generator
) -> None:
    """Return when the process is to be killed, or has ended."""
    kind = draw.choice(["start", "any", "state", "end"], p=[0.1, 0.4, 0.3, 0.2])
    if kind == "start":
        time.sleep(draw.uniform(0, 10))
        return
    changed(folder, "*", process)
    time.sleep(draw.uniform(0, WINDOW))
    if kind != "any":
        pattern = contender.state if kind == "state" else contender.end
        changed(folder, pattern, process)
        time.sleep(draw.uniform(0, 0.003))


def changed(folder: Path, pattern: str, process: Any) -> None:
    """Wait until a file of that pattern appears or changes, or the process ends."""
    before, deadline = stamps(folder, pattern), time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        now = stamps(folder, pattern)
        if set(now.items()) - set(before.items()):
            return
        before = now
        time.sleep(0.0005)


def stamps(folder: Path, pattern: str) -> dict[str, int]:
    """Return when files were changed, by name."""
    found = {}
    for path in folder.glob(pattern):
        try:
            found[path.name] = path.stat().st_mtime_ns
        except FileNotFoundError:
            continue
    return found


def leftovers(folder: Path) -> set[str]:
    """Return the names of unfinished files, which the next write removes."""
    return {path.name for path in folder.glob(".*.tmp")}


def where(contender: Contender, folder: Path, before: set[str]) -> str:
    """Return what a kill interrupted, judging by the folder."""
    if contender.name == "keras":
        return "killed"
    state = folder / "state.safetensors"
    for name in leftovers(folder) - before:
        return f"writing {name.split('.')[1]}"
    if not state.exists():
        return "before the first state"
    content = content_of(state)
    steps = content["tally"]["steps"]
    return f"epoch {'1' if not content['epoch'] else '2+'}, {'mid' if steps else 'end'}"


def content_of(state: Path) -> dict[str, Any]:
    """Return the JSON of a state."""
    with safe_open(state, framework="numpy") as opened:
        content: dict[str, Any] = json.loads(opened.metadata()["reszoo_state"])
    return content


def clear(folder: Path) -> None:
    """Delete a run that cannot be resumed."""
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def arrays_of(file: Path) -> dict[str, NDArray[Any]]:
    """Return every array of a file."""
    if file.suffix == ".npz":
        return dict(np.load(file))
    with safe_open(file, framework="numpy") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


def compare(one: Path, two: Path) -> str:
    """Return in words how two files of arrays differ."""
    ours, theirs = arrays_of(one), arrays_of(two)
    if set(ours) != set(theirs):
        return "other names"
    equal = sum(ours[name].tobytes() == theirs[name].tobytes() for name in ours)
    far = max(float(np.abs(ours[n] - theirs[n]).max(initial=0)) for n in ours)
    return f"{equal} of {len(ours)} arrays bit-equal, largest difference {far:g}"


def history_of(folder: Path) -> list[dict[str, str]]:
    """Return the rows of a history without its times."""
    with (folder / "history.csv").open() as file:
        rows = csv.DictReader(file)
        return [{n: v for n, v in row.items() if n not in TIMES} for row in rows]


def report(contender: Contender, root: Path, hit: Counter[str]) -> None:
    """Print what is left of one contender's runs."""
    one, two = root / "whole", root / "killed"
    print(f"\n{contender.name}: {sum(hit.values())} interruptions: {dict(hit)}")
    names = {
        "reszoo": ["best.safetensors", "last.safetensors", "state.safetensors"],
        "keras": ["final.npz"],
    }
    for name in names[contender.name]:
        print(f"  {name:18} {compare(one / name, two / name)}")
    if contender.name == "keras":
        again = compare(one / "final.npz", root / "again" / "final.npz")
        print(f"  two whole runs     {again}")
    same = history_of(one) == history_of(two)
    rows = len(history_of(two))
    print(f"  history            {'the same' if same else 'another'}, {rows} rows")
    print(f"  files left over    {', '.join(leftovers(two)) or 'none'}")


def main() -> None:
    """Kill and compare the contenders, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=[each.name for each in CONTENDERS])
    parser.add_argument("--process", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.process:
        name, folder, save_every = given.process
        if name == "reszoo":
            train_reszoo(Path(folder), float(save_every))
        else:
            train_keras(Path(folder))
        return
    for contender in CONTENDERS:
        if given.only not in (None, contender.name):
            continue
        with tempfile.TemporaryDirectory() as name:
            root = Path(name)
            undisturbed(contender, root / "whole")
            if contender.name == "keras":
                undisturbed(contender, root / "again")
            hit = killed(contender, root / "killed", given.kills, given.seed)
            report(contender, root, hit)


if __name__ == "__main__":
    main()
