"""The phases of a training, their lengths, and the learning rate of each step."""

import math
from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import Any

from reszoo.console import say
from reszoo.errors import UsageError
from reszoo.training.recipes import STILL, Recipe

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


def learning_rate(
    recipe: Recipe, step: int, steps_per_epoch: int, total_steps: int
) -> float:
    """Return the learning rate of one step.

    Time t is the number of steps done, or with `schedule_per="epoch"` of epochs done;
    T is the length of the training and W that of the warm-up, in the same unit. A
    linear warm-up is `warmup_start + (1 - warmup_start) * t / W` for t < W, as a share
    of the peak rate.

    * torch: `LinearLR(start_factor=warmup_start, total_iters=W)`, followed through
      `SequentialLR` by `CosineAnnealingLR(T_max=T - W, eta_min=floor * rate)`, is this
      cosine. torchvision's reference script calls both once per epoch.
      `MultiStepLR` without a warm-up is the schedule "steps"; behind `SequentialLR`
      torch counts its milestones from the end of the warm-up, we from the start.
    * timm: `CosineLRScheduler(t_initial=T, warmup_t=W, warmup_lr_init=warmup_start *
      rate, lr_min=floor * rate)` is this cosine with `warmup_prefix=False`, timm's
      default; with `warmup_prefix=True` timm's `t_initial` is T - W. `t_in_epochs=True`
      (train.py's default) is `schedule_per="epoch"`.

    Args:
        recipe: Of the training.
        step: Counted from 0; steps beyond the last one have the last rate.
        steps_per_epoch: At least 1.
        total_steps: Of the whole training, warm-up included.
    """
    total = total_steps / steps_per_epoch
    done, warmup = float(step // steps_per_epoch), recipe.warmup(total)
    if recipe.schedule_per == "step":
        done, total, warmup = step, total_steps, round(warmup * steps_per_epoch)
    return recipe.learning_rate * _multiple(recipe, done, total, warmup)


def _multiple(recipe: Recipe, done: float, total: float, warmup: float) -> float:
    if done < warmup:
        share = done / warmup if recipe.warmup_shape == "linear" else 0.0
        return recipe.warmup_start + (1 - recipe.warmup_start) * share
    if recipe.schedule == "steps":
        passed = [round(share * total) for share in recipe.milestones]
        return recipe.factor ** bisect_right(passed, done)
    if recipe.schedule == "constant":
        return 1.0
    if done >= total:
        return recipe.floor
    start = warmup if recipe.warmup_prefix else 0
    share = 0.5 * (1 + math.cos(math.pi * (done - start) / (total - start)))
    return recipe.floor + (1 - recipe.floor) * share


@dataclass(frozen=True)
class Phase:
    """A part of a training with one set of trainable weights."""

    name: str  # "head" or "all"
    # With `freeze_bn` and `bn_momentum` resolved; `cache_features` if this phase can.
    recipe: Recipe
    first_epoch: int  # its number over all phases, from 0
    epochs: int  # how many it has
    steps_per_epoch: int  # in full epochs
    steps: int  # how many it has; the last epoch may be cut short
    row: int = 1  # Epochs between two validations, which are a row of the history.

    def ends_row(self, epoch: int) -> bool:
        """Return whether an epoch, numbered over all phases, ends with a validation."""
        done = epoch + 1 - self.first_epoch
        return done % self.row == 0 or done == self.epochs

    def steps_of(self, epoch: int) -> int:
        """Return how many steps an epoch has, numbered over all phases."""
        done = (epoch - self.first_epoch) * self.steps_per_epoch
        return min(self.steps_per_epoch, self.steps - done)

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of one step of this phase, counted from 0."""
        if self.name == "head":
            return self.recipe.learning_rate
        return learning_rate(self.recipe, step, self.steps_per_epoch, self.steps)

    def ema_decay(self, step: int) -> float | None:
        """Return the decay with which weights are averaged after a step of this phase.

        0 is to copy the weights, None to leave the average as it is. torchvision
        updates after the first step of an epoch and every `ema_every` steps from there,
        and copies the weights during the warm-up and at the first update after it.
        Without a warm-up the first step is copied.
        """
        epoch, index = divmod(step, self.steps_per_epoch)
        if self.recipe.ema is None or index % self.recipe.ema_every:
            return None
        warmup = int(self.recipe.warmup(self.steps / self.steps_per_epoch))
        copying = epoch < warmup or step == warmup * self.steps_per_epoch
        return 0.0 if copying else self.recipe.ema


def phases(recipe: Recipe, images: int, devices: int = 1) -> tuple[Phase, ...]:
    """Divide a training into phases: the head alone, if the recipe says so, then all.

    A UsageError if there are fewer images than a batch has, which the devices share, or
    the warm-up is not shorter than the training.
    """
    per_epoch = images // recipe.batch_size
    if not per_epoch:
        raise UsageError(
            "batch_size must be at most the number of training images. Received: "
            f"batch_size={recipe.batch_size} for {images} images."
        )
    still, share = recipe.freeze_bn, 1 if recipe.sync_bn else devices
    if still is None:
        still = recipe.batch_size // recipe.accumulate // share < _SMALL_BATCH
    momentum = moving_momentum(recipe, per_epoch)
    resolved = replace(recipe, freeze_bn=still, bn_momentum=momentum)
    steps, head, row = recipe.steps, recipe.head_epochs, 1
    if recipe.epochs is not None:
        steps = recipe.epochs * per_epoch
    elif steps is None:
        steps = next(steps for most, steps in _BIT_STEPS if images < most)
        steps = max(steps, _LEAST_EPOCHS * per_epoch)
        row = max(1, math.ceil(_STEPS_PER_ROW / per_epoch))
        # Of a small set two epochs are few steps.
        head = max(head, math.ceil(steps / 10 / per_epoch)) if head else 0
    recipe.warmup(steps / per_epoch)
    epochs = math.ceil(steps / per_epoch)
    main = resolved
    if not (still and recipe.freeze == "backbone"):
        main = replace(resolved, cache_features=None)
    everything = Phase("all", main, head, epochs, per_epoch, steps, row)
    if not head:
        return (everything,)
    shown = STILL if recipe.cache_features == 1 else {}
    frozen = replace(resolved, freeze="backbone", freeze_bn=True, **shown)
    alone = replace(frozen, learning_rate=recipe.head_learning_rate, ema=None)
    first = Phase("head", alone, 0, head, per_epoch, head * per_epoch, row)
    return first, everything


def fitting_batch(recipe: Recipe, images: int, unit: int = 1) -> dict[str, Any]:
    """Return the fields that make a recipe's own batch size fit a small data set.

    A recipe for larger batches than there are images gets two steps an epoch or more,
    and learning rates in proportion to the batch size (arXiv:1706.02677, section 2.1).
    The batch size is a multiple of `unit`. Nothing is returned where it fits.
    """
    if recipe.batch_size <= images:
        return {}
    size = max(2, unit * max(1, 2 ** int(math.log2(max(1, images / 2))) // unit))
    share = size / recipe.batch_size
    say(
        f"The {images} training images are fewer than the recipe's batches of "
        f"{recipe.batch_size}: batches of {size}, and learning rates in proportion."
    )
    rates = ("learning_rate", "head_learning_rate")
    return {"batch_size": size, **{r: share * getattr(recipe, r) for r in rates}}


def moving_momentum(recipe: Recipe, steps_per_epoch: int) -> float:
    """Return the momentum of batch normalisation's statistics (Keras' convention)."""
    if recipe.bn_momentum is not None:
        return recipe.bn_momentum
    return max(1 - 10 / steps_per_epoch, 0.9)
