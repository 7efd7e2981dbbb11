"""The exports that are kept in the repository are what their manifest says."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reszoo
from reszoo_export.manifest import size_and_hash

FOLDER = Path(__file__).parents[1] / "saved_models/resnet20-cifar10"
ROWS = json.loads((FOLDER / "manifest.json").read_text())["files"]
NAMES = [row["format"] for row in ROWS]


def test_all_formats_that_people_ask_for_first_are_there() -> None:
    assert NAMES == ["saved_model", "tflite", "tflite-int8", "onnx"]


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_a_file_is_the_one_that_was_verified(row: dict[str, Any]) -> None:
    assert size_and_hash(FOLDER / row["file"]) == (row["bytes"], row["sha256"])


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_a_file_answers_as_the_bundled_net(row: dict[str, Any]) -> None:
    # Smooth noise: single pixels would be unlike anything that was calibrated.
    coarse = np.random.default_rng(3).uniform(0, 255, (8, 4, 4, 3))
    images = np.kron(coarse, np.ones((1, 8, 8, 1))).astype(np.uint8)
    expected = reszoo.Predictor(reszoo.build("resnet20", weights="cifar10"))
    answers = reszoo.Predictor(FOLDER / row["file"])
    assert answers.labels == expected.labels
    difference = np.abs(answers.predict(images) - expected.predict(images)).max()
    assert difference < (0.2 if "int8" in row["format"] else 1e-5)
