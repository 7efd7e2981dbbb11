"""How exact is every model of the table? Against the library that it comes from.

Run with a Python that has torch, torchvision and timm:
    python benchmarks/family.py [--models "resnet*d"] [--no-step]

Random weights and statistics, images of 224x224 and 225x97. Printed are the parameters,
and the largest differences of the logits, of any stage and of the update of any tensor
by one step of gradient descent (computed in float64, two images), each as a share of
the largest value there. Models for CIFAR-10, which no library has, are compared with
the NumPy implementation of the tests, without a step.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import formula
import test_keras_v2 as v2
import test_torch_family as torchs
from numpy_resnet import logits as logits_of

import reszoo
from reszoo.architecture import architecture, count_parameters
from reszoo.specs import SPECS
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
    updates = []
    for size in formula.SIZES:
        expected, moved = module.both_steps(name, size)
        # Keras' float64 normalization follows the biased variance, torch's does not.
        left_out = ("tracked",) if module is v2 else ("tracked", "running_var")
        kept = {k: v for k, v in expected.items() if not k.endswith(left_out)}
        updates.append(share(moved, kept))
    keras.config.set_dtype_policy("float32")
    return [*forward, max(updates)]


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


def main() -> None:
    """Print a row for each model."""
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--models", default="*")
    made.add_argument("--no-step", action="store_true")
    asked = made.parse_args()
    wrong = []
    print(
        f"{'':18}{'parameters':>13}  {'as in':8}{'logits':>9}{'stages':>9}{'step':>9}"
    )
    for name in reszoo.list_models(asked.models):
        count = count_parameters(architecture(name))
        if SPECS[name].image_size == 32 or name.startswith("plain"):
            library, found, same = "NumPy", with_numpy(name), True
        else:
            library = "keras" if name.endswith("v2") else "torch"
            found, same = with_library(name, not asked.no_step), count == counted(name)
        numbers = "".join(f"{each:9.0e}" for each in found)
        print(f"{name:18}{count:13,}  {library:8}{numbers}", flush=True)
        wrong += [name] * (not same or max(found) > LIMIT)
        # The largest models take gigabytes in float64.
        keras.backend.clear_session(free_memory=True)
    print(f"Above {LIMIT:g}, or of another number of parameters: {wrong or 'none'}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
