"""Read the card and the weights of a user's Keras model."""

from dataclasses import dataclass, replace
from typing import Any

import keras

from reszoo.architecture import Architecture
from reszoo.cards import Card, library_versions
from reszoo.console import say
from reszoo.errors import UsageError
from reszoo.layers import BatchNormalization
from reszoo.preprocessing import Preprocessing, default_preprocessing
from reszoo.weights import keras_h5
from reszoo.weights.names import Tensors
from reszoo.zoo import get_card
from reszoo_export.keras_models.graph import all_layers
from reszoo_export.keras_models.resnet import KerasResNet, read_resnet

# How pictures were shown to a model, as the card tells it.
_CAFFE = "of keras.applications"
_CARD = "of the net inside"
_FRESH = "of a fresh net from reszoo"


@dataclass(frozen=True)
class Found:
    """A plain Keras model that is a ResNet.

    Attributes:
        resnet: What was found in it.
        card: Made of what is known.
        bgr: Whether it takes BGR less the means of Caffe.
    """

    resnet: KerasResNet
    card: Card
    bgr: bool

    def folded(self) -> Tensors:
        """Return its weights for a model that takes RGB, normalization folded in."""
        tensors = self.resnet.folded()
        if self.bgr:
            first = f"{next(iter(self.resnet.convolutions))}.weight"
            tensors[first] = tensors[first][:, ::-1]
        return tensors


def is_from_reszoo(model: keras.Model) -> bool:
    """Tell whether a model has a card, and layers named as torchvision's modules."""
    try:
        get_card(model)
    except UsageError:
        return False
    return True


def read_keras_model(
    model: keras.Model, preprocessing: Preprocessing | None = None
) -> Found:
    """Find the ResNet in a plain Keras model, and what is known of it.

    Args:
        model: Functional or sequential, with one image and one answer.
        preprocessing: How pictures were shown to it. None takes that of the net from
            reszoo inside it, or of `keras.applications`.

    Raises:
        UsageError: It is no ResNet that is understood, or nothing tells how pictures
            were shown to it.
    """
    resnet = read_resnet(model)
    inside = _card_inside(model)
    kind = "given" if preprocessing else _kind(resnet, inside)
    described = resnet.architecture
    if preprocessing is None:
        preprocessing = _implied(kind, inside, described, model)
    if kind == _FRESH:
        say(
            f"{model.name!r} has lost its card: pictures are normalised as for a fresh "
            f"{described.name}. Where that is wrong, pass preprocessing=."
        )
    provenance: dict[str, Any] = {"source": "a Keras model", "preprocessing": kind}
    if inside is not None and not inside.is_fresh:
        provenance["began_as"] = dict(inside.provenance)
    card = Card(
        architecture=described,
        labels=None,
        preprocessing=_sized(preprocessing, described, model),
        provenance=provenance,
        versions=library_versions(),
    )
    return Found(resnet, card, bgr=kind == _CAFFE)


def _card_inside(model: keras.Model) -> Card | None:
    cards = [
        get_card(layer)
        for layer in all_layers(model)
        if isinstance(layer, keras.Model) and is_from_reszoo(layer)
    ]
    return cards[0] if cards else None


def _kind(resnet: KerasResNet, inside: Card | None) -> str:
    """Tell by its make how pictures were shown to a model."""
    if inside is not None:
        return _CARD
    first = next(iter(resnet.convolutions.values()))
    norms = [*resnet.norms.values(), first.norm]
    if isinstance(norms[0], BatchNormalization):
        return _FRESH
    # What keras.applications calls its first convolution in every ResNet.
    return _CAFFE if first.layer.name == "conv1_conv" else ""


def _implied(
    kind: str, inside: Card | None, described: Architecture, model: keras.Model
) -> Preprocessing:
    if kind == _CARD and inside is not None:
        return inside.preprocessing
    if kind == _CAFFE:
        return keras_h5.preprocessing()
    if kind == _FRESH:
        return default_preprocessing(described.spec)
    raise UsageError(
        "Nothing tells how pictures were shown to a Keras model that neither reszoo "
        f"nor keras.applications built. Received: {model.name!r}; pass "
        "preprocessing=reszoo.Preprocessing(...)."
    )


def _sized(
    record: Preprocessing, described: Architecture, model: keras.Model
) -> Preprocessing:
    height, width, _ = described.input_shape
    if height != width:
        raise UsageError(
            "A model must take square images to be exported. "
            f"Received: {model.name!r} of {height}x{width}."
        )
    if height in (None, record.eval_size):
        return record
    return replace(record, train_size=height, eval_size=height)
