import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import reszoo
from reszoo.data.sources import open_source
from reszoo_export.formats import FORMATS


@pytest.fixture(scope="module")
def digit(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One held-out scan: its file, its pixels and its class."""
    examples = open_source("digits").examples("test")
    images = examples.images
    assert images is not None
    path = tmp_path_factory.mktemp("digit") / "digit.png"
    Image.fromarray(images[7]).save(path)
    return path, images[7], str(examples.labels[7])


@pytest.fixture(params=["checkpoint", *FORMATS])
def predictor(request: pytest.FixtureRequest, run: Any, exported: Any) -> Any:
    if request.param == "checkpoint":
        return reszoo.Predictor(run.best)
    return reszoo.Predictor(exported.folder / FORMATS[request.param].file)


def test_the_same_image_in_any_form_gets_the_same_answer(
    predictor: Any, digit: Any
) -> None:
    path, pixels, label = digit
    forms = [path, str(path), pixels, Image.fromarray(pixels), pixels[None], [path]]
    answers = [predictor.predict(form) for form in forms]
    for answer in answers[1:]:
        np.testing.assert_array_equal(answer, answers[0])
    assert answers[0].shape == (1, 10)
    assert answers[0].dtype == np.float32
    assert answers[0].sum() == pytest.approx(1, abs=0.02)
    top = predictor.top(path, k=3)
    assert top[0] == (label, pytest.approx(answers[0].max()))
    assert [p for _, p in top] == sorted((p for _, p in top), reverse=True)


def test_several_images_are_answered_in_order(predictor: Any, digit: Any) -> None:
    _, pixels, _ = digit
    other = np.ascontiguousarray(pixels[::-1])
    both = predictor.predict([pixels, other])
    np.testing.assert_allclose(both[:1], predictor.predict(pixels), atol=1e-5)
    np.testing.assert_allclose(both[1:], predictor.predict(other), atol=1e-5)
    assert predictor.predict([]).shape == (0, 10)


@pytest.mark.parametrize(
    ("image", "received"),
    [
        (np.ones((8, 8, 3), np.float32), r"float32 \(8, 8, 3\) in 1..1"),
        (np.ones((8, 8), np.uint8), r"uint8 \(8, 8\)"),
        (np.ones((3, 8, 8), np.uint8), r"uint8 \(3, 8, 8\)"),
    ],
)
def test_other_arrays_are_refused_with_what_was_expected(
    run: Any, image: Any, received: str
) -> None:
    with pytest.raises(reszoo.UsageError, match=f"must be uint8 RGB.*{received}"):
        reszoo.Predictor(run.model).predict(image)


def test_what_cannot_be_opened_is_refused(run: Any, tmp_path: Path) -> None:
    with pytest.raises(reszoo.CheckpointError, match="There is no file"):
        reszoo.Predictor(tmp_path / "model.onnx")
    (tmp_path / "model.pt").write_bytes(b"")
    with pytest.raises(reszoo.UsageError, match=r"no kind of model file 'model.pt'"):
        reszoo.Predictor(tmp_path / "model.pt")
    with pytest.raises(reszoo.UsageError, match="threads must be at least 1"):
        reszoo.Predictor(run.best, threads=0)
    with pytest.raises(reszoo.UsageError, match="k must be at least 1"):
        reszoo.Predictor(run.model).top(np.zeros((8, 8, 3), np.uint8), k=0)
    with pytest.raises(reszoo.UsageError, match=r"takes one image. Received: 2"):
        reszoo.Predictor(run.model).top(np.zeros((2, 8, 8, 3), np.uint8))
    for name in ("x.onnx", "x.tflite"):
        (tmp_path / name).write_bytes(b"nonsense")
        with pytest.raises(reszoo.CheckpointError, match=f"{name} is not a"):
            reszoo.Predictor(tmp_path / name)
    with pytest.raises(reszoo.CheckpointError):
        reszoo.Predictor(tmp_path)


@pytest.mark.parametrize("file", ["model.tflite", "model-int8.tflite", "model.onnx"])
def test_files_for_devices_open_without_tensorflow(
    exported: Any, digit: Any, file: str
) -> None:
    script = (
        "import sys, reszoo\n"
        f"predictor = reszoo.Predictor({str(exported.folder / file)!r})\n"
        f"top = predictor.top({str(digit[0])!r})\n"
        "print(top[0][0], {'tensorflow', 'keras', 'tf2onnx'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{digit[2]} set()\n"
    assert done.stderr == ""


def test_a_model_that_was_never_told_names_answers_with_numbers() -> None:
    predictor = reszoo.Predictor(reszoo.build("resnet20", classes=3))
    assert predictor.labels == ("0", "1", "2")
