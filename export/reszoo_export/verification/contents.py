"""Whether a file holds what its format promises, beside its answers."""

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

from reszoo.cards import Card
from reszoo_export.formats import Format
from reszoo_export.inspection.describe import inspect
from reszoo_export.metadata import EXTRA_FOLDER, LABELS_FILE
from reszoo_export.runtimes.tensorflow import newest_version
from reszoo_export.verification.encoded_answers import wrong_encoded
from reszoo_export.verification.onnx_contents import wrong_onnx


def wrong_contents(row: Format, path: Path, card: Card) -> list[str]:
    """Tell what is wrong with a file's inside.

    Its arithmetic must be that of its format, the labels that it keeps for other
    programs must be the card's, an ONNX file must suit runtimes and processors that
    are in use, and a SavedModel must prepare encoded pictures as its card says.

    Args:
        row: The file's format.
        path: The file or folder.
        card: Of the model.
    """
    problems = []
    precision = inspect(path).contents.precision
    if precision != row.precision:
        problems.append(f"it computes in {precision}, not in {row.precision}")
    labels = _KEPT_LABELS[row.runtime](path)
    if labels is not None and tuple(labels) != card.labels:
        problems.append(
            f"the labels that it keeps for other programs ({', '.join(labels[:3])}...) "
            "are not the card's"
        )
    if row.runtime == "onnx":
        problems += wrong_onnx(path)
    if row.runtime == "saved_model":
        problems += wrong_encoded(path, card)
    return problems


def _labels_of_tflite(path: Path) -> Sequence[str] | None:
    with zipfile.ZipFile(path) as archive:
        if LABELS_FILE not in archive.namelist():
            return None
        return _lines(archive.read(LABELS_FILE).decode())


def _labels_of_saved_model(path: Path) -> Sequence[str] | None:
    file = newest_version(path) / EXTRA_FOLDER / LABELS_FILE
    return _lines(file.read_text(encoding="utf-8")) if file.exists() else None


def _labels_of_onnx(path: Path) -> Sequence[str] | None:
    import onnx

    properties = onnx.load(path, load_external_data=False).metadata_props
    kept = {entry.key: entry.value for entry in properties}
    return json.loads(kept["labels"]) if "labels" in kept else None


_KEPT_LABELS = {
    "tflite": _labels_of_tflite,
    "saved_model": _labels_of_saved_model,
    "onnx": _labels_of_onnx,
}


def _lines(text: str) -> list[str]:
    # Not splitlines, which also ends lines at signs that a label may hold.
    return text.removesuffix("\n").split("\n")
