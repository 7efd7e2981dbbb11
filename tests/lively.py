"""Small nets whose answers differ from image to image, and such images."""

from typing import Any

import numpy as np
from conftest import randomise

import reszoo
from reszoo.metrics import probabilities
from reszoo.weights.names import assign_tensors, to_tensors

_DRAW = np.random.default_rng(0)
# Seven colours with noise: uint8 `(7, 32, 32, 3)`.
IMAGES = np.clip(
    _DRAW.integers(0, 256, (7, 1, 1, 3)) + _DRAW.integers(-60, 61, (7, 32, 32, 3)),
    0,
    255,
).astype(np.uint8)


def lively(name: str = "resnet8", **options: Any) -> Any:
    """Return a net with random weights, for which no class is likelier than others."""
    shape = {"input_shape": (32, 32, 3), "classes": tuple("abcde"), "seed": 0}
    net = randomise(reszoo.build(name, **{**shape, **options}))
    pixels = reszoo.card(net).preprocessing.normalise(IMAGES.astype(np.float32))
    logits = np.asarray(net(pixels, training=False))
    scale = np.float32(2 / logits.std(axis=0).max())
    tensors = to_tensors(net)
    tensors["fc.bias"] = scale * (tensors["fc.bias"] - logits.mean(axis=0))
    tensors["fc.weight"] *= scale
    assign_tensors(net, tensors, "a head that spreads the answers")
    return net


def answers_of(model: Any) -> Any:
    """Return the probabilities of a model for the images."""
    return probabilities(model, reszoo.card(model).preprocessing, IMAGES)


def varied_answers_of(model: Any) -> Any:
    """Return the probabilities of a model, which differ from image to image."""
    answers = answers_of(model)
    assert answers.std(axis=0).max() > 0.02
    return answers
