"""Which layers stay as they are.

A frozen batch normalisation must be `trainable = False` itself: in Keras 3 calling
a backbone with `training=False` does not hold inside `fit` (keras-team/keras#20285).
"""

from typing import NamedTuple

import keras

from reszoo.errors import UsageError
from reszoo.specs import SPECS

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
