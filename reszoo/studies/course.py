"""One course of training: from fresh weights to the last step, or on from a state."""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import tensorflow as tf

from reszoo.data.examples import Examples
from reszoo.data.pipeline import (
    Augmentation,
    evaluation_batches,
    quietly,
    training_batches,
)
from reszoo.preprocessing import Preprocessing
from reszoo.progress import Progress
from reszoo.studies.families import Net
from reszoo.studies.learner import Learner
from reszoo.studies.results import Course, Point, Snapshot
from reszoo.training.phases import Phase
from reszoo.training.state import read_state, restore, write_state
from reszoo.training.stopping import Stop, Stopped

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
