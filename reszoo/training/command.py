"""The command that repeats a run."""

import os
from pathlib import Path
from typing import Any

from reszoo.training.recipe_table import FIELDS, RECIPES, find_recipe
from reszoo.training.recipes import DEFAULTS, Recipe


def repeating(
    model: Any,
    data: Any,
    recipe: Recipe,
    weights: str | os.PathLike[str] | None,
    output: Path | None,
    bad_images: str,
    strategy: str | None = None,
) -> list[str]:
    """Return the arguments of a command line that does the same once more.

    A model or arrays in memory, and a recipe that is no row of `RECIPES`, have no name
    on a command line: then it is Python, where "model" and "data" are left to the
    reader.
    """
    options = {
        "weights": None if weights is None else str(weights),
        "bad_images": None if bad_images == "skip" else bad_images,
        "strategy": strategy,
        "output": None if output is None else str(output),
    }
    given = {name: text for name, text in options.items() if text is not None}
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
    words = [
        repr(model) if isinstance(model, str) else "model",
        repr(str(data)) if isinstance(data, (str, os.PathLike)) else "data",
    ]
    if recipe.name in RECIPES:
        words += _named({"recipe": recipe.name, **_changes(recipe)})
    else:
        fields = {name: getattr(recipe, name) for name in ("name", *FIELDS)}
        own = {n: value for n, value in fields.items() if value != DEFAULTS[n]}
        words.append(f"recipe=reszoo.Recipe({', '.join(_named(own))})")
    return f"import reszoo; reszoo.train({', '.join([*words, *_named(given)])})"


def _named(values: dict[str, Any]) -> list[str]:
    return [f"{name}={value!r}" for name, value in values.items()]


def _changes(recipe: Recipe) -> dict[str, Any]:
    """Return with which fields `find_recipe` makes this recipe from the named one."""
    changes = _differing(recipe, find_recipe(recipe.name))
    # A change may carry other fields along, which then are to be told as well.
    return changes | _differing(recipe, find_recipe(recipe.name, **changes))


def _differing(recipe: Recipe, other: Recipe) -> dict[str, Any]:
    values = {field: getattr(recipe, field) for field in FIELDS}
    return {n: value for n, value in values.items() if value != getattr(other, n)}


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(str(part) for part in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
