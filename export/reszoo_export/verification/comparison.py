"""Compare an opened file with a reference: signature, outputs, batch invariance.

With the distances between the outputs of a file and of its model, and their limits.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reszoo import metrics
from reszoo.architecture import KerasArchitecture
from reszoo.cards import Card
from reszoo.errors import VerificationError
from reszoo.metrics import Targets, softmax
from reszoo.preprocessing import Pixels
from reszoo_export import runtimes
from reszoo_export.formats import CAM, ExportOptions, Format, Tolerance
from reszoo_export.manifest import Disagreement, Reliability, Verification
from reszoo_export.runtimes import ModelOutput, Runtime, TensorInfo
from reszoo_export.verification.reference import Reference

_BATCH_SIZES = range(1, 9)
_CAM_IMAGES = 16


def compare(
    row: Format,
    runtime: Runtime,
    reference: Reference,
    options: ExportOptions,
    card: Card,
) -> Verification:
    """Run an opened file on the reference's images and compare.

    The card is the model's. A VerificationError if the runtime cannot run the file on
    the images, or its outputs have another shape than the model's.
    """
    limits = limits_of(row, card)
    problems = structure_problems(row, runtime, options, card)
    try:
        outputs = runtimes.in_batches(runtime.run, reference.images)
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
    names = {tensor["name"] for tensor in runtime.outputs} & {"logits", "probabilities"}
    if len(names) == 2 and getattr(card.architecture, "activation", "") != "sigmoid":
        scores, told = (runtime.read(reference.images[:8], x) for x in sorted(names))
        if not _largest(softmax(scores) - told) <= limits.max_batch_difference:
            problems.append("its probabilities are not the softmax of its logits")
    expected, compared = reference.outputs, reference.compared
    if options.outputs == "features":
        differences = relative_differences(outputs, expected)
        alike = cosines(outputs[compared], expected[compared])
        statistics: dict[str, Any] = {"agreement": float(alike.mean())}
        beyond = feature_problems(limits, outputs, reference)
    else:
        differences = np.abs(outputs - expected)
        statistics = _probability_statistics(outputs, reference, card)
        beyond = probability_problems(limits, outputs, reference)
    if options.outputs == CAM:
        statistics["cam_difference"] = found = cam_difference(runtime, reference)
        # `not <=` because of NaN.
        if not found <= limits.max_cam_difference:
            problems.append(
                "the mean of a class activation map and the bias differ by "
                f"{found:.2g} from the logit; at most "
                f"{limits.max_cam_difference:g} is allowed"
            )
    real = len(reference.targets)
    return Verification(
        runtime=runtime.name, images=real, synthetic=reference.synthetic,
        max_difference=float(differences[compared].max()),
        mean_difference=float(differences[compared].mean()),
        synthetic_difference=float(differences[real:].max(initial=0)),
        problems=(*beyond, *problems), **statistics,
    )  # fmt: skip


def cam_difference(runtime: Runtime, reference: Reference) -> float:
    """Return by how much mean(CAM) + bias differs from the logits of a file.

    The largest difference on some images, relative to the largest logit beyond 1.
    """
    chosen = np.linspace(0, len(reference.images) - 1, _CAM_IMAGES).astype(int)
    images = reference.images[chosen]
    maps, logits = (runtime.read(images, name) for name in (CAM, "logits"))
    if maps.ndim != 4 or min(maps.shape[1:3]) < 1:
        return float("nan")
    means = maps.astype(np.float64).mean((1, 2)) + reference.bias
    return float(np.abs(means - logits).max() / max(1.0, np.abs(logits).max()))


def structure_problems(
    row: Format, runtime: Runtime, options: ExportOptions, card: Card
) -> list[str]:
    """Check a file's signature, operators and card; return what is wrong."""
    (*sides, channels), (image,) = card.preprocessing.input_shape, runtime.inputs
    nchw = options.layout == "nchw"
    sides = [channels, *sides] if nchw else [*sides, channels]
    shape, problems = [_batch(row, options), *sides], []
    if image["dtype"] != (dtype := row.dtypes(options)[0]):
        problems.append(f"image must be {dtype}, not {image['dtype']}")
    if image["shape"] != shape:
        problems.append(f"image must be of shape {shape}, not {image['shape']}")
    problems += _output_problems(row, options, card, runtime.outputs)
    others = set(runtime.operators) - row.operators
    if isinstance(card.architecture, KerasArchitecture):
        builtin = re.compile(row.runtime.builtin)
        others = {name for name in runtime.operators if not builtin.fullmatch(name)}
    if others:
        problems.append(f"operators that are not allowed: {', '.join(sorted(others))}")
    if runtime.card.to_text() != card.to_text():
        ours, theirs = runtime.card.to_json(), card.to_json()
        fields = [key for key in theirs if ours[key] != theirs[key]]
        same_labels = runtime.card.labels == card.labels
        different = ", ".join(fields) if same_labels else "labels, or in another order"
        problems.append(f"the card inside is not the model's: other {different}")
    return problems


def _output_problems(
    row: Format, options: ExportOptions, card: Card, outputs: Sequence[TensorInfo]
) -> list[str]:
    names = options.names(row.runtime)
    given = {tensor["name"]: tensor for tensor in outputs}
    if sorted(given) != sorted(names) or len(given) != len(outputs):
        shown = _shown(*outputs) or "none"
        return [f"the outputs must be {' and '.join(names)}, not {shown}"]
    dtype, problems = row.dtypes(options)[1], []
    for name in names:
        width = card.architecture.classes if name != "features" else None
        tensor = given[name]
        # Of a map the sides as well, which follow from the input's.
        inner = tensor["shape"][1:-1] if name == CAM else []
        shape = [_batch(row, options), *inner, width or tensor["shape"][-1]]
        if tensor["dtype"] != dtype or list(tensor["shape"]) != shape:
            problems.append(f"{name} must be {dtype} {shape}, not {_shown(tensor)}")
    return problems


def _batch(row: Format, options: ExportOptions) -> int | str:
    batch = row.runtime.batch if options.batch is None else options.batch
    return batch if isinstance(batch, int) else "batch"


def _shown(*tensors: TensorInfo) -> str:
    return ", ".join(f"{t['name']} {t['dtype']} {list(t['shape'])}" for t in tensors)


def batch_problems(
    runtime: Runtime, images: Pixels, outputs: ModelOutput, allowed: float
) -> list[str]:
    """Check that outputs do not depend on the batch, and are reproducible.

    Some images are run again in batches of every size from 1 to 8, or of the file's
    fixed size, at other places and with other images. `outputs` are the file's for
    `images`, uint8 `(n, height, width, 3)`; `allowed` is the largest change by
    rounding.
    """
    # Real and synthetic images, as many as the largest batch needs.
    chosen = np.linspace(0, len(images) - 1, max(_BATCH_SIZES)).astype(int)
    fixed = runtimes.fixed_batch(runtime.inputs[0])
    sizes = (fixed,) if fixed else _BATCH_SIZES
    repeated, other = 0.0, 0.0
    for size in sizes:
        places = np.roll(chosen, size)[:size]
        first = runtime.run(images[places])
        other = max(other, _largest(first - outputs[places]))
        if size == sizes[-1]:
            repeated = _largest(first - runtime.run(images[places]))
    problems = {
        f"an output changes by {other:.2g} with the other images of its batch": other,
        f"an output changes by {repeated:.2g} when it is run again": repeated,
    }
    # `not <=` because of NaN.
    return [problem for problem, change in problems.items() if not change <= allowed]


def _largest(change: ModelOutput) -> float:
    return float(np.abs(change).max())


def _probability_statistics(
    outputs: ModelOutput, reference: Reference, card: Card
) -> dict[str, Any]:
    """Return what a `Verification` tells of probabilities, but not of features."""
    compared, targets = reference.compared, reference.targets
    ours, theirs = outputs[compared], reference.outputs[compared]
    changes = ours.max(axis=-1) - theirs.max(axis=-1)
    statistics: dict[str, Any] = {
        "agreement": float((ours.argmax(-1) == theirs.argmax(-1)).mean()),
        "top5_agreement": top5_agreement(ours, theirs),
        "drift": float(changes.mean()),
        "confidence_difference": float(np.abs(changes).mean()),
        "worst": worst_images(outputs, reference.outputs, compared, card),
    }
    if len(targets):
        statistics["accuracy"] = top1_accuracy(ours, targets)
        statistics["model_accuracy"] = top1_accuracy(theirs, targets)
        rows = metrics.class_rows(metrics.confusion_matrix(targets, ours))
        recalls = {row.index: row.recall for row in rows}
        statistics["recalls"] = tuple(recalls[index] for index in sorted(recalls))
        if card.confidence:
            statistics["reliability"] = _reliability(ours, targets, card.temperature)
    return statistics


def _reliability(
    outputs: ModelOutput, targets: Targets, temperature: float
) -> Reliability:
    before, after = (
        tuple(b for b in metrics.calibration_bins(targets, each) if b.images)
        for each in (metrics.tempered(outputs, 1 / temperature), outputs)
    )
    return Reliability(
        error_before=metrics.calibration_error(before),
        error_after=metrics.calibration_error(after), before=before, after=after,
    )  # fmt: skip


# Probabilities below are equal: runtimes flush such numbers to zero differently.
_MIN_PROBABILITY = 1e-20
# Lengths below are 0.
_MIN_LENGTH = 1e-12
# How far files may be beyond rounding, and limits beyond the usual ones.
_SUMS, _ROUNDINGS, _MOST_WIDENED = 4.0, 2.0, 20.0
_WIDENED = ("max_difference", "max_log_difference", "max_batch_difference", "margin")
_TOP = 5
_MAX_SHOWN = 5
# A file that gives one class to more of the images than the first, where the model
# gives no class to more than the second, ignores its input.
_CONSTANT, _VARIED = 0.95, 0.8
# Labels in another order explain the outputs if they make at least this share of them
# right, and the labels as they are at most this share of that.
_EXPLAINED, _UNEXPLAINED = 0.5, 0.5


def limits_of(row: Format, card: Card) -> Tolerance:
    """Return the limits for a file of a model.

    Where the model itself amplifies rounding, they allow four times what float32
    changes, for runtimes add up in another order, and twice what rounding of weights
    to float16 does, for files round otherwise; but never more than twenty times the
    usual.
    """
    limits, made = row.tolerance, card.architecture
    if not isinstance(made, KerasArchitecture) or limits.max_difference is None:
        return limits
    of_float32, of_float16 = made.rounding
    is_float32 = row.precision == "float32"
    allowed = _SUMS * of_float32 if is_float32 else _ROUNDINGS * of_float16
    factor = min(max(1.0, allowed / limits.max_difference), _MOST_WIDENED)
    usual = {name: getattr(limits, name) for name in _WIDENED}
    widened = {name: value and factor * value for name, value in usual.items()}
    return replace(limits, **widened)


def probability_problems(
    limits: Tolerance, outputs: ModelOutput, reference: Reference
) -> list[str]:
    """Compare probabilities `(n, classes)` with the model's; return what is wrong."""
    expected, compared = reference.outputs, reference.compared
    count = len(reference.targets)
    real, synthetic = slice(count), slice(count, None)
    distances = [
        total_variation(outputs[images], expected[images])
        for images in (real, synthetic)
    ]
    variation = "the total variation distance to the model's output is {:.2%}"
    relative = "the total variation distance is {:.0%} of the model's own variation"
    problems = _beyond(
        ("a probability differs from the model's by {:.2g}",
         np.abs(outputs - expected).max(), limits.max_difference),
        ("a log probability differs from the model's by {:.2g}",
         log_difference(outputs, expected), limits.max_log_difference),
        (variation, distances[0], limits.max_variation),
        (f"{variation} on the synthetic images",
         distances[1], limits.max_variation_synthetic),
        (f"{relative} between images",
         relative_variation(outputs[compared], expected[compared]),
         limits.max_relative_variation),
    )  # fmt: skip
    if count:
        targets = reference.targets
        problems += _real_problems(limits, outputs[real], expected[real], targets)
    return problems


def feature_problems(
    limits: Tolerance, outputs: ModelOutput, reference: Reference
) -> list[str]:
    """Compare features `(n, width)` with the model's; return what is wrong."""
    expected, compared = reference.outputs, reference.compared
    most = relative_differences(outputs, expected).max()
    alike = cosines(outputs[compared], expected[compared]).mean()
    differs = "a feature differs from the model's by {:.2g} of the largest one"
    cosine = "the mean cosine of the features and the model's is {:.4f}"
    problems = _beyond((differs, most, limits.max_feature_difference))
    return problems + _beyond((cosine, alike, limits.min_cosine), least=True)


def _beyond(*checks: tuple[str, Any, float | None], least: bool = False) -> list[str]:
    """Return the problems whose value is beyond its limit, with the two of them."""
    problems = []
    for problem, value, limit in checks:
        if limit is None or (value >= limit if least else value <= limit):
            continue
        rule = "at least {} is required" if least else "at most {} is allowed"
        shown = rule.format(f"{limit:{'.2%' if '%' in problem else 'g'}}")
        problems.append(f"{problem.format(value)}; {shown}")
    return problems


def _real_problems(
    limits: Tolerance, outputs: ModelOutput, expected: ModelOutput, targets: Targets
) -> list[str]:
    """Compare the top-1 on real images, and the accuracy, with the model's."""
    change = (outputs.max(axis=-1) - expected.max(axis=-1)).mean()
    agreement = agreeing_images(outputs, expected, limits.margin, limits.tie).mean()
    accuracy, of_model = (top1_accuracy(each, targets) for each in (outputs, expected))
    top1 = (outputs.argmax(-1) == expected.argmax(-1)).mean()
    confidence = f"the mean confidence changed by {change:+.2%}"
    agrees = "the top-1 agreement with the model is {:.2%}, ties "
    problems = _beyond((confidence, abs(change), limits.max_confidence_change))
    problems += _beyond(
        (f"{agrees}included", agreement, limits.min_agreement),
        (f"{agrees}not included", top1, limits.min_top1),
        least=True,
    )
    most, most_of_model = (
        float(np.bincount(each.argmax(-1)).max() / len(each))
        for each in (outputs, expected)
    )
    if most > _CONSTANT and most_of_model < _VARIED:
        problems.append(
            f"{most:.2%} of the images get one and the same class; the model gives "
            f"no class to more than {most_of_model:.2%}"
        )
    # Rounded, because 0.97 - 0.96 is more than 0.01 in floating point.
    drop = round(of_model - accuracy, 9)
    chance = chance_of_accuracy(outputs, expected, targets)
    limit = limits.max_accuracy_drop
    if limit is not None and drop > max(limit, chance):
        problems.append(
            f"accuracy dropped from {of_model:.2%} to {accuracy:.2%}; "
            f"at most {limit:.2%} is allowed, and chance explains {chance:.2%}"
        )
    order = label_order(outputs, targets)
    if order is not None:
        explained = top1_accuracy(outputs[:, np.argsort(order)], targets)
        if explained >= _EXPLAINED and accuracy <= _UNEXPLAINED * explained:
            problems.append(
                f"the labels seem to be in another order: accuracy is {accuracy:.2%}, "
                f"and would be {explained:.2%} if class 0 were {order[0]}"
            )
    return problems


def log_difference(outputs: ModelOutput, expected: ModelOutput) -> float:
    """Return the largest difference of log probabilities, relative where beyond 1."""
    ours, theirs = (
        np.log(np.maximum(each, _MIN_PROBABILITY)) for each in (outputs, expected)
    )
    return float((np.abs(ours - theirs) / np.maximum(1, np.abs(theirs))).max())


def total_variation(outputs: ModelOutput, expected: ModelOutput) -> float:
    """Return the total variation distance, in 0..1, mean over any images."""
    distances = np.abs(outputs - expected).sum(axis=-1) / 2
    return float(distances.mean()) if len(distances) else 0.0


def relative_variation(outputs: ModelOutput, expected: ModelOutput) -> float:
    """Return the total variation distance relative to the model's own variation.

    That is the distance of the model's outputs from their mean over the images. The
    result is 1 for a file whose outputs are always that mean.
    """
    mean = np.broadcast_to(expected.mean(axis=0, keepdims=True), expected.shape)
    own = total_variation(expected, mean)
    return total_variation(outputs, expected) / max(own, _MIN_LENGTH)


def agreeing_images(
    outputs: ModelOutput, expected: ModelOutput, margin: float, tie: float
) -> NDArray[np.bool_]:
    """Return on which images the top-1 is the same, or a tie in the model's output."""
    chosen = outputs.argmax(-1)
    of_chosen = np.take_along_axis(expected, chosen[:, None], axis=-1)[:, 0]
    best = expected.max(-1)
    same: NDArray[np.bool_] = of_chosen >= np.minimum(best - margin, tie * best)
    return same


def top5_agreement(outputs: ModelOutput, expected: ModelOutput) -> float:
    """Return the share of the model's top-5 that are the file's, in 0..1."""
    ours, theirs = (
        np.argsort(-each, axis=-1, kind="stable")[:, :_TOP]
        for each in (outputs, expected)
    )
    shared = (ours[:, :, None] == theirs[:, None, :]).any(axis=1)
    return float(shared.mean())


def top1_accuracy(outputs: ModelOutput, targets: Targets) -> float:
    """Return the share of images with the right top-1.

    The lower index wins a tie, as everywhere; int8 files often have ties.
    """
    return float((outputs.argmax(axis=-1) == targets).mean())


def chance_of_accuracy(
    outputs: ModelOutput, expected: ModelOutput, targets: Targets
) -> float:
    """Return by how much two accuracies may differ by chance, in 0..1.

    Of the images that only one of two equally good classifiers gets right, each gets
    half. The difference is then less than twice the root of their number in 19 of 20
    cases (McNemar's test).
    """
    right, of_model = (each.argmax(axis=-1) == targets for each in (outputs, expected))
    return float(2 * np.sqrt((right != of_model).sum()) / len(targets))


def label_order(outputs: ModelOutput, targets: Targets) -> Sequence[int] | None:
    """Return the most frequent target of each class, if that is a permutation."""
    classes = outputs.shape[-1]
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (outputs.argmax(-1), targets), 1)
    order = counts.argmax(axis=-1)
    if len(set(order.tolist())) < classes or not counts.max(axis=-1).all():
        return None
    return [int(target) for target in order]


def relative_differences(
    outputs: ModelOutput, expected: ModelOutput
) -> NDArray[np.float32]:
    """Return the differences of features, relative to the model's largest feature."""
    largest = max(float(np.abs(expected).max()), _MIN_LENGTH)
    differences: NDArray[np.float32] = np.abs(outputs - expected) / largest
    return differences


def cosines(outputs: ModelOutput, expected: ModelOutput) -> NDArray[np.float64]:
    """Return the cosine of each image's features and the model's, `(n,)`."""
    ours, theirs = outputs.astype(np.float64), expected.astype(np.float64)
    lengths = np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
    products = (ours * theirs).sum(axis=-1)
    cosine: NDArray[np.float64] = products / np.maximum(lengths, _MIN_LENGTH)
    return cosine


def worst_images(
    outputs: ModelOutput, expected: ModelOutput, compared: slice, card: Card
) -> tuple[Disagreement, ...]:
    """Return the compared images with the largest differences, the largest first."""
    indices = np.arange(len(outputs))[compared]
    largest = np.abs(outputs - expected).max(axis=-1)
    order = np.argsort(-largest[compared], kind="stable")[:_MAX_SHOWN]
    return tuple(
        Disagreement(
            image=int(image),
            model_label=card.label(int(expected[image].argmax())),
            model_probability=float(expected[image].max()),
            file_label=card.label(int(outputs[image].argmax())),
            file_probability=float(outputs[image].max()),
            difference=float(largest[image]),
        )
        for image in indices[order]
    )
