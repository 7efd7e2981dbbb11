"""Weights that others publish for nets of the zoo: where, how good, on what terms.

Accuracies are the publishers' own, on ImageNet-1k's 50,000 validation images.
A set of weights can be measured at several sizes. Its preprocessing is the one
its publisher evaluates with by default: for torchvision the transforms of the
weights, for timm the input of the `pretrained_cfg` (`use_test_size=False`). timm's
larger test sizes, often a point better and slower, are told in `results`.
"""

from dataclasses import dataclass
from typing import Any

from reszoo.checkpoints.published_timm import ROWS, Row
from reszoo.errors import UnknownNameError, UsageError
from reszoo.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

_TORCHVISION = "https://download.pytorch.org/models"
# Source: torchvision 0.28.0, `models/resnet.py`. Net, version, first 8 digits of the
# file's sha256 (they are part of its name), top-1, top-5.
_TORCHVISION_ROWS = (
    ("resnet18", "V1", "f37072fd", 69.758, 89.078),
    ("resnet34", "V1", "b627a593", 73.314, 91.420),
    ("resnet50", "V1", "0676ba61", 76.130, 92.862),
    ("resnet50", "V2", "11ad3fa6", 80.858, 95.434),
    ("resnet101", "V1", "63fe2227", 77.374, 93.546),
    ("resnet101", "V2", "cd907fc2", 81.886, 95.780),
    ("resnet152", "V1", "394f9c45", 78.312, 94.046),
    ("resnet152", "V2", "f82ba261", 82.284, 96.002),
)
# Training size and crop_pct: V1 resizes to 256 = 224 / 0.875, V2, which trained on
# smaller pictures, to 232 = floor(224 / 0.965).
_TORCHVISION_VERSIONS = {"V1": (224, 0.875), "V2": (176, 0.965)}
_NONCOMMERCIAL = "cc-by-nc"
# What `weights="imagenet"` means: torchvision's DEFAULT, its best of each net.
DEFAULTS: dict[str, str] = {
    "resnet18": "torchvision/IMAGENET1K_V1",
    "resnet34": "torchvision/IMAGENET1K_V1",
    "resnet50": "torchvision/IMAGENET1K_V2",
    "resnet101": "torchvision/IMAGENET1K_V2",
    "resnet152": "torchvision/IMAGENET1K_V2",
}
_DEFAULT = "imagenet"


@dataclass(frozen=True, kw_only=True)
class Result:
    """A publisher's figures at one way of showing the pictures.

    Attributes:
        top1: Share of pictures whose class came first, in percent.
        top5: Share of pictures whose class came among the first five, in percent.
        size: Side of the square input, in pixels.
        crop_pct: Share of the resized short side that the centre crop kept.
    """

    top1: float
    top5: float
    size: int
    crop_pct: float


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """One set of ImageNet-1k weights, as its publisher describes it.

    Attributes:
        net: The variant it belongs to, such as "resnet50".
        name: Publisher and publisher's name, such as "timm/a1_in1k".
        address: URL of a `.pth` file, or `hf://owner/repository` on Hugging Face.
        sha256: First hex digits of the file's hash; None for hub repositories,
            where the hub's client checks whole hashes.
        licence: SPDX name, in lower case.
        preprocessing: How the publisher shows pictures by default.
        results: The publisher's figures, those for `preprocessing` first.
    """

    net: str
    name: str
    address: str
    sha256: str | None
    licence: str
    preprocessing: Preprocessing
    results: tuple[Result, ...]

    @property
    def commercial(self) -> bool:
        """Whether the licence allows commercial use."""
        return not self.licence.startswith(_NONCOMMERCIAL)


def published_names(net: str) -> list[str]:
    """Return the names of all weights published for a net; for most nets none."""
    return [name for owner, name in PUBLISHED if owner == net]


def find_published(
    net: str, name: str, *, allow_noncommercial: bool = False
) -> PublishedWeights:
    """Find a set of published weights by name.

    Args:
        net: A variant of the zoo, such as "resnet50".
        name: One of `published_names(net)`, or "imagenet" for the net's default.
        allow_noncommercial: Whether weights may be given whose licence forbids
            commercial use.

    Raises:
        UnknownNameError: There are no weights of that name for the net.
        UsageError: The net has no published weights, or the licence forbids
            commercial use and that was not allowed for.
    """
    if net not in DEFAULTS:
        raise UsageError(
            f"Weights are published for {', '.join(DEFAULTS)}. Received: {net!r}; "
            "give the path of a checkpoint, or train the net."
        )
    found = PUBLISHED.get((net, DEFAULTS[net] if name == _DEFAULT else name))
    if found is None:
        choices = [_DEFAULT, *published_names(net)]
        raise UnknownNameError(f"weights for {net}", name, choices)
    if not found.commercial and not allow_noncommercial:
        raise UsageError(
            f"{net} {name} is licensed {found.licence}, which forbids commercial use, "
            f"so it must be asked for. Received: allow_noncommercial=False; pass "
            "allow_noncommercial=True if your use is not commercial, or choose "
            f"other weights, such as {DEFAULTS[net]!r}."
        )
    return found


def table_rows() -> list[dict[str, Any]]:
    """Return all published weights as plain JSON values, a dict each.

    Accuracies are in percent; "at" is the size in pixels they were measured at.
    """
    return [
        {
            "net": weights.net,
            "weights": weights.name,
            "default": DEFAULTS[weights.net] == weights.name,
            "top1": weights.results[0].top1,
            "top5": weights.results[0].top5,
            "at": weights.results[0].size,
            "licence": weights.licence,
            "commercial": weights.commercial,
            "address": weights.address,
        }
        for weights in PUBLISHED.values()
    ]


def _from_torchvision(
    net: str, version: str, sha256: str, top1: float, top5: float
) -> PublishedWeights:
    train_size, crop_pct = _TORCHVISION_VERSIONS[version]
    return PublishedWeights(
        net=net,
        name=f"torchvision/IMAGENET1K_{version}",
        address=f"{_TORCHVISION}/{net}-{sha256}.pth",
        sha256=sha256,
        licence="bsd-3-clause",
        preprocessing=Preprocessing(
            train_size=train_size,
            eval_size=224,
            crop_pct=crop_pct,
            interpolation="bilinear",
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
        ),
        results=(Result(top1=top1, top5=top5, size=224, crop_pct=crop_pct),),
    )


def _from_timm(net: str, row: Row) -> PublishedWeights:
    figures = [row.figures, row.test_figures] if row.test_figures else [row.figures]
    results = tuple(
        Result(top1=top1, top5=top5, size=size, crop_pct=crop_pct)
        for size, crop_pct, top1, top5 in figures
    )
    return PublishedWeights(
        net=net,
        name=f"timm/{row.tag}",
        address=f"hf://timm/{net}.{row.tag}",
        sha256=None,
        licence=row.family.licence,
        preprocessing=Preprocessing(
            train_size=results[0].size,
            eval_size=results[0].size,
            crop_pct=results[0].crop_pct,
            interpolation=row.family.interpolation,
            mean=row.family.mean,
            std=row.family.std,
        ),
        results=results,
    )


def _table() -> dict[tuple[str, str], PublishedWeights]:
    rows = [_from_torchvision(*row) for row in _TORCHVISION_ROWS]
    rows += [_from_timm(net, row) for net in ROWS for row in ROWS[net]]
    # By net, shallow ones first; the sort is stable, so torchvision stays ahead.
    rows.sort(key=lambda weights: list(DEFAULTS).index(weights.net))
    return {(weights.net, weights.name): weights for weights in rows}


PUBLISHED: dict[tuple[str, str], PublishedWeights] = _table()
