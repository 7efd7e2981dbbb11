"""The named recipes with their sources, and the command that repeats a run."""

import os
from dataclasses import replace
from numbers import Real
from pathlib import Path
from types import NoneType
from typing import Any, get_origin

from reszoo import defaults
from reszoo.errors import UnknownNameError, UsageError
from reszoo.training.recipes import DEFAULTS, NEEDS, Recipe, fitted, options_of
from reszoo.training.schedules import rescaled_decay

_V2_EMA = rescaled_decay(0.99998, every=32, batch_size=1024, epochs=600)

_TABLE = (
    # Two phases after the survey of fine-tuning in Kornblith et al. 2019
    # (arXiv:1805.08974), BiT (arXiv:1912.11370) and LP-FT (arXiv:2202.10054): the
    # head first, so that its random gradient never reaches the backbone. Rate and
    # crops are what benchmarks/transfer.py likes best.
    Recipe(
        name="finetune",
        batch_size=32,
        learning_rate=0.01,
        nesterov=True,
        weight_decay=1e-4,
        warmup_epochs=None,
        label_smoothing=0.1,
        crop="auto",
        pad=1 / 8,
        scale=(0.25, 1.0),
        freeze_bn=None,
        head_epochs=2,
        head_learning_rate=0.03,
    ),
    # The head alone on what the backbone sees: how good the features are as they
    # stand.
    Recipe(
        name="linear-probe",
        batch_size=32,
        learning_rate=0.03,
        nesterov=True,
        weight_decay=1e-4,
        warmup_epochs=None,
        scale=(0.25, 1.0),
        freeze="backbone",
        freeze_bn=True,
    ),
    # From scratch, sized for a CPU: the crop-and-flip of He et al. 2015, section
    # 4.2, at the same batch and rate, with a cosine in place of their 64,000 steps.
    Recipe(
        name="cifar",
        epochs=30,
        batch_size=128,
        learning_rate=0.1,
        nesterov=True,
        weight_decay=5e-4,
        warmup_epochs=1,
        label_smoothing=0.1,
        crop="pad",
        pad=1 / 8,
    ),
    # Section 4.2 to the letter, but for the mean: one number a channel, which files
    # for phones can hold, in place of one a pixel. The rate falls at 32,000 and
    # 48,000 steps. For 110 layers they began with 0.01 for some 400 steps (at 352 an
    # epoch): warmup_epochs=1.14, warmup_start=0.1, warmup_shape="constant".
    Recipe(
        name="he2015-cifar",
        steps=64_000,
        batch_size=128,
        optimizer="caffe-sgd",
        learning_rate=0.1,
        weight_decay=1e-4,
        decay_on="all",
        schedule="steps",
        milestones=(0.5, 0.75),
        crop="pad",
        pad=1 / 8,
        bn_momentum=0.9,
    ),
    # torchvision, references/classification: the defaults, as run on 8 x 32 images.
    Recipe(
        name="torchvision-v1",
        epochs=90,
        batch_size=256,
        learning_rate=0.1,
        weight_decay=1e-4,
        decay_on="all",
        schedule="steps",
        schedule_per="epoch",
        milestones=(1 / 3, 2 / 3),
        bn_momentum=0.9,
        train_size=224,
        eval_size=224,
        crop_pct=224 / 256,
        interpolation="bilinear",
    ),
    # pytorch/vision#3995, as run on 8 x 128 images.
    Recipe(
        name="torchvision-v2",
        epochs=600,
        batch_size=1024,
        learning_rate=0.5,
        weight_decay=2e-5,
        # Its --norm-weight-decay is 0.
        decay_on="all-but-norm",
        schedule_per="epoch",
        warmup_epochs=5,
        label_smoothing=0.1,
        policy="trivial",
        erase=0.1,
        mixup=0.2,
        cutmix=1.0,
        repeats=4,
        ema=_V2_EMA,
        ema_every=32,
        bn_momentum=0.9,
        train_size=176,
        eval_size=224,
        crop_pct=224 / 232,
        interpolation="bilinear",
    ),
)
# ResNet strikes back (arXiv:2110.00476), table 2.
_A2 = Recipe(
    name="rsb-a2",
    epochs=300,
    batch_size=2048,
    optimizer="lamb",
    learning_rate=5e-3,
    weight_decay=0.02,
    schedule_per="epoch",
    warmup_epochs=5,
    # timm's --warmup-prefix is off by default.
    warmup_prefix=False,
    # timm's --warmup-lr 1e-6 and --min-lr 1e-6.
    warmup_start=1e-6 / 5e-3,
    floor=1e-6 / 5e-3,
    loss="binary",
    policy="rand-m7-mstd0.5",
    mixup=0.1,
    cutmix=1.0,
    repeats=3,
    stochastic_depth=0.05,
    zero_init_residual=True,
    bn_momentum=0.9,
    train_size=224,
    eval_size=224,
    crop_pct=0.95,
    interpolation="bicubic",
)
_STRIKES_BACK = (
    replace(
        _A2,
        name="rsb-a1",
        epochs=600,
        weight_decay=0.01,
        label_smoothing=0.1,
        mixup=0.2,
    ),
    _A2,
    replace(
        _A2,
        name="rsb-a3",
        epochs=100,
        learning_rate=8e-3,
        warmup_start=1e-6 / 8e-3,
        floor=1e-6 / 8e-3,
        policy="rand-m6-mstd0.5",
        repeats=1,
        stochastic_depth=0.0,
        train_size=160,
    ),
)
RECIPES = {recipe.name: recipe for recipe in (*_TABLE, *_STRIKES_BACK)}
FIELDS = tuple(name for name in DEFAULTS if name != "name")


def find_recipe(name: str | Recipe, /, **changes: Any) -> Recipe:
    """Return a recipe by name, with some of its fields replaced.

    What belongs to the old value of a field goes with it, unless it is given as well:
    a new number of `epochs` takes the place of `steps`, and the other way round; a
    fixed warm-up becomes a twentieth of a training that is no longer than it, or that
    is told in steps where the recipe's was in epochs; a new `crop` or `schedule`
    returns what only the old one used (`recipes.NEEDS`) to its default.

    Args:
        name: A row of `RECIPES`, or a recipe of your own.
        **changes: Fields of `Recipe` and their new values.

    Raises:
        UnknownNameError: No such recipe or field.
        UsageError: A value is of another type, out of its range or without effect.
    """
    if isinstance(name, str):
        if name not in RECIPES:
            raise UnknownNameError("recipe", name, RECIPES)
        name = RECIPES[name]
    for field in changes:
        if field not in FIELDS:
            raise UnknownNameError("recipe field", field, FIELDS)
    return replace(name, **{**_outdated(name, changes), **changes})


def _outdated(recipe: Recipe, changes: dict[str, Any]) -> dict[str, Any]:
    """Return what a recipe's fields become by the change of others."""
    outdated = {
        field: DEFAULTS[field]
        for field, (other, value) in NEEDS.items()
        if changes.get(other, value) != value
    }
    for one, other in (("epochs", "steps"), ("steps", "epochs")):
        if changes.get(one) is not None:
            outdated[other] = None
    if _outlasts(recipe.warmup_epochs, recipe, changes):
        outdated["warmup_epochs"] = None
    return outdated


def _outlasts(warmup: float | None, recipe: Recipe, changes: dict[str, Any]) -> bool:
    """Tell whether a warm-up may last as long as the training that is asked for."""
    epochs, steps = changes.get("epochs"), changes.get("steps")
    if not warmup:
        return False
    if isinstance(epochs, Real):
        return warmup >= epochs
    # How many epochs those are is for the data to tell.
    return steps is not None and recipe.steps is None


def parse_field(text: str) -> tuple[str, Any]:
    """Return the field and the value that "field=value" stands for.

    Args:
        text: As on the command line: "epochs=10", "scale=0.25,1", "flip=no",
            "ema=none".

    Raises:
        UnknownNameError: No such field.
        UsageError: The value is of another kind than the field.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"A field is set as NAME=VALUE. Received: {text!r}.")
    if name not in FIELDS:
        raise UnknownNameError("recipe field", name, FIELDS)
    options = options_of(name)
    return name, fitted(name, _parsed(name, options, value.strip()), options)


_WORDS = {"yes": True, "true": True, "no": False, "false": False}
_MEANT = {bool: "yes or no", int: "a whole number", float: "a number"}


def _parsed(name: str, options: tuple[Any, ...], value: str) -> Any:
    if value.lower() == "none" and NoneType in options:
        return None
    wanted = options[0]
    try:
        if wanted is bool:
            return _WORDS[value.lower()]
        if wanted in (int, float):
            return wanted(value)
        if get_origin(wanted) is tuple:
            return tuple(float(part) for part in value.split(",") if value)
    except (KeyError, ValueError) as error:
        meant = _MEANT.get(wanted, "numbers with commas between")
        raise UsageError(
            f"{name} must be {meant}. Received: {name}={value}."
        ) from error
    return value


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
        "bad_images": None
        if bad_images == defaults.TRAINING_BAD_IMAGES
        else bad_images,
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
