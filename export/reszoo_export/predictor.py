"""Predictor: the same answers from any model file."""

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
from reszoo_export.runtimes import Answers, Kind, open_runtime, run_in_batches

if TYPE_CHECKING:
    import keras


Picture = str | os.PathLike[str] | Image.Image | Pixels


def each_picture(images: Picture | Sequence[Picture]) -> list[Picture]:
    """Return the images that were handed over, one by one."""
    if isinstance(images, np.ndarray):
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, str | os.PathLike | Image.Image):
        return [images]
    return list(images)


def upright(picture: Picture) -> Image.Image | Pixels:
    """Return one image with a camera's rotation (EXIF) applied.

    Raises:
        UsageError: An array is not uint8 RGB in 0..255 of shape (height, width, 3),
            or a PIL image has 32 bits a channel.
        DataError: A path is no readable image.
    """
    if isinstance(picture, str | os.PathLike):
        return open_image(Path(picture))
    if isinstance(picture, Image.Image):
        if picture.mode == "F":
            raise UsageError(
                "A PIL image must say what is white. Received: mode 'F', 32 bits a "
                "pixel; scale it to 0..255 and convert it to 'L' or 'RGB'."
            )
        return ImageOps.exif_transpose(picture)
    array = np.asarray(picture)
    rgb = array.dtype == np.uint8 and array.ndim == 3 and array.shape[-1] == 3
    if not rgb or not array.size:
        raise _refused(array)
    return array


def _refused(array: NDArray[Any]) -> UsageError:
    span = f" in {array.min():g}..{array.max():g}" if _has_numbers(array) else ""
    return UsageError(
        "An image array must be uint8 RGB in 0..255 of shape (height, width, 3). "
        f"Received: {array.dtype} {array.shape}{span}; "
        f"{_shape_remedy(array) or _range_remedy(array)}."
    )


def _has_numbers(array: NDArray[Any]) -> bool:
    return bool(array.size) and array.dtype.kind in "iuf"


def _shape_remedy(array: NDArray[Any]) -> str:
    shape = array.shape
    if 0 in shape:
        return "it has no pixels"
    if array.ndim == 2 or (array.ndim == 3 and shape[-1] == 1):
        return (
            "a grey picture needs its level three times: "
            "PIL.Image.fromarray(array.squeeze()).convert('RGB')"
        )
    if array.ndim == 3 and shape[0] == 3 and shape[-1] != 3:
        return "channels come last: array.transpose(1, 2, 0)"
    if array.ndim == 3 and shape[-1] == 4:
        return "drop the transparency: array[..., :3]"
    return "" if array.ndim == 3 and shape[-1] == 3 else "this is no picture"


def _range_remedy(array: NDArray[Any]) -> str:
    """Tell what numbers of another dtype probably are, and how to get bytes."""
    if not _has_numbers(array) or not np.isfinite(array).all():
        return "normalisation happens inside, from whole numbers"
    low, high = array.min(), array.max()
    if low < 0:
        return (
            "it seems to be normalised already; the file normalises inside, so pass "
            "the picture as it was before"
        )
    if high <= 1:
        return (
            "it seems to be scaled to 0..1; the file scales inside, so pass "
            "(255 * array).round().astype(np.uint8)"
        )
    if high <= 255:
        return "normalisation happens inside: pass array.round().astype(np.uint8)"
    return "beyond 255 nothing says what is white: scale it to 0..255 first"


# Kind of answers -> what to do where they are wanted of a file that gives others.
_INSTEAD = {
    "probabilities": "Use predict, or export the checkpoint again with "
    "outputs='features'.",
    "features": "Use features, or open the checkpoint or a file that was exported "
    "without outputs='features'.",
}


class Predictor:
    """Opens a checkpoint, a SavedModel, a `.tflite` or a `.onnx` and answers.

    Images are resized and cropped as the card inside the file says. A `.tflite` or
    `.onnx` file opens without TensorFlow.

    Args:
        path: The file or folder; a model from reszoo works too.
        threads: Threads of the runtime; one for each core if None.

    Attributes:
        card: The card inside the file.
        labels: Class names in the order of the answers; numbers where the model
            was never told names, nothing where the file gives features.
        answers: What the file gives, "probabilities" or "features".

    Raises:
        CheckpointError: There is no such file, it is damaged, or has no card.
        UsageError: The file's ending is unknown, it is a whole export, or TensorFlow
            can no longer change its number of threads.

    Example:
        >>> reszoo.Predictor("model.tflite").top("cat.jpg", k=2)
        [('cat', 0.93), ('dog', 0.06)]
    """

    card: Card
    labels: tuple[str, ...]
    answers: Kind

    def __init__(
        self,
        path: "str | os.PathLike[str] | keras.Model",
        threads: int | None = None,
    ) -> None:
        self._runtime = open_runtime(path, threads)
        self.card = self._runtime.card
        self.card.check_rgb()
        self.answers = self._runtime.answers
        named = self.answers == "probabilities"
        classes = self.card.architecture.classes if named else 0
        self.labels = tuple(self.card.label(index) for index in range(classes or 0))

    def predict(self, images: Picture | Sequence[Picture]) -> Answers:
        """Answer for one image or several.

        Args:
            images: A uint8 RGB array `(height, width, 3)` in 0..255 or a batch of
                them, a path, a PIL image, or a list of any of these.

        Returns:
            Probabilities, float32 `(n, classes)`.

        Raises:
            UsageError: An array is not uint8 RGB, or the file gives features.
            DataError: A path is no readable image.
        """
        self._check_answers("probabilities")
        return run_in_batches(self._runtime, self._prepared(images))

    def features(self, images: Picture | Sequence[Picture]) -> Answers:
        """Return what the classifier would see, of a file exported to give that.

        Args:
            images: As for `predict`.

        Returns:
            Features, float32 `(n, width)`.

        Raises:
            UsageError: An array is not uint8 RGB, or the file gives probabilities.
            DataError: A path is no readable image.
        """
        self._check_answers("features")
        return run_in_batches(self._runtime, self._prepared(images))

    def predict_prepared(self, images: Pixels) -> Answers:
        """Answer for uint8 `(n, eval_size, eval_size, 3)` that is resized already.

        Raises:
            UsageError: They are of another dtype or shape, or the file gives
                features.
        """
        self._check_answers("probabilities")
        size = self.card.preprocessing.eval_size
        if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3):
            raise UsageError(
                f"Prepared images must be uint8 of shape (n, {size}, {size}, 3). "
                f"Received: {images.dtype} {images.shape}; predict takes any size."
            )
        return run_in_batches(self._runtime, images)

    def top(self, image: Picture, k: int = defaults.TOP) -> list[tuple[str, float]]:
        """Return the `k` most probable labels of one image, best first.

        Args:
            image: As for `predict`, but a single one.
            k: How many; all classes where there are fewer.

        Returns:
            Pairs of label and probability.
        """
        if k < 1:
            raise UsageError(f"k must be at least 1. Received: k={k}.")
        answers = self.predict(image)
        if len(answers) != 1:
            raise UsageError(f"top takes one image. Received: {len(answers)}.")
        best = np.argsort(-answers[0], kind="stable")[:k]
        return [(self.labels[index], float(answers[0][index])) for index in best]

    def _check_answers(self, wanted: Kind) -> None:
        if self.answers != wanted:
            raise UsageError(
                f"This file gives {self.answers}. Asked for: {wanted}. "
                f"{_INSTEAD[self.answers]}"
            )

    def _prepared(self, images: Picture | Sequence[Picture]) -> Pixels:
        record = self.card.preprocessing
        size = record.eval_size
        pictures = [record.prepare(upright(each)) for each in each_picture(images)]
        return np.array(pictures, np.uint8).reshape(-1, size, size, 3)
