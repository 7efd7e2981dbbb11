"""`reszoo check-weights`, with weights from a server on this machine."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import randomise
from loopback import Site, serve
from PIL import Image
from typer.testing import CliRunner

import reszoo
from reszoo.cli.options import app
from reszoo.weights import published, safetensors
from reszoo.weights.figures import Result

VARIANT, NAME = "resnet18", "torchvision/IMAGENET1K_V1"
CLASSES, SIDE = 1000, 8


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Tensors without a card, as publishers write them."""
    model = randomise(reszoo.build(VARIANT, classes=CLASSES, seed=0))
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    reszoo.save(model, path)
    tensors, _ = safetensors.read(path)
    safetensors.write(path, tensors)
    return path.read_bytes()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imagenet")
    draw = np.random.default_rng(0)
    for number in range(CLASSES):
        (folder / f"n{number:08}").mkdir()
        for name in ("0.png", "1.png"):
            pixels = draw.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"n{number:08}" / name)
    return folder


@pytest.fixture
def table(
    home: Path, weights: bytes, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Site, Any]]:
    """The table of published weights, with two rows, of which one is not there."""
    row = published.PUBLISHED[VARIANT, NAME]
    shown = replace(row.preprocessing, eval_size=SIDE, crop_pct=1.0)
    with serve() as site:
        site.files["/net.safetensors"] = weights
        made = replace(
            row,
            address=f"{site.url}/net.safetensors",
            checksum=None,
            preprocessing=shown,
            results=(Result(SIDE, 1.0, 0.1, 0.5),),
        )
        missing = replace(made, name="torchvision/NONE", address=f"{site.url}/none.pth")
        rows = {(VARIANT, each.name): each for each in (made, missing)}
        monkeypatch.setattr(published, "PUBLISHED", rows)
        yield site, rows


def _run(*options: str) -> Any:
    return CliRunner().invoke(app, ["check-weights", *options])


@pytest.mark.slow
def test_published_and_measured_accuracy_stand_side_by_side(
    table: Any, images: Path, weights: bytes, tmp_path: Path
) -> None:
    site, rows = table
    expected = tmp_path / "net.safetensors"
    expected.write_bytes(weights)
    model = reszoo.build(VARIANT, weights=NAME)
    examples = sorted(images.glob("*/*.png"))
    answers = reszoo.Predictor(model).predict(examples)
    order = np.argsort(-answers, axis=1, kind="stable")
    targets = np.repeat(np.arange(CLASSES), 2)[:, None]
    top1, top5 = (100 * (order[:, :k] == targets).any(1).mean() for k in (1, 5))
    rows[VARIANT, NAME] = replace(
        rows[VARIANT, NAME], results=(Result(SIDE, 1.0, top1 - 0.2, top5 + 0.2),)
    )
    done = _run(f"{VARIANT}/{NAME}", "--images", str(images), "--json")
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)
    assert (row["top1"], row["top5"]) == (pytest.approx(top1), pytest.approx(top5))
    assert row["images"] == 2 * CLASSES
    assert site.gets()
    # Beyond the tolerance, and where there is nothing to measure.
    rows[VARIANT, NAME] = replace(
        rows[VARIANT, NAME], results=(Result(SIDE, 1.0, top1 + 0.4, top5),)
    )
    done = _run("resnet18", "--images", str(images))
    assert done.exit_code == 1
    assert f"{top1 + 0.4:.2f} %" in done.stdout
    assert f"{top1:.2f} %" in done.stdout
    assert "differs" in done.stdout
    assert "404" in done.stdout


def test_other_folders_and_unknown_names_are_refused(table: Any, folder: Path) -> None:
    with pytest.raises(reszoo.DataError, match=r"n01440764. Received: 2 classes"):
        reszoo.check_weights(images=folder)
    with pytest.raises(reszoo.UnknownNameError, match="resnet77"):
        reszoo.check_weights("resnet77", images=folder)


def test_noncommercial_weights_need_consent(
    table: Any, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, rows = table
    for key, row in rows.items():
        rows[key] = replace(row, licence="cc-by-nc-4.0")
    assert not [*reszoo.check_weights(images=images)]
    assert "2 weights whose licence forbids" in capsys.readouterr().err
