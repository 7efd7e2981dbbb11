"""What the report of an export says, before it becomes Markdown or HTML."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reszoo.cards import Card
from reszoo_export.manifest import Disagreement, FileRecord, Latency, Manifest
from reszoo_export.verification.reference import Reference

_ANSWER_COLUMNS = (
    "file", "status", "accuracy", "same top-1", "same top-5", "largest difference",
    "mean difference", "drift",
)  # fmt: skip
_COST_COLUMNS = (
    "file", "size", "median", "p90", "p99", "images/s", "cold start", "memory",
)  # fmt: skip
# Differences below are of no consequence and shown in short.
_ROUNDING = 0.01
_ANSWERS = (
    "Differences are of probabilities, largest and mean over images and classes. Same "
    "top-1 and top-5: share of the model's most probable class, or five, that are the "
    "file's as well. Drift: how much more confident the file is than the model."
)
_FEATURES = (
    "The files give features. Differences are relative to the largest feature; in "
    "place of the same top-1 stands the mean cosine between file and model."
)
WORST_COLUMNS = ("image", "it shows", "model says", "file says", "difference")


class Outside(str):
    """Text that others chose: a label, a path, a licence; never to become markup."""

    __slots__ = ()


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows for people.

    Attributes:
        caption: What it shows.
        columns: Heads.
        rows: Cells; the first of each row is its head.
        words: Columns that hold text; the others hold numbers.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: tuple[int, ...] = (0,)


def lead(manifest: Manifest) -> str:
    """Return the sentences that matter if nothing else is read."""
    files = manifest.files
    good = sum(not record.verification.problems for record in files)
    found = files[0].verification
    on = f"{found.images:,} real images and " if found.images else ""
    told = (
        f"{good} of {len(files)} files answer as the model does. Each was opened in "
        f"its own runtime and compared on {on}{found.synthetic} made-up ones."
    )
    if found.model_accuracy is not None:
        told += f" The model's accuracy on the real ones is {found.model_accuracy:.2%}."
    return told


def answer_table(manifest: Manifest) -> Table:
    """Return how the answers of each file compare with the model's."""
    return Table(
        caption="The answers of each file, beside the model's",
        columns=_ANSWER_COLUMNS,
        rows=[_answer_row(record) for record in manifest.files],
        words=(0, 1),
    )


def answer_note(manifest: Manifest) -> str:
    """Return what the columns of `answer_table` mean, and what ran the files."""
    runtimes = sorted({record.verification.runtime for record in manifest.files})
    meaning = _FEATURES if manifest.options.outputs == "features" else _ANSWERS
    return f"{meaning} Run by {', '.join(runtimes)}."


def cost_table(manifest: Manifest) -> Table:
    """Return size, time and memory of each file."""
    rows = [
        [record.file, f"{record.bytes / 1e6:,.2f} MB", *_latency_cells(record.latency)]
        for record in manifest.files
    ]
    return Table(
        caption="Size, time and memory of each file", columns=_COST_COLUMNS, rows=rows
    )


def cost_note(manifest: Manifest) -> str:
    """Return where the numbers of `cost_table` were measured."""
    latency = next((each.latency for each in manifest.files if each.latency), None)
    if latency is None:
        return "Time and memory were not measured."
    return (
        f"One image a call, {latency.threads} threads on {latency.processor}. Cold "
        "start is opening the file and answering once; memory is what file and "
        "answers took. Measured for a moment only, and another machine is another "
        "measurement; reszoo benchmark takes its time."
    )


def problems(manifest: Manifest) -> list[Outside]:
    """Return what is wrong with the files, a sentence each."""
    return [Outside(problem) for problem in manifest.problems]


def contract(card: Card) -> list[str]:
    """Return what a caller does to a picture before a file sees it, step by step."""
    record = card.preprocessing
    short, size = record.resize_size, record.eval_size
    return [
        "Turn the picture upright (EXIF) and take it as RGB.",
        f"Resize it to a short side of {short}, {record.interpolation}, antialiased.",
        f"Cut out the {size} x {size} pixels in the middle.",
        "Pass the numbers as they are, 0 to 255: the file normalises them itself.",
    ]


def tensor_table(manifest: Manifest) -> Table:
    """Return name, dtype and shape of what goes into and comes out of each file."""
    rows = [
        [record.file, way, tensor["name"], tensor["dtype"], _shape(tensor)]
        for record in manifest.files
        for way, tensors in (("in", record.inputs), ("out", record.outputs))
        for tensor in tensors
    ]
    return Table(
        caption="What goes in and what comes out",
        columns=("file", "way", "name", "numbers", "shape"),
        rows=rows,
        words=(0, 1, 2, 3, 4),
    )


def labels_note(card: Card) -> str:
    """Return where the names of the classes are."""
    count = card.architecture.classes
    if count is None:
        return "What comes out has no names: a classifier would see it."
    if card.labels is None:
        return f"There are {count} classes; the model was never told their names."
    return (
        f"There are {count} classes. labels.txt has their names, one a line in the "
        "order of the outputs; so has every file inside."
    )


def commands(manifest: Manifest) -> list[tuple[str, list[str]]]:
    """Return what to type in the export's folder, and what it does."""
    files = [
        record.file for record in manifest.files if not record.verification.problems
    ]
    if not files:
        return []
    # A lone file starts at once, a SavedModel loads TensorFlow first.
    one = next((file for file in files if file != "saved_model"), files[0])
    asking = [
        ("Ask one of them about a picture:", ["predict", one, "PICTURE"]),
        ("Measure its accuracy on labelled images:", ["evaluate", one, "DATA"]),
    ]
    return [
        ("Check all files again, from the folder alone:", ["verify", "."]),
        *(asking if manifest.options.outputs != "features" else []),
        ("Measure how fast they are on this machine:", ["benchmark", *files]),
    ]


def licence_note(card: Card) -> list[str]:
    """Return what is known of the licence of the weights, in parts of a sentence."""
    origin = _flat(card.provenance)
    stated = [Outside(value) for name, value in origin if name.endswith("licence")]
    if stated:
        return ["Licence of the weights:", Outside(", ".join(stated))]
    return ["No licence is stated: ask who owns the images that they were trained on."]


def origin_table(card: Card) -> Table:
    """Return where the weights come from, and what was measured with them."""
    rows: list[list[str]] = [
        [Outside(name), Outside(value)] for name, value in _origin(card)
    ]
    rows += [
        [Outside(f"{metric.name} on {metric.data}"), f"{metric.value:.4f}"]
        for metric in card.metrics
    ]
    return Table(
        caption="Where the weights come from",
        columns=("what", "value"),
        rows=rows,
        words=(0, 1),
    )


def worst_rows(
    found: Sequence[Disagreement], card: Card, reference: Reference
) -> list[list[str]]:
    """Return a row for each disagreement, as `WORST_COLUMNS` says."""
    return [
        [
            str(each.image),
            shows(each.image, card, reference),
            Outside(f"{each.model_label} {each.model_probability:.1%}"),
            Outside(f"{each.file_label} {each.file_probability:.1%}"),
            f"{each.difference:.2g}",
        ]
        for each in found
    ]


def agrees(found: Sequence[Disagreement]) -> bool:
    """Tell whether a file's largest disagreements are rounding."""
    return all(
        each.difference < _ROUNDING and each.model_label == each.file_label
        for each in found
    )


def largest(found: Sequence[Disagreement]) -> str:
    """Return a sentence on the largest of some disagreements."""
    if not found:
        return "Nothing to show."
    told = f"The largest difference is {max(each.difference for each in found):.2g}"
    return f"{told}, and the class is the model's." if agrees(found) else f"{told}."


def shows(index: int, card: Card, reference: Reference) -> Outside:
    """Return what an image of the reference shows."""
    if index >= len(reference.labels):
        return Outside("made up")
    return Outside(card.label(int(reference.labels[index])))


def _latency_cells(latency: Latency | None) -> list[str]:
    if latency is None:
        return ["-"] * 6
    times = (latency.median_ms, latency.p90_ms, latency.p99_ms)
    return [
        *(f"{each:.2f} ms" for each in times),
        f"{latency.images_per_second:,.0f}",
        "-" if latency.cold_ms is None else f"{latency.cold_ms:,.0f} ms",
        "-" if latency.memory_mb is None else f"{latency.memory_mb:,.0f} MB",
    ]


def _answer_row(record: FileRecord) -> list[str]:
    found = record.verification
    return [
        record.file,
        "FAILED" if found.problems else "verified",
        _share(found.accuracy),
        _share(found.agreement),
        _share(found.top5_agreement),
        f"{found.max_difference:.1e}",
        f"{found.mean_difference:.1e}",
        "-" if found.drift is None else f"{found.drift:+.1e}",
    ]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _shape(tensor: Mapping[str, Any]) -> str:
    sides = ["batch" if side in (-1, None) else str(side) for side in tensor["shape"]]
    shape = " x ".join(sides)
    if "scale" not in tensor:
        return shape
    return f"{shape}, {tensor['scale']:.6g} a step from {tensor['zero_point']}"


def _origin(card: Card) -> list[tuple[str, str]]:
    return [*_flat(card.provenance), *_flat({"versions": card.versions})]


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the leaves of nested mappings, under names with dots between."""
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", str(value)
