"""Figures of the training report as SVG."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from reszoo.report.html import Html, text
from reszoo.report.statistics import Bin
from reszoo.training.history import Epoch

if TYPE_CHECKING:
    from matplotlib.axes import Axes


# Okabe and Ito's blue and vermillion, and an ink. The page's style sheet defines the
# variables, with lighter colours of the same set for dark screens.
_TRAINING, _VALIDATION, _INK = "#0072b2", "#d55e00", "#123456"
_VARIABLES = {
    _TRAINING: "var(--training)",
    _VALIDATION: "var(--validation)",
    _INK: "currentColor",
}
_Series = Mapping[str, Sequence[float | None]]
_STYLE = {
    "axes.edgecolor": _INK,
    "axes.grid": True,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 10.5,
    "grid.alpha": 0.2,
    "grid.color": _INK,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text, in the page's own font
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


def loss_curve(history: Sequence[Epoch]) -> Html:
    """Draw the loss of training and validation against epochs."""
    series: _Series = {
        "training": [row.loss for row in history],
        "validation": [row.validation_loss for row in history],
    }

    def draw(axes: "Axes") -> None:
        _curves(axes, history, series)
        axes.set(ylabel="loss (nats)", yscale="log")
        _plain_log_ticks(axes)

    return _svg("loss", f"Loss by epoch. {_in_words(series)}", draw)


def error_curve(history: Sequence[Epoch]) -> Html:
    """Draw the top-1 error of training and validation against epochs."""
    series: _Series = {
        "training": [100 * (1 - row.top1) for row in history],
        "validation": [
            None if row.validation_top1 is None else 100 * (1 - row.validation_top1)
            for row in history
        ],
    }

    def draw(axes: "Axes") -> None:
        _curves(axes, history, series)
        axes.set(ylabel="top-1 error (%)", ylim=(0, None))

    return _svg("error", f"Top-1 error in % by epoch. {_in_words(series)}", draw)


def rate_curve(history: Sequence[Epoch]) -> Html:
    """Draw the learning rate against epochs."""
    rates = [row.learning_rate for row in history]

    def draw(axes: "Axes") -> None:
        _curves(axes, history, {"learning rate": rates})
        axes.set(ylabel="learning rate", ylim=(0, None))

    says = f"highest {max(rates):.3g}, at the end {rates[-1]:.3g}"
    return _svg("rate", f"Learning rate by epoch: {says}.", draw)


def reliability_diagram(bins: Sequence[Bin]) -> Html:
    """Draw the accuracy against the confidence of each bin that has images."""
    filled = [group for group in bins if group.images]
    most = max(group.images for group in filled)

    def draw(axes: "Axes") -> None:
        axes.plot([0, 100], [0, 100], ":", color=_INK, label="as sure as right")
        confidence = [100 * group.confidence for group in filled]
        accuracy = [100 * group.accuracy for group in filled]
        axes.plot(confidence, accuracy, color=_VALIDATION, alpha=0.5)
        areas = [8 + 100 * group.images / most for group in filled]
        axes.scatter(confidence, accuracy, areas, color=_VALIDATION, label="this net")
        axes.set(
            xlabel="mean probability of the prediction (%)",
            ylabel="share that is right (%)",
            xlim=(0, 102),
            ylim=(0, 105),
        )
        axes.legend(markerscale=0.6)

    says = "Reliability diagram: share of right answers against their probability"
    return _svg("reliability", f"{says}; the table below has the numbers.", draw)


def _curves(axes: "Axes", history: Sequence[Epoch], series: _Series) -> None:
    from matplotlib.ticker import MaxNLocator

    for name, values in series.items():
        pairs = zip(history, values, strict=True)
        points = [(row.epoch, y) for row, y in pairs if y is not None]
        if not points:
            continue
        second = name == "validation"
        colour, dashes = (_VALIDATION, "--") if second else (_TRAINING, "-")
        # A lone epoch would be an invisible line.
        marker = "o" if len(points) == 1 else None
        epochs, measured = zip(*points, strict=True)
        axes.plot(
            epochs,
            measured,
            dashes,
            color=colour,
            marker=marker,
            label=name,
            clip_on=False,
        )
    axes.set(xlabel="epoch", xlim=(history[0].epoch - 0.5, history[-1].epoch + 0.5))
    axes.xaxis.set_major_locator(
        MaxNLocator(6, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1)
    )
    if len(series) > 1:
        axes.legend()


def _in_words(series: _Series) -> str:
    measured = {name: [y for y in ys if y is not None] for name, ys in series.items()}
    changes = [f"{n} from {y[0]:.3g} to {y[-1]:.3g}" for n, y in measured.items() if y]
    return "; ".join(changes) + "."


def _plain_log_ticks(axes: "Axes") -> None:
    """Label 0.2 as 0.2 on a logarithmic axis; more numbers a decade on short ones."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axes.get_ylim()
    subs = range(1, 10) if high / low < 5 else (1, 2, 5) if high / low < 100 else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _svg(name: str, label: str, draw: "Callable[[Axes], None]") -> Html:
    """Draw one figure; `name` keeps its ids apart from the page's other figures."""
    import matplotlib as mpl

    # Not pyplot, which would start a window system and keep figures.
    from matplotlib.figure import Figure

    style: Any = {**_STYLE, "svg.hashsalt": name}
    with mpl.rc_context(style):
        figure = Figure(figsize=(4.8, 3.2), layout="constrained")
        draw(figure.subplots())
        written = io.StringIO()
        # Nothing that differs from one writing to the next.
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(written, format="svg", transparent=True, metadata=nothing)
    # Groups are named alike in every figure, and an id must be unique on a page.
    drawn = re.sub('<g id="[^"]*"', "<g", written.getvalue())
    for colour, variable in _VARIABLES.items():
        drawn = drawn.replace(colour, variable)
    shape = drawn[drawn.index("<svg") + len("<svg") :]
    return Html(f'<svg role="img" aria-label="{text(label)}"{shape}')
