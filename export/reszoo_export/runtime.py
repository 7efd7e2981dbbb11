"""The Predictor: the same image in, the same answers out, whatever the file."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from reszoo.cards import Card
from reszoo.data.image_files import open_image
from reszoo.errors import UsageError
from reszoo.preprocessing import Pixels
from reszoo_export.runtimes import Answers, open_runtime, run_in_batches

if TYPE_CHECKING:
    import keras

Picture = str | os.PathLike[str] | Image.Image | Pixels


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
            was never told names.

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

    def __init__(
        self,
        path: "str | os.PathLike[str] | keras.Model",
        threads: int | None = None,
    ) -> None:
        self._runtime = open_runtime(path, threads)
        self.card = self._runtime.card
        self.card.check_rgb()
        classes = self.card.architecture.classes or 0
        self.labels = tuple(self.card.label(index) for index in range(classes))

    def predict(self, images: Picture | Sequence[Picture]) -> Answers:
        """Answer for one image or several.

        Args:
            images: A uint8 RGB array `(height, width, 3)` or a batch of them, a
                path, a PIL image, or a list of any of these.

        Returns:
            Probabilities, float32 `(n, classes)`.

        Raises:
            UsageError: An array is not uint8 RGB.
            DataError: A path is no readable image.
        """
        record = self.card.preprocessing
        pictures = [record.prepare(_upright(picture)) for picture in _several(images)]
        if not pictures:
            return np.zeros((0, len(self.labels)), np.float32)
        return self.predict_prepared(np.stack(pictures))

    def predict_prepared(self, images: Pixels) -> Answers:
        """Answer for uint8 `(n, eval_size, eval_size, 3)` that is resized already."""
        return run_in_batches(self._runtime, images)

    def top(self, image: Picture, k: int = 5) -> list[tuple[str, float]]:
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


def _several(images: Picture | Sequence[Picture]) -> list[Picture]:
    if isinstance(images, np.ndarray):
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, str | os.PathLike | Image.Image):
        return [images]
    return list(images)


def _upright(picture: Picture) -> Image.Image | Pixels:
    if isinstance(picture, str | os.PathLike):
        return open_image(Path(picture))
    if isinstance(picture, Image.Image):
        return ImageOps.exif_transpose(picture)
    array = np.asarray(picture)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3:
        low, high = (array.min(), array.max()) if array.size else (0, 0)
        raise UsageError(
            "An image array must be uint8 RGB in 0..255 of shape (height, width, 3). "
            f"Received: {array.dtype} {array.shape} in {low:g}..{high:g}; "
            "normalisation happens inside."
        )
    return array
