"""History and TensorBoard events of a run, and its best weights."""

import csv
import io
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf

from reszoo.cards import Card, Confidence, Metric
from reszoo.files import disk_errors, write_text
from reszoo.metrics import SCALARS, Metrics
from reszoo.weights.names import Tensors, assign_tensors
from reszoo.weights.safetensors import read, write

# Files of a run folder.
HISTORY = "history.csv"
BEST, LAST = "best.safetensors", "last.safetensors"
# Difference of the balanced accuracy from accuracy above which a row shows it.
_UNBALANCED = 0.01


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One row of the history; accuracies in 0..1, None where nothing was measured."""

    epoch: int  # counted from 1
    phase: str  # "head" while the head alone is trained, else "all"
    loss: float  # mean training loss, in nats
    top1: float  # accuracy on the training batches
    validation_loss: float | None  # mean cross-entropy, in nats
    validation_top1: float | None
    validation_balanced_accuracy: float | None = None  # mean recall of its classes
    validation_macro_f1: float | None = None  # mean F1 of its classes
    learning_rate: float  # at the last step
    images_per_second: float  # training images, over the time of the steps
    data_wait: float  # share of that time spent waiting for images
    seconds: float  # time of the training steps

    def __str__(self) -> str:
        parts = [f"loss {self.loss:.4f}", f"accuracy {self.top1:7.2%}"]
        if self.validation_top1 is not None:
            parts.append(f"validation {self.validation_top1:7.2%}")
            balanced = self.validation_balanced_accuracy
            if balanced and abs(balanced - self.validation_top1) > _UNBALANCED:
                parts.append(f"balanced {balanced:7.2%}")
        parts.append(f"{self.images_per_second:,.0f} images/s")
        parts.append(f"data wait {self.data_wait:.0%}")
        return "  ".join(parts)


class EventLog:
    """One event file of TensorBoard; a resumed run adds another to the same folder.

    Its first record tells TensorBoard to discard what earlier files of the folder hold
    from `first_step` on (0 for a new run, else one more than the last step in the state
    that the run resumes from), so that steps repeated after a kill show only once.
    Earlier files are not changed: their last record may be cut off, and readers then
    continue with the next file.
    """

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self.path = _next_file(folder)
        with disk_errors(self.path):
            self._writer = tf.io.TFRecordWriter(str(self.path))
        start = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
        session = {"session_log": start, "step": first_step}
        self._write({"file_version": "brain.Event:2"}, session)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write values by tag ("train/loss"), and flush them to the file."""
        # As torch's writer does: every reader supports `simple_value`.
        summary = tf.compat.v1.Summary()
        for tag, value in values.items():
            summary.value.add(tag=tag, simple_value=value)
        self._write({"summary": summary, "step": step})

    def close(self) -> None:
        """Close the file."""
        with disk_errors(self.path):
            self._writer.close()

    def _write(self, *events: Mapping[str, Any]) -> None:
        with disk_errors(self.path):
            for fields in events:
                event = tf.compat.v1.Event(wall_time=time.time(), **fields)
                self._writer.write(event.SerializeToString())
            self._writer.flush()


def _next_file(folder: Path) -> Path:
    """Return a file name that sorts after all existing ones, even if the clock is off.

    TensorBoard reads the files of a folder in the order of their names.
    """
    stamps = re.compile(r"events\.out\.tfevents\.(\d+)\.")
    found = [stamps.match(path.name) for path in folder.iterdir()]
    last = max((int(match[1]) for match in found if match), default=0)
    stamp = max(int(time.time()), last + 1)
    return folder / f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}"


class Best(NamedTuple):
    """The best epoch so far: the one with the greater score wins, first by first."""

    epoch: int
    score: tuple[float, float]


class RunHistory:
    """The finished epochs of a run, and the weights of the best, by `best_by`.

    The provenance is that of the weights, except for the epoch. A folder of None keeps
    weights and history in memory only.
    """

    def __init__(
        self, card: Card, provenance: Mapping[str, Any], folder: Path | None,
        best_by: str = "accuracy",
    ) -> None:  # fmt: skip
        self._card, self._provenance, self._folder = card, provenance, folder
        self._best_by = best_by
        self.epochs: list[Epoch] = []
        self.best: Best | None = None
        self.best_tensors: Tensors = {}
        self.best_card = card
        self._unwritten: dict[str, tuple[Tensors, Card]] = {}

    def to_json(self) -> dict[str, Any]:
        """Return all but the weights, as plain JSON values."""
        return {"history": [asdict(row) for row in self.epochs], "best": self.best}

    def restore(self, content: Mapping[str, Any], folder: Path) -> None:
        """Restore what `to_json` returned, and the best weights in the run's folder."""
        self.epochs = [Epoch(**row) for row in content["history"]]
        if content["best"]:
            epoch, score = content["best"]
            self.best = Best(epoch, tuple(score))
            self.best_tensors, card = read(folder / BEST)
            self.best_card = card or self.best_card

    def add(self, row: Epoch, metrics: Metrics | None, tensors: Tensors) -> None:
        """Add an epoch and its weights, which `write` writes."""
        self.epochs.append(row)
        provenance = {**self._provenance, "epoch": row.epoch}
        measured, score = [], (0.0, float(row.epoch))
        if metrics:
            data = f"{metrics.data}, {metrics.images} images"
            measured = [
                Metric(name=name, value=getattr(metrics, name), data=data)
                for name in SCALARS
            ]
            scores = {
                "accuracy": (metrics.top1, -metrics.loss),
                "balanced_accuracy": (metrics.balanced_accuracy, -metrics.loss),
                "loss": (-metrics.loss, metrics.top1),
            }
            score = scores[self._best_by]
        card = self._card.after(provenance, measured)
        if self.best is None or score > self.best.score:
            self.best, self.best_tensors = Best(row.epoch, score), tensors
            self.best_card = card
            self._unwritten[BEST] = tensors, card
        self._unwritten[LAST] = tensors, card

    def write(self) -> None:
        """Write the history and weights that were added since, if there is a folder."""
        if not (self._unwritten and (folder := self._folder)):
            return
        for name, weights in self._unwritten.items():
            write(folder / name, *weights)
        self._unwritten, text = {}, io.StringIO()
        table = csv.DictWriter(text, Epoch.__dataclass_fields__, lineterminator="\n")
        table.writeheader()
        table.writerows(map(asdict, self.epochs))
        write_text(folder / HISTORY, text.getvalue())

    def load_best(self, model: Any) -> None:
        """Assign the best weights to a model."""
        assign_tensors(model, self.best_tensors, "the best epoch")

    def calibrate(self, confidence: Confidence) -> None:
        """Add to the card of the best weights, also on the disk."""
        self.best_card = replace(self.best_card, confidence=confidence)
        if self._folder:
            write(self._folder / BEST, self.best_tensors, self.best_card)
