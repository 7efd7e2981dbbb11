"""The report of an export as Markdown, for where code is read."""

import re
from collections.abc import Sequence

from reszoo.report.run import shell_command
from reszoo_export.manifest import Manifest
from reszoo_export.reporting import content
from reszoo_export.reporting.advice import advise
from reszoo_export.reporting.content import Outside, Table
from reszoo_export.verification.reference import Reference


def markdown(manifest: Manifest, reference: Reference) -> str:
    """Return the report in GitHub's Markdown."""
    card = manifest.card
    parts = [
        f"# Export of {_safe(Outside(card.architecture.spec))}",
        content.lead(manifest),
        *_list(content.problems(manifest)),
        "## How the files answer",
        _table(content.answer_table(manifest)),
        _plain(content.answer_note(manifest)),
        "## What they cost",
        _table(content.cost_table(manifest)),
        _plain(content.cost_note(manifest)),
        "## Which file to use for what",
        _advice(manifest),
        "## What goes in and what comes out",
        _numbered(content.contract(card)),
        content.labels_note(card),
        _table(content.tensor_table(manifest)),
        "## Where the files differ most from the model",
        "`report.html` shows the pictures; made-up images have the last numbers.",
        *_worst(manifest, reference),
        "## Commands",
        "To be typed in this folder.",
        *_commands(manifest),
        "## Licence and origin",
        " ".join(map(_safe, content.licence_note(card))),
        _table(content.origin_table(card)),
    ]
    return "\n\n".join(parts) + "\n"


def code(text: str) -> str:
    """Return text as a code span, in which nothing is markup.

    Characters that cannot be seen become escapes. Source: CommonMark 0.31, 6.1.
    """
    seen = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    longest = max(map(len, re.findall("`+", seen)), default=0)
    fence = "`" * (longest + 1)
    padding = " " if longest or not seen.strip() else ""
    return f"{fence}{padding}{seen}{padding}{fence}"


def _safe(text: str) -> str:
    return code(text) if isinstance(text, Outside) else text


def _plain(note: str) -> str:
    # A processor's name is its maker's affair.
    return re.sub(r"([\\`*_<>\[\]|])", r"\\\1", note)


def _table(table: Table) -> str:
    rule = ["---" if i in table.words else "---:" for i in range(len(table.columns))]
    # A bar would end the cell, also inside a code span (GFM, 4.10).
    rows = [[_safe(cell).replace("|", r"\|") for cell in row] for row in table.rows]
    lines = [table.columns, rule, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _list(items: Sequence[str]) -> list[str]:
    return ["\n".join(f"* {_safe(item)}" for item in items)] if items else []


def _numbered(items: Sequence[str]) -> str:
    return "\n".join(f"{number}. {item}" for number, item in enumerate(items, 1))


def _advice(manifest: Manifest) -> str:
    return "\n".join(
        f"* **{each.use}:** {code(each.file) if each.file else 'none'}. {each.reason}"
        for each in advise(manifest)
    )


def _worst(manifest: Manifest, reference: Reference) -> list[str]:
    parts = []
    for record in manifest.files:
        found = record.verification.worst
        rows = content.worst_rows(found, manifest.card, reference)
        table = Table(
            caption=record.file,
            columns=content.WORST_COLUMNS,
            rows=rows,
            words=(1, 2, 3),
        )
        parts += [f"### {record.file}", content.largest(found)]
        parts += [] if content.agrees(found) else [_table(table)]
    return parts


def _commands(manifest: Manifest) -> list[str]:
    return [
        f"{what}\n\n```\n{shell_command(['reszoo', *arguments])}\n```"
        for what, arguments in content.commands(manifest)
    ]
