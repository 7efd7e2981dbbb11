"""How do time and memory grow with depth, image size, batch, images and processors?

Run: python benchmarks/growth.py [--only depth] [--json FILE]

* depth: one image of 224 pixels through the Keras model, ResNet-18 to 152;
* side: one image through ResNet-18, 128 to 512 pixels;
* batch: ResNet-18 at 224 pixels, 1 to 32 images a call;
* paths: opening a list of 1,000 to 1,000,000 images and taking the first batch of an
  epoch in random order; the million are 400 photos by many names;
* processors: training batches from a folder of photos, on one and on two.

Each point is a fresh process. The exponent is the slope in a log-log plot of time or
memory against what grows: 1 where twice as much takes twice as long.
"""

import csv
import importlib
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import harness
import numpy as np
import roof
from harness import Contender

SAMPLES = 6
BATCH = 32


@dataclass(frozen=True)
class Axis:
    """Something that grows.

    Attributes:
        values: From the smallest to the largest.
        measure: Measures one value in this process; takes the value and a folder.
        judged: The figures of a run to fit exponents to.
    """

    values: Sequence[int]
    measure: Callable[[int, Path], harness.Run]
    judged: tuple[str, ...] = ("ms",)


def _latency(variant: str, side: int, batch: int) -> harness.Run:
    import reszoo
    from reszoo_export.runtimes import open_runtime

    model = reszoo.build(variant, input_shape=(side, side, 3), classes=1000, seed=0)
    # Threads as the harness set them: building has begun to compute already.
    runtime = open_runtime(model)
    images = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8)
    run = harness.sampled(
        lambda: runtime.run(images), items=1, warm_up=2, samples=SAMPLES
    )
    return {**run, "ms": 1000 / float(np.median(run["samples"]))}


def _of_depth(layers: int, _: Path) -> harness.Run:
    return _latency(f"resnet{layers}", 224, 1)


def _of_side(side: int, _: Path) -> harness.Run:
    return _latency("resnet18", side, 1)


def _of_batch(batch: int, _: Path) -> harness.Run:
    return _latency("resnet18", 224, batch)


def _of_paths(count: int, folder: Path) -> harness.Run:
    import input as photos  # benchmarks/input.py

    # Importing is not what grows.
    importlib.import_module("reszoo.data.pipeline")
    importlib.import_module("reszoo.data.sources")
    listed = _list_of(count, folder)
    begun, before = harness.seconds_since_start(), harness.megabytes()
    batches = photos.from_reszoo(str(listed))
    images, _labels = next(batches)
    if len(images) != BATCH:
        raise SystemExit(f"A batch of another shape: {images.shape}")
    seconds = harness.seconds_since_start() - begun
    return {
        "samples": [1 / seconds],
        "ms": 1000 * seconds,
        "more_mb": harness.megabytes() - before,
    }


def _list_of(count: int, folder: Path) -> Path:
    """Write a list of photos; folders by other names give each photo many paths."""
    photos = sorted((folder / "photos").rglob("*.jpg"))
    listed = folder / f"list-{count}.csv"
    with listed.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "split"))
        for number in range(count):
            turn, which = divmod(number, len(photos))
            name = folder / f"photos-{turn}"
            if not which and not name.is_symlink():
                name.symlink_to("photos")
            path = photos[which].relative_to(folder / "photos")
            writer.writerow((f"{name.name}/{path}", path.parent.name, "train"))
    return listed


def _of_processors(count: int, folder: Path) -> harness.Run:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
    import input as photos  # benchmarks/input.py

    batches = photos.from_reszoo(str(folder / "photos"))
    step = partial(photos.take, batches)
    items = photos.BATCH * photos.BATCHES
    run = harness.sampled(step, items=items, warm_up=1, samples=SAMPLES)
    return {**run, "ms": 1000 / float(np.median(run["samples"]))}


AXES = {
    "depth": Axis((18, 34, 50, 101, 152), _of_depth, ("ms", "megabytes")),
    "side": Axis((128, 192, 256, 384, 512), _of_side, ("ms", "megabytes")),
    "batch": Axis((1, 2, 4, 8, 16, 32), _of_batch, ("ms", "megabytes")),
    "paths": Axis((1_000, 10_000, 100_000, 1_000_000), _of_paths, ("ms", "more_mb")),
    "processors": Axis((1, 2), _of_processors),
}


def exponent(values: Sequence[float], costs: Sequence[float]) -> float:
    """Return the slope of costs against values, both as logarithms."""
    return float(np.polyfit(np.log(values), np.log(costs), 1)[0])


def growth(runs: harness.Runs, names: Sequence[str]) -> dict[str, Any]:
    """Return each axis' medians and exponents."""
    found: dict[str, Any] = {}
    for name in names:
        axis = AXES[name]
        costs = {
            what: [
                float(np.median([run[what] for run in runs[f"{name} {value}"]]))
                for value in axis.values
            ]
            for what in axis.judged
        }
        exponents = {
            what: exponent(axis.values, found) for what, found in costs.items()
        }
        found[name] = {
            "values": list(axis.values),
            **costs,
            "exponents": exponents,
        }
    return found


def notes(found: dict[str, Any]) -> list[str]:
    """Return a line for each exponent."""
    return [
        f"{name} {row['values'][0]:,} to {row['values'][-1]:,}: {what} "
        f"{row[what][0]:,.1f} to {row[what][-1]:,.1f}, exponent {power:.2f}"
        for name, row in found.items()
        for what, power in row["exponents"].items()
    ]


def compare(folder: Path, names: Sequence[str], given: Any) -> None:
    """Make the photos, measure, report."""
    import input as photos  # benchmarks/input.py

    if {"paths", "processors"} & set(names):
        photos.make_folder(folder / "photos")
    points = [
        Contender(
            f"{name} {value}",
            (sys.executable, __file__, "--process", name, str(value), str(folder)),
            "a second",
        )
        for name in names
        for value in AXES[name].values
    ]
    entrants = [roof.contender("float32"), *points]
    runs = harness.measure(entrants, given.rounds)
    found = growth(runs, names)
    results = harness.summary(entrants, runs, (), notes(found))
    harness.report({**results, "growth": found}, given.json)


def main() -> None:
    """Measure the chosen axes."""
    parser = harness.parser(__doc__ or "", rounds=2)
    parser.add_argument("--only", nargs="+", choices=AXES, default=list(AXES))
    given = parser.parse_args()
    if given.process:
        name, value, folder = given.process
        run = AXES[name].measure(int(value), Path(folder))
        run.setdefault("megabytes", harness.megabytes())
        harness.emit(run)
        return
    with tempfile.TemporaryDirectory() as name:
        compare(Path(name), given.only, given)


if __name__ == "__main__":
    main()
