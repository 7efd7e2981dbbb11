"""`reszoo.verify`: compare exported files with their model, each in a subprocess."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from reszoo.cards import Card
from reszoo.console import Progress
from reszoo.errors import ReszooError, UsageError, VerificationError, printable
from reszoo.fields import typed
from reszoo.files import StrPath, as_path
from reszoo_export import runtimes
from reszoo_export.formats import CAM, FORMATS, ExportOptions, Format
from reszoo_export.isolation import limits_for, run_in_subprocess
from reszoo_export.manifest import (
    FileRecord,
    Manifest,
    Verification,
    changes,
    is_export,
    read_manifest,
    size_and_hash,
)
from reszoo_export.metadata import LABELS_FILE, card_files
from reszoo_export.runtimes import OutputKind, Runtime, TensorInfo
from reszoo_export.verification.comparison import compare
from reszoo_export.verification.reference import Reference, read_reference

# ResNet-152 on one slow core takes a second for an image.
_SECONDS_TO_OPEN, _SECONDS_PER_IMAGE = 300.0, 10.0


@dataclass(frozen=True, kw_only=True)
class FileVerification:
    """The result of verifying one file."""

    inputs: list[TensorInfo]
    outputs: list[TensorInfo]
    verification: Verification


def verify(folder: StrPath) -> Manifest:
    """Verify an export again, from its folder alone.

    Every file is opened in its own runtime, in a subprocess, and compared with the
    model's outputs for the images in `reference.npz`. A file whose sha256 differs from
    the manifest's is reported and not opened.

    Args:
        folder: An export, as `reszoo.export` makes it.

    Returns:
        The manifest with the new measurements.

    Raises:
        ExportError: The folder is not an export, or its manifest or reference is
            damaged.
        UsageError: It is one of the files in an export.
        VerificationError: A file is missing, has changed, or differs from the model;
            the message lists every problem.
    """
    folder = as_path(folder)
    inside = is_export(folder.parent)
    if folder.is_file() or (inside and not is_export(folder)):
        export = folder.parent if inside else "FOLDER"
        raise UsageError(
            f"verify takes the folder of an export. Received: {folder}; verify the "
            f"whole folder (reszoo verify {export}) or describe the file (reszoo "
            "inspect)."
        )
    manifest = read_manifest(folder)
    gives_features = manifest.options.outputs == "features"
    kind: OutputKind = "features" if gives_features else "probabilities"
    cam = manifest.options.outputs == CAM
    reference = read_reference(manifest.folder, manifest.card, kind, cam=cam)
    records = []
    with Progress("verifying", len(manifest.files)) as progress:
        for record in manifest.files:
            records.append(_verify_again(manifest, record, reference))
            progress.advance()
    repeated = replace(manifest, files=tuple(records))
    beside = [
        f"{name}: {problem}"
        for name, digest in manifest.beside.items()
        for problem in changes(manifest.folder / name, digest)
    ]
    labels = card_files(manifest.card).get(LABELS_FILE, "").encode()
    if labels and not beside and (folder / LABELS_FILE).read_bytes() != labels:
        beside = [f"{LABELS_FILE}: the labels are not the card's"]
    if problems := [*beside, *repeated.problems]:
        raise VerificationError(*problem_list(manifest.folder, problems))
    return repeated


def _verify_again(
    manifest: Manifest, record: FileRecord, reference: Reference
) -> FileRecord:
    path = manifest.folder / record.file
    problems = changes(path, record.sha256)
    row, options = FORMATS[record.format], manifest.options
    if not problems:
        try:
            given = (row, path, reference, options, manifest.card)
            found = verify_file(*given, ranges=record.ranges)
            facts = (found.inputs, found.outputs, size_and_hash(path)[0])
            if facts == (record.inputs, record.outputs, record.bytes):
                return replace(record, verification=found.verification)
            other = "the manifest has other inputs, outputs or another size"
            problems = [*found.verification.problems, other]
        except VerificationError as error:
            problems = [str(error)]
    before = replace(record.verification, problems=tuple(problems))
    return replace(record, verification=before)


def problem_list(folder: Path, problems: Sequence[str]) -> list[str]:
    """Return the lines of an error about an export's problems.

    Those of a crash have the last lines of the subprocess below them.
    """
    lines = [line for each in problems for line in f"  {each}".split("\n")]
    return [f"{len(problems)} check(s) failed in {folder}:", *lines]


def verify_file(
    row: Format, path: Path, reference: Reference, options: ExportOptions, card: Card,
    *, seconds: float | None = None, ranges: Mapping[str, Any] | None = None,
) -> FileVerification:  # fmt: skip
    """Open a file in its own runtime, in a subprocess, and compare it with its model.

    A format with a slow runtime is compared on some images of the reference. `options`
    are the export's, `card` is the model's; `seconds` of None are more than any model
    needs; `ranges` are those in the manifest (`Format.explained_by`). A
    VerificationError if the file cannot be opened or run, its outputs have another
    shape, or its runtime crashed or took too long; `verification.problems` of the
    result lists what else is wrong.
    """
    indices = reference.evenly_spaced(row.max_images)
    reference = reference.select(indices)
    if seconds is None:
        seconds = _SECONDS_TO_OPEN + _SECONDS_PER_IMAGE * len(reference.images)
    arguments = {
        "format_name": row.name, "path": str(path.absolute()),
        "options": asdict(options), "card": card.to_text(), "ranges": ranges,
    }  # fmt: skip
    limits = limits_for(path, seconds, pixels=reference.images[0].nbytes // 3)
    function, arrays = f"{__name__}:verify_stored", reference.arrays()
    try:
        found = run_in_subprocess(function, arguments, arrays, limits=limits)
    except ReszooError as error:
        raise VerificationError(*str(error).split("\n")) from error
    verification = typed(Verification, found["verification"])
    worst = [replace(w, image=int(indices[w.image])) for w in verification.worst]
    found["verification"] = replace(verification, worst=tuple(worst))
    return FileVerification(**found)


def verify_stored(
    arrays: Any, format_name: str, path: str, options: Any, card: str, ranges: Any
) -> dict[str, Any]:
    """Verify a file in the subprocess of `verify_file`; return plain JSON values."""
    synthetic = len(arrays["images"]) - len(arrays["targets"])
    row = FORMATS[format_name].explained_by(ranges)
    reference = Reference(**arrays, synthetic=synthetic)
    asked, model_card = ExportOptions(**options), Card.from_text(card)
    return asdict(verify_in_process(row, Path(path), reference, asked, model_card))


def verify_in_process(
    row: Format, path: Path, reference: Reference, options: ExportOptions, card: Card
) -> FileVerification:
    """Do the work of `verify_file` in this process (see there)."""
    try:
        runtime = runtimes.open_runtime(path)
        problems = content_problems(row, runtime, card)
    except ReszooError as error:
        raise VerificationError(str(error)) from error
    found = compare(row, runtime, reference, options, card)
    try:
        problems += row.runtime.reader.find_problems(
            path, row, card, reference.images, options
        )
    except Exception as error:
        raise VerificationError(
            f"its contents cannot be checked ({type(error).__name__}: {error})"
        ) from error
    # Names in them are the file's; a line break in one makes no line.
    told = tuple(map(printable, (*found.problems, *problems)))
    ins, outs, found = runtime.inputs, runtime.outputs, replace(found, problems=told)
    return FileVerification(inputs=ins, outputs=outs, verification=found)


def content_problems(row: Format, runtime: Runtime, card: Card) -> list[str]:
    """Compare what a file says of itself with what it is; return what is wrong."""
    reader, problems = row.runtime.reader, []
    with runtimes.reader_errors(runtime.path):
        told = reader.describe(runtime.path)
        labels = reader.stored_labels(runtime.path) or ()
    if told.precision != row.precision:
        problems.append(f"it computes in {told.precision}, not in {row.precision}")
    tensors = [*runtime.inputs, *runtime.outputs]
    found = [(each["name"], each["dtype"], *each["shape"]) for each in tensors]
    said = [(each.name, each.dtype, *each.shape) for each in told.inputs + told.outputs]
    if sorted(map(str, said)) != sorted(map(str, found)):
        problems.append(f"it declares inputs and outputs as {said}, which are {found}")
    if tuple(labels) != tuple(card.labels or ()):
        problems.append(
            f"the labels stored for other programs ({', '.join(labels[:3])}...) "
            "are not the card's"
        )
    return problems
