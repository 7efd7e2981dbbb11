"""Confidence: a temperature and thresholds, measured on held-out images."""

import math
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from reszoo import defaults, metrics
from reszoo.cards import Confidence
from reszoo.data import sources
from reszoo.data.splits import calibration_halves
from reszoo.environment import check_backend
from reszoo.errors import DataError, UsageError
from reszoo.fields import check_range
from reszoo.files import StrPath, as_path
from reszoo.weights.location import checkpoint_in
from reszoo.zoo import get_card, load, save, set_card

if TYPE_CHECKING:
    import keras

# With fewer images a temperature would be chance.
MIN_IMAGES = 50
Logits = NDArray[np.float32]
# Of `fit_temperature`: bounds of the inverse temperature, most steps, and a number that
# counts as none.
_INVERSES, _STEPS, _LEAST = (0.05, 20.0), 100, 1e-12


def calibrate(
    model: "keras.Model | StrPath",
    data: sources.Data,
    *,
    keep: float = defaults.KEEP,
    output: StrPath | None = None,
    bad_images: str = defaults.BAD_IMAGES,
) -> Confidence:
    """Measure temperature and thresholds, and store them in a model's card.

    One seeded half of the validation split sets them, the expected calibration error
    is measured on the other half. Test images are never used. Predictor and exported
    files then give calibrated logits and probabilities, with the same top-1; the Keras
    model itself gives its own logits, as before.

    Args:
        model: A model from reszoo, a checkpoint, or the folder of a run.
        data: What the model was trained on, or more of the kind, as for `train`.
        keep: Share of known images that must reach the thresholds of "unknown".
        output: Checkpoint to write, `.safetensors`; None replaces the card in the
            checkpoint that was given.
        bad_images: "error" stops at the first unreadable image, "skip" leaves such
            images out, "recover" decodes truncated JPEGs as far as they go.

    Raises:
        DataError: An image is unreadable, the classes are not the model's, there is no
            validation split, or half of it has too few images.
        UsageError: An argument is out of range.
    """
    check_range("keep", keep, "(0, 1]", float)
    check_backend("calibrate")
    path = as_path(model) if isinstance(model, str | os.PathLike) else None
    loaded = load(path) if path is not None else model
    # A folder of a run means its best checkpoint.
    target = None if path is None else checkpoint_in(path) or path
    fits = target is None or (target.suffix == ".safetensors" and target.is_file())
    if output is not None:
        target = as_path(output)
        fits = target.suffix in (".safetensors", "")
    if not fits:
        raise UsageError(
            "Only .safetensors checkpoints hold a card. Received: "
            f"{target}; give output=NAME.safetensors (--output)."
        )
    card = get_card(loaded)
    source = sources.open_for(card, data, bad_images)
    source = sources.match_classes(source, card.labels, card.architecture.classes)
    source.announce()
    if "validation" not in source.splits:
        raise DataError(
            "Calibration needs a validation split, for test images are kept for "
            f"evaluation. Received: {source.name} with {', '.join(source.splits)}."
        )
    examples = source.examples("validation")
    run = metrics.inference_function(loaded, card.preprocessing)
    batches = metrics.prepared_batches(examples, card.preprocessing, 64)
    logits = np.concatenate([np.asarray(run(batch)["logits"]) for batch in batches])
    found = measure(logits, source, keep)
    if found is None:
        raise DataError(
            f"Calibration needs at least {MIN_IMAGES} images in half of the validation "
            f"split. Received: {len(examples)} in all of it, in {source.name}."
        )
    set_card(loaded, replace(card, confidence=found))
    if target is not None:
        save(loaded, target)
    return found


def measure(
    logits: Logits, source: sources.Source, keep: float = defaults.KEEP
) -> Confidence | None:
    """Measure on a model's own logits for the validation split, `(n, classes)`.

    Returns None where half of it has fewer than `MIN_IMAGES` images.
    """
    targets = source.examples("validation").targets
    fitted, others = calibration_halves(targets)
    if len(fitted) < MIN_IMAGES or not len(others):
        return None
    temperature = fit_temperature(logits[fitted], targets[fitted])
    calibrated = logits / np.float32(temperature)
    shares = metrics.softmax(calibrated[fitted])
    return Confidence(
        temperature=temperature, keep=keep,
        min_logit=keeping_threshold(calibrated[fitted].max(axis=1), keep),
        min_probability=keeping_threshold(shares.max(axis=1), keep),
        error_before=_error(logits[others], targets[others]),
        error_after=_error(calibrated[others], targets[others]), images=len(fitted),
        data=f"{source.name} (half of validation)",
        data_sha256=sources.content_digest(source),
    )  # fmt: skip


def fit_temperature(logits: NDArray[np.float32], targets: metrics.Targets) -> float:
    """Return the temperature that logits are divided by for the least cross-entropy.

    Guo et al. 2017 (arXiv:1706.04599, section 4.2). The cross-entropy is convex in the
    inverse of the temperature, which Newton's method finds in float64. It is 1 where
    every image is classified correctly: then no temperature is too low; otherwise in
    0.05..20. Logits are `(n, classes)`, targets int64 `(n,)`.
    """
    exact = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    of_truth = exact[np.arange(len(targets)), targets]
    if not of_truth.any():
        return 1.0
    low, inverse, high = _INVERSES[0], 1.0, _INVERSES[1]
    for _ in range(_STEPS):
        odds = np.exp(inverse * exact)
        shares = odds / odds.sum(axis=1, keepdims=True)
        mean = (shares * exact).sum(axis=1)
        slope = float((mean - of_truth).mean())
        curve = float(((shares * exact**2).sum(axis=1) - mean**2).mean())
        low, high = (low, inverse) if slope > 0 else (inverse, high)
        step = inverse - slope / max(curve, _LEAST)
        before, inverse = inverse, step if low < step < high else (low * high) ** 0.5
        if abs(inverse - before) <= _LEAST * before:
            break
    return 1 / inverse


def keeping_threshold(scores: NDArray[np.float32], share: float) -> float:
    """Return the greatest of the scores that at least a share of them reach."""
    count = math.ceil(share * len(scores) - 1e-9)
    return float(np.sort(scores)[len(scores) - max(1, count)])


def _error(logits: Logits, targets: metrics.Targets) -> float:
    bins = metrics.calibration_bins(targets, metrics.softmax(logits))
    return metrics.calibration_error(bins)
