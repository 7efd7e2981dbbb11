"""The table of formats: one row and one writer each."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from reszoo.errors import UnknownNameError, UsageError
from reszoo_export.verification.tolerances import (
    DYNAMIC,
    FLOAT16,
    FLOAT32,
    INT8,
    INT16X8,
    Tolerance,
)

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
            writer="reszoo_export.writers.saved_model:write",
            runtime="saved_model",
            groups=frozenset({"server"}),
            operators=frozenset(_SAVED_MODEL),
        ),
        Format(
            name="tflite",
            file="model.tflite",
            writer="reszoo_export.writers.tflite:write",
            runtime="tflite",
            groups=frozenset({"mobile"}),
            operators=frozenset(_TFLITE),
        ),
        Format(
            name="tflite-fp16",
            file="model-fp16.tflite",
            writer="reszoo_export.writers.tflite:write_fp16",
            runtime="tflite",
            precision="float16",
            tolerance=FLOAT16,
            groups=frozenset({"mobile"}),
            operators=frozenset(_TFLITE | {"DEQUANTIZE"}),
        ),
        Format(
            name="tflite-dynamic",
            file="model-dynamic.tflite",
            writer="reszoo_export.writers.tflite:write_dynamic",
            runtime="tflite",
            precision="dynamic",
            tolerance=DYNAMIC,
            operators=frozenset(_TFLITE),
        ),
        Format(
            name="tflite-int8",
            file="model-int8.tflite",
            writer="reszoo_export.writers.tflite_int8:write",
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
            writer="reszoo_export.writers.tflite_int8:write_int16x8",
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
            writer="reszoo_export.writers.onnx:write",
            runtime="onnx",
            groups=frozenset({"server", "web"}),
            operators=frozenset(_ONNX),
        ),
        Format(
            name="onnx-fp16",
            file="model-fp16.onnx",
            writer="reszoo_export.writers.onnx_fp16:write",
            runtime="onnx",
            precision="float16",
            tolerance=FLOAT16,
            groups=frozenset({"web"}),
            operators=frozenset(_ONNX),
        ),
        Format(
            name="onnx-int8",
            file="model-int8.onnx",
            writer="reszoo_export.writers.onnx_int8:write",
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
