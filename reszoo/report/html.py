"""Write HTML in which text from outside is always escaped."""

import base64
import html
import io
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from PIL import Image

_THUMBNAIL = 128  # longest side of a picture, in pixels
_ROWS = 50  # of a table, before the rest is folded away
_EMPTY = {"br", "img", "meta"}
# Nothing is fetched and nothing runs, whatever a file or a class is called.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
STYLE = Path(__file__).with_name("report.css")


class Html(str):
    """Text that is markup already; any other text is escaped where it is used."""

    __slots__ = ()


def text(value: object) -> Html:
    """Escape a value for use between tags and in quoted attributes.

    Characters that cannot be seen or written, such as the halves of a broken file
    name, line breaks and changes of direction, are shown as escapes.
    """
    if isinstance(value, Html):
        return value
    seen = (c if c.isprintable() else ascii(c)[1:-1] for c in str(value))
    return Html(html.escape("".join(seen)))


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """Return an element; `class_` stands for the attribute `class`, and so on."""
    written = [name]
    for key, value in attributes.items():
        written.append(f'{key.rstrip("_").replace("_", "-")}="{text(value)}"')
    opening = f"<{' '.join(written)}>"
    if name in _EMPTY:
        return Html(opening)
    return Html(f"{opening}{''.join(map(text, children))}</{name}>\n")


def document(title: str, style: Path, content: Iterable[Html]) -> str:
    """Return a whole page: HTML without scripts that needs no other file.

    Args:
        title: Of the page.
        style: Its style sheet, which goes inside.
        content: What stands in it, in order.
    """
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Html(style.read_text(encoding="ascii"))),
    ]
    body = tag("body", tag("main", *content))
    return f"<!doctype html>\n{tag('html', tag('head', *head), body, lang='en')}"


def table(
    caption: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    words: Collection[int] = (0,),
) -> Html:
    """Return a table that folds away what exceeds some 50 rows.

    Args:
        caption: What the table shows.
        columns: Heads of the columns.
        rows: The cells; the first of a row is its head.
        words: Columns that hold text; the others hold numbers.
    """
    everything = list(rows)
    shown = _table(caption, columns, everything[:_ROWS], words)
    if len(everything) <= _ROWS:
        return shown
    rest = everything[_ROWS:]
    more = _table(f"{caption}, continued", columns, rest, words)
    return Html(shown + folded(f"{len(rest):,} more", more))


def scrolling_table(
    caption: str, head: Html, body: Iterable[Html], *, kind: str
) -> Html:
    """Return a table that scrolls by itself where it is wider than the screen.

    Args:
        caption: What the table shows.
        head: The row of column heads.
        body: The other rows.
        kind: Its class in the style sheet.
    """
    content = tag(
        "table",
        tag("caption", caption),
        tag("thead", head),
        tag("tbody", *body),
        class_=kind,
    )
    # Only what can have the focus can be scrolled from the keyboard.
    reachable = {"tabindex": 0, "role": "region", "aria_label": caption}
    return tag("div", content, class_="wide", **reachable)


def folded(summary: str, *content: object) -> Html:
    """Return content that shows once its summary is clicked."""
    return tag("details", tag("summary", summary), *content)


def thumbnail(picture: Image.Image, description: str, hint: str) -> Html:
    """Return a picture as a small JPEG inside the page, without its metadata."""
    small = picture.convert("RGB")
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    clean = Image.new("RGB", small.size)
    clean.paste(small)
    written = io.BytesIO()
    clean.save(written, "JPEG", quality=85)
    content = base64.b64encode(written.getvalue()).decode()
    return tag(
        "img",
        src=f"data:image/jpeg;base64,{content}",
        alt=description,
        title=hint,
        class_="small" if max(clean.size) <= _THUMBNAIL // 2 else "large",
    )


def _table(
    caption: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    words: Collection[int],
) -> Html:
    head = [
        tag("th", column, scope="col", class_=_kind(i, words))
        for i, column in enumerate(columns)
    ]
    body = [tag("tr", *_cells(row, words)) for row in rows]
    return scrolling_table(caption, tag("tr", *head), body, kind="list")


def _cells(row: Sequence[object], words: Collection[int]) -> list[Html]:
    head = tag("th", row[0], scope="row")
    return [
        head,
        *(tag("td", x, class_=_kind(i, words)) for i, x in enumerate(row[1:], 1)),
    ]


def _kind(column: int, words: Collection[int]) -> str:
    return "word" if column in words else "number"
