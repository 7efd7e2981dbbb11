"""The application, and the options that several commands share."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option, Typer
from typer.core import TyperGroup

from reszoo.errors import printable


@contextmanager
def _escaped() -> Iterator[None]:
    """Let the errors of Typer show what was typed as `printable` text."""
    try:
        yield
    except Exception as error:
        message = getattr(error, "message", None)
        # The whole page of help is one, too.
        if isinstance(message, str) and not message.startswith("Usage:"):
            error.message = printable(message)  # type: ignore[attr-defined]
        raise


class _Commands(TyperGroup):
    def make_context(self, *given: Any, **options: Any) -> Any:
        with _escaped():
            return super().make_context(*given, **options)

    def invoke(self, ctx: Any) -> Any:
        with _escaped():
            return super().invoke(ctx)


app = Typer(
    cls=_Commands,
    help="ResNets for Keras: train on your own images, export model files, verify and "
    "measure them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def given(values: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """Return a command's `locals()` as arguments of the function that it calls."""
    return {name: v for name, v in values.items() if name != "as_json"} | changes


# fmt: off
Json = Annotated[bool, Option("--json", help="Print JSON instead of a table.")]
Overwrite = Annotated[
    bool, Option("--overwrite", help="Replace the output if it exists.")
]
Resume = Annotated[
    bool, Option("--resume", help="Continue what the output folder contains.")
]
Fields = Annotated[list[str] | None, Option(
    "--set", metavar="FIELD=VALUE",
    help="Change any field of the recipe; may be repeated: --set momentum=0.8 "
    "--set steps=2000.",
)]
Threads = Annotated[int | None, Option(
    help="Number of threads to compute with.", show_default="all cores"
)]
Data = Annotated[str, Argument(
    metavar="DATA",
    help="Folder of class folders with images (or train/, val/, test/ folders of "
    'these), CSV of path and label, tfds:NAME, or the name "digits".',
)]
BadImages = Annotated[str, Option(
    help="Handle unreadable images. error: stop at the first; skip: leave them out "
    "and list them; recover: as skip, but decode truncated JPEGs as far as they go."
)]
Model = Annotated[Path, Argument(
    metavar="MODEL",
    help="Checkpoint (.safetensors), SavedModel folder, .tflite or .onnx file.",
)]
TrustSavedModel = Annotated[bool, Option(
    "--trust-saved-model",
    help="Run a SavedModel whose operators may read and write files. Only for "
    "files of known origin.",
)]
Isolated = Annotated[bool, Option(
    "--isolated",
    help="Open and run the file in a subprocess with limits on memory and time.",
)]
# fmt: on
