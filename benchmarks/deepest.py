"""How much memory does a training step of the deepest model take?

Run: python benchmarks/deepest.py [--model preresnet1001] [--batches 16 64] [--steps 3]

With and without recomputation, each batch size in a process of its own, which takes
steps as `reszoo.train` does, on synthetic images: the most memory that it ever held,
seconds for its last step, and the loss before it.
"""

import argparse
import json
import subprocess
import sys
import time
from itertools import product

import harness
import numpy as np
from training import Load, batch_of, reszoo_step

LIMIT, RATE = 6 << 30, 0.01


def measure(name: str, batch: int, steps: int, *, recompute: bool) -> None:
    """Take steps in this process and print what they took."""
    import tensorflow as tf

    import reszoo

    model = reszoo.build(name, seed=0)
    step = reszoo_step(model, batch, RATE, "float32", recompute=recompute)
    load = Load(reszoo.card(model).preprocessing.train_size, batch, steps, 1)
    images, labels = map(tf.constant, batch_of(load))
    losses, seconds = [], 0.0
    for _ in range(steps):
        began = time.perf_counter()
        losses.append(step(images, labels))
        seconds = time.perf_counter() - began
    if not np.isfinite(losses).all():
        raise SystemExit(f"The loss must be finite. Received: {losses}")
    size = harness.memory("VmHWM")
    print(json.dumps({"bytes": size, "seconds": seconds, "loss": losses[-1]}))


def main() -> None:
    """Measure every batch size and print a table."""
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--model", default="preresnet1001")
    made.add_argument("--batches", type=int, nargs="+", default=[16, 64])
    made.add_argument("--steps", type=int, default=3)
    made.add_argument("--recompute", choices=("no", "yes"), nargs="+", default=["yes"])
    made.add_argument("--process", type=int, help=argparse.SUPPRESS)
    asked = made.parse_args()
    if asked.process:
        recompute = asked.recompute == ["yes"]
        measure(asked.model, asked.process, asked.steps, recompute=recompute)
        return
    within = []
    for batch, recompute in product(asked.batches, asked.recompute):
        words = ["--model", asked.model, "--steps", str(asked.steps)]
        words += ["--process", str(batch), "--recompute", recompute]
        command = [sys.executable, __file__, *words]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        within += [batch] * (found["bytes"] <= LIMIT)
        print(
            f"batch {batch}, recompute {recompute}: {found['bytes'] / (1 << 30):.2f} "
            f"GiB, {found['seconds']:.1f} s a step, loss {found['loss']:.6f}",
            flush=True,
        )
    print(f"Within {LIMIT >> 30} GiB: {within}")
    sys.exit(not within)


if __name__ == "__main__":
    main()
