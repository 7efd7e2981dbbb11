"""Render reports from templates: escaping, tables, pictures and figures."""

import base64
import functools
import io
import os
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reszoo.console import printable

# Exported files are used also where nothing can be rendered.
if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup
    from matplotlib.figure import Figure

_THUMBNAIL = 128  # longest side of a picture, in pixels
# Short side of a heat map at least, in pixels, and its opacity at the maximum.
_SIDE, _OPACITY = 192, 0.7
# Okabe and Ito's blue and vermillion, and an ink. The pages' style sheet defines the
# variables, with lighter colours of the same set for dark screens.
BLUE, VERMILLION, INK = "#0072b2", "#d55e00", "#123456"
_VARIABLES = {
    BLUE: "var(--training)",
    VERMILLION: "var(--validation)",
    INK: "currentColor",
}
_STYLE: dict[str, Any] = {
    "axes.grid": True, "axes.spines.right": False, "axes.spines.top": False,
    "grid.alpha": 0.2, "legend.frameon": False,
}  # fmt: skip
_INKED = "axes.edgecolor axes.labelcolor grid.color text.color xtick.color ytick.color"
_SVG_STYLE: dict[str, Any] = {
    **_STYLE,
    **dict.fromkeys(_INKED.split(), INK),
    "font.size": 10.5,
    "svg.fonttype": "none",  # text stays text, in the page's own font
}


class Outside(str):
    """Text that others chose, such as a label or a path: a code span in Markdown."""

    __slots__ = ()


@dataclass(frozen=True)
class Table:
    """A table of a report."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]  # cells; the first of each row is its head
    text_columns: tuple[int, ...] = (0,)  # the others hold numbers


@dataclass(frozen=True)
class Picture:
    """A picture inside a page."""

    source: str  # a `data:` URL
    pixelated: bool = False  # so small that its pixels should stay sharp


def render(template: str, **values: object) -> str:
    """Render a template of this package: "run.html.j2" as HTML, others as text.

    Every value is escaped; only `Markup` is inserted as it is. A missing variable is an
    error. A "_text.j2" is returned without the line breaks at its end.
    """
    escape = escape_html if template.endswith(".html.j2") else escape_text
    text = environment(escape).get_template(template).render(values)
    return text.rstrip("\n") if template.endswith("_text.j2") else text


@functools.cache
def environment(escape: "Callable[[object], Markup]") -> "Environment":
    """Return an environment in which `escape` is applied to every value."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("reszoo.report"), autoescape=True, finalize=escape,
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    made.filters |= {"number": number, "code": code_span, "outside": Outside}
    return made


def escape_html(value: object) -> "Markup":
    """Escape a value for use between tags and in quoted attributes.

    Invisible characters are shown as escapes, see `printable`.
    """
    from markupsafe import Markup

    return value if isinstance(value, Markup) else Markup.escape(printable(str(value)))


def escape_text(value: object) -> "Markup":
    """Return a value as it is, but for invisible characters (see `printable`)."""
    from markupsafe import Markup

    return value if isinstance(value, Markup) else Markup(printable(str(value)))


def number(value: float | None, spec: str = ",") -> str:
    """Format a number, as `format` does; "-" for None."""
    return "-" if value is None else format(value, spec)


def code_span(text: str) -> str:
    """Return text as a code span. Source: CommonMark 0.31, 6.1."""
    shown = printable(text)
    longest = max(map(len, re.findall("`+", shown)), default=0)
    fence = "`" * (longest + 1)
    padding = " " if longest or not shown.strip() else ""
    return f"{fence}{padding}{shown}{padding}{fence}"


def thumbnail(picture: Image.Image) -> Picture:
    """Return a picture as a small JPEG without its metadata."""
    small = picture.convert("RGB")
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    clean = Image.new("RGB", small.size)
    clean.paste(small)
    clean.save(written := io.BytesIO(), "JPEG", quality=85)
    url = _data_url("image/jpeg", written.getvalue())
    return Picture(url, pixelated=max(clean.size) <= _THUMBNAIL // 2)


def png_picture(content: bytes) -> Picture:
    """Return the content of a PNG file as a picture."""
    return Picture(_data_url("image/png", content))


def overlay(pixels: NDArray[np.uint8], activation: NDArray[np.float32]) -> Image.Image:
    """Colour what the model saw where a class activation map is positive.

    The brightest place is the maximum of the map, whatever its value is; where it is
    negative everywhere nothing is coloured.

    Args:
        pixels: uint8 `(height, width, channels)`, the model's input.
        activation: The map of one class, `(rows, columns)`, enlarged bilinearly.
    """
    import matplotlib as mpl

    image = Image.fromarray(pixels.squeeze()).convert("RGB")
    factor = max(1, -(-_SIDE // min(image.size)))
    image = image.resize((factor * image.width, factor * image.height), 0)
    shares = np.maximum(activation, 0) / max(float(activation.max()), 1e-12)
    enlarged = Image.fromarray(shares.astype(np.float32)).resize(image.size, 2)
    strength = np.clip(np.asarray(enlarged), 0, 1)
    colours = 255 * mpl.colormaps["inferno"](strength)[..., :3]
    opacity = _OPACITY * strength[..., None]
    mixed = (1 - opacity) * np.asarray(image, np.float64) + opacity * colours
    return Image.fromarray(mixed.round().astype(np.uint8))


def svg(name: str, label: str, draw: "Callable[[Figure], None]") -> "Markup":
    """Draw a figure as an `<svg>` element in the colours of the page.

    The name keeps its ids apart from those of other figures, the label says what it
    shows, for screen readers. Drawn on an empty figure, in `BLUE`, `VERMILLION` and
    `INK`.
    """
    from markupsafe import Markup

    # Nothing that differs from one rendering to the next.
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    style = {**_SVG_STYLE, "svg.hashsalt": name}
    written = _figure(draw, (4.8, 3.2), style, format="svg", metadata=nothing).decode()
    # Groups are named alike in every figure, and an id must be unique on a page.
    drawn = re.sub('<g id="[^"]*"', "<g", written)
    for colour, variable in _VARIABLES.items():
        drawn = drawn.replace(colour, variable)
    shape = drawn[drawn.index("<svg") + len("<svg") :]
    # Matplotlib escapes the texts that it draws.
    return Markup(f'<svg role="img" aria-label="{escape_html(label)}"{shape}')


def png(draw: "Callable[[Figure], None]", width: float, height: float) -> bytes:
    """Draw a figure of some inches as a PNG file, the same bytes each time."""
    style = {**_STYLE, "axes.titlesize": 11, "font.size": 10}
    options: dict[str, Any] = {"dpi": 130, "metadata": {"Software": None}}
    return _figure(draw, (width, height), style, format="png", **options)


def shell_command(arguments: Sequence[str]) -> str:
    """Quote arguments so that bash and zsh pass them on as they are."""
    return " ".join(map(_quoted, arguments))


def _data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _figure(draw: Any, size: tuple[float, float], style: Any, **options: Any) -> bytes:
    import matplotlib as mpl

    # Not pyplot, which would start a window system and keep figures.
    from matplotlib.figure import Figure

    with mpl.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        transparent = options["format"] == "svg"
        figure.savefig(written := io.BytesIO(), transparent=transparent, **options)
    return written.getvalue()


def _quoted(argument: str) -> str:
    if argument.isprintable():
        return shlex.quote(argument)
    # What cannot be shown could not be copied: each byte as its number.
    numbers = "".join(f"\\x{byte:02x}" for byte in os.fsencode(argument))
    return f"$'{numbers}'"
