"""How much faster is a head trained on cached features, and how accurate is it?

    python benchmarks/features.py DATA --output runs/features
    python benchmarks/features.py DATA --output runs/small --model resnet20 --size 32
        --weights reszoo/bundled/resnet20-cifar10.safetensors --seeds 3

The head of a frozen model, drawn anew, is trained by the recipe "linear-probe" as it
is and on four cached variants of each image, and without augmentation in both ways.
DATA holds `train/CLASS/*.jpg` and `test/CLASS/*.jpg`; of the photos to train on, a
fifth is held out. Times are of the whole call of `reszoo.train`, with all files
written; runs take turns, so that other load on the machine meets all of them. Without
--weights the weights are random: then the times count, and not the accuracies.
"""

import argparse
import csv
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

import reszoo
from reszoo.files import write_json

_STILL = {"crop": "none", "flip": False}
ROWS: dict[str, dict[str, Any]] = {
    "linear-probe": {},
    "cache_features=4": {"cache_features": 4},
    "without augmentation": _STILL,
    "cache_features=1": {"cache_features": 1},
}


def listed(data: Path, split: str, images: int, path: Path) -> Path:
    """List the first images of each class, `images` in all, in a table."""
    folders = sorted((data / split).iterdir())
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["path", "label"])
        for folder in folders:
            few = sorted(folder.iterdir())[: images // len(folders)]
            table.writerows([image.resolve(), folder.name] for image in few)
    return path


def measured(given: Any, row: str, seed: int) -> dict[str, float]:
    """Train one row from one seed; return its numbers."""
    photos = given.output / "photos.csv"
    classes = [folder.name for folder in sorted((given.data / "train").iterdir())]
    shape = (given.size, given.size, 3)
    options: Any = {"classes": classes, "input_shape": shape, "seed": seed}
    model = reszoo.build(given.model, weights=given.weights, **options)
    head = model.get_layer("fc")
    drawn = np.random.default_rng(seed).normal(0, 0.01, head.kernel.shape)
    head.set_weights([drawn, np.zeros(len(classes))])
    name = f"{[*ROWS].index(row)}-{seed}"
    start = time.perf_counter()
    run = reszoo.train(
        model, photos, recipe="linear-probe", epochs=given.epochs, seed=seed,
        output=given.output / name, overwrite=True, **ROWS[row],
    )  # fmt: skip
    seconds = time.perf_counter() - start
    found = reszoo.evaluate(run.model, given.output / "test.csv")
    return {"seconds": seconds, "accuracy": found.top1}


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """Return seconds, accuracy and times as fast as the first row, in Markdown."""
    lines = ["| | seconds | as fast | accuracy |", "|---|---|---|---|"]
    first = statistics.median(run["seconds"] for run in next(iter(results.values())))
    for row, runs in results.items():
        seconds = statistics.median(run["seconds"] for run in runs)
        accuracy = statistics.mean(run["accuracy"] for run in runs)
        ratio = f"{first / seconds:.1f}x"
        lines.append(f"| {row} | {seconds:.1f} | {ratio} | {accuracy:.2%} |")
    return "\n".join(lines)


def main() -> None:
    """Measure every row from every seed, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--weights", help="random without")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--images", type=int, default=1000, help="to train on")
    parser.add_argument("--test-images", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=[*ROWS])
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    listed(given.data, "train", given.images, given.output / "photos.csv")
    listed(given.data, "test", given.test_images, given.output / "test.csv")
    results: dict[str, list[dict[str, float]]] = {row: [] for row in given.rows}
    for seed in range(given.seeds):
        for row in given.rows:
            results[row].append(measured(given, row, seed))
    fields = {k: str(v) for k, v in vars(given).items() if k not in ("data", "output")}
    write_json(given.output / "features.json", {"options": fields, "runs": results})
    print(table(results))


if __name__ == "__main__":
    main()
