"""Run exported files in their own runtimes and compare them with the model."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from reszoo.errors import VerificationError
from reszoo.progress import Progress
from reszoo_export.formats import FORMATS
from reszoo_export.manifest import FileRecord, Manifest, read_manifest, size_and_hash
from reszoo_export.runtimes.interface import Kind
from reszoo_export.verification.judging import judge
from reszoo_export.verification.reference import Reference, read_reference

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
