"""Sampling, class weights and patience on CIFAR-10 (JPEG) with classes of unequal size.

    python benchmarks/imbalance.py DATA OUTPUT [--seeds 3] [--epochs 30]

Class i of 0 to 9 keeps 5,000 * 0.01^(i / 9) training images (Cui et al. 2019,
arXiv:1901.05555, imbalance factor 100); the test images stay. Every row is trained
from every seed, its epoch chosen by balanced accuracy on a held-out tenth. A second
call continues where the first was stopped: each run resumes from its own state, and
what is in OUTPUT/results.json is not trained again.
"""

import argparse
import json
import os
import statistics
from pathlib import Path
from typing import Any

import reszoo
from reszoo.files import write_json

ROWS: dict[str, dict[str, Any]] = {
    "as in the data": {},
    "sampling=balanced": {"sampling": "balanced"},
    "sampling=0.5": {"sampling": 0.5},
    "class_weight=balanced": {"class_weight": "balanced"},
    "sampling=0.5, class_weight=balanced": {
        "sampling": 0.5, "class_weight": "balanced",
    },
    "patience": {},
}  # fmt: skip


def unequal(data: Path, output: Path, largest: int) -> Path:
    """Link the images that each class keeps; return the folder."""
    for split in ("train", "test"):
        for index, folder in enumerate(sorted((data / split).iterdir())):
            files = sorted(folder.iterdir())
            if split == "train":
                files = files[: max(2, round(largest * 0.01 ** (index / 9)))]
            place = output / split / folder.name
            place.mkdir(parents=True, exist_ok=True)
            for file in files:
                if not (place / file.name).exists():
                    os.link(file, place / file.name)
    return output


def measured(data: Path, output: Path, row: str, seed: int, args: Any) -> Any:
    """Train one row from one seed, or go on with it; return its numbers."""
    fields = ROWS[row] | ({"patience": args.patience} if row == "patience" else {})
    run = reszoo.train(
        "resnet20", data, recipe="cifar", epochs=args.epochs, seed=seed,
        batch_size=args.batch_size, best_by="balanced_accuracy", resume=True,
        output=output / "runs" / f"{[*ROWS].index(row)}-{seed}", **fields,
    )  # fmt: skip
    found = reszoo.evaluate(run.model, data, split="test")
    return {
        "balanced_accuracy": found.balanced_accuracy,
        "macro_f1": found.macro_f1,
        "accuracy": found.top1,
        "rarest class": found.confusion[-1, -1] / found.confusion[-1].sum(),
        "epochs": run.history[-1].epoch,
    }


def table(results: dict[str, Any]) -> str:
    """Return the mean and standard deviation over the seeds, in Markdown."""
    names = ["balanced_accuracy", "macro_f1", "accuracy", "rarest class"]
    lines = [f"| | {' | '.join(names)} | epochs |", f"|---|{'---|' * 5}"]
    for row in ROWS:
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with train/ and test/")
    parser.add_argument("output", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--patience", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--largest", type=int, default=5000, help="images of class 0")
    parser.add_argument("--rows", type=int, default=len(ROWS), help="the first so many")
    args = parser.parse_args()
    data = unequal(args.data, args.output / "data", args.largest)
    kept = args.output / "results.json"
    results = json.loads(kept.read_text()) if kept.exists() else {}
    for seed in range(args.seeds):
        for row in [*ROWS][: args.rows]:
            key = f"{row} / {seed}"
            if key not in results:
                results[key] = measured(data, args.output, row, seed, args)
                write_json(kept, results)
                print(table(results), flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
