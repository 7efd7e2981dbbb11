"""Put what a run did on one page that needs nothing but a browser."""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reszoo.errors import UsageError
from reszoo.files import write_text
from reszoo.training.history import Epoch
from reszoo.training.report_html import STYLE, Html, document, folded, table, tag
from reszoo.training.report_judged import Judged, judged_sections
from reszoo.training.report_plots import error_curve, loss_curve, rate_curve

_EPOCH_COLUMNS = (
    "epoch",
    "phase",
    "loss",
    "top-1 error",
    "validation loss",
    "validation error",
    "learning rate",
    "images/s",
    "data wait",
)


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """What a run did.

    Attributes:
        net: Name of the net.
        data: Name of the data set.
        class_names: In the order of the outputs.
        training_images: Number of images trained on.
        history: One row an epoch, at least one.
        best_epoch: Counted from 1.
        judged: Answers on the split held out; None without such a split.
        recipe: Fields and values, as carried out.
        defaults: Values of the same fields in the recipe as it is named.
        batch_norm: Numbers of frozen and of live batch-norm layers.
        skipped: Paths that could not be used, and why.
        repeat: Arguments of the command that repeats the run.
        export: Arguments of the command that exports the result.
        versions: Of the libraries.
        processor: What the run was computed on.
        seconds: That the run took.
    """

    net: str
    data: str
    class_names: Sequence[str]
    training_images: int
    history: Sequence[Epoch]
    best_epoch: int
    judged: Judged | None
    recipe: Mapping[str, Any]
    defaults: Mapping[str, Any]
    batch_norm: tuple[int, int]
    skipped: Sequence[tuple[str, str]]
    repeat: Sequence[str]
    export: Sequence[str]
    versions: Mapping[str, str]
    processor: str
    seconds: float

    def __post_init__(self) -> None:
        if not self.history:
            raise UsageError("A report needs at least one epoch. Received: none.")
        if self.judged and self.judged.probabilities.shape[1] != len(self.class_names):
            raise UsageError(
                "There must be one name a class. Received: "
                f"{len(self.class_names)} names for "
                f"{self.judged.probabilities.shape[1]} classes."
            )


def write_report(path: str | os.PathLike[str], report: RunReport) -> None:
    """Write the page to `path`, in one step: HTML without scripts or other files.

    Raises:
        ReszooError: The disk refused the write.
    """
    title = f"{report.net} on {report.data}"
    write_text(path, document(title, STYLE, [tag("h1", title), *_sections(report)]))


def _sections(report: RunReport) -> list[Html]:
    return [
        tag("p", _summary(report), class_="lead"),
        _curves(report.history),
        *_judgement(report),
        _skipped(report.skipped),
        _recipe(report),
        _again(report),
    ]


def _summary(report: RunReport) -> str:
    trained = (
        f"Trained on {report.training_images:,} images of {len(report.class_names):,} "
        f"classes in {_duration(report.seconds)}"
    )
    epochs = f"epoch {report.best_epoch} of {len(report.history)}"
    if report.judged is None:
        return f"{trained}. The weights kept are those of {epochs}."
    hits, count = report.judged.hits, len(report.judged.labels)
    return (
        f"{hits / count:.2%} of the {count:,} {report.judged.split} images are "
        f"classified rightly ({hits:,}), with the weights of {epochs}. {trained}."
    )


def _curves(history: Sequence[Epoch]) -> Html:
    seconds = sum(row.seconds for row in history)
    speed = sum(row.images_per_second * row.seconds for row in history) / seconds
    wait = sum(row.data_wait * row.seconds for row in history) / seconds
    told = (
        f"{speed:,.0f} images/s on average; {wait:.0%} of the time went into waiting "
        "for images to arrive."
    )
    drawn = [loss_curve(history), error_curve(history), rate_curve(history)]
    rows = map(_epoch_row, history)
    numbers = table("Every epoch", _EPOCH_COLUMNS, rows, words=(0, 1))
    return tag(
        "section",
        tag("h2", "Learning curves"),
        tag("div", *(tag("figure", plot) for plot in drawn), class_="plots"),
        tag("p", told),
        folded("The numbers", numbers),
    )


def _epoch_row(row: Epoch) -> list[str]:
    loss, top1 = row.validation_loss, row.validation_top1
    return [
        str(row.epoch),
        row.phase,
        f"{row.loss:.4f}",
        f"{1 - row.top1:.2%}",
        "-" if loss is None else f"{loss:.4f}",
        "-" if top1 is None else f"{1 - top1:.2%}",
        f"{row.learning_rate:.3g}",
        f"{row.images_per_second:,.0f}",
        f"{row.data_wait:.0%}",
    ]


def _judgement(report: RunReport) -> list[Html]:
    if report.judged is not None:
        return judged_sections(report.judged, report.class_names)
    told = (
        "The data has no validation split, so nothing measures how the net does on "
        "images it has not seen. Hold some out to see its accuracy, the classes, "
        "confusions, worst mistakes and calibration here."
    )
    return [tag("section", tag("h2", "How good it is"), tag("p", told))]


def _skipped(skipped: Sequence[tuple[str, str]]) -> Html:
    title = tag("h2", "Images left out")
    if not skipped:
        return tag("section", title, tag("p", "None: every image could be used."))
    paths = table("Skipped images", ["path", "reason"], skipped, words=(0, 1))
    count = f"{len(skipped):,} could not be used."
    return tag("section", title, tag("p", count), folded("Which, and why", paths))


def _recipe(report: RunReport) -> Html:
    rows = []
    for field, value in report.recipe.items():
        default = report.defaults.get(field)
        changed = field in report.defaults and value != default
        shown = tag("mark", f"{value} (changed)") if changed else str(value)
        rows.append([field, shown, str(default) if changed else "-"])
    frozen, live = report.batch_norm
    return tag(
        "section",
        tag("h2", "How it was trained"),
        tag("p", f"Batch normalisation: {frozen} layers frozen, {live} live."),
        table("The recipe", ["field", "value", "recipe's own"], rows, words=(0, 1, 2)),
    )


def _again(report: RunReport) -> Html:
    versions = ", ".join(f"{name} {v}" for name, v in report.versions.items())
    return tag(
        "section",
        tag("h2", "Do it again"),
        tag("p", "Repeat the run:"),
        tag("pre", tag("code", shell_command(report.repeat))),
        tag("p", "Export the result:"),
        tag("pre", tag("code", shell_command(report.export))),
        tag("p", f"{versions}. Computed on {report.processor}.", class_="quiet"),
    )


def shell_command(arguments: Sequence[str]) -> str:
    """Quote arguments so that bash and zsh pass them on as they are."""
    return " ".join(map(_quoted, arguments))


def _quoted(argument: str) -> str:
    if argument.isprintable():
        return shlex.quote(argument)
    # What cannot be shown could not be copied: each byte as its number.
    numbers = "".join(f"\\x{byte:02x}" for byte in os.fsencode(argument))
    return f"$'{numbers}'"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
