"""Ask an opened file about a reference and judge its answers."""

import numpy as np

from reszoo.cards import Card
from reszoo.errors import VerificationError
from reszoo_export.formats import Format
from reszoo_export.manifest import Verification
from reszoo_export.options import ExportOptions
from reszoo_export.runtimes.interface import Answers
from reszoo_export.runtimes.opening import Runtime, run_in_batches
from reszoo_export.verification import distances, rules
from reszoo_export.verification.neighbours import dependences
from reszoo_export.verification.promises import broken_promises
from reszoo_export.verification.reference import Reference

_DEFAULTS = ExportOptions()


def compare(
    row: Format,
    runtime: Runtime,
    reference: Reference,
    options: ExportOptions = _DEFAULTS,
    card: Card | None = None,
) -> Verification:
    """Ask an opened file about the reference's images and compare.

    Args:
        row: The file's format: how close the answers must be.
        runtime: The file, opened.
        reference: Images and the model's answers.
        options: What was asked of the file beside its format.
        card: Of the model; None takes the file's word for it.

    Raises:
        VerificationError: The runtime cannot run the file on the images, or its
            answers cannot be compared.
    """
    card = card or runtime.card
    form = _wrong_form(row, runtime, options, card)
    try:
        answers = run_in_batches(runtime, reference.images)
        form += dependences(
            runtime, reference.images, answers, row.tolerance.max_batch_difference
        )
    except Exception as error:
        raise VerificationError(
            f"{runtime.name} cannot run it ({type(error).__name__}: {error})"
        ) from error
    _check_comparable(answers, reference, form)
    finite = np.nan_to_num(answers, nan=0.0, posinf=1.0, neginf=0.0)
    if not np.isfinite(answers).all():
        form.insert(0, "some answers are not numbers")
    if options.outputs == "features":
        problems = rules.wrong_features(row.tolerance, finite, reference)
        return _of_features(runtime, finite, reference, (*problems, *form))
    problems = rules.wrong_probabilities(row.tolerance, finite, reference)
    return _of_probabilities(runtime, finite, reference, card, (*problems, *form))


def _wrong_form(
    row: Format, runtime: Runtime, options: ExportOptions, card: Card
) -> list[str]:
    problems = broken_promises(row, options, card, runtime.inputs, runtime.outputs)
    odd = set(runtime.operators) - row.operators
    if odd:
        problems.append(f"operators that are not allowed: {', '.join(sorted(odd))}")
    if runtime.card.to_text() != card.to_text():
        unlike = _unlike(runtime.card, card)
        problems.append(f"the card inside is not the model's: {unlike}")
    return problems


def _unlike(inside: Card, card: Card) -> str:
    if inside.labels != card.labels:
        return "other labels, or in another order"
    ours, theirs = inside.to_json(), card.to_json()
    return "other " + ", ".join(key for key in theirs if ours[key] != theirs[key])


def _check_comparable(answers: Answers, reference: Reference, form: list[str]) -> None:
    if answers.shape != reference.answers.shape:
        told = "; ".join(["", *form])
        raise VerificationError(
            f"it gives {answers.shape[-1]} numbers an image, the model "
            f"{reference.answers.shape[-1]}{told}"
        )


def _of_probabilities(
    runtime: Runtime,
    answers: Answers,
    reference: Reference,
    card: Card,
    problems: tuple[str, ...],
) -> Verification:
    judged = slice(0, len(reference.labels) or None)
    ours, theirs = answers[judged], reference.answers[judged]
    changes = distances.confidence_changes(ours, theirs)
    made_up = (answers - reference.answers)[len(reference.labels) :]
    return Verification(
        runtime=runtime.name,
        images=len(reference.labels),
        synthetic=reference.synthetic,
        max_difference=float(np.abs(ours - theirs).max()),
        mean_difference=float(np.abs(ours - theirs).mean()),
        synthetic_difference=float(np.abs(made_up).max(initial=0)),
        agreement=float((ours.argmax(-1) == theirs.argmax(-1)).mean()),
        top5_agreement=distances.top5_agreement(ours, theirs),
        drift=float(changes.mean()),
        confidence_difference=float(np.abs(changes).mean()),
        accuracy=_accuracy(answers, reference),
        model_accuracy=_accuracy(reference.answers, reference),
        worst=distances.worst_images(answers, reference.answers, judged, card),
        problems=problems,
    )


def _of_features(
    runtime: Runtime,
    answers: Answers,
    reference: Reference,
    problems: tuple[str, ...],
) -> Verification:
    judged = slice(0, len(reference.labels) or None)
    largest = distances.largest(reference.answers)
    apart = np.abs(answers - reference.answers) / largest
    return Verification(
        runtime=runtime.name,
        images=len(reference.labels),
        synthetic=reference.synthetic,
        max_difference=float(apart[judged].max()),
        mean_difference=float(apart[judged].mean()),
        synthetic_difference=float(apart[len(reference.labels) :].max(initial=0)),
        agreement=float(distances.cosines(answers, reference.answers)[judged].mean()),
        top5_agreement=None,
        drift=None,
        confidence_difference=None,
        accuracy=None,
        model_accuracy=None,
        problems=problems,
    )


def _accuracy(answers: Answers, reference: Reference) -> float | None:
    real = len(reference.labels)
    return distances.accuracy(answers[:real], reference.labels) if real else None
