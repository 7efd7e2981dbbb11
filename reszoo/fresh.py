"""Fresh weights, by a seed: the same net twice, or one net from many beginnings."""

import zlib
from typing import Any

import keras
import numpy as np


def layer_seed(seed: int | None, layer: str) -> int | None:
    """Return a seed of a layer's own, for one initializer instance repeats its draw.

    Args:
        seed: Of the net; None draws anew each time.
        layer: Name of the layer.
    """
    if seed is None:
        return None
    entropy = np.random.SeedSequence((seed, zlib.crc32(layer.encode())))
    return int(entropy.generate_state(1)[0] >> 1)


def start_anew(model: keras.Model, seed: int) -> None:
    """Give a net the weights that it would have been built with by `seed`.

    A model is traced once for all of its beginnings.

    Args:
        model: From `reszoo.build` or `reszoo.mlp`.
        seed: As their argument.
    """
    for layer in model.layers:
        for variable in layer.weights:
            variable.assign(_initializer(layer, variable, seed)(variable.shape))


def _initializer(layer: keras.layers.Layer, variable: Any, seed: int) -> Any:
    name = variable.path.rsplit("/", 1)[-1]
    initializer = getattr(layer, f"{name}_initializer")
    config = initializer.get_config()
    if "seed" in config:
        config["seed"] = layer_seed(seed, layer.name)
    return type(initializer).from_config(config)
