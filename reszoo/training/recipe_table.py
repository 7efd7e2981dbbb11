"""The named recipes with their sources, and the command that repeats a run."""

import json
import os
from contextlib import suppress
from dataclasses import replace
from numbers import Real
from pathlib import Path
from types import NoneType
from typing import Any, get_origin

from reszoo import defaults
from reszoo.errors import UsageError, known
from reszoo.fields import coerce, inherited, options_of, read_tables
from reszoo.training.recipes import DEFAULTS, NEEDS, Recipe

_ADAM = ("adam", "adamw")
FIELDS = tuple(name for name in DEFAULTS if name != "name")


def find_recipe(name: str | Recipe, /, **changes: Any) -> Recipe:
    """Return a recipe by name, with some of its fields replaced.

    Fields that depend on the old value of a replaced field are reset, unless they are
    given as well: `resize="squash"` or `"pad"` resets `crop_pct`, which is 1 then; a
    new number of `epochs` replaces `steps`, and the other way round; a
    fixed warm-up becomes a twentieth of a training that is no longer than it, or that
    has steps where the recipe had epochs; a new `crop` or `schedule` resets what only
    the old one used (`recipes.NEEDS`) to its default; and "adam" or "adamw" in place of
    another optimizer has a learning rate of 0.001.

    Args:
        name: A row of `RECIPES`, or a recipe of your own.
        **changes: Fields of `Recipe` and their new values.

    Raises:
        UnknownNameError: No such recipe or field.
        UsageError: A value is of another type, out of its range or without effect.
    """
    if isinstance(name, str):
        name = RECIPES[known("recipe", name, RECIPES)]
    for field in changes:
        known("recipe field", field, FIELDS)
    return replace(name, **{**_reset(name, changes), **changes})


def _reset(recipe: Recipe, changes: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a recipe that the change of others resets."""
    reset = {
        field: DEFAULTS[field]
        for field, (other, *values) in NEEDS.items()
        if other in changes and changes[other] not in values
    }
    if changes.get("resize") in ("squash", "pad"):
        reset["crop_pct"] = None
    if changes.get("optimizer") in _ADAM and recipe.optimizer not in _ADAM:
        # torch's default.
        reset |= {"learning_rate": 1e-3, "head_learning_rate": 1e-3}
    for one, other in (("epochs", "steps"), ("steps", "epochs")):
        if changes.get(one) is not None:
            reset[other] = None
    epochs, warmup = changes.get("epochs"), recipe.warmup_epochs
    # How many epochs there are in a number of steps depends on the data.
    outlasted = changes.get("steps") is not None and recipe.steps is None
    if isinstance(epochs, Real):
        outlasted = (warmup or 0) >= epochs
    if warmup and outlasted:
        reset["warmup_epochs"] = None
    return reset


def parse_field(text: str) -> tuple[str, Any]:
    """Parse "field=value" into the field and its value.

    As on the command line: "epochs=10", "scale=0.25,1", "flip=no", "ema=none". An
    UnknownNameError if there is no such field, a UsageError for a value of another
    type.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"A field is set as NAME=VALUE. Received: {text!r}.")
    known("recipe field", name, FIELDS)
    options = options_of(Recipe, name)
    return name, coerce(name, _parsed(value.strip(), options), options)


_WORDS = {"yes": True, "true": True, "no": False, "false": False}


def _parsed(text: str, options: tuple[Any, ...]) -> Any:
    """Parse the text of a value, which `coerce` checks afterwards."""
    if text.lower() == "none" and NoneType in options:
        return None
    if str in options:
        return text
    if get_origin(options[0]) is tuple or ("," in text and "{" not in text):
        return tuple(_parsed(part, (float,)) for part in text.split(",") if part)
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for read in (int, float, json.loads):
        with suppress(ValueError):
            return read(text)
    return text


def _table() -> dict[str, Recipe]:
    """Return the recipes of `recipes.toml` by name."""
    rows: dict[str, Recipe] = {}
    listed = inherited(read_tables("reszoo.training", "recipes.toml"))
    for name, row in listed.items():
        fields = {
            k: _parsed(v, options_of(Recipe, k)) if v == "none" else v
            for k, v in row.items()
        }
        rows[name] = Recipe(name=name, **fields)
    return rows


RECIPES = _table()


def repeat_command(
    model: Any,
    data: Any,
    recipe: Recipe,
    weights: str | os.PathLike[str] | None,
    output: Path | None,
    bad_images: str,
    strategy: str | None = None,
    match: str | None = None,
) -> list[str]:
    """Return the arguments of a command line that repeats a run.

    A model or arrays in memory, and a recipe that is not a row of `RECIPES`, cannot be
    given on a command line: then the command is Python, in which the reader replaces
    "model" and "data".
    """
    # NumPy and Pillow, which the command line does not need for its help.
    from reszoo.cards import public_origin

    others = None if bad_images == defaults.TRAINING_BAD_IMAGES else bad_images
    options = {
        "weights": weights, "bad_images": others, "strategy": strategy,
        "match": match, "output": output,
    }  # fmt: skip
    # The report is passed on; see `public_origin`.
    given = {k: public_origin(str(v)) for k, v in options.items() if v is not None}
    in_files = isinstance(model, str) and isinstance(data, (str, os.PathLike))
    if not in_files or recipe.name not in RECIPES:
        return ["python", "-c", _python(model, data, recipe, given)]
    command = ["reszoo", "train", str(data), "--model", model]
    command += ["--recipe", recipe.name]
    for field, value in _changes(recipe).items():
        command += ["--set", f"{field}={_written(value)}"]
    for name, text in given.items():
        command += [f"--{name.replace('_', '-')}", text]
    return command


def _python(model: Any, data: Any, recipe: Recipe, given: dict[str, str]) -> str:
    arguments = [
        repr(model) if isinstance(model, str) else "model",
        repr(str(data)) if isinstance(data, (str, os.PathLike)) else "data",
    ]
    if recipe.name in RECIPES:
        arguments += _keywords({"recipe": recipe.name, **_changes(recipe)})
    else:
        fields = {name: getattr(recipe, name) for name in ("name", *FIELDS)}
        own = {n: value for n, value in fields.items() if value != DEFAULTS[n]}
        arguments.append(f"recipe=reszoo.Recipe({', '.join(_keywords(own))})")
    arguments += _keywords(given)
    return f"import reszoo; reszoo.train({', '.join(arguments)})"


def _keywords(values: dict[str, Any]) -> list[str]:
    return [f"{name}={value!r}" for name, value in values.items()]


def _changes(recipe: Recipe) -> dict[str, Any]:
    """Return the changes by which `find_recipe` makes this recipe of the named one."""
    changes: dict[str, Any] = {}
    # A change may reset other fields, which then have to be given as well.
    for _ in range(2):
        made = find_recipe(recipe.name, **changes)
        differing = [n for n in FIELDS if getattr(recipe, n) != getattr(made, n)]
        changes |= {name: getattr(recipe, name) for name in differing}
    return changes


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(str(part) for part in value)
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
