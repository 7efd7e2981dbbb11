"""Outputs of a model in memory, and what is measured with them: statistics."""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from reszoo.cards import Card
from reszoo.data.examples import Examples
from reszoo.preprocessing import Pixels, Preprocessing

if TYPE_CHECKING:
    import keras

InferenceFunction = Callable[[Any], dict[str, Any]]
Targets = NDArray[np.int64]
Probabilities = NDArray[np.float32]
Counts = NDArray[np.int64]
# The least probability that the loss uses, so that it stays finite.
_FLOOR = 1e-12
SCALARS = ("top1", "top5", "loss", "balanced_accuracy", "macro_f1")
"""Fields of `Metrics` that cards and histories keep."""


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """The results of one class; shares are in 0..1, None where undefined."""

    index: int
    images: int
    precision: float | None  # share of the images given this class that belong to it
    recall: float | None  # share of its images given this class
    f1: float | None  # harmonic mean of the two
    confused_with: int | None  # the wrong class that its images got most often
    confused: int  # how many of them did


@dataclass(frozen=True)
class Bin:
    """Images whose confidence lies in `(low, high]`; shares are in 0..1."""

    low: float
    high: float
    images: int  # number; the next two are 0 where there are none
    confidence: float  # mean probability of the predicted class
    accuracy: float  # share classified correctly


def predictions(probabilities: Probabilities) -> Targets:
    """Return the most probable class of each image; the lower index wins a tie."""
    best: Targets = np.argmax(probabilities, axis=1).astype(np.int64)
    return best


def confusion_matrix(targets: Targets, probabilities: Probabilities) -> Counts:
    """Count images by true and predicted class, int64 `(classes, classes)`."""
    classes = probabilities.shape[1]
    pairs = targets * classes + predictions(probabilities)
    counts: Counts = np.bincount(pairs, minlength=classes**2)
    return counts.reshape(classes, classes)


def class_rows(confusion: Counts) -> list[ClassRow]:
    """Return each class, lowest recall first, those without images last."""
    hits, wrong = np.diag(confusion), confusion - np.diag(np.diag(confusion))
    columns = (hits, confusion.sum(1), confusion.sum(0), wrong.argmax(1), wrong.max(1))
    rows = [
        ClassRow(
            index=index, images=images,
            precision=right / predicted if predicted else None,
            recall=right / images if images else None,
            f1=2 * right / (predicted + images) if predicted + images else None,
            confused_with=worst if confused else None, confused=confused,
        )
        for index, (right, images, predicted, worst, confused) in enumerate(
            np.stack(columns, 1).tolist()
        )
    ]  # fmt: skip
    return sorted(rows, key=lambda row: math.inf if row.recall is None else row.recall)


def mean_recall(rows: Sequence[ClassRow]) -> float:
    """Return the mean recall of the classes with images: the balanced accuracy."""
    return float(np.mean([row.recall for row in rows if row.recall is not None]))


def macro_f1(rows: Sequence[ClassRow]) -> float:
    """Return the mean F1 of the classes that have images or predictions."""
    return float(np.mean([row.f1 for row in rows if row.f1 is not None]))


def frequent_confusions(confusion: Counts, most: int) -> list[tuple[int, int, int]]:
    """Return (true class, predicted class, images) of the most frequent mistakes."""
    wrong = confusion - np.diag(np.diag(confusion))
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
    return [(int(t), int(p), int(wrong[t, p])) for t, p in pairs if wrong[t, p]]


def worst_mistakes(
    targets: Targets, probabilities: Probabilities, most: int
) -> list[int]:
    """Return the indices of the misclassified images, most confident first."""
    predicted = predictions(probabilities)
    wrong = np.flatnonzero(predicted != targets)
    confidence = probabilities[wrong, predicted[wrong]]
    return [int(i) for i in wrong[np.argsort(-confidence, kind="stable")][:most]]


def calibration_bins(
    targets: Targets, probabilities: Probabilities, bins: int = 15
) -> list[Bin]:
    """Group the images by confidence into bins of equal width.

    Source: Guo et al. 2017, arXiv:1706.04599, section 2, with their 15 bins.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = predictions(probabilities) == targets
    edges = np.linspace(0, 1, bins + 1)
    # Softmax may round to just above 1, which belongs to the last bin.
    where = np.searchsorted(edges[1:-1], confidence, side="left")
    counts = np.bincount(where, minlength=bins)
    filled = np.maximum(counts, 1)
    mean = np.bincount(where, confidence, bins) / filled
    share = np.bincount(where, right, bins) / filled
    columns = (each.tolist() for each in (edges[:-1], edges[1:], counts, mean, share))
    return [Bin(*row) for row in zip(*columns, strict=True)]


def calibration_error(bins: Sequence[Bin]) -> float:
    """Return the expected calibration error, in 0..1 (equation 3 of Guo et al.)."""
    gaps = sum(group.images * abs(group.accuracy - group.confidence) for group in bins)
    return gaps / sum(group.images for group in bins)


def softmax(logits: NDArray[Any]) -> Probabilities:
    """Return probabilities `(n, classes)`, computed in float64 without overflow."""
    exact = logits.astype(np.float64)
    odds = np.exp(exact - exact.max(axis=-1, keepdims=True))
    shares: Probabilities = (odds / odds.sum(axis=-1, keepdims=True)).astype(np.float32)
    return shares


def tempered(probabilities: Probabilities, temperature: float) -> Probabilities:
    """Return the probabilities of logits that are divided by a temperature as well."""
    positive = np.maximum(probabilities.astype(np.float64), np.finfo(np.float64).tiny)
    return softmax(np.log(positive) / temperature)


def share_interval(hits: int, images: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a share counted on few images.

    Source: Wilson 1927, "Probable inference"; it stays inside 0..1 and is of use
    where every image or none is a hit.
    """
    z = 1.959964  # the normal distribution's 97.5 % point
    share, spread = hits / images, z * z / images
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return middle - half, middle + half


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
        top1=float(hits[:, 0].mean()), top5=float(hits[:, :5].any(axis=1).mean()),
        loss=float(np.mean(-np.log(np.maximum(of_truth, _FLOOR)))),
        balanced_accuracy=mean_recall(rows), macro_f1=macro_f1(rows),
        images=len(targets), data=data, labels=labels,
        confusion=confusion, probabilities=probabilities, files=files,
    )  # fmt: skip


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
    model: "keras.Model", preprocessing: Preprocessing, temperature: float = 1.0
) -> InferenceFunction:
    """Return a function from pixels to a classifier's outputs.

    Normalisation is inside; batch normalisation uses the moving statistics and changes
    none of them. From uint8 `(batch, height, width, channels)` to float32 "logits" and
    "probabilities" of shape `(batch, classes)`, of logits divided by a temperature (see
    `Confidence`).
    """
    import tensorflow as tf

    from reszoo.resnet import logits_model

    def answers(outputs: tf.Tensor) -> dict[str, tf.Tensor]:
        logits = outputs / temperature
        return {"logits": logits, "probabilities": tf.nn.softmax(logits)}

    return _traced(logits_model(model), preprocessing, answers)


def pooled_function(model: Any, preprocessing: Preprocessing) -> InferenceFunction:
    """Return a function from pixels to "pooled", a classifier's float32 features."""
    import tensorflow as tf

    from reszoo.resnet import backbone_and_head

    backbone, _ = backbone_and_head(model)
    return _traced(backbone, preprocessing, lambda x: {"pooled": tf.cast(x, "float")})


def _traced(
    model: "keras.Model", preprocessing: Preprocessing, answers: Callable[[Any], Any]
) -> InferenceFunction:
    """Return a function from pixels to what `answers` makes of a model's outputs."""
    import tensorflow as tf

    # From the second input, a key, nothing is drawn in inference.
    key = [tf.zeros(2, tf.int64)] * (len(model.inputs) - 1)

    def run(image: tf.Tensor) -> dict[str, tf.Tensor]:
        pixels = preprocessing.normalise(tf.cast(image, tf.float32))
        inputs = [pixels, *key] if key else pixels
        found: dict[str, tf.Tensor] = answers(model(inputs, training=False))
        return found

    pixels = tf.TensorSpec(model.inputs[0].shape, tf.uint8)
    traced: InferenceFunction = tf.function(run, [pixels], autograph=False)
    return traced


def with_feature_map(model: "keras.Model") -> "keras.Model":
    """Return a classifier that gives its logits and the feature map that it pools."""
    import keras

    features, logits = model.get_layer("avgpool").input, model.get_layer("fc").output
    # Named, for converters put its name into files.
    return keras.Model(model.inputs[0], [logits, features], name=model.name)


def class_activation_maps(model: "keras.Model", features: Any) -> Any:
    """Return the classifier's kernel as a 1x1 convolution of a feature map.

    `(batch, height, width, classes)`; the mean of a class plus its bias is its logit
    (Zhou et al. 2016, arXiv:1512.04150).
    """
    import tensorflow as tf

    kernel = model.get_layer("fc").kernel
    weights = tf.reshape(kernel.value, (1, 1, *kernel.shape))
    return tf.nn.conv2d(features, weights, 1, "VALID", name="cam")


def explaining_function(model: "keras.Model", card: Card) -> InferenceFunction:
    """Return a function from pixels to a classifier's "features" and "cam".

    As `inference_function`, with the card's temperature: float32 `(batch, width)` and
    `(batch, height, width, classes)`.
    """
    import tensorflow as tf

    def answers(outputs: Any) -> dict[str, tf.Tensor]:
        features = tf.cast(outputs[1], tf.float32)
        maps = class_activation_maps(model, features) / card.temperature
        return {"features": tf.reduce_mean(features, (1, 2)), "cam": maps}

    return _traced(with_feature_map(model), card.preprocessing, answers)


def probabilities(
    model: "keras.Model",
    preprocessing: Preprocessing,
    images: Pixels,
    batch_size: int = 64,
    temperature: float = 1.0,
) -> NDArray[np.float32]:
    """Return float32 `(n, classes)` for uint8 `(n, height, width, 3)`."""
    run = inference_function(model, preprocessing, temperature)
    parts = [
        run(images[start : start + batch_size])["probabilities"].numpy()
        for start in range(0, len(images), batch_size)
    ]
    return np.concatenate(parts)
