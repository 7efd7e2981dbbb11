"""Reference images, real and synthetic, with the model's own answers."""

import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reszoo.cards import Card
from reszoo.data.sources import Source, check_classes
from reszoo.errors import ExportError
from reszoo.files import atomic_file
from reszoo.metrics import prepared_batches
from reszoo.preprocessing import Pixels
from reszoo_export.manifest import REFERENCE_FILE
from reszoo_export.runtimes import Answers, Kind

_COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
_COARSE = 4


def synthetic_images(size: int) -> Pixels:
    """Make the images that every file is asked about.

    Args:
        size: Height and width, in pixels.

    Returns:
        uint8 `(17, size, size, 3)`: black, grey and white; red, green and blue (each
        tells the order of channels); checkerboards of one and of four pixels; ramps
        up and down along both axes (tell the side of a padding, and axes that were
        swapped); one that goes another way in each channel; noise of all levels, and
        of black and white; one white pixel in the centre, and one in a corner.
    """
    levels = [np.full((size, size), level) for level in (0, 128, 255)]
    flat = [_grey(level) for level in levels]
    colours = [np.broadcast_to(colour, (size, size, 3)) for colour in _COLOURS]
    rows, columns = np.mgrid[:size, :size]
    boards = [_board(rows, columns), _board(rows // _COARSE, columns // _COARSE)]
    ramps = [axis * 255 // max(1, size - 1) for axis in (rows, columns)]
    falling = [255 - ramp for ramp in ramps]
    turning = np.stack([*ramps, falling[0]], axis=-1)
    busy = [_grey(plane) for plane in (*boards, *ramps, *falling)]
    draw = np.random.default_rng(0)
    noise = draw.integers(0, 256, (size, size, 3))
    points = [_point(size, size // 2), _point(size, 0)]
    made = [*flat, *colours, *busy, turning, noise, 255 * (noise % 2), *points]
    return np.stack(made).astype(np.uint8)


def _grey(plane: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.repeat(plane[..., None], 3, axis=-1)


def _board(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.int64]:
    return 255 * ((rows + columns) % 2)


def _point(size: int, place: int) -> NDArray[np.int64]:
    image = np.zeros((size, size, 3), np.int64)
    image[place, place] = 255
    return image


# Room for the images kept beside an export, before compression: 111 of 224 pixels.
_KEPT_BYTES = 16 * 2**20
_ARRAYS = ("images", "answers", "labels")
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
        answers: The model's probabilities `(n, classes)`, or its features
            `(n, width)` where files give those.
        labels: int64 `(n - synthetic,)`, what the real images show.
        synthetic: Number of made-up images at the end.
    """

    images: Pixels
    answers: Answers
    labels: NDArray[np.int64]
    synthetic: int

    def shortened(self) -> "Reference":
        """Return as many of the real images as may be kept, and all made-up ones."""
        room = _KEPT_BYTES // self.images[0].nbytes - self.synthetic
        return self.part(self.spread(max(1, room)))

    def spread(self, most: int | None) -> NDArray[np.int64]:
        """Return the places of at most so many real images and of all made-up ones.

        They are evenly spread, for examples are sorted by class.

        Args:
            most: Real images; None for all.
        """
        real = len(self.labels)
        count = real if most is None else min(most, real)
        kept = np.unique(np.linspace(0, real - 1, count).astype(np.int64))
        return np.concatenate([kept, np.arange(real, len(self.images))])

    def part(self, places: NDArray[np.int64]) -> "Reference":
        """Return the images at some places, of which the made-up ones are last."""
        labels = self.labels[places[places < len(self.labels)]]
        return Reference(
            self.images[places], self.answers[places], labels, self.synthetic
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

    def hand_over(self, folder: Path) -> None:
        """Write what another process reads with `taken_over`, without compression."""
        for name in _ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self, name))


def taken_over(folder: Path) -> Reference:
    """Return what `Reference.hand_over` wrote; pages are read when they are used."""
    images, answers, labels = (
        np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        for name in _ARRAYS
    )
    return Reference(images, answers, labels, len(images) - len(labels))


def make_reference(
    answer: Callable[[Pixels], Answers],
    card: Card,
    source: Source | None,
) -> Reference:
    """Ask a model about the judging split of a source, and about made-up images.

    Args:
        answer: The model (see `source_answers`), from uint8 `(n, eval_size,
            eval_size, 3)` to float32 probabilities `(n, classes)`, or to the
            features that files shall give.
        card: Of the model: labels, and how pictures become images.
        source: Labelled pictures; None compares made-up images only.

    Raises:
        DataError: The source has other classes, or an unreadable image.
    """
    size = card.preprocessing.eval_size
    images, labels = np.zeros((0, size, size, 3), np.uint8), np.zeros(0, np.int64)
    if source is not None:
        check_classes(source, card.labels, "the model")
        examples = source.examples()
        labels = examples.targets
        images = np.concatenate(
            list(prepared_batches(examples, card.preprocessing, 64))
        )
    synthetic = synthetic_images(size)
    images = np.concatenate([images, synthetic])
    return Reference(images, answer(images), labels, len(synthetic))


def read_reference(folder: Path, card: Card, kind: Kind = "probabilities") -> Reference:
    """Read the images and answers kept beside an export.

    Args:
        folder: The export.
        card: Of the model: what images and answers must fit.
        kind: What the answers are.

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
    classes = card.architecture.classes if kind == "probabilities" else None
    _check_fit(reference, card.preprocessing.eval_size, classes, path)
    return reference


def _check_fit(
    reference: Reference, size: int, classes: int | None, path: Path
) -> None:
    images, answers, labels = reference.images, reference.answers, reference.labels
    real = len(images) - reference.synthetic if images.ndim else -1
    fits = (
        images.dtype == np.uint8
        and images.shape[1:] == (size, size, 3)
        and answers.dtype == np.float32
        and answers.ndim == 2
        and answers.shape == (len(images), classes or answers.shape[1])
        and np.isfinite(answers).all()
        and labels.dtype == np.int64
        and labels.shape == (real,)
        and 0 <= real <= len(images) > 0
    )
    if not fits:
        raise ExportError(
            f"{path} must hold uint8 images of {size}x{size}, float32 answers for "
            f"{classes or 'any number of'} classes and a label for each real image. "
            f"Received: images {images.dtype} {images.shape}, answers {answers.dtype} "
            f"{answers.shape}, labels {labels.dtype} {labels.shape}, "
            f"{reference.synthetic} made up."
        )
