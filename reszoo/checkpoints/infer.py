"""Tell from the tensors alone which net they belong to."""

import re
from typing import Any

from reszoo.checkpoints.names import Tensors
from reszoo.errors import CheckpointError
from reszoo.specs import SPECS, ResNetSpec

_BLOCK = re.compile(r"layer(\d+)\.(\d+)\.conv1\.weight")


def infer_options(
    tensors: Tensors, source: str, variant: str | None = None
) -> dict[str, Any]:
    """Return the `build` options of the net that some tensors belong to.

    A CIFAR net without projections is taken for the residual one with option A,
    not for its plain twin, whose tensors are the same; `variant` decides otherwise.

    Args:
        tensors: Under torchvision's names.
        source: What they came from, for messages.
        variant: A name from the table that the tensors must fit.

    Returns:
        "variant", "shortcut", "classes", "include_top" and "channels".

    Raises:
        CheckpointError: They fit no net of the zoo, another than `variant`, or two.
    """
    fitting = _fitting(tensors, source)
    shortcut = _shortcut(tensors)
    if variant is None:
        named = _preferred(fitting, shortcut, source)
    elif variant in {spec.name for spec in fitting}:
        named = SPECS[variant]
    else:
        raise CheckpointError(
            f"{source} holds a {fitting[0].name}. Received: {variant!r}; "
            f"build {fitting[0].name!r}, or use reszoo.load."
        )
    if shortcut == "none" and named.shortcut == "identity":
        shortcut = "identity"
    head = tensors.get("fc.weight")
    return {
        "variant": named.name,
        "shortcut": shortcut,
        "include_top": head is not None,
        "classes": None if head is None else len(head),
        "channels": tensors["conv1.weight"].shape[1],
    }


def _fitting(tensors: Tensors, source: str) -> list[ResNetSpec]:
    first = tensors.get("conv1.weight")
    blocks = [match for name in tensors if (match := _BLOCK.fullmatch(name))]
    if first is None or first.ndim != 4 or not blocks:
        shown = ", ".join(sorted(tensors)[:5])
        raise CheckpointError(
            f"{source} holds no ResNet as torchvision names it: conv1.weight and "
            f"layer1.0.conv1.weight were expected. Received: {shown}."
        )
    depths: dict[int, int] = {}
    for match in blocks:
        depths[int(match[1])] = depths.get(int(match[1]), 0) + 1
    found = {
        "stem": "imagenet" if first.shape[-1] == 7 else "cifar",
        "block": "bottleneck" if "layer1.0.conv3.weight" in tensors else "basic",
        "depths": tuple(depths[stage] for stage in sorted(depths)),
        "width": first.shape[0],
    }
    fitting = [spec for spec in SPECS.values() if _description(spec) == found]
    if not fitting:
        told = ", ".join(f"{key} {value}" for key, value in found.items())
        raise CheckpointError(f"No net of the zoo is made like {source}: {told}.")
    return fitting


def _description(spec: ResNetSpec) -> dict[str, Any]:
    return {
        "stem": spec.stem,
        "block": spec.block,
        "depths": spec.depths,
        "width": spec.widths[0],
    }


def _shortcut(tensors: Tensors) -> str:
    if "layer1.1.downsample.0.weight" in tensors:
        return "projection-all"
    if any(".downsample.0." in name for name in tensors):
        return "projection"
    return "none"


def _preferred(fitting: list[ResNetSpec], shortcut: str, source: str) -> ResNetSpec:
    residual = next(spec for spec in fitting if spec.shortcut != "none")
    if shortcut != "none" or residual.shortcut == "identity":
        return residual
    plain = next(spec for spec in fitting if spec.shortcut == "none")
    raise CheckpointError(
        f"{source} has no projections, so it is a {plain.name} or a {residual.name} "
        "with shortcut='identity'. Say which: "
        f"reszoo.build({plain.name!r}, weights=...)."
    )
