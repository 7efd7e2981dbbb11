"""The training loop: from a net and images to a checkpoint."""

import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from reszoo.cards import Card, Metric, library_versions
from reszoo.checkpoints.names import Tensors, lay_in, to_tensors
from reszoo.checkpoints.safetensors import write as write_checkpoint
from reszoo.data.examples import Examples
from reszoo.data.pipeline import (
    Augmentation,
    evaluation_batches,
    find_unreadable,
    quietly,
    training_batches,
)
from reszoo.data.sources import Source, check_classes, open_source
from reszoo.errors import ReszooError, UsageError
from reszoo.evaluation import Metrics, score
from reszoo.files import write_json
from reszoo.inference import inference_function
from reszoo.progress import Progress, say
from reszoo.training.recipes import Recipe, find_recipe
from reszoo.training.report import Epoch, write_curves, write_history
from reszoo.training.step import TrainingStep
from reszoo.zoo import build, get_card, set_card

_HISTORY, _CURVES, _RECIPE = "history.csv", "curves.png", "recipe.json"
_BEST, _LAST = "best.safetensors", "last.safetensors"
_FILES = (_BEST, _LAST, _HISTORY, _CURVES, _RECIPE)


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a run ended with.

    Attributes:
        model: The model, with the weights of the best epoch and their card.
        recipe: As it was carried out.
        history: One row an epoch.
        best: Checkpoint of the best epoch; None without an output folder.
        last: Checkpoint of the last epoch; None without an output folder.
    """

    model: keras.Model
    recipe: Recipe
    history: tuple[Epoch, ...]
    best: Path | None
    last: Path | None


def train(
    model: keras.Model | str,
    data: str | os.PathLike[str],
    *,
    recipe: str | Recipe = "cifar",
    output: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    **fields: Any,
) -> TrainResult:
    """Train a model on labelled images.

    The epoch with the highest validation accuracy counts as best (the lower loss
    decides between equals); without a validation split the last one does.

    Args:
        model: A model from `reszoo.build`, or a name to build one from, with the
            classes of the data.
        data: A folder of class folders, or a name such as "digits".
        recipe: A row of `RECIPES`, or a recipe of your own.
        output: Folder for `best.safetensors`, `last.safetensors`, `history.csv`,
            `curves.png` and `recipe.json`; None writes nothing.
        overwrite: Whether a run that is there already may be replaced.
        **fields: Fields of the recipe to change, such as `epochs=10`.

    Raises:
        DataError: An image is unreadable, or the classes are not the model's.
        UsageError: The request cannot be meant; the message tells why.

    Example:
        >>> run = reszoo.train("resnet20", "digits", epochs=20)
        >>> reszoo.save(run.model, "digits.safetensors")
    """
    plan = find_recipe(recipe, **fields)
    folder = None if output is None else _free_folder(Path(output), overwrite)
    source = open_source(data)
    if isinstance(model, str):
        model = build(model, classes=source.class_names, seed=plan.seed)
    return _Run(model, source, plan, folder).result()


def _free_folder(folder: Path, overwrite: bool) -> Path:
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file. The output of a run is a folder.")
    there = [name for name in _FILES if (folder / name).exists()]
    if there and not overwrite:
        raise UsageError(
            f"{folder} holds a run already ({', '.join(there)}). Choose another "
            "folder, or pass overwrite=True (--overwrite) to replace it."
        )
    return folder


class _Run:
    def __init__(
        self, model: keras.Model, source: Source, recipe: Recipe, folder: Path | None
    ) -> None:
        self.model, self.source, self.recipe, self.folder = (
            model,
            source,
            recipe,
            folder,
        )
        self.card = self._labelled(get_card(model))
        self.examples = source.examples("train")
        self.steps = len(self.examples) // recipe.batch_size
        if not self.steps:
            raise UsageError(
                f"batch_size must be at most the number of training images. Received: "
                f"batch_size={recipe.batch_size} for {len(self.examples)} images."
            )
        self.step = TrainingStep(model, self.card.preprocessing, recipe)
        self.answer = inference_function(model, self.card.preprocessing)
        self.history: list[Epoch] = []
        self.best: tuple[float, float] | None = None
        self.best_tensors: Tensors = {}
        self.best_card = self.card

    def result(self) -> TrainResult:
        self._announce()
        try:
            for epoch in range(self.recipe.epochs):
                self._epoch(epoch)
        except KeyboardInterrupt:
            if self.folder and self.history:
                say(f"Stopped. {self.folder} keeps the epochs that were finished.")
            raise
        except tf.errors.OpError as error:
            everything = [find_unreadable(each) for each in self._shown()]
            raise next(filter(None, everything), error) from error
        if self.folder:
            write_curves(self.folder / _CURVES, self.history, self._title())
        lay_in(self.model, self.best_tensors, "the best epoch")
        set_card(self.model, self.best_card)
        return TrainResult(
            model=self.model,
            recipe=self.recipe,
            history=tuple(self.history),
            best=self.folder and self.folder / _BEST,
            last=self.folder and self.folder / _LAST,
        )

    def _epoch(self, epoch: int) -> None:
        trained = self._train(epoch)
        measured = self._validate()
        row = Epoch(
            epoch=epoch + 1,
            validation_loss=measured.loss if measured else None,
            validation_top1=measured.top1 if measured else None,
            **trained,
        )
        self.history.append(row)
        say(f"epoch {row.epoch:3d}/{self.recipe.epochs}  {row}")
        self._keep(row, measured)

    def _train(self, epoch: int) -> Mapping[str, Any]:
        batches = training_batches(
            self.examples,
            self.card.preprocessing,
            self.recipe.batch_size,
            self._augmentation(),
            seed=self.recipe.seed,
            epoch=epoch,
        )
        loss, correct, waited, rate = 0.0, 0, 0.0, 0.0
        started = time.perf_counter()
        remaining = quietly(batches)
        with Progress(f"epoch {epoch + 1}", self.steps) as progress:
            for index in range(self.steps):
                asked = time.perf_counter()
                images, labels = next(remaining)
                waited += time.perf_counter() - asked
                rate = self.recipe.learning_rate_at(
                    epoch * self.steps + index, self.steps
                )
                batch_loss, hits = self.step(images, labels, rate)
                loss, correct = loss + float(batch_loss), correct + int(hits)
                if not math.isfinite(loss):
                    raise self._diverged(epoch, index)
                progress.advance(note=f"loss {loss / (index + 1):.3f}")
        seconds = time.perf_counter() - started
        seen = self.steps * self.recipe.batch_size
        return {
            "loss": loss / self.steps,
            "top1": correct / seen,
            "learning_rate": rate,
            "images_per_second": seen / seconds,
            "data_wait": waited / seconds,
        }

    def _diverged(self, epoch: int, index: int) -> ReszooError:
        kept = f" {self.folder} keeps the epochs before." if self.folder else ""
        return ReszooError(
            f"Training diverged: the loss is no number in epoch {epoch + 1}, step "
            f"{index + 1}. Lower learning_rate (it is {self.recipe.learning_rate:g}) "
            f"or raise warmup_epochs (it is {self.recipe.warmup_epochs}).{kept}"
        )

    def _validate(self) -> Metrics | None:
        if "validation" not in self.source.splits:
            return None
        examples = self.source.examples("validation")
        batches = evaluation_batches(
            examples, self.card.preprocessing, self.recipe.batch_size
        )
        answers = [self.answer(images)["probabilities"] for images, _ in batches]
        name = f"{self.source.name} (validation)"
        return score(tf.concat(answers, axis=0).numpy(), examples.labels, name)

    def _keep(self, row: Epoch, measured: Metrics | None) -> None:
        tensors, card = to_tensors(self.model), self._card_after(row.epoch, measured)
        merit = (measured.top1, -measured.loss) if measured else (0.0, row.epoch)
        improved = self.best is None or merit > self.best
        if improved:
            self.best, self.best_tensors, self.best_card = merit, tensors, card
        if not self.folder:
            return
        if improved:
            write_checkpoint(self.folder / _BEST, tensors, card)
        write_checkpoint(self.folder / _LAST, tensors, card)
        write_history(self.folder / _HISTORY, self.history)

    def _card_after(self, epoch: int, measured: Metrics | None) -> Card:
        metrics = () if measured is None else _metrics(measured)
        provenance = {
            "source": "trained with reszoo",
            "data": self.source.name,
            "images": len(self.examples),
            "recipe": self.recipe.to_json(),
            "epoch": epoch,
        }
        return replace(
            self.card,
            provenance=provenance,
            metrics=metrics,
            versions=library_versions(),
        )

    def _labelled(self, card: Card) -> Card:
        classes, names = card.architecture.classes, self.source.class_names
        if classes != len(names):
            raise UsageError(
                f"The model must have as many outputs as the data has classes. "
                f"Received: {classes} outputs for the {len(names)} classes of "
                f"{self.source.name}; build it with classes={len(names)}."
            )
        card.check_rgb()
        check_classes(self.source, card.labels, "the model")
        return replace(card, labels=names)

    def _augmentation(self) -> Augmentation:
        flip = self.recipe.flip
        return Augmentation(
            pad=round(self.recipe.pad * self.card.preprocessing.train_size),
            flip=self.source.mirror_safe if flip is None else flip,
        )

    def _announce(self) -> None:
        say(
            f"{self._title()}: {len(self.examples):,} images, "
            f"{len(self.source.class_names)} classes, {self.steps} steps an epoch"
        )
        if self.folder:
            write_json(self.folder / _RECIPE, self.recipe.to_json())

    def _title(self) -> str:
        return f"{self.card.architecture.spec} on {self.source.name}"

    def _shown(self) -> list[Examples]:
        names = ("train", "validation")
        return [self.source.splits[n] for n in names if n in self.source.splits]


def _metrics(measured: Metrics) -> tuple[Metric, ...]:
    data = f"{measured.data}, {measured.images} images"
    values = asdict(measured)
    names = ("top1", "top5", "loss")
    return tuple(Metric(name=name, value=values[name], data=data) for name in names)
