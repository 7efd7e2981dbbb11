"""The application, and how functions become its commands."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.resources import files
from inspect import Parameter, Signature, cleandoc, signature
from typing import Annotated, Any, TypeVar

from reszoo.console import print_json, print_table, print_text
from reszoo.errors import UsageError, printable

try:
    from typer import Argument, Option, Typer
    from typer.core import TyperCommand as TyperCommand
    from typer.core import TyperGroup
except ModuleNotFoundError:
    from reszoo.cli import plain

    TyperCommand = TyperGroup = object  # type: ignore[misc, assignment]
    Argument = Option = plain.option  # type: ignore[assignment]
    Typer = plain.Typer  # type: ignore[misc, assignment]

# Names of options that are not those of their parameters.
_NAMES = {
    "as_json": ("--json",), "fields": ("--set",), "top": ("--top", "-k"),
    "input_size": ("--size", "--input-size"), "vendor": ("--vendor/--no-vendor",),
}  # fmt: skip
# The parameters of several commands.
_SHARED = files("reszoo.cli").joinpath("parameters.txt").read_text("utf-8")
Function = TypeVar("Function", bound=Callable[..., None])
# The option that all commands have.
_JSON = Parameter("as_json", Parameter.KEYWORD_ONLY, default=False, annotation=bool)
as_json = ContextVar("whether --json was given", default=False)


@contextmanager
def _escaped() -> Iterator[None]:
    """Let the errors of Typer show what was typed as `printable` text."""
    try:
        yield
    except Exception as error:
        # Not TensorFlow's, which cannot be set; the whole page of help is one, too.
        message = vars(error).get("message")
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
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


def show(content: Any, *texts: str | Callable[[], str] | tuple[Any, Any]) -> bool:
    """Print an answer: with --json the content, otherwise texts and tables.

    A text may be a function that makes it, which only printing calls; a table is its
    columns and rows. Returns whether a person reads the answer.
    """
    if as_json.get():
        print_json(content)
        return False
    for each in texts:
        if isinstance(each, tuple):
            print_table(*each)
        else:
            print_text(each if isinstance(each, str) else each())
    return True


def numbers(text: str, expected: str) -> list[int]:
    """Parse whole numbers between commas; a UsageError says what was expected."""
    parts = [part.strip() for part in text.split(",") if part]
    if not parts or not all(part.isdecimal() for part in parts):
        raise UsageError(f"{expected}. Received: {text!r}.")
    return [*map(int, parts)]


def command(
    name: str | None = None, cls: type[TyperCommand] = TyperCommand, **texts: str
) -> Callable[[Function], Function]:
    """Return a decorator that adds a function to the application.

    Parameters before a `*` are arguments, those behind it are options. Each is
    described in the "Args:" of the docstring, which come last in it, or in `_SHARED`,
    as `name (METAVAR, default TEXT): HELP`; the texts replace `{names}` there. The
    function has not the option --json, which `show` heeds.
    """

    def add(function: Function) -> Function:
        doc = cleandoc(function.__doc__ or "").format(**texts)
        doc, _, own = doc.partition("\n\nArgs:\n")
        described = {**_described(_SHARED), **_described(own)}
        annotations: dict[str, Any] = {}
        parameters = [*signature(function).parameters.values(), _JSON]
        for each in parameters:
            shown, decls = described[each.name], (f"--{each.name.replace('_', '-')}",)
            kind: Any = Argument(**shown)
            if each.kind is Parameter.KEYWORD_ONLY:
                kind = Option(*_NAMES.get(each.name, decls), **shown)
            annotations[each.name] = Annotated[each.annotation, kind]

        def run(**given: Any) -> None:
            as_json.set(given.pop(_JSON.name))
            function(**given)

        run.__name__, run.__annotations__ = function.__name__, annotations
        parameters = [p.replace(annotation=annotations[p.name]) for p in parameters]
        run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        app.command(name, cls=cls, help=doc)(run)
        return function

    return add


def _described(text: str) -> dict[str, dict[str, Any]]:
    """Return what Typer is told of each parameter that a text describes."""
    lines = re.sub(r"\n {8,}", " ", text)
    found = re.findall(r"^ {4}(\w+)(?: \(([^)]*)\))?: (.*)", lines, re.M)
    parts = {name: (notes.partition("default "), text) for name, notes, text in found}
    return {
        name: {"help": text, "metavar": metavar.rstrip(", ") or None}
        | ({"show_default": default} if default else {})
        for name, ((metavar, _, default), text) in parts.items()
    }
