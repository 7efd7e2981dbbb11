"""What all runs of a study share: images or a table, and the steps."""

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from reszoo.architecture import architecture
from reszoo.cards import new_card
from reszoo.data.examples import Examples
from reszoo.data.pipeline import Augmentation, quietly, training_batches
from reszoo.data.sources import Data, Source, open_source, read_arrays
from reszoo.errors import DataError, UsageError
from reszoo.preprocessing import Preprocessing
from reszoo.studies.results import Family, Shape
from reszoo.training.phases import Phase, phases
from reszoo.training.recipes import Recipe
from reszoo.training.run import evaluated_batches

# Points of a curve. Where the test set is large compared with the training in between,
# the test error is measured at every fourth.
_POINTS, _TEST_EVERY = 20, 4


# The digits are 8 x 8: small enough to train over a hundred layers in seconds.
_DIGITS_SIZE, _SIZE = 8, 32


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """Settings that all runs of a study share."""

    source: Source  # images or a table, with a train split and one to test on
    preprocessing: Preprocessing
    augmentation: Augmentation
    phase: Phase
    folder: Path  # where the state of a run is kept
    save_every: float  # seconds between two states

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
        few = len(self.source.examples()) <= between
        return points if few else points[::-1][::_TEST_EVERY]

    @property
    def snapshots(self) -> set[int]:
        """Steps before which gradients and activations are measured, from 0."""
        return {0, self.phase.steps // 2, self.phase.steps - 1}

    @property
    def input_shape(self) -> Shape:
        """Shape of one input of the models."""
        if is_table(self.source):
            rows: Any = self.source.examples("train").images
            return tuple(rows.shape[1:])
        return (*self.preprocessing.train_sides, 3)

    @property
    def inputs(self) -> str | int:
        """What one input of the models is: side of an image, or a row."""
        shape = self.input_shape
        return f"{shape[0]} columns" if len(shape) == 1 else shape[0]

    def batches(self, seed: int, step: int) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
        """Yield the batches from `step` on."""
        phase, examples = self.phase, self.source.examples("train")
        epoch, start = divmod(step, phase.steps_per_epoch)
        left, size = phase.epochs - epoch, phase.recipe.batch_size
        options: Any = {"epoch": epoch, "start": start, "epochs": left, "seed": seed}
        if is_table(self.source):
            return _table_batches(examples, size, **options)
        shown = examples, self.preprocessing, self.augmentation
        return quietly(training_batches(*shown, batch_size=size, **options))

    def test_batches(self) -> Any:
        """Return the batches to test on, which can be gone through repeatedly."""
        examples = self.source.examples()
        if is_table(self.source):
            return [(tf.constant(examples.images), tf.constant(examples.targets))]
        return evaluated_batches(examples, self.preprocessing)


def study_plan(
    source: Source, recipe: Recipe, size: int | None, folder: Path, save_every: float
) -> StudyPlan:
    """Return what the runs of a study share; a UsageError if there is no test split."""
    usual_side = _DIGITS_SIZE if source.name == "digits" else _SIZE
    side = size or recipe.train_size or usual_side
    if not isinstance(side, int):
        raise UsageError(
            f"A study's models take square images. Received: train_size={side}; give "
            "one number."
        )
    train = source.examples("train")
    usual = new_card(architecture("resnet20")).preprocessing
    if is_table(source):
        # Rows are standardised already: this leaves them as they are.
        side = 1
        usual = replace(usual, mean=(0.0,), std=(1 / 255,))
    elif "test" not in source.splits:
        raise UsageError(
            f"A study compares on a test split, which {source.name} does not have: "
            "move a part of each class to test/CLASS, beside train/CLASS."
        )
    return StudyPlan(
        source=source,
        preprocessing=replace(usual, train_size=side, eval_size=side, crop_pct=1.0),
        augmentation=Augmentation(
            crop="pad" if recipe.crop == "pad" else "none",
            pad=round(recipe.pad * side),
            flip=source.flip_safe if recipe.flip is None else recipe.flip,
        ),
        phase=phases(recipe, len(train))[0], folder=folder, save_every=save_every,
    )  # fmt: skip


def open_data(data: Data, family: Family) -> Source:
    """Open images, or a table where a family takes them."""
    if isinstance(data, str | os.PathLike) or not is_table(data):
        # A study measures on the test split and validates nothing.
        return open_source(data, validation_share=0)
    if not family.tables:
        raise UsageError(
            f"The {family.name} family takes images. Received: a table, whose rows are "
            'vectors; compare perceptrons with family="dense".'
        )
    return _open_table(data)


def is_table(data: Data | Source) -> bool:
    """Return whether data, or a source of it, is a table instead of images."""
    if isinstance(data, Source):
        images = data.examples("train").images
        return images is not None and images.ndim == 2
    parts = data.values() if isinstance(data, Mapping) else [data]
    pairs = (tuple, list)
    return all(isinstance(each, pairs) and np.ndim(each[0]) == 2 for each in parts)


def _open_table(data: Any) -> Source:
    """Return the rows of a table in splits, standardised by those to train on.

    Labels and splits follow the rules of image arrays. The "images" of the source are
    the rows: float32 `(n, features)`. A DataError if they differ in length, or a value
    is no finite number.
    """
    source = read_arrays(data, None, _numbers)
    # Not pixels, but all that looks at them here is in this module.
    tables: dict[str, Any] = {n: part.images for n, part in source.splits.items()}
    if len({table.shape[1] for table in tables.values()}) > 1:
        raise DataError("The splits of a table must have the same columns.")
    train: Any = source.examples("train").images
    mean, spread = train.mean(axis=0), train.std(axis=0)
    # A column that is constant says nothing.
    scale = np.where(spread > 0, spread, 1)
    splits = {
        name: replace(part, images=((tables[name] - mean) / scale).astype(np.float32))
        for name, part in source.splits.items()
    }
    return replace(source, name="table", splits=splits, warnings=())


def _table_batches(
    examples: Examples, size: int, *, seed: int, epoch: int, start: int, epochs: int
) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
    """Yield shuffled batches as `reszoo.data.pipeline.training_batches` does."""
    rows = cast(NDArray[np.float32], examples.images)
    for number in range(epoch, epoch + epochs):
        order = np.random.default_rng((seed, number)).permutation(len(rows))
        first = start * size if number == epoch else 0
        for place in range(first, len(rows) - size + 1, size):
            chosen = order[place : place + size]
            yield tf.constant(rows[chosen]), tf.constant(examples.targets[chosen])


def _numbers(table: Any) -> NDArray[np.float64]:
    try:
        numbers = np.asarray(table, np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"A table must hold numbers. Received: {error}; encode other columns first."
        ) from error
    if not np.isfinite(numbers).all() or not numbers.size:
        raise DataError(
            "A table must have rows and columns of finite numbers. Received: "
            f"{numbers.shape} with {np.count_nonzero(~np.isfinite(numbers))} values "
            "that are missing or infinite; fill or drop them."
        )
    return numbers
