"""Compare an opened file with a reference: signature, answers, batch invariance."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from reszoo.cards import Card
from reszoo.errors import VerificationError
from reszoo.preprocessing import Pixels
from reszoo_export.formats import ExportOptions, Format
from reszoo_export.manifest import Verification
from reszoo_export.runtimes import Answers, Runtime, TensorInfo, run_in_batches
from reszoo_export.verification import rules
from reszoo_export.verification import rules as distances
from reszoo_export.verification.reference import Reference

# GPU delegates of phones cannot cast bytes, so float TFLite files take float32.
_BYTES_IN_TFLITE = ("int8",)


def signature_problems(
    row: Format,
    options: ExportOptions,
    card: Card,
    inputs: Sequence[TensorInfo],
    outputs: Sequence[TensorInfo],
) -> list[str]:
    """Tell what of a file's names, dtypes and shapes is not as promised.

    Args:
        row: The file's format.
        options: What was asked for.
        card: Of the model.
        inputs: What the file takes.
        outputs: What it gives.
    """
    problems = []
    if [tensor["name"] for tensor in inputs] != ["image"]:
        problems.append(
            f"the only input must be 'image', not {', '.join(map(_shown, inputs))}"
        )
    elif inputs[0]["dtype"] != _pixels(row):
        problems.append(f"image must be {_pixels(row)}, not {inputs[0]['dtype']}")
    if inputs and list(inputs[0]["shape"]) != _image_shape(row, options, card):
        shape = _image_shape(row, options, card)
        problems.append(f"image must be of shape {shape}, not {inputs[0]['shape']}")
    return problems + _wrong_outputs(row, options, card, outputs)


def _wrong_outputs(
    row: Format, options: ExportOptions, card: Card, outputs: Sequence[TensorInfo]
) -> list[str]:
    names = _output_names(row, options)
    given = {tensor["name"]: tensor for tensor in outputs}
    if sorted(given) != sorted(names) or len(given) != len(outputs):
        shown = ", ".join(map(_shown, outputs)) or "none"
        return [f"the outputs must be {' and '.join(names)}, not {shown}"]
    dtype = "uint8" if options.integer_io else "float32"
    batch = _batch(row, options)
    problems = []
    for name in names:
        width = card.architecture.classes if name != "features" else None
        tensor = given[name]
        shape = [batch, width or tensor["shape"][-1]]
        if tensor["dtype"] != dtype or list(tensor["shape"]) != shape:
            problems.append(f"{name} must be {dtype} {shape}, not {_shown(tensor)}")
    return problems


def _pixels(row: Format) -> str:
    floats = row.runtime == "tflite" and row.precision not in _BYTES_IN_TFLITE
    return "float32" if floats else "uint8"


def _image_shape(row: Format, options: ExportOptions, card: Card) -> list[Any]:
    size = card.preprocessing.eval_size
    image = [3, size, size] if options.layout == "nchw" else [size, size, 3]
    return [_batch(row, options), *image]


def _batch(row: Format, options: ExportOptions) -> int | str:
    if isinstance(options.batch, int):
        return options.batch
    if row.runtime == "tflite":
        return -1 if options.batch == "dynamic" else 1
    return "batch"


def _output_names(row: Format, options: ExportOptions) -> tuple[str, ...]:
    if options.outputs is not None:
        return (options.outputs,)
    if row.runtime == "tflite":
        return ("probabilities",)
    return ("logits", "probabilities")


def _shown(tensor: TensorInfo) -> str:
    return f"{tensor['name']} {tensor['dtype']} {list(tensor['shape'])}"


_BATCHES = range(1, 9)


def dependences(
    runtime: Runtime, images: Pixels, answers: Answers, allowed: float
) -> list[str]:
    """Ask about some images again, in other company, and tell what changed.

    Where the batch is open, it takes every size from 1 to 8; where it is fixed, an
    image changes its place and its neighbours. A batch of one is only asked twice.

    Args:
        runtime: The file, opened.
        images: uint8 `(n, height, width, 3)`.
        answers: What it gave for them.
        allowed: Largest change of a number that is rounding.
    """
    chosen = _spread(len(images))
    fixed = _fixed_batch(runtime.inputs)
    sizes = _BATCHES if fixed is None else (fixed,)
    again, other = 0.0, 0.0
    for size in sizes:
        places = np.roll(chosen, size)[:size]
        first = runtime.run(images[places])
        other = max(other, _largest(first - answers[places]))
        if size == sizes[-1]:
            again = _largest(first - runtime.run(images[places]))
    problems = []
    if not other <= allowed:
        problems.append(
            f"an answer moves by {other:.2g} with the other images of its batch"
        )
    if not again <= allowed:
        problems.append(f"asked twice about an image, it moves by {again:.2g}")
    return problems


def _spread(count: int) -> np.ndarray:
    """Return places of images, real and made up, as many as the largest batch asks."""
    return np.linspace(0, count - 1, max(_BATCHES)).astype(int)


def _fixed_batch(inputs: list[TensorInfo]) -> int | None:
    batch = inputs[0]["shape"][0]
    return batch if isinstance(batch, int) and batch > 0 else None


def _largest(change: Answers) -> float:
    return float(np.abs(change).max())


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
    problems = signature_problems(row, options, card, runtime.inputs, runtime.outputs)
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
    return distances.accuracy_of(answers[:real], reference.labels) if real else None
