"""What a study says: its conclusion, and the report with its plots."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from statistics import mean
from typing import TYPE_CHECKING, Any, NamedTuple

from reszoo.console import printable
from reszoo.files import atomic_file, write_text
from reszoo.report.page import Table, png, png_picture, render
from reszoo.studies.results import (
    OPTIONS,
    PRE,
    RunResult,
    Spread,
    StudyResult,
    Variant,
    family_title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_Panels = Sequence["Axes"]
_Draw = Callable[[StudyResult, _Panels, Sequence[str]], None]
_DrawRuns = Callable[["Axes", Sequence["RunResult"], str, str], None]
PAGE = "study.html"
COLUMNS = (
    "model", "parameters", "training error (%)", "test error (%)", "seconds per seed",
    "seeds",
)  # fmt: skip
# Okabe and Ito's colours: of depths, from shallow to deep, and of shortcuts.
_DEPTH_COLOURS = ("#56B4E9", "#009E73", "#E69F00", "#D55E00", "#0072B2", "#CC79A7")
_KIND_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = "os^Dvx"


@dataclass(frozen=True)
class Plot:
    """A plot of a study."""

    title: str
    draw: _Draw  # on axes, one per kind of shortcut or one for all
    legend: str  # its title
    by_kind: bool = True  # whether every kind of shortcut has its own axes


# Changes of less than half a point count as none, whatever the spread of the seeds.
_LEAST = 0.005
# Standard errors by which means must differ: about 95 %.
_ERRORS = 2.0
# Share of the error of guessing from which on a network has learned nothing.
_NEAR_CHANCE = 0.9


class _Effect(NamedTuple):
    """How the training error of one kind of network changes with depth."""

    shallow: Variant
    deep: Variant
    before: Spread
    after: Spread

    @property
    def trend(self) -> str:
        """As the function says; empty for a single depth."""
        return "" if self.deep == self.shallow else trend(self.before, self.after)

    @property
    def change(self) -> float:
        """Of the mean error, in -1..1."""
        return self.after.mean - self.before.mean


def conclude(result: StudyResult) -> list[str]:
    """Return the conclusion of a study as sentences, the one on the claim last."""
    errors = {each: result.training_error(each) for each in result.variants}
    kinds: dict[str, list[Variant]] = {}
    for each in errors:
        kinds.setdefault(each.shortcut, []).append(each)
    ends = [(variants[0], variants[-1]) for variants in kinds.values()]
    effects = [_Effect(a, b, errors[a], errors[b]) for a, b in ends]
    residual = [each for each in effects if not each.deep.plain]
    chance, classes = result.chance, result.conditions.get("data's classes")
    if chance is None:
        chance = 1 - 1 / len(classes) if classes else math.inf

    def not_learned(variants: Iterable[Variant]) -> list[tuple[str, float]]:
        means = [(each.label, errors[each].mean) for each in variants]
        return [each for each in means if each[1] > _NEAR_CHANCE * chance]

    # The two orders of activation, at the greatest depth of both.
    both = [{v.layers: errors[v] for v in kinds.get(k, ())} for k in ("identity", PRE)]
    layers = max(both[0].keys() & both[1].keys(), default=0)
    ranked = sorted(errors.items(), key=lambda each: each[1].mean)
    return render(
        "conclusion_text.j2",
        effects=effects, trend=trend, options=OPTIONS, chance=chance, layers=layers,
        orders=[each.get(layers) for each in both] if all(both) else (),
        ranked=ranked if any(each.is_own for each in errors) else (),
        plain=next((each for each in effects if each.deep.plain), None),
        residual=max(residual, key=lambda each: each.change, default=None),
        shallow_not_learned=not_learned(each.shallow for each in effects),
        deep_not_learned=not_learned(each.deep for each in residual),
        single_seed=min((len(result.of(each)) for each in errors), default=0) < 2,
    ).splitlines()  # fmt: skip


def trend(shallow: Spread, deep: Spread) -> str:
    """Return "rises", "falls" or "stays" for errors from shallow to deep.

    A change counts when it is more than half a point and more than two standard
    errors of the difference of the means.
    """
    change, spreads = deep.mean - shallow.mean, (shallow, deep)
    error = math.sqrt(sum((s.deviation or 0) ** 2 / s.seeds for s in spreads))
    if abs(change) <= max(_LEAST, _ERRORS * error):
        return "stays"
    return "rises" if change > 0 else "falls"


def write_page(result: StudyResult) -> None:
    """Write the plots and `study.html` into the folder, each in one step."""
    drawn = {name: draw(result, name) for name in PLOTS}
    for name, content in drawn.items():
        with atomic_file(result.folder / name) as temporary:
            temporary.write_bytes(content)
    page = render(
        "study.html.j2", result=result, plots=PLOTS,
        title=f"Plain and residual networks by depth: {result.data}",
        family=family_title(result.conditions["family"]),
        steps=max((c.points[-1].step for c in result.runs if c.points), default=0),
        results=Table("Mean ± standard deviation over seeds", COLUMNS, rows(result)),
        pictures={name: png_picture(content) for name, content in drawn.items()},
    )  # fmt: skip
    write_text(result.folder / PAGE, page)


def rows(result: StudyResult) -> list[tuple[str, ...]]:
    """Return the table of a study: a row per model, as `COLUMNS` says."""
    return [
        (
            variant.label, f"{runs[0].parameters:,}",
            str(result.training_error(variant)), str(result.test_error(variant)),
            f"{mean(run.seconds for run in runs):,.0f}", str(len(runs)),
        )
        for variant in result.variants
        for runs in [result.of(variant)]
    ]  # fmt: skip


def draw(result: StudyResult, name: str) -> bytes:
    """Draw one of `PLOTS` as a PNG."""
    plot = PLOTS[name]
    kinds = list(dict.fromkeys(variant.shortcut for variant in result.variants))
    count = len(kinds) if plot.by_kind else 1

    def on(figure: "Figure") -> None:
        panels = list(figure.subplots(1, count, sharey=True, squeeze=False)[0])
        plot.draw(result, panels, kinds)
        shown = [panel.get_legend_handles_labels() for panel in panels]
        lines = {name: line for each in shown for line, name in zip(*each, strict=True)}
        figure.legend(
            lines.values(), lines, title=plot.legend, loc="outside right center"
        )
        family = family_title(result.conditions["family"])
        title = f"{plot.title}\n{family}, on {printable(result.data)}"
        figure.suptitle(title, parse_math=False)

    return png(on, 1.6 + max(5.4, 4.0 * count), 4.2)


def _depths(result: StudyResult, panels: _Panels, kinds: Sequence[str]) -> None:
    (axes,) = panels
    looks = zip(cycle(_KIND_COLOURS), cycle(_MARKERS), strict=False)
    for kind, (colour, marker) in zip(kinds, looks, strict=False):
        variants = [variant for variant in result.variants if variant.shortcut == kind]
        layers = [variant.layers for variant in variants]
        means = [100 * result.training_error(variant).mean for variant in variants]
        axes.plot(layers, means, color=colour, label=variants[0].kind)
        for variant in variants:
            errors = [100 * run.training_error for run in result.of(variant)]
            at = [variant.layers] * len(errors)
            axes.plot(at, errors, marker, color=colour, alpha=0.6)
    axes.set(xlabel="layers", ylabel="final training error (%)", ylim=(0, None))
    axes.set_xticks(sorted({variant.layers for variant in result.variants}))


def _per_kind(draw: _DrawRuns, ylabel: str, **settings: Any) -> _Draw:
    """Return what draws the runs of all variants, those of a kind on its own axes."""

    def on(result: StudyResult, panels: _Panels, kinds: Sequence[str]) -> None:
        depths = sorted({variant.layers for variant in result.variants})
        colours = dict(zip(depths, cycle(_DEPTH_COLOURS), strict=False))
        for axes, kind in zip(panels, kinds, strict=True):
            variants = [each for each in result.variants if each.shortcut == kind]
            for each in variants:
                label = f"{each.layers} layers"
                draw(axes, result.of(each), label, colours[each.layers])
            axes.set(title=variants[0].kind, **settings)
        panels[0].set_ylabel(ylabel)

    return on


def _curve(axes: "Axes", runs: Sequence[RunResult], label: str, colour: str) -> None:
    # Training dashed, test solid, as in figure 6 of He et al. 2015.
    if runs := [run for run in runs if run.points]:
        training, test = (_mean_curve(runs, f"{x}_error") for x in ("training", "test"))
        axes.plot(*training, "--", color=colour, linewidth=1.2)
        axes.plot(*test, color=colour, label=label)


def _by_layer(field: str, ylabel: str, xlabel: str) -> _Draw:
    """Return what draws a field of the snapshots against the layer or block."""

    def draw(axes: "Axes", runs: Sequence[RunResult], label: str, colour: str) -> None:
        runs = [run for run in runs if run.snapshots]
        middle = len(runs[0].snapshots) // 2 if runs else 0
        for place, width in ((0, 0.9), (middle, 2.2)) if runs else ():
            snapshots = [
                run.snapshots[min(place, len(run.snapshots) - 1)] for run in runs
            ]
            each_layer = zip(*(getattr(s, field) for s in snapshots), strict=True)
            values = [mean(of_seeds) for of_seeds in each_layer]
            at, shown = range(1, 1 + len(values)), label if width > 1 else None
            axes.plot(at, values, color=colour, linewidth=width, label=shown)

    return _per_kind(draw, ylabel, xlabel=xlabel, yscale="log")


# File name -> what it shows; `study.html.j2` has the captions.
PLOTS = {
    "depth.png": Plot(
        "Training error by depth", _depths, "markers: single seeds", by_kind=False,
    ),
    "curves.png": Plot(
        "Error during training",
        _per_kind(_curve, "error (%)", xlabel="step", ylim=(0, None)),
        "solid: test\ndashed: training",
    ),
    "gradients.png": Plot(
        "Gradient norm by layer",
        _by_layer("gradients", "norm of the weight gradient", "layer, from the input"),
        "thin: first step\nthick: halfway",
    ),
    "activations.png": Plot(
        "Activation scale by layer",
        # Those inside blocks have another scale, as nothing is added there.
        _by_layer(
            "block_activations", "standard deviation of the activation",
            "stem and blocks, from the input",
        ),
        "thin: first step\nthick: halfway",
    ),
}  # fmt: skip


def _mean_curve(runs: Sequence[RunResult], field: str) -> tuple[list[int], list[float]]:
    """Return steps and the mean over seeds, in %, as far as all seeds went."""
    length = min(len(run.points) for run in runs)
    rows = list(zip(*(run.points[:length] for run in runs), strict=True))
    measured = [row for row in rows if getattr(row[0], field) is not None]
    errors = [100 * mean(getattr(point, field) for point in row) for row in measured]
    return [row[0].step for row in measured], errors
