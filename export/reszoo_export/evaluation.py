"""`evaluate`: accuracy and loss of a model, a checkpoint or an exported file.

And `check_weights`, which measures published accuracies again, on ImageNet.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np

from reszoo import defaults
from reszoo.console import Progress, say
from reszoo.data.examples import Examples
from reszoo.data.sources import (
    Data,
    Source,
    match_classes,
    open_source,
    recorded_share,
    unused_by_calibration,
)
from reszoo.errors import DataError, ReszooError, UnknownNameError
from reszoo.metrics import Metrics, prepared_batches, score
from reszoo.weights import published
from reszoo.weights.published import PublishedWeights
from reszoo_export.predictor import Predictor
from reszoo_export.runtimes import ModelOutput

if TYPE_CHECKING:
    import keras

# Points of a percentage: decoders and rounding change the top-1 of a few images.
TOLERANCE = 0.3
_WORDNET = re.compile(r"n\d{8}")


def evaluate(
    model: "keras.Model | str | os.PathLike[str]",
    data: Data,
    *,
    split: str | None = None,
    batch_size: int = 64,
    threads: int | None = None,
    bad_images: str = defaults.BAD_IMAGES,
    trust_saved_model: bool = False,
    isolated: bool = defaults.ISOLATED,
) -> Metrics:
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
    share = recorded_share(card.provenance)
    source = open_source(data, bad_images=bad_images, validation_share=share)
    source = match_classes(source, card.labels, card.architecture.classes)
    chosen, reason = source.judged(card.provenance, split)
    examples = source.examples(chosen)
    if not split and (unused := unused_by_calibration(source, card)):
        chosen, examples, reason = unused
    for line in (*source.warnings, *source.notes, reason):
        if line:
            say(line)
    answers = predict_examples(predictor, examples, batch_size, "evaluating")
    name = f"{source.name} ({chosen})"
    files = tuple(map(examples.name, range(len(examples))))
    return score(answers, examples.targets, name, source.labels, files)


def predict_examples(
    predictor: Predictor,
    examples: Examples,
    batch_size: int,
    title: str,
    output: str | None = None,
) -> ModelOutput:
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
    images: str | os.PathLike[str],
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
    rows = [row for row in published.PUBLISHED.values() if _selected(row, pattern)]
    if not rows:
        names = dict.fromkeys(row.variant for row in published.PUBLISHED.values())
        raise UnknownNameError("model with published weights", pattern, [*names])
    usable = [row for row in rows if row.commercial or allow_noncommercial]
    if len(usable) < len(rows):
        say(
            f"{len(rows) - len(usable)} weights whose licence forbids commercial use "
            "are left out; allow_noncommercial=True (--allow-noncommercial) checks "
            "them."
        )
    source = open_source(images, validation_share=0)
    if len(source.labels) != 1000 or not all(map(_WORDNET.fullmatch, source.labels)):
        raise DataError(
            "ImageNet's validation set has 1,000 folders named by WordNet number, such "
            f"as n01440764. Received: {len(source.labels):,} classes in {images}."
        )
    return (_checked(row, source, batch_size) for row in usable)


def _selected(row: PublishedWeights, pattern: str) -> bool:
    names = (row.variant, f"{row.variant}/{row.name}")
    return any(fnmatchcase(name, pattern) for name in names)


def _checked(row: PublishedWeights, source: Source, batch_size: int) -> CheckedWeights:
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
