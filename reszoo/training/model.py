"""Copies of a model for training and evaluation, frozen layers and precision."""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cache
from itertools import count, pairwise
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from reszoo.architecture import Architecture, convolutions, standalone_norms
from reszoo.environment import processor_flags
from reszoo.errors import UsageError
from reszoo.layers import statistics_kept
from reszoo.preprocessing import Preprocessing
from reszoo.resnet import build_resnet, logits_model
from reszoo.training.recipes import Recipe
from reszoo.weights.names import assign_tensors, to_tensors
from reszoo.zoo import own_card

# Attribute of a model: names of the layers that `freeze` froze.
_FROZEN = "_reszoo_frozen"
# Names of what ends a block: the ReLU after a sum or a path, or the sum.
_BLOCK = re.compile(r"layer\d+\.\d+\.(relu|add|conv\d)")


class BatchNormCount(NamedTuple):
    """How many batch normalisations are frozen, and how many are live."""

    frozen: int
    live: int

    def __str__(self) -> str:
        return f"batch normalisation: {self.frozen} frozen, {self.live} live"


def freeze(
    model: keras.Model, architecture: Architecture, part: str | None, batch_norm: bool
) -> BatchNormCount:
    """Set which layers are trainable; return the numbers of frozen and live norms.

    What an earlier call froze is unfrozen first. Layers that were frozen otherwise, by
    the user for example, stay frozen. The part is "backbone" for all but the head,
    "stages:N" for the stem and the first N stages (a UsageError if the model has
    fewer), or None; with `batch_norm`, every batch normalisation is frozen as well.
    """
    names, unfrozen = frozen_layers(architecture, part), unfrozen_layers(model)
    norms = [each for each in model.layers if _is_norm(each)]
    names |= {each.name for each in norms if batch_norm}
    for layer in model.layers:
        layer.trainable = layer.name in unfrozen - names
    setattr(model, _FROZEN, frozenset(unfrozen & names))
    live = sum(each.trainable for each in norms)
    return BatchNormCount(frozen=len(norms) - live, live=live)


def _is_norm(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, keras.layers.BatchNormalization)


def unfrozen_layers(model: keras.Model) -> set[str]:
    """Return the names of the layers that are trainable, or frozen by `freeze` only."""
    ours: frozenset[str] = getattr(model, _FROZEN, frozenset())
    return {each.name for each in model.layers if each.trainable or each.name in ours}


def frozen_layers(architecture: Architecture, part: str | None) -> set[str]:
    """Return the names of the layers with weights in a part (see `freeze`)."""
    if part is None:
        return set()
    stages = len(architecture.spec.depths)
    last = stages if part == "backbone" else int(part.partition(":")[2])
    if last > stages:
        raise UsageError(
            f"{architecture.name} has {stages} stages. Received: freeze={part!r}."
        )
    listed = [each for each in convolutions(architecture) if each.stage <= last]
    names = {name for each in listed for name in (each.name, *each.norms)}
    return names.union(standalone_norms(architecture) if last == stages else ())


# bfloat16 without such an instruction is emulated, and slower than float32.
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16"}


def training_copy(
    model: keras.Model, preprocessing: Preprocessing, recipe: Recipe
) -> keras.Model:
    """Build the copy of a model that is trained, from images of `train_size` to logits.

    The recipe decides precision, stochastic depth, dropout, synchronised statistics.
    The copy has the same layer names, weights and `trainable` flags; layers that only
    `reszoo.compile` froze are trainable. A UsageError if the model has no classifier,
    or the processor no bfloat16.
    """
    architecture = own_card(model).card.resnet
    logits_model(model)
    shape = (*preprocessing.train_sides, preprocessing.channels)
    rate = recipe.block_dropout or architecture.dropout
    with precision_policy(resolve_precision(recipe)):
        copy = build_resnet(
            replace(architecture, input_shape=shape, dropout=rate),
            stochastic_depth=recipe.stochastic_depth, keyed=True,
            head_dropout=recipe.dropout, synchronized=recipe.sync_bn, seed=0,
            name=model.name,
        )  # fmt: skip
    assign_tensors(copy, to_tensors(model), model.name)
    unfrozen = unfrozen_layers(model)
    for layer in model.layers:
        if layer.weights:
            copy.get_layer(layer.name).trainable = layer.name in unfrozen
    return logits_model(copy)


def recomputed(model: keras.Model) -> Callable[[Any], tf.Tensor]:
    """Return a function that computes a `training_copy` in training in little memory.

    The blocks are divided into about as many groups as a group has blocks, of which
    only the inputs are kept. Gradients compute a group again (Chen et al. 2016,
    arXiv:1604.06174) with the same random draws; moving statistics move once.
    """
    # The last layer of a block, in Keras' order from input to output, ends it.
    ends = {
        layer.name.rpartition(".")[0]: layer.output
        for layer in model.layers
        if _BLOCK.fullmatch(layer.name)
    }
    size = math.isqrt(len(ends))
    image, *key = model.inputs
    cuts = [image, *list(ends.values())[size - 1 : -1 : size], model.output]
    groups = [keras.Model([start, *key], end) for start, end in pairwise(cuts)]

    def compute(inputs: Any) -> tf.Tensor:
        x, *rest = inputs if key else [inputs]
        for group in groups:
            x = tf.recompute_grad(_first_and_again(group, rest))(x)
        return x

    return compute


def _first_and_again(group: keras.Model, rest: list[Any]) -> Callable[[Any], Any]:
    """Return a function of a group's input that moves its statistics only once."""
    calls = count()

    def compute(x: Any) -> Any:
        with statistics_kept() if next(calls) else nullcontext():
            return group([x, *rest], training=True)

    return compute


def evaluation_copy(model: keras.Model, preprocessing: Preprocessing) -> keras.Model:
    """Build a float32 copy at `eval_size`, which measures while another copy trains."""
    shape, built = preprocessing.input_shape, own_card(model).card.resnet
    # Without Keras' dropout, which has variables of its own.
    built = replace(built, input_shape=shape, classifier_activation=None, dropout=0.0)
    with precision_policy("float32"):
        return build_resnet(built, seed=0, name=model.name)


def set_momentum(model: keras.Model, momentum: float) -> None:
    """Set the momentum of the moving statistics (Keras' convention)."""
    for layer in filter(_is_norm, model.layers):
        layer.momentum = momentum


def resolve_precision(recipe: Recipe) -> str:
    """Return "float32" or "bfloat16": what the recipe's precision is on this machine.

    A UsageError if bfloat16 is required and the processor has no such instructions.
    """
    if recipe.precision == "float32" or has_bfloat16():
        return recipe.precision.replace("auto", "bfloat16")
    if recipe.precision == "bfloat16":
        raise UsageError(
            "This processor has no bfloat16 instructions, so it would be slower "
            "than float32. Received: precision=bfloat16; use precision=auto."
        )
    return "float32"


@cache
def has_bfloat16() -> bool:
    """Return whether bfloat16 is fast here: the processor's flags, or a GPU's age."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details = tf.config.experimental.get_device_details(gpus[0])
        return bool(details.get("compute_capability", (0, 0)) >= (8, 0))
    return bool(_BFLOAT16_FLAGS & processor_flags())


@contextmanager
def precision_policy(precision: str) -> Iterator[None]:
    """Have models built in the body compute in "float32" or "bfloat16"."""
    before = keras.config.dtype_policy()
    name = "mixed_bfloat16" if precision == "bfloat16" else "float32"
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
