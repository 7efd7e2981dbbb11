"""Judge a written file in its own runtime, in a process of its own."""

import json
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from reszoo.cards import Card
from reszoo.errors import ReszooError, VerificationError
from reszoo_export.formats import FORMATS, Format
from reszoo_export.manifest import Verification
from reszoo_export.options import ExportOptions
from reszoo_export.runtimes.interface import TensorInfo
from reszoo_export.runtimes.opening import open_runtime
from reszoo_export.verification.apart import run_apart
from reszoo_export.verification.comparison import compare
from reszoo_export.verification.contents import wrong_contents
from reszoo_export.verification.half_precision import too_large_for_halves
from reszoo_export.verification.reference import Reference, taken_over

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
        found = run_apart(f"{__name__}:judge_in", folder, seconds)
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
