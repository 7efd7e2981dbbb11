"""The application that every module of commands adds to."""

import typer

app = typer.Typer(
    help="ResNets for Keras: train on your images, export, and prove the files.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
