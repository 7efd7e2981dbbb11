"""The table of published weights, beside its publishers' own code and figures."""

import json
import re
import subprocess
import sys
from collections import Counter
from typing import Any

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
}
# The one tag that was trained at another size for one of the nets.
SHOWN_RESNET50_A1H = (176, 195, "bicubic")


def every(publisher: str = "") -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "weights",
        [row for row in PUBLISHED.values() if row.name.startswith(publisher)],
        ids=lambda row: f"{row.variant}.{row.name}",
    )


def shown(weights: PublishedWeights) -> tuple[int, int, str]:
    if (weights.variant, weights.name) == ("resnet50", "timm/a1h_in1k"):
        return SHOWN_RESNET50_A1H
    return SHOWN[weights.name]


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
    assert counts == {
        ("resnet18", "torchvision"): 1,
        ("resnet18", "timm"): 7,
        ("resnet34", "torchvision"): 1,
        ("resnet34", "timm"): 7,
        ("resnet50", "torchvision"): 2,
        ("resnet50", "timm"): 18,
        ("resnet101", "torchvision"): 2,
        ("resnet101", "timm"): 7,
        ("resnet152", "torchvision"): 2,
        ("resnet152", "timm"): 7,
        ("resnext50_32x4d", "torchvision"): 2,
        ("resnext50_32x4d", "timm"): 10,
        ("wide_resnet50_2", "torchvision"): 2,
        ("wide_resnet50_2", "timm"): 3,
    }
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
    assert all(50 < result.top1 < result.top5 < 100 for result in weights.results)
    # A larger test size is told only because it is better.
    assert all(r.size > first.size and r.top1 > first.top1 for r in others)
    assert weights.commercial == ("/fb_" not in weights.name)


@every()
def test_pictures_are_shown_as_the_publisher_says(weights: PublishedWeights) -> None:
    record = weights.preprocessing
    size, resized, interpolation = shown(weights)
    assert (record.eval_size, record.resize_size) == (size, resized)
    assert record.interpolation == interpolation
    assert record.train_size == (176 if weights.name == V2 else size)
    half = "ra4" in weights.name
    assert record.mean == ((0.5, 0.5, 0.5) if half else (0.485, 0.456, 0.406))
    assert record.std == ((0.5, 0.5, 0.5) if half else (0.229, 0.224, 0.225))


@every("torchvision/")
def test_a_file_name_carries_its_hash(weights: PublishedWeights) -> None:
    prefix = "https://download.pytorch.org/models/"
    assert weights.sha256 is not None
    assert re.fullmatch("[0-9a-f]{8}", weights.sha256)
    assert weights.address == f"{prefix}{weights.variant}-{weights.sha256}.pth"


def test_addresses_are_known_ones_and_all_different() -> None:
    assert len({row.address for row in PUBLISHED.values()}) == len(PUBLISHED)
    files = {row.sha256 for row in PUBLISHED.values() if row.sha256}
    assert files == {
        "f37072fd", "b627a593", "0676ba61", "11ad3fa6",
        "63fe2227", "cd907fc2", "394f9c45", "f82ba261",
        "7cdf4587", "1a0047aa", "95faca4d", "9ba9bcbe",
    }  # fmt: skip
    ra4 = PUBLISHED["resnet34", "timm/ra4_e3600_r224_in1k"]
    assert ra4.address == "hf://timm/resnet34.ra4_e3600_r224_in1k"
    assert ra4.sha256 is None


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


@pytest.mark.parametrize("net", DEFAULTS)
def test_the_table_holds_all_that_torchvision_and_timm_list(net: str) -> None:
    models, timm = import_torchvision().models, import_timm()
    theirs = models.get_model_weights(net)
    names = {f"torchvision/{version.name}" for version in theirs}
    tags = timm.list_pretrained(f"{net}.*")
    names |= {f"timm/{tag.removeprefix(f'{net}.')}" for tag in tags}
    assert set(published_names(net)) == names - {"timm/bamboo"}
    assert DEFAULTS[net] == f"torchvision/{theirs.DEFAULT.name}"


@pytest.mark.parametrize(
    ("net", "name"),
    [("resnet18", V1), ("resnet34", V1), ("resnet50", V2), ("resnet101", V2),
     ("resnet152", V2), ("resnext50_32x4d", V2), ("wide_resnet50_2", V2)],
)  # fmt: skip
def test_imagenet_means_torchvisions_default(net: str, name: str) -> None:
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
        r"in1k'.* Known: imagenet, torchvision/IMAGENET1K_V1, ",
    ):
        find_published("resnet50", "timm/a1_ink")
    with pytest.raises(reszoo.UnknownNameError, match="weights for resnet18"):
        find_published("resnet18", V2)


def test_a_net_without_published_weights_is_told_which_have_some() -> None:
    with pytest.raises(
        reszoo.UsageError,
        match=r"published for resnet18, .*, wide_resnet50_2. Received: 'resnet20'; p",
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
    assert [key for key, row in PUBLISHED.items() if not row.commercial] == [
        (net, f"timm/{tag}")
        for net in ("resnet18", "resnet50", "resnext50_32x4d")
        for tag in ("fb_ssl_yfcc100m_ft_in1k", "fb_swsl_ig1b_ft_in1k")
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
