"""Answering "unknown" below thresholds of the card."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_cam import images
from test_confidence import CONFIDENCE, own_logits, tiny

import reszoo
from reszoo.metrics import softmax
from reszoo_export.formats import FORMATS, ExportOptions
from reszoo_export.serving import make_serving


def thresholds(model: Any, pixels: Any) -> Any:
    """Thresholds between the second and the third largest score of five images."""
    logits = own_logits(model, pixels) / CONFIDENCE.temperature
    sides = [
        float(np.sort(each)[2:4].mean())
        for each in (logits.max(1), softmax(logits).max(1))
    ]
    return logits, replace(CONFIDENCE, min_logit=sides[0], min_probability=sides[1])


@pytest.mark.parametrize("outputs", [None, "probabilities"])
def test_images_below_the_threshold_are_unknown(outputs: Any, tmp_path: Path) -> None:
    pixels = images()
    logits, confidence = thresholds(tiny(), pixels)
    model = tiny(confidence)
    serving = make_serving(model, ExportOptions(outputs=outputs))
    FORMATS["onnx"].write(serving, tmp_path / "model.onnx", None)
    predictor = reszoo.Predictor(tmp_path / "model.onnx")
    shares = softmax(logits)
    # Files with logits are judged by these, others by probabilities.
    known = logits.max(1) >= confidence.min_logit
    if outputs:
        known = shares.max(1) >= confidence.min_probability
        with pytest.raises(reszoo.UsageError, match="needs an output 'logits'"):
            predictor.logits(pixels)
    assert known.sum() == 2
    for image, is_known, share in zip(pixels, known, shares, strict=True):
        ((label, probability),) = predictor.top(image, 1, unknown=True)
        assert label == ("abc"[share.argmax()] if is_known else "unknown")
        assert probability == pytest.approx(share.max(), abs=1e-5)
        assert predictor.top(image, 1)[0][0] == "abc"[share.argmax()]
        assert len(predictor.top(image, 3, unknown=True)) == (3 if is_known else 1)


def test_files_of_answers_have_unknown_images(tmp_path: Path) -> None:
    pixels = images()
    logits, confidence = thresholds(tiny(), pixels)
    path = reszoo.save(tiny(confidence), tmp_path / "tiny.safetensors")
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    (tmp_path / "5.png").write_bytes(b"none")
    inputs = [tmp_path / f"{index}.png" for index in range(6)]
    reszoo.predict_files(path, inputs, tmp_path / "a.csv", top=2, unknown=True)
    with (tmp_path / "a.csv").open() as file:
        rows = list(csv.DictReader(file))
    known = logits.max(1) >= confidence.min_logit
    for row, is_known, own in zip(rows[:5], known, logits, strict=True):
        assert (row["label"] == "unknown") == (not is_known)
        assert bool(row["label_2"]) == is_known
        assert float(row["probability"]) == pytest.approx(
            softmax(own[None]).max(), 1e-4
        )
    assert rows[5]["error"]


def test_unknown_needs_thresholds() -> None:
    predictor = reszoo.Predictor(tiny(None))
    with pytest.raises(reszoo.UsageError, match="run reszoo calibrate on the"):
        predictor.top(images()[0], unknown=True)
