"""The ResNet weights that timm publishes: data, turned into records by `published`.

Source: timm 1.0.31, `timm/models/resnet.py` (licence, interpolation, sizes) and
`results/results-imagenet.csv` (accuracy); files at huggingface.co/timm/<net>.<tag>.
"""

from typing import Literal, NamedTuple

from reszoo.preprocessing import IMAGENET_MEAN, IMAGENET_STD

# Size in pixels, crop_pct, top-1 and top-5 in percent.
Figures = tuple[int, float, float, float]


class Family(NamedTuple):
    """What weights of one origin have in common."""

    licence: str
    interpolation: Literal["bilinear", "bicubic"]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


class Row(NamedTuple):
    """One tag: first the figures at timm's default input, then at its test input."""

    tag: str
    family: Family
    figures: Figures
    test_figures: Figures | None = None


_TIMM = Family("apache-2.0", "bicubic")
# The ra4 recipe scales pixels to -1..1 instead of by ImageNet's statistics.
_RA4 = Family("apache-2.0", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_TORCHVISION = Family("bsd-3-clause", "bilinear")
_FACEBOOK = Family("cc-by-nc-4.0", "bilinear")

# resnet50.bamboo is left out: it has no classifier, licence or published accuracy.
ROWS: dict[str, tuple[Row, ...]] = {
    "resnet18": (
        Row("a1_in1k", _TIMM, (224, 0.95, 71.504, 90.086), (288, 1.0, 73.164, 91.054)),
        Row("a2_in1k", _TIMM, (224, 0.95, 70.634, 89.486), (288, 1.0, 72.364, 90.620)),
        Row("a3_in1k", _TIMM, (160, 0.95, 65.670, 86.268), (224, 0.95, 68.250, 88.172)),
        Row("tv_in1k", _TORCHVISION, (224, 0.875, 69.752, 89.082)),
        Row("fb_ssl_yfcc100m_ft_in1k", _FACEBOOK, (224, 0.875, 72.636, 91.416)),
        Row("fb_swsl_ig1b_ft_in1k", _FACEBOOK, (224, 0.875, 73.286, 91.754)),
        Row("gluon_in1k", _TIMM, (224, 0.875, 70.844, 89.750)),
    ),
    "resnet34": (
        Row("a1_in1k", _TIMM, (224, 0.95, 76.420, 92.896), (288, 1.0, 77.930, 93.758)),
        Row("a2_in1k", _TIMM, (224, 0.95, 75.520, 92.454), (288, 1.0, 77.150, 93.288)),
        Row("a3_in1k", _TIMM, (160, 0.95, 70.580, 89.540), (224, 0.95, 72.996, 91.116)),
        Row(
            "bt_in1k", _TIMM, (224, 0.875, 75.176, 92.166), (288, 0.95, 76.506, 93.342)
        ),
        Row(
            "ra4_e3600_r224_in1k",
            _RA4,
            (224, 0.9, 77.492, 93.498),
            (288, 1.0, 78.972, 94.454),
        ),
        Row("tv_in1k", _TORCHVISION, (224, 0.875, 73.298, 91.422)),
        Row("gluon_in1k", _TIMM, (224, 0.875, 74.574, 91.988)),
    ),
    "resnet50": (
        Row("a1_in1k", _TIMM, (224, 0.95, 80.382, 94.598), (288, 1.0, 81.240, 95.112)),
        Row("a1h_in1k", _TIMM, (176, 0.9, 79.264, 94.498), (224, 1.0, 80.654, 95.312)),
        Row("a2_in1k", _TIMM, (224, 0.95, 79.828, 94.560), (288, 1.0, 80.774, 94.978)),
        Row("a3_in1k", _TIMM, (160, 0.95, 75.994, 92.494), (224, 0.95, 78.052, 93.780)),
        Row("b1k_in1k", _TIMM, (224, 0.95, 79.564, 94.622), (288, 1.0, 80.708, 95.430)),
        Row("b2k_in1k", _TIMM, (224, 0.95, 79.388, 94.580), (288, 1.0, 80.466, 95.306)),
        Row("c1_in1k", _TIMM, (224, 0.95, 79.766, 94.954), (288, 1.0, 80.928, 95.554)),
        Row("c2_in1k", _TIMM, (224, 0.95, 79.868, 94.862), (288, 1.0, 80.862, 95.530)),
        Row("d_in1k", _TIMM, (224, 0.95, 79.904, 94.666), (288, 1.0, 81.012, 95.456)),
        Row(
            "ram_in1k", _TIMM, (224, 0.875, 79.034, 94.386), (288, 0.95, 79.982, 95.038)
        ),
        Row("am_in1k", _TIMM, (224, 0.875, 79.004, 94.392)),
        Row(
            "ra_in1k", _TIMM, (224, 0.875, 78.820, 94.314), (288, 0.95, 79.864, 94.970)
        ),
        Row(
            "bt_in1k", _TIMM, (224, 0.875, 78.444, 94.274), (288, 0.95, 79.652, 94.908)
        ),
        Row("tv_in1k", _TORCHVISION, (224, 0.875, 76.156, 92.866)),
        Row(
            "tv2_in1k",
            _TORCHVISION,
            (176, 0.875, 79.434, 94.640),
            (224, 0.965, 80.846, 95.430),
        ),
        Row("fb_ssl_yfcc100m_ft_in1k", _FACEBOOK, (224, 0.875, 79.252, 94.826)),
        Row("fb_swsl_ig1b_ft_in1k", _FACEBOOK, (224, 0.875, 81.146, 95.980)),
        Row("gluon_in1k", _TIMM, (224, 0.875, 77.580, 93.704)),
    ),
    "resnet101": (
        Row("a1h_in1k", _TIMM, (224, 0.95, 81.950, 95.760), (288, 1.0, 82.796, 96.324)),
        Row("a1_in1k", _TIMM, (224, 0.95, 81.494, 95.164), (288, 1.0, 82.326, 95.630)),
        Row("a2_in1k", _TIMM, (224, 0.95, 81.344, 95.198), (288, 1.0, 82.218, 95.740)),
        Row("a3_in1k", _TIMM, (160, 0.95, 77.928, 93.686), (224, 0.95, 79.836, 94.608)),
        Row("tv_in1k", _TORCHVISION, (224, 0.875, 77.404, 93.552)),
        Row(
            "tv2_in1k",
            _TORCHVISION,
            (176, 0.875, 79.908, 94.606),
            (224, 0.965, 81.906, 95.768),
        ),
        Row("gluon_in1k", _TIMM, (224, 0.875, 79.306, 94.538)),
    ),
    "resnet152": (
        Row("a1h_in1k", _TIMM, (224, 0.95, 82.818, 96.124), (288, 1.0, 83.494, 96.522)),
        Row("a1_in1k", _TIMM, (224, 0.95, 81.998, 95.294), (288, 1.0, 82.742, 95.734)),
        Row("a2_in1k", _TIMM, (224, 0.95, 81.764, 95.270), (288, 1.0, 82.614, 95.748)),
        Row("a3_in1k", _TIMM, (160, 0.95, 78.896, 94.140), (224, 0.95, 80.548, 95.004)),
        Row("tv_in1k", _TORCHVISION, (224, 0.875, 78.330, 94.046)),
        Row(
            "tv2_in1k",
            _TORCHVISION,
            (176, 0.875, 80.222, 94.650),
            (224, 0.965, 82.294, 96.000),
        ),
        Row("gluon_in1k", _TIMM, (224, 0.875, 79.712, 94.720)),
    ),
}
