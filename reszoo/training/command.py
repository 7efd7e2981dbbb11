"""The command that repeats a run."""

import os
from pathlib import Path
from typing import Any

from reszoo.errors import UnknownNameError
from reszoo.training.recipe_table import find_recipe
from reszoo.training.recipes import Recipe


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

    A model or arrays in memory have no name on a command line: then it is Python,
    with their names left to the reader.
    """
    changes = _changes(recipe)
    if not isinstance(model, str) or not isinstance(data, (str, os.PathLike)):
        named = [f"{field}={value!r}" for field, value in changes.items()]
        given = repr(str(data)) if isinstance(data, (str, os.PathLike)) else "data"
        if strategy is not None:
            named.append(f"strategy={strategy!r}")
        words = ", ".join(["model", given, f"recipe={recipe.name!r}", *named])
        return ["python", "-c", f"import reszoo; reszoo.train({words})"]
    command = ["reszoo", "train", str(data), "--model", model]
    if weights is not None:
        command += ["--weights", str(weights)]
    command += ["--recipe", recipe.name]
    for field, value in changes.items():
        command += ["--set", f"{field}={_written(value)}"]
    if bad_images != "skip":
        command += ["--bad-images", bad_images]
    if strategy is not None:
        command += ["--strategy", strategy]
    return command + (["--output", str(output)] if output else [])


def _changes(recipe: Recipe) -> dict[str, Any]:
    try:
        own = find_recipe(recipe.name).to_json()
    except UnknownNameError:
        own = {}
    fields = recipe.to_json()
    return {n: v for n, v in fields.items() if n != "name" and v != own.get(n, v)}


def _written(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(str(part) for part in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
