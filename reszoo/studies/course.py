"""Train one model of a study from fresh weights or from a saved state."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from reszoo.console import Progress
from reszoo.data.examples import Examples
from reszoo.data.pipeline import (
    Augmentation,
    evaluation_batches,
    quietly,
    training_batches,
)
from reszoo.layers import reinitialize
from reszoo.preprocessing import Preprocessing
from reszoo.studies.families import Net
from reszoo.studies.results import Course, Point, Snapshot
from reszoo.training.optimizers import Optimizer
from reszoo.training.phases import Phase
from reszoo.training.recipes import Recipe
from reszoo.training.state import Stop, Stopped, read_state, restore, write_state
from reszoo.training.step import LOSSES, decay, rule_of, targets

# Digits of a norm that are kept: a plot shows fewer.
_DIGITS = 4


class Learner:
    """A net, what moves its weights, and what is seen on the way.

    Args:
        net: From images to logits, built in the precision it shall learn in.
        record: How pixels are normalised.
        recipe: Optimizer, loss and decay.
    """

    def __init__(self, net: keras.Model, record: Preprocessing, recipe: Recipe) -> None:
        self.net, self._record, self._recipe = net, record, recipe
        self._weights = net.trainable_variables
        decays = [decay(weight, recipe) for weight in self._weights]
        self._optimizer = Optimizer(rule_of(recipe), self._weights, decays)
        self._watched = keras.Model(net.inputs, [net.output, *_rectified(net)])
        self._kernels = [_is_main_kernel(weight) for weight in self._weights]
        self._step: Callable[..., Any] = tf.function(self._descend, autograph=False)
        pixels = tf.TensorSpec((None, *net.input_shape[1:]), tf.uint8)
        self._answer = tf.function(
            self._hits,
            input_signature=[pixels, tf.TensorSpec((None,), tf.int64)],
            autograph=False,
        )

    @property
    def parameters(self) -> int:
        """Number of weights that learn."""
        return sum(int(np.prod(weight.shape)) for weight in self._weights)

    def variables(self) -> dict[str, tf.Variable]:
        """Return all that a state must hold, by name."""
        found = {f"net/{each.path}": each.value for each in self.net.variables}
        return found | self._optimizer.state()

    def begin(self, seed: int) -> None:
        """Take fresh weights and forget all momentum."""
        reinitialize(self.net, seed)
        for variable in self._optimizer.state().values():
            variable.assign(tf.zeros_like(variable))

    def learn(
        self, images: tf.Tensor, labels: tf.Tensor, rate: float
    ) -> tuple[float, int]:
        """Take one step; return the mean loss before it and how many were right.

        Args:
            images: uint8 `(batch, height, width, 3)`.
            labels: int64 `(batch,)`.
            rate: Learning rate.
        """
        loss, hits, _, _ = self._step(images, labels, _rate(rate), tf.constant(False))
        return float(loss), int(hits)

    def look(
        self, images: tf.Tensor, labels: tf.Tensor, rate: float, step: int
    ) -> tuple[float, int, Snapshot]:
        """Do what `learn` does and tell what went through the net."""
        loss, hits, gradients, activations = self._step(
            images, labels, _rate(rate), tf.constant(True)
        )
        seen = Snapshot(
            step=step, gradients=_short(gradients), activations=_short(activations)
        )
        return float(loss), int(hits), seen

    def error(
        self, batches: Iterable[tuple[tf.Tensor, tf.Tensor]], images: int
    ) -> float:
        """Return the share of images that the net gets wrong, in 0..1.

        Args:
            batches: All of them once: uint8 images and int64 labels.
            images: How many there are.
        """
        right = sum(int(self._answer(*batch)) for batch in quietly(batches))
        return 1 - right / images

    def _descend(
        self, images: tf.Tensor, labels: tf.Tensor, rate: tf.Tensor, watch: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        pixels = self._record.normalise(tf.cast(images, tf.float32))
        target = targets(labels, self.net.output_shape[-1])
        with tf.GradientTape() as tape:
            logits, *activations = self._watched(pixels, training=True)
            loss = LOSSES[self._recipe.loss](
                logits, target, self._recipe.label_smoothing
            )
            loss = tf.reduce_mean(loss)
        gradients = tape.gradient(loss, [weight.value for weight in self._weights])
        seen = self._seen(watch, gradients, activations)
        self._optimizer.apply(gradients, rate)
        right = tf.equal(tf.argmax(logits, axis=-1), labels)
        return loss, tf.reduce_sum(tf.cast(right, tf.int32)), *seen

    def _seen(
        self, watch: tf.Tensor, gradients: list[tf.Tensor], activations: list[tf.Tensor]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        chosen = [
            gradient
            for gradient, kept in zip(gradients, self._kernels, strict=True)
            if kept
        ]

        def norms() -> tf.Tensor:
            return tf.stack([tf.norm(gradient) for gradient in chosen])

        def scales() -> tf.Tensor:
            wide = (tf.cast(each, tf.float32) for each in activations)
            return tf.stack([tf.math.reduce_std(each) for each in wide])

        # Only in a few steps, for it reads every activation once more.
        return (
            tf.cond(watch, norms, lambda: tf.zeros(len(chosen))),
            tf.cond(watch, scales, lambda: tf.zeros(len(activations))),
        )

    def _hits(self, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        pixels = self._record.normalise(tf.cast(images, tf.float32))
        logits = self.net(pixels, training=False)
        right = tf.equal(tf.argmax(logits, axis=-1), labels)
        return tf.reduce_sum(tf.cast(right, tf.int32))


def _rate(rate: float) -> tf.Tensor:
    """Return a learning rate as a tensor, lest each new number be traced."""
    return tf.constant(rate, tf.float32)


def _rectified(net: keras.Model) -> Iterator[Any]:
    return (
        layer.output for layer in net.layers if isinstance(layer, keras.layers.ReLU)
    )


def _is_main_kernel(weight: keras.Variable) -> bool:
    # Shortcuts with weights lie beside the layers that depth counts.
    return weight.path.endswith("/kernel") and "downsample" not in weight.path


def _short(values: tf.Tensor) -> tuple[float, ...]:
    return tuple(float(f"{value:.{_DIGITS}g}") for value in np.asarray(values))


STATE = "course.safetensors"
# Points of a curve. Where the test set is large beside the training in between, the
# test error is measured at every fourth.
_POINTS, _SELDOM = 20, 4
_JUDGED_AT_ONCE = 250
# Bytes of test images up to which they are prepared once and kept.
_KEPT = 2**28


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What all courses of a study have in common.

    Attributes:
        train: Examples to learn from.
        test: Examples to be judged by.
        record: How images are prepared.
        augmentation: How training images are varied.
        phase: Recipe, steps and learning rates.
        folder: Where the state of a long course is kept.
        save_every: Seconds between two states.
    """

    train: Examples
    test: Examples
    record: Preprocessing
    augmentation: Augmentation
    phase: Phase
    folder: Path
    save_every: float

    @cached_property
    def judging(self) -> Iterable[tuple[tf.Tensor, tf.Tensor]]:
        """The test images in batches: made once, for each data set is traced anew."""
        batches = evaluation_batches(self.test, self.record, _JUDGED_AT_ONCE)
        content = len(self.test) * self.record.eval_size**2 * 3
        return list(quietly(batches)) if content <= _KEPT else batches

    @property
    def ends(self) -> list[int]:
        """Steps after which a point is taken."""
        steps = self.phase.steps
        parts = min(_POINTS, steps)
        return [math.ceil(part * steps / parts) for part in range(1, parts + 1)]

    @property
    def tests(self) -> list[int]:
        """Steps after which the test error is measured, the last among them."""
        ends, batch = self.ends, self.phase.recipe.batch_size
        between = self.phase.steps / len(ends) * batch
        return ends if len(self.test) <= between else ends[::-1][::_SELDOM]

    @property
    def looks(self) -> tuple[int, ...]:
        """Steps in which gradients and activations are looked at, from 0."""
        steps = self.phase.steps
        return tuple(sorted({0, steps // 2, steps - 1}))

    def batches(self, seed: int, step: int) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
        """Yield the batches from `step` on."""
        phase = self.phase
        epoch, start = divmod(step, phase.steps_per_epoch)
        return quietly(
            training_batches(
                self.train,
                self.record,
                self.augmentation,
                batch_size=phase.recipe.batch_size,
                seed=seed,
                epoch=epoch,
                start=start,
                epochs=phase.epochs - epoch,
            )
        )


@dataclass
class Progressing:
    """A course that is not at its end; a state holds it as JSON.

    Attributes:
        step: Steps done.
        loss: Sum since the last point.
        wrong: Images since the last point.
        seconds: Spent on steps.
        points: Taken so far.
        snapshots: Taken so far.
    """

    step: int = 0
    loss: float = 0.0
    wrong: int = 0
    seconds: float = 0.0
    points: list[Point] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)


def train_course(
    learner: Learner, net: Net, seed: int, plan: Plan, stop: Stop
) -> Course:
    """Train a net from one seed, or go on with what a state holds of it.

    Raises:
        Stopped: Somebody asked for it; the state is kept.
    """
    learner.begin(seed)
    so_far = _resumed(learner, net, seed, plan)
    whole = _advance(learner, net, seed, plan, so_far, stop)
    (plan.folder / STATE).unlink(missing_ok=True)
    return Course(
        net=net,
        seed=seed,
        parameters=learner.parameters,
        seconds=round(so_far.seconds, 1),
        diverged=not whole,
        points=tuple(so_far.points),
        snapshots=tuple(so_far.snapshots),
    )


def _advance(
    learner: Learner,
    net: Net,
    seed: int,
    plan: Plan,
    so_far: Progressing,
    stop: Stop,
) -> bool:
    """Take the remaining steps; return whether the loss stayed a number."""
    saved, batches = time.monotonic(), plan.batches(seed, so_far.step)
    what = f"{net.label}, seed {seed}"
    with Progress(what, plan.phase.steps, so_far.step) as progress:
        while so_far.step < plan.phase.steps:
            if not _take_step(learner, plan, so_far, next(batches)):
                return False
            progress.advance(note=_note(so_far))
            late = time.monotonic() - saved >= plan.save_every
            if late or stop.asked:
                _save(learner, net, seed, plan, so_far)
                saved = time.monotonic()
            if stop.asked:
                raise Stopped
    return True


def _take_step(
    learner: Learner,
    plan: Plan,
    so_far: Progressing,
    batch: tuple[tf.Tensor, tf.Tensor],
) -> bool:
    begun, step = time.perf_counter(), so_far.step
    rate = plan.phase.learning_rate(step)
    if step in plan.looks:
        loss, hits, seen = learner.look(*batch, rate, step)
        so_far.snapshots.append(seen)
    else:
        loss, hits = learner.learn(*batch, rate)
    if not math.isfinite(loss):
        return False
    so_far.step, so_far.loss = step + 1, so_far.loss + loss
    so_far.wrong += plan.phase.recipe.batch_size - hits
    # The first step compiles.
    so_far.seconds += time.perf_counter() - begun if step else 0
    if so_far.step in plan.ends:
        _take_point(learner, plan, so_far)
    return True


def _take_point(learner: Learner, plan: Plan, so_far: Progressing) -> None:
    before = so_far.points[-1].step if so_far.points else 0
    steps = so_far.step - before
    measured = so_far.step in plan.tests
    so_far.points.append(
        Point(
            step=so_far.step,
            loss=so_far.loss / steps,
            training_error=so_far.wrong / (steps * plan.phase.recipe.batch_size),
            test_error=(
                learner.error(plan.judging, len(plan.test)) if measured else None
            ),
        )
    )
    so_far.loss, so_far.wrong = 0.0, 0


def _note(so_far: Progressing) -> str:
    if not so_far.points:
        return ""
    return f"training error {so_far.points[-1].training_error:.1%}"


def _save(
    learner: Learner, net: Net, seed: int, plan: Plan, so_far: Progressing
) -> None:
    content = {"net": asdict(net), "seed": seed, "course": asdict(so_far)}
    write_state(plan.folder / STATE, learner.variables(), content)


def _resumed(learner: Learner, net: Net, seed: int, plan: Plan) -> Progressing:
    path = plan.folder / STATE
    if not path.exists():
        return Progressing()
    tensors, content = read_state(path)
    if (content["net"], content["seed"]) != (asdict(net), seed):
        return Progressing()
    restore(learner.variables(), tensors)
    held: dict[str, Any] = content["course"]
    held["points"] = [Point(**point) for point in held["points"]]
    held["snapshots"] = [
        Snapshot(
            step=each["step"],
            gradients=tuple(each["gradients"]),
            activations=tuple(each["activations"]),
        )
        for each in held["snapshots"]
    ]
    return Progressing(**held)
