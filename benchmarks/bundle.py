"""Measure a checkpoint trained on CIFAR-10 (JPEG) and put it into the package.

Run: python benchmarks/bundle.py RUN_FOLDER DATA

DATA is the folder with train/ and test/ that the run was trained on. The card gets the
accuracy on its 10,000 test images and the command that repeats the training, and no
path of this machine.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import reszoo
from reszoo.cards import Metric
from reszoo.checkpoints.bundled import BUNDLED
from reszoo.training.command import repeating

DATA = "CIFAR-10 (JPEG)"
SPLIT = f"{DATA}, the 10,000 test images"


def command(card: reszoo.Card) -> str:
    """Return the command that repeats a training."""
    recipe = reszoo.Recipe(**card.provenance["recipe"])
    spec, run = card.architecture.spec, Path("RUN")
    return " ".join(repeating(spec, "DATA", recipe, None, run, "skip"))


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    given = parser.parse_args()
    checkpoint = given.run / "best.safetensors"
    model = reszoo.load(checkpoint)
    measured = reszoo.evaluate(model, given.data)
    card = reszoo.card(model)
    metrics = [
        Metric(name="top1", value=measured.top1, data=SPLIT),
        Metric(name="top5", value=measured.top5, data=SPLIT),
    ]
    provenance = {
        **card.provenance, "data": DATA, "command": command(card),
        "licence": "Apache-2.0",
    }  # fmt: skip
    card = replace(card, provenance=provenance, metrics=tuple(metrics))
    target = BUNDLED["cifar10"][card.architecture.spec]
    target.parent.mkdir(exist_ok=True)
    reszoo.save(model, target, card)
    print(f"{target.name}: {measured.top1:.2%} top-1, {target.stat().st_size:,} bytes")
    print(provenance["command"])


if __name__ == "__main__":
    main()
