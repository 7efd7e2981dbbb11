"""A training run: its configuration, validation, the loop over steps, and resuming."""

import hashlib
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from reszoo.cards import Card, Confidence
from reszoo.confidence import measure
from reszoo.console import Progress, say
from reszoo.data import pipeline
from reszoo.data.examples import Examples
from reszoo.data.resize import resizing_gain
from reszoo.data.sources import Source, content_digest
from reszoo.errors import ReszooError, UsageError, known
from reszoo.metrics import SCALARS, Metrics, inference_function, pooled_function, score
from reszoo.preprocessing import Preprocessing, as_sides
from reszoo.resnet import backbone_and_head
from reszoo.training import state
from reszoo.training.devices import Devices
from reszoo.training.features import feature_batches
from reszoo.training.history import Epoch, EventLog, RunHistory
from reszoo.training.model import evaluation_copy, training_copy
from reszoo.training.phases import Phase
from reszoo.training.recipes import STILL, Recipe
from reszoo.training.step import PhaseTrainer
from reszoo.training.teacher import Teacher
from reszoo.weights.names import Tensors, to_tensors

Batches = Iterator[pipeline.Batch]
TENSORBOARD = "tensorboard"
# BiT's HyperRule (arXiv:1912.11370, section 3.3) separates small pictures from large
# ones here too: a quarter of a small one, enlarged, shows little of it.
_SMALL = 96
# Images that are evaluated at a time; training may accumulate a larger batch in parts.
_EVALUATED_AT_ONCE = 64
# Bytes of evaluation images up to which they are decoded once and kept.
_CACHED_BYTES = 2**26
# Share of the time spent waiting for images above which a hint is given.
_MUCH_WAITING = 0.2
# Fields of `Metrics` that are fields of `Epoch`, as "validation_loss" for example.
_VALIDATED = ("loss", "top1", "balanced_accuracy", "macro_f1")
# What TensorBoard shows of an epoch: tag -> field.
_TAGS = {
    "train/loss": "loss", "train/top1": "top1", "learning_rate": "learning_rate",
    "speed/images_per_second": "images_per_second", "speed/data_wait": "data_wait",
    **{f"validation/{name}": f"validation_{name}" for name in _VALIDATED},
}  # fmt: skip


def augmentation_of(
    recipe: Recipe, preprocessing: Preprocessing, flip_safe: bool
) -> pipeline.Augmentation:
    """Return how a recipe augments images; see `Source.flip_safe`."""
    side = min(as_sides(preprocessing.train_size))
    kind: Literal["pad", "resized"] = "pad" if side < _SMALL else "resized"
    others = STILL.keys() - {"crop", "pad", "flip"}
    same: dict[str, Any] = {name: getattr(recipe, name) for name in others}
    return pipeline.Augmentation(
        crop=kind if recipe.crop == "auto" else recipe.crop,
        pad=round(recipe.pad * side),
        flip=flip_safe if recipe.flip is None else recipe.flip,
        sampling=0.0 if recipe.sampling == "balanced" else recipe.sampling,
        **same,
    )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything about a run that is constant."""

    model: keras.Model  # the caller's; not changed until the end
    card: Card  # its, with the data's labels and recipe's image sizes
    source: Source
    recipe: Recipe
    phases: tuple[Phase, ...]  # what the recipe is divided into
    # Of the run; None keeps nothing. With several workers, the chief's.
    folder: Path | None
    save_every: float  # seconds between two states within an epoch
    devices: Devices  # that share each batch
    # Called with each row of the history.
    on_epoch_end: Callable[[Epoch], object] | None = None
    teacher: Teacher | None = None  # of the recipe
    # What must be the same when the run is resumed, as JSON values.
    conditions: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        recipe = self.recipe
        chosen = recipe.patience is not None or recipe.best_by != "accuracy"
        if chosen and "validation" not in self.source.splits:
            raise UsageError(
                "patience and best_by need a validation split. Received: patience="
                f"{recipe.patience}, best_by={recipe.best_by!r} for {self.source.name} "
                f"with {', '.join(self.source.splits)}."
            )

    @property
    def epochs(self) -> int:
        """Number of epochs over all phases."""
        return sum(phase.epochs for phase in self.phases)

    @property
    def steps(self) -> int:
        """Number of steps over all phases."""
        return sum(phase.steps for phase in self.phases)

    def phase_of(self, epoch: int) -> Phase:
        """Return the phase of an epoch, counted from 0; after the end the last one."""
        return [phase for phase in self.phases if phase.first_epoch <= epoch][-1]

    @property
    def augmentation(self) -> pipeline.Augmentation:
        """How training images are augmented."""
        preprocessing = self.card.preprocessing
        return augmentation_of(self.recipe, preprocessing, self.source.flip_safe)

    def class_weights(self) -> NDArray[np.float32] | None:
        """Return the weight of each class in the loss; None where all are 1.

        An UnknownNameError for a label of `class_weight` that the data does not have.
        """
        given, labels = self.recipe.class_weight, self.source.labels
        if given is None:
            return None
        if isinstance(given, dict):
            for label in given:
                known("label in class_weight", label, labels)
            return np.array([given.get(label, 1.0) for label in labels], np.float32)
        targets = self.source.examples("train").targets
        shares = pipeline.class_shares(targets, len(labels), self.augmentation.sampling)
        return (1 / (len(labels) * np.maximum(shares, 1e-12))).astype(np.float32)


class Evaluator:
    """Evaluate a model, from images at `eval_size` to logits, on splits of the data.

    Of the devices the chief evaluates for all workers, at most `batch_size` images at a
    time. While only the head changes, the features of images may be kept.
    """

    def __init__(
        self, model: keras.Model, preprocessing: Preprocessing, source: Source,
        devices: Devices, batch_size: int = _EVALUATED_AT_ONCE,
    ) -> None:  # fmt: skip
        self.model, self._preprocessing = model, preprocessing
        self._source, self._devices = source, devices
        self._batch_size = min(batch_size, _EVALUATED_AT_ONCE)
        self._predict = inference_function(model, preprocessing)
        # One data set for each split, since each is traced anew.
        self._batches: dict[int, tf.data.Dataset] = {}
        self.keep_features(False)

    def keep_features(self, keep: bool) -> None:
        """Compute the features of each split once from now on, or no longer."""
        self._loaded: Tensors = {}
        self._features: dict[int, NDArray[np.float32]] = {}
        self._head: keras.Model | None = None
        if keep:
            self._head = backbone_and_head(self.model)[1]
            self._pooled = pooled_function(self.model, self._preprocessing)

    def load_variables(self, values: Mapping[str, tf.Variable]) -> Tensors:
        """Assign weights by the path of each variable; return them."""
        # While features are kept, only those of the head change.
        changing = self._head if self._head and self._loaded else self.model
        # Not by position: layers in between change the order that Keras gives them.
        for variable in changing.variables:
            variable.assign(values[variable.path])
        tensors = {**self._loaded, **to_tensors(changing)}
        self._loaded = tensors if self._head else {}
        return tensors

    def evaluate(self, split: str) -> Metrics | None:
        """Evaluate on one split; return None if the data has no such split."""
        if split not in self._source.splits:
            return None
        examples, own = self._source.examples(split), [0.0] * len(SCALARS)
        name = f"{self._source.name} ({split})"
        if self._devices.is_chief:
            found = score(self.outputs(examples), examples.targets, name)
            own = [getattr(found, field) for field in SCALARS]
        told = zip(SCALARS, self._devices.broadcast(own), strict=True)
        return Metrics(**dict(told), images=len(examples), data=name)  # type: ignore[arg-type]

    def outputs(
        self, examples: Examples, name: str = "probabilities"
    ) -> NDArray[np.float32]:
        """Return "probabilities" or "logits", float32 `(n, classes)`."""
        if id(examples) not in self._batches:
            self._batches[id(examples)] = evaluated_batches(
                examples, self._preprocessing, self._batch_size
            )
        batches = self._batches[id(examples)]
        if self._head is not None:
            kept = self._features
            if id(examples) not in kept:
                found = [self._pooled(images)["pooled"] for images, _ in batches]
                kept[id(examples)] = np.concatenate(found)
            logits = self._head(kept[id(examples)])
            return np.asarray(logits if name == "logits" else tf.nn.softmax(logits))
        parts = [self._predict(images)[name] for images, _ in batches]
        return np.asarray(tf.concat(parts, axis=0))


def evaluated_batches(
    examples: Examples,
    preprocessing: Preprocessing,
    batch_size: int = _EVALUATED_AT_ONCE,
) -> tf.data.Dataset:
    """Return every example in order; few are kept prepared."""
    batches = pipeline.evaluation_batches(examples, preprocessing, batch_size)
    size = len(examples) * math.prod(preprocessing.input_shape)
    return batches.cache() if size <= _CACHED_BYTES else batches


@dataclass
class Totals:
    """Sums over the steps of a row of the history, so far; part of the state."""

    steps: int = 0  # of the present epoch
    before: int = 0  # of earlier epochs of the same row
    loss: float = 0.0  # sum of the losses of all of these steps
    correct: int = 0  # images classified correctly
    seconds: float = 0.0  # time of the steps
    waited: float = 0.0  # part of it spent waiting for images

    @property
    def row_steps(self) -> int:
        """Steps of the row."""
        return self.before + self.steps

    def progress(self, batch_size: int) -> str:
        """Return the text beside a progress bar."""
        seen = self.row_steps * batch_size
        return (
            f"loss {self.loss / self.row_steps:.3f}  accuracy {self.correct / seen:.1%}"
            f"  {seen / self.seconds:,.0f} images/s  "
            f"data wait {self.waited / self.seconds:.0%}"
        )


class StepLoop(ABC):
    """Steps whose state is saved every so many seconds, so that they can be resumed.

    The batch size is over all devices, which share each batch; all workers stop
    together.
    """

    def __init__(self, batch_size: int, save_every: float, devices: Devices) -> None:
        self._batch_size, self._save_every = batch_size, save_every
        self._devices, self._saved = devices, time.monotonic()

    @abstractmethod
    def _train(self, images: tf.Tensor, targets: tf.Tensor) -> tuple[float, int]:
        """Take one step; return the loss and the number of correct images."""

    @abstractmethod
    def _write(self) -> None:
        """Write the state."""

    def save(self) -> None:
        """Write the state now."""
        self._saved = time.monotonic()
        self._write()

    def take_steps(
        self, batches: Batches, totals: Totals, steps: int, progress: Progress,
        stop: state.StopRequest,
    ) -> bool:  # fmt: skip
        """Take steps until `totals.steps` are `steps`; tell if the loss stays finite.

        Otherwise it ends at once. Raises Stopped where a signal requested it; the state
        is saved.
        """
        while totals.steps < steps:
            start = time.perf_counter()
            images, targets = next(batches)
            received = time.perf_counter()
            loss, correct = self._train(images, targets)
            if not math.isfinite(loss):
                return False
            totals.steps += 1
            totals.loss += loss
            totals.correct += correct
            totals.waited += received - start
            totals.seconds += time.perf_counter() - start
            progress.advance(note=totals.progress(self._batch_size))
            if self._devices.any_worker(stop.received is not None):
                self.save()
                self._devices.barrier()
                raise state.Stopped
            if time.monotonic() - self._saved >= self._save_every:
                self.save()
        return True


class Run(StepLoop):
    """Train a model by a configuration, from the start or from a state.

    Attributes:
        history: The finished epochs, and the best weights.
        examples: Of the train split.
        evaluator: Measures with the weights of the last epoch.
        phase_trainer: Trains the model in the present phase.
        head_top1: Accuracy after the phase of the head, on the split that
            the model is finally evaluated on; None without such a phase.
    """

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config.recipe.batch_size, config.save_every, config.devices)
        self.config, recipe = config, config.recipe
        model, preprocessing = config.model, config.card.preprocessing
        source, devices = config.source, config.devices
        with devices.scope():
            self._model = training_copy(model, preprocessing, recipe)
        shown = evaluation_copy(model, preprocessing), preprocessing
        self.evaluator = Evaluator(*shown, source, devices, recipe.batch_size)
        self.examples = source.examples("train")
        provenance = {
            "source": "trained with reszoo", "data": source.name,
            "data_sha256": content_digest(source), "images": len(self.examples),
            "recipe": recipe.to_json(),
        }  # fmt: skip
        of_weights = config.card, provenance
        self.history = RunHistory(*of_weights, config.folder, recipe.best_by)
        self.head_top1: float | None = None
        self._epoch, self._totals = 0, Totals()
        self.phase_trainer = self._new_phase_trainer()
        self._log: EventLog | None = None
        self._hinted = False
        self._batches: Batches | None = None

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or patience ended."""
        return self._epoch == self.config.epochs or self._out_of_patience

    @property
    def position(self) -> tuple[int, int]:
        """Epochs done, and steps done in the present one."""
        return self._epoch, self._totals.steps

    def resume(self, saved: state.State, folder: Path) -> None:
        """Restore the state of an interrupted run and the best weights it saved."""
        tensors, content = saved
        self._epoch = content["epoch"]
        self._totals = Totals(**content["tally"])
        self.head_top1 = content["probe"]
        self.history.restore(content, folder)
        self.phase_trainer = self._new_phase_trainer()
        state.restore(self.phase_trainer.variables(), tensors)

    def check_agreement(self) -> None:
        """Refuse to start where another worker starts differently.

        A UsageError if something differs; the message says what.
        """
        if self._devices.workers == 1:
            return
        # The weights differ where each worker was given fresh ones of its own.
        values = map(np.asarray, self.phase_trainer.variables().values())
        digests = [hashlib.sha256(each.tobytes()).hexdigest() for each in values]
        start = {"weights": digests, "epoch and step": list(self.position)}
        self._devices.check_agreement({**self.config.conditions, **start})

    def train(self, stop: state.StopRequest) -> None:
        """Train for the remaining epochs.

        A ReszooError if the loss is NaN or infinite; Stopped if a signal requested
        it; the state is saved.
        """
        with ExitStack() as stack:
            if self.config.folder and not self.finished:
                folder = self.config.folder / TENSORBOARD
                log = closing(EventLog(folder, self._steps_done()))
                self._log = stack.enter_context(log)
            while not self.finished:
                self._train_epoch(stop)
                self._end_epoch()

    def calibrate(self) -> None:
        """Measure temperature and thresholds of the best weights (see `Confidence`)."""
        source, devices = self.config.source, self.config.devices
        if "validation" not in source.splits or self.history.best is None:
            return
        examples, classes = source.examples("validation"), len(source.labels)
        logits = np.zeros((len(examples), classes), np.float32)
        if devices.is_chief:
            self.history.load_best(self.evaluator.model)
            logits = self.evaluator.outputs(examples, "logits")
        if (found := measure(logits, source)) is None:
            return
        hints = get_type_hints(Confidence)
        names = [name for name in hints if hints[name] is float]
        numbers = devices.broadcast([getattr(found, name) for name in names])
        found = replace(found, **dict(zip(names, numbers, strict=True)))  # type: ignore[arg-type]
        self.history.calibrate(found)
        say(
            f"Temperature {found.temperature:.3f}, from {found.images:,} validation "
            "images; expected calibration error on the others "
            f"{found.error_before:.2%} before, {found.error_after:.2%} after"
        )

    def _train(self, images: tf.Tensor, targets: tf.Tensor) -> tuple[float, int]:
        step = self._steps_done_in_phase()
        return self.phase_trainer.train(images, targets, step, self._epoch)

    def _write(self) -> None:
        if not (folder := self.config.folder):
            return
        content = {
            "conditions": self.config.conditions, "epoch": self._epoch,
            "tally": asdict(self._totals), "probe": self.head_top1,
            **self.history.to_json(),
        }  # fmt: skip
        self.history.write()
        state.write_state(folder / state.STATE, self.phase_trainer.variables(), content)

    def _new_phase_trainer(self) -> PhaseTrainer:
        config, card = self.config, self.config.card
        of_model = self._model, card.resnet, card.preprocessing
        phase, weights = config.phase_of(self._epoch), config.class_weights()
        self.evaluator.keep_features(bool(phase.recipe.cache_features))
        shared = self._devices, weights, config.teacher
        return PhaseTrainer(*of_model, phase, *shared)

    def _steps_done_in_phase(self) -> int:
        phase = self.phase_trainer.phase
        epochs = self._epoch - phase.first_epoch
        return epochs * phase.steps_per_epoch + self._totals.steps

    def _steps_done(self) -> int:
        first = self.phase_trainer.phase.first_epoch
        before = (p.steps for p in self.config.phases if p.first_epoch < first)
        return sum(before) + self._steps_done_in_phase()

    def _train_epoch(self, stop: state.StopRequest) -> None:
        totals, steps = self._totals, self.phase_trainer.phase.steps_of(self._epoch)
        if self._batches is None:
            self._batches = pipeline.quietly(self._remaining_batches())
        with Progress(f"epoch {self._epoch + 1}", steps, totals.steps) as progress:
            if not self.take_steps(self._batches, totals, steps, progress, stop):
                raise self._diverged()

    def _remaining_batches(self) -> Any:
        config, phase = self.config, self.phase_trainer.phase
        recipe, record = phase.recipe, config.card.preprocessing
        augmentation = augmentation_of(recipe, record, config.source.flip_safe)
        shown, start = (self.examples, record, augmentation), self._totals.steps
        if recipe.cache_features:
            epochs = range(self._epoch, phase.first_epoch + phase.epochs)
            return feature_batches(self._model, recipe, *shown, epochs, start)
        return pipeline.training_batches(
            *shown, batch_size=recipe.batch_size, seed=recipe.seed, epoch=self._epoch,
            start=start, epochs=config.epochs - self._epoch,
            shard=(self._devices.worker, self._devices.workers),
        )  # fmt: skip

    def _end_epoch(self) -> None:
        phase = self.phase_trainer.phase
        if not phase.ends_row(self._epoch):
            self._epoch += 1
            self._totals = replace(self._totals, before=self._totals.row_steps, steps=0)
            return
        self._validate()
        self._epoch, self._totals = self._epoch + 1, Totals()
        if self.config.phase_of(self._epoch) is not phase:
            self._batches = None if phase.recipe.cache_features else self._batches
            self._end_head_phase()
        told = self.config.on_epoch_end or not phase.recipe.cache_features
        # An epoch on cached features takes less time than writing the weights.
        if told or self.finished or time.monotonic() - self._saved >= self._save_every:
            self.save()
        if self.config.on_epoch_end and self._devices.is_chief:
            self.config.on_epoch_end(self.history.epochs[-1])
        if self._out_of_patience and self._epoch < self.config.epochs:
            best = self.history.best and self.history.best.epoch
            kept = f"none was better than epoch {best}"
            say(f"Stopped after epoch {self._epoch}: {kept}.")

    @property
    def _out_of_patience(self) -> bool:
        """Whether the last epochs bring training to an end, by the history alone."""
        patience, best = self.config.recipe.patience, self.history.best
        if patience is None or best is None:
            return False
        head = self.config.phases[-1].first_epoch
        return self.history.epochs[-1].epoch - max(best.epoch, head) >= patience

    def _validate(self) -> None:
        values = self.phase_trainer.evaluated_variables()
        tensors = self.evaluator.load_variables(values)
        metrics = self.evaluator.evaluate("validation")
        if metrics and not math.isfinite(metrics.loss):
            raise self._diverged()
        row = self._row(metrics)
        steps_left, done = self.config.steps - self._steps_done(), self._totals
        minutes = steps_left * done.seconds / done.row_steps / 60
        time_left = f"  {minutes:.0f} min left" if minutes >= 1 else ""
        say(f"epoch {row.epoch:3d}/{self.config.epochs}  {row}{time_left}")
        cached = self.phase_trainer.phase.recipe.cache_features
        if row.data_wait > _MUCH_WAITING and not self._hinted and not cached:
            gain = resizing_gain(self.examples, self.config.source.name)
            say(f"Waiting for images took {row.data_wait:.0%} of the epoch; {gain}")
            self._hinted = True
        self.history.add(row, metrics, tensors)
        if self._log:
            values = {tag: getattr(row, field) for tag, field in _TAGS.items()}
            known = {tag: value for tag, value in values.items() if value is not None}
            self._log.scalars(self._steps_done() - 1, known)

    def _end_head_phase(self) -> None:
        self.head_top1 = self.history.epochs[-1].validation_top1
        if self.config.source.judging_split == "test":
            metrics = self.evaluator.evaluate("test")
            self.head_top1 = metrics.top1 if metrics else None
        self.phase_trainer = self._new_phase_trainer()
        say(f"Training all unfrozen layers; {self.phase_trainer.batch_norm}")

    def _row(self, metrics: Metrics | None) -> Epoch:
        totals, phase = self._totals, self.phase_trainer.phase
        seen = totals.row_steps * phase.recipe.batch_size
        return Epoch(
            epoch=self._epoch + 1, phase=phase.name,
            loss=totals.loss / totals.row_steps, top1=totals.correct / seen,
            **{f"validation_{n}": getattr(metrics, n, None) for n in _VALIDATED},
            learning_rate=phase.learning_rate(self._steps_done_in_phase() - 1),
            images_per_second=seen / totals.seconds, seconds=totals.seconds,
            data_wait=totals.waited / totals.seconds,
        )  # fmt: skip

    def _diverged(self) -> ReszooError:
        folder, phase = self.config.folder, self.phase_trainer.phase
        self.history.write()
        kept = f" The earlier epochs are in {folder}." if folder else ""
        rate = f"learning_rate (it is {phase.recipe.learning_rate:g})"
        advice = f"Lower {rate} or raise warmup_epochs."
        if phase.name == "head":
            advice = f"Lower head_{rate}."
        return ReszooError(
            f"Training diverged: the loss is NaN or infinite after "
            f"{self._totals.steps} steps of epoch {self._epoch + 1}. {advice}{kept}"
        )
