"""The report of an export: its files, how good they are, and which to use for what."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from reszoo.cards import Card
from reszoo.console import printable
from reszoo.fields import read_tables
from reszoo.files import write_text
from reszoo.metrics import class_rows, confusion_matrix
from reszoo.preprocessing import to_image
from reszoo.report import page
from reszoo.report.page import Outside, Picture, Table, code_span, number
from reszoo.training.report import recipe_defaults, reliability_diagram
from reszoo_export.benchmark import LATENCY_COLUMNS, latency_cells
from reszoo_export.formats import FORMATS
from reszoo_export.manifest import FileRecord, Manifest
from reszoo_export.metadata import licence
from reszoo_export.verification.reference import Reference

# Smaller differences are floating-point rounding: a sentence instead of pictures.
_ROUNDING = 0.01
# Classes that the table of classes shows.
_CLASSES = 30
# Underscores inside words are no emphasis in GitHub's Markdown.
_MARKUP = r"[\\`*<>\[\]|]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])"


@dataclass(frozen=True, kw_only=True)
class Use:
    """A purpose, and the formats that suit it, best first.

    `why` tells what it requires. If `here`, the file runs on machines like the one that
    measured, so that a file which is slower here is not recommended. If `integers`, it
    must be of integers alone.
    """

    name: str
    formats: Sequence[str]
    why: str
    here: bool = False
    integers: bool = False


@dataclass(frozen=True, kw_only=True)
class Advice:
    """Which file to use for a purpose, and why; None where no file suits it."""

    use: str
    file: str | None
    reason: str


USES = tuple(Use(**row) for row in read_tables("reszoo_export", "uses.toml")["use"])


def write_report(folder: Path, manifest: Manifest, reference: Reference) -> None:
    """Write `REPORT.md` and `report.html` into the folder of an export.

    Both are the same for the same export, apart from what was measured. The reference
    has the images that `Disagreement.image` indexes.
    """
    content = _content(manifest, reference)
    # The same style as a run's report.
    write_text(folder / "report.html", page.render("export.html.j2", **content))
    template = page.environment(escape_markdown).get_template("export.md.j2")
    write_text(folder / "REPORT.md", template.render(content, cell=markdown_cell))


def advise(manifest: Manifest) -> list[Advice]:
    """Return one piece of advice per use; only verified files are recommended."""
    records = {record.format: record for record in manifest.files}
    uses = (each for each in USES if manifest.options.integer_io or not each.integers)
    return [_advice(use, records) for use in uses]


def escape_markdown(value: object) -> Markup:
    """Escape a value for use within a line of GitHub's Markdown.

    Text from outside becomes a code span, in which nothing is markup.
    """
    if isinstance(value, Markup):
        return value
    if isinstance(value, Outside):
        return Markup(code_span(value))
    return Markup(re.sub(_MARKUP, r"\\\g<0>", printable(str(value))))


def markdown_cell(value: object) -> Markup:
    """Escape a value for use in a table."""
    # A bar ends a cell even inside a code span (GFM, 4.10).
    if isinstance(value, Outside):
        return Markup(code_span(value).replace("|", r"\|"))
    return escape_markdown(value)


def _content(manifest: Manifest, reference: Reference) -> dict[str, Any]:
    """Return what both templates show."""
    card, files = manifest.card, manifest.files
    features = manifest.options.outputs == "features"
    found = [each.verification for each in files]
    verified = [each.file for each in files if not each.verification.problems]
    return {
        "features": features,
        "title": f"Export of {card.architecture.name}",
        "verified": len(verified),
        "files": files,
        # What MediaPipe's ImageClassifier opens.
        "mediapipe": any(
            FORMATS[each.format].runtime.name == "tflite"
            and each.outputs[0]["name"] == "probabilities"
            for each in files
        ),
        "found": next((each for each in found if each.compared), found[0]),
        "problems": manifest.problems,
        "answers": _answer_table(files),
        "recalls": _class_table(files, card, reference),
        "reliability": _reliability(files),
        "runtimes": sorted({each.runtime for each in found}),
        "costs": _cost_table(files),
        "latency": next((each.latency for each in files if each.latency), None),
        "advice": advise(manifest),
        "card": card,
        "tensors": _tensor_table(files),
        "differences": [_difference(each, card, reference) for each in files],
        "commands": [
            (purpose, page.shell_command(["reszoo", *arguments]))
            for purpose, arguments in _commands(verified, features=features)
        ],
        "known": licence(card),
        "origin": _origin_table(card),
    }


def _advice(use: Use, records: Mapping[str, FileRecord]) -> Advice:
    environment = page.environment(page.escape_text)
    sentences: Any = environment.get_template("advice_text.j2").module
    rejected: list[str] = []
    for record in (records[name] for name in use.formats if name in records):
        row = FORMATS[record.format]
        # The verified float32 file of the same runtime, if it is another one.
        base = records.get(row.runtime.name)
        if base is record or (base and base.verification.problems):
            base = None
        found = str(sentences.advice(record, base, row, use))
        doubt, *compared = found.splitlines()
        if not doubt:
            reason = " ".join([use.why, *compared, *rejected])
            return Advice(use=use.name, file=record.file, reason=reason)
        rejected.append(f"{record.file} is not recommended: {doubt}.")
    if wanted := [name for name in use.formats if name not in records]:
        add = "Add" if rejected else "Not exported; add"
        rejected.append(f"{add} --formats {wanted[0]}.")
    return Advice(use=use.name, file=None, reason=" ".join(rejected))


# Column -> field of a `Verification`, and how it is written.
_ANSWERS = {
    "accuracy": ("accuracy", ".2%"), "top-1 agreement": ("agreement", ".2%"),
    "top-5 agreement": ("top5_agreement", ".2%"),
    "largest difference": ("max_difference", ".1e"),
    "mean difference": ("mean_difference", ".1e"),
    "confidence change": ("drift", "+.1e"),
}  # fmt: skip


def _answer_table(files: Sequence[FileRecord]) -> Table:
    rows = []
    for each in files:
        found = each.verification
        cells = [number(getattr(found, name), spec) for name, spec in _ANSWERS.values()]
        rows.append([each.file, "FAILED" if found.problems else "verified", *cells])
    columns = ("file", "status", *_ANSWERS)
    return Table("Each file compared with the model", columns, rows, (0, 1))


def _class_table(
    files: Sequence[FileRecord], card: Card, reference: Reference
) -> Table | None:
    """Return the accuracy on each class, those first in which a file loses most."""
    measured = [each for each in files if each.verification.recalls]
    if not measured:
        return None
    outputs = reference.outputs[reference.compared]
    found = class_rows(confusion_matrix(reference.targets, outputs))
    rows = []
    for row in (each for each in found if each.recall is not None):
        recalls = [each.verification.recalls[row.index] for each in measured]
        loss = min(recall or 0 for recall in recalls) - (row.recall or 0)
        shares = (number(recall, ".1%") for recall in (row.recall, *recalls))
        cells = [Outside(card.label(row.index)), number(row.images), *shares]
        rows.append((loss, row.index, cells))
    columns = ("class", "images", "model", *(each.file for each in measured))
    first = [cells for _, _, cells in sorted(rows)[:_CLASSES]]
    return Table("Accuracy by class", columns, first, (0,))


def _reliability(files: Sequence[FileRecord]) -> dict[str, Any] | None:
    """Return what is shown of calibration, of files whose model has a temperature."""
    known = [(each, f) for each in files if (f := each.verification.reliability)]
    if not known:
        return None
    rows = [
        [each.file, f"{found.error_before:.2%}", f"{found.error_after:.2%}"]
        for each, found in known
    ]
    file, first = known[0]
    return {
        "table": Table("Expected calibration error", ("file", "before", "after"), rows),
        "file": file.file,
        "images": sum(each.images for each in first.after),
        "diagram": reliability_diagram(first.before, first.after),
    }


def _cost_table(files: Sequence[FileRecord]) -> Table:
    columns = ("file", "size", "median latency", *LATENCY_COLUMNS[1:-1])
    rows = []
    for each in files:
        cells = latency_cells(each.latency, ",.0f")[:-1]
        rows.append([each.file, f"{each.bytes / 1e6:,.2f} MB", *cells])
    return Table("Size, latency and memory of each file", columns, rows)


def _tensor_table(files: Sequence[FileRecord]) -> Table:
    rows = [
        [record.file, kind, tensor["name"], tensor["dtype"], _shape(tensor)]
        for record in files
        for kind, tensors in (("input", record.inputs), ("output", record.outputs))
        for tensor in tensors
    ]
    columns = ("file", "kind", "name", "dtype", "shape")
    return Table("Inputs and outputs", columns, rows, (0, 1, 2, 3, 4))


def _shape(tensor: Mapping[str, Any]) -> str:
    shape = " x ".join("batch" if s in (-1, None) else str(s) for s in tensor["shape"])
    if "scale" not in tensor:
        return shape
    return f"{shape}, scale {tensor['scale']:.6g}, zero point {tensor['zero_point']}"


def _difference(record: FileRecord, card: Card, reference: Reference) -> dict[str, Any]:
    """Return what is shown of the images on which a file differs most."""
    worst = record.verification.worst
    same = all(each.model_label == each.file_label for each in worst)
    largest = max((each.difference for each in worst), default=None)
    return {
        "file": record.file,
        "largest": largest,
        "rounding": largest is None or (same and largest < _ROUNDING),
        "images": [(each, *_shown(each.image, card, reference)) for each in worst],
    }


def _shown(image: int, card: Card, reference: Reference) -> tuple[str | None, Picture]:
    """Return the true label of an image, unless it is synthetic, and its picture."""
    is_real = image < len(reference.targets)
    truth = card.label(int(reference.targets[image])) if is_real else None
    return truth, page.thumbnail(to_image(reference.images[image]))


def _commands(
    verified: Sequence[str], *, features: bool
) -> list[tuple[str, list[str]]]:
    """Return what to run in the export's folder, and what it does."""
    if not verified:
        return []
    # A lone file starts at once, a SavedModel loads TensorFlow first.
    one = next((file for file in verified if file != "saved_model"), verified[0])
    of_classifiers = [
        ("Classify an image:", ["predict", one, "IMAGE"]),
        ("Measure the accuracy on labelled images:", ["evaluate", one, "DATA"]),
    ]
    return [
        ("Verify all files again, from this folder alone:", ["verify", "."]),
        *(of_classifiers if not features else []),
        ("Measure the latency on this machine:", ["benchmark", *verified]),
    ]


def _origin_table(card: Card) -> Table:
    leaves = [*_leaves(card.provenance), *_leaves({"versions": card.versions})]
    leaves += [(f"{m.name} on {m.data}", f"{m.value:.4f}") for m in card.metrics]
    rows = [[Outside(name), Outside(value)] for name, value in leaves]
    return Table("Provenance of the weights", ("field", "value"), rows, (0, 1))


def _leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the leaves of nested mappings, under names with dots between.

    Of a recipe, only its name and the fields that differ from it.
    """
    for name, value in content.items():
        if isinstance(value, Mapping):
            if name == "recipe":
                usual = {**recipe_defaults(value.get("name")), "name": None}
                value = {k: v for k, v in value.items() if v != usual.get(k, ...)}
            yield from _leaves(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", str(value)
