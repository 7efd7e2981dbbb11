"""The application, and the options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="ResNets for Keras: train on your own images, export model files, verify and "
    "measure them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the output if it exists.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue what the output folder contains.")
]
Fields = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Change any field of the recipe; may be repeated: --set momentum=0.8 "
        "--set steps=2000.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(help="Number of threads to compute with.", show_default="all cores"),
]
Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="Folder of class folders with images (or train/, val/, test/ folders of "
        'these), CSV of path and label, tfds:NAME, or the name "digits".',
    ),
]
BadImages = Annotated[
    str,
    typer.Option(
        help="Handle unreadable images. error: stop at the first; skip: leave them out "
        "and list them; recover: as skip, but decode truncated JPEGs as far as they go."
    ),
]
Model = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help="Checkpoint (.safetensors), SavedModel folder, .tflite or .onnx file.",
    ),
]
TrustSavedModel = Annotated[
    bool,
    typer.Option(
        "--trust-saved-model",
        help="Run a SavedModel whose operators may read and write files. Only for "
        "files of known origin.",
    ),
]
