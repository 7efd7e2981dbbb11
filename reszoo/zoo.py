"""Where names meet builders and weights."""

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import keras

from reszoo.cards import Card, new_card
from reszoo.checkpoints import safetensors
from reszoo.checkpoints.names import lay_in, to_tensors
from reszoo.errors import CheckpointError, UsageError
from reszoo.resnet import build_resnet
from reszoo.specs import Architecture, architecture

_CARD = "_reszoo_card"


def build(
    variant: str,
    /,
    *,
    weights: str | os.PathLike[str] | None = None,
    include_top: bool = True,
    input_shape: Sequence[int | None] | None = None,
    pooling: str | None = None,
    classes: int | Sequence[str] | None = None,
    classifier_activation: str | None = None,
    shortcut: str | None = None,
    stride_in: str | None = None,
    features: str | None = None,
    seed: int | None = None,
    name: str | None = None,
) -> keras.Model:
    """Build a net of the zoo.

    The arguments are those of `keras.applications`. The input is normalised RGB;
    `reszoo.card(model).preprocessing.normalise` makes it from RGB in 0..255.

    Args:
        variant: One of `reszoo.list_models()`, such as "resnet50" or "plain20".
        weights: A checkpoint written by reszoo, or None for fresh weights.
        include_top: Whether to end in a classifier. Without it the output is the
            last stage, `(batch, height / 32, width / 32, channels)` for ImageNet
            nets and a quarter of each side for CIFAR nets.
        input_shape: `(height, width, channels)`; None leaves a side open. Defaults
            to the size the net was designed for, and without top to open sides.
        pooling: Without top: "avg" or "max" pools the last stage to
            `(batch, channels)`.
        classes: Number of classes, or their names in order.
        classifier_activation: None for logits, "softmax" for probabilities.
        shortcut: "identity" (the paper's option A: zero channels, no parameters),
            "projection" (B: a 1x1 convolution where the shape changes),
            "projection-all" (C: in every block) or "none" (a plain net). B is the
            default of ImageNet nets, A of CIFAR nets.
        stride_in: Which convolution of a bottleneck has the stride: "3x3"
            (default; torchvision's v1.5) or "1x1" (the paper, keras.applications).
        features: Without top: "pyramid" gives every stage, as a dict from
            "layer1" on.
        seed: Decides the fresh weights; None draws them anew each time.
        name: Name of the Keras model; the variant's by default.

    Returns:
        A functional model with layers named as torchvision names modules.

    Raises:
        UsageError: A name is unknown or options contradict each other.
        CheckpointError: The weights belong to another net.

    Example:
        >>> reszoo.build("resnet18", classes=["cat", "dog"]).output_shape
        (None, 2)
    """
    labels = None if classes is None or isinstance(classes, int) else list(classes)
    options: dict[str, Any] = {
        "include_top": include_top,
        "input_shape": input_shape,
        "pooling": pooling,
        "classes": classes if labels is None else len(labels),
        "classifier_activation": classifier_activation,
        "shortcut": shortcut,
        "stride_in": stride_in,
        "features": features,
    }
    if weights is not None:
        return _build_from_file(variant, Path(weights), options, labels, name)
    described = architecture(variant, **_given(options))
    model = build_resnet(described, seed=seed, name=name)
    return _attach(model, new_card(described, labels))


def load(path: str | os.PathLike[str]) -> keras.Model:
    """Open a checkpoint: the net, its weights and its card.

    Args:
        path: A `.safetensors` file that reszoo wrote.

    Raises:
        CheckpointError: The file is missing, damaged or not a reszoo checkpoint.
    """
    tensors, found = safetensors.read(path)
    model = build_resnet(found.architecture)
    lay_in(model, tensors, str(path))
    return _attach(model, found)


def save(
    model: keras.Model, path: str | os.PathLike[str], card: Card | None = None
) -> Path:
    """Write a model's weights and card to one `.safetensors` file, in one step.

    Args:
        model: A model from `build`, `load` or `train`.
        path: The file; one that exists is replaced when the new one is complete.
        card: What to write instead of the model's own card.

    Raises:
        UsageError: The path has another ending, or the model no card.
    """
    file = Path(path)
    if file.suffix != safetensors.SUFFIX:
        raise UsageError(
            f"A checkpoint ends in {safetensors.SUFFIX}. Received: {str(path)!r}."
        )
    safetensors.write(file, to_tensors(model), card or get_card(model))
    return file


def get_card(model: keras.Model) -> Card:
    """Return the card of a model: labels, preprocessing, origin, metrics.

    Raises:
        UsageError: The model was not made by reszoo.
    """
    found = getattr(model, _CARD, None)
    if found is None:
        raise UsageError(
            f"{model.name!r} has no card, for reszoo did not make it. "
            "Use a model from reszoo.build, reszoo.load or reszoo.train."
        )
    return cast(Card, found)


def set_card(model: keras.Model, card: Card) -> None:
    """Replace a model's card, after training for example."""
    _attach(model, card)


def _build_from_file(
    variant: str,
    file: Path,
    options: dict[str, Any],
    labels: list[str] | None,
    name: str | None,
) -> keras.Model:
    tensors, found = safetensors.read(file)
    saved = found.architecture
    for argument in ("shortcut", "stride_in"):
        if options[argument] not in (None, getattr(saved, argument)):
            raise CheckpointError(
                f"{file} was made with {argument}={getattr(saved, argument)!r}. "
                f"Received: {argument}={options[argument]!r}; leave it out."
            )
    if variant != saved.spec:
        raise CheckpointError(
            f"{file} holds a {saved.spec}. Received: {variant!r}; "
            f"build {saved.spec!r}, or use reszoo.load."
        )
    kept = asdict(saved) if options["include_top"] else _headless(saved)
    kept.pop("spec")
    described = architecture(variant, **{**kept, **_given(options)})
    model = build_resnet(described, name=name)
    if not described.include_top:
        tensors = {key: value for key, value in tensors.items() if key[:3] != "fc."}
    lay_in(model, tensors, str(file))
    own = (labels and tuple(labels)) or found.labels
    shown = own if described.include_top else None
    return _attach(model, replace(found, architecture=described, labels=shown))


def _headless(saved: Architecture) -> dict[str, Any]:
    return {**asdict(saved), "classes": None, "classifier_activation": None}


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}


def _attach(model: keras.Model, card: Card) -> keras.Model:
    setattr(model, _CARD, card)
    return model
