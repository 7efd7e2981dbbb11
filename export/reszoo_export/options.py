"""What a user may ask of an export beside its formats."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from reszoo.errors import UsageError
from reszoo_export.formats import Format

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
