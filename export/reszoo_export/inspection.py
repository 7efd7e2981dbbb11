"""`reszoo inspect`: describe a model file without running it."""

import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from reszoo.cards import Card
from reszoo.console import printable
from reszoo.errors import CheckpointError
from reszoo.fields import typed
from reszoo.files import StrPath, as_path
from reszoo.report import page
from reszoo.weights import safetensors
from reszoo.weights.location import checkpoint_in, read
from reszoo_export.formats import FORMATS
from reszoo_export.isolation import limits_for, run_in_subprocess
from reszoo_export.manifest import size_and_hash
from reszoo_export.metadata import licence
from reszoo_export.runtimes import find_runtime, reader_errors

# Labels and operators that a line shows before it says how many more there are.
_MAX_SHOWN = 8
_CHANNELS = (1, 3, 4)
# Inputs, outputs and details that are shown.
_MAX_ROWS = 50
_NO_CARD = "none: not written by reszoo, labels unavailable"
# Statistics of batch normalisation are measured, not learned.
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class TensorDescription:
    """An input or an output."""

    name: str  # as the file calls it
    dtype: str  # NumPy's name, or "string"
    # Sides; a name such as "batch" where one is open, "?" without a name.
    shape: tuple[int | str, ...]

    @property
    def layout(self) -> str | None:
        """Order of the axes of an image, "NHWC" or "NCHW"; None for anything else."""
        if len(self.shape) != 4:
            return None
        if self.shape[3] in _CHANNELS:
            return "NHWC"
        return "NCHW" if self.shape[1] in _CHANNELS else None

    def text(self) -> str:
        """Return a line for people."""
        sides = ", ".join(map(str, self.shape)) + "," * (len(self.shape) == 1)
        return f"{self.dtype} ({sides}) {self.layout or ''}".rstrip()


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What the reader of a runtime finds in a file."""

    precision: str  # of its arithmetic, as in the table of formats
    inputs: tuple[TensorDescription, ...] = ()  # empty for a checkpoint
    outputs: tuple[TensorDescription, ...] = ()
    operators: Mapping[str, int] = field(default_factory=dict)  # how often each occurs
    parameters: int  # numbers in weights and biases
    card: Card | None
    note: str  # why there is no card; "" where there is one
    # what only this kind of file has, such as ONNX's opset
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FileDescription(Contents):
    """The description of a model file, from the file alone."""

    path: str  # as given to `inspect`
    kind: str  # "saved_model", "tflite", "onnx" or "checkpoint"
    # Name in the table of formats; the kind of other files, and the suffix of
    # checkpoints.
    format: str
    bytes: int  # of a folder, that of all files in it
    sha256: str  # as in manifests

    @property
    def title(self) -> str:
        """The heading of the description."""
        return f"{self.path}: {self.format}"

    def rows(self) -> list[tuple[str, str]]:
        """Return the description as pairs of a name and a line."""
        operators = Counter(self.operators).most_common()
        text = page.render(
            "inspect_text.j2", file=self, card=self.card,
            licence=self.card and licence(self.card),
            operators=[f"{count} {name}" for name, count in operators],
            most=_MAX_SHOWN, most_rows=_MAX_ROWS,
        )  # fmt: skip
        pairs = (line.partition("\t") for line in text.splitlines())
        return [(name, line) for name, _, line in pairs]

    def text(self) -> str:
        """Return the rows as text with aligned columns."""
        rows = self.rows()
        width = max(len(word) for word, _ in rows)
        lines = [f"{word:<{width}}  {line}" for word, line in rows]
        return "\n".join([printable(self.title), *lines])

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        changed: dict[str, Any] = {
            kind: [
                {**asdict(each), "shape": list(each.shape), "layout": each.layout}
                for each in getattr(self, kind)
            ]
            for kind in ("inputs", "outputs")
        }
        changed["operators"] = dict(sorted(self.operators.items()))
        changed["card"] = self.card and self.card.to_json()
        # What tells files apart comes first.
        return dict.fromkeys(FileDescription.__annotations__) | vars(self) | changed


def inspect(path: StrPath) -> FileDescription:
    """Describe a model file without running it, in a subprocess.

    Files of other programs are described as far as their content allows. `.tflite`,
    `.onnx` and `.safetensors` files are read without TensorFlow.

    Args:
        path: A `.tflite` or `.onnx` file, a SavedModel folder or a checkpoint.

    Returns:
        Format, inputs and outputs, operators, labels, preprocessing and provenance.

    Raises:
        CheckpointError: There is no such file, it is damaged, or it takes more memory
            or time than such a file does.
        UsageError: The suffix is unknown, or the folder is a whole export.
    """
    file = as_path(path)
    find_runtime(file)  # Refuses other paths, without a process.
    found = run_in_subprocess(
        f"{__name__}:describe_stored",
        {"path": str(file)},
        limits=limits_for(file),
        problem=f"{file} could not be described",
    )
    return typed(FileDescription, found)


def describe_stored(path: str) -> dict[str, Any]:
    """Describe a file in the subprocess of `inspect`; return plain JSON values."""
    found = describe_file(Path(path))
    # `asdict` changes a Counter.
    plain = asdict(replace(found, card=None, operators=dict(found.operators)))
    return {**plain, "card": found.card and found.card.to_json()}


def describe_file(file: Path) -> FileDescription:
    """Do the work of `inspect` in this process (see there)."""
    row = find_runtime(file)
    content = file if row else checkpoint_in(file) or file
    with reader_errors(content):
        if row:
            # What a SavedModel would execute is described, not refused.
            row.reader.check_file(file, trusted=True)
        contents = row.reader.describe(file) if row else _describe_checkpoint(content)
    size, digest = size_and_hash(content)
    kind = (row, contents.precision)
    formats = [x.name for x in FORMATS.values() if (x.runtime, x.precision) == kind]
    return FileDescription(
        path=str(file), kind=row.name if row else "checkpoint",
        format=(formats or [row.name if row else content.suffix[1:]])[0],
        bytes=size, sha256=digest, **vars(contents),
    )  # fmt: skip


def _describe_checkpoint(path: Path) -> Contents:
    if path.suffix == safetensors.SUFFIX:
        # Of any model, not only of one that reszoo can build.
        tensors, card = safetensors.read(path)
    else:
        found = read(path)
        tensors, card = found.tensors, found.card
    sizes: Counter[str] = Counter()
    for name, tensor in tensors.items():
        if not name.endswith(_STATISTICS):
            sizes[tensor.dtype.name] += tensor.size
    return Contents(
        precision=sizes.most_common(1)[0][0] if sizes else "float32", card=card,
        parameters=sizes.total(), note="" if card else _NO_CARD,
        details={"tensors": str(len(tensors))},
    )  # fmt: skip


def card_or_note(read: Callable[[], Card]) -> tuple[Card | None, str]:
    """Return a file's card, or a sentence on why there is none."""
    try:
        return read(), ""
    except CheckpointError as error:
        missing = KeyError | FileNotFoundError | zipfile.BadZipFile
        if isinstance(error.__cause__, missing):
            return None, _NO_CARD
        return None, f"damaged: {error}"


def find_origins(
    names: Iterable[str], passed: Mapping[str, str]
) -> dict[str, str | None]:
    """Follow tensors back to where they come from, visiting each once.

    `passed` has the tensor that another one is passed on from. Returns the origin of
    each tensor on the way; None where tensors depend on themselves.
    """
    known: dict[str, str | None] = {}
    for name in names:
        followed: list[str] = []
        while name not in known:
            followed.append(name)
            known[name] = None if name in passed else name
            name = passed.get(name, name)
        known.update(dict.fromkeys(followed, known[name]))
    return known
