"""The report of a training run."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from reszoo import metrics
from reszoo.cards import Confidence, library_versions
from reszoo.console import printable
from reszoo.data.splits import calibration_halves
from reszoo.environment import processor
from reszoo.errors import UsageError
from reszoo.files import atomic_file, write_text
from reszoo.metrics import Bin, Probabilities, Targets
from reszoo.report import page
from reszoo.report.page import BLUE, INK, VERMILLION, overlay
from reszoo.training.recipes import RECIPES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    # It loads TensorFlow, which a report does not need.
    from reszoo.training.history import Epoch
    from reszoo.training.run import Run

_MATRIX = 30  # classes up to which the whole matrix is shown
_PICTURES = 24
_Series = Mapping[str, Sequence[float | None]]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Images held out from training, and the model's predictions on them."""

    split: str  # its name ("validation")
    targets: Targets  # int64 `(n,)`, n > 0
    probabilities: Probabilities  # float32 `(n, classes)`, of the best weights
    picture: Callable[[int], Image.Image]  # of an index
    file_name: Callable[[int], str]  # of an index
    # Accuracy, in 0..1, when the head had been trained on the frozen backbone; None
    # without such a phase.
    head_top1: float | None = None
    heatmap: Callable[[int], Image.Image] | None = None  # of an index's prediction
    confidence: Confidence | None = None  # of the best weights
    teacher: Targets | None = None  # its predictions, if the model had one
    # Images that the temperature was not measured on: all of another split.
    unused: Targets | slice = field(default_factory=lambda: slice(None))

    def __post_init__(self) -> None:
        shape, count = self.probabilities.shape, len(self.targets)
        if not count or len(shape) != 2 or shape[0] != count:
            raise UsageError(
                "There must be one row of probabilities per target, and at least one. "
                f"Received: shape {shape} for {count} targets."
            )
        if self.targets.min() < 0 or self.targets.max() >= shape[1]:
            raise UsageError(
                f"Targets must lie in [0, {shape[1]}). "
                f"Received: {self.targets.min()} to {self.targets.max()}."
            )
        if not np.isfinite(self.probabilities).all():
            raise UsageError(
                "Probabilities must be finite. Received: NaN or infinity; the model "
                "has diverged."
            )


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """What a training run did."""

    model: str
    data: str
    labels: Sequence[str]  # in the order of the outputs
    training_images: int  # number of images trained on
    history: "Sequence[Epoch]"  # one row per epoch, at least one
    best_epoch: int  # counted from 1
    evaluation: Evaluation | None  # on the split held out; None without one
    recipe: Mapping[str, Any]  # fields and values used
    # Fields and values of the recipe of that name; empty if unknown.
    defaults: Mapping[str, Any]
    batch_norm: tuple[int, int]  # numbers of frozen and trained batch norms
    skipped: Sequence[tuple[str, str]]  # paths of unreadable images, and the reasons
    repeat: Sequence[str]  # arguments of the command that repeats the run
    export: Sequence[str]  # and of the one that exports the best weights
    versions: Mapping[str, str]  # of the libraries
    processor: str  # what the run was computed on
    seconds: float  # duration of the run
    augmented: bytes = b""  # PNG of training images as they are varied

    def __post_init__(self) -> None:
        if not self.history:
            raise UsageError("A report needs at least one epoch. Received: none.")
        classes = self.evaluation and self.evaluation.probabilities.shape[1]
        if classes is not None and classes != len(self.labels):
            raise UsageError(
                "There must be one label per class. Received: "
                f"{len(self.labels)} labels for {classes} classes."
            )


def write_summary(
    run: "Run", path: Path, *, repeat: Sequence[str], export: Sequence[str]
) -> None:
    """Write the report of a finished run with an epoch or more to `path`.

    It evaluates the best weights on images held out from training: the test split if
    there is one, else the validation split. `repeat` and `export` are arguments of the
    commands that repeat the run and export its best weights.
    """
    config, history = run.config, run.history
    if history.best is None:
        return
    # It loads TensorFlow, which a report without it does not need.
    from reszoo.training.previews import augmented

    seen = (run.examples, config.card.preprocessing, config.augmentation)
    augmented(*seen, config.recipe.seed).save(buffer := io.BytesIO(), "PNG")
    report = RunReport(
        model=config.card.architecture.name, data=config.source.name,
        labels=config.source.labels, training_images=len(run.examples),
        history=history.epochs, best_epoch=history.best.epoch,
        evaluation=_evaluation(run), recipe=config.recipe.to_json(),
        defaults=recipe_defaults(config.recipe.name),
        batch_norm=run.phase_trainer.batch_norm, skipped=config.source.unreadable,
        repeat=repeat, export=export, versions=library_versions(),
        processor=processor(), seconds=sum(row.seconds for row in history.epochs),
        augmented=buffer.getvalue(),
    )  # fmt: skip
    write_report(path, report)


def recipe_defaults(name: object) -> dict[str, Any]:
    """Return the fields of a named recipe, none if there is no such recipe."""
    recipe = RECIPES.get(str(name))
    return recipe.to_json() if recipe else {}


def write_report(path: Path, report: RunReport) -> None:
    """Write the page to `path`, in one step: HTML without scripts or other files.

    A ReszooError if the disk refused the write.
    """
    history, found = report.history, report.evaluation
    seconds = sum(row.seconds for row in history)
    rendered = page.render(
        "run.html.j2", report=report, title=f"{report.model} on {report.data}",
        augmented=report.augmented and page.png_picture(report.augmented),
        curves=[_curve(history, *each) for each in _curves(history).items()],
        speed=sum(row.images_per_second * row.seconds for row in history) / seconds,
        data_wait=sum(row.data_wait * row.seconds for row in history) / seconds,
        head_epochs=sum(row.phase == "head" for row in history),
        evaluation=found and _evaluated(found, report.labels),
        changed=[n for n, v in report.defaults.items() if report.recipe.get(n, v) != v],
        repeat=page.shell_command(report.repeat),
        export=page.shell_command(report.export),
    )  # fmt: skip
    write_text(path, rendered)


def _evaluation(run: "Run") -> Evaluation | None:
    split = run.config.source.judging_split
    if split == "train":
        return None
    examples = run.config.source.examples(split)
    run.history.load_best(run.evaluator.model)
    confidence, unused = run.history.best_card.confidence, slice(None)
    half = confidence and split == "validation"
    record, teacher = run.config.card.preprocessing, run.config.teacher
    probabilities = run.evaluator.outputs(examples)
    explain = metrics.explaining_function(run.evaluator.model, run.config.card)

    def heatmap(index: int) -> Image.Image:
        pixels = examples.prepared(index, record).reshape(1, *record.input_shape)
        maps = np.asarray(explain(pixels)["cam"])[0]
        return overlay(pixels[0], maps[..., probabilities[index].argmax()])

    return Evaluation(
        split=split, targets=examples.targets, probabilities=probabilities,
        teacher=None if teacher is None else teacher.predictions(examples),
        heatmap=heatmap, picture=examples.open, file_name=examples.name,
        head_top1=run.head_top1, confidence=confidence,
        unused=calibration_halves(examples.targets)[1] if half else unused,
    )  # fmt: skip


def _evaluated(found: Evaluation, labels: Sequence[str]) -> dict[str, Any]:
    """Return what the template shows of an evaluation."""
    answers = (found.targets, found.probabilities)
    predicted = metrics.predictions(found.probabilities)
    hits, images = int((predicted == found.targets).sum()), len(found.targets)
    low, high = metrics.share_interval(hits, images)
    confusion = metrics.confusion_matrix(*answers)
    shares = confusion / np.maximum(1, confusion.sum(axis=1, keepdims=True))
    pairs = zip(confusion.tolist(), shares.tolist(), strict=True)
    matrix = [list(zip(*rows, strict=True)) for rows in pairs]
    frequent = metrics.frequent_confusions(confusion, _MATRIX)
    classes = metrics.class_rows(confusion)
    targets, own = found.targets[found.unused], found.probabilities[found.unused]
    bins, calibrated = metrics.calibration_bins(targets, own), None
    if found.confidence:
        of_files = metrics.tempered(own, found.confidence.temperature)
        calibrated = metrics.calibration_bins(targets, of_files)
    return {
        "images": images, "hits": hits, "accuracy": hits / images,
        "low": low, "high": high, "balanced": metrics.mean_recall(classes),
        "macro_f1": metrics.macro_f1(classes), "classes": classes,
        "matrix": matrix if len(labels) <= _MATRIX else None,
        "confusions": [(*each, shares[each[:2]]) for each in frequent],
        "mistakes": [
            {
                "picture": page.thumbnail(found.picture(index)),
                "heatmap": found.heatmap and page.thumbnail(found.heatmap(index)),
                "file": found.file_name(index),
                "truth": labels[found.targets[index]],
                "predicted": labels[predicted[index]],
                "probability": float(found.probabilities[index, predicted[index]]),
            }
            for index in metrics.worst_mistakes(*answers, _PICTURES)
        ],
        "teacher": None if found.teacher is None else _taught(found, predicted),
        "measured": len(targets),
        "right": float((predicted[found.unused] == targets).mean()),
        "confidence": float(own.max(axis=1).mean()),
        "bins": [("itself", bins)] + [("calibrated", calibrated)] * bool(calibrated),
        "calibration_error": metrics.calibration_error(bins),
        "calibrated_error": calibrated and metrics.calibration_error(calibrated),
        "reliability": reliability_diagram(bins, calibrated),
    }  # fmt: skip


def _taught(found: Evaluation, student: Targets) -> dict[str, float]:
    """Return shares of images: how often a teacher is right, and the student agrees."""
    wrong, agreed = found.teacher != found.targets, student == found.teacher
    shared = (agreed & wrong).sum() / max(1, np.sum(wrong))
    rates = {"accuracy": 1 - np.mean(wrong), "agreement": agreed.mean()}
    return {name: float(rate) for name, rate in {**rates, "shared": shared}.items()}


def write_curves(path: Path, title: str, history: "Sequence[Epoch]") -> None:
    """Plot loss and error by epoch to a PNG file, in one step."""
    curves = list(_curves(history).items())[:2]

    def draw(figure: "Figure") -> None:
        figure.suptitle(printable(title), parse_math=False)
        for axes, (quantity, series) in zip(figure.subplots(1, 2), curves, strict=True):
            _plot_epochs(axes, quantity, history, series)

    with atomic_file(path) as temporary:
        temporary.write_bytes(page.png(draw, 9, 3.6))


def _curves(history: "Sequence[Epoch]") -> dict[str, _Series]:
    """Return series of values by epoch, by the quantity that they are of."""

    def series(field: str, *, error: bool = False) -> list[float | None]:
        values = (getattr(row, field) for row in history)
        return [100 * (1 - v) if error and v is not None else v for v in values]

    errors = {"training": series("top1", error=True)}
    errors["validation"] = series("validation_top1", error=True)
    return {
        "loss": {"training": series("loss"), "validation": series("validation_loss")},
        "top-1 error (%)": errors,
        "learning rate": {"learning rate": series("learning_rate")},
    }


def _curve(history: "Sequence[Epoch]", quantity: str, series: _Series) -> Markup:
    def draw(figure: "Figure") -> None:
        _plot_epochs(figure.subplots(), quantity, history, series)

    label = f"{quantity.capitalize()} by epoch: {_in_words(series)}."
    return page.svg(quantity, label, draw)


def reliability_diagram(
    bins: Sequence[Bin], calibrated: Sequence[Bin] | None = None
) -> Markup:
    """Draw accuracy against confidence, before and after a temperature."""
    series = [("the model itself" if calibrated else "this model", VERMILLION, bins)]
    if calibrated:
        series.append(("calibrated", BLUE, calibrated))
    most = max(each.images for _, _, bins in series for each in bins)

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        axes.plot([0, 100], [0, 100], ":", color=INK, label="perfect calibration")
        for label, colour, bins in series:
            filled = [each for each in bins if each.images]
            confidence = [100 * each.confidence for each in filled]
            accuracy = [100 * each.accuracy for each in filled]
            axes.plot(confidence, accuracy, color=colour, alpha=0.5)
            areas = [8 + 100 * each.images / most for each in filled]
            axes.scatter(confidence, accuracy, areas, color=colour, label=label)
        axes.set(xlabel="mean predicted probability (%)", ylabel="accuracy (%)")
        axes.set(xlim=(0, 102), ylim=(0, 105))
        axes.legend(markerscale=0.6)

    label = "Reliability diagram: accuracy against predicted probability"
    return page.svg("reliability", f"{label}; the table below has the numbers.", draw)


def _plot_epochs(
    axes: "Axes", quantity: str, history: "Sequence[Epoch]", series: _Series
) -> None:
    from matplotlib.ticker import MaxNLocator

    for name, values in series.items():
        pairs = zip(history, values, strict=True)
        points = [(row.epoch, y) for row, y in pairs if y is not None]
        if not points:
            continue
        second = name == "validation"
        colour, dashes = (VERMILLION, "--") if second else (BLUE, "-")
        # A lone epoch would be an invisible line.
        marker = "o" if len(points) == 1 else "None"
        line = axes.plot(*zip(*points, strict=True), dashes, color=colour, label=name)
        line[0].set(marker=marker, clip_on=False)
    ends = (history[0].epoch - 0.5, history[-1].epoch + 0.5)
    axes.set(xlabel="epoch", xlim=ends, ylabel=quantity)
    if quantity == "loss":
        _plain_log_ticks(axes)
    else:
        axes.set_ylim(0, None)
    axes.xaxis.set_major_locator(
        MaxNLocator(6, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1)
    )
    if len(series) > 1:
        axes.legend()


def _in_words(series: _Series) -> str:
    told = []
    for name, values in series.items():
        if ys := [y for y in values if y is not None]:
            top = f", highest {max(ys):.3g}" * (max(ys) > max(ys[0], ys[-1]))
            told.append(f"{name} from {ys[0]:.3g} to {ys[-1]:.3g}{top}")
    return "; ".join(told)


def _plain_log_ticks(axes: "Axes") -> None:
    """Make y logarithmic, labelled 0.2, not 2e-1; more labels on a short range."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    subs = range(1, 10) if high / low < 5 else (1, 2, 5) if high / low < 100 else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
