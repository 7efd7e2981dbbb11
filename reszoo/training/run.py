"""A training run: the loop over epochs, validation, saving and resuming."""

import hashlib
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from reszoo.cards import Card
from reszoo.console import Progress, say
from reszoo.data.examples import Examples
from reszoo.data.pipeline import (
    Augmentation,
    evaluation_batches,
    quietly,
    training_batches,
)
from reszoo.data.sources import Source
from reszoo.errors import ReszooError
from reszoo.metrics import Metrics, inference_function, score
from reszoo.preprocessing import Preprocessing
from reszoo.training.devices import Devices
from reszoo.training.history import Epoch, EventLog, RunHistory
from reszoo.training.model import judged_twin, twin
from reszoo.training.phases import Phase
from reszoo.training.recipes import Recipe
from reszoo.training.state import STATE, State, Stop, Stopped, restore, write_state
from reszoo.training.step import Engine
from reszoo.weights.names import Tensors, assign_tensors, to_tensors

# Where BiT's HyperRule (arXiv:1912.11370, section 3.3) also parts small pictures from
# large ones: a quarter of a small one, made large, shows little of it.
_SMALL = 96


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything about a run that does not change while it goes on.

    Attributes:
        model: What the caller gave; untouched until the end.
        card: Its card, with the data's labels and the recipe's image sizes.
        source: The images.
        recipe: What is carried out.
        phases: The same, divided.
        folder: Where the run is kept; None keeps nothing. Of several workers the
            chief keeps it.
        save_every: Seconds between two states in the middle of an epoch.
        devices: Over which each batch is spread.
        conditions: What must be the same when the run is resumed, as JSON values.
    """

    model: keras.Model
    card: Card
    source: Source
    recipe: Recipe
    phases: tuple[Phase, ...]
    folder: Path | None
    save_every: float
    devices: Devices
    conditions: dict[str, Any] = field(default_factory=dict)

    @property
    def epochs(self) -> int:
        """Number of epochs over all phases."""
        return sum(phase.epochs for phase in self.phases)

    def phase_of(self, epoch: int) -> Phase:
        """Return the phase of an epoch, counted from 0; the last one at the end."""
        begun = [phase for phase in self.phases if phase.first_epoch <= epoch]
        return begun[-1]

    @property
    def augmentation(self) -> Augmentation:
        """How training images are varied."""
        recipe, side = self.recipe, self.card.preprocessing.train_size
        flip = self.source.flip_safe if recipe.flip is None else recipe.flip
        kind: Literal["pad", "resized"] = "pad" if side < _SMALL else "resized"
        return Augmentation(
            crop=kind if recipe.crop == "auto" else recipe.crop,
            pad=round(recipe.pad * side),
            scale=recipe.scale,
            ratio=recipe.ratio,
            flip=flip,
            policy=recipe.policy,
            erase=recipe.erase,
            repeats=recipe.repeats,
        )


_AT_ONCE = 64


class Judge:
    """A float32 copy of a net at the size of evaluation.

    Args:
        model: What is trained.
        record: How images are prepared.
        source: Where they come from.
        batch_size: Images at a time.
        devices: Of which the chief measures for all workers.
    """

    def __init__(
        self,
        model: keras.Model,
        record: Preprocessing,
        source: Source,
        batch_size: int,
        devices: Devices,
    ) -> None:
        self._net = judged_twin(model, record)
        self._record, self._source = record, source
        # Training may work through a large batch in parts.
        self._batch_size = min(batch_size, _AT_ONCE)
        self._devices = devices
        self._answer = inference_function(self._net, record)
        # A data set for each split, since each is traced anew.
        self._batches: dict[int, tf.data.Dataset] = {}

    def take(self, values: Mapping[str, tf.Variable]) -> Tensors:
        """Take over weights by the path of each variable; return them."""
        # Not by place: layers between change the order that Keras gives them.
        for variable in self._net.variables:
            variable.assign(values[variable.path])
        return to_tensors(self._net)

    def assign_tensors(self, tensors: Tensors) -> None:
        """Take over weights by name."""
        assign_tensors(self._net, tensors, "the best epoch")

    def measure(self, split: str) -> Metrics | None:
        """Measure one split; None where the data has no such split."""
        if split not in self._source.splits:
            return None
        examples = self._source.examples(split)
        name = f"{self._source.name} ({split})"
        if self._devices.is_chief:
            found = score(self.probabilities(examples), examples.targets, name)
        else:
            found = Metrics(top1=0, top5=0, loss=0, images=len(examples), data=name)
        numbers = (found.top1, found.top5, found.loss)
        top1, top5, loss = self._devices.from_chief(numbers)
        return replace(found, top1=top1, top5=top5, loss=loss)

    def probabilities(self, examples: Examples) -> NDArray[np.float32]:
        """Return float32 `(n, classes)`."""
        if id(examples) not in self._batches:
            batches = evaluation_batches(examples, self._record, self._batch_size)
            self._batches[id(examples)] = batches
        answers = [
            self._answer(images)["probabilities"]
            for images, _ in self._batches[id(examples)]
        ]
        return np.asarray(tf.concat(answers, axis=0))


TENSORBOARD = "tensorboard"
# Share of the time spent waiting for images from which something should be done.
_MUCH_WAITING = 0.2
_WAITING = (
    "Much of the time went into waiting for images. `reszoo resize` makes large photos "
    "small once and for all; more processor cores decode faster."
)


@dataclass
class Tally:
    """What a row of the history has come to so far; a state holds it.

    Attributes:
        steps: Done in the present epoch.
        before: Done in earlier epochs of the same row.
        loss: Sum over all of these steps.
        correct: Images classified rightly.
        seconds: That the steps took.
        waited: Of that, for images.
    """

    steps: int = 0
    before: int = 0
    loss: float = 0.0
    correct: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    @property
    def total(self) -> int:
        """Steps of the row."""
        return self.before + self.steps

    def note(self, batch_size: int) -> str:
        """Return what a progress bar shows."""
        seen = self.total * batch_size
        return (
            f"loss {self.loss / self.total:.3f}  accuracy {self.correct / seen:.1%}  "
            f"{seen / self.seconds:,.0f} images/s  "
            f"data wait {self.waited / self.seconds:.0%}"
        )


class Run:
    """Carry out a setting, from its beginning or from a state.

    Attributes:
        chronicle: The finished epochs, and the best weights.
        engine: The net in the present phase.
        probe: Share of the judging split that the head alone got right, on the
            backbone as it was; None without such a phase.
    """

    def __init__(self, setting: RunConfig) -> None:
        self.setting = setting
        record = setting.card.preprocessing
        model, batch = setting.model, setting.recipe.batch_size
        with setting.devices.scope():
            self.net = twin(model, record, setting.recipe)
        self.judge = Judge(model, record, setting.source, batch, setting.devices)
        self.examples = setting.source.examples("train")
        self.chronicle = RunHistory(setting)
        self.probe: float | None = None
        self._epoch, self._tally, self._saved = 0, Tally(), time.monotonic()
        self.engine = self._new_engine()
        self._log: EventLog | None = None
        self._hinted = False
        self._batches: Iterator[tuple[tf.Tensor, tf.Tensor]] | None = None

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self._epoch == self.setting.epochs

    @property
    def position(self) -> tuple[int, int]:
        """Epochs done, and steps done in the present one."""
        return self._epoch, self._tally.steps

    def go_on(self, state: State, folder: Path) -> None:
        """Take the state of an interrupted run and the best weights it kept."""
        tensors, content = state
        self._epoch = content["epoch"]
        self._tally = Tally(**content["tally"])
        self.probe = content["probe"]
        self.chronicle.take(content, folder)
        self.engine = self._new_engine()
        restore(self.engine.variables(), tensors)

    def check_agreement(self) -> None:
        """Refuse to begin where another worker begins otherwise.

        Raises:
            UsageError: Something differs; the message tells what.
        """
        if self.setting.devices.workers == 1:
            return
        # The weights differ where each worker was given fresh ones of its own.
        values = self.engine.variables().values()
        digests = [
            hashlib.sha256(np.asarray(value).tobytes()).hexdigest() for value in values
        ]
        begun = {"weights": digests, "epoch and step": list(self.position)}
        self.setting.devices.check_agreement({**self.setting.conditions, **begun})

    def finish(self, stop: Stop) -> None:
        """Train through the remaining epochs.

        Raises:
            Stopped: The run was asked to stop; its state is kept.
        """
        folder = self.setting.folder
        if folder and not self.finished:
            self._log = EventLog(folder / TENSORBOARD, self._steps_done())
        try:
            while not self.finished:
                self._train(stop)
                self._close_epoch()
        finally:
            if self._log:
                self._log.close()

    def save(self) -> None:
        """Write the state, if the run has a folder."""
        self._saved = time.monotonic()
        if not self.setting.folder:
            return
        content = {
            "conditions": self.setting.conditions,
            "epoch": self._epoch,
            "tally": asdict(self._tally),
            "probe": self.probe,
            **self.chronicle.to_json(),
        }
        write_state(self.setting.folder / STATE, self.engine.variables(), content)

    def _new_engine(self) -> Engine:
        phase = self.setting.phase_of(self._epoch)
        card = self.setting.card
        spec, record = card.architecture.spec, card.preprocessing
        devices = self.setting.devices
        return Engine(self.net, spec, record, phase, devices)

    def _step_of_phase(self) -> int:
        phase = self.engine.phase
        epochs = self._epoch - phase.first_epoch
        return epochs * phase.steps_per_epoch + self._tally.steps

    def _steps_done(self) -> int:
        phase = self.engine.phase
        before = (p for p in self.setting.phases if p.first_epoch < phase.first_epoch)
        return sum(p.steps for p in before) + self._step_of_phase()

    def _train(self, stop: Stop) -> None:
        tally, batch = self._tally, self.setting.recipe.batch_size
        steps = self.engine.phase.steps_of(self._epoch)
        if self._batches is None:
            self._batches = quietly(self._remaining())
        with Progress(f"epoch {self._epoch + 1}", steps, tally.steps) as progress:
            while tally.steps < steps:
                asked = time.perf_counter()
                images, labels = next(self._batches)
                got = time.perf_counter()
                loss, hits = self.engine.train(
                    images, labels, self._step_of_phase(), self._epoch
                )
                if not math.isfinite(loss):
                    raise self._diverged()
                tally.steps, tally.correct = tally.steps + 1, tally.correct + hits
                tally.loss, tally.waited = tally.loss + loss, tally.waited + got - asked
                tally.seconds += time.perf_counter() - asked
                progress.advance(note=tally.note(batch))
                self._between_steps(stop)

    def _between_steps(self, stop: Stop) -> None:
        devices = self.setting.devices
        if devices.anyone(stop.asked is not None):
            self.save()
            devices.meet()
            raise Stopped
        if time.monotonic() - self._saved >= self.setting.save_every:
            self.save()

    def _remaining(self) -> tf.data.Dataset:
        recipe, record = self.engine.phase.recipe, self.setting.card.preprocessing
        return training_batches(
            self.examples,
            record,
            self.setting.augmentation,
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            epoch=self._epoch,
            start=self._tally.steps,
            epochs=self.setting.epochs - self._epoch,
            shard=(self.setting.devices.worker, self.setting.devices.workers),
        )

    def _close_epoch(self) -> None:
        if not self.engine.phase.closes_row(self._epoch):
            self._epoch += 1
            self._tally = replace(self._tally, before=self._tally.total, steps=0)
            return
        tensors = self.judge.take(self.engine.judged())
        measured = self.judge.measure("validation")
        if measured and not math.isfinite(measured.loss):
            raise self._diverged()
        row = self._row(measured)
        say(f"epoch {row.epoch:3d}/{self.setting.epochs}  {row}{self._left()}")
        if row.data_wait > _MUCH_WAITING and not self._hinted:
            say(_WAITING)
            self._hinted = True
        self.chronicle.add(row, measured, tensors)
        self._log_epoch(row)
        before = self.engine.phase
        self._epoch, self._tally = self._epoch + 1, Tally()
        if self.setting.phase_of(self._epoch) is not before:
            self._close_head(row)
            self.engine = self._new_engine()
            say(f"Now all layers that may learn do; {self.engine.batch_norm}")
        self.save()

    def _close_head(self, row: Epoch) -> None:
        self.probe = row.validation_top1
        if self.setting.source.judging_split == "test":
            measured = self.judge.measure("test")
            self.probe = measured.top1 if measured else None

    def _row(self, measured: Metrics | None) -> Epoch:
        tally, phase = self._tally, self.engine.phase
        seen = tally.total * phase.recipe.batch_size
        return Epoch(
            epoch=self._epoch + 1,
            phase=phase.name,
            loss=tally.loss / tally.total,
            top1=tally.correct / seen,
            validation_loss=measured.loss if measured else None,
            validation_top1=measured.top1 if measured else None,
            learning_rate=phase.learning_rate(self._step_of_phase() - 1),
            images_per_second=seen / tally.seconds,
            data_wait=tally.waited / tally.seconds,
            seconds=tally.seconds,
        )

    def _log_epoch(self, row: Epoch) -> None:
        if not self._log:
            return
        names = {
            "train/loss": row.loss,
            "train/top1": row.top1,
            "validation/loss": row.validation_loss,
            "validation/top1": row.validation_top1,
            "learning_rate": row.learning_rate,
            "speed/images_per_second": row.images_per_second,
            "speed/data_wait": row.data_wait,
        }
        values = {tag: value for tag, value in names.items() if value is not None}
        self._log.scalars(self._steps_done() - 1, values)

    def _left(self) -> str:
        tally = self._tally
        steps = sum(phase.steps for phase in self.setting.phases)
        left = (steps - self._steps_done()) * tally.seconds / tally.total
        return f"  {left / 60:.0f} min left" if left >= 60 else ""

    def _diverged(self) -> ReszooError:
        folder, recipe = self.setting.folder, self.engine.phase.recipe
        kept = f" {folder} keeps the epochs before." if folder else ""
        return ReszooError(
            f"Training diverged: the loss is no number after {self._tally.steps} "
            f"steps of epoch {self._epoch + 1}. Lower learning_rate (it is "
            f"{recipe.learning_rate:g}) or raise warmup_epochs (it is "
            f"{self.engine.phase.schedule.warmup:g}).{kept}"
        )
