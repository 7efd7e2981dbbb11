"""What the fields of dataclasses may hold, and the tables that they are read from."""

import math
import tomllib
import typing
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from importlib.resources import files
from numbers import Real
from os import PathLike, fspath
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from reszoo.errors import UnknownNameError, UsageError

_TYPE_NAMES = {
    bool: "True or False", int: "a whole number", float: "a number", str: "a string",
}  # fmt: skip
# Larger whole numbers do not fit where they are used.
_MOST = 2**63
T = TypeVar("T")


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

    Options are types in the order of preference (see `converted`). An UnknownNameError
    for a value that is none of a `Literal`, where no other type is allowed.
    """
    try:
        return converted(value, *options)
    except TypeError:
        kinds = [kind for kind in options if kind is not NoneType]
    if get_origin(kinds[0]) is Literal and len(kinds) == 1:
        raise UnknownNameError(field, value, get_args(kinds[0]))
    optional = " (or None)" if NoneType in options else ""
    raise UsageError(
        f"{field} must be {' or '.join(map(_type_name, kinds))}{optional}. "
        f"Received: {field}={value!r:.200}."
    )


def typed(kind: type[T], content: Mapping[str, Any]) -> T:
    """Make a dataclass, and those in it, of what a file of JSON has for its fields.

    A TypeError if one is missing, unknown, or of another type than declared.
    """
    hints, made = typing.get_type_hints(kind), {}
    for name, value in content.items():
        hint = hints.get(name, Any)
        try:
            made[name] = converted(value, hint)
        except TypeError as error:
            # That of a dataclass within this one names the field already.
            wanted = f"{name} of {kind.__name__} must be {hint}"
            told = f"{wanted}. Received: {value!r:.80}"
            raise error if error.args else TypeError(told) from None
    return kind(**made)


def converted(value: Any, *kinds: Any) -> Any:
    """Return a value as plain Python of the first of some types that it fits.

    NumPy's numbers and arrays become Python's, paths text, whole numbers floats where a
    float is declared, lists tuples, and objects of JSON dataclasses. A TypeError if it
    fits none: floats must be finite, and whole numbers have 64 bits.
    """
    if value is None and NoneType in kinds:
        return None
    *others, last = (kind for kind in kinds if kind is not NoneType)
    for kind in others:
        with suppress(TypeError):
            return _converted(value, kind)
    return _converted(value, last)


def _converted(value: Any, kind: Any) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, UnionType):
        return converted(value, *inner)
    # A scalar or array of NumPy, whose import would be half the time of `--help`.
    if hasattr(value, "tolist"):
        value = value.tolist()
    if kind is str and isinstance(value, PathLike):
        value = fspath(value)
    if origin in (list, tuple) and isinstance(value, list | tuple):
        if origin is list or Ellipsis in inner:
            return origin(_converted(each, inner[0]) for each in value)
        if len(value) == len(inner):
            return tuple(map(_converted, value, inner))
    elif origin in (dict, Mapping) and isinstance(value, Mapping):
        rows = value.items()
        return {_converted(k, inner[0]): _converted(each, inner[1]) for k, each in rows}
    elif origin is Literal and isinstance(value, str) and value in inner:
        return value
    elif is_dataclass(kind) and isinstance(value, Mapping):
        owner: Any = kind
        own = hasattr(owner, "from_json")
        return owner.from_json(value) if own else typed(owner, value)
    elif origin is None and _fits(value, kind):
        return kind(value) if kind is float else value
    raise TypeError


def _fits(value: Any, kind: type) -> bool:
    # True is an int in Python, but not a number of epochs.
    if kind not in (int, float) or isinstance(value, bool):
        return isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
    if isinstance(value, float):
        return kind is float and math.isfinite(value)
    return isinstance(value, int) and abs(value) < _MOST


def _type_name(kind: Any) -> str:
    if get_origin(kind) is dict:
        return 'positive numbers by label such as {"cat": 2.5}'
    if get_origin(kind) is Literal:
        return f'"{get_args(kind)[0]}"'
    if get_origin(kind) is not tuple:
        return _TYPE_NAMES.get(kind) or f"a {kind.__name__}"
    parts = get_args(kind)
    kind = {int: "whole numbers", str: "a list of strings"}.get(parts[0], "numbers")
    return kind if Ellipsis in parts else f"{len(parts)} {kind}"


def check_fields(holder: Any) -> None:
    """Make the value of each field plain (`coerce`); check the intervals of numbers.

    `Annotated[float, "[0, 1)"]` is a field whose numbers must be in that interval. A
    UsageError if one is not, or a value is of another type.
    """
    for name, (options, interval) in _fields(holder.__class__).items():
        value = coerce(name, getattr(holder, name), options)
        object.__setattr__(holder, name, value)
        if interval:
            _check_numbers(name, value, interval)


def check_range(name: str, value: Any, interval: str, *options: Any) -> None:
    """Raise UsageError where an argument is not a number in "[0, 1)", say.

    Options are the types that it may have, `NoneType` among them (see `coerce`).
    """
    _check_numbers(name, coerce(name, value, options), interval)


def _check_numbers(name: str, value: Any, interval: str) -> None:
    parts = value.values() if isinstance(value, dict) else value
    numbers = parts if isinstance(value, tuple | dict) else [value]
    if not all(_is_in(x, interval) for x in numbers if isinstance(x, Real)):
        wanted = _in_words(interval)
        raise UsageError(f"{name} must be {wanted}. Received: {name}={value}.")


def _is_in(value: Any, interval: str) -> bool:
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    return bool(above and (value <= high if interval[-1] == "]" else value < high))


def _in_words(interval: str) -> str:
    low, high = interval[1:-1].split(", ")
    if high != "inf":
        return f"in {interval}"
    return f"at least {low}" if interval[0] == "[" else f"more than {low}"


@cache
def _fields(owner: type) -> dict[str, tuple[tuple[Any, ...], str]]:
    """Return the types that each field may have, and the interval of its numbers."""
    found = {}
    hints = typing.get_type_hints(owner, include_extras=True)
    for name, hint in ((each.name, hints[each.name]) for each in fields(owner)):
        kind, *intervals = get_args(hint) if get_origin(hint) is Annotated else [hint]
        unions = get_origin(kind) in (UnionType, Union)
        found[name] = (get_args(kind) if unions else (kind,), "".join(intervals))
    return found


def options_of(owner: type, field: str) -> tuple[Any, ...]:
    """Return the types that a field may have, `NoneType` among them."""
    return _fields(owner)[field][0]
