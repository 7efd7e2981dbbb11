"""Recipes: every option of a training run except the model and the data; its phases."""

import math
import re
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from reszoo.data.augment import strength_of
from reszoo.errors import UnknownNameError, UsageError
from reszoo.training.schedules import (
    Decayed,
    Schedule,
    ScheduleKind,
    SchedulePer,
    WarmupShape,
)

_TYPE_NAMES = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a string",
}


def coerce(field: str, value: Any, options: tuple[Any, ...]) -> Any:
    """Return a value as plain Python of a field's type.

    Args:
        field: Its name, for the errors.
        value: NumPy's numbers become Python's, whole numbers become floats where
            the field is a float, and lists and arrays become tuples.
        options: The type, and `NoneType` where the field may be None: bool, int, float
            (finite), str, a tuple of floats, or a `Literal` of names.

    Raises:
        UnknownNameError: A name that is not in the `Literal`.
        UsageError: A value of another type.
    """
    if value is None and NoneType in options:
        return None
    kind = options[0]
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise UnknownNameError(field, value, get_args(kind))
        return value
    try:
        return _plain(value, kind)
    except (TypeError, OverflowError) as error:
        optional = " (or None)" if NoneType in options else ""
        raise UsageError(
            f"{field} must be {_type_name(kind)}{optional}. "
            f"Received: {field}={value!r}."
        ) from error


def _plain(value: Any, kind: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if get_origin(kind) is tuple:
        return _plain_tuple(value, get_args(kind))
    # True is an int in Python, but not a number of epochs.
    if kind is float and type(value) is int:
        value = float(value)
    if not isinstance(value, kind) or (type(value) is bool) != (kind is bool):
        raise TypeError
    if kind is float and not math.isfinite(value):
        raise TypeError
    return value


def _plain_tuple(value: Any, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise TypeError
    if Ellipsis not in kinds and len(value) != len(kinds):
        raise TypeError
    return tuple(_plain(part, kinds[0]) for part in value)


def _type_name(kind: Any) -> str:
    if get_origin(kind) is not tuple:
        return _TYPE_NAMES[kind]
    parts = get_args(kind)
    return "numbers" if Ellipsis in parts else f"{len(parts)} numbers"


# Field -> least value, for whole numbers; None is allowed where the field allows it.
_AT_LEAST = {
    "epochs": 1,
    "steps": 1,
    "batch_size": 2,
    "accumulate": 1,
    "head_epochs": 0,
    "ema_every": 1,
    "repeats": 1,
    "seed": 0,
    "train_size": 1,
    "eval_size": 1,
}
# Field -> limit; the field is in [0, limit).
_BELOW = {
    "momentum": 1.0,
    "label_smoothing": 1.0,
    "weight_decay": 1.0,
    "pad": 0.5,
    "ema": 1.0,
    "bn_momentum": 1.0,
    "stochastic_depth": 1.0,
}
NEEDS = {
    "pad": ("crop", "pad"),
    "scale": ("crop", "resized"),
    "ratio": ("crop", "resized"),
    "milestones": ("schedule", "steps"),
    "factor": ("schedule", "steps"),
    "floor": ("schedule", "cosine"),
    "warmup_prefix": ("schedule", "cosine"),
}
"""Field -> another field and its value, without which the field has no effect."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is trained.

    Attributes:
        name: The row of `RECIPES` that it is based on.
        epochs: Passes over the training images.
        steps: Number of steps instead. With neither, the size of the training set
            decides, as in BiT's HyperRule (arXiv:1912.11370, section 3.3).
        batch_size: Images per step, over all devices.
        accumulate: Number of parts whose gradients are accumulated, to save memory.
            Batch normalisation sees the parts.
        optimizer: "sgd" (torch's form), "caffe-sgd" (the rate is inside the
            velocity, as in He et al.) or "lamb" (timm's).
        learning_rate: Peak learning rate.
        momentum: Of the gradient.
        nesterov: Whether the momentum is Nesterov's.
        weight_decay: Coupled L2, as in torch's SGD; for LAMB inside the trust ratio.
        decay_on: "kernels" excludes biases and batch normalisation, "all-but-norm"
            batch normalisation alone; or "all".
        schedule: How the rate changes: "cosine" falls along a half cosine to
            `floor` (arXiv:1608.03983), "steps" by `factor` at each milestone,
            "constant" not at all.
        schedule_per: Whether the rate changes each "step" or each "epoch".
        milestones: Of the schedule "steps", as shares of the training.
        factor: Of the schedule "steps".
        floor: Lowest rate of the cosine, as a share of `learning_rate`.
        warmup_epochs: Epochs until the peak rate is reached; None is a twentieth of
            the training.
        warmup_start: First rate of the warm-up, as a share of `learning_rate`.
        warmup_shape: "linear", or "constant" for `warmup_start` during the warm-up.
        warmup_prefix: Whether the cosine starts after the warm-up, or beneath it.
        loss: "softmax" cross-entropy or "binary" cross-entropy of every class.
        label_smoothing: Share of the target spread over all classes, in [0, 1).
        ema: Decay of the averaged weights, which are then evaluated and saved; None
            averages nothing.
        ema_every: Steps between two updates of the average.
        crop: Training crops: "pad" shifts by up to `pad`, "resized" cuts a random
            part (`scale`, `ratio`) and resizes it, "none" prepares images as in
            evaluation. "auto" is "pad" below 96 pixels, else "resized".
        pad: Border from which crops are cut, as a share of the side.
        scale: Least and largest share of the area of a resized crop.
        ratio: Least and largest width over height of a resized crop.
        flip: Whether half of the images are flipped horizontally; None decides by
            the data, for a mirrored digit is not a digit.
        policy: "trivial" (TrivialAugmentWide), "rand-m7-mstd0.5" (timm's
            RandAugment) or None.
        erase: Probability that a part is erased.
        mixup: Alpha of mixup; 0 is off. With both, each batch gets one of them.
        cutmix: Alpha of cutmix; 0 is off.
        repeats: Copies of each image in a batch (arXiv:1902.05509).
        stochastic_depth: Probability of dropping the last block; it falls linearly
            towards the first (arXiv:1603.09382).
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
        precision: "bfloat16" computes in it and keeps float32 weights; "auto" does
            so where the processor supports it.
        train_size: Side of the training images; None is the card's, as below.
        eval_size: Side of the evaluation images.
        crop_pct: Share that the centre crop keeps.
        interpolation: "bilinear" or "bicubic".
        seed: Of fresh weights, the order of images and their augmentation.
    """

    name: str
    batch_size: int
    learning_rate: float
    epochs: int | None = None
    steps: int | None = None
    accumulate: int = 1
    optimizer: Literal["sgd", "caffe-sgd", "lamb"] = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    decay_on: Decayed = "kernels"
    schedule: ScheduleKind = "cosine"
    schedule_per: SchedulePer = "step"
    milestones: tuple[float, ...] = ()
    factor: float = 0.1
    floor: float = 0.0
    warmup_epochs: float | None = 0.0
    warmup_start: float = 0.01
    warmup_shape: WarmupShape = "linear"
    warmup_prefix: bool = True
    loss: Literal["softmax", "binary"] = "softmax"
    label_smoothing: float = 0.0
    ema: float | None = None
    ema_every: int = 1
    crop: Literal["auto", "pad", "resized", "none"] = "resized"
    pad: float = 0.0
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool | None = None
    policy: str | None = None
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    repeats: int = 1
    stochastic_depth: float = 0.0
    zero_init_residual: bool = False
    freeze: str | None = None
    freeze_bn: bool | None = False
    bn_momentum: float | None = None
    sync_bn: bool = False
    head_epochs: int = 0
    head_learning_rate: float = 0.1
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    train_size: int | None = None
    eval_size: int | None = None
    crop_pct: float | None = None
    interpolation: Literal["bilinear", "bicubic"] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in _types():
            value = coerce(name, getattr(self, name), options_of(name))
            object.__setattr__(self, name, value)
        self._check_names()
        self._check_numbers()
        self._check_ranges()
        self._check_effects()
        self._schedule(self.warmup_epochs or 0.0)
        if self.epochs is not None:
            self.rates(self.epochs)

    def _check_names(self) -> None:
        if self.policy is not None:
            strength_of(self.policy)
        if self.freeze is not None and not re.fullmatch(
            r"backbone|stages:[0-9]", self.freeze
        ):
            raise UsageError(
                'freeze must be "backbone", "stages:N" with a number of stages, or '
                f"None. Received: freeze={self.freeze!r}."
            )

    def _check_numbers(self) -> None:
        for field, least in _AT_LEAST.items():
            value = getattr(self, field)
            if value is not None and value < least:
                raise UsageError(
                    f"{field} must be a whole number of at least {least}. "
                    f"Received: {field}={value}."
                )
        for field, limit in _BELOW.items():
            value = getattr(self, field)
            if value is not None and not 0 <= value < limit:
                raise UsageError(
                    f"{field} must be in [0, {limit:g}). Received: {field}={value}."
                )
        for field in ("learning_rate", "head_learning_rate"):
            if getattr(self, field) <= 0:
                raise UsageError(
                    f"{field} must be positive. "
                    f"Received: {field}={getattr(self, field)}."
                )

    def _check_ranges(self) -> None:
        for field, most in (("scale", 1.0), ("ratio", math.inf)):
            low, high = getattr(self, field)
            if not 0 < low <= high <= most:
                raise UsageError(
                    f"{field} must be two numbers, the least first, positive and at "
                    f"most {most:g}. Received: {field}={getattr(self, field)}."
                )
        if not 0 <= self.erase <= 1:
            raise UsageError(f"erase must be in [0, 1]. Received: erase={self.erase}.")
        if min(self.mixup, self.cutmix) < 0:
            raise UsageError(
                "mixup and cutmix must not be negative. "
                f"Received: mixup={self.mixup}, cutmix={self.cutmix}."
            )

    def _check_effects(self) -> None:
        for field, (other, value) in NEEDS.items():
            received, chosen = getattr(self, field), getattr(self, other)
            if chosen not in (value, "auto") and received != DEFAULTS[field]:
                raise UsageError(
                    f'{field} has an effect with {other}="{value}" only. Received: '
                    f"{field}={received} with {other}={chosen!r}. Leave one out."
                )
        if self.schedule == "steps" and not self.milestones:
            raise UsageError(
                'schedule="steps" needs milestones, the shares of the training after '
                "which the rate falls, such as milestones=(0.5, 0.75). "
                "Received: milestones=()."
            )
        if self.epochs is not None and self.steps is not None:
            raise UsageError(
                "A recipe has epochs or steps, not both. "
                f"Received: epochs={self.epochs}, steps={self.steps}."
            )
        if self.batch_size % self.accumulate:
            raise UsageError(
                "accumulate must divide batch_size. Received: "
                f"accumulate={self.accumulate}, batch_size={self.batch_size}."
            )

    def rates(self, epochs: float) -> Schedule:
        """Return the schedule of the learning rate for a training of `epochs`.

        Raises:
            UsageError: The warm-up is not shorter than the training.
        """
        warmup = epochs / 20 if self.warmup_epochs is None else self.warmup_epochs
        if warmup >= epochs:
            raise UsageError(
                "warmup_epochs must be less than the epochs of the training, which "
                "otherwise never reaches its learning rate. Received: warmup_epochs="
                f"{warmup:g} for {epochs:g} epochs. Give a smaller number, or None for "
                "a twentieth of the training, or train longer."
            )
        return self._schedule(warmup)

    def _schedule(self, warmup: float) -> Schedule:
        return Schedule(
            kind=self.schedule,
            warmup=warmup,
            warmup_start=self.warmup_start,
            warmup_shape=self.warmup_shape,
            warmup_prefix=self.warmup_prefix,
            milestones=self.milestones,
            factor=self.factor,
            floor=self.floor,
            per=self.schedule_per,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }


def options_of(field: str) -> tuple[Any, ...]:
    """Return the types that a field's value may have, `NoneType` among them."""
    kind = _types()[field]
    return get_args(kind) if get_origin(kind) in (UnionType, Union) else (kind,)


@cache
def _types() -> dict[str, Any]:
    return get_type_hints(Recipe)


DEFAULTS = {field.name: field.default for field in fields(Recipe)}
"""Field -> its value when it is left out."""

LEARNING = frozenset({
    "bn_momentum", "decay_on", "epochs", "factor", "floor", "label_smoothing",
    "learning_rate", "loss", "milestones", "momentum", "nesterov", "optimizer",
    "schedule", "schedule_per", "warmup_epochs", "warmup_prefix", "warmup_shape",
    "warmup_start", "weight_decay",
})  # fmt: skip
"""Fields that define the loss, learning rate, update and statistics of each step."""

# BiT's HyperRule (arXiv:1912.11370, section 3.3): training images -> steps. There a
# step has 512 images; with our smaller ones large sets get ten epochs at least.
_BIT_STEPS = ((20_000, 500), (500_000, 10_000), (math.inf, 20_000))
_LEAST_EPOCHS = 10
# Statistics of fewer images than these at a time are worse than those of pretraining.
# A small set alone is no reason: on 500 images frozen and live ones end alike
# (benchmarks/transfer.py), and where the images look unlike those of pretraining,
# frozen ones let the whole model collapse.
_SMALL_BATCH = 16
# Of a small set, a row of the history covers epochs of as many steps together.
_STEPS_PER_ROW = 25
_HEAD_SCHEDULE = Schedule(kind="constant")


@dataclass(frozen=True)
class Phase:
    """A part of a training with one set of trainable weights and one schedule.

    Attributes:
        name: "head" or "all".
        recipe: With `freeze_bn` and `bn_momentum` resolved.
        first_epoch: Number of its first epoch over all phases, from 0.
        epochs: How many it has.
        steps_per_epoch: In full epochs.
        steps: How many it has; the last epoch may be cut short.
        schedule: Of the learning rate.
        row: Epochs between two validations, which are a row of the history.
    """

    name: str
    recipe: Recipe
    first_epoch: int
    epochs: int
    steps_per_epoch: int
    steps: int
    schedule: Schedule
    row: int = 1

    def ends_row(self, epoch: int) -> bool:
        """Return whether an epoch, numbered over all phases, ends with a validation."""
        done = epoch + 1 - self.first_epoch
        return done % self.row == 0 or done == self.epochs

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of one step of this phase, counted from 0."""
        multiple = self.schedule.rate(step, self.steps_per_epoch, self.steps)
        return self.recipe.learning_rate * multiple

    def steps_of(self, epoch: int) -> int:
        """Return how many steps an epoch has, numbered over all phases."""
        done = (epoch - self.first_epoch) * self.steps_per_epoch
        return min(self.steps_per_epoch, self.steps - done)


def phases(recipe: Recipe, images: int, devices: int = 1) -> tuple[Phase, ...]:
    """Divide a training into phases: the head alone, if the recipe says so, then all.

    Args:
        recipe: Of the whole training.
        images: Size of the training set.
        devices: That share each batch.

    Raises:
        UsageError: There are fewer images than a batch has.
    """
    per_epoch = images // recipe.batch_size
    if not per_epoch:
        raise UsageError(
            "batch_size must be at most the number of training images. Received: "
            f"batch_size={recipe.batch_size} for {images} images."
        )
    resolved = _resolved(recipe, per_epoch, devices)
    steps, head, row = _length(recipe, images, per_epoch), recipe.head_epochs, 1
    if recipe.steps is None and recipe.epochs is None:
        row = max(1, math.ceil(_STEPS_PER_ROW / per_epoch))
        # Of a small set two epochs are few steps.
        head = max(head, math.ceil(steps / 10 / per_epoch)) if head else 0
    epochs, schedule = math.ceil(steps / per_epoch), recipe.rates(steps / per_epoch)
    everything = Phase("all", resolved, head, epochs, per_epoch, steps, schedule, row)
    if not head:
        return (everything,)
    head_recipe = replace(
        resolved,
        freeze="backbone",
        freeze_bn=True,
        learning_rate=recipe.head_learning_rate,
        ema=None,
    )
    steps = head * per_epoch
    first = Phase("head", head_recipe, 0, head, per_epoch, steps, _HEAD_SCHEDULE, row)
    return first, everything


def _length(recipe: Recipe, images: int, per_epoch: int) -> int:
    if recipe.steps is not None:
        return recipe.steps
    if recipe.epochs is not None:
        return recipe.epochs * per_epoch
    steps = next(steps for most, steps in _BIT_STEPS if images < most)
    return max(steps, _LEAST_EPOCHS * per_epoch)


def _resolved(recipe: Recipe, per_epoch: int, devices: int) -> Recipe:
    """Replace `freeze_bn=None` and `bn_momentum=None` by what they stand for."""
    frozen = recipe.freeze_bn
    if frozen is None:
        seen = recipe.batch_size // recipe.accumulate
        if not recipe.sync_bn:
            seen //= devices
        frozen = seen < _SMALL_BATCH
    momentum = moving_momentum(recipe, per_epoch)
    return replace(recipe, freeze_bn=frozen, bn_momentum=momentum)


def moving_momentum(recipe: Recipe, steps_per_epoch: int) -> float:
    """Return the momentum of batch normalisation's statistics (Keras' convention)."""
    if recipe.bn_momentum is not None:
        return recipe.bn_momentum
    return max(1 - 10 / steps_per_epoch, 0.9)
