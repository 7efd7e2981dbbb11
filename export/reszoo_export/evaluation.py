"""`evaluate`, `explain` and `features`: what models answer to images, and why.

And `check_weights`, which measures published accuracies again, on ImageNet.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reszoo import defaults
from reszoo.console import Progress, say
from reszoo.data import sources
from reszoo.data.examples import Examples
from reszoo.environment import check_backend
from reszoo.errors import DataError, ReszooError, UnknownNameError, known
from reszoo.fields import coerce
from reszoo.files import StrPath
from reszoo.metrics import Metrics, prepared_batches, score, softmax
from reszoo.report.page import overlay
from reszoo.weights import published
from reszoo.weights.published import PublishedWeights
from reszoo_export.formats import CAM
from reszoo_export.predictor import ImageLike, Predictor
from reszoo_export.runtimes import ModelOutput

if TYPE_CHECKING:
    import keras


def evaluate(
    model: "keras.Model | StrPath", data: sources.Data, *,
    split: str | None = None, batch_size: int = 64, threads: int | None = None,
    bad_images: str = defaults.BAD_IMAGES, trust_saved_model: bool = False,
    isolated: bool = defaults.ISOLATED,
) -> Metrics:  # fmt: skip
    """Measure a model, a checkpoint or an exported file on labelled images.

    All of them go through `reszoo.Predictor`, so the same pixels reach each.

    Args:
        model: A model from reszoo, a `.safetensors` checkpoint, a SavedModel
            folder, a `.tflite` or a `.onnx` file.
        data: What `reszoo.train` takes: a folder of class folders, a `.csv` list,
            arrays, or a name such as "digits".
        split: "train", "validation", "test" or "all". By default the test split, else
            the validation split; of data without splits all images, or those that were
            held out if the model was trained on this data.
        batch_size: Images at a time.
        threads: Threads of the runtime; its own default if None.
        bad_images: "error" stops at the first unreadable image, "skip" leaves such
            images out, "recover" decodes truncated JPEGs as far as they go.
        trust_saved_model: See `reszoo.Predictor`.
        isolated: See `reszoo.Predictor`; for files only.

    Raises:
        DataError: An image is unreadable or the classes are not the model's.
        UsageError: The split or the file's kind is unknown.
    """
    predictor = Predictor(
        model, threads, trust_saved_model=trust_saved_model, isolated=isolated
    )
    card = predictor.card
    source = sources.open_for(card, data, bad_images)
    source = sources.match_classes(source, card.labels, card.architecture.classes)
    chosen, reason = source.judged(card.provenance, split)
    examples = source.examples(chosen)
    if not split and (unused := sources.unused_by_calibration(source, card)):
        chosen, examples, reason = unused
    source.announce(reason)
    answers = predict_examples(predictor, examples, batch_size, "evaluating")
    name = f"{source.name} ({chosen})"
    files = tuple(map(examples.name, range(len(examples))))
    return score(answers, examples.targets, name, source.labels, files)


def predict_examples(
    predictor: Predictor, examples: Examples, batch_size: int, title: str,
    output: str | None = None,
) -> ModelOutput:  # fmt: skip
    """Return probabilities `(n, classes)` of examples, or another output by its name.

    Progress is shown under the title.
    """
    preprocessing = predictor.card.preprocessing
    none = np.zeros((0, *preprocessing.input_shape), np.uint8)
    parts = [predictor.predict_prepared(none, output)]
    with Progress(title, len(examples)) as progress:
        for batch in prepared_batches(examples, preprocessing, batch_size):
            parts.append(predictor.predict_prepared(batch, output))
            progress.advance(len(batch))
    return np.concatenate(parts)


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
    model: "keras.Model | StrPath", image: ImageLike,
    label: str | None = None, *, threads: int | None = None,
    trust_saved_model: bool = False, isolated: bool = defaults.ISOLATED,
) -> Explanation:  # fmt: skip
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
        index = labels.index(known("label", label, labels))
    return Explanation(
        label=labels[index],
        probability=float(softmax(logits[None])[0, index]),
        map=maps[..., index],
        overlay=overlay(pixels[0], maps[..., index]),
    )


def features(
    model: "keras.Model | StrPath", data: sources.Data, *,
    split: str | None = None, bad_images: str = defaults.BAD_IMAGES,
    batch_size: int = 64, threads: int | None = None, trust_saved_model: bool = False,
    isolated: bool = defaults.ISOLATED,
) -> Features:  # fmt: skip
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
    source = sources.open_for(predictor.card, data, bad_images)
    source.announce()
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


# Points of a percentage: decoders and rounding change the top-1 of a few images.
TOLERANCE = 0.3
_WORDNET = re.compile(r"n\d{8}")


@dataclass(frozen=True, kw_only=True)
class CheckedWeights:
    """Published and measured accuracy of one set of weights, in percent."""

    model: str
    weights: str
    published_top1: float | None  # None where the publisher tells none
    published_top5: float | None
    top1: float | None = None  # None where `error` tells why it was not measured
    top5: float | None = None
    images: int = 0
    error: str | None = None

    @property
    def passed(self) -> bool:
        """Whether the accuracies are within 0.3 points of those published."""
        pairs = ((self.top1, self.published_top1), (self.top5, self.published_top5))
        return self.error is None and all(
            measured is None
            or expected is None
            or abs(measured - expected) <= TOLERANCE
            for measured, expected in pairs
        )


def check_weights(
    pattern: str = "*",
    *,
    images: StrPath,
    batch_size: int = 64,
    allow_noncommercial: bool = False,
) -> Iterator[CheckedWeights]:
    """Download published weights, and measure their accuracy on ImageNet.

    Args:
        pattern: Which weights, by "model" or "model/weights", with `*` and `?`:
            "resnet50", "resnet50/timm/a1_in1k", "*/torchvision/*".
        images: ImageNet's validation set, 1,000 folders that are named by WordNet
            number ("n01440764"), whose order is that of the targets.
        batch_size: Images at a time.
        allow_noncommercial: Consent to weights whose licence forbids commercial use;
            they are left out otherwise.

    Yields:
        A row for each set of weights, once it is measured.

    Raises:
        UnknownNameError: The pattern selects no published weights.
        DataError: The folder is not ImageNet's validation set.
    """
    pattern = coerce("pattern", pattern, (str,))
    rows = [
        row
        for row in published.PUBLISHED.values()
        if fnmatchcase(row.variant, pattern)
        or fnmatchcase(f"{row.variant}/{row.name}", pattern)
    ]
    if not rows:
        names = dict.fromkeys(row.variant for row in published.PUBLISHED.values())
        raise UnknownNameError("model with published weights", pattern, [*names])
    check_backend("check_weights")
    usable = [row for row in rows if row.commercial or allow_noncommercial]
    if len(usable) < len(rows):
        say(
            f"{len(rows) - len(usable)} weights whose licence forbids commercial use "
            "are left out; allow_noncommercial=True (--allow-noncommercial) checks "
            "them."
        )
    source = sources.open_source(images, validation_share=0)
    if len(source.labels) != 1000 or not all(map(_WORDNET.fullmatch, source.labels)):
        raise DataError(
            "ImageNet's validation set has 1,000 folders named by WordNet number, such "
            f"as n01440764. Received: {len(source.labels):,} classes in {images}."
        )
    return (_checked(row, source, batch_size) for row in usable)


def _checked(
    row: PublishedWeights, source: sources.Source, batch_size: int
) -> CheckedWeights:
    import keras

    from reszoo.zoo import build

    result = row.results[0]
    known = CheckedWeights(
        model=row.variant, weights=row.name,
        published_top1=result.top1, published_top5=result.top5,
    )  # fmt: skip
    # Hundreds of models in a row would fill the memory.
    keras.backend.clear_session()
    try:
        model = build(row.variant, weights=row.name, allow_noncommercial=True)
        examples, title = source.examples("all"), f"{row.variant} {row.name}"
        with Predictor(model) as predictor:
            answers = predict_examples(predictor, examples, batch_size, title)
        found = score(answers, examples.targets, source.name)
    except ReszooError as error:
        return replace(known, error=str(error))
    top1, top5 = 100 * found.top1, 100 * found.top5
    return replace(known, top1=top1, top5=top5, images=found.images)
