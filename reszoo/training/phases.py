"""A recipe becomes phases: the head alone first, then the rest, with their lengths."""

import math
from dataclasses import dataclass, replace

from reszoo.errors import UsageError
from reszoo.training.recipes import Recipe
from reszoo.training.schedules import Schedule

# BiT's HyperRule (arXiv:1912.11370, section 3.3): training images -> steps. There a
# step has 512 images; with our smaller ones large sets get ten epochs at least.
_BIT_STEPS = ((20_000, 500), (500_000, 10_000), (math.inf, 20_000))
_LEAST_EPOCHS = 10
# Fewer images than these at a time say too little for new statistics to be better than
# those of pretraining. A small set alone is no reason: on 500 images frozen and live
# ones end alike (benchmarks/transfer.py), and where the images look unlike those of
# pretraining, frozen ones let the whole net collapse.
_SMALL_BATCH = 16
# Of a small set, epochs are put together to as many steps before the net is measured.
_STEPS_TOLD = 25
_HEAD_SCHEDULE = Schedule(kind="constant")


@dataclass(frozen=True)
class Phase:
    """A part of a training with one set of learning weights and one schedule.

    Attributes:
        name: "head" or "all".
        recipe: What is carried out: `freeze_bn` and `bn_momentum` are settled.
        first_epoch: Number of its first epoch over all phases, from 0.
        epochs: How many it has.
        steps_per_epoch: In full epochs.
        steps: How many it has; the last epoch may be cut short.
        schedule: Of the learning rate.
        row: Epochs after which the net is measured and written.
    """

    name: str
    recipe: Recipe
    first_epoch: int
    epochs: int
    steps_per_epoch: int
    steps: int
    schedule: Schedule
    row: int = 1

    def closes_row(self, epoch: int) -> bool:
        """Return whether the net is measured after an epoch over all phases."""
        done = epoch + 1 - self.first_epoch
        return done % self.row == 0 or done == self.epochs

    def learning_rate(self, step: int) -> float:
        """Return the rate of one step of this phase, counted from 0."""
        multiple = self.schedule.rate(step, self.steps_per_epoch, self.steps)
        return self.recipe.learning_rate * multiple

    def steps_of(self, epoch: int) -> int:
        """Return how many steps an epoch has, numbered over all phases."""
        done = (epoch - self.first_epoch) * self.steps_per_epoch
        return min(self.steps_per_epoch, self.steps - done)


def phases(recipe: Recipe, images: int, devices: int = 1) -> tuple[Phase, ...]:
    """Divide a training into phases.

    Args:
        recipe: What was asked for.
        images: Size of the training set.
        devices: Over which each batch is spread.

    Raises:
        UsageError: There are fewer images than a batch has.
    """
    per_epoch = images // recipe.batch_size
    if not per_epoch:
        raise UsageError(
            "batch_size must be at most the number of training images. Received: "
            f"batch_size={recipe.batch_size} for {images} images."
        )
    settled = _settled(recipe, per_epoch, devices)
    steps = _length(recipe, images, per_epoch)
    told = 1 if _told(recipe) else max(1, math.ceil(_STEPS_TOLD / per_epoch))
    schedule = recipe.rates(steps / per_epoch)
    epochs = math.ceil(steps / per_epoch)
    head = recipe.head_epochs
    if head and not _told(recipe):
        # Of a small set two epochs are few steps.
        head = max(head, math.ceil(steps / 10 / per_epoch))
    everything = Phase("all", settled, head, epochs, per_epoch, steps, schedule, told)
    if not head:
        return (everything,)
    alone = replace(
        settled,
        freeze="backbone",
        freeze_bn=True,
        learning_rate=recipe.head_learning_rate,
        ema=None,
    )
    length = head * per_epoch
    first = Phase("head", alone, 0, head, per_epoch, length, _HEAD_SCHEDULE, told)
    return first, everything


def _told(recipe: Recipe) -> bool:
    return recipe.steps is not None or recipe.epochs is not None


def _length(recipe: Recipe, images: int, per_epoch: int) -> int:
    if recipe.steps is not None:
        return recipe.steps
    if recipe.epochs is not None:
        return recipe.epochs * per_epoch
    steps = next(steps for most, steps in _BIT_STEPS if images < most)
    return max(steps, _LEAST_EPOCHS * per_epoch)


def _settled(recipe: Recipe, per_epoch: int, devices: int) -> Recipe:
    """Decide what `freeze_bn=None` and `bn_momentum=None` leave open."""
    frozen = recipe.freeze_bn
    if frozen is None:
        seen = recipe.batch_size // recipe.accumulate
        if not recipe.sync_bn:
            seen //= devices
        frozen = seen < _SMALL_BATCH
    momentum = moving_momentum(recipe, per_epoch)
    return replace(recipe, freeze_bn=frozen, bn_momentum=momentum)


def moving_momentum(recipe: Recipe, steps_per_epoch: int) -> float:
    """Return how slowly batch normalisation's statistics follow (Keras' convention)."""
    if recipe.bn_momentum is not None:
        return recipe.bn_momentum
    return max(1 - 10 / steps_per_epoch, 0.9)
