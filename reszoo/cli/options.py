"""The application, and the options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="ResNets for Keras: train on your images, export, and prove the files.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace what the output folder holds.")
]
Threads = Annotated[
    int | None,
    typer.Option(help="Threads of the runtime.", show_default="one for each core"),
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
        help="skip: leave unreadable images out and name them; error: end with the "
        "first; recover: use what there is of truncated JPEGs."
    ),
]
Model = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help="Checkpoint (.safetensors), SavedModel folder, .tflite or .onnx file.",
    ),
]
