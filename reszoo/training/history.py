"""History, curves and TensorBoard events of a run, and its best weights."""

import csv
import io
import re
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from reszoo.cards import Card, Metric
from reszoo.errors import ReszooError
from reszoo.files import atomic_file, disk_errors, write_text
from reszoo.metrics import Metrics

if TYPE_CHECKING:
    from reszoo.training.run import RunConfig
from reszoo.weights.names import Tensors
from reszoo.weights.safetensors import read, write


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One row of the history; shares are in 0..1, None where nothing was measured.

    Attributes:
        epoch: Counted from 1.
        phase: "head" while the head alone learns, else "all".
        loss: Mean training loss, in nats.
        top1: Share of training images classified rightly, while training.
        validation_loss: Mean cross-entropy on the validation split, in nats, whatever
            the training loss is.
        validation_top1: The same on the validation split.
        learning_rate: At the last step.
        images_per_second: Training images, over the time of the training steps.
        data_wait: Share of that time spent waiting for images.
        seconds: That the training steps took.
    """

    epoch: int
    phase: str
    loss: float
    top1: float
    validation_loss: float | None
    validation_top1: float | None
    learning_rate: float
    images_per_second: float
    data_wait: float
    seconds: float

    def __str__(self) -> str:
        parts = [f"loss {self.loss:.4f}", f"accuracy {self.top1:7.2%}"]
        if self.validation_top1 is not None:
            parts.append(f"validation {self.validation_top1:7.2%}")
        parts.append(f"{self.images_per_second:,.0f} images/s")
        parts.append(f"data wait {self.data_wait:.0%}")
        return "  ".join(parts)


def write_history(path: Path, history: Sequence[Epoch]) -> None:
    """Write one row an epoch to a CSV file, in one step."""
    text = io.StringIO()
    names = [field.name for field in fields(Epoch)]
    table = csv.DictWriter(text, names, lineterminator="\n")
    table.writeheader()
    table.writerows(asdict(epoch) for epoch in history)
    write_text(path, text.getvalue())


def write_curves(path: Path, history: Sequence[Epoch], title: str) -> None:
    """Draw loss and accuracy against epochs to a PNG file, in one step."""
    # Not pyplot, which would start a window system and keep figures.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    figure.suptitle(title)
    loss, error = figure.subplots(1, 2)
    epochs = [row.epoch for row in history]
    # Okabe and Ito's colours, distinguishable by everybody.
    for name, colour in (("training", "#0072B2"), ("validation", "#D55E00")):
        prefix = "" if name == "training" else "validation_"
        losses = [getattr(row, f"{prefix}loss") for row in history]
        if losses[0] is None:
            continue
        errors = [100 * (1 - getattr(row, f"{prefix}top1")) for row in history]
        dashes = "-" if name == "training" else "--"
        loss.plot(epochs, losses, dashes, color=colour, label=name)
        error.plot(epochs, errors, dashes, color=colour, label=name)
    loss.set(xlabel="epoch", ylabel="cross-entropy (nats)", yscale="log")
    error.set(xlabel="epoch", ylabel="top-1 error (%)", ylim=(0, None))
    for axes in (loss, error):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


_EVENT = tf.compat.v1.Event


class EventLog:
    """One event file; a run that goes on adds another to the same folder.

    Its first record tells TensorBoard to forget what earlier files of the folder
    hold from `first_step` on, so that steps repeated after a kill show only once.
    Earlier files stay untouched: their last record may be cut off, and readers then
    go on with the next file.

    Args:
        folder: Where the file goes; made if missing.
        first_step: The first step that will be written: 0 for a new run, else one
            more than the last step in the state that the run goes on from.

    Raises:
        ReszooError: The disk refused the write.
    """

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self.path = _next_file(folder)
        self._writer = self._told(tf.io.TFRecordWriter, str(self.path))
        self._write(file_version="brain.Event:2")
        start = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
        self._write(session_log=start, step=first_step)
        self._told(self._writer.flush)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write values by tag ("train/loss"), and flush them to the file."""
        # `simple_value` is what torch's writer uses too: every reader knows it, and
        # TensorBoard turns it into its newer form while loading.
        summary = tf.compat.v1.Summary()
        for tag, value in values.items():
            summary.value.add(tag=tag, simple_value=value)
        self._write(summary=summary, step=step)
        self._told(self._writer.flush)

    def close(self) -> None:
        """Close the file."""
        self._told(self._writer.close)

    def _write(self, **fields: Any) -> None:
        event = _EVENT(wall_time=time.time(), **fields)
        self._told(self._writer.write, event.SerializeToString())

    def _told(self, action: Any, *arguments: Any) -> Any:
        try:
            return action(*arguments)
        except tf.errors.OpError as error:
            raise ReszooError(
                f"{self.path} could not be written: {error.message}. Make room on "
                "the disk or choose another place."
            ) from error


def _next_file(folder: Path) -> Path:
    """Name a file that sorts behind all there are, whatever the clock says.

    TensorBoard reads the files of a folder in the order of their names.
    """
    stamps = re.compile(r"events\.out\.tfevents\.(\d+)\.")
    found = [stamps.match(path.name) for path in folder.iterdir()]
    last = max((int(match[1]) for match in found if match), default=0)
    stamp = max(int(time.time()), last + 1)
    return folder / f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}"


HISTORY = "history.csv"
BEST, LAST = "best.safetensors", "last.safetensors"


@dataclass(frozen=True)
class Best:
    """The best epoch so far: the higher accuracy, then the lower loss, wins."""

    epoch: int
    merit: tuple[float, float]


class RunHistory:
    """The finished epochs of a run.

    Attributes:
        history: One row for each.
        best: The best of them.
        best_tensors: Its weights, by torchvision's names.
        best_card: Its card.
    """

    def __init__(self, setting: "RunConfig") -> None:
        self._setting = setting
        self.history: list[Epoch] = []
        self.best: Best | None = None
        self.best_tensors: Tensors = {}
        self.best_card = setting.card

    def to_json(self) -> dict[str, Any]:
        """Return all but the weights, as plain JSON values."""
        return {
            "history": [asdict(row) for row in self.history],
            "best": self.best and [self.best.epoch, list(self.best.merit)],
        }

    def take(self, content: Mapping[str, Any], folder: Path) -> None:
        """Take what `to_json` returned, and the best weights from the run's folder."""
        self.history = [Epoch(**row) for row in content["history"]]
        if content["best"]:
            epoch, merit = content["best"]
            self.best = Best(epoch, (merit[0], merit[1]))
            self.best_tensors, card = read(folder / BEST)
            self.best_card = card or self.best_card

    def add(self, row: Epoch, measured: Metrics | None, tensors: Tensors) -> None:
        """Add an epoch; write its weights and the history where the run is kept."""
        self.history.append(row)
        card = self._card_after(row.epoch, measured)
        merit = (measured.top1, -measured.loss) if measured else (0.0, float(row.epoch))
        improved = self.best is None or merit > self.best.merit
        if improved:
            self.best, self.best_tensors = Best(row.epoch, merit), tensors
            self.best_card = card
        folder = self._setting.folder
        if not folder:
            return
        if improved:
            write(folder / BEST, tensors, card)
        write(folder / LAST, tensors, card)
        write_history(folder / HISTORY, self.history)

    def _card_after(self, epoch: int, measured: Metrics | None) -> Card:
        setting = self._setting
        provenance = {
            "source": "trained with reszoo",
            "data": setting.source.name,
            "images": len(setting.source.examples("train")),
            "recipe": setting.recipe.to_json(),
            "epoch": epoch,
        }
        return setting.card.after(provenance, _as_metrics(measured) if measured else ())


def _as_metrics(measured: Metrics) -> tuple[Metric, ...]:
    """Return a measurement as a card has it."""
    data = f"{measured.data}, {measured.images} images"
    values = asdict(measured)
    names = ("top1", "top5", "loss")
    return tuple(Metric(name=name, value=values[name], data=data) for name in names)
