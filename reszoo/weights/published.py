"""The table of published weights."""

from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from reszoo.errors import UnknownNameError, UsageError
from reszoo.fields import read_tables
from reszoo.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from reszoo.weights.figures import ROWS, Result, Row

_TABLES = read_tables("reszoo.weights", "published.toml")
_NONCOMMERCIAL = "cc-by-nc"
# What `weights="imagenet"` means: the publisher's default, of several torchvision's.
DEFAULTS: dict[str, str] = {}
for _listed in ROWS:
    DEFAULTS.setdefault(_listed.model, _listed.weights)
_DEFAULT = "imagenet"


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """One set of ImageNet-1k weights, as its publisher describes it."""

    variant: str  # that it belongs to, such as "resnet50"
    name: str  # publisher and its name, such as "timm/a1_in1k"
    address: str  # URL of a file, or `hf://owner/repository`
    # First hex digits of the file's SHA-256, or "md5:" and its MD5, which is all that
    # Keras tells; None for hub repositories, whose client checks whole hashes.
    checksum: str | None
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
            "commercial use. Received: allow_noncommercial=False; give reszoo.build "
            "allow_noncommercial=True if your use is not commercial (reszoo.save makes "
            "a checkpoint of the model, to train or export), or choose other weights, "
            f"such as {DEFAULTS[variant]!r}."
        )
    return found


def table_rows() -> list[dict[str, Any]]:
    """Return all published weights as plain JSON values, a dict each.

    Accuracies are in percent, None where none is published; "at" is the size in pixels
    they were measured at.
    """
    return [
        {
            "model": row.variant, "weights": row.name,
            "default": DEFAULTS[row.variant] == row.name,
            "top1": row.results[0].top1, "top5": row.results[0].top5,
            "at": row.results[0].size, "licence": row.licence,
            "commercial": row.commercial, "address": row.address,
        }
        for row in PUBLISHED.values()
    ]  # fmt: skip


def imagenet_labels() -> tuple[str, ...]:
    """Return the labels of the 1,000 ImageNet classes in the order of their targets.

    The order is that of the sorted WordNet numbers, which torchvision, timm and
    keras.applications share. Source: torchvision 0.28.0, `models/_meta.py`. Where
    two classes share a name, parentheses tell them apart: "crane (bird)".
    """
    text = files("reszoo.weights").joinpath("imagenet_classes.txt").read_text("utf-8")
    return tuple(text.splitlines())


def _described(row: Row) -> PublishedWeights:
    publisher, tag = row.weights.split("/")
    first = tag.split("_")[0] if publisher == "timm" else publisher
    families = _TABLES["families"]
    family = families.get(first, families["timm"])
    part = tag.removeprefix("imagenet")
    address = _TABLES["addresses"][publisher]
    address = address.format(tag=tag, part=part, **row._asdict())
    size, crop_pct, *_ = row.results[0]
    return PublishedWeights(
        variant=row.model, name=row.weights, address=address, checksum=row.checksum,
        licence=family["licence"], results=row.results,
        preprocessing=Preprocessing(
            train_size=row.train_size, eval_size=size, crop_pct=crop_pct,
            interpolation=family["interpolation"],
            mean=tuple(family.get("mean", IMAGENET_MEAN)),
            std=tuple(family.get("std", IMAGENET_STD)),
        ),
    )  # fmt: skip


PUBLISHED = {(row.model, row.weights): _described(row) for row in ROWS}
