"""Choose between quantized files of a model by the divergence of their outputs.

For models whose structure is not known: the quantizer of a runtime writes a file in
several ways, and the one that changes the model's outputs least is taken.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from reszoo.errors import ExportError
from reszoo.preprocessing import Pixels
from reszoo_export.quantization.ranges import Calibration
from reszoo_export.runtimes import ModelOutput, open_runtime, run_in_batches
from reszoo_export.serving import Serving

_BATCH = 25
# Smaller probabilities are rounded to 0 by integers.
_LEAST = 1e-7


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """How one way to quantize did on the trial images.

    Attributes:
        method: What was done.
        divergence: Kullback-Leibler divergence of the probabilities from the float
            model's, in nats, mean over the images.
        agreement: Share of images with the float model's top-1.
    """

    method: str
    divergence: float
    agreement: float


@dataclass(frozen=True, kw_only=True)
class Attempts:
    """The quantization of a file: what was chosen, and what was tried.

    Attributes:
        best: The attempt that was taken.
        trials: All of them.
        images: Number of calibration images.
        tried_on: Number of trial images.
    """

    best: Attempt
    trials: tuple[Attempt, ...]
    images: int
    tried_on: int

    def to_json(self) -> dict[str, Any]:
        """Return the attempts as plain JSON values, for the manifest."""
        return asdict(self)


def write_best(
    serving: Serving,
    calibration: Calibration,
    path: Path,
    candidates: Iterable[tuple[str, Callable[[Path], None]]],
) -> None:
    """Write the file whose outputs are nearest to the model's.

    Args:
        serving: The model.
        calibration: Its trial images are used, which no range was set with; only in a
            small data set its calibration images. Keeps the attempts.
        path: The file to make.
        candidates: What is done, and a function that writes a file.

    Raises:
        ExportError: The model's own outputs are not finite.
    """
    images = calibration.trial if len(calibration.trial) else calibration.images
    expected = _probabilities(serving, images)
    if not np.isfinite(expected).all():
        raise ExportError(
            f"The outputs for {len(images)} calibration images must be finite. "
            "Received: NaN or infinite ones; train the model again."
        )
    trials: list[Attempt] = []
    place = path.with_name(f"trial-{path.name}")
    for method, write in candidates:
        write(place)
        outputs = run_in_batches(open_runtime(place), images)
        agreement = (expected.argmax(1) == outputs.argmax(1)).mean()
        apart = _divergence(expected, outputs)
        # All scores of a sigmoid are classes of two.
        if serving.has_sigmoid:
            apart += _divergence(1 - expected, 1 - outputs)
        trial = Attempt(method=method, divergence=apart, agreement=float(agreement))
        trials.append(trial)
        if trials[-1] is min(trials, key=_divergence_of):
            place.replace(path)
    place.unlink(missing_ok=True)
    calibration.attempts[path.name] = Attempts(
        best=min(trials, key=_divergence_of),
        trials=tuple(trials),
        images=len(calibration.images),
        tried_on=len(images),
    )


def _divergence_of(trial: Attempt) -> float:
    return trial.divergence


def _probabilities(serving: Serving, images: Pixels) -> ModelOutput:
    function = serving.function("probabilities")
    starts = range(0, len(images), _BATCH)
    parts = [function(tf.constant(images[at : at + _BATCH])) for at in starts]
    return np.concatenate([np.asarray(part["probabilities"]) for part in parts])


def _divergence(expected: ModelOutput, outputs: ModelOutput) -> float:
    exact, near = (
        np.maximum(each.astype(np.float64), _LEAST) for each in (expected, outputs)
    )
    return float((exact * (np.log(exact) - np.log(near))).sum(1).mean())
