"""The training copy of a model: precision, frozen layers, batch normalisation."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import keras
import tensorflow as tf

from reszoo.environment import processor_flags
from reszoo.errors import UsageError
from reszoo.layers import BatchNormalization
from reszoo.preprocessing import Preprocessing
from reszoo.resnet import build_resnet, logits_model
from reszoo.specs import SPECS
from reszoo.training.recipes import Recipe
from reszoo.weights.names import assign_tensors, to_tensors
from reszoo.zoo import get_card

# On a model: which layers `freeze` froze that learnt before.
_FROZEN = "_reszoo_frozen"


class BatchNormCount(NamedTuple):
    """How many batch normalisations keep what they know, and how many learn."""

    frozen: int
    live: int

    def __str__(self) -> str:
        return f"batch normalisation: {self.frozen} frozen, {self.live} live"


def freeze(
    model: keras.Model, spec: str, setting: str | None, batch_norm: bool
) -> BatchNormCount:
    """Set which layers of a model learn.

    What an earlier call froze is thawed first. Layers that were frozen otherwise, by
    the user's hand for example, stay so.

    Args:
        model: A model from `build_resnet`.
        spec: Its variant.
        setting: "backbone" for all but the head, "stages:N" for the stem and the
            first N stages, or None.
        batch_norm: Whether every batch normalisation is frozen as well.

    Returns:
        How many batch normalisations are frozen and live.

    Raises:
        UsageError: The net has no such number of stages.
    """
    names = frozen_parts(spec, setting)
    learning = learning_layers(model)
    norms = []
    for layer in model.layers:
        is_norm = isinstance(layer, keras.layers.BatchNormalization)
        stays = layer.name.startswith(names) or (batch_norm and is_norm)
        layer.trainable = layer.name in learning and not stays
        if is_norm:
            norms.append(layer.trainable)
    frozen = {layer.name for layer in model.layers if not layer.trainable}
    setattr(model, _FROZEN, frozenset(learning & frozen))
    return BatchNormCount(frozen=norms.count(False), live=norms.count(True))


def learning_layers(model: keras.Model) -> set[str]:
    """Return the names of the layers that learn, or would but for `freeze`."""
    ours: frozenset[str] = getattr(model, _FROZEN, frozenset())
    return {
        layer.name for layer in model.layers if layer.trainable or layer.name in ours
    }


def frozen_parts(spec: str, setting: str | None) -> tuple[str, ...]:
    """Return the beginnings of the names of the layers that a setting freezes."""
    if setting is None:
        return ()
    stages = len(SPECS[spec].depths)
    count = stages if setting == "backbone" else int(setting.partition(":")[2])
    if count > stages:
        raise UsageError(f"{spec} has {stages} stages. Received: freeze={setting!r}.")
    parts = (f"layer{stage + 1}." for stage in range(count))
    return ("conv1", "bn1", *parts)


# bfloat16 without such an instruction is emulated, and slower than float32.
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16"}


def twin(model: keras.Model, record: Preprocessing, recipe: Recipe) -> keras.Model:
    """Build the model that training works on, from images to logits.

    Args:
        model: A model from reszoo, with a classifier.
        record: Its `train_size` becomes the twin's input.
        recipe: Precision, stochastic depth and shared statistics.

    Returns:
        A model with the same layer names, weights and `trainable` flags. Layers that
        only `reszoo.compile` froze learn.

    Raises:
        UsageError: The model has no classifier, or the processor no bfloat16.
    """
    described = get_card(model).architecture
    logits_model(model)
    side = record.train_size
    with computing_in(precision(recipe)):
        copy = build_resnet(
            replace(described, input_shape=(side, side, 3)),
            stochastic_depth=recipe.stochastic_depth,
            synchronized=recipe.sync_bn,
            seed=0,
            name=model.name,
        )
    assign_tensors(copy, to_tensors(model), model.name)
    learning = learning_layers(model)
    for layer in model.layers:
        if layer.weights:
            copy.get_layer(layer.name).trainable = layer.name in learning
    return logits_model(copy)


def judged_twin(model: keras.Model, record: Preprocessing) -> keras.Model:
    """Build a float32 twin of `eval_size`, for measuring while training goes on."""
    described = get_card(model).architecture
    side = record.eval_size
    with computing_in("float32"):
        return build_resnet(
            replace(described, input_shape=(side, side, 3), classifier_activation=None),
            seed=0,
            name=model.name,
        )


def set_momentum(model: keras.Model, momentum: float) -> None:
    """Set how slowly the moving statistics follow (Keras' convention)."""
    for layer in model.layers:
        if isinstance(layer, BatchNormalization):
            layer.momentum = momentum


def precision(recipe: Recipe) -> str:
    """Return "float32" or "bfloat16": what a recipe means on this machine.

    Raises:
        UsageError: bfloat16 is asked for and the processor has no such instructions.
    """
    if recipe.precision != "auto":
        if recipe.precision == "bfloat16" and not has_bfloat16():
            raise UsageError(
                "This processor has no bfloat16 instructions, so it would be slower "
                "than float32. Received: precision=bfloat16; use precision=auto."
            )
        return recipe.precision
    return "bfloat16" if has_bfloat16() else "float32"


@cache
def has_bfloat16() -> bool:
    """Return whether bfloat16 is fast here: the processor's flags, or a GPU's age."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details = tf.config.experimental.get_device_details(gpus[0])
        return bool(details.get("compute_capability", (0, 0)) >= (8, 0))
    return bool(_BFLOAT16_FLAGS & processor_flags())


@contextmanager
def computing_in(precision: str) -> Iterator[None]:
    """Have models built in the body compute in "float32" or "bfloat16"."""
    before = keras.config.dtype_policy()
    name = "mixed_bfloat16" if precision == "bfloat16" else "float32"
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
