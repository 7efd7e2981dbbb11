"""The report of an export as one page that needs nothing but a browser."""

from PIL import Image

from reszoo.report.html import STYLE, Html, document, folded, table, tag, thumbnail
from reszoo.report.run import shell_command
from reszoo_export.manifest import Disagreement, FileRecord, Manifest
from reszoo_export.reporting import content
from reszoo_export.reporting.advice import advise
from reszoo_export.reporting.content import Table
from reszoo_export.verification.reference import Reference


def page(manifest: Manifest, reference: Reference) -> str:
    """Return the report as HTML without scripts or other files."""
    title = f"Export of {manifest.card.architecture.spec}"
    # The style of a run's report, so that both look alike.
    return document(title, STYLE, [tag("h1", title), *_sections(manifest, reference)])


def _sections(manifest: Manifest, reference: Reference) -> list[Html]:
    return [
        tag("p", content.lead(manifest), class_="lead"),
        *_problems(manifest),
        _answers(manifest),
        _cost(manifest),
        _advice(manifest),
        _contract(manifest),
        _worst(manifest, reference),
        _commands(manifest),
        _origin(manifest),
    ]


def _section(title: str, *inside: object) -> Html:
    return tag("section", tag("h2", title), *inside)


def _table(shown: Table) -> Html:
    return table(shown.caption, shown.columns, shown.rows, words=shown.words)


def _problems(manifest: Manifest) -> list[Html]:
    found = content.problems(manifest)
    items = [tag("li", tag("mark", problem)) for problem in found]
    return [_section("What is wrong", tag("ul", *items))] if found else []


def _answers(manifest: Manifest) -> Html:
    note = tag("p", content.answer_note(manifest), class_="quiet")
    shown = _table(content.answer_table(manifest))
    return _section("How the files answer", shown, note)


def _cost(manifest: Manifest) -> Html:
    note = tag("p", content.cost_note(manifest), class_="quiet")
    return _section("What they cost", _table(content.cost_table(manifest)), note)


def _advice(manifest: Manifest) -> Html:
    rows = [[each.use, each.file or "none", each.reason] for each in advise(manifest)]
    shown = [
        tag("p", tag("b", f"{use}:"), tag("code", file), tag("br"), reason)
        for use, file, reason in rows
    ]
    return _section("Which file to use for what", *shown)


def _contract(manifest: Manifest) -> Html:
    steps = [tag("li", step) for step in content.contract(manifest.card)]
    return _section(
        "What goes in and what comes out",
        tag("ol", *steps),
        tag("p", content.labels_note(manifest.card)),
        folded("Names, numbers and shapes", _table(content.tensor_table(manifest))),
    )


def _worst(manifest: Manifest, reference: Reference) -> Html:
    note = (
        "The images on which a file's probabilities are farthest from the model's: "
        "what the model says, and below it what the file says."
    )
    shown = [_of_file(record, manifest, reference) for record in manifest.files]
    return _section(
        "Where the files differ most from the model", tag("p", note), *shown
    )


def _of_file(record: FileRecord, manifest: Manifest, reference: Reference) -> Html:
    found = record.verification.worst
    pictures = [_picture(each, manifest, reference) for each in found]
    shown = tag("ul", *pictures, class_="mistakes") if found else ""
    if found and content.agrees(found):
        shown = folded("The pictures", shown)
    told = content.largest(found)
    return tag("div", tag("h3", record.file), tag("p", told), shown)


def _picture(each: Disagreement, manifest: Manifest, reference: Reference) -> Html:
    truth = content.shows(each.image, manifest.card, reference)
    told = f"Image {each.image}: {truth}"
    same = each.model_label == each.file_label
    shown = thumbnail(Image.fromarray(reference.images[each.image]), told, told)
    caption = [
        tag("b", each.model_label),
        f" {each.model_probability:.1%}",
        tag("br"),
        tag("span" if same else "mark", each.file_label),
        f" {each.file_probability:.1%}",
        tag("br"),
        f"is {truth}, differs by {each.difference:.2g}",
    ]
    return tag("li", tag("figure", shown, tag("figcaption", *caption)))


def _commands(manifest: Manifest) -> Html:
    shown: list[Html] = []
    for what, arguments in content.commands(manifest):
        line = shell_command(["reszoo", *arguments])
        shown += [tag("p", what), tag("pre", tag("code", line))]
    return _section("Commands", tag("p", "To be typed in this folder."), *shown)


def _origin(manifest: Manifest) -> Html:
    whence = _table(content.origin_table(manifest.card))
    told = " ".join(content.licence_note(manifest.card))
    return _section("Licence and origin", tag("p", told), folded("Origin", whence))
