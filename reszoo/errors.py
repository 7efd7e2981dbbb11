"""The errors that reszoo raises on purpose.

ReszooError               exit 1: a file, the data or the machine is not as required
+-- UsageError            exit 2: the request itself is invalid (also a ValueError)
|   +-- UnknownNameError  a name that is in no table; suggests the nearest ones
+-- DataError             images or labels that cannot be used
+-- CheckpointError       a weight file that cannot be read or does not fit
+-- ExportError           a file that could not be exported
+-- VerificationError     an exported file with other outputs than its model
"""

import difflib
from collections.abc import Callable, Iterable, Sequence
from os.path import commonprefix
from typing import Any

# What reading content that is damaged, or of another kind, ends in.
MALFORMED = (ValueError, LookupError, ArithmeticError, TypeError, AttributeError)


def printable(text: str) -> str:
    r"""Return text of an unknown origin as one line that only shows what it says.

    Control characters, which may move the cursor or change what was printed before,
    and marks of writing direction are escaped as in Python: `\x1b`, `\u202e`. So are
    bytes of a file name that are not UTF-8: `\xff`.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    # How Python holds an undecodable byte (PEP 383).
    is_byte = "\udc80" <= character <= "\udcff"
    return f"\\x{ord(character) - 0xDC00:02x}" if is_byte else ascii(character)[1:-1]


def summarized(names: Sequence[str], most: int = 5, between: str = ", ") -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{between.join(names[:most])}{more}"


class ReszooError(Exception):
    """Base of all errors that reszoo raises on purpose.

    Messages quote names from files of strangers, so each argument becomes one line of
    printable text, whoever prints it.
    """

    exit_code = 1

    def __str__(self) -> str:
        return "\n".join(printable(str(line)) for line in self.args)


class UsageError(ReszooError, ValueError):
    """A request that is invalid or cannot be carried out as it was made."""

    exit_code = 2


Rules = dict[str, Callable[[Any], Any]]
"""Message -> condition of an object, without which it is raised.

A field in braces, such as {epochs}, is shown as "epochs=3"; {self} is the object.
"""


def check_rules(holder: object, rules: Rules) -> None:
    """Raise UsageError for the first rule that an object breaks."""
    for text, holds in rules.items():
        if not holds(holder):
            fields = vars(holder).items()
            shown = {name: f"{name}={value!r}" for name, value in fields}
            raise UsageError(text.format(**shown, self=holder))


class UnknownNameError(UsageError):
    """A name that is in no table of its kind, in the singular ("model", "format")."""

    def __init__(self, kind: str, received: object, choices: Iterable[str]) -> None:
        self.kind, self.received = kind, str(received)
        self.choices = tuple(choices)
        name = self.received
        near = difflib.get_close_matches(name.lower(), self.choices, n=3)
        near.sort(key=lambda choice: -len(commonprefix([name.lower(), choice])))  # noqa: RUF071
        hint = f"Did you mean {_either(near)}? " if near else ""
        super().__init__(
            f"Unknown {kind} {name!r}. {hint}Known: {', '.join(self.choices)}."
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # An error that cannot be unpickled makes a pool of processes wait forever.
        return type(self), (self.kind, self.received, self.choices)


def known(kind: str, name: Any, choices: Iterable[str]) -> Any:
    """Return a name that is one of the choices, or raise UnknownNameError."""
    if name not in choices:
        raise UnknownNameError(kind, name, choices)
    return name


class DataError(ReszooError):
    """Images or labels that cannot be used."""


class CheckpointError(ReszooError):
    """A weight file that cannot be read, or that belongs to another model."""


class ExportError(ReszooError):
    """A file that could not be exported."""


class VerificationError(ReszooError):
    """An exported file has other outputs than the model it came from."""


def named(kind: str, message: str) -> ReszooError:
    """Make an error again that another process had, from its class and text."""
    lines, found = message.split("\n"), globals().get(kind)
    if not (isinstance(found, type) and issubclass(found, ReszooError)):
        return ReszooError(*lines)
    # Subclasses of UsageError take other arguments than the message.
    return (UsageError if issubclass(found, UsageError) else found)(*lines)


def _either(names: list[str]) -> str:
    quoted = [repr(name) for name in names]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]] if quoted[1:] else quoted)
