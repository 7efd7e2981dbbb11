"""A value as the type of its field tells: checked, and plain Python."""

import math
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import numpy as np

from reszoo.errors import UnknownNameError, UsageError

_MEANT = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
}


def fitted(field: str, value: Any, options: tuple[Any, ...]) -> Any:
    """Return a value as a plain one of the type that a field has.

    Args:
        field: Its name, for the errors.
        value: What came. NumPy's numbers become Python's, whole numbers become floats
            where those are meant, and lists and arrays become tuples.
        options: The type, and `NoneType` where the field may be None: bool, int, float
            (finite), str, a tuple of floats, or a `Literal` of names.

    Raises:
        UnknownNameError: A name that the `Literal` has not.
        UsageError: A value of another type.
    """
    if value is None and NoneType in options:
        return None
    wanted = options[0]
    if get_origin(wanted) is Literal:
        if value not in get_args(wanted):
            raise UnknownNameError(field, value, get_args(wanted))
        return value
    try:
        return _plain(value, wanted)
    except (TypeError, OverflowError) as error:
        optional = " (or None)" if NoneType in options else ""
        raise UsageError(
            f"{field} must be {_meant(wanted)}{optional}. Received: {field}={value!r}."
        ) from error


def _plain(value: Any, wanted: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if get_origin(wanted) is tuple:
        return _plain_tuple(value, get_args(wanted))
    # True is an int to Python, but no number of epochs.
    if wanted is float and type(value) is int:
        value = float(value)
    if not isinstance(value, wanted) or (type(value) is bool) != (wanted is bool):
        raise TypeError
    if wanted is float and not math.isfinite(value):
        raise TypeError
    return value


def _plain_tuple(value: Any, parts: tuple[Any, ...]) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise TypeError
    if Ellipsis not in parts and len(value) != len(parts):
        raise TypeError
    return tuple(_plain(part, parts[0]) for part in value)


def _meant(wanted: Any) -> str:
    if get_origin(wanted) is not tuple:
        return _MEANT[wanted]
    parts = get_args(wanted)
    return "numbers" if Ellipsis in parts else f"{len(parts)} numbers"
