"""From a name to the publisher's own net: weights, labels, preprocessing, licence."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import randomise
from loopback import Site, serve
from safetensors.numpy import save
from torch_writer import Writer, mapping

import reszoo
from reszoo.weights.names import to_tensors
from reszoo.weights.published import (
    DEFAULTS,
    PUBLISHED,
    find_published,
    imagenet_labels,
)

pytestmark = pytest.mark.usefixtures("home")
NET, NAME = "resnet18", "torchvision/IMAGENET1K_V1"


@pytest.fixture
def site() -> Iterator[Site]:
    with serve() as running:
        yield running


@pytest.fixture(scope="module")
def tensors() -> Any:
    return to_tensors(randomise(reszoo.build(NET, seed=0), seed=4))


@pytest.fixture
def served(
    site: Site, tensors: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Site:
    """A server that has our weights where torchvision's table has its own."""
    writer = Writer("zip")
    entries = {
        name: writer.tensor(value, "LongStorage" if value.ndim == 0 else "FloatStorage")
        for name, value in tensors.items()
    }
    content = writer.write(tmp_path / "w.pth", mapping(**entries)).read_bytes()
    site.files["/models/resnet18.pth"] = content
    row = replace(
        PUBLISHED[NET, NAME],
        address=f"{site.url}/models/resnet18.pth",
        checksum=hashlib.sha256(content).hexdigest()[:8],
    )
    monkeypatch.setitem(PUBLISHED, (NET, NAME), row)
    return site


def holds(model: Any, tensors: Any) -> bool:
    found = to_tensors(model)
    return all(np.array_equal(found[name], tensors[name]) for name in tensors)


def test_imagenet_is_the_publishers_net_with_all_that_is_known(
    served: Site, tensors: Any
) -> None:
    assert DEFAULTS[NET] == NAME
    model = reszoo.build(NET, weights="imagenet")
    assert holds(model, tensors)
    card = reszoo.card(model)
    assert card.labels == imagenet_labels()
    assert card.preprocessing == find_published(NET, NAME).preprocessing
    assert card.preprocessing.resize_size == 256
    assert card.provenance["licence"] == "bsd-3-clause"
    measured = {metric.name: metric.value for metric in card.metrics}
    assert measured == {"top1": 0.69758, "top5": 0.89078}
    assert "224 px, as published" in card.metrics[0].data


def test_the_cache_answers_without_a_server(served: Site, tensors: Any) -> None:
    reszoo.build(NET, weights=NAME)
    asked = len(served.asked)
    served.stop()
    assert holds(reszoo.build(NET, weights="imagenet"), tensors)
    assert len(served.asked) == asked


def test_a_fresh_head_says_nothing_of_imagenet(served: Site) -> None:
    model = reszoo.build(NET, weights="imagenet", classes=["cat", "dog"])
    card = reszoo.card(model)
    assert card.labels == ("cat", "dog")
    assert card.metrics == ()
    assert card.provenance["licence"] == "bsd-3-clause"


def test_weights_that_are_not_the_publishers_are_refused(
    served: Site, home: Path
) -> None:
    served.damaged = 5000
    with pytest.raises(reszoo.CheckpointError, match=r"sha256|SHA-256|hash"):
        reszoo.build(NET, weights="imagenet")
    assert not [path for path in home.rglob("*") if path.is_file()]


def test_a_url_is_weights_too(served: Site, tensors: Any) -> None:
    model = reszoo.load(f"{served.url}/models/resnet18.pth")
    assert holds(model, tensors)
    card = reszoo.card(model)
    assert card.labels is None
    assert card.provenance == {"source": f"{served.url}/models/resnet18.pth"}


def test_a_url_of_safetensors_is_read_by_its_content(site: Site, tensors: Any) -> None:
    site.files["/download"] = save(tensors)
    assert holds(reszoo.load(f"{site.url}/download"), tensors)


def test_non_commercial_weights_want_consent() -> None:
    with pytest.raises(reszoo.UsageError, match=r"cc-by-nc-4\.0.*allow_noncommercial"):
        reszoo.build("resnet18", weights="timm/fb_ssl_yfcc100m_ft_in1k")


def test_a_net_without_published_weights_says_so() -> None:
    with pytest.raises(reszoo.UsageError, match=r"resnet20"):
        reszoo.build("resnet20", weights="imagenet")
    with pytest.raises(reszoo.UnknownNameError, match=r"'timm/a1_in1k'"):
        reszoo.build("resnet50", weights="timm/a1_in1l")


@pytest.mark.parametrize(
    ("asked", "index"),
    [
        ("ckpt", "ckpt.index"),
        ("model.ckpt", "model.ckpt.index"),
        (".", "model.safetensors.index.json"),
        (".", "pytorch_model.bin.index.json"),
    ],
)
def test_weights_in_parts_are_refused_as_such(
    asked: str, index: str, tmp_path: Path
) -> None:
    (tmp_path / index).write_bytes(b"{}")
    with pytest.raises(
        reszoo.CheckpointError, match=rf"in parts that {index} lists\. "
    ):
        reszoo.load(tmp_path / asked)
    # What is whole is read, whatever lies beside it.
    path = reszoo.save(reszoo.build("resnet8"), tmp_path / "model.safetensors")
    assert reszoo.load(path.parent).name == "resnet8"


def test_a_disk_that_fails_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "model.safetensors"
    broken.symlink_to("/proc/self/mem")  # its first byte is an EIO
    with pytest.raises(reszoo.CheckpointError, match=r"cannot be read \(Input/output"):
        reszoo.load(broken)
    assert broken.is_symlink()
