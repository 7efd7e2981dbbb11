"""Recipes: every option of a training run except the model and the data.

The named ones are in `recipes.toml`, with their sources.
"""

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from numbers import Real
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_origin
from unicodedata import normalize

from reszoo import defaults, fields
from reszoo.data.augment import strength_of
from reszoo.errors import Rules, UsageError, check_rules, known
from reszoo.files import StrPath

Decayed = Literal["kernels", "all-but-norm", "all"]
"""Which weights can be decayed: see `optimizers.is_decayed`."""

NEEDS = {
    "pad": ("crop", "pad"), "scale": ("crop", "resized"), "ratio": ("crop", "resized"),
    "milestones": ("schedule", "steps"), "factor": ("schedule", "steps"),
    "floor": ("schedule", "cosine"), "warmup_prefix": ("schedule", "cosine"),
    "momentum": ("optimizer", "sgd", "caffe-sgd"),
    "nesterov": ("optimizer", "sgd", "caffe-sgd"),
}  # fmt: skip
"""Field -> another field and its values, without which the field has no effect."""
STILL: dict[str, Any] = {
    "crop": "none", "pad": 0.0, "scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3),
    "flip": False, "vertical_flip": False, "rotation": 0.0, "policy": None,
    "erase": 0.0, "repeats": 1,
}  # fmt: skip
"""The fields of augmentation, for images as in evaluation."""
# Defaults of the temperature and weight of distillation.
_TAUGHT = (4.0, 0.9)
_RULES: Rules = {
    'freeze must be "backbone", "stages:N" with a number of stages, or None. '
    "Received: {freeze}.": lambda r: (
        r.freeze is None or re.fullmatch(r"backbone|stages:[0-9]", r.freeze)
    ),
    "scale must be two numbers in (0, 1], the smaller one first. "
    "Received: {scale}.": lambda r: 0 < r.scale[0] <= r.scale[1] <= 1,
    "ratio must be two numbers in (0, inf], the smaller one first. "
    "Received: {ratio}.": lambda r: 0 < r.ratio[0] <= r.ratio[1],
    "milestones must be increasing shares of the training, in (0, 1). "
    "Received: {milestones}.": lambda r: all(
        a < b for a, b in pairwise((0, *r.milestones, 1))
    ),
    'schedule="steps" needs milestones, the shares of the training after which the '
    "rate falls, such as milestones=(0.5, 0.75). "
    "Received: {milestones}.": lambda r: r.schedule != "steps" or r.milestones,
    "distillation_temperature and distillation_weight need a teacher. Received: "
    "{teacher}, {distillation_temperature}, {distillation_weight}.": lambda r: (
        r.teacher is not None
        or (r.distillation_temperature, r.distillation_weight) == _TAUGHT
    ),
    "A recipe has epochs or steps, not both. Received: {epochs}, {steps}.": lambda r: (
        None in (r.epochs, r.steps)
    ),
    "accumulate must divide batch_size. "
    "Received: {accumulate}, {batch_size}.": lambda r: r.batch_size % r.accumulate == 0,
    'cache_features needs a phase with a frozen backbone: freeze="backbone" and '
    "freeze_bn=True, as in linear-probe, or head_epochs, as in finetune. Received: "
    "{cache_features}, {freeze}, {freeze_bn}, {head_epochs}.": lambda r: (
        (r.freeze == "backbone" and r.freeze_bn)
        or (r.head_epochs or not r.cache_features)
    ),
    "mixup, cutmix, teacher, stochastic_depth and block_dropout act on what precedes "
    "cached features. Received: {cache_features}, {mixup}, {cutmix}, {teacher}, "
    "{stochastic_depth}, {block_dropout}. Leave it or them out.": lambda r: (
        not r.cache_features
        or not any((r.mixup, r.cutmix, r.teacher, r.stochastic_depth, r.block_dropout))
    ),
    "cache_features=1 shows images as in evaluation, more are augmented variants. "
    "Received: {cache_features}, {crop}, {flip}, {vertical_flip}, {rotation}, "
    '{policy}, {erase}, {repeats}. Set cache_features=1 with crop="none", flip=False '
    "and the others left out, or cache_features=4 with augmentation.": lambda r: (
        not r.cache_features
        or (r.cache_features == 1 and r.freeze != "backbone")
        or (r.cache_features == 1) == all(getattr(r, n) == v for n, v in STILL.items())
    ),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is trained.

    Attributes:
        name: The row of `RECIPES` that it is based on.
        epochs: Passes over the training images, after those of the head alone.
        steps: Number of steps instead, likewise. With neither, the size of the
            training set decides, as in BiT's HyperRule (arXiv:1912.11370, section 3.3).
        batch_size: Images per step, over all devices.
        accumulate: Number of parts whose gradients are accumulated, to save memory.
            Batch normalisation sees the parts.
        optimizer: "sgd" (torch's form), "caffe-sgd" (the rate is inside the
            velocity, as in He et al.), "adam" or "adamw" (torch's), or "lamb" (timm's).
            Adam's betas are 0.9 and 0.999; `find_recipe` changes learning rates made
            for SGD to 0.001 for it.
        learning_rate: Peak learning rate.
        layer_decay: Multiplies the learning rate once for each block between a layer
            and the head, as timm's `--layer-decay`; 1 for equal rates.
        momentum: Of the gradient.
        nesterov: Whether the momentum is Nesterov's.
        weight_decay: Coupled L2, as in torch's SGD and Adam; decoupled for AdamW, for
            LAMB inside the trust ratio.
        decay_on: "kernels" excludes biases and batch normalisation, "all-but-norm"
            batch normalisation alone; or "all".
        schedule: How the rate changes: "cosine" falls along a half cosine to
            `floor` (arXiv:1608.03983), "steps" by `factor` at each milestone,
            "constant" not at all; see `phases.learning_rate`.
        schedule_per: Whether the rate changes each "step" or each "epoch".
        milestones: Of the schedule "steps", as shares of the training.
        factor: Of the schedule "steps": multiplies the rate at each milestone.
        floor: Lowest rate of the cosine, as a share of `learning_rate`.
        warmup_epochs: Epochs until the peak rate is reached, fractions allowed; None
            is a twentieth of the training.
        warmup_start: First rate of the warm-up, as a share of `learning_rate`.
        warmup_shape: "linear", or "constant" for `warmup_start` during all of the
            warm-up, as He et al. 2015 do for their ResNet-110 (section 4.2).
        warmup_prefix: Whether the cosine starts when the warm-up ends; otherwise it
            starts beneath the warm-up, after which the rate jumps down a little.
        loss: "softmax" cross-entropy or "binary" cross-entropy of every class.
        label_smoothing: Share of the target spread over all classes, in [0, 1).
        class_weight: Weights of the classes in the loss, by label; 1 for a label that
            is left out. The loss of an image is multiplied by the weight of its class
            (of both, in their shares, where mixup or cutmix mixes them), and averaged
            over the batch. "balanced" is n / (k n_c) for n images, k classes and n_c
            images of the class, as in scikit-learn; with `sampling` the images that
            an epoch shows are counted.
        sampling: How often an epoch, which stays as long, shows each class: with
            probability proportional to n_c ** `sampling` (Kang et al. 2020,
            arXiv:1910.09217, section 4.1). 0 or "balanced" shows all classes
            equally often, 0.5 is between, 1 or None is as in the data. Within an epoch
            the images of a class are shown equally often, give or take one.
        best_by: Which epoch's weights are kept, by the validation split: that of the
            highest "accuracy" or "balanced_accuracy" (the lower loss decides between
            equals) or of the lowest "loss".
        patience: Epochs without a better one, by `best_by`, after which training
            stops; those of the head alone are not counted. The learning rates stay
            those of the whole training.
        teacher: Checkpoint of a model with the same classes, whose softened
            probabilities are learned as well (Hinton et al. 2015, arXiv:1503.02531):
            anything that `reszoo.load` reads. It sees the same augmented images.
        distillation_temperature: What both logits are divided by for that. 4, and the
            weight below, are those of Tian et al. 2020 (arXiv:1910.10699) for CIFAR.
        distillation_weight: Share of the teacher in the loss; the rest is `loss`.
        ema: Decay of the averaged weights, which are then evaluated and saved; None
            averages nothing.
        ema_every: Steps between two updates of the average.
        crop: Training crops: "pad" shifts by up to `pad`, "resized" cuts a random
            part (`scale`, `ratio`) and resizes it, "none" prepares images as in
            evaluation. "auto" is "pad" below 96 pixels, else "resized".
        pad: Border from which crops are cut, as a share of the side.
        scale: Least and largest share of the area of a resized crop.
        ratio: Least and largest width over height of a resized crop, compared with
            that of the input; with resize "squash", of the image.
        flip: Whether half of the images are flipped horizontally; None decides by
            the data, for a mirrored digit is not a digit.
        vertical_flip: Whether half of the images are flipped vertically.
        rotation: Greatest angle, in degrees, by which images are rotated to either side
            about their centre; corners show the mean colour.
        policy: "trivial" (TrivialAugmentWide), "rand-m7-mstd0.5" (timm's
            RandAugment) or None.
        erase: Probability that a part is erased.
        mixup: Alpha of mixup; 0 is off. With both, each batch gets one of them.
        cutmix: Alpha of cutmix; 0 is off.
        repeats: Copies of each image in a batch (arXiv:1902.05509).
        stochastic_depth: Probability of dropping the last block; it falls linearly
            towards the first (arXiv:1603.09382).
        dropout: Probability of setting a feature before the classifier to zero.
        block_dropout: The same before the last convolution of each block, as of wide
            ResNets; 0 leaves that to the model (`reszoo.build(dropout=)`).
        zero_init_residual: Whether each block starts as its shortcut alone; for
            models that `train` itself builds with fresh weights.
        freeze: "backbone" trains the head alone, "stages:N" all but the stem and
            the first N stages, None everything.
        freeze_bn: Whether batch normalisation keeps its statistics and scales.
            None freezes them where a device sees fewer than 16 images at a time.
        bn_momentum: Of the moving statistics (Keras' convention; torch's 0.1 is 0.9
            here). None is `max(1 - 10 / steps per epoch, 0.9)` (Kornblith et al. 2019).
        sync_bn: Whether devices share their batch statistics.
        head_epochs: Epochs before all others in which the head alone is trained, at
            a constant rate and with frozen batch normalisation.
        head_learning_rate: Learning rate of those.
        cache_features: While the backbone is frozen, compute its features once: of each
            image as in evaluation (1), or of N augmented variants, those of the first N
            epochs, which are shown in turn. They take images x N x features x 4 bytes,
            2 GiB at most. None computes them in each epoch.
        recompute: Whether gradients compute most activations a second time instead of
            keeping them: a third more time for a fraction of the memory
            (arXiv:1604.06174). The updates are the same.
        precision: "bfloat16" computes in it and keeps float32 weights; "auto" does
            so where the processor supports it.
        train_size: Side of the training images, or height and width; None is the
            card's, as below.
        eval_size: The same of the evaluation images.
        crop_pct: Share that the centre crop keeps.
        interpolation: "bilinear" or "bicubic".
        resize: "crop" shows the centre of an image, "squash" and "pad" all of it (see
            `Preprocessing`); for these, `crop_pct` is 1 unless given.
        channels: 1 for a model of grey images, 3 for RGB; for models that `train`
            itself builds.
        validation_share: Of each class that is held out where the data has no
            validation split; None is a fifth, or a tenth where there is a test split.
            0 trains on all of it.
        seed: Of fresh weights, the order of images and their augmentation.
    """

    # With the intervals that numbers must be in, unless they are None.
    name: str
    batch_size: Annotated[int, "[2, inf)"]
    learning_rate: Annotated[float, "(0, inf)"]
    epochs: Annotated[int | None, "[1, inf)"] = None
    steps: Annotated[int | None, "[1, inf)"] = None
    accumulate: Annotated[int, "[1, inf)"] = 1
    optimizer: Literal["sgd", "caffe-sgd", "adam", "adamw", "lamb"] = "sgd"
    layer_decay: Annotated[float, "(0, 1]"] = 1.0
    momentum: Annotated[float, "[0, 1)"] = 0.9
    nesterov: bool = False
    weight_decay: Annotated[float, "[0, 1)"] = 0.0
    decay_on: Decayed = "kernels"
    schedule: Literal["cosine", "steps", "constant"] = "cosine"
    schedule_per: Literal["step", "epoch"] = "step"
    milestones: tuple[float, ...] = ()
    factor: Annotated[float, "[0, 1]"] = 0.1
    floor: Annotated[float, "[0, 1]"] = 0.0
    warmup_epochs: Annotated[float | None, "[0, inf)"] = 0.0
    warmup_start: Annotated[float, "[0, 1]"] = 0.01
    warmup_shape: Literal["linear", "constant"] = "linear"
    warmup_prefix: bool = True
    loss: Literal["softmax", "binary"] = "softmax"
    label_smoothing: Annotated[float, "[0, 1)"] = 0.0
    class_weight: Annotated[
        Literal["balanced"] | dict[str, float] | None, "(0, inf)"
    ] = None
    sampling: Annotated[Literal["balanced"] | float | None, "[0, 1]"] = None
    best_by: Literal["accuracy", "balanced_accuracy", "loss"] = "accuracy"
    patience: Annotated[int | None, "[1, inf)"] = None
    teacher: str | None = None
    distillation_temperature: Annotated[float, "(0, inf)"] = _TAUGHT[0]
    distillation_weight: Annotated[float, "[0, 1]"] = _TAUGHT[1]
    ema: Annotated[float | None, "[0, 1)"] = None
    ema_every: Annotated[int, "[1, inf)"] = 1
    crop: Literal["auto", "pad", "resized", "none"] = "resized"
    pad: Annotated[float, "[0, 0.5)"] = 0.0
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool | None = None
    vertical_flip: bool = False
    rotation: Annotated[float, "[0, 180]"] = 0.0
    policy: str | None = None
    erase: Annotated[float, "[0, 1]"] = 0.0
    mixup: Annotated[float, "[0, inf)"] = 0.0
    cutmix: Annotated[float, "[0, inf)"] = 0.0
    repeats: Annotated[int, "[1, inf)"] = 1
    stochastic_depth: Annotated[float, "[0, 1)"] = 0.0
    dropout: Annotated[float, "[0, 1)"] = 0.0
    block_dropout: Annotated[float, "[0, 1)"] = 0.0
    zero_init_residual: bool = False
    freeze: str | None = None
    freeze_bn: bool | None = False
    bn_momentum: Annotated[float | None, "[0, 1)"] = None
    sync_bn: bool = False
    head_epochs: Annotated[int, "[0, inf)"] = 0
    head_learning_rate: Annotated[float, "(0, inf)"] = 0.1
    cache_features: Annotated[int | None, "[1, inf)"] = None
    recompute: bool = False
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    train_size: Annotated[int | tuple[int, int] | None, "[1, inf)"] = None
    eval_size: Annotated[int | tuple[int, int] | None, "[1, inf)"] = None
    crop_pct: float | None = None
    interpolation: Literal["bilinear", "bicubic"] | None = None
    resize: Literal["crop", "squash", "pad"] | None = None
    channels: Annotated[int | None, "[1, inf)"] = None
    validation_share: Annotated[float | None, "[0, 1)"] = None
    seed: Annotated[int, "[0, inf)"] = 0

    def __post_init__(self) -> None:
        if isinstance(given := self.class_weight, Mapping):
            # Labels are in NFC everywhere.
            named = {normalize("NFC", str(key)): each for key, each in given.items()}
            object.__setattr__(self, "class_weight", named)
        fields.check_fields(self)
        if self.policy is not None:
            strength_of(self.policy)
        check_rules(self, _RULES)
        for field, (other, *values) in NEEDS.items():
            received, chosen = getattr(self, field), getattr(self, other)
            if chosen not in (*values, "auto") and received != DEFAULTS[field]:
                needed = " or ".join(f'{other}="{value}"' for value in values)
                raise UsageError(
                    f"{field} has an effect with {needed} only. Received: "
                    f"{field}={received} with {other}={chosen!r}. Leave one out."
                )
        if self.epochs is not None:
            self.warmup(self.epochs)

    def warmup(self, epochs: float) -> float:
        """Return the epochs of warm-up in a training of `epochs`.

        Raises:
            UsageError: The warm-up is not shorter than the training.
        """
        warmup = epochs / 20 if self.warmup_epochs is None else self.warmup_epochs
        if warmup >= epochs:
            raise UsageError(
                "warmup_epochs must be less than the epochs of the training, which "
                "otherwise never reaches its learning rate. Received: warmup_epochs="
                f"{warmup:g}, epochs={epochs:g}. Give a smaller number, or None for "
                "a twentieth of the training, or train longer."
            )
        return warmup

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return fields.plain_values(self)


DEFAULTS = {name: field.default for name, field in Recipe.__dataclass_fields__.items()}
"""Field -> its value when it is left out."""

LEARNING = frozenset({
    "bn_momentum", "decay_on", "epochs", "factor", "floor", "label_smoothing",
    "learning_rate", "loss", "milestones", "momentum", "nesterov", "optimizer",
    "schedule", "schedule_per", "warmup_epochs", "warmup_prefix", "warmup_shape",
    "warmup_start", "weight_decay",
})  # fmt: skip
"""Fields that define the loss, learning rate, update and statistics of each step."""
FIELDS = tuple(name for name in DEFAULTS if name != "name")
_ADAM = ("adam", "adamw")


def find_recipe(name: str | Recipe, /, **changes: Any) -> Recipe:
    """Return a recipe by name, with some of its fields replaced.

    Fields that depend on the old value of a replaced field are reset, unless they are
    given as well: `resize="squash"` or `"pad"` resets `crop_pct`, which is 1 then;
    `cache_features=1` resets augmentation where the head alone is trained; a
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
    if isinstance(name := fields.coerce("recipe", name, (str, Recipe)), str):
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
    if changes.get("cache_features") == 1 and recipe.freeze == "backbone":
        reset |= STILL
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
    options = fields.options_of(Recipe, name)
    return name, fields.coerce(name, _parsed(value.strip(), options), options)


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


_TABLES = fields.read_tables("reszoo.training", "recipes.toml")
RECIPES = {
    name: Recipe(name=name, **{
        # "none" is None where the field may be None.
        k: _parsed(v, fields.options_of(Recipe, k)) if v == "none" else v
        for k, v in row.items()
    })
    for name, row in fields.inherited(_TABLES).items()
}  # fmt: skip
"""Recipes by the names that `train` takes, each a `Recipe`."""


def repeat_command(
    model: Any, data: Any, recipe: Recipe, weights: StrPath | None,
    output: Path | None, bad_images: str, strategy: str | None = None,
    match: str | None = None,
) -> list[str]:  # fmt: skip
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
