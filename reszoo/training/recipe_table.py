"""The named recipes with their sources, and the command that repeats a run."""

import json
import os
from dataclasses import replace
from numbers import Real
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from reszoo import defaults
from reszoo.errors import UnknownNameError, UsageError
from reszoo.training.recipes import DEFAULTS, NEEDS, Recipe, coerce, options_of


def rescaled_decay(decay: float, *, every: int, batch_size: int, epochs: int) -> float:
    """Return torchvision's decay of averaged weights, scaled to the length of a run.

    The number of updates is proportional to epochs / (batch size * steps between
    updates), and the share of the new weights to its inverse (torchvision's
    `references/classification/train.py`, after pycls). The batch size is over all
    devices.
    """
    return 1 - min(1.0, (1 - decay) * batch_size * every / epochs)


_ADAM = ("adam", "adamw")
_V2_EMA = rescaled_decay(0.99998, every=32, batch_size=1024, epochs=600)

# A line each for the length, the optimizer, the loss and averages, the augmentation,
# batch normalisation and freezing, and the image sizes.
_TABLE = (
    # Two phases after the survey of fine-tuning in Kornblith et al. 2019
    # (arXiv:1805.08974), BiT (arXiv:1912.11370) and LP-FT (arXiv:2202.10054): the
    # head first, so that its random gradient never reaches the backbone. Rate and
    # crops are the best ones in benchmarks/transfer.py.
    Recipe(
        name="finetune", batch_size=32, warmup_epochs=None,
        learning_rate=0.01, nesterov=True, weight_decay=1e-4,
        label_smoothing=0.1,
        crop="auto", pad=1 / 8, scale=(0.25, 1.0),
        freeze_bn=None, head_epochs=2, head_learning_rate=0.03,
    ),
    # The head alone, on the features of the backbone as it is.
    Recipe(
        name="linear-probe", batch_size=32, warmup_epochs=None,
        learning_rate=0.03, nesterov=True, weight_decay=1e-4,
        scale=(0.25, 1.0),
        freeze="backbone", freeze_bn=True,
    ),
    # From scratch, sized for a CPU: the crop-and-flip of He et al. 2015, section
    # 4.2, at the same batch and rate, with a cosine in place of their 64,000 steps.
    Recipe(
        name="cifar", epochs=30, batch_size=128, warmup_epochs=1,
        learning_rate=0.1, nesterov=True, weight_decay=5e-4,
        label_smoothing=0.1,
        crop="pad", pad=1 / 8,
    ),
    # Section 4.2 exactly, except for the mean: one number per channel, which exported
    # files can hold, in place of one per pixel. The rate falls at 32,000 and 48,000
    # steps. For 110 layers the paper starts with 0.01 for some 400 steps (at 352 per
    # epoch): warmup_epochs=1.14, warmup_start=0.1, warmup_shape="constant".
    Recipe(
        name="he2015-cifar", steps=64_000, batch_size=128,
        optimizer="caffe-sgd", learning_rate=0.1, weight_decay=1e-4, decay_on="all",
        schedule="steps", milestones=(0.5, 0.75),
        crop="pad", pad=1 / 8,
        bn_momentum=0.9,
    ),
    # torchvision, references/classification: the defaults, as run on 8 x 32 images.
    Recipe(
        name="torchvision-v1", epochs=90, batch_size=256,
        learning_rate=0.1, weight_decay=1e-4, decay_on="all",
        schedule="steps", schedule_per="epoch", milestones=(1 / 3, 2 / 3),
        bn_momentum=0.9,
        train_size=224, eval_size=224, crop_pct=224 / 256, interpolation="bilinear",
    ),
    # pytorch/vision#3995, as run on 8 x 128 images. Its --norm-weight-decay is 0.
    Recipe(
        name="torchvision-v2", epochs=600, batch_size=1024, warmup_epochs=5,
        learning_rate=0.5, weight_decay=2e-5, decay_on="all-but-norm",
        schedule_per="epoch",
        label_smoothing=0.1, ema=_V2_EMA, ema_every=32,
        policy="trivial", erase=0.1, mixup=0.2, cutmix=1.0, repeats=4,
        bn_momentum=0.9,
        train_size=176, eval_size=224, crop_pct=224 / 232, interpolation="bilinear",
    ),
)  # fmt: skip
# ResNet strikes back (arXiv:2110.00476), table 2; timm's --warmup-lr and --min-lr are
# 1e-6, its --warmup-prefix is off.
_A2 = Recipe(
    name="rsb-a2", epochs=300, batch_size=2048, warmup_epochs=5,
    optimizer="lamb", learning_rate=5e-3, weight_decay=0.02,
    schedule_per="epoch", warmup_prefix=False,
    warmup_start=1e-6 / 5e-3, floor=1e-6 / 5e-3,
    loss="binary", stochastic_depth=0.05, zero_init_residual=True,
    policy="rand-m7-mstd0.5", mixup=0.1, cutmix=1.0, repeats=3,
    bn_momentum=0.9,
    train_size=224, eval_size=224, crop_pct=0.95, interpolation="bicubic",
)  # fmt: skip
_STRIKES_BACK = (
    replace(
        _A2, name="rsb-a1", epochs=600,
        weight_decay=0.01, label_smoothing=0.1, mixup=0.2,
    ),
    _A2,
    replace(
        _A2, name="rsb-a3", epochs=100,
        learning_rate=8e-3, warmup_start=1e-6 / 8e-3, floor=1e-6 / 8e-3,
        stochastic_depth=0.0,
        policy="rand-m6-mstd0.5", repeats=1,
        train_size=160,
    ),
)  # fmt: skip
RECIPES = {recipe.name: recipe for recipe in (*_TABLE, *_STRIKES_BACK)}
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
        if name not in RECIPES:
            raise UnknownNameError("recipe", name, RECIPES)
        name = RECIPES[name]
    for field in changes:
        if field not in FIELDS:
            raise UnknownNameError("recipe field", field, FIELDS)
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
    if name not in FIELDS:
        raise UnknownNameError("recipe field", name, FIELDS)
    options = options_of(name)
    return name, coerce(name, _parsed(name, options, value.strip()), options)


_WORDS = {"yes": True, "true": True, "no": False, "false": False}
_TYPE_NAMES = {
    bool: "yes or no", int: "a whole number", float: "a number",
    dict: 'a JSON object such as {"cat": 2.5}', tuple: "numbers separated by commas",
}  # fmt: skip


def _parsed(name: str, options: tuple[Any, ...], value: str) -> Any:
    if value.lower() == "none" and NoneType in options:
        return None
    names = get_args(options[0]) if get_origin(options[0]) is Literal else ()
    others = [*options[1:]] if names else [*options]
    if "," in value:
        # Of a size, which is one number or two.
        others = [each for each in others if get_origin(each) is tuple] or others
    kind = get_origin(others[0]) or others[0] if others else NoneType
    if value in names or kind is NoneType:
        return value
    try:
        if kind is bool:
            return _WORDS[value.lower()]
        if kind in (int, float):
            return kind(value)
        if kind is tuple:
            return tuple(get_args(others[0])[0](x) for x in value.split(",") if x)
        if kind is dict:
            return json.loads(value)
    except (KeyError, ValueError) as error:
        meant = " or ".join([*names, _TYPE_NAMES[kind]])
        raise UsageError(
            f"{name} must be {meant}. Received: {name}={value}."
        ) from error
    return value


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
