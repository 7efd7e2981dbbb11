"""How good the answers are: top-1, top-5 and loss."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import reszoo
from reszoo.console import Progress
from reszoo.data.examples import Examples
from reszoo.data.sources import Data, check_classes, open_source
from reszoo.preprocessing import Pixels, Preprocessing

if TYPE_CHECKING:
    import keras

# Below this a probability counts as this, so that the loss stays finite.
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
    probabilities: NDArray[np.float32], labels: NDArray[np.int64], data: str
) -> Metrics:
    """Compare probabilities `(n, classes)` with labels `(n,)`."""
    of_truth = probabilities[np.arange(len(labels)), labels]
    # As everywhere, and in `Predictor.top`, the lower index wins a tie, which int8
    # files often have; what is no number is wrong.
    order = np.argsort(-probabilities, axis=1, kind="stable")
    hits = (order == labels[:, None]) & np.isfinite(of_truth)[:, None]
    return Metrics(
        top1=float(hits[:, 0].mean()),
        top5=float(hits[:, :5].any(axis=1).mean()),
        loss=float(np.mean(-np.log(np.maximum(of_truth, _FLOOR)))),
        images=len(labels),
        data=data,
    )


def evaluate(
    model: "keras.Model | str | os.PathLike[str]",
    data: Data,
    *,
    split: str | None = None,
    batch_size: int = 64,
    threads: int | None = None,
    bad_images: str | None = None,
) -> Metrics:
    """Measure a model, a checkpoint or an exported file on labelled images.

    All of them go through `reszoo.Predictor`, so the same pixels reach each.

    Args:
        model: A model from reszoo, a `.safetensors` checkpoint, a SavedModel
            folder, a `.tflite` or a `.onnx` file.
        data: What `reszoo.train` takes: a folder of class folders, a `.csv` list,
            shards, arrays, or a name such as "digits".
        split: "train", "validation", "test" or "all"; by default the test split,
            else the validation split, which training held out.
        batch_size: Images at a time.
        threads: Threads of the runtime; its own default if None.
        bad_images: "skip" measures without unreadable images, "recover" with what
            there is of JPEGs that are cut short; otherwise they are errors.

    Raises:
        DataError: An image is unreadable or the classes are not the model's.
        UsageError: The split or the file's kind is unknown.
    """
    source = open_source(data, bad_images=bad_images)
    examples = source.examples(split)
    predictor = reszoo.Predictor(model, threads=threads)
    check_classes(source, predictor.card.labels, "the model")
    parts = []
    with Progress("evaluating", len(examples)) as progress:
        for batch in prepared_batches(
            examples, predictor.card.preprocessing, batch_size
        ):
            parts.append(predictor.predict_prepared(batch))
            progress.advance(len(batch))
    name = f"{source.name} ({split or source.judging_split})"
    return score(np.concatenate(parts), examples.targets, name)


def prepared_batches(
    examples: Examples, record: Preprocessing, batch_size: int
) -> Iterator[Pixels]:
    """Yield uint8 `(batch, eval_size, eval_size, 3)`, prepared by Pillow in threads."""
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(examples), batch_size):
            indices = range(start, min(start + batch_size, len(examples)))
            images = pool.map(lambda i: examples.prepared(i, record), indices)
            yield np.stack(list(images))
