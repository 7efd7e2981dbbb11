"""How much do pretrained weights gain on few images of new classes?

A ResNet-20 is trained on five classes of CIFAR-10. On a hundred images of each of
the other five it is then fine-tuned with `reszoo train`'s default recipe; the baseline
is the same model trained from scratch for several times as many steps. Three seeds.

    python benchmarks/transfer.py DATA --output runs/transfer

DATA holds `train/CLASS/*.jpg` and `test/CLASS/*.jpg` of CIFAR-10.
"""

import argparse
import csv
import json
from pathlib import Path

import numpy as np

import reszoo

_VARIANT = "resnet20"
_EACH = 100
_SEEDS = (0, 1, 2)
_SCRATCH = {"batch_size": 32, "epochs": 120, "learning_rate": 0.05}


def main() -> None:
    """Train, fine-tune, compare; print a table and write `transfer.json`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=10, help="of the pretraining")
    parser.add_argument("--weights", type=Path, help="trained on the first five before")
    given = parser.parse_args()
    classes = sorted(folder.name for folder in (given.data / "train").iterdir())
    given.output.mkdir(parents=True, exist_ok=True)
    first = _write_list(given.output / "first.csv", given.data, classes[:5], None)
    weights = given.weights
    if weights is None:
        folder = given.output / "pretrained"
        weights = reszoo.train(
            _VARIANT, first, epochs=given.epochs, output=folder, resume=True
        ).best
    rows = [_compare(given, classes[5:], weights, seed) for seed in _SEEDS]
    _tell(rows)
    (given.output / "transfer.json").write_text(json.dumps(rows, indent=2))


def _compare(
    given: argparse.Namespace, classes: list[str], weights: Path | None, seed: int
) -> dict[str, float]:
    few = _write_list(given.output / f"few{seed}.csv", given.data, classes, seed)
    tuned = reszoo.train(_VARIANT, few, weights=weights, seed=seed)
    scratch = reszoo.train(_VARIANT, few, recipe="cifar", seed=seed, **_SCRATCH)
    return {
        "seed": seed,
        "fine-tuned": reszoo.evaluate(tuned.model, few).top1,
        "from scratch": reszoo.evaluate(scratch.model, few).top1,
        "steps, fine-tuned": sum(_steps(tuned)),
        "steps, from scratch": sum(_steps(scratch)),
    }


def _steps(result: reszoo.TrainResult) -> list[int]:
    size = result.recipe.batch_size
    return [round(row.seconds * row.images_per_second / size) for row in result.history]


def _write_list(path: Path, data: Path, classes: list[str], seed: int | None) -> Path:
    """List the test images of some classes, and all or a hundred training images."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["path", "label", "split"])
        for name in classes:
            images = sorted((data / "train" / name).iterdir())
            if seed is not None:
                draw = np.random.default_rng(seed)
                images = [images[i] for i in draw.permutation(len(images))[:_EACH]]
            table.writerows([image.resolve(), name, "train"] for image in images)
            tests = sorted((data / "test" / name).iterdir())
            table.writerows([image.resolve(), name, "test"] for image in tests)
    return path


def _tell(rows: list[dict[str, float]]) -> None:
    for row in rows:
        print("  ".join(f"{name} {value:.4g}" for name, value in row.items()))
    gains = [row["fine-tuned"] - row["from scratch"] for row in rows]
    print(f"gain {np.mean(gains):+.2%} (least {min(gains):+.2%}, of {len(rows)} seeds)")


if __name__ == "__main__":
    main()
