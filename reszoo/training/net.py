"""The twin of a net that training works on.

The caller's model is never touched while a run goes on: what training needs
besides (half precision, stochastic depth, shared statistics, another image size,
variables on several devices) is in a twin with the same layer names.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import keras
import tensorflow as tf

from reszoo.checkpoints.names import lay_in, to_tensors
from reszoo.errors import UsageError
from reszoo.layers import BatchNormalization
from reszoo.machine import processor_flags
from reszoo.preprocessing import Preprocessing
from reszoo.resnet import build_resnet, logits_model
from reszoo.training.freezing import learning_layers
from reszoo.training.recipes import Recipe
from reszoo.zoo import get_card

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
    lay_in(copy, to_tensors(model), model.name)
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
