"""MediaPipe's ImageClassifier opens our files as they are."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import randomise
from made_card import made_card
from PIL import Image
from tiny import RESNET8

import reszoo
from reszoo.cards import Confidence
from reszoo.zoo import set_card
from reszoo_export.inspection import TensorDescription
from reszoo_export.manifest import read_manifest
from reszoo_export.snippets import write_snippets
from reszoo_export.tflite.flatbuffer import model_metadata

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mediapipe") is None,
    reason="runs MediaPipe's classifier; pip install mediapipe to run it",
)
# A process of its own: MediaPipe brings another TensorFlow Lite, and talks a lot.
_CLASSIFY = """
import json
import sys

import numpy as np
from mediapipe import Image, ImageFormat
from mediapipe.tasks.python import BaseOptions
from mediapipe.tasks.python.vision import ImageClassifier, ImageClassifierOptions

path, images = sys.argv[1], np.load(sys.argv[2])
options = ImageClassifierOptions(base_options=BaseOptions(model_asset_path=path))
answers = []
with ImageClassifier.create_from_options(options) as classifier:
    for image in images:
        picture = Image(image_format=ImageFormat.SRGB, data=image)
        found = classifier.classify(picture).classifications[0].categories
        answers.append([(one.index, one.category_name, one.score) for one in found])
print(json.dumps(answers))
"""
_DESCRIBE = """
import json
import sys

from mediapipe.tasks.metadata import metadata_schema_py_generated as schema

text = open(sys.argv[1], "rb").read()
model = schema.ModelMetadata.GetRootAs(text, 0)
graph = model.SubgraphMetadata(0)
image, answer = graph.InputTensorMetadata(0), graph.OutputTensorMetadata(0)
content = schema.ImageProperties()
union = image.Content().ContentProperties()
content.Init(union.Bytes, union.Pos)
scaling = schema.NormalizationOptions()
union = image.ProcessUnits(0).Options()
scaling.Init(union.Bytes, union.Pos)
file = answer.AssociatedFiles(0)
print(json.dumps({
    "identified": schema.ModelMetadata.ModelMetadataBufferHasIdentifier(text, 0),
    "model": [
        model.Name().decode(),
        model.License().decode(),
        model.MinParserVersion().decode(),
    ],
    "image": [
        image.Name().decode(),
        image.Content().ContentPropertiesType(),
        content.ColorSpace(),
        content.DefaultSize().Width(),
        content.DefaultSize().Height(),
        image.ProcessUnits(0).OptionsType(),
        list(scaling.MeanAsNumpy()),
        list(scaling.StdAsNumpy()),
        list(image.Stats().MinAsNumpy()),
        list(image.Stats().MaxAsNumpy()),
    ],
    "answer": [
        answer.Name().decode(),
        answer.Content().ContentPropertiesType(),
        list(answer.Stats().MaxAsNumpy()),
        file.Name().decode(),
        file.Type(),
        answer.AssociatedFilesLength(),
    ],
}, default=float))
"""


def _run(program: str, *arguments: object) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "GLOG_minloglevel": "2"},
    )
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("name", "tolerance"), [("model.tflite", 1e-5), ("model-int8.tflite", 1e-6)]
)
def test_its_classifier_gives_our_labels_and_scores(
    exported: Any, tmp_path: Path, name: str, tolerance: float
) -> None:
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (6, 32, 32, 3), np.uint8)
    images[0], images[1] = 0, 255
    np.save(tmp_path / "images.npy", images)
    path = exported.folder / name
    predictor = reszoo.Predictor(path)
    expected = predictor.predict_prepared(images)
    answers = _run(_CLASSIFY, path, tmp_path / "images.npy")
    assert len(answers) == len(images)
    for answer, ours in zip(answers, expected, strict=True):
        scores = np.zeros(len(ours))
        for index, label, score in answer:
            assert label == predictor.labels[index]
            scores[index] = score
        np.testing.assert_allclose(scores, ours, atol=tolerance)
        assert answer[0][0] == ours.argmax()
    assert np.ptp(expected, axis=0).max() > 0.01


def _classifier(folder: Path, resize: Any, channels: int = 3) -> reszoo.Predictor:
    model = reszoo.build(
        RESNET8, input_shape=(48, 72, channels), classes=["a", "b", "c"], seed=0
    )
    card = reszoo.card(randomise(model))
    record = replace(card.preprocessing, resize=resize)
    set_card(model, replace(card, preprocessing=record))
    reszoo.export(model, folder, formats="tflite")
    return reszoo.Predictor(folder / "model.tflite")


def test_a_rectangular_model_answers_whole_photos_alike_where_it_squashes(
    tmp_path: Path,
) -> None:
    small = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    photo = Image.fromarray(small).resize((180, 240), Image.Resampling.BICUBIC)
    photo.save(tmp_path / "photo.png")
    np.save(tmp_path / "images.npy", np.asarray(photo)[None])
    away = {}
    for resize in ("crop", "squash"):
        folder = tmp_path / resize
        predictor = _classifier(folder, resize)
        expected = dict(predictor.top(photo))
        (answer,) = _run(_CLASSIFY, folder / "model.tflite", tmp_path / "images.npy")
        away[resize] = max(abs(expected[name] - score) for _, name, score in answer)
        program = folder / "snippets/mediapipe_classify.py"
        done = subprocess.run(
            [sys.executable, program, tmp_path / "photo.png"],
            capture_output=True,
            text=True,
            check=True,
        )
        lines = [line.split() for line in done.stdout.splitlines()]
        for score, label in lines:
            assert float(score) == pytest.approx(expected[label], abs=2e-4)
        assert len(lines) == 3
    assert away["squash"] < 0.002 < 0.01 < away["crop"]


@pytest.mark.parametrize(("least", "unknown"), [(0.0, False), (0.999, True)])
def test_it_answers_unknown_below_the_threshold(
    tmp_path: Path, least: float, unknown: bool
) -> None:
    predictor = _classifier(tmp_path / "export", "squash")
    found = Confidence(
        temperature=1.0, keep=0.95, min_logit=0.0, min_probability=least,
        error_before=0.1, error_after=0.05, images=100, data="photos", data_sha256="0",
    )  # fmt: skip
    manifest = read_manifest(tmp_path / "export")
    card = replace(manifest.card, confidence=found)
    write_snippets(tmp_path / "export", replace(manifest, card=card))
    photo = Image.fromarray(np.full((48, 72, 3), 90, np.uint8))
    photo.save(tmp_path / "photo.png")
    program = tmp_path / "export/snippets/mediapipe_classify.py"
    done = subprocess.run(
        [sys.executable, program, tmp_path / "photo.png"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    best = predictor.top(photo)[0]
    assert best[1] < 0.999
    expected = "0.0000 unknown" if unknown else f"{best[1]:.4f} {best[0]}"
    assert done.stdout.splitlines()[0].split()[1] == expected.split()[1]
    assert len(done.stdout.splitlines()) == (1 if unknown else 3)


def test_it_refuses_a_model_of_grey_images(tmp_path: Path) -> None:
    _classifier(tmp_path / "export", "crop", 1)
    np.save(tmp_path / "images.npy", np.zeros((1, 48, 72, 3), np.uint8))
    with pytest.raises(AssertionError, match="Only RGB color space is supported"):
        _run(_CLASSIFY, tmp_path / "export/model.tflite", tmp_path / "images.npy")
    report = (tmp_path / "export/REPORT.md").read_text()
    assert "MediaPipe's ImageClassifier refuses models of grey images" in report


@pytest.mark.parametrize(("channels", "colours"), [(3, 1), (1, 2)])
def test_the_schemas_own_reader_finds_what_we_wrote(
    tmp_path: Path, channels: int, colours: int
) -> None:
    card = replace(made_card(), provenance={"licence": "apache-2.0"})
    image = TensorDescription("image", "float32", (1, 24, 32, channels))
    output = TensorDescription("probabilities", "float32", (1, 2))
    content = model_metadata(card, [image], [output])
    (tmp_path / "metadata").write_bytes(content)
    assert _run(_DESCRIBE, tmp_path / "metadata") == {
        "identified": True,
        "model": ["resnet20", "apache-2.0", "1.0.0"],
        # Image properties, colours, width, height, normalisation by mean and deviation.
        "image": ["image", 2, colours, 32, 24, 1, [0], [1], [0], [255]],
        # Feature properties; the labels of an axis.
        "answer": ["probabilities", 1, [1], "labels.txt", 2, 1],
    }
