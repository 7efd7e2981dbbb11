"""`reszoo.Predictor`: the same predictions from any model file."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from reszoo import defaults
from reszoo.cards import Card
from reszoo.data.image_files import open_image
from reszoo.errors import UsageError
from reszoo.preprocessing import Pixels
from reszoo_export.runtimes import (
    ModelOutput,
    OutputKind,
    open_runtime,
    run_in_batches,
)

if TYPE_CHECKING:
    import keras

# What Predictor takes as one image.
ImageLike = str | os.PathLike[str] | Image.Image | Pixels
# Kind of output -> what to do where another kind is needed.
_INSTEAD = {
    "probabilities": "Use predict, or export the checkpoint again with "
    "outputs='features'.",
    "features": "Use features, or open the checkpoint or a file that was exported "
    "without outputs='features'.",
}


class Predictor:
    """Runs a checkpoint, a SavedModel, a `.tflite` or a `.onnx` file on images.

    Images are resized and cropped with the preprocessing in the file's card. `.tflite`
    and `.onnx` files are opened without TensorFlow.

    Args:
        path: The file or folder; a model from reszoo works too.
        threads: Threads of the runtime; one for each core if None.

    Attributes:
        card: The card inside the file.
        labels: Names of the classes, in the order of the probabilities; their numbers
            where labels are unavailable, empty where the file gives features.
        output_kind: What the file gives, "probabilities" or "features".

    Raises:
        CheckpointError: There is no such file, it is damaged, or has no card.
        UsageError: The file's suffix is unknown, it is a whole export, or the number
            of TensorFlow's threads is already set.

    Example:
        >>> reszoo.Predictor("model.tflite").top("cat.jpg", k=2)
        [('cat', 0.93), ('dog', 0.06)]
    """

    card: Card
    labels: tuple[str, ...]
    output_kind: OutputKind

    def __init__(
        self,
        path: "str | os.PathLike[str] | keras.Model",
        threads: int | None = None,
    ) -> None:
        self._runtime = open_runtime(path, threads)
        self.card = self._runtime.card
        self.card.check_rgb()
        self.output_kind = self._runtime.interface.output_kind
        classes = self.card.architecture.classes or 0
        indices = range(classes if self.output_kind == "probabilities" else 0)
        self.labels = tuple(self.card.label(index) for index in indices)

    def predict(self, images: ImageLike | Sequence[ImageLike]) -> ModelOutput:
        """Classify one image or several.

        Args:
            images: A uint8 RGB array `(height, width, 3)` in 0..255 or a batch of
                them, a path, a PIL image, or a list of any of these.

        Returns:
            Probabilities, float32 `(n, classes)`.

        Raises:
            UsageError: An array is not uint8 RGB, or the file gives features.
            DataError: A path is not a readable image.
        """
        self._check_kind("probabilities")
        return run_in_batches(self._runtime, self._prepare(images))

    def features(self, images: ImageLike | Sequence[ImageLike]) -> ModelOutput:
        """Return the input of the classifier, from a file exported to give that.

        Args:
            images: As for `predict`.

        Returns:
            Features, float32 `(n, width)`.

        Raises:
            UsageError: An array is not uint8 RGB, or the file gives probabilities.
            DataError: A path is not a readable image.
        """
        self._check_kind("features")
        return run_in_batches(self._runtime, self._prepare(images))

    def predict_prepared(self, images: Pixels) -> ModelOutput:
        """Classify uint8 `(n, eval_size, eval_size, 3)`, already resized and cropped.

        Raises:
            UsageError: They are of another dtype or shape, or the file gives
                features.
        """
        self._check_kind("probabilities")
        size = self.card.preprocessing.eval_size
        if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3):
            raise UsageError(
                f"Prepared images must be uint8 of shape (n, {size}, {size}, 3). "
                f"Received: {images.dtype} {images.shape}; predict takes any size."
            )
        return run_in_batches(self._runtime, images)

    def top(self, image: ImageLike, k: int = defaults.TOP) -> list[tuple[str, float]]:
        """Return the `k` most probable labels of one image, best first.

        Args:
            image: As for `predict`, but a single one.
            k: Number of labels; all classes where there are fewer.

        Returns:
            Pairs of label and probability.
        """
        if k < 1:
            raise UsageError(f"k must be at least 1. Received: k={k}.")
        probabilities = self.predict(image)
        if len(probabilities) != 1:
            raise UsageError(f"top takes one image. Received: {len(probabilities)}.")
        best = np.argsort(-probabilities[0], kind="stable")[:k]
        return [(self.labels[index], float(probabilities[0][index])) for index in best]

    def _check_kind(self, needed: OutputKind) -> None:
        if self.output_kind != needed:
            raise UsageError(
                f"This file gives {self.output_kind}, not {needed}. "
                f"{_INSTEAD[self.output_kind]}"
            )

    def _prepare(self, images: ImageLike | Sequence[ImageLike]) -> Pixels:
        preprocessing = self.card.preprocessing
        size = preprocessing.eval_size
        prepared = [preprocessing.prepare(load_image(each)) for each in _each(images)]
        return np.array(prepared, np.uint8).reshape(-1, size, size, 3)


def _each(images: ImageLike | Sequence[ImageLike]) -> list[ImageLike]:
    if isinstance(images, np.ndarray):
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, str | os.PathLike | Image.Image):
        return [images]
    return list(images)


def load_image(image: ImageLike) -> Image.Image | Pixels:
    """Return one image, rotated as its EXIF orientation says.

    Raises:
        UsageError: An array is not uint8 RGB in 0..255 of shape (height, width, 3),
            or a PIL image has 32 bits per channel.
        DataError: A path is not a readable image.
    """
    if isinstance(image, str | os.PathLike):
        return open_image(Path(image))
    if isinstance(image, Image.Image):
        if image.mode == "F":
            raise UsageError(
                "A PIL image must have a known range. Received: mode 'F', 32 bits per "
                "pixel; scale it to 0..255 and convert it to 'L' or 'RGB'."
            )
        return ImageOps.exif_transpose(image)
    array = np.asarray(image)
    rgb = array.dtype == np.uint8 and array.ndim == 3 and array.shape[-1] == 3
    if not rgb or not array.size:
        raise _wrong_array(array)
    return array


def _wrong_array(array: NDArray[Any]) -> UsageError:
    numeric = bool(array.size) and array.dtype.kind in "iuf"
    span = f" in {array.min():g}..{array.max():g}" if numeric else ""
    remedy = _shape_remedy(array) or _range_remedy(array, numeric)
    return UsageError(
        "An image array must be uint8 RGB in 0..255 of shape (height, width, 3). "
        f"Received: {array.dtype} {array.shape}{span}; {remedy}."
    )


def _shape_remedy(array: NDArray[Any]) -> str:
    shape = array.shape
    if 0 in shape:
        return "it has no pixels"
    if array.ndim == 2 or (array.ndim == 3 and shape[-1] == 1):
        return (
            "convert grey images to RGB: "
            "PIL.Image.fromarray(array.squeeze()).convert('RGB')"
        )
    if array.ndim == 3 and shape[0] == 3 and shape[-1] != 3:
        return "channels must be last: array.transpose(1, 2, 0)"
    if array.ndim == 3 and shape[-1] == 4:
        return "drop the transparency: array[..., :3]"
    return "" if array.ndim == 3 and shape[-1] == 3 else "it is not an image"


def _range_remedy(array: NDArray[Any], numeric: bool) -> str:
    if not numeric or not np.isfinite(array).all():
        return "the model normalises integers itself"
    low, high = array.min(), array.max()
    if low < 0:
        return (
            "it seems to be normalised; the model normalises images itself, so pass it "
            "as it was before"
        )
    if high <= 1:
        return (
            "it seems to be scaled to 0..1; the model scales images itself, so pass "
            "(255 * array).round().astype(np.uint8)"
        )
    if high <= 255:
        return "the model normalises integers: pass array.round().astype(np.uint8)"
    return "values above 255 have no known range: scale it to 0..255 first"
