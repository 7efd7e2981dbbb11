"""`reszoo.verify`: judge files, each in a process of its own."""

import json
import os
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from reszoo.cards import Card
from reszoo.console import Progress
from reszoo.errors import ReszooError, VerificationError
from reszoo.preprocessing import Pixels
from reszoo_export.formats import FORMATS, ExportOptions, Format
from reszoo_export.inspection import inspect
from reszoo_export.manifest import (
    FileRecord,
    Manifest,
    Verification,
    read_manifest,
    size_and_hash,
)
from reszoo_export.metadata import EXTRA_FOLDER, LABELS_FILE
from reszoo_export.onnx.inspection import wrong_onnx
from reszoo_export.runtimes import Kind, TensorInfo, open_runtime
from reszoo_export.saved_model.encoded import wrong_encoded
from reszoo_export.saved_model.runtime import newest_version
from reszoo_export.verification.comparison import compare
from reszoo_export.verification.divergence import activations_of
from reszoo_export.verification.isolation import run_in_subprocess
from reszoo_export.verification.reference import Reference, read_reference, taken_over


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


_IMAGES = 4
_LARGEST = float(np.finfo(np.float16).max)


def too_large_for_halves(row: Format, path: Path, images: Pixels) -> list[str]:
    """Tell whether an activation of a float16 TFLite file is beyond float16.

    Its answers do not show it: on a CPU LiteRT computes such files in float32, on a
    phone's GPU in float16. ONNX files say themselves that they compute in float32.

    Args:
        row: The file's format.
        path: The file.
        images: uint8 `(n, height, width, 3)`, of which some are used.
    """
    if row.precision != "float16" or row.runtime != "tflite":
        return []
    places = np.linspace(0, len(images) - 1, _IMAGES).astype(int)
    inside = activations_of(row.runtime, path, images[places])
    for name, array in inside.items():
        # What is no number is not small either.
        if not np.abs(array).max() <= _LARGEST:
            problem = (
                f"activations of {name!r} do not fit into float16, which ends at "
                f"{_LARGEST:g}: on a GPU they become infinite"
            )
            return [problem]
    return []


_REQUEST = "request.json"
_DEFAULTS = ExportOptions()
# ResNet-152 on one slow core takes a second; what takes longer than this hangs.
_SECONDS_TO_OPEN, _SECONDS_AN_IMAGE = 300.0, 10.0


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a file's own runtime says of it.

    Attributes:
        inputs: Name, dtype and shape of each.
        outputs: Name, dtype and shape of each.
        verification: Compared with the model.
    """

    inputs: list[TensorInfo]
    outputs: list[TensorInfo]
    verification: Verification


def judge(
    row: Format,
    path: Path,
    reference: Reference,
    options: ExportOptions = _DEFAULTS,
    card: Card | None = None,
    *,
    seconds: float | None = None,
) -> Judgement:
    """Open a file in its own runtime, in a process of its own, and compare.

    Args:
        row: The file's format.
        path: The file or folder.
        reference: Images and the model's answers; of a slow format some are enough.
        options: What was asked of the file beside its format.
        card: Of the model; None takes the file's word for it.
        seconds: How long it may take; None is more than any net needs.

    Returns:
        What was measured; `verification.problems` tells what is wrong.

    Raises:
        VerificationError: The file cannot be opened or run, or its answers cannot
            be compared; its runtime crashed, or took too long.
    """
    places = reference.spread(row.most_images)
    reference = reference.part(places)
    if seconds is None:
        seconds = _SECONDS_TO_OPEN + _SECONDS_AN_IMAGE * len(reference.images)
    with tempfile.TemporaryDirectory(prefix="reszoo-") as place:
        folder = Path(place)
        reference.hand_over(folder)
        request = {
            "format": row.name,
            "path": str(path.absolute()),
            "options": asdict(options),
            "card": card and card.to_text(),
        }
        (folder / _REQUEST).write_text(json.dumps(request), encoding="utf-8")
        found = run_in_subprocess(f"{__name__}:judge_in", folder, seconds)
    verification = Verification.from_json(found["verification"])
    worst = [replace(w, image=int(places[w.image])) for w in verification.worst]
    found["verification"] = replace(verification, worst=tuple(worst))
    return Judgement(**found)


def judge_in(folder: Path) -> dict[str, Any]:
    """Do what `judge` left in a folder; return the judgement as plain JSON values."""
    request = json.loads((folder / _REQUEST).read_text(encoding="utf-8"))
    return asdict(
        examine(
            FORMATS[request["format"]],
            Path(request["path"]),
            taken_over(folder),
            ExportOptions(**request["options"]),
            request["card"] and Card.from_text(request["card"]),
        )
    )


def examine(
    row: Format,
    path: Path,
    reference: Reference,
    options: ExportOptions = _DEFAULTS,
    card: Card | None = None,
) -> Judgement:
    """Do what `judge` does in this process (see there)."""
    try:
        runtime = open_runtime(path)
        contents = wrong_contents(row, path, card or runtime.card)
    except ReszooError as error:
        raise VerificationError(str(error)) from error
    found = compare(row, runtime, reference, options, card)
    halves = too_large_for_halves(row, path, reference.images)
    problems = (*found.problems, *contents, *halves)
    return Judgement(
        inputs=runtime.inputs,
        outputs=runtime.outputs,
        verification=replace(found, problems=problems),
    )


_CHANGED = "the file has changed since it was exported (sha256 differs)"


def verify(folder: str | os.PathLike[str]) -> Manifest:
    """Repeat the check of an export from its files alone.

    Every file is opened in its own runtime, in a process of its own, and compared
    with the model's answers to the images kept in `reference.npz`. A file whose
    sha256 is not the manifest's is reported and not opened.

    Args:
        folder: What `reszoo.export` made.

    Returns:
        The manifest with what was measured now.

    Raises:
        ExportError: The folder holds no export, or its manifest or reference is
            damaged.
        VerificationError: A file is missing, has changed, or does not answer like
            the model; the message lists every problem.
    """
    manifest = read_manifest(Path(folder))
    kind: Kind = (
        "features" if manifest.options.outputs == "features" else "probabilities"
    )
    reference = read_reference(Path(folder), manifest.card, kind)
    records = []
    with Progress("verifying", len(manifest.files)) as progress:
        for record in manifest.files:
            records.append(_again(manifest, record, reference))
            progress.advance()
    repeated = replace(manifest, files=tuple(records))
    beside = [
        f"{name}: {problem}"
        for name, digest in manifest.beside.items()
        for problem in _changes(manifest.folder / name, digest)
    ]
    refuse_problems(manifest.folder, [*beside, *repeated.problems])
    return repeated


def refuse_problems(folder: Path, problems: Sequence[str]) -> None:
    """Raise a VerificationError that lists an export's problems, if it has any."""
    if problems:
        raise VerificationError(
            f"{len(problems)} check(s) failed in {folder}:\n  " + "\n  ".join(problems)
        )


def _again(manifest: Manifest, record: FileRecord, reference: Reference) -> FileRecord:
    path = manifest.folder / record.file
    problems = _changes(path, record.sha256)
    row, options = FORMATS[record.format], manifest.options
    if not problems:
        try:
            found = judge(row, path, reference, options, manifest.card)
            return replace(record, verification=found.verification)
        except VerificationError as error:
            problems = [str(error)]
    found_before = replace(record.verification, problems=tuple(problems))
    return replace(record, verification=found_before)


def _changes(path: Path, digest: str) -> list[str]:
    """Tell whether a file is not the one that was exported, without opening it."""
    try:
        return [] if size_and_hash(path)[1] == digest else [_CHANGED]
    except FileNotFoundError:
        return [f"There is no file {path}."]
    except OSError as error:
        return [f"it cannot be read ({error})"]
