"""The errors that reszoo raises on purpose.

ReszooError               exit 1: something in the world is not as it must be
+-- UsageError            exit 2: the request itself cannot be meant (also ValueError)
|   +-- UnknownNameError  a name that is in no table; tells the nearest ones
+-- DataError             images or labels that cannot be used
+-- CheckpointError       a weight file that cannot be read or does not fit
+-- ExportError           a file that could not be written
+-- VerificationError     a written file that does not answer like its model
"""

import difflib
from collections.abc import Iterable
from itertools import takewhile


class ReszooError(Exception):
    """Base of all errors that reszoo raises on purpose."""

    exit_code = 1


class UsageError(ReszooError, ValueError):
    """A request that cannot be carried out as it was made."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name that is in no table of the kind asked for.

    Args:
        kind: What the name stands for, in the singular ("model", "format").
        received: The name as it came.
        choices: Every name that would have been right.
    """

    def __init__(self, kind: str, received: object, choices: Iterable[str]) -> None:
        self.choices = tuple(choices)
        asked = str(received).lower()
        near = difflib.get_close_matches(asked, self.choices, n=3)
        near.sort(key=lambda name: -_same_start(asked, name))
        hint = f"Did you mean {_either(near)}? " if near else ""
        super().__init__(
            f"There is no {kind} {str(received)!r}. {hint}"
            f"Known: {', '.join(self.choices)}."
        )


class DataError(ReszooError):
    """Images or labels that cannot be used."""


class CheckpointError(ReszooError):
    """A weight file that cannot be read, or that belongs to another net."""


class ExportError(ReszooError):
    """An exported file that could not be made."""


class VerificationError(ReszooError):
    """An exported file that does not answer like the model it came from."""


def _same_start(one: str, other: str) -> int:
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return len(list(pairs))


def _either(names: list[str]) -> str:
    quoted = [repr(name) for name in names]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]] if quoted[1:] else quoted)
