"""The images that set the ranges of quantised activations."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

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
# A picture whose pixels differ less is blank and tells nothing about activations.
_BLANK = 1.0


@dataclass(frozen=True)
class Calibration:
    """Distinct images as the net sees them, none of them used to verify.

    Attributes:
        images: uint8 `(n, height, width, 3)`.
    """

    images: Pixels

    def __post_init__(self) -> None:
        if len(self.images) < LEAST:
            raise DataError(
                f"Calibration needs at least {LEAST} distinct images. "
                f"Received: {len(self.images)}; give a larger data set."
            )

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
    order = _balanced_order(examples, seed)[: 2 * MOST]
    seen = {fingerprint(image) for image in avoid}
    chosen: list[Pixels] = []
    for batch in prepared_batches(examples.take(order), card.preprocessing, 64):
        for image in batch:
            mark = fingerprint(image)
            if mark not in seen and np.std(image) > _BLANK and len(chosen) < MOST:
                chosen.append(image)
            seen.add(mark)
    size = card.preprocessing.eval_size
    return Calibration(np.array(chosen, np.uint8).reshape(-1, size, size, 3))


def fingerprint(image: Pixels) -> str:
    """Return a hash of an image's content."""
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()


def _balanced_order(examples: Examples, seed: int) -> np.ndarray:
    """Return all indices, taking turns among the classes."""
    generator = np.random.default_rng(seed)
    turns = np.empty(len(examples))
    for label in np.unique(examples.labels):
        members = generator.permutation(np.flatnonzero(examples.labels == label))
        turns[members] = np.arange(len(members))
    return np.lexsort((examples.labels, turns))
