"""One run of a study: train a variant from one seed, on the trainer's step and loop."""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from reszoo.console import Progress
from reszoo.data.pipeline import Augmentation, quietly, training_batches
from reszoo.data.sources import Source
from reszoo.layers import reinitialize
from reszoo.preprocessing import Preprocessing
from reszoo.studies.families import Variant
from reszoo.studies.results import Point, RunResult, Snapshot
from reszoo.training.devices import Devices
from reszoo.training.phases import Phase
from reszoo.training.run import Evaluator, StepLoop, Totals
from reszoo.training.state import STATE, StopRequest, read_state, restore, write_state
from reszoo.training.step import LOSSES, TrainingStep

# Significant digits of a norm that are kept: a plot shows fewer.
_DIGITS = 4
# Points of a curve. Where the test set is large compared with the training in between,
# the test error is measured at every fourth.
_POINTS, _TEST_EVERY = 20, 4


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """Settings that all runs of a study share.

    Attributes:
        source: Images with a train and a test split.
        preprocessing: How images are prepared.
        augmentation: How training images are augmented.
        phase: Recipe, steps and learning rates.
        folder: Where the state of a run is kept.
        save_every: Seconds between two states.
    """

    source: Source
    preprocessing: Preprocessing
    augmentation: Augmentation
    phase: Phase
    folder: Path
    save_every: float

    @property
    def points(self) -> list[int]:
        """Steps after which a point is recorded."""
        steps = self.phase.steps
        parts = min(_POINTS, steps)
        return [math.ceil(part * steps / parts) for part in range(1, parts + 1)]

    @property
    def tests(self) -> list[int]:
        """Steps after which the test error is measured, the last among them."""
        points, batch = self.points, self.phase.recipe.batch_size
        between = self.phase.steps / len(points) * batch
        few = len(self.source.examples("test")) <= between
        return points if few else points[::-1][::_TEST_EVERY]

    @property
    def snapshots(self) -> set[int]:
        """Steps before which gradients and activations are measured, from 0."""
        steps = self.phase.steps
        return {0, steps // 2, steps - 1}

    def batches(self, seed: int, step: int) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
        """Yield the batches from `step` on."""
        phase = self.phase
        epoch, start = divmod(step, phase.steps_per_epoch)
        batches = training_batches(
            self.source.examples("train"),
            self.preprocessing,
            self.augmentation,
            batch_size=phase.recipe.batch_size,
            seed=seed,
            epoch=epoch,
            start=start,
            epochs=phase.epochs - epoch,
        )
        return quietly(batches)


class VariantTrainer:
    """The model of a variant with its compiled functions, which all seeds share.

    Args:
        model: From images to logits, built in the precision it is trained in.
        plan: Of the study.

    Attributes:
        step: Trains on a batch.
        evaluator: Evaluates the model as it is.
        parameters: Number of trainable parameters.
    """

    def __init__(self, model: keras.Model, plan: StudyPlan) -> None:
        self._model, self._plan = model, plan
        self.step = TrainingStep(model, plan.preprocessing, plan.phase.recipe)
        self.evaluator = Evaluator(model, plan.preprocessing, plan.source, Devices())
        weights = model.trainable_variables
        self.parameters = sum(int(np.prod(weight.shape)) for weight in weights)
        self._kernels = [each.value for each in weights if _is_main_kernel(each)]
        relus = [each for each in model.layers if isinstance(each, keras.layers.ReLU)]
        outputs = [model.output, *(layer.output for layer in relus)]
        self._with_activations = keras.Model(model.inputs, outputs)
        self._measure = tf.function(self._norms_and_scales, autograph=False)

    def reset(self, seed: int) -> None:
        """Initialize the weights from a seed, and the optimizer."""
        reinitialize(self._model, seed)
        for variable in self.step.optimizer.state().values():
            variable.assign(tf.zeros_like(variable))

    def snapshot(self, images: tf.Tensor, targets: tf.Tensor, step: int) -> Snapshot:
        """Measure the gradients and activations of a batch; change nothing.

        Args:
            images: uint8 `(batch, height, width, 3)`.
            targets: int64 `(batch,)`.
            step: Steps taken before.
        """
        statistics = self._model.non_trainable_variables
        before = [variable.numpy() for variable in statistics]
        gradients, activations = self._measure(images, targets)
        for variable, value in zip(statistics, before, strict=True):
            variable.assign(value)
        return Snapshot(
            step=step, gradients=_rounded(gradients), activations=_rounded(activations)
        )

    def _norms_and_scales(
        self, images: tf.Tensor, targets: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        recipe = self._plan.phase.recipe
        pixels = self._plan.preprocessing.normalise(tf.cast(images, tf.float32))
        soft = tf.one_hot(targets, self._model.output_shape[-1], dtype=tf.float32)
        with tf.GradientTape() as tape:
            logits, *activations = self._with_activations(pixels, training=True)
            losses = LOSSES[recipe.loss](logits, soft, recipe.label_smoothing)
            loss = tf.reduce_mean(losses)
        gradients = tape.gradient(loss, self._kernels)
        floats = (tf.cast(each, tf.float32) for each in activations)
        return (
            tf.stack([tf.norm(gradient) for gradient in gradients]),
            tf.stack([tf.math.reduce_std(each) for each in floats]),
        )


def _is_main_kernel(weight: keras.Variable) -> bool:
    # Projection shortcuts are not among the layers that depth counts.
    return weight.path.endswith("/kernel") and "downsample" not in weight.path


def _rounded(values: tf.Tensor) -> tuple[float, ...]:
    return tuple(float(f"{value:.{_DIGITS}g}") for value in np.asarray(values))


class StudyRun(StepLoop):
    """Train a variant from one seed, or resume from the state that the folder holds.

    Args:
        trainer: Of the variant; its weights are initialized.
        variant: What is trained.
        seed: Of the initial weights and the order of images.
        plan: Of the study.
    """

    def __init__(
        self, trainer: VariantTrainer, variant: Variant, seed: int, plan: StudyPlan
    ) -> None:
        super().__init__(plan.phase.recipe.batch_size, plan.save_every, Devices())
        self._trainer, self._plan = trainer, plan
        self._id = {"variant": asdict(variant), "seed": seed}
        self._variant, self._seed = variant, seed
        self._totals, self._seconds = Totals(), 0.0
        self._points: list[Point] = []
        self._snapshots: list[Snapshot] = []
        trainer.reset(seed)
        self._resume()

    def train(self, stop: StopRequest) -> RunResult:
        """Take the remaining steps and return what was measured.

        Raises:
            Stopped: A signal requested it; the state is saved.
        """
        finite = self._take_remaining_steps(stop)
        (self._plan.folder / STATE).unlink(missing_ok=True)
        return RunResult(
            variant=self._variant,
            seed=self._seed,
            parameters=self._trainer.parameters,
            seconds=round(self._seconds, 1),
            diverged=not finite,
            points=tuple(self._points),
            snapshots=tuple(self._snapshots),
        )

    @property
    def _last_point(self) -> int:
        return self._points[-1].step if self._points else 0

    @property
    def _step(self) -> int:
        return self._last_point + self._totals.steps

    def _take_remaining_steps(self, stop: StopRequest) -> bool:
        plan, label = self._plan, f"{self._variant.label}, seed {self._seed}"
        batches = plan.batches(self._seed, self._step)
        with Progress(label, plan.phase.steps, self._step) as progress:
            for point in plan.points[len(self._points) :]:
                steps = point - self._last_point
                if not self.take_steps(batches, self._totals, steps, progress, stop):
                    return False
                self._add_point(point)
        return True

    def _train(self, images: tf.Tensor, targets: tf.Tensor) -> tuple[float, int]:
        step = self._step
        if step in self._plan.snapshots:
            self._snapshots.append(self._trainer.snapshot(images, targets, step))
        start, rate = time.perf_counter(), self._plan.phase.learning_rate(step)
        loss, correct = self._trainer.step(images, targets, rate, (0, 0))
        # The first step is traced and compiled.
        self._seconds += time.perf_counter() - start if step else 0
        return loss, correct

    def _add_point(self, step: int) -> None:
        totals, test = self._totals, None
        seen = totals.steps * self._batch_size
        if step in self._plan.tests:
            test = self._trainer.evaluator.evaluate("test")
        point = Point(
            step=step,
            loss=totals.loss / totals.steps,
            training_error=(seen - totals.correct) / seen,
            test_error=1 - test.top1 if test else None,
        )
        self._points.append(point)
        self._totals = Totals()

    def _write(self) -> None:
        content = {
            **self._id,
            "totals": asdict(self._totals),
            "seconds": self._seconds,
            "points": [asdict(point) for point in self._points],
            "snapshots": [asdict(snapshot) for snapshot in self._snapshots],
        }
        write_state(self._plan.folder / STATE, self._trainer.step.variables(), content)

    def _resume(self) -> None:
        path = self._plan.folder / STATE
        if not path.exists():
            return
        tensors, content = read_state(path)
        if any(content.get(name) != value for name, value in self._id.items()):
            return
        restore(self._trainer.step.variables(), tensors)
        self._totals, self._seconds = Totals(**content["totals"]), content["seconds"]
        self._points = [Point(**point) for point in content["points"]]
        self._snapshots = [Snapshot.from_json(each) for each in content["snapshots"]]
