"""The table of export formats with their tolerances, and export options."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from reszoo.errors import UnknownNameError, UsageError

# A file that gives one class to more of the images than the first, where the model
# gives none to more than the second, has lost its input.
ONE_CLASS = 0.95
VARIED = 0.8


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """The rules of one precision.

    Attributes:
        max_difference: Largest allowed difference of a probability; None where
            `max_moved` says it.
        max_log_difference: Largest allowed difference of a probability's logarithm,
            relative to it where it is beyond 1; None where rounding is coarser. It
            sees what hides behind answers that are all 0 or 1.
        max_moved: Most probability that may go to other classes, mean over the
            real images, in 0..1; None where `max_difference` says it.
        max_moved_synthetic: The same of the made-up images, which lie far from what
            calibration saw.
        max_lost: Most that may be lost of what tells the real images apart, or the
            made-up ones where there are no real ones: what moved by what the model's
            own answers move from image to image. It judges flat answers as strictly
            as confident ones.
        max_drift: Most that the mean confidence may change; None as above.
        margin: Where the model's top probability leads that of the file's class by
            at most this, the model is undecided and either answer agrees.
        tie: The same as a share: where the model gives the file's class at least
            this share of its top probability.
        min_agreement: Least share of images with the model's top-1, ties included.
        min_same: Least share of images with the model's top-1, ties not included.
        max_accuracy_drop: Most that top-1 accuracy may fall, in 0..1, where chance
            explains no more; None where agreement leaves nothing to lose.
        max_batch_difference: Most that a probability may change with the batch that
            its image is asked in.
        max_relative: Largest allowed difference of a feature, relative to the
            largest feature; None where `min_cosine` says it.
        min_cosine: Least cosine between the file's features and the model's, mean
            over the real images.
    """

    max_difference: float | None = None
    max_log_difference: float | None = None
    max_moved: float | None = None
    max_moved_synthetic: float | None = None
    max_lost: float | None = None
    max_drift: float | None = None
    margin: float = 0.0
    tie: float = 1.0
    min_agreement: float = 1.0
    min_same: float = 0.9
    max_accuracy_drop: float | None = None
    max_batch_difference: float = 1e-5
    max_relative: float | None = None
    min_cosine: float | None = None


FLOAT32 = Tolerance(
    max_difference=1e-5, max_log_difference=1e-4, margin=1e-4, max_relative=1e-4
)
FLOAT16 = Tolerance(
    max_difference=2e-3, margin=5e-3, max_batch_difference=2e-3, max_relative=1e-2
)
# Single probabilities move; what counts is the class. Nets with random weights, whose
# answers to real images are nearly alike, lose up to 0.19 with int16 activations and
# 0.09 with dynamic ranges.
INT8 = Tolerance(
    max_moved=0.15,
    max_moved_synthetic=0.35,
    max_lost=0.5,
    max_drift=0.1,
    tie=0.9,
    min_agreement=0.97,
    max_accuracy_drop=0.01,
    min_cosine=0.97,
)
DYNAMIC = Tolerance(
    max_moved=0.05,
    max_moved_synthetic=0.15,
    max_lost=0.3,
    max_drift=0.03,
    tie=0.9,
    min_agreement=0.98,
    max_accuracy_drop=0.01,
    min_cosine=0.99,
)
# Ranges of activations are measured beforehand, as for int8, but finely divided.
INT16X8 = replace(DYNAMIC, max_moved_synthetic=0.35, max_lost=0.4)


RuntimeKind = Literal["saved_model", "tflite", "onnx"]


@dataclass(frozen=True, kw_only=True)
class Format:
    """One kind of exported file, and how close to its model it must be.

    Attributes:
        name: What `--formats` calls it.
        file: Name of the file or folder in an export.
        writer: Module and function that writes it.
        runtime: What opens it: the family of formats.
        precision: Of its arithmetic: "float32", "float16", "dynamic" (int8 weights,
            ranges of activations measured while running), "int8" or "int16x8".
        calibrated: Whether it needs calibration images.
        tolerance: How far its answers may lie from the model's.
        most_images: How many real images are enough to judge it by, where its runtime
            is slow; None for all.
        groups: The words of `--formats` that include it, beside "all".
        operators: Every operator that may occur.
    """

    name: str
    file: str
    writer: str
    runtime: RuntimeKind
    precision: str = "float32"
    calibrated: bool = False
    tolerance: Tolerance = FLOAT32
    most_images: int | None = None
    groups: frozenset[str] = frozenset()
    operators: frozenset[str]

    def write(self, serving: Any, path: Path, calibration: Any) -> None:
        """Write the file (see the writer)."""
        module, name = self.writer.split(":")
        writer: Callable[..., None] = getattr(importlib.import_module(module), name)
        writer(serving, path, calibration)


_SAVED_MODEL = {
    "AddV2", "BiasAdd", "Cast", "Const", "Conv2D", "Identity", "MatMul", "MaxPool",
    "Mean", "Mul", "NoOp", "Pad", "PartitionedCall", "Placeholder", "Relu", "Reshape",
    "Softmax", "Squeeze", "StatefulPartitionedCall", "StridedSlice",
}  # fmt: skip
# DELEGATE stands for what XNNPACK computes of the operators beside it.
_TFLITE = {
    "ADD", "CONV_2D", "DELEGATE", "FULLY_CONNECTED", "MAX_POOL_2D", "MEAN", "MUL",
    "PAD", "RESHAPE", "SOFTMAX", "STRIDED_SLICE",
}  # fmt: skip
# PADV2 pads with what stands for zero.
_QUANTISED = _TFLITE | {"QUANTIZE", "DEQUANTIZE", "PADV2"}
_ONNX = {
    "Add", "Cast", "Conv", "Gemm", "GlobalAveragePool", "MaxPool", "Mul", "Pad",
    "Relu", "Reshape", "Slice", "Softmax", "Squeeze", "Transpose",
}  # fmt: skip

FORMATS = {
    row.name: row
    for row in (
        Format(
            name="saved_model",
            file="saved_model",
            writer="reszoo_export.saved_model.writer:write",
            runtime="saved_model",
            groups=frozenset({"server"}),
            operators=frozenset(_SAVED_MODEL),
        ),
        Format(
            name="tflite",
            file="model.tflite",
            writer="reszoo_export.tflite.writer:write",
            runtime="tflite",
            groups=frozenset({"mobile"}),
            operators=frozenset(_TFLITE),
        ),
        Format(
            name="tflite-fp16",
            file="model-fp16.tflite",
            writer="reszoo_export.tflite.writer:write_fp16",
            runtime="tflite",
            precision="float16",
            tolerance=FLOAT16,
            groups=frozenset({"mobile"}),
            operators=frozenset(_TFLITE | {"DEQUANTIZE"}),
        ),
        Format(
            name="tflite-dynamic",
            file="model-dynamic.tflite",
            writer="reszoo_export.tflite.writer:write_dynamic",
            runtime="tflite",
            precision="dynamic",
            tolerance=DYNAMIC,
            operators=frozenset(_TFLITE),
        ),
        Format(
            name="tflite-int8",
            file="model-int8.tflite",
            writer="reszoo_export.tflite.writer:write_int8",
            runtime="tflite",
            precision="int8",
            calibrated=True,
            tolerance=INT8,
            groups=frozenset({"mobile"}),
            operators=frozenset(_QUANTISED),
        ),
        Format(
            name="tflite-int16x8",
            file="model-int16x8.tflite",
            writer="reszoo_export.tflite.writer:write_int16x8",
            runtime="tflite",
            precision="int16x8",
            calibrated=True,
            tolerance=INT16X8,
            # LiteRT has no fast kernels for it: some 400 times the time of int8.
            most_images=100,
            operators=frozenset(_QUANTISED),
        ),
        Format(
            name="onnx",
            file="model.onnx",
            writer="reszoo_export.onnx.writer:write",
            runtime="onnx",
            groups=frozenset({"server", "web"}),
            operators=frozenset(_ONNX),
        ),
        Format(
            name="onnx-fp16",
            file="model-fp16.onnx",
            writer="reszoo_export.onnx.writer:write_fp16",
            runtime="onnx",
            precision="float16",
            tolerance=FLOAT16,
            groups=frozenset({"web"}),
            operators=frozenset(_ONNX),
        ),
        Format(
            name="onnx-int8",
            file="model-int8.onnx",
            writer="reszoo_export.onnx.writer:write_int8",
            runtime="onnx",
            precision="int8",
            calibrated=True,
            tolerance=INT8,
            groups=frozenset({"server", "web"}),
            operators=frozenset(_ONNX | {"QuantizeLinear", "DequantizeLinear"}),
        ),
    )
}
GROUPS = ("all", "mobile", "server", "web")


def find_formats(names: Sequence[str] | str) -> list[Format]:
    """Return the table's rows for some names.

    Args:
        names: Names or groups of formats, or one text with commas between them.
            "all", "mobile", "server" and "web" stand for several.

    Raises:
        UnknownNameError: A name is not in the table; tells the nearest.
        UsageError: No names, or one twice.
    """
    if isinstance(names, str):
        names = [name.strip() for name in names.split(",") if name.strip()]
    for name in names:
        if name not in FORMATS and name not in GROUPS:
            raise UnknownNameError("format", name, [*FORMATS, *GROUPS])
    if not names or len(set(names)) != len(names):
        raise UsageError(
            "formats must name at least one format, each once. "
            f"Received: {', '.join(names) or 'none'}."
        )
    wanted = {row for name in names for row in _members(name)}
    return [FORMATS[name] for name in FORMATS if name in wanted]


def _members(name: str) -> list[str]:
    if name in FORMATS:
        return [name]
    return [row.name for row in FORMATS.values() if name == "all" or name in row.groups]


Outputs = Literal["probabilities", "logits", "features"]
_OUTPUTS = ("probabilities", "logits", "features")


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How the exported function looks from outside.

    Attributes:
        batch: Images a call: a number fixes it, "dynamic" leaves it open; None is
            each format's own: one image for TFLite, open for the others.
        input_size: Height and width of the image in pixels; None is that of the card.
        layout: Axes of the image, "nhwc" or "nchw"; only ONNX knows the second.
        integer_io: Whether int8 TFLite files take uint8 pixels and give uint8
            probabilities in steps of 1/256, for devices without floating point.
        outputs: The only answer to give: "probabilities", "logits", or "features",
            what the classifier would see. None is each format's own: probabilities
            for TFLite, probabilities and logits for the others.
        version: Number of the SavedModel's folder, as TF Serving counts them.
    """

    batch: int | Literal["dynamic"] | None = None
    input_size: int | None = None
    layout: Literal["nhwc", "nchw"] = "nhwc"
    integer_io: bool = False
    outputs: Outputs | None = None
    version: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.batch, str | bool | float) and self.batch != "dynamic":
            raise UsageError(
                f'batch must be a number or "dynamic". Received: {self.batch!r}.'
            )
        for name in ("batch", "input_size", "version"):
            _check_number(name, getattr(self, name), optional=name != "version")
        if self.layout not in ("nhwc", "nchw"):
            raise UsageError(
                f'layout must be "nhwc" or "nchw". Received: {self.layout!r}.'
            )
        if self.outputs not in (None, *_OUTPUTS):
            raise UsageError(
                f"outputs must be one of {', '.join(_OUTPUTS)}, or None for what each "
                f"format gives by itself. Received: {self.outputs!r}."
            )


def _check_number(name: str, value: object, *, optional: bool) -> None:
    if (value is None and optional) or value == "dynamic":
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise UsageError(f"{name} must be a whole number. Received: {value!r}.")
    if value < 1:
        raise UsageError(f"{name} must be at least 1. Received: {value}.")


def check_options(rows: Sequence[Format], options: ExportOptions) -> None:
    """Refuse what one of the formats cannot do, before any work is done for it.

    Raises:
        UsageError: Tells which format and which option.
    """
    if options.layout == "nchw":
        _only(rows, "layout='nchw'", lambda row: row.runtime == "onnx")
    if options.integer_io:
        _only(rows, "integer_io", lambda row: row.name == "tflite-int8")
        if options.outputs not in (None, "probabilities"):
            raise UsageError(
                "integer_io gives probabilities, whose steps of 1/256 are known. "
                f"Received: outputs={options.outputs!r} with it."
            )


def _only(rows: Sequence[Format], option: str, fits: Callable[[Format], bool]) -> None:
    others = [row.name for row in rows if not fits(row)]
    if others:
        raise UsageError(
            f"{option} is not for {', '.join(others)}. "
            "Export those formats without it, into a folder of their own."
        )
