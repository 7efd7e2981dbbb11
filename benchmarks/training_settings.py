"""Class imbalance, early stopping and distillation on CIFAR-10 (JPEG), over seeds.

    python benchmarks/training_settings.py imbalance DATA OUTPUT [--seeds 3]
    python benchmarks/training_settings.py patience DATA OUTPUT [--epochs 60]
    python benchmarks/training_settings.py distillation DATA OUTPUT [--images 1000]

DATA has `train` and `test` folders. In "imbalance" and "patience", class i of 0 to 9
keeps 5,000 * 0.01^(i / 9) training images (Cui et al. 2019, arXiv:1901.05555,
imbalance factor 100) and the epoch is chosen by balanced accuracy on a held-out tenth;
the learning rate of "patience" is constant, so that training has no planned end. In
"distillation" all classes keep as many, and the teacher is the bundled ResNet-32. The
test images stay. Each row differs from the first in the recipe's fields that it names
and is trained from every seed. A second call continues where the first was stopped:
each run resumes from its own state, and what is in OUTPUT/results.json is not trained
again.
"""

import argparse
import json
import os
import statistics
from pathlib import Path
from typing import Any

import reszoo
from reszoo.files import write_json

TEACHER = Path(reszoo.__file__).parent / "bundled" / "resnet32-cifar10.safetensors"
ROWS: dict[str, dict[str, dict[str, Any]]] = {
    "imbalance": {
        "as in the data": {},
        "sampling=balanced": {"sampling": "balanced"},
        "class_weight=balanced": {"class_weight": "balanced"},
        "sampling=0.5": {"sampling": 0.5},
        "sampling=0.5, class_weight=balanced": {
            "sampling": 0.5, "class_weight": "balanced",
        },
        "patience=5": {"patience": 5},
    },
    "patience": {
        name: {"schedule": "constant", "sampling": 0.5, **fields}
        for name, fields in {
            "all epochs": {},
            **{f"patience={n}": {"patience": n} for n in (5, 10, 20)},
        }.items()
    },
    "distillation": {"without": {}, "teacher: resnet32": {"teacher": TEACHER}},
}  # fmt: skip


def linked(data: Path, output: Path, largest: int, ratio: float) -> Path:
    """Link the images that each class keeps; return the folder.

    Args:
        data: Has `train` and `test` folders of classes.
        output: Becomes such a folder.
        largest: Training images of the first class.
        ratio: Of the last class's images to the first one's.
    """
    for split in ("train", "test"):
        for index, folder in enumerate(sorted((data / split).iterdir())):
            files = sorted(folder.iterdir())
            if split == "train":
                files = files[: max(2, round(largest * ratio ** (index / 9)))]
            place = output / split / folder.name
            place.mkdir(parents=True, exist_ok=True)
            for file in files:
                if not (place / file.name).exists():
                    os.link(file, place / file.name)
    return output


def measured(data: Path, row: str, seed: int, given: Any) -> dict[str, float]:
    """Train one row from one seed, or go on with it; return its numbers."""
    rows = ROWS[given.experiment]
    run = reszoo.train(
        given.model, data, recipe="cifar", epochs=given.epochs, seed=seed,
        batch_size=given.batch_size, best_by="balanced_accuracy", resume=True,
        output=given.output / "runs" / f"{[*rows].index(row)}-{seed}", **rows[row],
    )  # fmt: skip
    found = reszoo.evaluate(run.model, data, split="test")
    return {
        "balanced accuracy": found.balanced_accuracy,
        "macro F1": found.macro_f1,
        "accuracy": found.top1,
        "last class": found.confusion[-1, -1] / found.confusion[-1].sum(),
        "epochs": run.history[-1].epoch,
    }


def table(rows: dict[str, Any], results: dict[str, dict[str, float]]) -> str:
    """Return the mean and standard deviation over the seeds, in Markdown."""
    names = ["balanced accuracy", "macro F1", "accuracy", "last class"]
    lines = [f"| | {' | '.join(names)} | epochs |", f"|---|{'---|' * 5}"]
    for row in rows:
        runs = [value for key, value in results.items() if key.startswith(f"{row} / ")]
        if not runs:
            continue
        cells = []
        for name in names:
            values = [100 * run[name] for run in runs]
            spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.2f} %{spread}")
        epochs = statistics.mean(run["epochs"] for run in runs)
        lines.append(f"| {row} | {' | '.join(cells)} | {epochs:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", choices=ROWS)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument(
        "--images", type=int, default=5000, help="for training, of the first class"
    )
    parser.add_argument("--rows", type=int, help="only the first so many")
    given = parser.parse_args()
    ratio = 1.0 if given.experiment == "distillation" else 0.01
    data = linked(given.data, given.output / "data", given.images, ratio)
    rows = dict([*ROWS[given.experiment].items()][: given.rows])
    kept = given.output / "results.json"
    results = json.loads(kept.read_text()) if kept.exists() else {}
    for seed in range(given.seeds):
        for row in rows:
            key = f"{row} / {seed}"
            if key not in results:
                results[key] = measured(data, row, seed, given)
                write_json(kept, results)
                print(table(rows, results), flush=True)
    print(table(rows, results))


if __name__ == "__main__":
    main()
