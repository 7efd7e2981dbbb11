"""The report of a study and its plots."""

import base64
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from reszoo.files import atomic_file, write_text
from reszoo.report.html import STYLE, Html, document, table, tag
from reszoo.studies.families import OPTIONS, Net, find_family
from reszoo.studies.results import Course, StudyResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes


# Okabe and Ito's colours, from shallow to deep.
_COLOURS = ("#56B4E9", "#009E73", "#E69F00", "#D55E00", "#0072B2", "#CC79A7")
_MARKS = {"none": "o", "identity": "s", "projection": "^", "projection-all": "D"}
_STYLE: Any = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "font.size": 10,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}
_DPI = 130
Draw = Callable[[StudyResult, Sequence["Axes"], Sequence[str]], None]


def curves(result: StudyResult, panels: Sequence["Axes"], kinds: Sequence[str]) -> None:
    """Draw the error against the step: training dashed, test solid, as in figure 6."""
    for axes, kind in zip(panels, kinds, strict=True):
        for net, colour in _coloured(result, kind):
            courses = [course for course in result.of(net) if course.points]
            if not courses:
                continue
            steps, errors = _mean_curve(courses, "training_error")
            axes.plot(steps, errors, "--", color=colour, linewidth=1.2)
            steps, errors = _mean_curve(courses, "test_error")
            axes.plot(steps, errors, color=colour, label=f"{net.layers} layers")
        axes.set(title=_title(kind), xlabel="step", ylim=(0, None))
        axes.legend(title="solid: test\ndashed: training")
    panels[0].set_ylabel("error (%)")


def depths(result: StudyResult, panels: Sequence["Axes"], kinds: Sequence[str]) -> None:
    """Draw the final training error against depth: means as lines, seeds as dots."""
    (axes,) = panels
    for index, kind in enumerate(kinds):
        nets = [net for net in result.nets if net.shortcut == kind]
        colour = _kind_colour(index)
        layers = [net.layers for net in nets]
        means = [100 * result.training_error(net).mean for net in nets]
        axes.plot(layers, means, color=colour, label=_title(kind))
        for net in nets:
            errors = [100 * course.training_error for course in result.of(net)]
            at = [net.layers] * len(errors)
            axes.plot(at, errors, _MARKS[kind], color=colour, alpha=0.6)
    axes.set(
        xlabel="layers",
        ylabel="training error at the end (%)",
        xticks=sorted({net.layers for net in result.nets}),
        ylim=(0, None),
    )
    axes.legend(title="dots: single seeds")


def gradients(
    result: StudyResult, panels: Sequence["Axes"], kinds: Sequence[str]
) -> None:
    """Draw the norm of each layer's gradient, at first (thin) and half-way (bold)."""
    _by_layer(result, panels, kinds, "gradients")
    panels[0].set_ylabel("norm of the gradient of a layer's weights")


def activations(
    result: StudyResult, panels: Sequence["Axes"], kinds: Sequence[str]
) -> None:
    """Draw the scale of each layer's activation, at first (thin) and half-way."""
    _by_layer(result, panels, kinds, "activations")
    panels[0].set_ylabel("standard deviation after each ReLU")


# Name of the file -> how it is drawn, its title, and whether kinds have panels.
PLOTS: dict[str, tuple[Draw, str, bool]] = {
    "depth.png": (depths, "What more layers do to the training error", False),
    "curves.png": (curves, "How plain and residual nets learn", True),
    "gradients.png": (
        gradients, "What reaches each layer on the way back", True,
    ),
    "activations.png": (
        activations, "What is left of the signal on the way forward", True,
    ),
}  # fmt: skip


def draw(result: StudyResult, name: str) -> bytes:
    """Draw one of `PLOTS` as a PNG."""
    import matplotlib as mpl

    # Not pyplot, which would start a window system and keep figures.
    from matplotlib.figure import Figure

    function, title, divided = PLOTS[name]
    kinds = list(dict.fromkeys(net.shortcut for net in result.nets))
    count = len(kinds) if divided else 1
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(max(6.4, 4.3 * count), 4.2), layout="constrained")
        panels = list(figure.subplots(1, count, sharey=True, squeeze=False)[0])
        function(result, panels, kinds)
        family = find_family(result.conditions["family"]).title
        figure.suptitle(f"{title}\n{family}, on {result.data}")
        written = io.BytesIO()
        # Nothing that differs from one writing to the next.
        figure.savefig(written, format="png", dpi=_DPI, metadata={"Software": None})
    return written.getvalue()


def _by_layer(
    result: StudyResult, panels: Sequence["Axes"], kinds: Sequence[str], field: str
) -> None:
    for axes, kind in zip(panels, kinds, strict=True):
        for net, colour in _coloured(result, kind):
            courses = [course for course in result.of(net) if course.snapshots]
            if not courses:
                continue
            for place, width in ((0, 0.9), (len(courses[0].snapshots) // 2, 2.2)):
                values = _mean_snapshot(courses, place, field)
                label = f"{net.layers} layers" if width > 1 else None
                at = range(1, len(values) + 1)
                axes.plot(at, values, color=colour, linewidth=width, label=label)
        axes.set(title=_title(kind), xlabel="layer, from the image", yscale="log")
        axes.legend(title="thin: first step\nbold: half-way")


def _coloured(result: StudyResult, kind: str) -> list[tuple[Net, str]]:
    depths = sorted({net.layers for net in result.nets})
    nets = [net for net in result.nets if net.shortcut == kind]
    return [(net, _COLOURS[depths.index(net.layers) % len(_COLOURS)]) for net in nets]


def _kind_colour(index: int) -> str:
    return ("#D55E00", "#0072B2", "#009E73", "#CC79A7")[index % 4]


def _title(kind: str) -> str:
    return "plain" if kind == "none" else f"residual, option {OPTIONS[kind]}"


def _mean_curve(courses: Sequence[Course], field: str) -> tuple[list[int], list[float]]:
    """Return steps and the mean over seeds, in %, as far as all seeds went."""
    length = min(len(course.points) for course in courses)
    rows = list(zip(*(course.points[:length] for course in courses), strict=True))
    measured = [row for row in rows if getattr(row[0], field) is not None]
    errors = [100 * mean(getattr(point, field) for point in row) for row in measured]
    return [row[0].step for row in measured], errors


def _mean_snapshot(courses: Sequence[Course], place: int, field: str) -> list[Any]:
    seen = [
        getattr(course.snapshots[min(place, len(course.snapshots) - 1)], field)
        for course in courses
    ]
    return [mean(values) for values in zip(*seen, strict=True)]


PAGE = "study.html"
PLOT_SECTIONS = tuple(PLOTS)
_SAYS = {
    "depth.png": (
        "Training error at the end, against depth. A deeper net could copy a shallow "
        "one and let its other layers pass everything on, so its training error need "
        "not be higher. A plain net does not find that; a residual net begins with it."
    ),
    "curves.png": (
        "Error against steps, mean over the seeds. Training errors are those of the "
        "batches, as they were trained on."
    ),
    "gradients.png": (
        "The norm of the gradient of every layer's weights, mean over the seeds. Where "
        "it changes by powers of ten from layer to layer, no single learning rate "
        "suits them all."
    ),
    "activations.png": (
        "The scale of the signal after every ReLU, mean over the seeds. Batch "
        "normalisation holds it in a plain net; in a residual net every block adds to "
        "it."
    ),
}


def write_page(result: StudyResult) -> None:
    """Write the plots and `study.html` into the folder, each in one step."""
    drawn = {name: draw(result, name) for name in PLOT_SECTIONS}
    for name, content in drawn.items():
        with atomic_file(result.folder / name) as temporary:
            temporary.write_bytes(content)
    family = find_family(result.conditions["family"])
    title = f"Depth, with shortcuts and without: {result.data}"
    body = [
        tag("h1", title),
        tag("p", " ".join(result.conclusion), class_="lead"),
        tag("p", _setting(result, family.title)),
        _figure("depth.png", drawn["depth.png"]),
        tag("h2", "Every net"),
        _table(result),
        tag("h2", "How they got there"),
        *(_figure(name, drawn[name]) for name in PLOT_SECTIONS if name != "depth.png"),
    ]
    write_text(Path(result.folder) / PAGE, document(title, STYLE, body))


def rows(result: StudyResult) -> list[tuple[str, ...]]:
    """Return the table of a study: net, parameters, errors in %, seconds, seeds."""
    found: list[tuple[str, ...]] = []
    for net in result.nets:
        courses = result.of(net)
        seconds = sum(course.seconds for course in courses) / len(courses)
        found.append(
            (
                net.label,
                f"{courses[0].parameters:,}",
                str(result.training_error(net)),
                str(result.test_error(net)),
                f"{seconds:,.0f}",
                str(len(courses)),
            )
        )
    return found


COLUMNS = (
    "net",
    "parameters",
    "training error (%)",
    "test error (%)",
    "seconds a seed",
    "seeds",
)


def _table(result: StudyResult) -> Html:
    caption = "Errors at the end: mean over the seeds ± standard deviation"
    return table(caption, COLUMNS, rows(result))


def _setting(result: StudyResult, family: str) -> str:
    names = ("name", "batch_size", "learning_rate")
    recipe, batch, rate = (result.conditions[f"recipe's {name}"] for name in names)
    return (
        f"The {family}, from images of {result.conditions['size']} pixels: recipe "
        f"{recipe}, batches of {batch}, learning rate {rate:g}, {_length(result)}, "
        f"{result.conditions['precision']}. Nets of one depth differ in their "
        "shortcuts alone."
    )


def _length(result: StudyResult) -> str:
    ends = [course.points[-1].step for course in result.courses if course.points]
    return f"{max(ends, default=0):,} steps"


def _figure(name: str, content: bytes) -> Html:
    source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    picture = tag("img", src=source, alt=_SAYS[name], style="max-width: 100%")
    return tag("figure", picture, tag("figcaption", _SAYS[name]))
