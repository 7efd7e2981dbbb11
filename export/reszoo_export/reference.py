"""What every file is compared with: images and the model's own answers to them."""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from numpy.typing import NDArray

from reszoo.cards import Card
from reszoo.data.sources import Source, check_classes
from reszoo.errors import ExportError
from reszoo.evaluation import prepared_batches
from reszoo.files import atomic_file
from reszoo.inference import probabilities
from reszoo.preprocessing import Pixels
from reszoo_export.manifest import REFERENCE_FILE
from reszoo_export.runtimes import Answers
from reszoo_export.serving import float32_twin

# Room for the images kept beside an export, before compression: 111 of 224 pixels.
_KEPT_BYTES = 16 * 2**20
# What NumPy and zipfile raise on damaged files.
_UNREADABLE = (
    OSError, ValueError, KeyError, TypeError, EOFError, NotImplementedError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


@dataclass(frozen=True)
class Reference:
    """Images and the model's answers.

    Attributes:
        images: uint8 `(n, height, width, 3)`; the last `synthetic` are made up.
        answers: The model's probabilities, `(n, classes)`.
        labels: int64 `(n - synthetic,)`, what the real images show.
        synthetic: Number of made-up images at the end.
    """

    images: Pixels
    answers: Answers
    labels: NDArray[np.int64]
    synthetic: int

    def shortened(self) -> "Reference":
        """Return as many of the real images as may be kept, and all made-up ones."""
        room = max(1, _KEPT_BYTES // self.images[0].nbytes - self.synthetic)
        real = len(self.labels)
        # Evenly spread, for the examples are sorted by class.
        kept = np.unique(np.linspace(0, real - 1, min(room, real)).astype(int))
        chosen = np.concatenate([kept, np.arange(real, len(self.images))]).astype(int)
        return Reference(
            self.images[chosen], self.answers[chosen], self.labels[kept], self.synthetic
        )

    def write(self, folder: Path) -> None:
        """Write what `read_reference` reads."""
        with (
            atomic_file(folder / REFERENCE_FILE) as temporary,
            temporary.open("wb") as file,
        ):
            np.savez_compressed(
                file,
                images=self.images,
                answers=self.answers,
                labels=self.labels,
                synthetic=self.synthetic,
            )


def make_reference(model: keras.Model, card: Card, source: Source | None) -> Reference:
    """Ask a model about the judging split of a source, and about made-up images.

    It answers in float32, also where it was built under mixed precision.

    Raises:
        DataError: The source has other classes, or an unreadable image.
    """
    size = card.preprocessing.eval_size
    images, labels = np.zeros((0, size, size, 3), np.uint8), np.zeros(0, np.int64)
    if source is not None:
        check_classes(source, card.labels, "the model")
        examples = source.examples()
        labels = examples.labels
        images = np.concatenate(
            list(prepared_batches(examples, card.preprocessing, 64))
        )
    synthetic = synthetic_images(size)
    images = np.concatenate([images, synthetic])
    exact = float32_twin(model, card)
    answers = probabilities(exact, card.preprocessing, images)
    return Reference(images, answers, labels, len(synthetic))


def read_reference(folder: Path, card: Card) -> Reference:
    """Read the images and answers kept beside an export.

    Args:
        folder: The export.
        card: Of the model: what images and answers must fit.

    Raises:
        ExportError: They are missing or damaged, or belong to another model.
    """
    path = folder / REFERENCE_FILE
    try:
        with np.load(path, allow_pickle=False) as content:
            reference = Reference(
                content["images"],
                content["answers"],
                content["labels"],
                int(content["synthetic"]),
            )
    except _UNREADABLE as error:
        raise ExportError(f"{path} cannot be read ({error}).") from error
    _check_fit(reference, card, path)
    return reference


def _check_fit(reference: Reference, card: Card, path: Path) -> None:
    images, answers, labels = reference.images, reference.answers, reference.labels
    size, classes = card.preprocessing.eval_size, card.architecture.classes
    real = len(images) - reference.synthetic if images.ndim else -1
    fits = (
        images.dtype == np.uint8
        and images.shape[1:] == (size, size, 3)
        and answers.dtype == np.float32
        and answers.shape == (len(images), classes)
        and np.isfinite(answers).all()
        and labels.dtype == np.int64
        and labels.shape == (real,)
        and 0 <= real <= len(images) > 0
    )
    if not fits:
        raise ExportError(
            f"{path} must hold uint8 images of {size}x{size}, float32 answers for "
            f"{classes} classes and a label for each real image. Received: images "
            f"{images.dtype} {images.shape}, answers {answers.dtype} {answers.shape}, "
            f"labels {labels.dtype} {labels.shape}, {reference.synthetic} made up."
        )


def synthetic_images(size: int) -> Pixels:
    """Make images on which sloppy exports differ: flat, saturated, busy.

    Returns:
        uint8 `(6, size, size, 3)`: black, white, red (tells RGB from BGR), a
        checkerboard, a ramp (tells the padding's side) and noise.
    """
    rows, columns = np.mgrid[:size, :size]
    ramp = (rows * 255 // max(1, size - 1)).astype(np.uint8)
    board = np.where((rows + columns) % 2, 255, 0).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    flat = np.zeros((size, size, 3), np.uint8)
    red = flat + np.array([255, 0, 0], np.uint8)
    grey = [np.repeat(plane[..., None], 3, axis=-1) for plane in (board, ramp)]
    return np.stack([flat, flat + np.uint8(255), red, *grey, noise])
