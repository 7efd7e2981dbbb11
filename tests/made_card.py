"""A card of a small net, made without TensorFlow."""

from dataclasses import replace
from typing import Any

from reszoo.architecture import architecture
from reszoo.cards import Card, new_card


def made_card(labels: tuple[str, ...] | None = ("cat", "dog"), **record: Any) -> Card:
    """Return the card of a ResNet-20; `record` changes its preprocessing."""
    net = architecture("resnet20", classes=len(labels) if labels else 2)
    card = new_card(net, labels)
    return replace(card, preprocessing=replace(card.preprocessing, **record))
