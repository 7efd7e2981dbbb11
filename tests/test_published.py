"""The table of published weights, beside its publishers' own code and figures."""

import importlib
import json
import re
import subprocess
import sys
from collections import Counter
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images
from torch_peers import REASON, import_timm, import_torchvision

import reszoo
from reszoo.specs import SPECS
from reszoo.weights.published import (
    DEFAULTS,
    PUBLISHED,
    PublishedWeights,
    find_published,
    imagenet_labels,
    published_names,
    table_rows,
)

FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
V1, V2 = "torchvision/IMAGENET1K_V1", "torchvision/IMAGENET1K_V2"
# Name -> input size, short side before the crop, filter.
SHOWN = {
    V1: (224, 256, "bilinear"),
    V2: (224, 232, "bilinear"),
    "timm/a1_in1k": (224, 235, "bicubic"),
    "timm/a1h_in1k": (224, 235, "bicubic"),
    "timm/a2_in1k": (224, 235, "bicubic"),
    "timm/a3_in1k": (160, 168, "bicubic"),
    "timm/b1k_in1k": (224, 235, "bicubic"),
    "timm/b2k_in1k": (224, 235, "bicubic"),
    "timm/c1_in1k": (224, 235, "bicubic"),
    "timm/c3_in1k": (176, 201, "bicubic"),
    "timm/ra2_in1k": (224, 256, "bicubic"),
    "timm/c2_in1k": (224, 235, "bicubic"),
    "timm/d_in1k": (224, 235, "bicubic"),
    "timm/am_in1k": (224, 256, "bicubic"),
    "timm/ram_in1k": (224, 256, "bicubic"),
    "timm/ra_in1k": (224, 256, "bicubic"),
    "timm/racm_in1k": (224, 256, "bicubic"),
    "timm/bt_in1k": (224, 256, "bicubic"),
    "timm/gluon_in1k": (224, 256, "bicubic"),
    "timm/ra4_e3600_r224_in1k": (224, 248, "bicubic"),
    "timm/tv_in1k": (224, 256, "bilinear"),
    "timm/tv2_in1k": (176, 201, "bilinear"),
    "timm/fb_ssl_yfcc100m_ft_in1k": (224, 256, "bilinear"),
    "timm/fb_swsl_ig1b_ft_in1k": (224, 256, "bilinear"),
    "timm/fb_wsl_ig1b_ft_in1k": (224, 256, "bilinear"),
    "keras/imagenet": (224, 256, "bilinear"),
    "keras/imagenet_notop": (224, 256, "bilinear"),
}
# Weights that are shown in another way than others of the name.
SHOWN_OTHERWISE = {
    ("resnet50", "timm/a1h_in1k"): (176, 195, "bicubic"),
    ("resnet50d", "timm/ra4_e3600_r224_in1k"): (224, 235, "bicubic"),
    ("resnet26t", "timm/ra2_in1k"): (256, 272, "bicubic"),
    ("resnet101d", "timm/ra2_in1k"): (256, 269, "bicubic"),
    ("resnet152d", "timm/ra2_in1k"): (256, 269, "bicubic"),
    ("resnext101_64x4d", V1): (224, 232, "bilinear"),
}


def every(publisher: str = "") -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "weights",
        [row for row in PUBLISHED.values() if row.name.startswith(publisher)],
        ids=lambda row: f"{row.variant}.{row.name}",
    )


def shown(weights: PublishedWeights) -> tuple[int, int, str]:
    key = weights.variant, weights.name
    return SHOWN_OTHERWISE.get(key, SHOWN[weights.name])


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    """Photographs lying and standing, of odd and even sides, one to be enlarged."""
    temple, flower = (Image.fromarray(pixels) for pixels in load_sample_images().images)
    standing = flower.transpose(Image.Transpose.ROTATE_90).crop((0, 0, 301, 500))
    return [temple, flower, standing, temple.crop((0, 0, 190, 150))]


def resized_and_cropped(
    image: Image.Image, size: int, resized: int, interpolation: str
) -> Any:
    """Do what torchvision's Resize and CenterCrop say they do."""
    width, height = image.size
    if width <= height:
        width, height = resized, int(resized * height / width)
    else:
        width, height = int(resized * width / height), resized
    image = image.resize((width, height), FILTERS[interpolation])
    left, top = round((width - size) / 2.0), round((height - size) / 2.0)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def test_every_published_set_is_in_the_table() -> None:
    counts = Counter((net, name.split("/")[0]) for net, name in PUBLISHED)
    assert {key: n for key, n in counts.items() if key[1] == "timm"} == {
        (net, "timm"): count
        for net, count in {
            "resnet18": 7, "resnet34": 7, "resnet50": 18, "resnet101": 7,
            "resnet152": 7, "resnext50_32x4d": 10, "resnext101_32x8d": 5,
            "resnext101_64x4d": 3, "wide_resnet50_2": 3, "wide_resnet101_2": 2,
            "resnet10t": 1, "resnet14t": 1, "resnet26t": 1, "resnet18d": 2,
            "resnet26d": 1, "resnet34d": 1, "resnet50d": 6, "resnet101d": 2,
            "resnet152d": 2,
        }.items()
    }  # fmt: skip
    assert {key: n for key, n in counts.items() if key[1] == "torchvision"} == {
        (net, "torchvision"): count
        for net, count in {
            "resnet18": 1, "resnet34": 1, "resnet50": 2, "resnet101": 2,
            "resnet152": 2, "resnext50_32x4d": 2, "resnext101_32x8d": 2,
            "resnext101_64x4d": 1, "wide_resnet50_2": 2, "wide_resnet101_2": 2,
        }.items()
    }  # fmt: skip
    keras = {net: n for (net, publisher), n in counts.items() if publisher == "keras"}
    assert keras == {"resnet50v2": 2, "resnet101v2": 2, "resnet152v2": 2}
    assert {name for _, name in PUBLISHED} == set(SHOWN)
    assert {net for net, _ in PUBLISHED} == set(DEFAULTS) <= set(SPECS)


# Net, name, licence, then top-1, top-5, size and crop_pct of each result.
FIGURES: list[tuple[str, str, str, list[tuple[float, float, int, float]]]] = [
    ("resnet18", V1, "bsd-3-clause", [(69.758, 89.078, 224, 0.875)]),
    ("resnet34", V1, "bsd-3-clause", [(73.314, 91.420, 224, 0.875)]),
    ("resnet50", V1, "bsd-3-clause", [(76.130, 92.862, 224, 0.875)]),
    ("resnet50", V2, "bsd-3-clause", [(80.858, 95.434, 224, 0.965)]),
    ("resnet152", V2, "bsd-3-clause", [(82.284, 96.002, 224, 0.965)]),
    ("resnet50", "timm/tv2_in1k", "bsd-3-clause",
     [(79.434, 94.640, 176, 0.875), (80.846, 95.430, 224, 0.965)]),
    ("resnet50", "timm/a1h_in1k", "apache-2.0",
     [(79.264, 94.498, 176, 0.9), (80.654, 95.312, 224, 1.0)]),
    ("resnet34", "timm/ra4_e3600_r224_in1k", "apache-2.0",
     [(77.492, 93.498, 224, 0.9), (78.972, 94.454, 288, 1.0)]),
    ("resnet34", "timm/bt_in1k", "apache-2.0",
     [(75.176, 92.166, 224, 0.875), (76.506, 93.342, 288, 0.95)]),
    ("resnet101", "timm/a3_in1k", "apache-2.0",
     [(77.928, 93.686, 160, 0.95), (79.836, 94.608, 224, 0.95)]),
    ("resnet152", "timm/a1h_in1k", "apache-2.0",
     [(82.818, 96.124, 224, 0.95), (83.494, 96.522, 288, 1.0)]),
    ("resnet18", "timm/fb_swsl_ig1b_ft_in1k", "cc-by-nc-4.0",
     [(73.286, 91.754, 224, 0.875)]),
    ("resnet50", "timm/gluon_in1k", "apache-2.0", [(77.580, 93.704, 224, 0.875)]),
    ("resnext50_32x4d", V2, "bsd-3-clause", [(81.198, 95.340, 224, 0.965)]),
    ("resnext50_32x4d", "timm/a3_in1k", "apache-2.0",
     [(77.734, 93.314, 160, 0.95), (79.252, 94.290, 224, 0.95)]),
    ("resnext50_32x4d", "timm/fb_swsl_ig1b_ft_in1k", "cc-by-nc-4.0",
     [(82.162, 96.224, 224, 0.875)]),
    ("resnext101_32x8d", "timm/fb_wsl_ig1b_ft_in1k", "cc-by-nc-4.0",
     [(82.698, 96.632, 224, 0.875)]),
    ("resnext101_64x4d", V1, "bsd-3-clause", [(83.246, 96.454, 224, 0.965)]),
    ("resnet10t", "timm/c3_in1k", "apache-2.0",
     [(66.71, 86.96, 176, 0.875), (68.358, 88.04, 224, 0.95)]),
    ("resnet50d", "timm/ra4_e3600_r224_in1k", "apache-2.0",
     [(80.952, 95.384, 224, 0.95), (81.838, 95.922, 288, 1.0)]),
    ("resnet152d", "timm/ra2_in1k", "apache-2.0",
     [(83.14, 96.38, 256, 0.95), (83.684, 96.74, 320, 1.0)]),
    ("resnet101v2", "keras/imagenet", "bsd-3-clause", [(77.2, 93.8, 224, 0.875)]),
    ("wide_resnet50_2", V1, "bsd-3-clause", [(78.468, 94.086, 224, 0.875)]),
    ("wide_resnet50_2", "timm/racm_in1k", "apache-2.0",
     [(81.488, 95.544, 224, 0.875), (82.266, 96.062, 288, 0.95)]),
]  # fmt: skip


@pytest.mark.parametrize(("net", "name", "licence", "results"), FIGURES)
def test_figures_are_the_publishers(
    net: str, name: str, licence: str, results: list[tuple[float, float, int, float]]
) -> None:
    row = PUBLISHED[net, name]
    assert row.licence == licence
    assert [(r.top1, r.top5, r.size, r.crop_pct) for r in row.results] == results


@every()
def test_a_row_agrees_with_itself(weights: PublishedWeights) -> None:
    first, *others = weights.results
    record = weights.preprocessing
    assert PUBLISHED[weights.variant, weights.name] is weights
    assert (first.size, first.crop_pct) == (record.eval_size, record.crop_pct)
    assert all(r.size > first.size for r in others)
    assert (first.top1 is None) == (
        weights.name == "keras/imagenet_notop"
        or (weights.variant, weights.name) == ("resnet18d", "timm/ra4_e3600_r224_in1k")
    )
    if first.top1 is None:
        assert all(r.top1 is r.top5 is None for r in weights.results)
        return
    told = [(r.top1, r.top5) for r in weights.results if r.top1 and r.top5]
    assert len(told) == len(weights.results)
    assert all(50 < top1 < top5 < 100 for top1, top5 in told)
    # A larger test size is told only because it is better.
    assert all(top1 > first.top1 for top1, _ in told[1:])
    assert weights.commercial == ("/fb_" not in weights.name)


@every()
def test_pictures_are_shown_as_the_publisher_says(weights: PublishedWeights) -> None:
    record = weights.preprocessing
    size, resized, interpolation = shown(weights)
    assert (record.eval_size, record.resize_size) == (size, resized)
    assert record.interpolation == interpolation
    recent = weights.name == V2 or weights.checksum == "173b62eb"
    assert record.train_size == (176 if recent else size)
    half = "ra4" in weights.name or weights.name.startswith("keras/")
    assert record.mean == ((0.5, 0.5, 0.5) if half else (0.485, 0.456, 0.406))
    assert record.std == ((0.5, 0.5, 0.5) if half else (0.229, 0.224, 0.225))


@every("torchvision/")
def test_a_file_name_carries_its_hash(weights: PublishedWeights) -> None:
    prefix = "https://download.pytorch.org/models/"
    assert weights.checksum is not None
    assert re.fullmatch("[0-9a-f]{8}", weights.checksum)
    assert weights.address == f"{prefix}{weights.variant}-{weights.checksum}.pth"


@every("keras/")
def test_keras_says_the_same(weights: PublishedWeights) -> None:
    resnet = importlib.import_module("keras.src.applications.resnet")
    part = weights.name.removeprefix("keras/imagenet")
    file = f"{weights.variant}_weights_tf_dim_ordering_tf_kernels{part}.h5"
    assert weights.address == resnet.BASE_WEIGHTS_PATH + file
    hashes = resnet.WEIGHTS_HASHES[weights.variant]
    assert weights.checksum == f"md5:{hashes[bool(part)]}"
    pixels = np.random.default_rng(0).uniform(0, 255, (1, 8, 8, 3))
    theirs = keras.applications.resnet_v2.preprocess_input(pixels.copy())
    ours = weights.preprocessing.normalise(pixels.astype(np.float32))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_addresses_are_known_ones_and_all_different() -> None:
    assert len({row.address for row in PUBLISHED.values()}) == len(PUBLISHED)
    torchvision = [row for row in PUBLISHED.values() if row.name in (V1, V2)]
    files = {row.checksum for row in torchvision}
    assert files == {
        "f37072fd", "b627a593", "0676ba61", "11ad3fa6",
        "63fe2227", "cd907fc2", "394f9c45", "f82ba261",
        "7cdf4587", "1a0047aa", "95faca4d", "9ba9bcbe",
        "8ba56ff5", "110c445d", "173b62eb", "32ee1156", "d733dc28",
    }  # fmt: skip
    ra4 = PUBLISHED["resnet34", "timm/ra4_e3600_r224_in1k"]
    assert ra4.address == "hf://timm/resnet34.ra4_e3600_r224_in1k"
    assert ra4.checksum is None


@every()
def test_preparation_is_resize_and_centre_crop(
    weights: PublishedWeights, photographs: list[Image.Image]
) -> None:
    for image in photographs:
        expected = resized_and_cropped(image, *shown(weights)).astype(int)
        given = weights.preprocessing.prepare(image).astype(int)
        assert given.shape == expected.shape
        assert np.abs(given - expected).max() <= 1


def difference_in_grey_levels(weights: PublishedWeights, image: Any, out: Any) -> float:
    """Compare our input of the net with a publisher's `(3, height, width)` one."""
    record = weights.preprocessing
    ours = record.normalise(record.prepare(image).astype(np.float32))
    theirs = np.asarray(out).transpose(1, 2, 0)
    assert ours.shape == theirs.shape
    return float((np.abs(ours - theirs) * np.array(record.std)).max() * 255)


@every("torchvision/")
def test_torchvision_says_and_does_the_same(
    weights: PublishedWeights, photographs: list[Image.Image]
) -> None:
    models = import_torchvision().models
    version = weights.name.removeprefix("torchvision/")
    theirs = models.get_model_weights(weights.variant)[version]
    metrics = theirs.meta["_metrics"]["ImageNet-1K"]
    assert weights.address == theirs.url
    assert weights.results[0].top1 == metrics["acc@1"]
    assert weights.results[0].top5 == metrics["acc@5"]
    for image in photographs:
        out = theirs.transforms()(image)
        assert difference_in_grey_levels(weights, image, out) < 1.001


@every("timm/")
def test_timm_says_and_does_the_same(
    weights: PublishedWeights, photographs: list[Image.Image]
) -> None:
    import_timm()
    models = pytest.importorskip("timm.models", reason=REASON)
    data = pytest.importorskip("timm.data", reason=REASON)
    tag = weights.name.removeprefix("timm/")
    theirs = models.get_pretrained_cfg(f"{weights.variant}.{tag}")
    assert weights.address == f"hf://{theirs.hf_hub_id}"
    assert weights.licence == theirs.license
    larger = [(r.size, r.crop_pct) for r in weights.results[1:]]
    expected = (theirs.test_input_size or (0, 0, 0))[1], theirs.test_crop_pct
    assert larger == ([expected] if expected[0] else [])
    config = data.resolve_data_config(
        pretrained_cfg=theirs.to_dict(), use_test_size=False
    )
    transform = data.create_transform(**config)
    for image in photographs:
        assert difference_in_grey_levels(weights, image, transform(image)) < 1.001


@pytest.mark.parametrize("net", SPECS)
def test_the_table_holds_all_that_torchvision_and_timm_list(net: str) -> None:
    models, timm = import_torchvision().models, import_timm()
    names: list[str] = []
    if net in models.list_models():
        theirs = models.get_model_weights(net)
        names = [f"torchvision/{version.name}" for version in theirs]
        assert DEFAULTS[net] == f"torchvision/{theirs.DEFAULT.name}"
    tags = [tag.removeprefix(f"{net}.") for tag in timm.list_pretrained(f"{net}.*")]
    if tags and not names:
        assert DEFAULTS[net] == f"timm/{timm.get_pretrained_cfg(net).tag}"
    ours = {name for name in published_names(net) if not name.startswith("keras/")}
    assert ours == {*names, *(f"timm/{tag}" for tag in tags)} - {"timm/bamboo"}


@pytest.mark.parametrize(
    ("net", "name"),
    [("resnet18", V1), ("resnet34", V1), ("resnet50", V2), ("resnet101", V2),
     ("resnet152", V2), ("resnext50_32x4d", V2), ("wide_resnet50_2", V2),
     ("resnext101_64x4d", V1), ("resnet50d", "timm/ra2_in1k"),
     ("resnet152v2", "keras/imagenet")],
)  # fmt: skip
def test_imagenet_means_the_publishers_default(net: str, name: str) -> None:
    assert find_published(net, "imagenet") is PUBLISHED[net, name]
    assert find_published(net, name) is PUBLISHED[net, name]


def test_names_are_those_of_one_net() -> None:
    assert published_names("resnet34") == [
        V1, "timm/a1_in1k", "timm/a2_in1k", "timm/a3_in1k", "timm/bt_in1k",
        "timm/ra4_e3600_r224_in1k", "timm/tv_in1k", "timm/gluon_in1k",
    ]  # fmt: skip
    assert published_names("resnet20") == []


def test_an_unknown_name_tells_the_nearest_ones() -> None:
    with pytest.raises(
        reszoo.UnknownNameError,
        match=r"Unknown weights for resnet50 'timm/a1_ink'. Did you mean 'timm/a1_"
        r"in1k'.* Known: imagenet, torchvision/IMAGENET1K_V2, ",
    ):
        find_published("resnet50", "timm/a1_ink")
    with pytest.raises(reszoo.UnknownNameError, match="weights for resnet18"):
        find_published("resnet18", V2)


def test_a_net_without_published_weights_is_told_which_have_some() -> None:
    with pytest.raises(
        reszoo.UsageError,
        match=r"published for resnet18, .*, resnet152v2. Received: 'resnet20'; p",
    ):
        find_published("resnet20", "imagenet")


def test_noncommercial_weights_must_be_asked_for() -> None:
    name = "timm/fb_swsl_ig1b_ft_in1k"
    with pytest.raises(
        reszoo.UsageError,
        match=r"has the licence cc-by-nc-4.0, which forbids "
        r".*allow_noncommercial=True if",
    ):
        find_published("resnet50", name)
    allowed = find_published("resnet50", name, allow_noncommercial=True)
    assert allowed is PUBLISHED["resnet50", name]
    tags = ("fb_ssl_yfcc100m_ft_in1k", "fb_swsl_ig1b_ft_in1k")
    nets = ("resnet18", "resnet50", "resnext50_32x4d", "resnext101_32x8d")
    assert [key for key, row in PUBLISHED.items() if not row.commercial] == [
        *((net, f"timm/{tag}") for net in nets for tag in tags),
        ("resnext101_32x8d", "timm/fb_wsl_ig1b_ft_in1k"),
    ]


def test_the_listing_is_plain_json() -> None:
    rows = table_rows()
    assert json.loads(json.dumps(rows)) == rows
    assert [(row["model"], row["weights"]) for row in rows] == list(PUBLISHED)
    assert {row["model"]: row["weights"] for row in rows if row["default"]} == DEFAULTS
    assert rows[list(PUBLISHED).index(("resnet50", "timm/a3_in1k"))] == {
        "model": "resnet50",
        "weights": "timm/a3_in1k",
        "default": False,
        "top1": 75.994,
        "top5": 92.494,
        "at": 160,
        "licence": "apache-2.0",
        "commercial": True,
        "address": "hf://timm/resnet50.a3_in1k",
    }


def test_the_classes_are_imagenets() -> None:
    names = imagenet_labels()
    assert len(names) == 1000
    # Folders named after them must differ where case does not count.
    assert len({name.lower() for name in names}) == 1000
    assert all(name == name.strip() != "" for name in names)
    known = {0: "tench", 1: "goldfish", 207: "golden retriever", 281: "tabby",
             282: "tiger cat", 409: "analog clock", 508: "computer keyboard",
             817: "sports car", 963: "pizza", 999: "toilet tissue"}  # fmt: skip
    assert {index: names[index] for index in known} == known


def test_classes_of_one_name_tell_which_is_meant() -> None:
    names = imagenet_labels()
    assert (names[134], names[517]) == ("crane (bird)", "crane (machine)")
    assert (names[638], names[639]) == ("maillot (tights)", "maillot (tank suit)")
    assert (names[264], names[474]) == ("Cardigan (dog)", "cardigan (garment)")


def test_class_names_are_among_wordnets_for_their_place() -> None:
    import_timm()
    data = pytest.importorskip("timm.data", reason=REASON)
    info = data.ImageNetInfo("imagenet1k")
    for index, name in enumerate(imagenet_labels()):
        lemmas = info.index_to_description(index).lower().split(", ")
        assert name.lower().split(" (")[0] in lemmas


def test_reading_the_table_loads_nothing_heavy() -> None:
    code = (
        "import sys, reszoo.weights.published as published\n"
        "published.imagenet_labels()\n"
        "print({'keras', 'tensorflow', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
