"""The table of published weights."""

from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal, NamedTuple

from reszoo.errors import UnknownNameError, UsageError
from reszoo.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing


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
# Tag, and the figures at timm's default input, then at its test input: size, crop_pct,
# top-1 and top-5. resnet50.bamboo is left out: it has no classifier, licence or
# published accuracy.
_TIMM_ROWS: dict[str, tuple[tuple[Any, ...], ...]] = {
    "resnet18": (
        ("a1_in1k", (224, 0.95, 71.504, 90.086), (288, 1.0, 73.164, 91.054)),
        ("a2_in1k", (224, 0.95, 70.634, 89.486), (288, 1.0, 72.364, 90.620)),
        ("a3_in1k", (160, 0.95, 65.670, 86.268), (224, 0.95, 68.250, 88.172)),
        ("tv_in1k", (224, 0.875, 69.752, 89.082)),
        ("fb_ssl_yfcc100m_ft_in1k", (224, 0.875, 72.636, 91.416)),
        ("fb_swsl_ig1b_ft_in1k", (224, 0.875, 73.286, 91.754)),
        ("gluon_in1k", (224, 0.875, 70.844, 89.750)),
    ),
    "resnet34": (
        ("a1_in1k", (224, 0.95, 76.420, 92.896), (288, 1.0, 77.930, 93.758)),
        ("a2_in1k", (224, 0.95, 75.520, 92.454), (288, 1.0, 77.150, 93.288)),
        ("a3_in1k", (160, 0.95, 70.580, 89.540), (224, 0.95, 72.996, 91.116)),
        ("bt_in1k", (224, 0.875, 75.176, 92.166), (288, 0.95, 76.506, 93.342)),
        ("ra4_e3600_r224_in1k", (224, 0.9, 77.492, 93.498), (288, 1.0, 78.972, 94.454)),
        ("tv_in1k", (224, 0.875, 73.298, 91.422)),
        ("gluon_in1k", (224, 0.875, 74.574, 91.988)),
    ),
    "resnet50": (
        ("a1_in1k", (224, 0.95, 80.382, 94.598), (288, 1.0, 81.240, 95.112)),
        ("a1h_in1k", (176, 0.9, 79.264, 94.498), (224, 1.0, 80.654, 95.312)),
        ("a2_in1k", (224, 0.95, 79.828, 94.560), (288, 1.0, 80.774, 94.978)),
        ("a3_in1k", (160, 0.95, 75.994, 92.494), (224, 0.95, 78.052, 93.780)),
        ("b1k_in1k", (224, 0.95, 79.564, 94.622), (288, 1.0, 80.708, 95.430)),
        ("b2k_in1k", (224, 0.95, 79.388, 94.580), (288, 1.0, 80.466, 95.306)),
        ("c1_in1k", (224, 0.95, 79.766, 94.954), (288, 1.0, 80.928, 95.554)),
        ("c2_in1k", (224, 0.95, 79.868, 94.862), (288, 1.0, 80.862, 95.530)),
        ("d_in1k", (224, 0.95, 79.904, 94.666), (288, 1.0, 81.012, 95.456)),
        ("ram_in1k", (224, 0.875, 79.034, 94.386), (288, 0.95, 79.982, 95.038)),
        ("am_in1k", (224, 0.875, 79.004, 94.392)),
        ("ra_in1k", (224, 0.875, 78.820, 94.314), (288, 0.95, 79.864, 94.970)),
        ("bt_in1k", (224, 0.875, 78.444, 94.274), (288, 0.95, 79.652, 94.908)),
        ("tv_in1k", (224, 0.875, 76.156, 92.866)),
        ("tv2_in1k", (176, 0.875, 79.434, 94.640), (224, 0.965, 80.846, 95.430)),
        ("fb_ssl_yfcc100m_ft_in1k", (224, 0.875, 79.252, 94.826)),
        ("fb_swsl_ig1b_ft_in1k", (224, 0.875, 81.146, 95.980)),
        ("gluon_in1k", (224, 0.875, 77.580, 93.704)),
    ),
    "resnet101": (
        ("a1h_in1k", (224, 0.95, 81.950, 95.760), (288, 1.0, 82.796, 96.324)),
        ("a1_in1k", (224, 0.95, 81.494, 95.164), (288, 1.0, 82.326, 95.630)),
        ("a2_in1k", (224, 0.95, 81.344, 95.198), (288, 1.0, 82.218, 95.740)),
        ("a3_in1k", (160, 0.95, 77.928, 93.686), (224, 0.95, 79.836, 94.608)),
        ("tv_in1k", (224, 0.875, 77.404, 93.552)),
        ("tv2_in1k", (176, 0.875, 79.908, 94.606), (224, 0.965, 81.906, 95.768)),
        ("gluon_in1k", (224, 0.875, 79.306, 94.538)),
    ),
    "resnet152": (
        ("a1h_in1k", (224, 0.95, 82.818, 96.124), (288, 1.0, 83.494, 96.522)),
        ("a1_in1k", (224, 0.95, 81.998, 95.294), (288, 1.0, 82.742, 95.734)),
        ("a2_in1k", (224, 0.95, 81.764, 95.270), (288, 1.0, 82.614, 95.748)),
        ("a3_in1k", (160, 0.95, 78.896, 94.140), (224, 0.95, 80.548, 95.004)),
        ("tv_in1k", (224, 0.875, 78.330, 94.046)),
        ("tv2_in1k", (176, 0.875, 80.222, 94.650), (224, 0.965, 82.294, 96.000)),
        ("gluon_in1k", (224, 0.875, 79.712, 94.720)),
    ),
    "resnext50_32x4d": (
        ("a1h_in1k", (224, 0.95, 81.140, 95.320), (288, 1.0, 82.012, 95.932)),
        ("a1_in1k", (224, 0.95, 80.526, 94.458), (288, 1.0, 81.484, 95.162)),
        ("a2_in1k", (224, 0.95, 80.444, 94.630), (288, 1.0, 81.298, 95.110)),
        ("a3_in1k", (160, 0.95, 77.734, 93.314), (224, 0.95, 79.252, 94.290)),
        ("ra_in1k", (224, 0.875, 79.800, 94.608), (288, 0.95, 80.706, 95.358)),
        ("tv_in1k", (224, 0.875, 77.632, 93.674)),
        ("tv2_in1k", (176, 0.875, 79.374, 94.302), (224, 0.965, 81.176, 95.348)),
        ("fb_ssl_yfcc100m_ft_in1k", (224, 0.875, 80.316, 95.386)),
        ("fb_swsl_ig1b_ft_in1k", (224, 0.875, 82.162, 96.224)),
        ("gluon_in1k", (224, 0.875, 79.354, 94.424)),
    ),
    "wide_resnet50_2": (
        ("racm_in1k", (224, 0.875, 81.488, 95.544), (288, 0.95, 82.266, 96.062)),
        ("tv_in1k", (224, 0.875, 78.480, 94.086)),
        ("tv2_in1k", (176, 0.875, 80.436, 95.082), (224, 0.965, 81.598, 95.764)),
    ),
}
# Source: torchvision 0.28.0, `models/resnet.py`. Variant, version, first 8 digits of
# the file's sha256 (they are part of its name), top-1, top-5.
_TORCHVISION_ROWS = (
    ("resnet18", "V1", "f37072fd", 69.758, 89.078),
    ("resnet34", "V1", "b627a593", 73.314, 91.420),
    ("resnet50", "V1", "0676ba61", 76.130, 92.862),
    ("resnet50", "V2", "11ad3fa6", 80.858, 95.434),
    ("resnet101", "V1", "63fe2227", 77.374, 93.546),
    ("resnet101", "V2", "cd907fc2", 81.886, 95.780),
    ("resnet152", "V1", "394f9c45", 78.312, 94.046),
    ("resnet152", "V2", "f82ba261", 82.284, 96.002),
    ("resnext50_32x4d", "V1", "7cdf4587", 77.618, 93.698),
    ("resnext50_32x4d", "V2", "1a0047aa", 81.198, 95.340),
    ("wide_resnet50_2", "V1", "95faca4d", 78.468, 94.086),
    ("wide_resnet50_2", "V2", "9ba9bcbe", 81.602, 95.758),
)
# Training size and crop_pct: V1 resizes to 256 = 224 / 0.875, V2, which trained on
# smaller images, to 232 = floor(224 / 0.965).
_TORCHVISION_VERSIONS = {"V1": (224, 0.875), "V2": (176, 0.965)}
_NONCOMMERCIAL = "cc-by-nc"
# What `weights="imagenet"` means: torchvision's DEFAULT, the newest of each variant.
DEFAULTS = {
    variant: f"torchvision/IMAGENET1K_{version}"
    for variant, version, *_ in _TORCHVISION_ROWS
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
            "pass the path of a checkpoint, or train the model."
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
    for variant, version, sha256, *top in _TORCHVISION_ROWS:
        size, crop_pct = _TORCHVISION_VERSIONS[version]
        name = f"torchvision/IMAGENET1K_{version}"
        address = f"https://download.pytorch.org/models/{variant}-{sha256}.pth"
        results: tuple[Result, ...] = (Result(224, crop_pct, *top),)
        rows.append(_row(variant, name, address, sha256, _TORCHVISION, size, results))
    for variant, listed in _TIMM_ROWS.items():
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
