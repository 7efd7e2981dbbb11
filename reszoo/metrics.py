"""Outputs of a model in memory, and their top-1, top-5 and loss."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from reszoo.data.examples import Examples
from reszoo.preprocessing import Pixels, Preprocessing

if TYPE_CHECKING:
    import keras

InferenceFunction = Callable[[Any], dict[str, Any]]
# The least probability that the loss uses, so that it stays finite.
_FLOOR = 1e-12


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """What was measured, and on what.

    Attributes:
        top1: Share of images whose most probable class is right, in 0..1.
        top5: Share whose class is among the five most probable.
        loss: Mean cross-entropy, in nats.
        images: Number of images.
        data: Data set and split.
    """

    top1: float
    top5: float
    loss: float
    images: int
    data: str

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return asdict(self)


def score(
    probabilities: NDArray[np.float32], targets: NDArray[np.int64], data: str
) -> Metrics:
    """Compare probabilities `(n, classes)` with targets `(n,)`."""
    of_truth = probabilities[np.arange(len(targets)), targets]
    # As in `Predictor.top`, the lower index wins a tie, which int8 files often have.
    # NaN counts as wrong.
    order = np.argsort(-probabilities, axis=1, kind="stable")
    hits = (order == targets[:, None]) & np.isfinite(of_truth)[:, None]
    return Metrics(
        top1=float(hits[:, 0].mean()),
        top5=float(hits[:, :5].any(axis=1).mean()),
        loss=float(np.mean(-np.log(np.maximum(of_truth, _FLOOR)))),
        images=len(targets),
        data=data,
    )


def prepared_batches(
    examples: Examples, preprocessing: Preprocessing, batch_size: int
) -> Iterator[Pixels]:
    """Yield uint8 `(batch, eval_size, eval_size, 3)`, prepared by Pillow in threads."""
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(examples), batch_size):
            indices = range(start, min(start + batch_size, len(examples)))
            images = pool.map(lambda i: examples.prepared(i, preprocessing), indices)
            yield np.stack(list(images))


def inference_function(
    model: "keras.Model", preprocessing: Preprocessing
) -> InferenceFunction:
    """Return a function from pixels to a model's outputs.

    Normalisation is inside; batch normalisation uses the moving statistics and
    changes none of them.

    Args:
        model: A model from reszoo, with a classifier.
        preprocessing: How pixels are normalised.

    Returns:
        A function from uint8 `(batch, height, width, 3)` to float32 "logits" and
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
