"""The part of the report that tells how good a net is, and where it is wrong."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from reszoo.errors import UsageError
from reszoo.training.report_html import (
    Html,
    folded,
    scrolling_table,
    table,
    tag,
    thumbnail,
)
from reszoo.training.report_plots import reliability_diagram
from reszoo.training.report_tables import (
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
