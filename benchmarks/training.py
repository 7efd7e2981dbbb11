"""How many images a second are trained on? reszoo, Keras' `fit` and torch.

Run: python benchmarks/training.py [--models resnet50] [--peers PYTHON] [--json FILE]
    [--precisions float32] [--side 96] [--libraries reszoo torch.compile]

Synthetic uint8 images in memory, the same model, SGD with momentum, 2 threads. "keras"
is `compile` and `fit` with their defaults (XLA where Keras chooses it): ResNet-50 from
keras.applications, the others reszoo's layers with Keras' own BatchNormalization and
Conv2D. torch runs torchvision's models, or timm's, in channels_last, bfloat16 by
autocast. Each process also checks that its loss is finite and falls.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import harness
import numpy as np
import roof
from harness import Contender, Target

RATE, MOMENTUM, CLASSES, LABELS, WARM_UP = 0.001, 0.9, 1000, 10, 2


@dataclass(frozen=True)
class Load:
    """What is trained on.

    Attributes:
        side: Of the images, in pixels.
        batch: Images a step.
        steps: A sample.
        samples: A process.
        absent: Libraries that do not have the model.
    """

    side: int
    batch: int
    steps: int
    samples: int
    absent: tuple[str, ...] = ()


_PEERS = ("torch", "torch.compile", "KerasHub")
LOADS = {
    "resnet50": Load(224, 16, 1, 4),
    "resnet18": Load(224, 16, 2, 8),
    "resnet20": Load(32, 128, 8, 10, absent=_PEERS),
    # Keras takes minutes for a step with grouped convolutions.
    "resnext50_32x4d": Load(224, 8, 1, 2, absent=("KerasHub",)),
    "resnet50d": Load(224, 16, 1, 4, absent=("KerasHub",)),
}
_USUAL = ["resnet50", "resnet18", "resnet20"]
PRECISIONS = ("float32", "bfloat16")


def batch_of(load: Load) -> tuple[Any, Any]:
    """Return uint8 images `(batch, side, side, 3)` and a few different labels."""
    draw = np.random.default_rng(0)
    shape = (load.batch, load.side, load.side, 3)
    labels = draw.integers(0, LABELS, load.batch)
    return draw.integers(0, 256, shape, np.uint8), labels.astype(np.int64)


def falling(losses: list[float]) -> None:
    """End the process where the loss is not finite or does not fall."""
    if not np.isfinite(losses).all() or losses[-1] >= losses[0]:
        raise SystemExit(f"The loss must be finite and fall. Received: {losses}")


def timed(step: Callable[[], float], load: Load, *packages: str) -> None:
    """Measure a loop of steps, each of which returns its loss."""
    losses: list[float] = []

    def sample() -> None:
        losses.extend(step() for _ in range(load.steps))

    images = load.batch * load.steps
    run = harness.sampled(sample, items=images, warm_up=WARM_UP, samples=load.samples)
    falling(losses)
    harness.emit(run, losses=losses, versions=harness.versions(*packages))


def train_reszoo(name: str, load: Load, precision: str) -> None:
    """Train as `reszoo.train` does."""
    import tensorflow as tf

    import reszoo

    shape = (load.side, load.side, 3)
    model = reszoo.build(name, classes=CLASSES, input_shape=shape, seed=0)
    step = reszoo_step(model, load.batch, RATE, precision)
    images, labels = map(tf.constant, batch_of(load))
    timed(lambda: step(images, labels), load, "tensorflow", "keras")


def reszoo_step(
    model: Any, batch: int, rate: float, precision: str, *, recompute: bool = False
) -> Any:
    """Return a function of uint8 images and labels: a step, which returns the loss."""
    import reszoo
    from reszoo.training.devices import Devices
    from reszoo.training.model import training_copy
    from reszoo.training.phases import phases
    from reszoo.training.recipes import find_recipe
    from reszoo.training.step import PhaseTrainer

    recipe = find_recipe(
        "torchvision-v1",
        batch_size=batch,
        learning_rate=rate,
        momentum=MOMENTUM,
        weight_decay=0.0,
        precision=precision,
        recompute=recompute,
        schedule="constant",
        milestones=(),
        epochs=1,
    )
    card = reszoo.card(model)
    architecture, preprocessing = card.architecture, card.preprocessing
    copy = training_copy(model, preprocessing, recipe)
    (phase,) = phases(recipe, 1000 * batch)
    trainer = PhaseTrainer(copy, architecture, preprocessing, phase, Devices())
    return lambda images, targets: trainer.train(images, targets, 0, 0)[0]


def train_keras(name: str, load: Load, precision: str, *, hub: bool = False) -> None:
    """Train with `fit`; a sample is an epoch of a few steps."""
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    if precision == "bfloat16":
        keras.config.set_dtype_policy("mixed_bfloat16")
    shape = (load.side, load.side, 3)
    if hub:
        from inference_peers import keras_hub_model

        model, from_logits = keras_hub_model(name, shape), True
    else:
        model, from_logits = _keras_model(name, shape)
    compile_keras(model, RATE, from_logits=from_logits)
    batches = tf.data.Dataset.from_tensor_slices(batch_of(load)).repeat()
    batches = batches.batch(load.batch, drop_remainder=True)
    batches = batches.map(lambda x, y: (tf.cast(x, tf.float32) / 127.5 - 1, y))
    clock = harness.Clock()
    history = model.fit(
        batches.prefetch(2),
        epochs=WARM_UP + load.samples,
        steps_per_epoch=load.steps,
        verbose=0,
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=clock.tick)],
    )
    losses = [float(loss) for loss in history.history["loss"]]
    falling(losses)
    harness.emit(
        clock.run(load.batch * load.steps, WARM_UP),
        losses=losses,
        versions=harness.versions("tensorflow", "keras"),
    )


def compile_keras(model: Any, rate: float, *, from_logits: bool) -> None:
    """Prepare for `fit`, with its defaults."""
    import keras

    model.compile(
        keras.optimizers.SGD(rate, momentum=MOMENTUM),
        keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits),
    )


def _keras_model(name: str, shape: tuple[int, int, int]) -> tuple[Any, bool]:
    """Return a model, and whether it ends in logits."""
    import keras

    if name == "resnet50":
        options = {"classes": CLASSES, "input_shape": shape}
        return keras.applications.ResNet50(weights=None, **options), False
    import reszoo

    model = reszoo.build(name, classes=CLASSES, input_shape=shape, seed=0)
    return of_keras_layers(model), True


def of_keras_layers(model: Any) -> Any:
    """Return the same model of Keras' own layers, without its weights."""
    import keras

    from reszoo.layers import BatchNormalization, Conv2D

    def plain(layer: Any) -> Any:
        config = layer.get_config()
        if isinstance(layer, BatchNormalization):
            return keras.layers.BatchNormalization.from_config(config)
        if isinstance(layer, Conv2D):
            config.pop("differentiable", None)
            return keras.layers.Conv2D.from_config(config)
        return type(layer).from_config(config)

    return keras.models.clone_model(model, clone_function=plain)


def train_torch(
    name: str, load: Load, precision: str, *, compiled: bool = False
) -> None:
    """Train in channels_last."""
    import_torch().manual_seed(0)
    step = torch_step(name, CLASSES, RATE, precision, compiled=compiled)
    images, labels = batch_of(load)
    timed(lambda: step(images, labels), load, "torch", "torchvision")


def import_torch() -> Any:
    """Import torchvision and torch with the right number of threads; return torch."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from torch_peers import import_torchvision

    import_torchvision()
    import torch

    torch.set_num_threads(harness.THREADS)
    return torch


def torch_step(
    name: str,
    classes: int,
    rate: float,
    precision: str,
    weights: Any = None,
    *,
    compiled: bool = False,
) -> Any:
    """Return what `reszoo_step` does, for torchvision's model, or timm's."""
    torch = import_torch()
    import torchvision

    layout = {"memory_format": torch.channels_last}
    if name in torchvision.models.list_models():
        model = torchvision.models.get_model(name, num_classes=classes)
    else:
        import timm

        model = timm.create_model(name, num_classes=classes)
    if weights:
        model.load_state_dict(weights, strict=False)
    model.to(**layout)
    optimizer = torch.optim.SGD(model.parameters(), rate, MOMENTUM)
    if compiled:
        model = torch.compile(model)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)

    def step(images: Any, labels: Any) -> float:
        images = torch.from_numpy(images).permute(0, 3, 1, 2)
        pixels = (images.float() / 255 - mean) / std
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            logits = model(pixels.contiguous(**layout))
            loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss)

    return step


TRAINERS = {
    "reszoo": train_reszoo,
    "keras": train_keras,
    "KerasHub": partial(train_keras, hub=True),
    "torch": train_torch,
    "torch.compile": partial(train_torch, compiled=True),
}


def contenders(
    names: list[str],
    peers: str | None,
    precisions: list[str],
    side: int | None,
    libraries: list[str],
) -> list[Contender]:
    """Return the libraries in each precision, for every model."""
    found = [roof.contender(precision) for precision in precisions]
    for name in names:
        for precision in precisions:
            for library in libraries:
                python = peers if library in _PEERS else sys.executable
                if not python or library in LOADS[name].absent:
                    continue
                words = [python, __file__, "--process", library, name, precision]
                if side and LOADS[name].side > side:
                    words.append(str(side))
                found.append(Contender(f"{name} {library} {precision}", words))
    return found


def targets(names: list[str], there: set[str]) -> list[Target]:
    """Return the project's targets for the contenders there are."""
    found = []
    for name in names:
        ours, plain = f"{name} reszoo bfloat16", f"{name} reszoo float32"
        found += [
            Target(ours, f"{name} keras float32", 2.0),
            Target(ours, f"{name} keras bfloat16", 1.0),
            Target(plain, f"{name} keras float32", 1.0),
            Target(ours, f"{name} torch bfloat16", 1.0),
            Target(plain, f"{name} torch float32", 1.0),
            Target(ours, f"{name} torch.compile bfloat16", 1.0),
            Target(plain, f"{name} torch.compile float32", 1.0),
            Target(ours, f"{name} KerasHub bfloat16", 1.0),
            Target(plain, f"{name} KerasHub float32", 1.0),
        ]
    return [each for each in found if {each.ours, each.theirs} <= there]


def main() -> None:
    """Compare the libraries."""
    parser = harness.parser(__doc__ or "", rounds=4)
    parser.add_argument("--models", nargs="+", choices=LOADS, default=_USUAL)
    parser.add_argument("--side", type=int, help="of large images, 224 by default")
    parser.add_argument(
        "--precisions", nargs="+", choices=PRECISIONS, default=[*PRECISIONS]
    )
    parser.add_argument(
        "--libraries", nargs="+", choices=TRAINERS, default=["reszoo", "keras", "torch"]
    )
    given = parser.parse_args()
    if given.process:
        library, name, precision, *side = given.process
        load = replace(LOADS[name], side=int(side[0])) if side else LOADS[name]
        TRAINERS[library](name, load, precision)
        return
    entrants = contenders(
        given.models,
        given.peers,
        given.precisions,
        given.side,
        given.libraries,
    )
    notes = [] if given.peers else ["torch is left out: pass --peers PYTHON."]
    runs = harness.measure(entrants, given.rounds)
    wanted = targets(given.models, set(runs))
    results = harness.summary(entrants, runs, wanted, notes)
    harness.report(results, given.json)


if __name__ == "__main__":
    main()
