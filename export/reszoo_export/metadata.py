"""The card inside every exported file, so that a file alone tells its labels.

ONNX files carry it in `metadata_props`, SavedModel folders in `assets.extra`, and
TFLite files in a zip archive behind the flatbuffer, where MediaPipe also looks.
"""

import io
import zipfile
from pathlib import Path

from reszoo.cards import Card
from reszoo.checkpoints import safetensors
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


def read_card(path: Path) -> Card:
    """Read the card of a checkpoint or an exported file.

    Raises:
        CheckpointError: The file has no card, or is damaged.
    """
    if path.suffix == safetensors.SUFFIX:
        return safetensors.read_card(path)
    try:
        return Card.from_text(_READERS[path.suffix](path))
    except (KeyError, OSError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{path} has no reszoo card inside, so its labels and preprocessing are "
            "unknown. Only files that reszoo exported can be opened."
        ) from error


def _from_saved_model(path: Path) -> str:
    return (path / EXTRA_FOLDER / CARD_FILE).read_text(encoding="utf-8")


def _from_tflite(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        return archive.read(CARD_FILE).decode()


def _from_onnx(path: Path) -> str:
    import onnx

    model = onnx.load(path)
    properties = {entry.key: str(entry.value) for entry in model.metadata_props}
    return properties[ONNX_KEY]


_READERS = {"": _from_saved_model, ".tflite": _from_tflite, ".onnx": _from_onnx}
