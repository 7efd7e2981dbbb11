"""Compare an opened file with a reference: signature, outputs, batch invariance."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from reszoo.architecture import KerasArchitecture
from reszoo.cards import Card
from reszoo.errors import VerificationError
from reszoo.preprocessing import Pixels
from reszoo.report.statistics import class_rows, confusion_matrix
from reszoo_export.formats import ExportOptions, Format
from reszoo_export.manifest import Verification
from reszoo_export.runtimes import ModelOutput, Runtime, TensorInfo, run_in_batches
from reszoo_export.verification import rules
from reszoo_export.verification.reference import Reference

_DEFAULTS = ExportOptions()
_BATCH_SIZES = range(1, 9)


def compare(
    row: Format,
    runtime: Runtime,
    reference: Reference,
    options: ExportOptions = _DEFAULTS,
    card: Card | None = None,
) -> Verification:
    """Run an opened file on the reference's images and compare.

    Args:
        row: The file's format, which has the tolerance.
        runtime: The file, opened.
        reference: Images and the model's outputs.
        options: What the file was exported with.
        card: Of the model; None takes the one in the file.

    Raises:
        VerificationError: The runtime cannot run the file on the images, or its
            outputs have another shape than the model's.
    """
    card = card or runtime.card
    limits = rules.limits_of(row, card)
    problems = structure_problems(row, runtime, options, card)
    try:
        outputs = run_in_batches(runtime, reference.images)
        problems += batch_problems(
            runtime, reference.images, outputs, limits.max_batch_difference
        )
    except Exception as error:
        # `Runtime` wraps what its library raised.
        reason = error.__cause__ or error
        raise VerificationError(
            f"{runtime.name} cannot run it ({type(reason).__name__}: {reason})"
        ) from error
    if outputs.shape != reference.outputs.shape:
        raise VerificationError(
            f"it gives {outputs.shape[-1]} numbers per image, the model "
            f"{reference.outputs.shape[-1]}" + "".join(f"; {each}" for each in problems)
        )
    if not np.isfinite(outputs).all():
        problems.insert(0, "some outputs are NaN or infinite")
        outputs = np.nan_to_num(outputs, nan=0.0, posinf=1.0, neginf=0.0)
    expected, compared = reference.outputs, reference.compared
    if options.outputs == "features":
        differences = rules.relative_differences(outputs, expected)
        cosines = rules.cosines(outputs[compared], expected[compared])
        statistics: dict[str, Any] = {"agreement": float(cosines.mean())}
        beyond = rules.feature_problems(limits, outputs, reference)
    else:
        differences = np.abs(outputs - expected)
        statistics = _probability_statistics(outputs, reference, card)
        beyond = rules.probability_problems(limits, outputs, reference)
    real = len(reference.targets)
    return Verification(
        runtime=runtime.name,
        images=real,
        synthetic=reference.synthetic,
        max_difference=float(differences[compared].max()),
        mean_difference=float(differences[compared].mean()),
        synthetic_difference=float(differences[real:].max(initial=0)),
        problems=(*beyond, *problems),
        **statistics,
    )


def structure_problems(
    row: Format, runtime: Runtime, options: ExportOptions, card: Card
) -> list[str]:
    """Check a file's signature, operators and card; return what is wrong.

    Args:
        row: The file's format.
        runtime: The file, opened.
        options: What the file was exported with.
        card: Of the model.
    """
    size, inputs = card.preprocessing.eval_size, runtime.inputs
    sides = [3, size, size] if options.layout == "nchw" else [size, size, 3]
    shape, problems = [_batch(row, options), *sides], []
    if [tensor["name"] for tensor in inputs] != ["image"]:
        shown = ", ".join(map(_shown, inputs))
        problems.append(f"the only input must be 'image', not {shown}")
    elif inputs[0]["dtype"] != (dtype := row.dtypes(options)[0]):
        problems.append(f"image must be {dtype}, not {inputs[0]['dtype']}")
    if inputs and inputs[0]["shape"] != shape:
        problems.append(f"image must be of shape {shape}, not {inputs[0]['shape']}")
    problems += _output_problems(row, options, card, runtime.outputs)
    if others := _other_operators(row, runtime.operators, card):
        problems.append(f"operators that are not allowed: {', '.join(sorted(others))}")
    if runtime.card.to_text() != card.to_text():
        different = _different_fields(runtime.card, card)
        problems.append(f"the card inside is not the model's: {different}")
    return problems


def _other_operators(row: Format, found: Iterable[str], card: Card) -> set[str]:
    """Return the operators that a file of a model must not use."""
    if isinstance(card.architecture, KerasArchitecture):
        builtin = re.compile(row.runtime.builtin)
        return {name for name in found if not builtin.fullmatch(name)}
    return set(found) - row.operators


def _output_problems(
    row: Format, options: ExportOptions, card: Card, outputs: Sequence[TensorInfo]
) -> list[str]:
    names = (options.outputs,) if options.outputs else row.runtime.outputs
    given = {tensor["name"]: tensor for tensor in outputs}
    if sorted(given) != sorted(names) or len(given) != len(outputs):
        shown = ", ".join(map(_shown, outputs)) or "none"
        return [f"the outputs must be {' and '.join(names)}, not {shown}"]
    dtype = row.dtypes(options)[1]
    problems = []
    for name in names:
        width = card.architecture.classes if name != "features" else None
        tensor = given[name]
        shape = [_batch(row, options), width or tensor["shape"][-1]]
        if tensor["dtype"] != dtype or list(tensor["shape"]) != shape:
            problems.append(f"{name} must be {dtype} {shape}, not {_shown(tensor)}")
    return problems


def _batch(row: Format, options: ExportOptions) -> int | str:
    batch = row.runtime.batch if options.batch is None else options.batch
    return batch if isinstance(batch, int) else "batch"


def _shown(tensor: TensorInfo) -> str:
    return f"{tensor['name']} {tensor['dtype']} {list(tensor['shape'])}"


def _different_fields(inside: Card, card: Card) -> str:
    if inside.labels != card.labels:
        return "other labels, or in another order"
    ours, theirs = inside.to_json(), card.to_json()
    return "other " + ", ".join(key for key in theirs if ours[key] != theirs[key])


def batch_problems(
    runtime: Runtime, images: Pixels, outputs: ModelOutput, allowed: float
) -> list[str]:
    """Check that outputs do not depend on the batch, and are reproducible.

    Some images are run again in batches of every size from 1 to 8, or of the file's
    fixed size, at other places and with other images.

    Args:
        runtime: The file, opened.
        images: uint8 `(n, height, width, 3)`.
        outputs: The file's, for these images.
        allowed: Largest change by rounding.
    """
    # Real and synthetic images, as many as the largest batch needs.
    chosen = np.linspace(0, len(images) - 1, max(_BATCH_SIZES)).astype(int)
    fixed = runtime.interface.batch
    sizes = _BATCH_SIZES if fixed is None else (fixed,)
    repeated, other = 0.0, 0.0
    for size in sizes:
        places = np.roll(chosen, size)[:size]
        first = runtime.run(images[places])
        other = max(other, _largest(first - outputs[places]))
        if size == sizes[-1]:
            repeated = _largest(first - runtime.run(images[places]))
    problems = []
    # `not <=` because of NaN.
    if not other <= allowed:
        problems.append(
            f"an output changes by {other:.2g} with the other images of its batch"
        )
    if not repeated <= allowed:
        problems.append(f"an output changes by {repeated:.2g} when it is run again")
    return problems


def _largest(change: ModelOutput) -> float:
    return float(np.abs(change).max())


def _probability_statistics(
    outputs: ModelOutput, reference: Reference, card: Card
) -> dict[str, Any]:
    """Return what a `Verification` tells of probabilities, but not of features."""
    compared, targets = reference.compared, reference.targets
    ours, theirs = outputs[compared], reference.outputs[compared]
    changes = rules.confidence_changes(ours, theirs)
    statistics: dict[str, Any] = {
        "agreement": float((ours.argmax(-1) == theirs.argmax(-1)).mean()),
        "top5_agreement": rules.top5_agreement(ours, theirs),
        "drift": float(changes.mean()),
        "confidence_difference": float(np.abs(changes).mean()),
        "worst": rules.worst_images(outputs, reference.outputs, compared, card),
    }
    if len(targets):
        statistics["accuracy"] = rules.top1_accuracy(ours, targets)
        statistics["model_accuracy"] = rules.top1_accuracy(theirs, targets)
        rows = class_rows(confusion_matrix(targets, ours))
        recalls = {row.index: row.recall for row in rows}
        statistics["recalls"] = tuple(recalls[index] for index in sorted(recalls))
    return statistics
