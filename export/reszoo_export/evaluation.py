"""`evaluate`: accuracy and loss of a model, a checkpoint or an exported file."""

import os
from typing import TYPE_CHECKING

import numpy as np

from reszoo import defaults
from reszoo.console import Progress, say
from reszoo.data.examples import Examples
from reszoo.data.sources import (
    Data,
    match_classes,
    open_source,
    recorded_share,
    unused_by_calibration,
)
from reszoo.metrics import Metrics, prepared_batches, score
from reszoo_export.predictor import Predictor
from reszoo_export.runtimes import ModelOutput

if TYPE_CHECKING:
    import keras


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
    predictor: Predictor, examples: Examples, batch_size: int, title: str
) -> ModelOutput:
    """Return probabilities `(n, classes)` of examples; progress is under `title`."""
    parts = []
    with Progress(title, len(examples)) as progress:
        preprocessing = predictor.card.preprocessing
        for batch in prepared_batches(examples, preprocessing, batch_size):
            parts.append(predictor.predict_prepared(batch))
            progress.advance(len(batch))
    return np.concatenate(parts)
