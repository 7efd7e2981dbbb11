"""Outputs of a model in memory, and what is measured with them."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from reszoo.data.examples import Examples
from reszoo.preprocessing import Pixels, Preprocessing
from reszoo.report.statistics import (
    ClassRow,
    Counts,
    Probabilities,
    class_rows,
    confusion_matrix,
    macro_f1,
    mean_recall,
)

if TYPE_CHECKING:
    import keras

InferenceFunction = Callable[[Any], dict[str, Any]]
# The least probability that the loss uses, so that it stays finite.
_FLOOR = 1e-12
SCALARS = ("top1", "top5", "loss", "balanced_accuracy", "macro_f1")
"""Fields of `Metrics` that cards and histories keep."""


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """What was measured, and on what.

    Attributes:
        top1: Share of images whose most probable class is right, in 0..1.
        top5: Share whose class is among the five most probable.
        loss: Mean cross-entropy, in nats.
        balanced_accuracy: Mean recall of the classes that have images, in 0..1.
        macro_f1: Mean F1 of the classes that have images or predictions, in 0..1.
        images: Number of images.
        data: Data set and split.
        labels: In the order of the outputs; empty where they are unknown.
        confusion: Images by true and predicted class, int64 `(classes, classes)`.
        probabilities: float32 `(n, classes)`, in the order of `files`.
        files: Path of each image, or its name in messages where it has none.
    """

    top1: float
    top5: float
    loss: float
    balanced_accuracy: float
    macro_f1: float
    images: int
    data: str
    labels: tuple[str, ...] = field(default=(), repr=False)
    confusion: Counts | None = field(default=None, repr=False, compare=False)
    probabilities: Probabilities | None = field(default=None, repr=False, compare=False)
    files: tuple[str, ...] = field(default=(), repr=False)

    @property
    def classes(self) -> list[ClassRow]:
        """Images, precision, recall and F1 of each class, lowest recall first."""
        return [] if self.confusion is None else class_rows(self.confusion)

    def label(self, index: int) -> str:
        """Return the label of a class, or its number where labels are unknown."""
        return self.labels[index] if self.labels else str(index)

    def to_json(self) -> dict[str, Any]:
        """Return all but the probabilities and files, as plain JSON values."""
        names = (*SCALARS, "images", "data")
        return {name: getattr(self, name) for name in names} | {
            "classes": [
                {"label": self.label(row.index), **asdict(row)} for row in self.classes
            ],
            "confusion": [] if self.confusion is None else self.confusion.tolist(),
        }


def score(
    probabilities: NDArray[np.float32],
    targets: NDArray[np.int64],
    data: str,
    labels: tuple[str, ...] = (),
    files: tuple[str, ...] = (),
) -> Metrics:
    """Compare probabilities `(n, classes)` with targets `(n,)`; see `Metrics`."""
    of_truth = probabilities[np.arange(len(targets)), targets]
    # As in `Predictor.top`, the lower index wins a tie, which int8 files often have.
    # NaN counts as wrong.
    order = np.argsort(-probabilities, axis=1, kind="stable")
    finite = np.isfinite(of_truth)[:, None]
    hits = (order == targets[:, None]) & finite
    classes = probabilities.shape[1]
    wrong = np.eye(classes)[(targets + 1) % classes]
    confusion = confusion_matrix(targets, np.where(finite, probabilities, wrong))
    rows = class_rows(confusion)
    return Metrics(
        top1=float(hits[:, 0].mean()),
        top5=float(hits[:, :5].any(axis=1).mean()),
        loss=float(np.mean(-np.log(np.maximum(of_truth, _FLOOR)))),
        balanced_accuracy=mean_recall(rows),
        macro_f1=macro_f1(rows),
        images=len(targets),
        data=data,
        labels=labels,
        confusion=confusion,
        probabilities=probabilities,
        files=files,
    )


def prepared_batches(
    examples: Examples, preprocessing: Preprocessing, batch_size: int
) -> Iterator[Pixels]:
    """Yield uint8 `(batch, *input_shape)`, prepared by Pillow in threads."""
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(examples), batch_size):
            indices = range(start, min(start + batch_size, len(examples)))
            images = pool.map(lambda i: examples.prepared(i, preprocessing), indices)
            yield np.stack(list(images))


def inference_function(
    model: "keras.Model", preprocessing: Preprocessing
) -> InferenceFunction:
    """Return a function from pixels to a classifier's outputs.

    Normalisation is inside; batch normalisation uses the moving statistics and changes
    none of them. From uint8 `(batch, height, width, channels)` to float32 "logits" and
    "probabilities" of shape `(batch, classes)`.
    """
    import tensorflow as tf

    from reszoo.resnet import logits_model

    logits_of = logits_model(model)

    def run(image: tf.Tensor) -> dict[str, tf.Tensor]:
        pixels = preprocessing.normalise(tf.cast(image, tf.float32))
        logits = logits_of(pixels, training=False)
        return {"logits": logits, "probabilities": tf.nn.softmax(logits)}

    pixels = tf.TensorSpec(logits_of.input_shape, tf.uint8)
    traced: InferenceFunction = tf.function(run, input_signature=[pixels])
    return traced


def probabilities(
    model: "keras.Model",
    preprocessing: Preprocessing,
    images: Pixels,
    batch_size: int = 64,
) -> NDArray[np.float32]:
    """Return float32 `(n, classes)` for uint8 `(n, height, width, 3)`."""
    run = inference_function(model, preprocessing)
    parts = [
        run(images[start : start + batch_size])["probabilities"].numpy()
        for start in range(0, len(images), batch_size)
    ]
    return np.concatenate(parts)
