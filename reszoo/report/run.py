"""The report of a training run."""

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from reszoo.cards import library_versions
from reszoo.data.sources import Source
from reszoo.environment import processor
from reszoo.errors import UnknownNameError, UsageError
from reszoo.files import write_text
from reszoo.report.figures import (
    error_curve,
    loss_curve,
    rate_curve,
    reliability_diagram,
)
from reszoo.report.html import (
    STYLE,
    Html,
    document,
    folded,
    scrolling_table,
    table,
    tag,
    thumbnail,
)
from reszoo.report.statistics import (
    Bin,
    ClassRow,
    Counts,
    Labels,
    Probabilities,
    calibration_bins,
    calibration_error,
    class_rows,
    confusion_matrix,
    frequent_confusions,
    mean_recall,
    predictions,
    share_interval,
    worst_mistakes,
)
from reszoo.training.history import BEST, Epoch
from reszoo.training.recipe_table import find_recipe

if TYPE_CHECKING:
    from reszoo.training.run import Run


_MATRIX = 30  # classes up to which the whole matrix is shown
_PICTURES = 24


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Labelled images that training never saw, and what the net says of them.

    Attributes:
        split: Their name in the data ("validation").
        labels: int64 `(n,)`, n > 0.
        probabilities: float32 `(n, classes)` of the weights of the best epoch.
        picture: Returns the picture of an index.
        name_of: Returns the file name of an index.
        probe_top1: Share in 0..1 that a linear classifier on the frozen features
            gets right; None where there was none.
    """

    split: str
    labels: Labels
    probabilities: Probabilities
    picture: Callable[[int], Image.Image]
    name_of: Callable[[int], str]
    probe_top1: float | None = None

    def __post_init__(self) -> None:
        shape, count = self.probabilities.shape, len(self.labels)
        if not count or len(shape) != 2 or shape[0] != count:
            raise UsageError(
                "There must be one row of probabilities a label, and at least one. "
                f"Received: shape {shape} for {count} labels."
            )
        if self.labels.min() < 0 or self.labels.max() >= shape[1]:
            raise UsageError(
                f"Labels must lie in [0, {shape[1]}). "
                f"Received: {self.labels.min()} to {self.labels.max()}."
            )
        if not np.isfinite(self.probabilities).all():
            raise UsageError(
                "Probabilities must be finite. Received: NaN or infinity; the net "
                "has diverged."
            )

    @property
    def hits(self) -> int:
        """Number of images whose most probable class is right."""
        return int((predictions(self.probabilities) == self.labels).sum())


def judged_sections(judged: Judged, names: Sequence[str]) -> list[Html]:
    """Return the sections on accuracy, classes, confusions, mistakes, calibration."""
    confusion = confusion_matrix(judged.labels, judged.probabilities)
    rows = class_rows(confusion)
    return [
        _accuracy(judged, rows),
        _classes(rows, names),
        _confusions(confusion, names),
        _mistakes(judged, names),
        _calibration(calibration_bins(judged.labels, judged.probabilities)),
    ]


def _section(title: str, *content: object) -> Html:
    return tag("section", tag("h2", title), *content)


def _accuracy(judged: Judged, rows: Sequence[ClassRow]) -> Html:
    hits, images = judged.hits, len(judged.labels)
    low, high = share_interval(hits, images)
    told = (
        f"{hits:,} of {images:,} images are right: {hits / images:.2%}. On ever more "
        f"images like these it would end between {low:.1%} and {high:.1%} (95% "
        f"interval). The mean over classes is {mean_recall(rows):.2%}."
    )
    if judged.probe_top1 is None:
        return _section("How good it is", tag("p", told))
    gain = 100 * (hits / images - judged.probe_top1)
    compared = [
        ["linear probe on frozen features", f"{judged.probe_top1:.2%}"],
        ["after fine-tuning", f"{hits / images:.2%}"],
        ["gain", f"{gain:+.2f} points"],
    ]
    shown = table("What fine-tuning brought", ["classifier", "accuracy"], compared)
    return _section("How good it is", tag("p", told), shown)


def _classes(rows: Sequence[ClassRow], names: Sequence[str]) -> Html:
    columns = ["class", "images", "recall", "precision", "F1", "most often taken for"]
    cells = [
        [
            names[row.index],
            f"{row.images:,}",
            *map(_share, (row.recall, row.precision, row.f1)),
            _taken_for(row, names),
        ]
        for row in rows
    ]
    note = (
        "Recall: share of a class's images that are called so. Precision: share of "
        "the images called so that are of the class. F1: harmonic mean of both."
    )
    shown = table("Classes, lowest recall first", columns, cells, words=(0, 5))
    return _section("Class by class", tag("p", note, class_="quiet"), shown)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _taken_for(row: ClassRow, names: Sequence[str]) -> str:
    return "-" if row.taken_for is None else f"{names[row.taken_for]} ({row.mistaken})"


def _confusions(confusion: Counts, names: Sequence[str]) -> Html:
    if len(names) <= _MATRIX:
        return _section("What is confused", _matrix(confusion, names))
    rows = [
        [
            names[truth],
            names[called],
            f"{count:,}",
            f"{count / confusion[truth].sum():.1%}",
        ]
        for truth, called, count in frequent_confusions(confusion, _MATRIX)
    ]
    columns = ["true class", "taken for", "images", "of the class"]
    shown = table("The most frequent confusions", columns, rows, words=(0, 1))
    return _section("What is confused", shown)


def _matrix(confusion: Counts, names: Sequence[str]) -> Html:
    # The style sheet cuts long names short; their titles have them in full.
    heads = [tag("th", tag("span", name, title=name), scope="col") for name in names]
    rows = [
        tag(
            "tr",
            tag("th", tag("span", name, title=name), scope="row"),
            *_matrix_cells(confusion, truth),
        )
        for truth, name in enumerate(names)
    ]
    caption = "Number of images: true class in rows, predicted class in columns"
    return scrolling_table(caption, tag("tr", tag("td"), *heads), rows, kind="matrix")


def _matrix_cells(confusion: Counts, truth: int) -> list[Html]:
    images = max(1, int(confusion[truth].sum()))
    cells = []
    for called, count in enumerate(confusion[truth]):
        kind = "right" if called == truth else "wrong"
        # The root lets a few mistakes in a hundred be seen; never so dark that the
        # number on it cannot be read.
        depth = f"--share: {60 * (count / images) ** 0.5:.0f}%"
        cells.append(
            tag("td", f"{count:,}", class_=kind, style=depth)
            if count
            else tag("td", "0", class_="none")
        )
    return cells


def _mistakes(judged: Judged, names: Sequence[str]) -> Html:
    worst = worst_mistakes(judged.labels, judged.probabilities, _PICTURES)
    if not worst:
        return _section("Worst mistakes", tag("p", "None: every image is right."))
    predicted = predictions(judged.probabilities)
    shown = []
    for index in worst:
        truth, called = names[judged.labels[index]], names[predicted[index]]
        sure = f"{judged.probabilities[index, predicted[index]]:.1%}"
        picture = thumbnail(
            judged.picture(index), f"{truth}, taken for {called}", judged.name_of(index)
        )
        told = [tag("b", called), f" {sure}", tag("br"), f"is {truth}"]
        shown.append(tag("li", tag("figure", picture, tag("figcaption", *told))))
    note = "The wrong answers that the net was surest of, and below them the truth."
    return _section(
        "Worst mistakes", tag("p", note), tag("ul", *shown, class_="mistakes")
    )


def _calibration(bins: Sequence[Bin]) -> Html:
    images = sum(group.images for group in bins)
    sure = sum(group.images * group.confidence for group in bins) / images
    right = sum(group.images * group.accuracy for group in bins) / images
    manner = "more" if sure > right else "less"
    told = (
        f"On average the net gives its answer a probability of {sure:.1%} and is right "
        f"for {right:.1%}: {abs(sure - right) * 100:.1f} points {manner} sure than "
        f"right. The expected calibration error, the mean gap over {len(bins)} bins, "
        f"is {calibration_error(bins):.2%}."
    )
    rows = [
        [
            f"{group.low:.0%} to {group.high:.0%}",
            f"{group.images:,}",
            _share(group.confidence),
            _share(group.accuracy),
        ]
        for group in bins
        if group.images
    ]
    columns = ["probability", "images", "mean probability", "right"]
    note = "Larger dots stand for more images; below the line the net is too sure."
    figure = tag("figure", reliability_diagram(bins), tag("figcaption", note))
    return _section(
        "Can its probabilities be trusted?",
        tag("p", told),
        tag("div", figure, class_="plots"),
        folded("The numbers", table("Bins of the diagram", columns, rows)),
    )


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


REPORT = "report.html"


def write_summary(run: "Run", command: Sequence[str]) -> None:
    """Write `report.html` into the folder of a finished run.

    The answers are those of the best weights, on the split that training never
    learnt from: the test images where there are some, else the validation images.

    Args:
        run: With at least one epoch, and a folder.
        command: Arguments that repeat it.
    """
    setting = run.setting
    folder, recipe = setting.folder, setting.recipe
    if folder is None or run.chronicle.best is None:
        return
    try:
        defaults = find_recipe(recipe.name).to_json()
    except UnknownNameError:
        defaults = {}
    report = RunReport(
        net=setting.card.architecture.spec,
        data=setting.source.name,
        class_names=setting.source.labels,
        training_images=len(run.examples),
        history=run.chronicle.history,
        best_epoch=run.chronicle.best.epoch,
        judged=_judged(run),
        recipe=recipe.to_json(),
        defaults=defaults,
        batch_norm=run.engine.batch_norm,
        skipped=setting.source.unreadable,
        repeat=command,
        export=export_command(folder, setting.source),
        versions=library_versions(),
        processor=processor(),
        seconds=sum(row.seconds for row in run.chronicle.history),
    )
    write_report(folder / REPORT, report)


def export_command(folder: Path, source: Source) -> list[str]:
    """Return the arguments that export a run's best weights.

    Images in memory cannot be named; then made-up ones are compared.
    """
    command = ["reszoo", "export", str(folder / BEST)]
    command += ["--output", str(folder / "export")]
    if source.root is not None or source.name != "arrays":
        command += ["--verify", source.name]
    if source.unreadable:
        command += ["--bad-images", "skip"]
    return command


def _judged(run: "Run") -> Judged | None:
    split = run.setting.source.judging_split
    if split == "train":
        return None
    examples = run.setting.source.examples(split)
    run.judge.assign_tensors(run.chronicle.best_tensors)
    return Judged(
        split=split,
        labels=examples.targets,
        probabilities=run.judge.probabilities(examples),
        picture=examples.open,
        name_of=examples.name,
        probe_top1=run.probe,
    )
