"""The card inside every exported file, so that a file alone tells its labels.

ONNX files carry it in `metadata_props`, SavedModel folders in `assets.extra`, and
TFLite files in a zip archive behind the flatbuffer (and once more in the form that
other tools know, see `tflite_metadata`).
"""

import io
import json
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

from reszoo.cards import Card
from reszoo.errors import CheckpointError

CARD_FILE = "card.json"
LABELS_FILE = "labels.txt"
ONNX_KEY = "reszoo_card"
EXTRA_FOLDER = "assets.extra"
# Zip entries carry a date; a fixed one keeps files of the same weights identical.
_DATE = (1980, 1, 1, 0, 0, 0)


def card_files(card: Card) -> dict[str, str]:
    """Return the texts that go beside or into a file, by name."""
    files = {CARD_FILE: card.to_text() + "\n"}
    if card.labels:
        files[LABELS_FILE] = "\n".join(card.labels) + "\n"
    return files


def append_zip(content: bytes, files: dict[str, str]) -> bytes:
    """Return a flatbuffer with a zip archive behind it."""
    archive = io.BytesIO()
    archive.write(content)
    with zipfile.ZipFile(archive, "a") as target:
        for name, text in files.items():
            target.writestr(zipfile.ZipInfo(name, _DATE), text.encode())
    return archive.getvalue()


def onnx_properties(card: Card) -> dict[str, str]:
    """Return the `metadata_props` of an ONNX file, in order.

    The card is there for reszoo, the rest for people and for other programs.
    """
    record = card.preprocessing
    size = record.eval_size
    properties = {
        ONNX_KEY: card.to_text(),
        "description": summary(card),
        "input": f"image: RGB, 0 to 255, {size}x{size} pixels",
        "license": licence(card),
        "preprocessing": (
            f"resize the short side to {record.resize_size} pixels "
            f"({record.interpolation}, antialiased), cut {size}x{size} from the centre"
        ),
    }
    if card.labels:
        properties["labels"] = json.dumps(card.labels, ensure_ascii=False)
    return {key: properties[key] for key in sorted(properties) if properties[key]}


def summary(card: Card) -> str:
    """Return a sentence for people on what a model is."""
    source = card.provenance.get("source", "of unknown origin")
    classes = card.architecture.classes
    does = f"an image classifier for {classes} classes" if classes else "image features"
    return (
        f"{card.architecture.spec}, {does} ({source}). Normalisation is inside: "
        "feed RGB from 0 to 255."
    )


def licence(card: Card) -> str:
    """Return the licence of a card's weights, "" where it was never told."""
    return str(card.provenance.get("licence") or "")


def saved_model_card(path: Path) -> Card:
    """Read the card of a SavedModel folder.

    Raises:
        CheckpointError: It has no card, or is damaged (all three of these).
    """
    file = path / EXTRA_FOLDER / CARD_FILE
    return _parsed(path, lambda: file.read_text(encoding="utf-8"))


def tflite_card(path: Path) -> Card:
    """Read the card of a `.tflite` file."""

    def read() -> str:
        with zipfile.ZipFile(path) as archive:
            return archive.read(CARD_FILE).decode()

    return _parsed(path, read)


def onnx_card(path: Path, properties: Mapping[str, str]) -> Card:
    """Read the card of a `.onnx` file from its `metadata_props`."""
    return _parsed(path, lambda: properties[ONNX_KEY])


def _parsed(path: Path, read: Callable[[], str]) -> Card:
    try:
        return Card.from_text(read())
    except (KeyError, OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise CheckpointError(
            f"{path} has no reszoo card inside, so its labels and preprocessing are "
            "unknown. Only files that reszoo exported can be opened."
        ) from error
