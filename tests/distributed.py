"""Train tiny nets, as one process of several: `python distributed.py FOLDER JOBS`.

Each job (JSON: name, strategy, options, and when which worker gets a signal) leaves
`FOLDER/<name>.<worker>.npz` with the losses, the weights and the error, if any.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

import reszoo
from reszoo.training.step import PhaseTrainer
from reszoo.weights.names import to_tensors

WORKER = json.loads(os.environ.get("TF_CONFIG", '{"task": {"index": 0}}'))["task"]


def images(uneven: bool = False) -> dict[str, Any]:
    """Noise, darker or lighter by class; 128 to learn from, 64 to judge by."""
    labels = np.arange(192) % 4
    if uneven:
        labels[:96] = 0
    noise = np.random.default_rng(0).integers(0, 100, (192, 16, 16, 3))
    pixels = (noise + 40 * labels[:, None, None, None]).astype(np.uint8)
    return {"train": (pixels[:128], labels[:128]), "val": (pixels[128:], labels[128:])}


def train(job: dict[str, Any], folder: Path) -> None:
    options: dict[str, Any] = {
        "recipe": "cifar",
        "batch_size": 16,
        "epochs": 2,
        "seed": 1,
    }
    # At a higher rate a difference in rounding grows tenfold in a few steps.
    options |= {"learning_rate": 0.01, "label_smoothing": 0.0, "precision": "float32"}
    options |= {"train_size": 16, "eval_size": 16, **job.get("options", {})}
    if "output" in options:
        options["output"] = folder / options["output"]
    if "seeds" in options:
        options["seed"] = options.pop("seeds")[WORKER["index"]]
    data = images(options.pop("uneven", False))
    signalled = job.get("signal") or {}
    losses: list[float] = []
    spread: list[float] = []
    last = [time.time()]
    plain = PhaseTrainer.train

    def watched(trainer: PhaseTrainer, *arguments: Any) -> tuple[float, int]:
        taken = plain(trainer, *arguments)
        losses.append(taken[0])
        copies = [getattr(each, "values", ()) for each in trainer.variables().values()]
        spread.extend(float(abs(c[0] - c[-1]).numpy().max()) for c in copies if c)
        last.append(time.time())
        if (len(losses), WORKER["index"]) == (signalled.get("step"), 1):
            os.kill(os.getpid(), signal.Signals[signalled["name"]])
        return taken

    found: dict[str, Any] = {}
    PhaseTrainer.train = watched  # type: ignore[method-assign,assignment]
    try:
        run = reszoo.train("resnet8", data, strategy=job["strategy"], **options)
        history = [(row.loss, row.validation_loss) for row in run.history]
        found = {**to_tensors(run.model), "history": np.array(history)}
    except (reszoo.ReszooError, KeyboardInterrupt) as error:
        found = {"error": f"{type(error).__name__}: {error}"}
    finally:
        PhaseTrainer.train = plain  # type: ignore[method-assign]
    path = folder / f"{job['name']}.{WORKER['index']}.npz"
    found["copies"], found["spread"] = len(spread), max(spread, default=0.0)
    np.savez(path, losses=losses, last_step_to_end=time.time() - last[-1], **found)


def main(folder: Path, jobs: list[dict[str, Any]]) -> None:
    tf.config.experimental.enable_op_determinism()
    if "TF_CONFIG" not in os.environ:
        (cpu,) = tf.config.list_physical_devices("CPU")
        two = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpu, two)
    for job in jobs:
        begun = time.time()
        train(job, folder)
        print(job["name"], f"{time.time() - begun:.1f} s", flush=True)


main(Path(sys.argv[1]), json.loads(sys.argv[2]))
