"""The table of published weights."""

from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal, NamedTuple

from reszoo.errors import UnknownNameError, UsageError
from reszoo.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from reszoo.weights.figures import TIMM_ROWS, TORCHVISION_ROWS


class Result(NamedTuple):
    """A publisher's figures at one way of showing the pictures."""

    size: int  # side of the square input, in pixels
    crop_pct: float  # share of the resized short side that is kept
    top1: float  # in percent
    top5: float  # in percent


class _Family(NamedTuple):
    """What weights of one origin have in common."""

    licence: str
    interpolation: Literal["bilinear", "bicubic"]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


_TORCHVISION = _Family("bsd-3-clause", "bilinear")
_TIMM = _Family("apache-2.0", "bicubic")
# By the first word of timm's tags; the others are `_TIMM`.
_FAMILIES = {
    "tv": _TORCHVISION,
    "tv2": _TORCHVISION,
    "fb": _Family("cc-by-nc-4.0", "bilinear"),
    # The ra4 recipe scales pixels to -1..1 instead of by ImageNet's statistics.
    "ra4": _Family("apache-2.0", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
# Training size and crop_pct: V1 resizes to 256 = 224 / 0.875, V2, which trained on
# smaller images, to 232 = floor(224 / 0.965).
_TORCHVISION_VERSIONS = {"V1": (224, 0.875), "V2": (176, 0.965)}
_NONCOMMERCIAL = "cc-by-nc"
# What `weights="imagenet"` means: torchvision's DEFAULT, the newest of each variant.
DEFAULTS = {
    variant: f"torchvision/IMAGENET1K_{version}"
    for variant, version, *_ in TORCHVISION_ROWS
}
_DEFAULT = "imagenet"


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """One set of ImageNet-1k weights, as its publisher describes it."""

    variant: str  # that it belongs to, such as "resnet50"
    name: str  # publisher and its name, such as "timm/a1_in1k"
    address: str  # URL of a `.pth` file, or `hf://owner/repository`
    # First hex digits of the file's hash; None for hub repositories, where the hub's
    # client checks whole hashes.
    sha256: str | None
    licence: str  # SPDX name, in lower case
    preprocessing: Preprocessing  # the publisher's default
    results: tuple[Result, ...]  # those for `preprocessing` first

    @property
    def commercial(self) -> bool:
        """Whether the licence allows commercial use."""
        return not self.licence.startswith(_NONCOMMERCIAL)


def published_names(variant: str) -> list[str]:
    """Return the names of all weights published for a variant; for most none."""
    return [name for owner, name in PUBLISHED if owner == variant]


def find_published(
    variant: str, name: str, *, allow_noncommercial: bool = False
) -> PublishedWeights:
    """Find a set of published weights by one of `published_names`, or "imagenet".

    An UnknownNameError if there is none of that name for the variant, a UsageError if
    it has no published weights, or their licence forbids commercial use and that was
    not allowed for.
    """
    if variant not in DEFAULTS:
        raise UsageError(
            f"Weights are published for {', '.join(DEFAULTS)}. Received: {variant!r}; "
            'pass "cifar10" with resnet20 or resnet32, the path of a checkpoint, or '
            "train the model."
        )
    found = PUBLISHED.get((variant, DEFAULTS[variant] if name == _DEFAULT else name))
    if found is None:
        choices = [_DEFAULT, *published_names(variant)]
        raise UnknownNameError(f"weights for {variant}", name, choices)
    if not found.commercial and not allow_noncommercial:
        raise UsageError(
            f"{variant} {name} has the licence {found.licence}, which forbids "
            "commercial use. Received: allow_noncommercial=False; pass "
            "allow_noncommercial=True if your use is not commercial, or choose other "
            f"weights, such as {DEFAULTS[variant]!r}."
        )
    return found


def table_rows() -> list[dict[str, Any]]:
    """Return all published weights as plain JSON values, a dict each.

    Accuracies are in percent; "at" is the size in pixels they were measured at.
    """
    return [
        {
            "model": weights.variant,
            "weights": weights.name,
            "default": DEFAULTS[weights.variant] == weights.name,
            "top1": weights.results[0].top1,
            "top5": weights.results[0].top5,
            "at": weights.results[0].size,
            "licence": weights.licence,
            "commercial": weights.commercial,
            "address": weights.address,
        }
        for weights in PUBLISHED.values()
    ]


def imagenet_labels() -> tuple[str, ...]:
    """Return the labels of the 1,000 ImageNet classes in the order of their targets.

    The order is that of the sorted WordNet numbers, which torchvision, timm and
    keras.applications share. Source: torchvision 0.28.0, `models/_meta.py`. Where
    two classes share a name, parentheses tell them apart: "crane (bird)".
    """
    text = files("reszoo.weights").joinpath("imagenet_classes.txt").read_text("utf-8")
    return tuple(text.splitlines())


def _row(
    variant: str,
    name: str,
    address: str,
    sha256: str | None,
    family: _Family,
    train_size: int,
    results: tuple[Result, ...],
) -> PublishedWeights:
    return PublishedWeights(
        variant=variant,
        name=name,
        address=address,
        sha256=sha256,
        licence=family.licence,
        preprocessing=Preprocessing(
            train_size=train_size,
            eval_size=results[0].size,
            crop_pct=results[0].crop_pct,
            interpolation=family.interpolation,
            mean=family.mean,
            std=family.std,
        ),
        results=results,
    )


def _table() -> dict[tuple[str, str], PublishedWeights]:
    rows = []
    for variant, version, sha256, *top in TORCHVISION_ROWS:
        size, crop_pct = _TORCHVISION_VERSIONS[version]
        name = f"torchvision/IMAGENET1K_{version}"
        address = f"https://download.pytorch.org/models/{variant}-{sha256}.pth"
        results: tuple[Result, ...] = (Result(224, crop_pct, *top),)
        rows.append(_row(variant, name, address, sha256, _TORCHVISION, size, results))
    for variant, listed in TIMM_ROWS.items():
        for tag, *figures in listed:
            family = _FAMILIES.get(tag.split("_")[0], _TIMM)
            name, address = f"timm/{tag}", f"hf://timm/{variant}.{tag}"
            results = tuple(Result(*row) for row in figures)
            size = results[0].size
            rows.append(_row(variant, name, address, None, family, size, results))
    # By variant, shallow ones first; the sort is stable, so torchvision stays ahead.
    rows.sort(key=lambda weights: list(DEFAULTS).index(weights.variant))
    return {(weights.variant, weights.name): weights for weights in rows}


PUBLISHED: dict[tuple[str, str], PublishedWeights] = _table()
