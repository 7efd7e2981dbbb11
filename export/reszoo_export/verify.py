"""Run exported files in their own runtimes and compare them with the model."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from reszoo.errors import ReszooError, VerificationError
from reszoo.progress import Progress
from reszoo_export.formats import FORMATS, Format
from reszoo_export.manifest import (
    FileRecord,
    Manifest,
    Verification,
    read_manifest,
    size_and_hash,
)
from reszoo_export.reference import Reference, read_reference
from reszoo_export.runtimes import Answers, Runtime, open_runtime

# What float32 arithmetic in another order may move a probability.
_BATCH_TOLERANCE = 1e-5
# Probabilities below are equal: runtimes flush such numbers to zero differently.
_LEAST = 1e-20


def verify(folder: str | os.PathLike[str]) -> Manifest:
    """Repeat the check of an export from its files alone.

    Every file is opened in its own runtime and compared with the model's answers
    to the images kept in `reference.npz`.

    Args:
        folder: What `reszoo.export` made.

    Returns:
        The manifest with what was measured now.

    Raises:
        ExportError: The folder holds no export.
        VerificationError: A file is missing, has changed, or does not answer like
            the model; the message lists every problem.
    """
    manifest = read_manifest(Path(folder))
    reference = read_reference(Path(folder))
    records = []
    with Progress("verifying", len(manifest.files)) as progress:
        for record in manifest.files:
            records.append(_again(manifest, record, reference))
            progress.advance()
    repeated = replace(manifest, files=tuple(records))
    refuse_problems(repeated)
    return repeated


def refuse_problems(manifest: Manifest) -> None:
    """Raise a VerificationError that lists a manifest's problems, if it has any."""
    if manifest.problems:
        raise VerificationError(
            f"{len(manifest.problems)} check(s) failed in {manifest.folder}:\n  "
            + "\n  ".join(manifest.problems)
        )


def compare(format_: Format, runtime: Runtime, reference: Reference) -> Verification:
    """Ask an opened file about the reference's images and compare.

    Args:
        format_: How close the answers must be.
        runtime: The file, opened.
        reference: Images and the model's answers.
    """
    answers = runtime.run(reference.images)
    real = len(reference.labels)
    judged = slice(0, real) if real else slice(None)
    difference = np.abs(answers - reference.answers)
    same = answers.argmax(-1) == reference.answers.argmax(-1)
    hits = answers[:real].argmax(-1) == reference.labels
    model_hits = reference.answers[:real].argmax(-1) == reference.labels
    found = Verification(
        runtime=runtime.name,
        images=real,
        synthetic=reference.synthetic,
        max_difference=float(difference[judged].max()),
        mean_difference=float(difference[judged].mean()),
        agreement=float(same[judged].mean()),
        accuracy=float(hits.mean()) if real else None,
        model_accuracy=float(model_hits.mean()) if real else None,
    )
    problems = [
        *_wrong_answers(format_, found, answers, reference),
        *_wrong_form(format_, runtime),
        *_batch_dependence(format_, runtime, reference, answers),
    ]
    return replace(found, problems=tuple(problems))


def _wrong_answers(
    format_: Format, found: Verification, answers: Answers, reference: Reference
) -> list[str]:
    if not np.isfinite(answers).all():
        return ["some answers are not numbers"]
    problems = []
    difference = float(np.abs(answers - reference.answers).max())
    if difference > format_.max_difference:
        problems.append(
            f"a probability differs from the model's by {difference:.2g}; "
            f"at most {format_.max_difference:g} is allowed"
        )
    apart = _log_difference(answers, reference.answers)
    if format_.max_log_difference and apart > format_.max_log_difference:
        problems.append(
            f"the logarithm of a probability is off by {apart:.2g}; "
            f"at most {format_.max_log_difference:g} is allowed"
        )
    agreement = _agreement(answers, reference.answers, format_.undecided)[
        : found.images
    ]
    if found.images and agreement.mean() < format_.min_agreement:
        problems.append(
            f"the top-1 is the model's on {agreement.mean():.2%} of the images; "
            f"at least {format_.min_agreement:.2%} is needed"
        )
    if found.accuracy is not None and found.model_accuracy is not None:
        drop = found.model_accuracy - found.accuracy
        if drop > format_.max_accuracy_drop and not agreement.all():
            problems.append(
                f"accuracy fell from {found.model_accuracy:.2%} "
                f"to {found.accuracy:.2%}; at most "
                f"{format_.max_accuracy_drop:.2%} may be lost"
            )
    return problems


def _wrong_form(format_: Format, runtime: Runtime) -> list[str]:
    problems = []
    if [tensor["name"] for tensor in runtime.inputs] != ["image"]:
        problems.append(f"the only input must be 'image', not {runtime.inputs}")
    if "probabilities" not in [tensor["name"] for tensor in runtime.outputs]:
        problems.append(f"there must be an output 'probabilities': {runtime.outputs}")
    odd = set(runtime.operators) - (format_.operators or set(runtime.operators))
    if odd:
        problems.append(f"operators that are not allowed: {', '.join(sorted(odd))}")
    return problems


def _batch_dependence(
    format_: Format, runtime: Runtime, reference: Reference, answers: Answers
) -> list[str]:
    if not format_.batched:
        return []
    alone = np.concatenate([runtime.run(image[None]) for image in reference.images[:4]])
    moved = np.abs(alone - answers[:4]).max()
    if moved <= _BATCH_TOLERANCE:
        return []
    return [f"an answer moves by {moved:.2g} with the other images of its batch"]


def _log_difference(answers: Answers, expected: Answers) -> float:
    ours, theirs = (np.log(np.maximum(each, _LEAST)) for each in (answers, expected))
    return float((np.abs(ours - theirs) / np.maximum(1, np.abs(theirs))).max())


def _agreement(answers: Answers, expected: Answers, undecided: float) -> np.ndarray:
    """Tell for which images the top-1 is the same, or a tie in the model's eyes."""
    chosen = answers.argmax(-1)
    of_chosen = np.take_along_axis(expected, chosen[:, None], axis=-1)[:, 0]
    same: np.ndarray = expected.max(-1) - of_chosen <= undecided
    return same


def _again(manifest: Manifest, record: FileRecord, reference: Reference) -> FileRecord:
    path = manifest.folder / record.file
    try:
        runtime = open_runtime(path)
        found = compare(FORMATS[record.format], runtime, reference)
    except ReszooError as error:
        found = replace(record.verification, problems=(str(error),))
        return replace(record, verification=found)
    size, digest = size_and_hash(path)
    if digest != record.sha256:
        changed = "the file has changed since it was exported (sha256 differs)"
        found = replace(found, problems=(changed, *found.problems))
    return replace(record, bytes=size, sha256=digest, verification=found)
