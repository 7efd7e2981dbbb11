"""The command line: parse, call one function, print.

Nothing heavy is imported before a command has been understood.
"""

import io
import sys

# isort: off
# Each module adds its commands to the application, in the order of `--help`.
from reszoo.cli import models, training, files, publishing  # noqa: F401
from reszoo.cli.options import app

# isort: on
from reszoo.console import enable_quiet_cli, print_text
from reszoo.errors import ReszooError


def main() -> None:
    """Run the command line and exit: 0 done, 1 a check failed, 2 wrong usage."""
    enable_quiet_cli()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Labels and paths may have characters that the terminal's encoding lacks.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app(standalone_mode=True)
    except ModuleNotFoundError as error:
        # After `pip install --no-deps reszoo`.
        package = (error.name or str(error)).partition(".")[0]
        origin = "pip install reszoo installs"
        if package in ("jax", "torch", "openvino"):
            origin = "KERAS_BACKEND asks for; install it, or set that to tensorflow"
        print_text(f"reszoo: this needs {package}, which {origin}", sys.stderr)
        sys.exit(2)
    except OSError as error:
        # A full disk, a folder without permission, a file where a folder is to be.
        text = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        print_text(f"reszoo: {text}", sys.stderr)
        sys.exit(1)
    except ReszooError as error:
        print_text(f"reszoo: {error}", sys.stderr)
        sys.exit(error.exit_code)
