"""Random augmentations: pure functions of an explicit key."""

import re

from reszoo.errors import UsageError

GREATEST = 10.0
"""timm's RandAugment has levels from 0 to this."""

_NUMBER = r"(\d+(?:\.\d+)?)"
_RAND = re.compile(rf"rand-m{_NUMBER}(?:-mstd{_NUMBER})?(?:-inc1)?", re.ASCII)


def strength_of(policy: str) -> tuple[float, float] | None:
    """Return the magnitude and its standard deviation that a policy's name tells.

    "trivial" (torchvision's TrivialAugmentWide) has neither: None. "rand-mM-mstdS" is
    timm's RandAugment of magnitude M, which varies with standard deviation S, by
    default 0, both from 0 to `GREATEST`. It always has the operations that grow with
    the magnitude; timm's "-inc1" for them may be left out, as papers do. Others are a
    UsageError.
    """
    if policy == "trivial":
        return None
    match = _RAND.fullmatch(policy)
    levels = [float(level or 0) for level in match.groups()] if match else []
    # timm takes greater ones, but clips the magnitude here, and reads a deviation above
    # 100 as another distribution.
    if not levels or max(levels) > GREATEST:
        raise UsageError(
            "An augmentation policy is 'trivial' or 'rand-mM-mstdS' with M and S from "
            f"0 to {GREATEST:g}, such as 'rand-m7-mstd0.5'. Received: {policy!r}."
        )
    return levels[0], levels[1]
