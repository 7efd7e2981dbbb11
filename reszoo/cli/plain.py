"""The part of Typer that the commands use, on argparse: Typer is not installed."""

from argparse import ArgumentParser, BooleanOptionalAction, RawDescriptionHelpFormatter
from inspect import Parameter, signature
from typing import Any, get_args, get_origin


def option(*names: str, **shown: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Return the names of an option, none for an argument, and its description."""
    return names, shown


class Typer:
    """A parser of commands; calling it runs the one of `sys.argv`."""

    def __init__(self, *, help: str, **_: Any) -> None:  # noqa: A002
        self._parser = ArgumentParser("reszoo", description=help, allow_abbrev=False)
        self._commands = self._parser.add_subparsers(required=True, metavar="COMMAND")

    def command(self, name: str | None, *, cls: Any, help: str) -> Any:  # noqa: A002
        """Return a decorator that adds a function as a command."""
        text = help.replace("%", "%%")

        def add(function: Any) -> Any:
            parser = self._commands.add_parser(
                name or function.__name__, help=text.split("\n")[0], description=text,
                formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False,
            )  # fmt: skip
            parser.set_defaults(function=function)
            for each in signature(function).parameters.values():
                _add(parser, each)
            return function

        return add

    def __call__(self, **_: Any) -> None:
        """Run the command line."""
        found = vars(self._parser.parse_args())
        found.pop("function")(**found)


def _add(parser: ArgumentParser, parameter: Parameter) -> None:
    annotation, (names, shown) = get_args(parameter.annotation)
    kind, needed = annotation, parameter.default is Parameter.empty
    options: dict[str, Any] = {"help": shown["help"].replace("%", "%%")}
    options |= {} if needed else {"default": parameter.default}
    while get_args(kind):  # Of `list[str] | None`: a list, then a string.
        if get_origin(kind) is list:
            options |= {"action": "append"} if names else {"nargs": "+"}
        kind = get_args(kind)[0]
    if kind is bool:
        options["action"] = BooleanOptionalAction if "/" in names[0] else "store_true"
    else:
        options |= {"type": kind, "metavar": shown["metavar"]}
    if names:
        options |= {"dest": parameter.name, "required": needed}
    elif not needed:
        options["nargs"] = "?"
    shorter = [name.partition("/")[0] for name in names]
    parser.add_argument(*(shorter or [parameter.name]), **options)
