"""The card inside every exported file: one file has all that is needed to use it.

ONNX files have it in `metadata_props`, SavedModels in the folder `assets.extra`, and
TFLite files in a zip archive behind the FlatBuffer.
"""

import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from reszoo.cards import Card
from reszoo.errors import CheckpointError
from reszoo.files import JSON_BYTES

CARD_FILE = "card.json"
LABELS_FILE = "labels.txt"


def card_files(card: Card) -> dict[str, str]:
    """Return the contents of `card.json` and, where there are labels, `labels.txt`."""
    files = {CARD_FILE: card.to_text() + "\n"}
    if card.labels:
        files[LABELS_FILE] = "\n".join(card.labels) + "\n"
    return files


def split_labels(text: str) -> list[str]:
    """Return the labels in the text of a `labels.txt`."""
    # Not splitlines, which also splits at characters that a label may contain.
    return text.removesuffix("\n").split("\n")


def summary(card: Card) -> str:
    """Describe a model in two sentences."""
    source = card.provenance.get("source", "of unknown origin")
    classes = card.architecture.classes
    does = f"an image classifier for {classes} classes" if classes else "image features"
    return (
        f"{card.architecture.name}, {does} ({source}). Normalisation is inside: "
        f"feed {card.preprocessing.colours} from 0 to 255."
    )


def licence(card: Card) -> str:
    """Return the licences of a card's weights, "" where none is recorded.

    Those of the weights that training started from are further inside.
    """
    return ", ".join(dict.fromkeys(_licences(card.provenance)))


def _licences(content: Mapping[str, Any]) -> Iterator[str]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _licences(value)
        elif name == "licence" and value:
            yield str(value)


def parse_card(path: Path, read: Callable[[], str]) -> Card:
    """Return the card in a text from an exported file.

    A CheckpointError that names the path if it has no card, or is damaged.
    """
    try:
        text = read()
        if len(text) > JSON_BYTES:
            raise ValueError(f"a card of {len(text):,} characters")
        return Card.from_text(text)
    except (KeyError, OSError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{path} has no reszoo card inside, so its labels and preprocessing are "
            "unknown. Only files that reszoo exported can be opened."
        ) from error
