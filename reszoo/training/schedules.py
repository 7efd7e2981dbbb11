"""Learning-rate schedules and the decay of weight averages."""

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import Literal, get_args

from reszoo.errors import UnknownNameError, UsageError

ScheduleKind = Literal["cosine", "steps", "constant"]
"""How the learning rate changes: see `schedules.Schedule`."""

SchedulePer = Literal["step", "epoch"]
"""Whether it changes at every step or at every epoch."""

WarmupShape = Literal["linear", "constant"]
"""Shape of the warm-up."""

Decayed = Literal["kernels", "all-but-norm", "all"]
"""Which weights can be decayed: see `optimizers.decay_of`."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate of each step, as a multiple of the recipe's.

    Time t is the number of steps done, or with `per="epoch"` of epochs done; T is the
    length of the run and W that of the warm-up, in the same unit. A linear warm-up is
    `warmup_start + (1 - warmup_start) * t / W` for t < W.

    * torch: `LinearLR(start_factor=warmup_start, total_iters=W)`, followed through
      `SequentialLR` by `CosineAnnealingLR(T_max=T - W, eta_min=floor * rate)`, is this
      cosine. torchvision's reference script calls both once an epoch: `per="epoch"`.
      `MultiStepLR` without a warm-up is `kind="steps"`; behind `SequentialLR` torch
      counts its milestones from the end of the warm-up, we from the start of the run.
    * timm: `CosineLRScheduler(t_initial=T, warmup_t=W, warmup_lr_init=warmup_start *
      rate, lr_min=floor * rate)` is this cosine with `warmup_prefix=False`, timm's
      default; with `warmup_prefix=True` timm's `t_initial` is T - W. `t_in_epochs=True`
      (train.py's default) is `per="epoch"`, `t_in_epochs=False` is `per="step"`.

    Attributes:
        kind: "cosine" falls along half a cosine, "steps" by `factor` at each
            milestone, "constant" not at all.
        warmup: Epochs until the full rate is reached; fractions are allowed.
        warmup_start: Multiple at t = 0, in [0, 1]. timm has a rate in its place
            (`warmup_lr`): divide it by the highest rate.
        warmup_shape: "linear", or "constant" for `warmup_start` during all of the
            warm-up, as He et al. 2015 do for their ResNet-110 (section 4.2).
        warmup_prefix: Whether the cosine starts when the warm-up ends; otherwise it
            starts at t = 0, beneath the warm-up, and the rate jumps down a little.
        milestones: When a rate of kind "steps" falls, as shares of the run.
        factor: Multiplies the rate at each milestone.
        floor: Multiple at the end of the cosine, in [0, 1].
        per: "step" changes smoothly; "epoch" keeps the rate constant within an epoch.

    Raises:
        UnknownNameError: A kind, shape or unit that does not exist.
        UsageError: A value is out of its range, or belongs to another kind.
    """

    kind: ScheduleKind = "cosine"
    warmup: float = 0.0
    warmup_start: float = 0.01
    warmup_shape: WarmupShape = "linear"
    warmup_prefix: bool = True
    milestones: tuple[float, ...] = ()
    factor: float = 0.1
    floor: float = 0.0
    per: SchedulePer = "step"

    def __post_init__(self) -> None:
        for name, choice in (
            ("kind", ScheduleKind),
            ("warmup_shape", WarmupShape),
            ("per", SchedulePer),
        ):
            known = get_args(choice)
            if getattr(self, name) not in known:
                raise UnknownNameError(f"schedule {name}", getattr(self, name), known)
        for name, most in (
            ("warmup", math.inf),
            ("warmup_start", 1),
            ("factor", 1),
            ("floor", 1),
        ):
            if not 0 <= getattr(self, name) <= most or getattr(self, name) == math.inf:
                raise UsageError(
                    f"{name} must lie in [0, {most}]. "
                    f"Received: {name}={getattr(self, name)}."
                )
        self._check_milestones()

    def _check_milestones(self) -> None:
        inside = all(0 < share < 1 for share in self.milestones)
        if not inside or list(self.milestones) != sorted(set(self.milestones)):
            raise UsageError(
                "milestones must be increasing shares of the run, in (0, 1). "
                f"Received: milestones={self.milestones}."
            )
        if bool(self.milestones) != (self.kind == "steps"):
            raise UsageError(
                'milestones go with kind="steps", which needs at least one. '
                f"Received: kind={self.kind!r}, milestones={self.milestones}."
            )

    def rate(self, step: int, steps_per_epoch: int, total_steps: int) -> float:
        """Return the multiple of one step.

        Args:
            step: Counted from 0; steps beyond the last one have the last value.
            steps_per_epoch: At least 1.
            total_steps: Of the whole run, warm-up included.
        """
        done: int = step
        total: float = total_steps
        warmup: float = round(self.warmup * steps_per_epoch)
        if self.per == "epoch":
            done, total = step // steps_per_epoch, total_steps / steps_per_epoch
            warmup = self.warmup
        if done < warmup:
            return self._warm_up(done / warmup)
        if self.kind == "steps":
            passed = [round(share * total) for share in self.milestones]
            return self.factor ** bisect_right(passed, done)
        return self._cosine(done, total, warmup) if self.kind == "cosine" else 1.0

    def _warm_up(self, share: float) -> float:
        if self.warmup_shape == "constant":
            return self.warmup_start
        return self.warmup_start + (1 - self.warmup_start) * share

    def _cosine(self, done: int, total: float, warmup: float) -> float:
        if done >= total:
            return self.floor
        start = warmup if self.warmup_prefix else 0
        share = 0.5 * (1 + math.cos(math.pi * (done - start) / (total - start)))
        return self.floor + (1 - self.floor) * share


def rescaled_decay(decay: float, *, every: int, batch_size: int, epochs: int) -> float:
    """Return torchvision's decay of the average, scaled to the length of a run.

    The number of updates is proportional to epochs / (batch size * steps between
    updates), and the share of the new weights to its inverse (torchvision's
    `references/classification/train.py`, after pycls).

    Args:
        decay: As written in the recipe, such as 0.99998.
        every: Steps between two updates.
        batch_size: Images per step, over all devices.
        epochs: Of the whole run.
    """
    return 1 - min(1.0, (1 - decay) * batch_size * every / epochs)


def ema_decay_at(
    step: int, steps_per_epoch: int, decay: float, *, every: int = 1, warmup: int = 0
) -> float | None:
    """Return the decay of the average after one step.

    torchvision updates after the first step of an epoch and every `every` steps from
    there, and copies the weights during the warm-up and at the first update after it.
    With `every=1` and `warmup=0` the first step is copied and every other averaged.

    Args:
        step: The step before the update, counted from 0.
        steps_per_epoch: At least 1.
        decay: In [0, 1); torchvision's is the `rescaled_decay`.
        every: Steps between two updates.
        warmup: Epochs of warm-up.

    Returns:
        The decay; 0 to copy the weights; None to leave the average as it is.
    """
    epoch, index = divmod(step, steps_per_epoch)
    if index % every:
        return None
    copying = epoch < warmup or step == warmup * steps_per_epoch
    return 0.0 if copying else decay
