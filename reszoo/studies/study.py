"""`reszoo.study`: train plain and residual networks of several depths, and compare."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from reszoo import defaults
from reszoo.console import Progress, say
from reszoo.data.sources import Data, Source, fingerprint
from reszoo.environment import check_backend
from reszoo.errors import UsageError
from reszoo.fields import check_range
from reszoo.files import StrPath, as_path, check_outside
from reszoo.layers import reinitialize
from reszoo.report.page import render
from reszoo.studies import results
from reszoo.studies.plan import StudyPlan, is_table, open_data, study_plan
from reszoo.studies.report import PAGE, PLOTS, conclude, write_page
from reszoo.studies.results import Family, Point, RunResult, StudyResult, Variant
from reszoo.training import state
from reszoo.training.devices import Devices
from reszoo.training.model import precision_policy, resolve_precision, set_momentum
from reszoo.training.phases import fitting_batch
from reszoo.training.recipes import DEFAULTS, LEARNING, Recipe, find_recipe
from reszoo.training.run import StepLoop, Totals
from reszoo.training.state import STATE, StopRequest
from reszoo.training.step import LOSSES, TrainingStep

# Significant digits of a norm that are kept: a plot shows fewer.
_DIGITS = 4


class VariantTrainer:
    """The model of a variant with its compiled functions, which all seeds share.

    The model is from images to logits, built in the precision that it is trained in.
    """

    def __init__(self, model: keras.Model, plan: StudyPlan) -> None:
        self._model, self._plan = model, plan
        self.step = TrainingStep(model, plan.preprocessing, plan.phase.recipe)
        weights = model.trainable_variables
        self.parameters = sum(int(np.prod(weight.shape)) for weight in weights)
        self._kernels = [each.value for each in main_kernels(model)]
        shown, self._block_ends = activations(model)
        self._with_activations = keras.Model(model.inputs, [model.outputs[0], *shown])
        self._measure = tf.function(self._norms_and_scales, autograph=False)
        self._wrong = tf.function(self._count_wrong, autograph=False)
        self._tests = plan.test_batches()

    def reset(self, seed: int) -> None:
        """Initialize the weights from a seed, and the optimizer."""
        reinitialize(self._model, seed)
        for variable in self.step.optimizer.state().values():
            variable.assign(tf.zeros_like(variable))

    def snapshot(
        self, images: tf.Tensor, targets: tf.Tensor, step: int
    ) -> results.Snapshot:
        """Measure the gradients and activations of a batch; change nothing.

        Images are uint8 `(batch, height, width, 3)`, targets int64 `(batch,)`.
        """
        with statistics_restored(self._model):
            gradients, scales = map(_rounded, self._measure(images, targets))
        values = {"gradients": gradients, "activations": scales}
        return results.Snapshot(step=step, **values, block_ends=self._block_ends)

    def test_error(self) -> float:
        """Return the share of the test split that the model gets wrong, in 0..1."""
        wrong = sum(int(self._wrong(*batch)) for batch in self._tests)
        return wrong / len(self._plan.source.examples())

    def _count_wrong(self, images: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        pixels = self._plan.preprocessing.normalise(tf.cast(images, tf.float32))
        answers = tf.argmax(self._model(pixels, training=False), axis=-1)
        return tf.math.count_nonzero(answers != targets)

    def _norms_and_scales(
        self, images: tf.Tensor, targets: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        recipe = self._plan.phase.recipe
        pixels = self._plan.preprocessing.normalise(tf.cast(images, tf.float32))
        soft = tf.one_hot(targets, self._model.output_shape[-1], dtype=tf.float32)
        with tf.GradientTape() as tape:
            logits, *outputs = self._with_activations(pixels, training=True)
            losses = LOSSES[recipe.loss](logits, soft, recipe.label_smoothing)
            loss = tf.reduce_mean(losses)
        norms = [tf.norm(each) for each in tape.gradient(loss, self._kernels)]
        floats = (tf.cast(each, tf.float32) for each in outputs)
        return tf.stack(norms), tf.stack([tf.math.reduce_std(each) for each in floats])


def main_kernels(model: keras.Model) -> list[keras.Variable]:
    """Return the kernels of the layers that depth counts: no projection shortcuts."""
    return [each for each in kernels(model) if "downsample" not in each.path]


def _rounded(values: tf.Tensor) -> tuple[float, ...]:
    return tuple(float(f"{value:.{_DIGITS}g}") for value in np.asarray(values))


def kernels(model: keras.Model) -> list[keras.Variable]:
    """Return the trainable weights of a model that are no vectors, input first."""
    return [each for each in model.trainable_variables if len(each.shape) > 1]


@contextmanager
def statistics_restored(model: keras.Model) -> Iterator[None]:
    """Restore what a pass in training mode changes in a model of any layers."""
    statistics = model.non_trainable_variables
    before = [variable.numpy() for variable in statistics]
    try:
        yield
    finally:
        for variable, value in zip(statistics, before, strict=True):
            variable.assign(value)


def gradient_norms(model: keras.Model, x: Any, y: Any) -> dict[str, float]:
    """Measure the gradient of the loss in every layer, and change nothing.

    The loss is the mean cross-entropy of the batch, with batch normalization in
    training mode, as in a training step.

    Args:
        model: A classifier that returns logits, or ends in a softmax.
        x: A batch as the model takes it: `(batch, height, width, 3)`, normalised, or
            `(batch, features)`.
        y: Targets `(batch,)`, integers from 0.

    Returns:
        The Euclidean norm of the gradient of each kernel by the name of its layer, from
        the input to the output.

    Raises:
        UsageError: Targets and outputs do not fit, or nothing is trainable.

    Example:
        >>> norms = reszoo.gradient_norms(reszoo.mlp(50, shortcut="none"), images, y)
        >>> max(norms.values()) / min(norms.values())
    """
    check_backend("gradient_norms")
    targets, chosen = np.asarray(y), kernels(model)
    classes = model.output_shape[-1]
    is_index = targets.ndim == 1 and targets.dtype.kind in "iu" and len(targets)
    if not is_index or targets.min() < 0 or targets.max() >= classes:
        span = f" from {targets.min()} to {targets.max()}" if is_index else ""
        raise UsageError(
            f"y must hold targets of shape (batch,), integers from 0 to {classes - 1}. "
            f"Received: {targets.dtype} {targets.shape}{span}."
        )
    if not chosen:
        raise UsageError(
            f"{model.name!r} has no trainable kernel. Set trainable = True."
        )
    with statistics_restored(model), tf.GradientTape() as tape:
        outputs = tf.cast(model(tf.convert_to_tensor(x), training=True), tf.float32)
        losses = keras.losses.sparse_categorical_crossentropy(
            targets, outputs, from_logits=not ends_in_softmax(model)
        )
        loss = tf.reduce_mean(losses)
    gradients = tape.gradient(loss, [each.value for each in chosen])
    return {
        each.path.rsplit("/", 1)[0]: float(tf.norm(gradient))
        for each, gradient in zip(chosen, gradients, strict=True)
    }


def ends_in_softmax(model: keras.Model) -> bool:
    """Return whether a model returns probabilities instead of logits."""
    softmax = (keras.activations.softmax, keras.layers.Softmax)
    last = model.layers[-1]
    return getattr(last, "activation", type(last)) in softmax


def activations(model: keras.Model) -> tuple[list[Any], tuple[int, ...]]:
    """Return the outputs of activation functions, and which of them end blocks.

    Sums that no activation function follows, as in pre-activation blocks, count as
    well. A block ends in a sum or the activation after it, in plain networks of reszoo
    in the activation of that name; without either, every activation counts.
    """
    functions = [each for each in model.layers if _activates(each)]
    sums = [each for each in model.layers if isinstance(each, keras.layers.Add)]
    after = {each.name: _producer(each) for each in functions}
    last_sums = set(sums).difference(after.values())
    shown = [each for each in model.layers if each in (*functions, *last_sums)]
    # A model without any, such as a linear one.
    shown = shown or [model.layers[-1]]
    ends = [
        index
        for index, each in enumerate(shown)
        if {each, after.get(each.name)} & set(sums) or f".{each.name}".endswith(".relu")
    ]
    return [each.output for each in shown], tuple(ends or range(len(shown)))


def _activates(layer: keras.layers.Layer) -> bool:
    linear = (None, keras.activations.linear, keras.activations.softmax)
    function = getattr(layer, "activation", None)
    kinds = (keras.layers.ReLU, keras.layers.Activation)
    return isinstance(layer, kinds) or function not in linear


def _producer(layer: keras.layers.Layer) -> keras.layers.Layer | None:
    """Return the layer whose output a layer takes; None if there are several."""
    given = layer.input
    return None if isinstance(given, list) else given._keras_history.operation


class StudyRun(StepLoop):
    """Train a variant from one seed, or resume from the state that the folder holds.

    The weights of the trainer are initialized from that seed, which also sets the order
    of images.
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
        self._snapshots: list[results.Snapshot] = []
        if not variant.is_own:
            trainer.reset(seed)
        self._resume()

    def train(self, stop: StopRequest) -> RunResult:
        """Take the remaining steps and return what was measured.

        Raises Stopped where a signal requested it; the state is saved.
        """
        plan, label = self._plan, f"{self._variant.label}, seed {self._seed}"
        batches, diverged = plan.batches(self._seed, self._step), False
        with Progress(label, plan.phase.steps, self._step) as progress:
            for point in plan.points[len(self._points) :]:
                steps = point - self._last_point
                if not self.take_steps(batches, self._totals, steps, progress, stop):
                    diverged = True
                    break
                self._add_point(point)
        (plan.folder / STATE).unlink(missing_ok=True)
        return RunResult(
            variant=self._variant, seed=self._seed, parameters=self._trainer.parameters,
            seconds=round(self._seconds, 1), diverged=diverged,
            points=tuple(self._points), snapshots=tuple(self._snapshots),
        )  # fmt: skip

    @property
    def _last_point(self) -> int:
        return self._points[-1].step if self._points else 0

    @property
    def _step(self) -> int:
        return self._last_point + self._totals.steps

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
        totals, self._totals = self._totals, Totals()
        seen = totals.steps * self._batch_size
        measured = step in self._plan.tests
        point = Point(
            step=step,
            loss=totals.loss / totals.steps,
            training_error=(seen - totals.correct) / seen,
            test_error=self._trainer.test_error() if measured else None,
        )
        self._points.append(point)

    def _write(self) -> None:
        content = {
            **self._id, "totals": asdict(self._totals), "seconds": self._seconds,
            "points": [asdict(point) for point in self._points],
            "snapshots": [asdict(snapshot) for snapshot in self._snapshots],
        }  # fmt: skip
        path, variables = self._plan.folder / STATE, self._trainer.step.variables()
        state.write_state(path, variables, content)

    def _resume(self) -> None:
        path = self._plan.folder / STATE
        tensors, content = state.read_state(path) if path.exists() else ({}, {})
        if any(content.get(name) != value for name, value in self._id.items()):
            return
        state.restore(self._trainer.step.variables(), tensors)
        self._totals, self._seconds = Totals(**content["totals"]), content["seconds"]
        self._points = [Point(**point) for point in content["points"]]
        self._snapshots = list(map(results.Snapshot.from_json, content["snapshots"]))


_FILES = (results.RESULTS, PAGE, STATE, *PLOTS)
# Changes of the paper's recipe for some 1,300 digits. Its learning rate of 0.1 is for
# ten times as many steps.
_DIGITS_FIELDS: dict[str, Any] = {
    "batch_size": 64, "crop": "none", "learning_rate": 0.01, "precision": "float32",
}  # fmt: skip
# All other fields of a recipe must have their defaults, so that none is ignored
# silently.
_SUPPORTED = LEARNING | {
    "name", "batch_size", "crop", "flip", "pad", "precision", "seed", "steps",
    "train_size",
}  # fmt: skip


def study(
    family: str = defaults.STUDY_FAMILY, data: Data = defaults.STUDY_DATA, *,
    layers: Sequence[int] | None = None, shortcuts: Sequence[str] | None = None,
    models: Mapping[str, Callable[..., keras.Model]] | None = None,
    seeds: int = defaults.STUDY_SEEDS, seed: int = 0, size: int | None = None,
    recipe: str | Recipe = defaults.STUDY_RECIPE,
    output: StrPath = defaults.STUDY_OUTPUT, resume: bool = False,
    overwrite: bool = False, save_every: float = defaults.SAVE_EVERY, **fields: Any,
) -> StudyResult:  # fmt: skip
    """Compare networks with and without shortcuts at several depths, or models.

    Every network is trained with one recipe from several seeds. The folder gets
    `study.json`, `study.html` and the plots as PNG files: error against steps (figure
    6 of the paper), error against depth, and the gradients and activations of every
    layer.

    Sources: He et al. 2015 (arXiv:1512.03385), section 4.2, and 2016
    (arXiv:1603.05027).

    Args:
        family: "cifar": the paper's networks for small images; "preact": those next to
            the pre-activation networks of 2016; "dense": multilayer perceptrons of
            equal width.
        data: As of `reszoo.train`; it needs a test split. Dense networks and models of
            your own also take tables: `(table, labels)` with a table `(n, features)`
            of numbers, or such pairs by split. Columns are standardised, and where
            there is no test split, a fifth of every class is tested on.
        layers: Depths to compare. None takes some that a CPU can train.
        shortcuts: "none" for plain networks; "identity", "projection" and
            "projection-all", the paper's options A, B and C; "pre-activation". None
            takes those that the family is about.
        models: Models of your own by name, to compare instead of a family: functions
            that build one, which get those of the keywords `layers`, `input_shape` and
            `classes` that they take. A model is functional or sequential and returns
            logits; its images are normalised by ImageNet's mean and standard
            deviation. Each is built anew for every seed, after
            `keras.utils.set_random_seed`.
        seeds: Number of seeds for each network.
        seed: The first of them; the others follow.
        size: Side of the images in pixels. None is 8 for digits, else 32.
        recipe: Name of a recipe, or a recipe of your own.
        output: Folder for the results.
        resume: Whether to resume the study in `output`. It may get more depths,
            shortcuts or seeds, but no other data or recipe.
        overwrite: Whether to replace a study that is in `output`.
        save_every: Seconds between two states within a training.
        **fields: Fields of the recipe to change, such as `steps=2000`.

    Returns:
        All runs, with the folder.

    Raises:
        UsageError: The arguments are invalid, or `output` holds another study.
        DataError: The data cannot be read.

    Example:
        >>> result = reszoo.study(layers=(20, 56), seeds=2)
        >>> result.conclusion[-1]
    """
    check_backend("study")
    check_outside(folder := as_path(output), data)
    depths = None if layers is None else tuple(layers)
    kinds = None if shortcuts is None else tuple(shortcuts)
    if models and (kinds or family not in (defaults.STUDY_FAMILY, results.OWN)):
        raise UsageError(
            "models= compares your own models instead of a family. Received: "
            f"family={family!r}, shortcuts={shortcuts}; leave them out."
        )
    own = results.own_family(models, depths) if models else None
    chosen = own or results.find_family(family)
    variants = chosen.variants(depths, kinds)
    check_range("seeds", seeds, "[1, inf)", int)
    source = open_data(data, chosen)
    source.announce()
    settled = _study_recipe(chosen, source, recipe, fields)
    if "batch_size" not in fields and not isinstance(recipe, Recipe):
        fitting = fitting_batch(settled, len(source.examples("train")))
        settled = replace(settled, **{**fitting, **fields})
    plan = study_plan(source, settled, size, folder, save_every)
    for index, each in enumerate(variants):
        # The depth of a user's model, where that was not given.
        if not each.layers:
            depth = len(main_kernels(_built(chosen, each, plan)))
            variants[index] = replace(each, layers=depth)
    conditions = _conditions(chosen, plan, settled)
    done = _finished_runs(folder, conditions, resume=resume, overwrite=overwrite)
    counts = np.bincount(source.examples("train").targets)
    result = StudyResult(
        data=source.name, conditions=conditions, runs=done, folder=folder,
        chance=float(1 - counts.max() / counts.sum()),
    )  # fmt: skip
    told = {"plan": plan, "takes_rows": is_table(source), "variants": variants}
    told |= {"seeds": seeds, "precision": resolve_precision(settled)}
    say(render("study_text.j2", **told))
    numbers = range(seed, seed + seeds)
    with state.stop_on_signals(folder) as stop:
        result = _train_all(chosen, plan, result, variants, numbers, stop)
    result = replace(result, conclusion=tuple(conclude(result)))
    results.write_results(result)
    write_page(result)
    return result


def _study_recipe(
    family: Family, source: Source, recipe: str | Recipe, fields: dict[str, Any]
) -> Recipe:
    """Return the recipe with the study's own defaults, if it is supported."""
    own: dict[str, Any] = {}
    is_small = source.name == "digits" or is_table(source)
    if is_small and recipe == defaults.STUDY_RECIPE:
        length = {} if "epochs" in fields else {"steps": family.digits_steps}
        own = {**length, **_DIGITS_FIELDS}
    settled = find_recipe(recipe, **{**own, **fields})
    others = DEFAULTS.keys() - _SUPPORTED
    unsupported = sorted(n for n in others if getattr(settled, n) != DEFAULTS[n])
    if settled.crop not in ("pad", "none"):
        unsupported.append(f"crop={settled.crop}")
    if unsupported:
        raise UsageError(
            "A study trains from scratch, with shifts and flips as the only "
            f"augmentation. Received: recipe={settled.name!r} with "
            f"{', '.join(unsupported)}; use {defaults.STUDY_RECIPE!r} or "
            "'cifar' without them."
        )
    return settled


def _conditions(family: Family, plan: StudyPlan, recipe: Recipe) -> dict[str, Any]:
    """Return what must be the same when the study is resumed."""
    fields = {name: v for name, v in recipe.to_json().items() if name != "seed"}
    return {
        "family": family.name,
        **{f"data's {name}": v for name, v in fingerprint(plan.source).items()},
        **{f"recipe's {name}": v for name, v in fields.items()},
        "size": plan.inputs,
        "precision": resolve_precision(recipe),
    }


def _finished_runs(
    folder: Path, conditions: dict[str, Any], *, resume: bool, overwrite: bool
) -> tuple[RunResult, ...]:
    """Return the runs to keep, and remove the files of a study to be replaced."""
    marks = (results.RESULTS, STATE)
    found = state.check_output(folder, _FILES, marks, "study", resume, overwrite)
    for name in () if resume else found:
        (folder / name).unlink()
    if results.RESULTS not in found or not resume:
        return ()
    before = results.read_results(folder)
    state.check_same(before.conditions, conditions, folder)
    return before.runs


def _train_all(
    family: Family, plan: StudyPlan, result: StudyResult, variants: Iterable[Variant],
    seeds: Iterable[int], stop: StopRequest,
) -> StudyResult:  # fmt: skip
    recipe = plan.phase.recipe
    # From the start, so that a state in the folder always has its conditions.
    results.write_results(result)
    for variant in variants:
        done = {run.seed for run in result.of(variant)}
        trainer = None
        for seed in [seed for seed in seeds if seed not in done]:
            if variant.is_own:
                # Their initializers need not be repeatable: each seed has its model.
                keras.utils.set_random_seed(seed)
            if trainer is None or variant.is_own:
                # The graph of the model before would stay for as long as the session.
                keras.backend.clear_session()
                with precision_policy(resolve_precision(recipe)):
                    model = _built(family, variant, plan)
                if recipe.bn_momentum is not None:
                    set_momentum(model, recipe.bn_momentum)
                trainer = VariantTrainer(model, plan)
            run = StudyRun(trainer, variant, seed, plan).train(stop)
            result = replace(result, runs=(*result.runs, run))
            results.write_results(result)
            say(_summary(run))
    return result


def _built(family: Family, variant: Variant, plan: StudyPlan) -> keras.Model:
    shape, classes = plan.input_shape, len(plan.source.labels)
    model = family.build(variant, shape, classes)
    if not variant.is_own:
        return model
    functional = isinstance(model, keras.Model) and getattr(model, "inputs", None)
    if not functional or len(model.inputs) != 1 or ends_in_softmax(model):
        found = "one that ends in a softmax" if functional else type(model).__name__
        raise UsageError(
            f"The builder {variant.shortcut!r} must return a functional or sequential "
            "Keras model with one input, named in an Input layer, whose outputs are "
            f"logits. Received: {found}."
        )
    sides = zip(model.input_shape[1:], shape, strict=False)
    fits = all(ours in (None, theirs) for ours, theirs in sides)
    if not fits or model.output_shape != (None, classes):
        raise UsageError(
            f"The model {variant.shortcut!r} must take inputs of shape {shape} and "
            f"return {classes} logits. Received: {model.input_shape[1:]} and "
            f"{model.output_shape[1:]}; the builder may take input_shape and classes."
        )
    return model


def _summary(run: RunResult) -> str:
    errors = f"training error {run.training_error:.2%}, test error {run.test_error:.2%}"
    told = f"{errors}, {run.seconds:.0f} s"
    if run.diverged:
        told = "diverged, the loss is NaN or infinite"
    return f"{run.variant.label}, seed {run.seed}: {told}"
