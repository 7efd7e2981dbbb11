"""Does the same training come out? Losses of reszoo, Keras and torch, step by step.

Run: python benchmarks/losses.py [--peers PYTHON] [--json FILE]

ResNet-18 begins with the same weights everywhere and sees the same 200 batches: noise
of 64 pixels with a tint of its class, a fifth of the labels wrong, so that the loss
falls and has a floor. It reports images per second as well; training.py compares them.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness
import numpy as np
from harness import Contender, Target
from training import compile_keras, import_torch, of_keras_layers, reszoo_step
from training import torch_step as step_of_torch

VARIANT, SIDE, BATCH, STEPS, CLASSES, RATE = "resnet18", 64, 32, 200, 10, 0.005
# Steps at the end whose mean counts, and how far from torch's it may be. Until then
# rounding has been amplified step by step; at the beginning it has not.
LAST, NEAR, EARLY = 40, 0.02, 5
Step = Callable[[Any, Any], float]


def batches() -> Iterator[tuple[Any, Any]]:
    """Yield uint8 `(batch, side, side, 3)` and int64 `(batch,)`, always the same."""
    draw = np.random.default_rng(0)
    tints = draw.normal(0, 12, (CLASSES, 1, 1, 3))
    for _ in range(STEPS):
        shown = draw.integers(0, CLASSES, BATCH)
        pixels = draw.normal(128, 40, (BATCH, SIDE, SIDE, 3)) + tints[shown]
        wrong = draw.random(BATCH) < 0.2
        labels = np.where(wrong, draw.integers(0, CLASSES, BATCH), shown)
        yield np.clip(pixels, 0, 255).astype(np.uint8), labels.astype(np.int64)


def reszoo_course(weights: str, precision: str) -> Step:
    """Return a step of `reszoo.train`."""
    import tensorflow as tf

    import reszoo

    step = reszoo_step(reszoo.load(weights), BATCH, RATE, precision)
    return lambda *batch: float(step(*map(tf.constant, batch)))


def keras_course(weights: str, precision: str) -> Step:
    """Return a step of Keras; only float32."""
    import reszoo

    ours = reszoo.load(weights)
    model = of_keras_layers(ours)
    model.set_weights(ours.get_weights())
    compile_keras(model, RATE, from_logits=True)
    preprocessing = reszoo.card(ours).preprocessing

    def step(images: Any, labels: Any) -> float:
        pixels = preprocessing.normalise(images.astype(np.float32))
        # Keras reports the mean of all losses since its state was last reset.
        model.reset_metrics()
        return float(model.train_on_batch(pixels, labels))

    return step


def torch_course(weights: str, precision: str) -> Step:
    """Return a step of torchvision's model."""
    import_torch()
    from safetensors.torch import load_file

    step: Step = step_of_torch(VARIANT, CLASSES, RATE, precision, load_file(weights))
    return step


COURSES = {"reszoo": reszoo_course, "keras": keras_course, "torch": torch_course}


def train(library: str, precision: str, weights: str) -> None:
    """Carry out all steps in this process."""
    step = COURSES[library](weights, precision)
    clock, losses = harness.Clock(), []
    for images, labels in batches():
        losses.append(step(images, labels))
        clock.tick()
    package = "torch" if library == "torch" else "tensorflow"
    harness.emit(
        clock.run(BATCH, warm_up=10),
        first=losses[0],
        last=float(np.mean(losses[-LAST:])),
        losses=losses,
        versions=harness.versions(package),
    )


def contenders(weights: Path, peers: str | None) -> list[Contender]:
    """Return the contenders: each library in float32, reszoo and torch in bfloat16."""
    pairs = [("reszoo", "float32"), ("reszoo", "bfloat16"), ("keras", "float32")]
    if peers:
        pairs += [("torch", "float32"), ("torch", "bfloat16")]
    return [
        Contender(
            f"{library} {precision}",
            (
                peers if peers and library == "torch" else sys.executable,
                __file__,
                *("--process", library, precision, str(weights)),
            ),
        )
        for library, precision in pairs
    ]


def notes(runs: harness.Runs) -> list[str]:
    """Return a line per contender: its losses, and how they differ."""
    against = "torch float32" if "torch float32" in runs else "keras float32"
    right = runs[against][0]
    lines = []
    for name, (run, *_) in runs.items():
        apart = run["last"] / right["last"] - 1
        early = np.subtract(run["losses"], right["losses"])[:EARLY]
        lines.append(
            f"{name}: loss {run['first']:.5f} at the first step, {run['last']:.4f} "
            f"over the last {LAST} of {STEPS}; from {against} at most "
            f"{np.abs(early).max():.1e} in the first {EARLY} steps and {apart:+.1%} at "
            f"the end, target {NEAR:.0%}: {'met' if abs(apart) <= NEAR else 'not met'}"
        )
    return lines


def main() -> None:
    """Compare the losses."""
    given = harness.parser(__doc__ or "", rounds=1).parse_args()
    if given.process:
        train(*given.process)
        return
    import reszoo

    with tempfile.TemporaryDirectory() as name:
        weights = Path(name) / "first.safetensors"
        shape = (SIDE, SIDE, 3)
        model = reszoo.build(VARIANT, classes=CLASSES, input_shape=shape, seed=0)
        reszoo.save(model, weights)
        entrants = contenders(weights, given.peers)
        runs = harness.measure(entrants, given.rounds)
    none: tuple[Target, ...] = ()
    results = harness.summary(entrants, runs, none, notes(runs))
    harness.report(results, given.json)


if __name__ == "__main__":
    main()
