"""Run exported files in their own runtimes and compare them with the model."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from reszoo.errors import ReszooError, VerificationError
from reszoo.evaluation import score
from reszoo.progress import Progress
from reszoo_export.formats import (
    BATCH_TOLERANCE,
    FORMATS,
    ONE_CLASS,
    VARIED,
    Format,
)
from reszoo_export.manifest import (
    FileRecord,
    Manifest,
    Verification,
    read_manifest,
    size_and_hash,
)
from reszoo_export.reference import Reference, read_reference
from reszoo_export.runtimes import Answers, Runtime, open_runtime, run_in_batches

# Probabilities below are equal: runtimes flush such numbers to zero differently.
_LEAST = 1e-20
_CHANGED = "the file has changed since it was exported (sha256 differs)"


def verify(folder: str | os.PathLike[str]) -> Manifest:
    """Repeat the check of an export from its files alone.

    Every file is opened in its own runtime and compared with the model's answers
    to the images kept in `reference.npz`. A file whose sha256 is not the manifest's
    is reported and not opened.

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
    reference = read_reference(Path(folder), manifest.card)
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


def compare(format_: Format, runtime: Runtime, reference: Reference) -> Verification:
    """Ask an opened file about the reference's images and compare.

    Args:
        format_: How close the answers must be.
        runtime: The file, opened.
        reference: Images and the model's answers.

    Raises:
        VerificationError: The runtime cannot run the file on the images.
    """
    try:
        answers = run_in_batches(runtime, reference.images)
    except Exception as error:
        raise VerificationError(
            f"{runtime.name} cannot run it ({type(error).__name__}: {error})"
        ) from error
    real = len(reference.labels)
    judged = slice(0, real) if real else slice(None)
    difference = np.abs(answers - reference.answers)
    same = answers.argmax(-1) == reference.answers.argmax(-1)
    found = Verification(
        runtime=runtime.name,
        images=real,
        synthetic=reference.synthetic,
        max_difference=float(difference[judged].max()),
        mean_difference=float(difference[judged].mean()),
        agreement=float(same[judged].mean()),
        accuracy=_accuracy(answers, reference),
        model_accuracy=_accuracy(reference.answers, reference),
    )
    problems = [
        *_wrong_answers(format_, found, answers, reference),
        *_wrong_form(format_, runtime),
        *_batch_dependence(format_, runtime, reference, answers),
    ]
    return replace(found, problems=tuple(problems))


def _accuracy(answers: Answers, reference: Reference) -> float | None:
    real = len(reference.labels)
    if not real:
        return None
    return score(answers[:real], reference.labels, "the reference").top1


def _wrong_answers(
    format_: Format, found: Verification, answers: Answers, reference: Reference
) -> list[str]:
    if not np.isfinite(answers).all():
        return ["some answers are not numbers"]
    problems = _wrong_probabilities(format_, found, answers, reference.answers)
    if found.images:
        real, expected = answers[: found.images], reference.answers[: found.images]
        problems += _wrong_classes(format_, found, real, expected)
    return problems


def _wrong_probabilities(
    format_: Format, found: Verification, answers: Answers, expected: Answers
) -> list[str]:
    problems = []
    difference = float(np.abs(answers - expected).max())
    if format_.max_difference is not None and difference > format_.max_difference:
        problems.append(
            f"a probability differs from the model's by {difference:.2g}; "
            f"at most {format_.max_difference:g} is allowed"
        )
    apart = _log_difference(answers, expected)
    if format_.max_log_difference is not None and apart > format_.max_log_difference:
        problems.append(
            f"the logarithm of a probability is off by {apart:.2g}; "
            f"at most {format_.max_log_difference:g} is allowed"
        )
    # What one class loses another gains: half the sum, independent of the classes.
    moved = found.mean_difference * answers.shape[-1] / 2
    if format_.max_moved is not None and moved > format_.max_moved:
        problems.append(
            f"{moved:.2%} of the probability moved to other classes; "
            f"at most {format_.max_moved:.2%} may"
        )
    return problems


def _wrong_classes(
    format_: Format, found: Verification, answers: Answers, expected: Answers
) -> list[str]:
    problems = []
    agreement = float(_agreement(answers, expected, format_.tie).mean())
    if agreement < format_.min_agreement:
        problems.append(
            f"the top-1 is the model's on {agreement:.2%} of the images, ties "
            f"included; at least {format_.min_agreement:.2%} is needed"
        )
    if found.agreement < format_.min_same:
        problems.append(
            f"the top-1 is exactly the model's on {found.agreement:.2%} of the "
            f"images; at least {format_.min_same:.2%} is needed"
        )
    # Rounded, for 0.97 - 0.96 is more than 0.01 in floating point.
    drop = round((found.model_accuracy or 0) - (found.accuracy or 0), 9)
    if format_.max_accuracy_drop is not None and drop > format_.max_accuracy_drop:
        problems.append(
            f"accuracy fell from {found.model_accuracy:.2%} to {found.accuracy:.2%}; "
            f"at most {format_.max_accuracy_drop:.2%} may be lost"
        )
    most, of_model = _most_frequent(answers), _most_frequent(expected)
    if most > ONE_CLASS and of_model < VARIED:
        problems.append(
            f"{most:.2%} of the images get one and the same class; the model gives "
            f"none to more than {of_model:.2%}"
        )
    return problems


def _most_frequent(answers: Answers) -> float:
    return float(np.bincount(answers.argmax(-1)).max() / len(answers))


def _wrong_form(format_: Format, runtime: Runtime) -> list[str]:
    problems = []
    if [tensor["name"] for tensor in runtime.inputs] != ["image"]:
        problems.append(f"the only input must be 'image', not {runtime.inputs}")
    if "probabilities" not in [tensor["name"] for tensor in runtime.outputs]:
        problems.append(f"there must be an output 'probabilities': {runtime.outputs}")
    odd = set(runtime.operators) - format_.operators
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
    if moved <= BATCH_TOLERANCE:
        return []
    return [f"an answer moves by {moved:.2g} with the other images of its batch"]


def _log_difference(answers: Answers, expected: Answers) -> float:
    ours, theirs = (np.log(np.maximum(each, _LEAST)) for each in (answers, expected))
    return float((np.abs(ours - theirs) / np.maximum(1, np.abs(theirs))).max())


def _agreement(answers: Answers, expected: Answers, tie: float) -> np.ndarray:
    """Tell for which images the top-1 is the same, or a tie in the model's eyes."""
    chosen = answers.argmax(-1)
    of_chosen = np.take_along_axis(expected, chosen[:, None], axis=-1)[:, 0]
    same: np.ndarray = of_chosen >= tie * expected.max(-1)
    return same


def _again(manifest: Manifest, record: FileRecord, reference: Reference) -> FileRecord:
    path = manifest.folder / record.file
    changes = _changes(path, record.sha256)
    if not changes:
        try:
            found = compare(FORMATS[record.format], open_runtime(path), reference)
            return replace(record, verification=found)
        except ReszooError as error:
            changes = [str(error)]
    found = replace(record.verification, problems=tuple(changes))
    return replace(record, verification=found)


def _changes(path: Path, digest: str) -> list[str]:
    """Tell whether a file is not the one that was exported, without opening it."""
    try:
        return [] if size_and_hash(path)[1] == digest else [_CHANGED]
    except FileNotFoundError:
        return [f"There is no file {path}."]
    except OSError as error:
        return [f"it cannot be read ({error})"]
