"""Names that recipes and what carries them out have in common, free of TensorFlow."""

from typing import Literal

ScheduleKind = Literal["cosine", "steps", "constant"]
"""How the learning rate changes: see `schedules.Schedule`."""

SchedulePer = Literal["step", "epoch"]
"""When it changes."""

WarmupShape = Literal["linear", "constant"]
"""How it begins."""

Decayed = Literal["kernels", "all-but-norm", "all"]
"""Which weights can be decayed: see `optimizers.decay_of`."""
