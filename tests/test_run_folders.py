"""A run folder is accepted wherever a checkpoint is: its best checkpoint is loaded."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reszoo
from reszoo_export.metadata import licence


@pytest.fixture
def folder(run: Any) -> Path:
    found = Path(run.best).parent
    assert found.is_dir()
    return found


def test_it_is_loaded_converted_and_trained_on(folder: Path, run: Any) -> None:
    model = reszoo.load(folder)
    assert reszoo.card(model) == reszoo.card(reszoo.load(run.best))
    spec = reszoo.card(model).resnet.spec
    again = reszoo.build(spec, weights=folder, input_shape=(28, 28, 3))
    assert reszoo.card(again).labels == reszoo.card(model).labels


def test_it_is_predicted_with_evaluated_and_described(folder: Path, run: Any) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    found = [repr(reszoo.Predictor(x).predict(image)) for x in (folder, run.best)]
    assert found[0] == found[1]
    described = reszoo.inspect(folder)
    assert described.kind == "checkpoint"
    assert described.card == reszoo.inspect(run.best).card
    assert described.sha256 == reszoo.inspect(run.best).sha256
    measured = [reszoo.evaluate(path, "digits").top1 for path in (folder, run.best)]
    assert measured[0] == measured[1]


def test_it_is_exported(folder: Path, tmp_path: Path) -> None:
    manifest = reszoo.export(folder, tmp_path / "export", formats="tflite")
    assert manifest.card.labels == reszoo.card(reszoo.load(folder)).labels


def test_a_folder_without_a_checkpoint_says_what_was_expected(
    folder: Path, tmp_path: Path
) -> None:
    shutil.copy(folder / "history.csv", tmp_path)
    with pytest.raises(reszoo.CheckpointError, match=r"one of best\.safetens"):
        reszoo.load(tmp_path)


def test_the_licence_of_initial_weights_is_that_of_trained_ones(run: Any) -> None:
    card = reszoo.card(reszoo.load(run.best))
    inside = {**card.provenance, "weights": {"licence": "apache-2.0"}}
    assert licence(replace(card, provenance=inside)) == "apache-2.0"
    both = {**inside, "licence": "bsd-3-clause"}
    assert licence(replace(card, provenance=both)) == "apache-2.0, bsd-3-clause"
