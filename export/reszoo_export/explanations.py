"""`explain` and `features`: where a model looked, and what its classifier sees."""

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reszoo import defaults
from reszoo.data.sources import Data, match_classes, open_source, recorded_share
from reszoo.errors import UnknownNameError
from reszoo.metrics import softmax
from reszoo.report.heatmap import overlay
from reszoo_export.evaluation import predict_examples
from reszoo_export.formats import CAM
from reszoo_export.predictor import ImageLike, Predictor

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """Where a model found evidence for a class.

    Attributes:
        label: Of the class, by default the predicted one.
        probability: Of that class, in 0..1.
        map: Class activation map, float32 `(rows, columns)`, in logits: its mean plus
            the classifier's bias is the class's (calibrated) logit.
        overlay: What the model saw, coloured where the map is positive.
    """

    label: str
    probability: float
    map: NDArray[np.float32]
    overlay: Image.Image = field(repr=False)


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """The inputs of a classifier for images.

    Attributes:
        values: float32 `(n, width)`.
        targets: int64 `(n,)`, indices into the labels.
        labels: Of the data's classes.
        files: Path of each image, or its name in messages where it has none.
    """

    values: NDArray[np.float32]
    targets: NDArray[np.int64]
    labels: tuple[str, ...]
    files: tuple[str, ...]


def explain(
    model: "keras.Model | str | os.PathLike[str]",
    image: ImageLike,
    label: str | None = None,
    *,
    threads: int | None = None,
    trust_saved_model: bool = False,
    isolated: bool = defaults.ISOLATED,
) -> Explanation:
    """Return the class activation map of an image (Zhou et al. 2016).

    The classifier's kernel is applied at every place of the last feature map, which is
    exact: the logit is the mean of that plus the bias. The map has one value for every
    32 x 32 pixels of most models (8 x 8 of those for small images), each of which sees
    a much larger part of the image.

    Args:
        model: A model from reszoo, a checkpoint, or a file that was exported with
            outputs="cam".
        image: As for `reszoo.Predictor.predict`, a single one.
        label: The class; None is the predicted one.
        threads: See `reszoo.Predictor`.
        trust_saved_model: See `reszoo.Predictor`.
        isolated: See `reszoo.Predictor`; for files only.

    Raises:
        UsageError: The file gives no maps, or the image is none.
        UnknownNameError: The model has no such label.
        DataError: The image is unreadable.
    """
    options = {"trust_saved_model": trust_saved_model, "isolated": isolated}
    predictor = Predictor(model, threads, **options)
    pixels = predictor.prepare("the image", image)[None]
    maps, logits = (
        predictor.predict_prepared(pixels, name)[0] for name in (CAM, "logits")
    )
    labels, index = predictor.labels, int(logits.argmax())
    if label is not None:
        if label not in labels:
            raise UnknownNameError("label", label, labels)
        index = labels.index(label)
    return Explanation(
        label=labels[index],
        probability=float(softmax(logits[None])[0, index]),
        map=maps[..., index],
        overlay=overlay(pixels[0], maps[..., index]),
    )


def features(
    model: "keras.Model | str | os.PathLike[str]",
    data: Data,
    *,
    split: str | None = None,
    bad_images: str = defaults.BAD_IMAGES,
    batch_size: int = 64,
    threads: int | None = None,
    trust_saved_model: bool = False,
    isolated: bool = defaults.ISOLATED,
) -> Features:
    """Compute the inputs of a model's classifier for labelled images, in batches.

    Args:
        model: A model from reszoo, a checkpoint, or a file that was exported with
            outputs="features". Its classes need not be those of the data.
        data: What `reszoo.train` takes.
        split: "train", "validation", "test"; None is all images.
        bad_images: See `reszoo.evaluate`.
        batch_size: Images at a time.
        threads: See `reszoo.Predictor`.
        trust_saved_model: See `reszoo.Predictor`.
        isolated: See `reszoo.Predictor`; for files only.

    Raises:
        DataError: An image is unreadable.
        UsageError: The file gives no features.
    """
    options = {"trust_saved_model": trust_saved_model, "isolated": isolated}
    predictor = Predictor(model, threads, **options)
    share = recorded_share(predictor.card.provenance)
    source = open_source(data, bad_images=bad_images, validation_share=share)
    source = match_classes(source, None, None)
    whole = ["all"] if "all" in source.splits else [*source.splits]
    parts = [source.examples(name) for name in ([split] if split else whole)]
    values = [
        predict_examples(predictor, part, batch_size, "features", "features")
        for part in parts
    ]
    return Features(
        values=np.concatenate(values),
        targets=np.concatenate([part.targets for part in parts]),
        labels=source.labels,
        files=tuple(part.name(i) for part in parts for i in range(len(part))),
    )
