"""Put a study on one page, with its plots beside it as PNG files."""

import base64
from pathlib import Path

from reszoo.files import atomic_file, write_text
from reszoo.studies import plots
from reszoo.studies.families import find_family
from reszoo.studies.results import StudyResult
from reszoo.training.report_html import STYLE, Html, document, table, tag

PAGE = "study.html"
PLOTS = tuple(plots.PLOTS)
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
    drawn = {name: plots.draw(result, name) for name in PLOTS}
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
        *(_figure(name, drawn[name]) for name in PLOTS if name != "depth.png"),
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
