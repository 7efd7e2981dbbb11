"""`reszoo inspect`: describe a model file without running it."""

import importlib
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from reszoo.cards import Card
from reszoo.errors import CheckpointError, UnknownNameError, UsageError
from reszoo.weights import reading, safetensors
from reszoo.weights.reading import SUFFIXES as CHECKPOINTS
from reszoo_export.formats import FORMATS
from reszoo_export.manifest import is_export, size_and_hash

# Labels and operators that a line shows before it says how many more there are.
_SHOWN = 8
_CHANNELS = (1, 3, 4)
NO_CARD = "none: reszoo did not write this file, so nobody knows its labels"


@dataclass(frozen=True)
class TensorDescription:
    """An input or an output.

    Attributes:
        name: As the file calls it.
        dtype: NumPy's name, or "string".
        shape: Sides; a name such as "batch" where one is open, "?" without a name.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    @property
    def layout(self) -> str | None:
        """Order of the axes of an image, "NHWC" or "NCHW"; None for anything else."""
        if len(self.shape) != 4:
            return None
        if self.shape[3] in _CHANNELS:
            return "NHWC"
        return "NCHW" if self.shape[1] in _CHANNELS else None

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {**asdict(self), "shape": list(self.shape), "layout": self.layout}

    def text(self) -> str:
        """Return a line for people."""
        sides = ", ".join(map(str, self.shape)) + "," * (len(self.shape) == 1)
        return f"{self.dtype} ({sides}) {self.layout or ''}".rstrip()


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What the reader of one kind of file finds in it.

    Attributes:
        kind: "tflite.metadata", "onnx", "saved_model" or "checkpoint".
        precision: Of its arithmetic, as in the table of formats.
        inputs: What it takes; empty for a checkpoint.
        outputs: What it gives.
        operators: How often each operator occurs.
        parameters: Numbers in weights and biases.
        card: The card inside.
        note: Why there is no card; "" where there is one.
        details: What only this kind of file has, such as ONNX's opset.
    """

    kind: str
    precision: str
    inputs: tuple[TensorDescription, ...] = ()
    outputs: tuple[TensorDescription, ...] = ()
    operators: Mapping[str, int] = field(default_factory=dict)
    parameters: int
    card: Card | None
    note: str
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FileDescription:
    """A file, described from itself alone.

    Attributes:
        path: Where it lies.
        format: Its row of the table of formats, or its kind where it is in none.
        bytes: Its size; of a folder, that of all files in it.
        sha256: Of its content, as manifests have it.
        contents: What is in it.
    """

    path: str
    format: str
    bytes: int
    sha256: str
    contents: Contents

    @property
    def card(self) -> Card | None:
        """The card inside, if there is one."""
        return self.contents.card

    @property
    def title(self) -> str:
        """A line above the rows."""
        return f"{self.path}: {self.format}"

    def rows(self) -> list[tuple[str, str]]:
        """Return what there is to say, as pairs of a word and a line."""
        found = self.contents
        operators = [
            f"{count} {name}"
            for name, count in sorted(
                found.operators.items(), key=lambda each: -each[1]
            )
        ]
        return [
            ("format", f"{self.format} ({found.precision})"),
            ("size", f"{self.bytes:,} bytes"),
            ("sha256", self.sha256),
            *((f"input {each.name}", each.text()) for each in found.inputs),
            *((f"output {each.name}", each.text()) for each in found.outputs),
            ("parameters", f"{found.parameters:,}"),
            *([("operators", _some(operators))] if operators else []),
            *found.details.items(),
            *(_card_rows(self.card) if self.card else [("card", found.note)]),
        ]

    def text(self) -> str:
        """Return the rows as text with aligned columns."""
        rows = self.rows()
        width = max(len(word) for word, _ in rows)
        lines = [f"{word:<{width}}  {line}" for word, line in rows]
        return "\n".join([self.title, *lines])

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        found = self.contents
        return {
            "path": self.path,
            "format": self.format,
            "kind": found.kind,
            "precision": found.precision,
            "bytes": self.bytes,
            "sha256": self.sha256,
            "inputs": [each.to_json() for each in found.inputs],
            "outputs": [each.to_json() for each in found.outputs],
            "operators": dict(sorted(found.operators.items())),
            "parameters": found.parameters,
            "details": dict(found.details),
            "card": self.card.to_json() if self.card else None,
            "note": found.note,
        }


def card_or_note(read: Callable[[], Card]) -> tuple[Card | None, str]:
    """Return a file's card, or a sentence on why there is none."""
    try:
        return read(), ""
    except CheckpointError as error:
        missing = KeyError | FileNotFoundError | zipfile.BadZipFile
        if isinstance(error.__cause__, missing):
            return (
                None,
                "none: reszoo did not write this file, so nobody knows its labels",
            )
        return None, f"damaged: {error}"


def _card_rows(card: Card) -> Iterator[tuple[str, str]]:
    record, net = card.preprocessing, card.architecture
    sides = "x".join("?" if side is None else str(side) for side in net.input_shape)
    yield "net", f"{net.spec}, shortcut {net.shortcut}, input {sides}"
    if card.labels:
        yield "labels", f"{len(card.labels)}: {_some(card.labels)}"
    elif net.classes:
        yield "labels", f"never told; {net.classes} classes"
    shown = (
        f"short side to {record.resize_size} ({record.interpolation}), "
        f"centre {record.eval_size}x{record.eval_size}, RGB 0..255; "
        f"inside: mean {_numbers(record.mean)}, std {_numbers(record.std)}"
    )
    yield "preprocessing", shown
    yield "licence", str(card.provenance.get("licence") or "never told")
    for key, value in card.provenance.items():
        if key != "licence" and value is not None:
            yield key, _brief(value)
    for metric in card.metrics:
        yield metric.name, f"{metric.value:.4g} on {metric.data}"
    yield "versions", ", ".join(f"{k} {v}" for k, v in card.versions.items())


def _brief(value: Any) -> str:
    if isinstance(value, Mapping):
        return str(value.get("name") or value.get("source") or f"{len(value)} fields")
    return str(value)


def _numbers(values: tuple[float, ...]) -> str:
    return "/".join(f"{value:g}" for value in values)


def _some(found: Sequence[str]) -> str:
    more = [f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
    return ", ".join([*found[:_SHOWN], *more])


# Statistics of batch normalisation are measured, not learned.
_MEASURED = ("running_mean", "running_var", "num_batches_tracked")


def read(path: Path) -> Contents:
    """Read a file; a `.safetensors` may hold any net.

    Raises:
        CheckpointError: It is no checkpoint that reszoo reads, or damaged.
    """
    if path.suffix == safetensors.SUFFIX:
        tensors, card = safetensors.read(path)
    else:
        found = reading.read(path)
        tensors, card = found.tensors, found.card
    learned = [name for name in tensors if not name.endswith(_MEASURED)]
    kinds: Counter[str] = Counter()
    for name in learned:
        kinds[tensors[name].dtype.name] += tensors[name].size
    return Contents(
        kind="checkpoint",
        precision=kinds.most_common(1)[0][0] if kinds else "float32",
        parameters=kinds.total(),
        card=card,
        note="" if card else NO_CARD,
        details={"tensors": str(len(tensors))},
    )


# Ending of a name -> module that reads such files; each imports no more than it needs.
_READERS = {
    ".tflite": "reszoo_export.tflite.metadata",
    ".onnx": "reszoo_export.onnx.inspection",
    "": "reszoo_export.saved_model.inspection",
    **dict.fromkeys(CHECKPOINTS, "reszoo_export.inspection"),
}


def inspect(path: str | os.PathLike[str]) -> FileDescription:
    """Tell what a model file is: form, operators, labels, preprocessing, origin.

    Files of others are described as far as they tell. `.tflite`, `.onnx` and
    `.safetensors` are read without TensorFlow.

    Args:
        path: A `.tflite`, a `.onnx`, a SavedModel folder or a checkpoint.

    Raises:
        CheckpointError: There is no such file, or it is damaged.
        UsageError: The ending is unknown, or the folder is a whole export.
    """
    file = Path(path)
    if not file.exists():
        raise CheckpointError(f"There is no file {file}.")
    suffix = "" if file.is_dir() else file.suffix
    if suffix not in _READERS or (not suffix and file.is_file()):
        raise UnknownNameError("kind of model file", file.name, filter(None, _READERS))
    if file.is_dir() and is_export(file):
        inside = [row.file for row in FORMATS.values() if (file / row.file).exists()]
        raise UsageError(
            f"{file} is a whole export. Inspect one of the files in it: "
            f"{', '.join(inside)}."
        )
    reader = importlib.import_module(_READERS[suffix])
    contents: Contents = reader.read(file)
    size, digest = size_and_hash(file)
    return FileDescription(
        path=str(file),
        format=_format(file, contents),
        bytes=size,
        sha256=digest,
        contents=contents,
    )


def _format(file: Path, contents: Contents) -> str:
    """Return the row of the table that fits, or what the file is called elsewhere."""
    if contents.kind == "checkpoint":
        return file.suffix.removeprefix(".")
    for row in FORMATS.values():
        if (row.runtime, row.precision) == (contents.kind, contents.precision):
            return row.name
    return contents.kind
