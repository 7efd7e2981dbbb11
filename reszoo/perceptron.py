"""Plain and residual multilayer perceptrons: the idea without convolutions."""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import keras

from reszoo.blocks import residual
from reszoo.errors import UnknownNameError, UsageError
from reszoo.layers import BatchNormalization, layer_seed
from reszoo.specs import Shortcut

# A vector keeps its width from block to block, so there is nothing to project where
# shapes change.
SHORTCUTS = ("identity", "none")


def mlp(
    layers: int,
    *,
    width: int = 64,
    classes: int = 10,
    input_shape: Sequence[int] = (8, 8, 3),
    shortcut: Shortcut = "identity",
    seed: int | None = None,
    name: str | None = None,
) -> keras.Model:
    """Build a multilayer perceptron, with shortcuts or without.

    As the CIFAR nets of He et al. 2015, section 4.2, it has 2n + 2 weighted layers:
    one that brings the image to `width`, n blocks of two, and the classifier. Each but
    the last is followed by batch normalisation and a ReLU.

    Args:
        layers: Weighted layers: an even number, 4 at least.
        width: Of all but the last.
        classes: Number of classes.
        input_shape: `(height, width, channels)` of the images, or `(features,)`.
        shortcut: "identity" adds the activation from two layers before, "none" does
            not. The two nets are equal in width, depth and parameters.
        seed: Decides the fresh weights; None draws them anew each time.
        name: Of the model.

    Returns:
        A functional model from `(batch, *input_shape)` to logits `(batch, classes)`.

    Raises:
        UsageError: `layers` is odd or too small, or there is no such shortcut.

    Example:
        >>> reszoo.mlp(56, shortcut="none").count_params()
    """
    if layers < 4 or layers % 2:
        raise UsageError(
            "layers must be even and at least 4: one in front, two a block, and the "
            f"classifier. Received: layers={layers}."
        )
    if shortcut not in SHORTCUTS:
        raise UnknownNameError("shortcut", shortcut, SHORTCUTS)
    made = _Layers(width, seed)
    image = keras.Input(tuple(input_shape), name="image")
    x = keras.layers.Flatten(name="flatten")(image)
    x = made.relu("relu")(made.norm("bn1")(made.linear("linear1")(x)))
    for number in range((layers - 2) // 2):
        x = made.block(f"block{number}", plain=shortcut == "none")(x)
    scores = keras.layers.Dense(
        classes,
        kernel_initializer=made.initializer("fc", 1 / 3, "fan_in", "uniform"),
        dtype="float32",
        name="fc",
    )
    kind = "plain" if shortcut == "none" else "residual"
    return keras.Model(image, scores(x), name=name or f"{kind}_mlp{layers}")


class _Layers:
    def __init__(self, width: int, seed: int | None) -> None:
        self.width, self.seed = width, seed

    def block(self, name: str, *, plain: bool) -> Any:
        path: tuple[Any, ...] = (
            self.linear(f"{name}.linear1"),
            self.norm(f"{name}.bn1"),
            self.relu(f"{name}.relu1"),
            self.linear(f"{name}.linear2"),
            self.norm(f"{name}.bn2"),
        )
        if plain:
            path = (*path, self.relu(f"{name}.relu"))
            return lambda x: reduce(lambda y, layer: layer(y), path, x)
        return residual(path, name=name)

    def linear(self, name: str) -> keras.layers.Layer:
        # He et al. 2015b (arXiv:1502.01852). A bias would be undone by the norm.
        return keras.layers.Dense(
            self.width,
            use_bias=False,
            kernel_initializer=self.initializer(
                name, 2.0, "fan_in", "untruncated_normal"
            ),
            name=name,
        )

    def norm(self, name: str) -> keras.layers.Layer:
        return BatchNormalization(name=name)

    def relu(self, name: str) -> keras.layers.Layer:
        return keras.layers.ReLU(name=name)

    def initializer(
        self, layer: str, scale: float, mode: str, distribution: str
    ) -> keras.initializers.Initializer:
        seed = layer_seed(self.seed, layer)
        return keras.initializers.VarianceScaling(scale, mode, distribution, seed)
