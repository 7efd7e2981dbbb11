"""Reference images, real and synthetic, with the model's own outputs."""

import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from reszoo.archives import read_arrays
from reszoo.cards import Card
from reszoo.errors import ExportError
from reszoo.files import atomic_file
from reszoo.preprocessing import Pixels, Size, as_sides, shown_size
from reszoo_export.manifest import REFERENCE_FILE
from reszoo_export.runtimes import ModelOutput, OutputKind

if TYPE_CHECKING:
    from reszoo.data.sources import Source

# Size of the images stored with an export, before compression: 111 of 224 pixels.
_MAX_STORED_BYTES = 16 * 2**20
# Names in the file.
_STORED = ("images", "answers", "labels", "synthetic")
# Outputs for them: 5,461 images of 32 pixels and 12,000 classes.
_MAX_OUTPUT_BYTES = 256 * 2**20
# Raised by NumPy and zipfile on damaged files.
_UNREADABLE = (
    OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile,
)  # fmt: skip


@dataclass(frozen=True)
class Reference:
    """Images and the model's outputs."""

    # uint8 `(n, height, width, channels)`, the last `synthetic` of them synthetic.
    images: Pixels
    # The model's probabilities `(n, classes)`, or its features `(n, width)` where those
    # are exported.
    outputs: ModelOutput
    targets: NDArray[np.int64]  # int64 `(n - synthetic,)`, classes of the real images
    synthetic: int  # number of synthetic images at the end
    # Of the classifier of files with class activation maps, `(classes,)`; else empty.
    bias: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))

    @property
    def compared(self) -> slice:
        """The images that statistics are computed over: real ones, if there are any."""
        return slice(0, len(self.targets) or None)

    def shortened(self) -> "Reference":
        """Return as many real images as are stored, and all synthetic ones."""
        room = _MAX_STORED_BYTES // self.images[0].nbytes - self.synthetic
        return self.select(self.evenly_spaced(max(1, room)))

    def evenly_spaced(self, count: int | None) -> NDArray[np.int64]:
        """Return the indices of `count` real images, or all, and of the synthetic ones.

        Examples are sorted by class, so evenly spaced ones are of all classes.
        """
        real = len(self.targets)
        count = real if count is None else min(count, real)
        chosen = np.unique(np.linspace(0, real - 1, count).astype(np.int64))
        return np.concatenate([chosen, np.arange(real, len(self.images))])

    def select(self, indices: NDArray[np.int64]) -> "Reference":
        """Return some images, the synthetic ones among them last."""
        targets = self.targets[indices[indices < len(self.targets)]]
        images, outputs = self.images[indices], self.outputs[indices]
        return replace(self, images=images, outputs=outputs, targets=targets)

    def write(self, folder: Path) -> None:
        """Write `reference.npz` for `read_reference`."""
        values = (self.images, self.outputs, self.targets, self.synthetic)
        content: dict[str, Any] = dict(zip(_STORED, values, strict=True))
        content |= {"bias": self.bias} if len(self.bias) else {}
        with atomic_file(folder / REFERENCE_FILE) as path, path.open("wb") as file:
            np.savez_compressed(file, **content)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the fields that are arrays; they tell the number of synthetic ones."""
        return {name: each for name, each in vars(self).items() if name != "synthetic"}


def make_reference(
    predict: Callable[[Pixels], ModelOutput],
    card: Card,
    source: "Source | None",
    split: str | None = None,
) -> Reference:
    """Run a model on images of a source, and on synthetic images.

    `predict` is the model (see `source_answers`); a source of None is for synthetic
    images only. A DataError if it has other classes than the card, or an unreadable
    image. Without a split, that which the model is judged on (`Source.judged`).
    """
    # They load TensorFlow, which verifying a TFLite or ONNX file does not need.
    from reszoo.data.sources import match_classes, unused_by_calibration
    from reszoo.metrics import prepared_batches

    shape = card.preprocessing.input_shape
    images, targets = np.zeros((0, *shape), np.uint8), np.zeros(0, np.int64)
    if source is not None:
        source = match_classes(source, card.labels, card.architecture.classes)
        examples = source.examples(source.judged(card.provenance, split)[0])
        if split != "test" and (unused := unused_by_calibration(source, card)):
            examples = unused[1]
        targets = examples.targets
        batches = prepared_batches(examples, card.preprocessing, 64)
        images = np.concatenate(list(batches))
    synthetic = synthetic_images(shape[:2], shape[2])
    images = np.concatenate([images, synthetic])
    return Reference(images, predict(images), targets, len(synthetic))


def read_reference(
    folder: Path, card: Card, kind: OutputKind = "probabilities", *, cam: bool = False
) -> Reference:
    """Read the images and outputs stored with an export, which must match its card.

    With `cam` also the classifier's bias. An ExportError if they are missing or
    damaged, or belong to another model.
    """
    path, shape = folder / REFERENCE_FILE, card.preprocessing.input_shape
    # `Reference.shortened` keeps no more.
    least = (len(synthetic_images(1)) + 1) * math.prod(shape)
    try:
        most = max(_MAX_STORED_BYTES, least) + _MAX_OUTPUT_BYTES
        names = (*_STORED, "bias") if cam else _STORED
        content = read_arrays(path, names, most)
        images, outputs, targets, synthetic = (content[name] for name in _STORED)
        reference = Reference(images, outputs, targets, int(synthetic))
        if cam:
            bias = content["bias"].astype(np.float32).reshape(card.architecture.classes)
            reference = replace(reference, bias=bias)
    except _UNREADABLE as error:
        raise ExportError(f"{path} cannot be read ({error}).") from error
    classes = card.architecture.classes if kind == "probabilities" else None
    real = len(images) - reference.synthetic if images.ndim else -1
    fits = (
        images.dtype == np.uint8
        and images.shape[1:] == shape
        and outputs.dtype == np.float32
        and outputs.ndim == 2
        and outputs.shape == (len(images), classes or outputs.shape[1])
        and np.isfinite(outputs).all()
        and targets.dtype == np.int64
        and targets.shape == (real,)
        and 0 <= real <= len(images) > 0
    )
    if not fits:
        raise ExportError(
            f"{path} must hold uint8 images of {shown_size(shape[:2])}, float32 "
            f"outputs for {classes or 'any number of'} classes and a target for each "
            f"real image. Received: images {images.dtype} {images.shape}, outputs "
            f"{outputs.dtype} {outputs.shape}, targets {targets.dtype} "
            f"{targets.shape}, {reference.synthetic} synthetic."
        )
    return reference


_COLOURS = np.diag([255, 255, 255])[:, None, None]
_COARSE = 4


def synthetic_images(size: Size, channels: int = 3) -> Pixels:
    """Make the images that every file is compared on.

    uint8 `(17, height, width, channels)`; with 1 channel, the red of the same images:
    black, grey and white; red, green and blue (which reveal another order of channels);
    checkerboards of one and of four pixels; ramps up and down along both axes (which
    reveal padding on the wrong side, and swapped axes); one with another direction in
    each channel; noise of all levels, and of black and white; one white pixel in the
    centre, and one in a corner.
    """
    sides = height, width = as_sides(size)
    rows, columns = np.mgrid[:height, :width]
    boards = [255 * ((rows // n + columns // n) % 2) for n in (1, _COARSE)]
    ramps = [
        axis * 255 // max(1, side - 1)
        for axis, side in zip((rows, columns), sides, strict=True)
    ]
    falling = [255 - ramp for ramp in ramps]
    turning = np.stack([*ramps, falling[0]], axis=-1)
    noise = np.random.default_rng(0).integers(0, 256, (*sides, 3))
    points = np.zeros((2, *sides, 3), np.int64)
    points[0, height // 2, width // 2] = points[1, 0, 0] = 255
    # Colours fill an image, and a plane has the same value in each channel.
    made = [0, 128, 255, *_COLOURS, *boards, *ramps, *falling]
    made += [turning, noise, 255 * (noise % 2), *points]
    full = [np.broadcast_to(np.atleast_3d(each), (*sides, 3)) for each in made]
    return np.stack(full)[..., :channels].astype(np.uint8)
