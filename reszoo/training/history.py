"""What a run leaves to look at: `history.csv` and `curves.png`."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from reszoo.files import atomic_file, write_text


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
