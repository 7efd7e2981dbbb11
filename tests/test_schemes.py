"""Checkpoints as other libraries name them: the same answers, and what became of heads.

The files are written without torch (`checkpoint_layouts.py`), so that these tests run
without it; `test_scheme_peers.py` compares with the libraries themselves.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_layouts import LAYOUTS, WITH_CLASSIFIER, body, mlp, prefixed, write
from conftest import randomise
from numpy_resnet import ResNet, logits

import reszoo
from reszoo.weights.names import to_tensors

X = np.random.default_rng(5).normal(0, 1, (2, 32, 32, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def tensors() -> Any:
    model = reszoo.build("resnet8", classes=5, shortcut="projection")
    return to_tensors(randomise(model, seed=3))


def close(answer: Any, expected: Any) -> bool:
    error = np.abs(np.asarray(answer) - expected).max()
    return bool(error <= 1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("library", LAYOUTS)
def test_every_layout_gives_the_models_answers(
    library: str, tensors: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "model.pth", LAYOUTS[library](tensors))
    model = reszoo.load(file, None if library != "Transformers" else "resnet8")
    report, said = reszoo.load_report(model), capsys.readouterr().err
    assert report is not None
    assert report.complete
    if library in WITH_CLASSIFIER:
        assert close(model(X), logits(X, tensors))
    else:
        stages = list(ResNet(tensors).stages(X).values())[-1].transpose(0, 2, 3, 1)
        assert close(model(X), stages)
        assert "there is no classifier" in said
        assert report.skipped
    if report.skipped:
        assert f"not part of the model: {report.skipped[0]}" in said


def test_a_new_classifier_replaces_a_projection(tensors: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "moco.pth", LAYOUTS["MoCo"](tensors))
    model = reszoo.build("resnet8", weights=file, classes=4, shortcut="projection")
    assert model.output_shape == (None, 4)
    report = reszoo.load_report(model)
    assert report is not None
    assert "fresh head of 4 classes" in str(report)
    assert "module.encoder_q.fc.weight" in report.skipped
    held = to_tensors(model)
    for name, value in body(tensors).items():
        np.testing.assert_array_equal(held[name], value)
    with pytest.raises(reszoo.CheckpointError, match=r"has no classifier\. Say how"):
        reszoo.build("resnet8", weights=file, shortcut="projection")
    bare = reszoo.build(
        "resnet8", weights=file, include_top=False, shortcut="projection"
    )
    assert bare.output_shape[-1] == 64


@pytest.mark.parametrize(
    ("change", "text"),
    [
        # What stands within the backbone changes what it computes.
        (
            lambda t: t | {"layer1.0.se.fc1.weight": np.ones((4, 16, 1, 1))},
            "layer1.0.se",
        ),
        (lambda t: t | {"adapter.weight": np.ones((3, 3, 1, 1))}, "adapter"),
        (
            lambda t: prefixed(t, "first.") | prefixed(t, "second."),
            r"more than one ResNet: first\., second\.",
        ),
        (lambda t: {"a": t, "b": t}, "more than one ResNet: a, b"),
        (
            lambda t: body(t) | {"classifier.4.weight": np.ones((5, 64, 1, 1))},
            r"segmentation model.*output_stride=8",
        ),
    ],
)
def test_what_tensors_do_not_tell_is_refused(
    change: Any, text: str, tensors: Any, tmp_path: Path
) -> None:
    file = write(tmp_path / "x.pth", change(tensors))
    with pytest.raises(reszoo.CheckpointError, match=text):
        reszoo.load(file)


def test_a_classifier_of_two_layers_is_not_taken_for_one(
    tensors: Any, tmp_path: Path
) -> None:
    file = write(tmp_path / "x.pth", body(tensors) | mlp(tensors, "fc"))
    report = reszoo.load_report(reszoo.load(file))
    assert report is not None
    assert report.skipped[0] == "fc.0.weight"


def test_the_averaged_or_teaching_copy_is_named(tensors: Any, tmp_path: Path) -> None:
    report = reszoo.load_report(
        reszoo.load(write(tmp_path / "x.pth", LAYOUTS["DINO"](tensors)))
    )
    assert "teacher is loaded, not student" in str(report)
