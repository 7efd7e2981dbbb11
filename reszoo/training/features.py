"""Features of a frozen backbone: computed once, then the head is trained on them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import keras
import numpy as np
import tensorflow as tf

from reszoo.console import Progress
from reszoo.data import pipeline
from reszoo.data.examples import Examples
from reszoo.data.sources import Source
from reszoo.errors import UsageError
from reszoo.metrics import pooled_function
from reszoo.preprocessing import Preprocessing
from reszoo.training.phases import Phase
from reszoo.training.recipes import Recipe

# Bytes of features that are kept at most: of 262,144 images by ResNet-50.
_MOST_BYTES = 2**31
_AT_ONCE = 64


def cache_notes(
    phases: Sequence[Phase], source: Source, model: keras.Model, devices: int
) -> list[str]:
    """Return what to tell about cached features, in lines.

    A UsageError if they need more than 2 GiB, for several devices, which would need
    parts of them, and for more variants than epochs, each of which shows one.
    """
    cached = [phase for phase in phases if phase.recipe.cache_features]
    if not cached:
        hint = "cache_features=1 computes the features of the frozen backbone once."
        return [hint] * (devices == 1 and phases[-1].recipe.freeze == "backbone")
    variants, epochs = cached[-1].recipe.cache_features or 0, cached[-1].epochs
    images, width = len(source.examples("train")), model.get_layer("fc").kernel.shape[0]
    held_out = sum(len(source.splits.get(each, ())) for each in ("validation", "test"))
    size = 4 * width * (images * variants + held_out)
    told = (
        f"({images:,} images x {variants:,} variant{'s' * (variants > 1)} + "
        f"{held_out:,} held out) x {width:,} features x 4 bytes = {size / 1e6:,.1f} MB"
    )
    if devices > 1 or variants > epochs or size > _MOST_BYTES:
        raise UsageError(
            "cache_features needs one device, at least as many epochs as variants of "
            f"an image, and at most {_MOST_BYTES / 1e6:,.0f} MB. Received: {devices} "
            f"devices, {epochs:,} epochs with a frozen backbone, {told}. Give fewer "
            "variants, or leave cache_features or strategy out."
        )
    return [f"features of the frozen backbone are computed once and kept: {told}."]


def feature_batches(
    model: keras.Model, recipe: Recipe, examples: Examples,
    preprocessing: Preprocessing, augmentation: pipeline.Augmentation, epochs: range,
    start: int,
) -> Iterator[pipeline.Batch]:  # fmt: skip
    """Compute the features of all training images; return batches of them.

    Variant i of an image is what epoch i of `training_batches` shows. An epoch shows
    that of its number, counted round, and others where it repeats an image. The order
    is that of `training_batches`, from the batch `start` of the first epoch on.
    """
    variants, count, done = recipe.cache_features or 1, len(examples), 0
    compute, width = pooled_function(model, preprocessing), model.get_layer("fc").kernel
    found = np.empty((variants, count, width.shape[0]), np.float32)
    # Each image is told by its target, for every epoch has an order of its own.
    numbered = replace(examples, targets=np.arange(count))
    plain = replace(augmentation, repeats=1, sampling=None)
    images = pipeline.training_batches(
        numbered, preprocessing, plain, batch_size=1, seed=recipe.seed, epoch=0,
        epochs=variants,
    )  # fmt: skip
    with Progress("features", variants * count) as progress:
        for pixels, rows in pipeline.quietly(images.rebatch(_AT_ONCE).prefetch(1)):
            places = np.arange(done, done := done + len(rows)) // count
            found[places, rows] = compute(pixels)["pooled"]
            progress.advance(len(rows))

    def batches() -> Iterator[pipeline.Batch]:
        for number in epochs:
            drawn = recipe.batch_size, (recipe.seed, number), augmentation
            indices, keys, targets, _ = pipeline.epoch_slots(examples.targets, *drawn)
            shown = (number + keys[..., 1] - indices) % variants
            for step in range(start * (number == epochs[0]), len(indices)):
                chosen = found[shown[step], indices[step]]
                yield tf.constant(chosen), tf.constant(targets[step])

    return batches()
