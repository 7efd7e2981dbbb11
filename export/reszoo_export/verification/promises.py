"""What a file looks like from outside, as its format and the options promise it."""

from collections.abc import Sequence
from typing import Any

from reszoo.cards import Card
from reszoo_export.formats import Format
from reszoo_export.options import ExportOptions
from reszoo_export.runtimes.interface import TensorInfo

# GPU delegates of phones cannot cast bytes, so float TFLite files take float32.
_BYTES_IN_TFLITE = ("int8",)


def broken_promises(
    row: Format,
    options: ExportOptions,
    card: Card,
    inputs: Sequence[TensorInfo],
    outputs: Sequence[TensorInfo],
) -> list[str]:
    """Tell what of a file's names, dtypes and shapes is not as promised.

    Args:
        row: The file's format.
        options: What was asked for.
        card: Of the model.
        inputs: What the file takes.
        outputs: What it gives.
    """
    problems = []
    if [tensor["name"] for tensor in inputs] != ["image"]:
        problems.append(
            f"the only input must be 'image', not {', '.join(map(_shown, inputs))}"
        )
    elif inputs[0]["dtype"] != _pixels(row):
        problems.append(f"image must be {_pixels(row)}, not {inputs[0]['dtype']}")
    if inputs and list(inputs[0]["shape"]) != _image_shape(row, options, card):
        shape = _image_shape(row, options, card)
        problems.append(f"image must be of shape {shape}, not {inputs[0]['shape']}")
    return problems + _wrong_outputs(row, options, card, outputs)


def _wrong_outputs(
    row: Format, options: ExportOptions, card: Card, outputs: Sequence[TensorInfo]
) -> list[str]:
    names = _output_names(row, options)
    given = {tensor["name"]: tensor for tensor in outputs}
    if sorted(given) != sorted(names) or len(given) != len(outputs):
        shown = ", ".join(map(_shown, outputs)) or "none"
        return [f"the outputs must be {' and '.join(names)}, not {shown}"]
    dtype = "uint8" if options.integer_io else "float32"
    batch = _batch(row, options)
    problems = []
    for name in names:
        width = card.architecture.classes if name != "features" else None
        tensor = given[name]
        shape = [batch, width or tensor["shape"][-1]]
        if tensor["dtype"] != dtype or list(tensor["shape"]) != shape:
            problems.append(f"{name} must be {dtype} {shape}, not {_shown(tensor)}")
    return problems


def _pixels(row: Format) -> str:
    floats = row.runtime == "tflite" and row.precision not in _BYTES_IN_TFLITE
    return "float32" if floats else "uint8"


def _image_shape(row: Format, options: ExportOptions, card: Card) -> list[Any]:
    size = card.preprocessing.eval_size
    image = [3, size, size] if options.layout == "nchw" else [size, size, 3]
    return [_batch(row, options), *image]


def _batch(row: Format, options: ExportOptions) -> int | str:
    if isinstance(options.batch, int):
        return options.batch
    if row.runtime == "tflite":
        return -1 if options.batch == "dynamic" else 1
    return "batch"


def _output_names(row: Format, options: ExportOptions) -> tuple[str, ...]:
    if options.outputs is not None:
        return (options.outputs,)
    if row.runtime == "tflite":
        return ("probabilities",)
    return ("logits", "probabilities")


def _shown(tensor: TensorInfo) -> str:
    return f"{tensor['name']} {tensor['dtype']} {list(tensor['shape'])}"
