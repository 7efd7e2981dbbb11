"""How exact is every model of the table, and do its blocks export?

Run with a Python that has torch, torchvision and timm:
    python benchmarks/family.py [FOLDER] [--models "resnet*d"] [--no-step] [--blocks]

Random weights and statistics, images of 224x224 and 225x97, compared with the library
that the model comes from. Printed are the parameters, and the largest differences of
the logits, of any stage and of the update of any tensor by one step of gradient descent
(in float64, two images of 225x97), each as a share of the largest value there. Models
for CIFAR-10, which no library has, are compared with the NumPy implementation of the
tests, without a step. The last columns are those of a small trained model of the same
kind of block (`benchmarks/blocks.py`): formats that give its answers, of nine, and the
share of images that the int8 files classify as it does; without --blocks only where
FOLDER holds them. What FOLDER holds results of is not measured again.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import blocks
import formula
import test_keras_v2 as v2
import test_torch_family as torchs
from numpy_resnet import logits as logits_of

import reszoo
from reszoo.architecture import (
    architecture,
    count_multiply_adds,
    count_parameters,
)
from reszoo.specs import SPECS, ResNetSpec
from reszoo.weights.names import to_tensors

LIMIT = 1e-5
# Updates of biases that the next normalization undoes are 0 but for rounding.
ZERO = 1e-12


def share(answers: dict[str, Any], expected: dict[str, Any]) -> float:
    """Return the largest difference of two dicts, as a share of each largest value."""
    found = [0.0]
    for name, each in expected.items():
        theirs = np.asarray(each)
        largest = np.abs(theirs).max()
        if largest > ZERO:
            found.append(
                float(np.abs(np.asarray(answers[name]) - theirs).max() / largest)
            )
    return max(found)


def with_library(name: str, steps: bool) -> list[float]:
    """Compare logits, stages and updates with the library that has the model."""
    module: Any = v2 if name.endswith("v2") else torchs
    forward = [0.0, 0.0]
    for answers, expected in module.both_answers(name):
        logits = {k: v for k, v in expected.items() if k == "logits"}
        stages = {k: v for k, v in expected.items() if k != "logits"}
        found = [share(answers, each) for each in (logits, stages)]
        forward = [max(pair) for pair in zip(forward, found, strict=True)]
    if not steps:
        return forward
    keras.config.set_dtype_policy("float64")
    expected, moved = module.both_steps(name, formula.SIZES[-1])
    # Keras' float64 normalization follows the biased variance, torch's does not.
    left_out = ("tracked",) if module is v2 else ("tracked", "running_var")
    kept = {k: v for k, v in expected.items() if not k.endswith(left_out)}
    update = share(moved, kept)
    keras.config.set_dtype_policy("float32")
    return [*forward, update]


def with_numpy(name: str) -> list[float]:
    """Compare logits with the tests' own implementation."""
    side, plain = SPECS[name].image_size, SPECS[name].shortcut == "none"
    model = torchs.filled(reszoo.build(name, input_shape=(side, side, 3)))
    images = formula.images(1, side, side)
    expected = logits_of(images, to_tensors(model), plain=plain)
    return [share({"logits": model(images)}, {"logits": expected})]


def counted(name: str) -> int:
    """Return how many weights the library's model trains."""
    if name.endswith("v2"):
        weights = v2.theirs(name).trainable_weights
        return sum(int(np.prod(weight.shape)) for weight in weights)
    return sum(each.numel() for each in torchs.theirs(name).parameters())


def kind_of(spec: ResNetSpec) -> str | None:
    """Return the row of `blocks.KINDS` with the same blocks; None for the oldest."""
    if spec.activation_order == "pre":
        wide = spec.image_size == 32 and spec.widths[0] > 16
        return "wrn16_4" if wide else "resnet50v2" if spec.bias else "preresnet20"
    if spec.downsampling == "avgpool":
        return "resnet10t" if spec.block == "basic" else "resnet26d"
    return "resnext50_32x4d" if spec.groups > 1 else None


def measure(name: str, *, steps: bool) -> dict[str, Any]:
    """Compare a model with the library that has it, or with NumPy."""
    count = count_parameters(architecture(name))
    if SPECS[name].image_size == 32 or name.startswith("plain"):
        return {"in": "NumPy", "count": count, "off": with_numpy(name), "same": True}
    library = "keras" if name.endswith("v2") else "torch"
    off, same = with_library(name, steps), count == counted(name)
    return {"in": library, "count": count, "off": off, "same": same}


def exported(name: str, folder: Path, *, missing: bool) -> str:
    """Return the cells of the table that are of the model's kind of blocks."""
    kind = kind_of(SPECS[name])
    if kind is None or not (missing or (folder / kind / "measure.json").exists()):
        return "- | -"
    row = blocks.stored(blocks.measure, kind, folder)
    return f"{len(row['verified'])} | {min(row['int8'].values()):.1%}"


def main() -> None:
    """Print a row for each model."""
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("folder", nargs="?", type=Path, default=Path("family"))
    made.add_argument("--models", default="*")
    made.add_argument("--no-step", action="store_true")
    made.add_argument("--blocks", action="store_true")
    asked = made.parse_args()
    wrong = []
    asked.folder.mkdir(parents=True, exist_ok=True)
    print("| model | parameters | as in | logits | stages | step | verified | int8 |")
    print("|---|---|---|---|---|---|---|---|")
    for name in sorted(reszoo.list_models(asked.models), key=size_of):
        path = asked.folder / f"{name}{'-no-step' * asked.no_step}.json"
        if not path.exists():
            path.write_text(json.dumps(measure(name, steps=not asked.no_step)))
            # The largest models take gigabytes in float64.
            keras.backend.clear_session(free_memory=True)
        row = json.loads(path.read_text())
        numbers = [f"{each:.0e}" for each in row["off"]] + ["-"] * 2
        cells = " | ".join([name, f"{row['count']:,}", row["in"], *numbers[:3]])
        files = exported(name, asked.folder, missing=asked.blocks)
        print(f"| {cells} | {files} |", flush=True)
        wrong += [name] * (not row["same"] or max(row["off"]) > LIMIT)
    print(f"Above {LIMIT:g}, or of another number of parameters: {wrong or 'none'}")
    sys.exit(bool(wrong))


def size_of(name: str) -> int:
    """Return the multiply-adds of a model, by which the cheapest comes first."""
    return count_multiply_adds(architecture(name))


if __name__ == "__main__":
    main()
