"""The table of formats: one row and one writer each."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reszoo.errors import UnknownNameError, UsageError


@dataclass(frozen=True, kw_only=True)
class Format:
    """One kind of exported file, and how close to its model it must be.

    Attributes:
        name: What `--formats` calls it.
        file: Name of the file or folder in an export.
        writer: Module and function that writes it.
        calibrated: Whether it needs calibration images.
        max_difference: Largest allowed difference of a probability; None where
            `max_moved` says it.
        max_log_difference: Largest allowed difference of a probability's logarithm,
            relative to it where it is beyond 1; None where rounding is coarser. It
            sees what hides behind answers that are all 0 or 1.
        max_moved: Most probability that may go to other classes, mean over the
            images, in 0..1; None where `max_difference` says it.
        tie: Where the model gives the file's class at least this share of its own
            top probability, it is undecided and either answer agrees.
        min_agreement: Least share of images with the model's top-1, ties included.
        min_same: Least share of images with the model's top-1, ties not included.
        max_accuracy_drop: Most that top-1 accuracy may fall, in 0..1; None where
            agreement leaves nothing to lose.
        batched: Whether one call takes several images.
        operators: Every operator that may occur.
    """

    name: str
    file: str
    writer: str
    calibrated: bool = False
    max_difference: float | None = 1e-4
    max_log_difference: float | None = 1e-4
    max_moved: float | None = None
    tie: float = 0.999
    min_agreement: float = 1.0
    min_same: float = 0.9
    max_accuracy_drop: float | None = None
    batched: bool = True
    operators: frozenset[str]

    def write(self, serving: Any, path: Path, calibration: Any) -> None:
        """Write the file (see the writer)."""
        module, name = self.writer.split(":")
        writer: Callable[..., None] = getattr(importlib.import_module(module), name)
        writer(serving, path, calibration)


# A file that gives one class to more of the images than the first, where the model
# gives none to more than the second, has lost its input.
ONE_CLASS = 0.95
VARIED = 0.8
# What float32 arithmetic in another order may move a probability.
BATCH_TOLERANCE = 1e-5

_SAVED_MODEL = {
    "AddV2", "BiasAdd", "Cast", "Const", "Conv2D", "Identity", "MatMul", "MaxPool",
    "Mean", "Mul", "NoOp", "Pad", "Placeholder", "ReadVariableOp", "Relu", "Reshape",
    "Softmax", "Squeeze", "StatefulPartitionedCall", "StridedSlice",
}  # fmt: skip
# DELEGATE stands for what XNNPACK computes of the operators beside it.
_TFLITE = {
    "ADD", "CONV_2D", "DELEGATE", "FULLY_CONNECTED", "MAX_POOL_2D", "MEAN", "MUL",
    "PAD", "RESHAPE", "SOFTMAX", "STRIDED_SLICE",
}  # fmt: skip
_ONNX = {
    "Add", "Cast", "Conv", "Gemm", "GlobalAveragePool", "MatMul", "MaxPool", "Mul",
    "Pad", "Relu", "Reshape", "Slice", "Softmax", "Squeeze", "Transpose",
}  # fmt: skip

FORMATS = {
    row.name: row
    for row in (
        Format(
            name="saved_model",
            file="saved_model",
            writer="reszoo_export.saved_model:write",
            operators=frozenset(_SAVED_MODEL),
        ),
        Format(
            name="tflite",
            file="model.tflite",
            writer="reszoo_export.tflite:write",
            batched=False,
            operators=frozenset(_TFLITE),
        ),
        Format(
            name="tflite-int8",
            file="model-int8.tflite",
            writer="reszoo_export.tflite:write_int8",
            calibrated=True,
            # Single probabilities move; what counts is the class.
            max_difference=None,
            max_log_difference=None,
            max_moved=0.15,
            tie=0.9,
            min_agreement=0.97,
            max_accuracy_drop=0.01,
            batched=False,
            operators=frozenset(_TFLITE | {"QUANTIZE", "DEQUANTIZE"}),
        ),
        Format(
            name="onnx",
            file="model.onnx",
            writer="reszoo_export.onnx:write",
            operators=frozenset(_ONNX),
        ),
    )
}


def find_formats(names: Sequence[str] | str) -> list[Format]:
    """Return the table's rows for some names.

    Args:
        names: Names, or one text with commas between them.

    Raises:
        UnknownNameError: A name is not in the table; tells the nearest.
        UsageError: No names, or one twice.
    """
    if isinstance(names, str):
        names = [name.strip() for name in names.split(",") if name.strip()]
    for name in names:
        if name not in FORMATS:
            raise UnknownNameError("format", name, FORMATS)
    if not names or len(set(names)) != len(names):
        raise UsageError(
            "formats must name at least one format, each once. "
            f"Received: {', '.join(names) or 'none'}."
        )
    return [FORMATS[name] for name in names]
