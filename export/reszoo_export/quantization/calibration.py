"""The images that set the ranges of quantised activations."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from reszoo.cards import Card
from reszoo.data.examples import Examples
from reszoo.data.sources import Source, check_classes
from reszoo.errors import DataError
from reszoo.evaluation import prepared_batches
from reszoo.preprocessing import Pixels

# TFLite's and ONNX Runtime's guides name 100 to 500; below 100 ranges are luck.
LEAST = 100
MOST = 300
# Enough to tell good ranges from bad by the divergence of whole answers.
TRIAL = 200
# A picture whose pixels differ less is blank and tells nothing about activations.
_BLANK = 1.0
# Among a hundred photos somewhere is a bright pixel; where none is, they are scaled.
_DARK = 32


@dataclass(frozen=True, eq=False)
class Calibration:
    """Distinct images as the net sees them, none of them used to verify.

    Attributes:
        images: uint8 `(n, height, width, 3)`: what sets the ranges.
        trial: The same of others: what tells good ranges from bad; empty where
            there are no others, and the first do both.
        choices: What was chosen with them, by net, so that formats share it.
    """

    images: Pixels
    trial: Pixels = field(default_factory=lambda: np.zeros((0, 0, 0, 3), np.uint8))
    choices: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        images = self.images
        if images.dtype != np.uint8 or images.ndim != 4:
            raise DataError(
                "Calibration images must be uint8 RGB in 0..255 of shape (n, height, "
                f"width, 3). Received: {len(images)} of {images.dtype} {images.shape}; "
                "normalisation happens inside."
            )
        _refuse(images, "blank", [image.std() <= _BLANK for image in images])
        if len(images) and images.max() < _DARK:
            raise DataError(
                "Calibration images must be RGB in 0..255, not scaled. Received: "
                f"{len(images)} images with values up to {images.max()}."
            )
        marks = [fingerprint(image) for image in images]
        if len(set(marks)) < LEAST or len(set(marks)) < len(marks):
            raise DataError(
                f"Calibration needs at least {LEAST} images, all distinct. Received: "
                f"{len(marks)}, of which {len(set(marks))} are distinct; give a larger "
                "data set."
            )

    @property
    def trial_images(self) -> Pixels:
        """Return the images on which ranges are compared."""
        return self.trial if len(self.trial) else self.images

    def batches(self) -> Iterator[np.ndarray]:
        """Yield float32 `(1, height, width, 3)` in 0..255, one image at a time.

        The first has a black and a white corner, so that the input's range is all
        of 0..255 and a byte means itself.
        """
        for index, image in enumerate(self.images):
            pixels = image[None].astype(np.float32)
            if not index:
                pixels[0, 0, 0], pixels[0, -1, -1] = 0, 255
            yield pixels


def draw_calibration(
    source: Source, card: Card, avoid: Pixels, seed: int = 0
) -> Calibration:
    """Draw a class-balanced calibration set from training images.

    Args:
        source: Where from: its training split.
        card: Of the model, for labels and preprocessing.
        avoid: uint8 images that must not be among them: the verification images.
        seed: Decides which images are drawn.

    Raises:
        DataError: Other classes than the model's, or too few distinct images.
    """
    check_classes(source, card.labels, "the model")
    examples = source.examples("train")
    # Twice as many as needed, for some are blank, repeated or verified with.
    order = _balanced_order(examples, seed)[: 2 * (MOST + TRIAL)]
    seen = {fingerprint(image) for image in avoid}
    chosen: list[Pixels] = []
    for batch in prepared_batches(examples.take(order), card.preprocessing, 64):
        for image in batch:
            mark = fingerprint(image)
            if mark not in seen and image.std() > _BLANK:
                chosen.append(image)
            seen.add(mark)
        if len(chosen) >= MOST + TRIAL:
            break
    size = card.preprocessing.eval_size
    images = np.array(chosen, np.uint8).reshape(-1, size, size, 3)
    # Of a small data set calibration comes first.
    first = min(MOST, max(LEAST, len(images) - TRIAL))
    return Calibration(images[:first], images[first : first + TRIAL])


def fingerprint(image: Pixels) -> str:
    """Return a hash of an image's content."""
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()


def _refuse(images: Pixels, kind: str, found: list[bool]) -> None:
    if any(found):
        raise DataError(
            f"Calibration images must not be {kind}. Received: {sum(found)} {kind} "
            f"of {len(images)}."
        )


def _balanced_order(examples: Examples, seed: int) -> np.ndarray:
    """Return all indices, taking turns among the classes."""
    generator = np.random.default_rng(seed)
    turns = np.empty(len(examples))
    for label in np.unique(examples.labels):
        members = generator.permutation(np.flatnonzero(examples.labels == label))
        turns[members] = np.arange(len(members))
    return np.lexsort((examples.labels, turns))
