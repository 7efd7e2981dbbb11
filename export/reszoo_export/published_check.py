"""`check_weights`: measure published accuracies again, on ImageNet."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from reszoo.console import say
from reszoo.data.sources import Source, open_source
from reszoo.errors import DataError, ReszooError, UnknownNameError
from reszoo.metrics import score
from reszoo.weights import published
from reszoo.weights.published import PublishedWeights
from reszoo_export.evaluation import predict_examples
from reszoo_export.predictor import Predictor

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

    known = CheckedWeights(
        model=row.variant,
        weights=row.name,
        published_top1=row.results[0].top1,
        published_top5=row.results[0].top5,
    )
    # Hundreds of models in a row would fill the memory.
    keras.backend.clear_session()
    try:
        model = build(row.variant, weights=row.name, allow_noncommercial=True)
        examples, title = source.examples("all"), f"{row.variant} {row.name}"
        with Predictor(model) as predictor:
            answers = predict_examples(predictor, examples, batch_size, title)
        found = score(answers, examples.targets, source.name)
    except ReszooError as error:
        return CheckedWeights(**{**vars(known), "error": str(error)})
    shares = {"top1": 100 * found.top1, "top5": 100 * found.top5}
    return CheckedWeights(**{**vars(known), **shares, "images": found.images})
