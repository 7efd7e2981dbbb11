"""The weights inside the package: there without a network, with an honest card."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import reszoo
from reszoo.metrics import probabilities
from reszoo.weights.location import BUNDLED, locate

ARCHIVE = Path(__file__).parents[2] / "shared/data/cifar10-jpeg.tar.xz"
FLOORS = {"resnet20": 0.88, "resnet32": 0.89}
FILES = [(name, net) for name, files in BUNDLED.items() for net in files]


@pytest.mark.parametrize(("name", "net"), FILES)
def test_its_card_tells_what_it_is(name: str, net: str) -> None:
    path = locate(name, net).path
    assert path.stat().st_size < 4_000_000
    model = reszoo.build(net, weights=name)
    card = reszoo.card(model)
    assert card.labels is not None
    assert (card.labels[0], len(card.labels)) == ("airplane", 10)
    assert card.provenance["data"] == "CIFAR-10 (JPEG)"
    command = card.provenance["command"]
    assert f"--model {net} --recipe cifar" in command
    # A run that began with weights tells where those come from: all steps or none.
    assert command.count("--weights") == command.count("&&")
    assert "runs/" not in str(card.provenance)
    assert ".data" not in str(card.provenance)
    (top1,) = [metric for metric in card.metrics if metric.name == "top1"]
    assert top1.value >= FLOORS[net]
    assert top1.data.endswith("10,000 test images")


@pytest.fixture(scope="module")
def tested() -> tuple[Any, list[str]]:
    """The 10,000 test images of the archive, and their classes."""
    if not ARCHIVE.exists():
        pytest.skip("the CIFAR-10 (JPEG) archive is away")
    pixels, classes = [], []
    with tarfile.open(ARCHIVE) as archive:
        for member in archive:
            parts = Path(member.name).parts
            if "test" in parts and member.isfile():
                content = archive.extractfile(member)
                assert content is not None
                pixels.append(np.asarray(Image.open(io.BytesIO(content.read()))))
                classes.append(parts[-2])
    return np.stack(pixels), classes


@pytest.mark.slow
@pytest.mark.parametrize(("name", "net"), FILES)
def test_it_is_as_good_as_its_card_says(name: str, net: str, tested: Any) -> None:
    pixels, classes = tested
    model = reszoo.build(net, weights=name)
    card = reszoo.card(model)
    assert card.labels is not None
    labels = np.array([card.labels.index(each) for each in classes])
    answers = probabilities(model, card.preprocessing, pixels)
    top1 = float((answers.argmax(-1) == labels).mean())
    (told,) = [metric.value for metric in card.metrics if metric.name == "top1"]
    # Another decoder of JPEG may move single images.
    assert abs(top1 - told) < 0.002


@pytest.mark.slow
def test_the_default_recipe_fits_it_to_images_of_another_world() -> None:
    """With frozen batch normalisation the whole net collapsed on these scans."""
    tuned = reszoo.train(
        "resnet20", "digits", weights="cifar10", head_epochs=1, epochs=2
    )
    head, *_, last = [row.validation_top1 or 0 for row in tuned.history]
    assert last > max(0.9, head)


def test_other_nets_have_none() -> None:
    told = r"comes with reszoo for resnet20, resnet32.*Received: 'resnet50'"
    with pytest.raises(reszoo.UsageError, match=told):
        reszoo.build("resnet50", weights="cifar10")


def test_it_begins_a_fine_tuning_with_a_fresh_head() -> None:
    model = reszoo.build("resnet20", weights="cifar10", classes=["cat", "dog"])
    report = reszoo.load_report(model)
    assert report is not None
    assert report.head == (10, 2)
    bundled = reszoo.build("resnet20", weights="cifar10")
    kernel = [net.get_layer("layer3.2.conv2").kernel.value for net in (model, bundled)]
    np.testing.assert_array_equal(*kernel)
