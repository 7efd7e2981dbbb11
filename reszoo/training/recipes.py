"""Recipes: every option of a training run except the model and the data."""

import math
import re
from dataclasses import asdict, dataclass, fields
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


# Field -> least value, for whole numbers; None is allowed where the field has it.
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
# Field -> it lies in [0, limit).
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
"""Field -> another one and the value of that, without which it has no effect."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a net is trained.

    Attributes:
        name: Which row of `RECIPES` it came from.
        epochs: Times that every training image is seen.
        steps: Number of steps instead. With neither, the size of the training set
            decides, as in BiT's HyperRule (arXiv:1912.11370, section 3.3).
        batch_size: Images a step, over all devices.
        accumulate: Parts in which a batch is worked through, to save memory. Batch
            normalisation sees the parts.
        optimizer: "sgd" (torch's form), "caffe-sgd" (the rate is inside the
            velocity, as He et al. ran it) or "lamb" (timm's).
        learning_rate: Highest rate.
        momentum: Of the gradient.
        nesterov: Whether the step looks ahead along the velocity.
        weight_decay: Coupled L2, as in torch's SGD; for LAMB inside the trust ratio.
        decay_on: "kernels" leaves biases and batch normalisation alone,
            "all-but-norm" batch normalisation; or "all".
        schedule: How the rate changes: "cosine" falls along a half cosine to
            `floor` (arXiv:1608.03983), "steps" by `factor` at each milestone,
            "constant" not at all.
        schedule_per: Whether the rate moves each "step" or each "epoch".
        milestones: Of the schedule "steps", as shares of the training.
        factor: Of the schedule "steps".
        floor: Lowest rate of the cosine, as a share of `learning_rate`.
        warmup_epochs: Epochs until the highest rate is reached; None is a twentieth
            of the training.
        warmup_start: Where the warm-up begins, as a share of `learning_rate`.
        warmup_shape: "linear", or "constant" to stay where it begins.
        warmup_prefix: Whether the cosine begins after the warm-up, or beneath it.
        loss: "softmax" cross-entropy or "binary" cross-entropy of every class.
        label_smoothing: Share of the target spread over all classes, in [0, 1).
        ema: Decay of the averaged weights, which are then what is evaluated and
            saved; None averages nothing.
        ema_every: Steps between two updates of the average.
        crop: Training crops: "pad" shifts by up to `pad`, "resized" cuts a random
            part (`scale`, `ratio`) and resizes it, "none" shows what evaluation
            does. "auto" is "pad" for nets of less than 96 pixels, else "resized".
        pad: Border from which crops are cut, as a share of the side.
        scale: Least and largest share of the area of a resized crop.
        ratio: Least and largest width over height of a resized crop.
        flip: Whether half of the images are mirrored; None asks the data, for a
            mirrored digit is no digit.
        policy: "trivial" (TrivialAugmentWide), "rand-m7-mstd0.5" (timm's
            RandAugment) or None.
        erase: Probability that a part is erased.
        mixup: Alpha of mixup; 0 is off. With both, each batch gets one of them.
        cutmix: Alpha of cutmix; 0 is off.
        repeats: Times that each image of a batch is shown (arXiv:1902.05509).
        stochastic_depth: Probability of leaving the last block out; it falls
            linearly towards the first (arXiv:1603.09382).
        zero_init_residual: Whether each block starts as its shortcut alone; for
            nets that `train` itself builds with fresh weights.
        freeze: "backbone" trains the head alone, "stages:N" all but the stem and
            the first N stages, None everything.
        freeze_bn: Whether batch normalisation keeps its statistics and scales.
            None freezes them where a device sees fewer than 16 images at a time.
        bn_momentum: Of the moving statistics (Keras' convention; torch's 0.1 is 0.9
            here). None is `max(1 - 10 / steps an epoch, 0.9)` (Kornblith et al. 2019).
        sync_bn: Whether devices share their batch statistics.
        head_epochs: Epochs before all others in which the head alone is trained, at
            a constant rate and with frozen batch normalisation.
        head_learning_rate: The rate of those.
        precision: "bfloat16" computes in it and keeps float32 weights; "auto" does
            so where the processor has it.
        train_size: Side of the training images; None is the card's, as below.
        eval_size: Side of the evaluation images.
        crop_pct: Share that the centre crop keeps.
        interpolation: "bilinear" or "bicubic".
        seed: Decides fresh weights, the order of images and their variation.
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
            value = fitted(name, getattr(self, name), options_of(name))
            object.__setattr__(self, name, value)
        self._check_names()
        self._check_numbers()
        self._check_effects()
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
                    f"{field} must lie in [0, {limit:g}). Received: {field}={value}."
                )
        for field in ("learning_rate", "head_learning_rate"):
            if getattr(self, field) <= 0:
                raise UsageError(
                    f"{field} must be above 0. "
                    f"Received: {field}={getattr(self, field)}."
                )
        self._check_ranges()

    def _check_ranges(self) -> None:
        for field, most in (("scale", 1.0), ("ratio", math.inf)):
            low, high = getattr(self, field)
            if not 0 < low <= high <= most:
                raise UsageError(
                    f"{field} must be two numbers, the least first, above 0 and at "
                    f"most {most:g}. Received: {field}={getattr(self, field)}."
                )
        if not 0 <= self.erase <= 1:
            raise UsageError(f"erase must lie in [0, 1]. Received: erase={self.erase}.")
        if min(self.mixup, self.cutmix) < 0:
            raise UsageError(
                "mixup and cutmix must not be negative. "
                f"Received: mixup={self.mixup}, cutmix={self.cutmix}."
            )

    def _check_effects(self) -> None:
        for field, (other, value) in NEEDS.items():
            received, there = getattr(self, field), getattr(self, other)
            if there not in (value, "auto") and received != DEFAULTS[field]:
                raise UsageError(
                    f'{field} has an effect with {other}="{value}" only. Received: '
                    f"{field}={received} with {other}={there!r}. Leave one of them out."
                )
        if self.schedule == "steps" and not self.milestones:
            raise UsageError(
                'schedule="steps" needs milestones, the shares of the training after '
                "which the rate falls, such as milestones=(0.5, 0.75). "
                "Received: milestones=()."
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
                f"else never reaches its learning rate. Received: warmup_epochs="
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
    """Return the types, one of which a field's value has: `NoneType` among them."""
    kind = _types()[field]
    return get_args(kind) if get_origin(kind) in (UnionType, Union) else (kind,)


@cache
def _types() -> dict[str, Any]:
    return get_type_hints(Recipe)


DEFAULTS = {field.name: field.default for field in fields(Recipe)}
"""Field -> what it is when it is left out."""

LEARNING = frozenset(
    {
        "bn_momentum",
        "decay_on",
        "epochs",
        "factor",
        "floor",
        "label_smoothing",
        "learning_rate",
        "loss",
        "milestones",
        "momentum",
        "nesterov",
        "optimizer",
        "schedule",
        "schedule_per",
        "warmup_epochs",
        "warmup_prefix",
        "warmup_shape",
        "warmup_start",
        "weight_decay",
    }
)
"""Fields that decide the rule of every step: its loss, rate, update and statistics."""
