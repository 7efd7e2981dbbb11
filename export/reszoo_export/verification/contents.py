"""Whether a file holds what its format promises, beside its answers."""

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reszoo.cards import Card
from reszoo_export.formats import Format
from reszoo_export.inspection.describe import inspect
from reszoo_export.metadata import EXTRA_FOLDER, LABELS_FILE
from reszoo_export.runtimes.tensorflow import newest_version
from reszoo_export.verification.encoded_answers import wrong_encoded

# Later ones do not open in runtimes that are in use (ONNX Runtime 1.13, 2022).
_LATEST_OPSET, _LATEST_IR = 17, 8


def wrong_contents(row: Format, path: Path, card: Card) -> list[str]:
    """Tell what is wrong with a file's inside.

    Its arithmetic must be that of its format, the labels that it keeps for other
    programs must be the card's, an ONNX file must open in runtimes that are in use
    and take uint8 activations where it is quantised, and a SavedModel must prepare
    encoded pictures as its card says.

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
        problems += _wrong_onnx(path)
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


def _wrong_onnx(path: Path) -> list[str]:
    import onnx

    model = onnx.load(path, load_external_data=False)
    problems = []
    opsets = {each.domain or "ai.onnx": each.version for each in model.opset_import}
    if set(opsets) != {"ai.onnx"} or opsets["ai.onnx"] > _LATEST_OPSET:
        shown = ", ".join(f"{name} {number}" for name, number in opsets.items())
        problems.append(f"its operators must be ai.onnx {_LATEST_OPSET}, not {shown}")
    if model.ir_version > _LATEST_IR:
        problems.append(f"its IR version must be {_LATEST_IR}, not {model.ir_version}")
    if model.functions or model.training_info:
        problems.append("it defines functions or training of its own")
    return problems + _wrong_activations(model.graph)


def _wrong_activations(graph: Any) -> list[str]:
    """Refuse int8 activations: ONNX Runtime computes them 3 to 4 times slower."""
    import onnx

    kinds = {each.name: each.data_type for each in graph.initializer}
    zeros = {
        kinds[node.input[2]]
        for node in graph.node
        if node.op_type == "QuantizeLinear" and node.input[2] in kinds
    }
    odd = sorted(map(onnx.TensorProto.DataType.Name, zeros - {onnx.TensorProto.UINT8}))
    if not odd:
        return []
    return [f"activations must be uint8, not {', '.join(odd).lower()}"]
