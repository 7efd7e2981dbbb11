"""The tables of runtimes and export formats, and the export options.

A new runtime is one package, a table in `formats.toml` and another one for each of its
formats; nothing else knows a runtime by name.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, cast, get_args

from reszoo import defaults
from reszoo.errors import ExportError, UsageError, known
from reszoo.fields import check_fields, coerce, inherited, read_tables

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from reszoo.cards import Card
    from reszoo.preprocessing import Pixels
    from reszoo_export.inspection import Contents
    from reszoo_export.runtimes import Runtime


class Reader(Protocol):
    """What the module `reader` of a runtime's package offers.

    Of a damaged file its functions raise what the libraries raise, which
    `runtimes.reader_errors` makes a CheckpointError.
    """

    def check_file(self, path: Path, *, trusted: bool = False) -> None:
        """Refuse a file that could fill the memory or do more than compute.

        It is neither loaded nor run. A trusted SavedModel may have any operators.
        Raises CheckpointError.
        """

    def open_file(self, path: Path, threads: int | None) -> "Runtime":
        """Open a file in its runtime; CheckpointError if it has no card."""

    def describe(self, path: Path) -> "Contents":
        """Describe anybody's file without running it."""

    def stored_labels(self, path: Path) -> Sequence[str] | None:
        """Return the labels stored for other programs, beside the card."""

    def find_problems(
        self,
        path: Path,
        row: "Format",
        card: "Card",
        images: "Pixels",
        options: "ExportOptions",
    ) -> list[str]:
        """Check what running the file on this machine does not show.

        Parts of it may be run with `images`, uint8 `(n, height, width, 3)`; `card` is
        the model's, and `options` are those that the file was exported with.
        """

    def activation_reader(
        self, path: Path
    ) -> "Callable[[NDArray[Any]], Mapping[str, NDArray[np.float32]]]":
        """Return a function from the file's input to its activations, by tensor.

        Operators are not fused beyond what the file says, quantized activations are
        dequantized, and tensors are in the order in which they are computed.
        """


@dataclass(frozen=True, kw_only=True)
class RuntimeSpec:
    """A runtime, and the package with everything that is specific to it.

    The package `reszoo_export.<name>` has the modules `writer`, with the functions that
    formats name, and `reader` (see `Reader`). Its folder `snippets` has templates of
    code that runs its files, of which `server.py.in` is required.
    """

    name: str  # of the package, and of the float32 format
    library: str  # the module that opening a file imports
    suffix: str = ""  # of its files; "" for folders
    folder_file: str = ""  # of folders: a file in them or in those of versions
    outputs: tuple[str, ...] = ("logits", "probabilities")  # what files give by default
    batch: int | None = None  # images in a call by default; None for any number
    layouts: frozenset[str] = frozenset({"nhwc"})  # of the axes
    input_dtypes: frozenset[str] = frozenset()  # other ones that may be asked for
    operators: frozenset[str]  # those that files of every format may use
    # Of any file: those with weights behind the first input, and those that may be
    # between a stored weight and its use.
    weighted: frozenset[str]
    passing: frozenset[str] = frozenset()
    # Pattern of the names of operators that the runtime has by itself; files of models
    # whose structure is not known may use all of them.
    builtin: str = r"\w+"

    @property
    def package(self) -> str:
        """The package's full name."""
        return f"reszoo_export.{self.name}"

    @property
    def reader(self) -> Reader:
        """The package's module `reader`, imported on first use."""
        return cast(Reader, importlib.import_module(f"{self.package}.reader"))

    def matches(self, path: Path) -> bool:
        """Tell whether a file or folder looks like one of this runtime's."""
        if self.suffix:
            return path.suffix == self.suffix and not path.is_dir()
        return any((*path.glob(self.folder_file), *path.glob(f"*/{self.folder_file}")))


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far the outputs of a file may be from the model's.

    Rounding of float32 and float16 is limited output by output. Int8 changes single
    probabilities much more, and is judged by top-1 and by means over the images. A
    limit of None does not apply.
    """

    max_difference: float | None = None  # of a probability
    # Of a log probability, relative to it beyond 1. It shows errors in outputs that are
    # all 0 or 1.
    max_log_difference: float | None = None
    # Total variation distance of the probabilities, in 0..1, mean over the real images;
    # and over the synthetic ones, which are unlike any that calibration saw.
    max_variation: float | None = None
    max_variation_synthetic: float | None = None
    # The same, relative to that of the model's outputs from their mean over the images;
    # over real images where there are any. It is as strict with flat outputs as with
    # confident ones.
    max_relative_variation: float | None = None
    max_confidence_change: float | None = None  # of the mean confidence, in 0..1
    # Images on which the model's probability of the file's top-1 is within this of its
    # largest, or this share of it, count as ties, which agree.
    margin: float = 0.0
    tie: float = 1.0
    # Share of images with the model's top-1, ties included and not.
    min_agreement: float = 1.0
    min_top1: float = 0.9
    # Of the top-1 accuracy, in 0..1, where it is more than chance explains.
    max_accuracy_drop: float | None = None
    # Change of a probability with the other images of the batch.
    max_batch_difference: float = 1e-5
    max_feature_difference: float | None = None  # relative to the largest one
    # Of the mean of a class activation map and the bias from the logit, relative to the
    # largest logit beyond 1.
    max_cam_difference: float = 1e-5
    # Of the file's features and the model's, mean over the real images.
    min_cosine: float | None = None
    # Root mean square difference of a layer's output, relative to the output's own.
    # Only used to locate where a file begins to differ.
    max_activation_difference: float


@dataclass(frozen=True, kw_only=True)
class Format:
    """One kind of exported file."""

    name: str  # as in `--formats`
    file: str  # name of the file or folder in an export
    runtime: RuntimeSpec  # what runs it
    # The function of the runtime's module `writer` that writes it, from a `Serving`, a
    # path and, if `calibrated`, a `Calibration`.
    writer: str = "write"
    # Of its arithmetic: "float32", "float16", "dynamic" (int8 weights, ranges of
    # activations measured at run time), "int8" or "int16x8".
    precision: str = "float32"
    calibrated: bool = False  # needs calibration images
    # of the pixels, which are 0..255 in either
    input_dtype: Literal["uint8", "float32"] = "uint8"
    opsets: tuple[int, ...] = ()  # of ONNX, that it can be written in
    integer_io: bool = False  # the option applies to it
    tolerance: Tolerance  # for its outputs
    # How many real images it is verified on, where its runtime is slow; None for all.
    max_images: int | None = None
    groups: frozenset[str] = frozenset()  # of `--formats` that include it
    extra_operators: frozenset[str] = frozenset()  # besides the runtime's
    # Of one file's activations, by layer, as calibration chose them; None if unknown.
    spans: Mapping[str, tuple[float, float]] | None = None

    @property
    def operators(self) -> frozenset[str]:
        """Every operator that it may use."""
        return self.runtime.operators | self.extra_operators

    def dtypes(self, options: "ExportOptions") -> tuple[str, str]:
        """Return the dtypes of the input and of the outputs."""
        if options.integer_io:
            return options.integer_io, options.integer_io
        return options.input_dtype or self.input_dtype, "float32"

    def explained_by(self, ranges: Mapping[str, Any] | None) -> "Format":
        """Return it with a file's ranges, and limits by what they explain."""
        told, limits = ranges or {}, self.tolerance
        most, usual = limits.max_variation, limits.max_variation_synthetic
        if (variation := told.get("variation")) is not None and most is not None:
            most = min(most, 3 * variation + 0.004)
        if (variation := told.get("synthetic_variation")) is not None and usual:
            # Calibration may have seen nothing like the synthetic images.
            usual = max(usual, 1.5 * variation)
        limits = replace(limits, max_variation=most, max_variation_synthetic=usual)
        return replace(self, tolerance=limits, spans=told.get("activations"))

    def write(self, serving: Any, path: Path, calibration: Any) -> None:
        """Write the file or folder, for calibrated formats with calibration images.

        An ExportError tells of missing images, or of a weight that does not fit.
        """
        if self.calibrated and calibration is None:
            raise ExportError(f"{self.name} needs calibration images.")
        module = importlib.import_module(f"{self.runtime.package}.writer")
        images = [calibration] if self.calibrated else []
        getattr(module, self.writer)(serving, path, *images)


_TABLES = read_tables("reszoo_export", "formats.toml")


def _fields(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with its lists as sets, or as tuples where their order matters."""
    ordered = {"outputs": tuple, "opsets": tuple}
    lists = {name: each for name, each in row.items() if isinstance(each, list)}
    made = {name: ordered.get(name, frozenset)(each) for name, each in lists.items()}
    return {**row, **made}


def _format(name: str, row: dict[str, Any]) -> Format:
    runtime, precision = RUNTIMES[row["runtime"]], row.get("precision", "float32")
    fields = {**_fields(row), "runtime": runtime, "tolerance": TOLERANCES[precision]}
    return Format(name=name, **fields)


RUNTIMES = {
    name: RuntimeSpec(name=name, **_fields(row))
    for name, row in _TABLES["runtimes"].items()
}
SAVED_MODEL, TFLITE = RUNTIMES["saved_model"], RUNTIMES["tflite"]
ONNX = RUNTIMES["onnx"]
TOLERANCES = {
    name: Tolerance(**row) for name, row in inherited(_TABLES["tolerances"]).items()
}
FORMATS = {name: _format(name, row) for name, row in _TABLES["formats"].items()}
GROUPS = ("all", "mobile", "server", "web")


def find_formats(names: Sequence[str] | str) -> list[Format]:
    """Return the rows of formats and groups, in the order of the table.

    Names are given as a sequence, or as a string with commas in between. Unknown ones
    are an UnknownNameError, none or one twice a UsageError.
    """
    if isinstance(names := coerce("formats", names, (str, list[str])), str):
        names = [name.strip() for name in names.split(",") if name.strip()]
    for name in names:
        known("format", name, [*FORMATS, *GROUPS])
    if not names or len(set(names)) != len(names):
        raise UsageError(
            "formats must name at least one format, each once. "
            f"Received: {', '.join(names) or 'none'}."
        )
    asked = set(names)
    return [r for r in FORMATS.values() if asked & {r.name, "all", *r.groups}]


IntegerIO = Literal["uint8", "int8"]
Outputs = Literal["probabilities", "logits", "features", "cam"]
# Preferred first, where a file has several: probabilities need no further computation.
OUTPUTS: tuple[str, ...] = get_args(Outputs)[:3]
CAM = "cam"


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Input and output of the exported function; `reszoo.export` explains each."""

    batch: Annotated[int | Literal["dynamic"] | None, "[1, inf)"] = None
    input_size: Annotated[int | tuple[int, int] | None, "[1, inf)"] = None
    layout: Literal["nhwc", "nchw"] = "nhwc"
    input_dtype: Literal["uint8", "float32"] | None = None
    opset: Annotated[int | None, "[1, inf)"] = None
    integer_io: IntegerIO | None = None
    outputs: Outputs | None = None
    version: Annotated[int, "[1, inf)"] = defaults.SAVED_MODEL_VERSION

    def names(self, runtime: RuntimeSpec) -> tuple[str, ...]:
        """Return the names of the outputs of a runtime's files."""
        if self.outputs == CAM:
            return ("logits", "probabilities", CAM)
        return (self.outputs,) if self.outputs else runtime.outputs

    def __post_init__(self) -> None:
        check_fields(self)


def check_options(rows: Sequence[Format], options: ExportOptions) -> None:
    """Raise UsageError for options that one of the formats does not support."""
    layout, integer_io = options.layout, options.integer_io
    dtype, opset = options.input_dtype, options.opset
    unsupported: dict[str, list[str]] = {}
    for row in rows:
        dtypes = {None, integer_io or row.input_dtype, *row.runtime.input_dtypes}
        opsets = f" ({row.opsets[0]} to {row.opsets[-1]})" if row.opsets else ""
        for option, fits, shown in (
            (f"layout={layout!r}", layout in row.runtime.layouts, ""),
            (f"input_dtype={dtype!r}", dtype in dtypes, ""),
            (f"opset={opset}", not opset or opset in row.opsets, opsets),
            (f"integer_io={integer_io!r}", not integer_io or row.integer_io, ""),
        ):
            unsupported.setdefault(option, []).extend([row.name + shown] * (not fits))
    for option, names in unsupported.items():
        if names:
            raise UsageError(
                f"{option} is not supported by {', '.join(names)}. "
                "Export those formats without it, into a folder of their own."
            )
    if integer_io and options.outputs not in (None, "probabilities"):
        raise UsageError(
            "integer_io gives probabilities, which have known steps of 1/256. "
            f"Received: outputs={options.outputs!r} with it."
        )
