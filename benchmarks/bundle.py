"""Measure a checkpoint trained on CIFAR-10 (JPEG) and put it into the package.

Run: python benchmarks/bundle.py RUN_FOLDER DATA

DATA is the folder with train/ and test/ that the run was trained on. The card gets the
accuracy on its 10,000 test images and the commands that repeat its training, also the
earlier one whose weights it started from, but no paths of this machine.
"""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import reszoo
from reszoo.cards import Metric
from reszoo.training.recipes import repeat_command
from reszoo.weights.location import BUNDLED

DATA = "CIFAR-10 (JPEG)"
SPLIT = f"{DATA}, the 10,000 test images"


def commands(spec: str, provenance: Mapping[str, Any], run: str = "RUN") -> list[str]:
    """Return the commands that repeat a training and the one that it started from."""
    before, weights, earlier = provenance.get("began_as"), None, []
    if before is not None:
        earlier = commands(spec, before, f"{run}0")
        weights = f"{run}0/best.safetensors"
    recipe = reszoo.Recipe(**provenance["recipe"])
    words = repeat_command(spec, "DATA", recipe, weights, Path(run), "skip")
    return [*earlier, " ".join(words)]


def without_paths(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return where weights come from, with the data's name instead of its folder."""
    changes: dict[str, Any] = {"data": DATA}
    if "began_as" in provenance:
        changes["began_as"] = without_paths(provenance["began_as"])
    return {**provenance, **changes}


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
    provenance = without_paths(card.provenance)
    spec = card.architecture.name
    provenance["command"] = " && ".join(commands(spec, provenance))
    provenance["licence"] = "Apache-2.0"
    card = replace(card, provenance=provenance, metrics=tuple(metrics))
    target = BUNDLED["cifar10"][spec]
    target.parent.mkdir(exist_ok=True)
    reszoo.save(model, target, card)
    print(f"{target.name}: {measured.top1:.2%} top-1, {target.stat().st_size:,} bytes")
    print(provenance["command"])


if __name__ == "__main__":
    main()
