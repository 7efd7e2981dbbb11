"""What the fields of dataclasses may hold, and the tables that they are read from."""

import math
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from importlib.resources import files
from os import PathLike, fspath
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints
from unicodedata import normalize

from reszoo.errors import UnknownNameError, UsageError

_TYPE_NAMES = {
    bool: "True or False", int: "a whole number", float: "a number", str: "a string",
}  # fmt: skip


def read_tables(package: str, name: str) -> dict[str, Any]:
    """Read a TOML file of a package."""
    return tomllib.loads(files(package).joinpath(name).read_text("utf-8"))


def inherited(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return rows with the fields that they leave to the earlier row they are like."""
    made: dict[str, dict[str, Any]] = {}
    for name, row in rows.items():
        own = dict(row)
        base = made[own.pop("like")] if "like" in own else {}
        made[name] = {**base, **own}
    return made


def plain_values(holder: Any) -> dict[str, Any]:
    """Return the fields of a dataclass as plain JSON values."""
    content = asdict(holder)
    return {k: list(v) if isinstance(v, tuple) else v for k, v in content.items()}


def coerce(field: str, value: Any, options: tuple[Any, ...]) -> Any:
    """Return a value as plain Python of a field's type; `field` is for the errors.

    NumPy's numbers become Python's, paths text, whole numbers floats where the field is
    a float, and lists and arrays tuples. Options are types in the order of
    preference, and `NoneType` where the field may be None: bool, int, float (finite),
    str, a tuple of numbers, a dict from text to positive floats, or a `Literal` of
    names (an UnknownNameError for others).
    """
    if value is None and NoneType in options:
        return None
    kinds = [kind for kind in options if kind is not NoneType]
    if len(kinds) == 1 and get_origin(kinds[0]) is Literal:
        if value not in get_args(kinds[0]):
            raise UnknownNameError(field, value, get_args(kinds[0]))
        return value
    for kind in kinds:
        with suppress(TypeError, OverflowError):
            return _plain(value, kind)
    optional = " (or None)" if NoneType in options else ""
    raise UsageError(
        f"{field} must be {' or '.join(map(_type_name, kinds))}{optional}. "
        f"Received: {field}={value!r}."
    )


def _plain(value: Any, kind: Any) -> Any:
    if get_origin(kind) is dict and isinstance(value, Mapping):
        # Labels are in NFC everywhere.
        given = {normalize("NFC", str(key)): each for key, each in value.items()}
        numbers = {key: _plain(each, float) for key, each in given.items()}
        if not all(number > 0 for number in numbers.values()):
            raise TypeError
        return numbers
    if get_origin(kind) is Literal and value in get_args(kind):
        return value
    # A scalar or array of NumPy, whose import would be half the time of `--help`.
    if hasattr(value, "tolist"):
        value = value.tolist()
    if get_origin(kind) in (dict, Literal):
        raise TypeError
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        fits = Ellipsis in kinds or len(value) == len(kinds)
        if not isinstance(value, (list, tuple)) or not fits:
            raise TypeError
        return tuple(_plain(part, kinds[0]) for part in value)
    if kind is str and isinstance(value, PathLike):
        value = fspath(value)
    # True is an int in Python, but not a number of epochs.
    if kind is float and type(value) is int:
        value = float(value)
    if not isinstance(value, kind) or (type(value) is bool) != (kind is bool):
        raise TypeError
    if kind is float and not math.isfinite(value):
        raise TypeError
    return value


def _type_name(kind: Any) -> str:
    if get_origin(kind) is dict:
        return 'positive numbers by label such as {"cat": 2.5}'
    if get_origin(kind) is Literal:
        return f'"{get_args(kind)[0]}"'
    if get_origin(kind) is not tuple:
        return _TYPE_NAMES[kind]
    parts = get_args(kind)
    kind = "whole numbers" if parts[0] is int else "numbers"
    return kind if Ellipsis in parts else f"{len(parts)} {kind}"


def check_fields(holder: Any) -> None:
    """Make the value of each field plain (`coerce`); check the intervals of numbers.

    `Annotated[float, "[0, 1)"]` is a field whose numbers must be in that interval. A
    UsageError if one is not, or a value is of another type.
    """
    for name, (options, interval) in _fields(holder.__class__).items():
        value = coerce(name, getattr(holder, name), options)
        object.__setattr__(holder, name, value)
        numbers = value if isinstance(value, tuple) else (value,)
        known = [x for x in numbers if isinstance(x, int | float)]
        if interval and not all(_is_in(x, interval) for x in known):
            wanted = _in_words(interval)
            raise UsageError(f"{name} must be {wanted}. Received: {name}={value}.")


def _is_in(value: float, interval: str) -> bool:
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    return above and (value <= high if interval[-1] == "]" else value < high)


def _in_words(interval: str) -> str:
    low, high = interval[1:-1].split(", ")
    if high != "inf":
        return f"in {interval}"
    return f"at least {low}" if interval[0] == "[" else f"more than {low}"


@cache
def _fields(owner: type) -> dict[str, tuple[tuple[Any, ...], str]]:
    """Return the types that each field may have, and the interval of its numbers."""
    found = {}
    for name, hint in get_type_hints(owner, include_extras=True).items():
        kind, *intervals = get_args(hint) if get_origin(hint) is Annotated else [hint]
        unions = get_origin(kind) in (UnionType, Union)
        found[name] = (get_args(kind) if unions else (kind,), "".join(intervals))
    return found


def options_of(owner: type, field: str) -> tuple[Any, ...]:
    """Return the types that a field may have, `NoneType` among them."""
    return _fields(owner)[field][0]
