"""Recipes: everything about a training run that is not the net or the data."""

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from reszoo.errors import UnknownNameError, UsageError


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a net is trained: stochastic gradient descent with Nesterov momentum.

    The learning rate rises linearly during the warm-up, then falls along a half
    cosine to zero (Loshchilov and Hutter, arXiv:1608.03983).

    Attributes:
        name: Which row of `RECIPES` it came from.
        epochs: Times that every training image is seen.
        batch_size: Images a step.
        learning_rate: Highest rate.
        warmup_epochs: Epochs until the highest rate is reached.
        momentum: Of the gradient.
        weight_decay: Coupled L2 as in torch's SGD, on kernels only: biases and
            batch normalisation are left alone.
        label_smoothing: Share of the target spread over all classes, in [0, 1).
        pad: Border from which training crops are cut, as a share of the side.
        flip: Whether half of the images are mirrored; None asks the data, for a
            mirrored digit is no digit.
        seed: Decides fresh weights, the order of images and their variation.
    """

    name: str
    epochs: int
    batch_size: int
    learning_rate: float
    warmup_epochs: int
    momentum: float
    weight_decay: float
    label_smoothing: float
    pad: float
    flip: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        at_least = {"epochs": 1, "batch_size": 2, "warmup_epochs": 0, "seed": 0}
        for field, least in at_least.items():
            value = getattr(self, field)
            if not isinstance(value, int) or value < least:
                raise UsageError(
                    f"{field} must be a whole number of at least {least}. "
                    f"Received: {field}={value}."
                )
        below = {"momentum": 1, "label_smoothing": 1, "weight_decay": 1, "pad": 0.5}
        for field, limit in below.items():
            if not 0 <= getattr(self, field) < limit:
                raise UsageError(
                    f"{field} must lie in [0, {limit}). "
                    f"Received: {field}={getattr(self, field)}."
                )
        if not 0 < self.learning_rate < math.inf:
            raise UsageError(
                "learning_rate must be above 0. "
                f"Received: learning_rate={self.learning_rate}."
            )

    def learning_rate_at(self, step: int, steps_per_epoch: int) -> float:
        """Return the learning rate of one step, counted from 0 over all epochs."""
        warmup = self.warmup_epochs * steps_per_epoch
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        share = (step - warmup) / max(1, self.epochs * steps_per_epoch - warmup)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return asdict(self)


RECIPES = {
    # From scratch, sized for a CPU: the crop-and-flip of He et al. 2015, section
    # 4.2, at the same batch and rate, with a cosine in place of their 64,000 steps.
    "cifar": Recipe(
        name="cifar",
        epochs=30,
        batch_size=128,
        learning_rate=0.1,
        warmup_epochs=1,
        momentum=0.9,
        weight_decay=5e-4,
        label_smoothing=0.0,
        pad=1 / 8,
    ),
}


def find_recipe(name: str | Recipe, /, **changes: Any) -> Recipe:
    """Return a recipe by name, with some of its fields replaced.

    Args:
        name: A row of `RECIPES`, or a recipe of your own.
        **changes: Fields of `Recipe` and their new values.

    Raises:
        UnknownNameError: No such recipe or field.
        UsageError: A value is out of its range.
    """
    if isinstance(name, str):
        if name not in RECIPES:
            raise UnknownNameError("recipe", name, RECIPES)
        name = RECIPES[name]
    known = [field.name for field in fields(Recipe) if field.name != "name"]
    for field in changes:
        if field not in known:
            raise UnknownNameError("recipe field", field, known)
    return replace(name, **changes)
