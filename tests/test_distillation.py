"""Distillation: the loss, what the teacher sees, and exact resume."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from scipy.special import log_softmax
from test_confidence import arrays, own_logits, tiny
from tiny import RESNET8, TWO_BLOCKS

import reszoo
from reszoo.training.model import training_copy
from reszoo.training.recipes import find_recipe
from reszoo.training.step import TrainingStep
from reszoo.training.teacher import Teacher, distillation_loss
from reszoo.weights.safetensors import read
from reszoo.zoo import set_card


def expected_loss(logits: Any, of_teacher: Any, temperature: float) -> Any:
    """The formula of Hinton et al. 2015 in float64."""
    ours, theirs = (
        log_softmax(each.astype(np.float64) / temperature, axis=1)
        for each in (logits, of_teacher)
    )
    return temperature**2 * (np.exp(theirs) * (theirs - ours)).sum(1)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_loss_is_that_of_numpy(temperature: float) -> None:
    draw = np.random.default_rng(0)
    ours, theirs = draw.normal(0, 3, (2, 6, 5)).astype(np.float32)
    found = distillation_loss(tf.constant(ours), tf.constant(theirs), temperature)
    expected = expected_loss(ours, theirs, temperature)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    same = distillation_loss(tf.constant(ours), tf.constant(ours), temperature)
    np.testing.assert_allclose(same, np.zeros(6), atol=1e-5)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another preprocessing and order of labels than the student's."""
    model = tiny(None)
    card = reszoo.card(model)
    record = replace(card.preprocessing, mean=(0.2, 0.3, 0.4), std=(0.5, 0.4, 0.3))
    set_card(model, replace(card, labels=("c", "a", "b"), preprocessing=record))
    folder = tmp_path_factory.mktemp("teacher")
    return reszoo.save(model, folder / "teacher.safetensors")


def test_a_step_learns_from_targets_and_teacher(teacher: Path) -> None:
    student = reszoo.build(RESNET8, classes=["a", "b", "c"], input_shape=(32, 32, 3))
    card, recipe = reszoo.card(student), find_recipe(
        "cifar", batch_size=6, label_smoothing=0.0, precision="float32",
        teacher=str(teacher), distillation_temperature=3.0, distillation_weight=0.7,
        freeze_bn=True,
    )  # fmt: skip
    pixels, labels = arrays()["validation"]
    pixels, labels = pixels[:6], labels[:6]
    targets = np.array(["abc".index(label) for label in labels])
    of_teacher = own_logits(reszoo.load(teacher), pixels)[:, [1, 2, 0]]
    copy = training_copy(student, card.preprocessing, recipe)
    asked = Teacher(str(teacher), card)
    normalised = card.preprocessing.normalise(pixels.astype(np.float32))
    np.testing.assert_allclose(asked(normalised), of_teacher, atol=1e-4)
    logits = copy(normalised, training=True).numpy()
    own = -log_softmax(logits.astype(np.float64), axis=1)[np.arange(6), targets]
    expected = 0.3 * own + 0.7 * expected_loss(logits, of_teacher, 3.0)
    step = TrainingStep(copy, card.preprocessing, recipe, teacher=asked)
    loss, _ = step(tf.constant(pixels), tf.constant(targets), 0.1, (0, 1))
    assert loss == pytest.approx(expected.mean(), rel=1e-4)


@pytest.mark.slow
def test_an_interrupted_run_with_a_teacher_resumes_exactly(
    teacher: Path, tmp_path: Path
) -> None:
    data = arrays(each=6)
    fields: dict[str, Any] = {
        "epochs": 2, "batch_size": 20, "teacher": str(teacher), "recipe": "cifar",
    }  # fmt: skip

    def stop(row: Any) -> None:
        raise KeyboardInterrupt

    whole = reszoo.train(TWO_BLOCKS, data, output=tmp_path / "whole", **fields)
    parted = tmp_path / "parted"
    with pytest.raises(KeyboardInterrupt):
        reszoo.train(TWO_BLOCKS, data, output=parted, on_epoch_end=stop, **fields)
    again = reszoo.train(TWO_BLOCKS, data, output=parted, resume=True, **fields)
    assert whole.last is not None
    assert again.last is not None
    ours, theirs = read(whole.last)[0], read(again.last)[0]
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)
    assert [row.loss for row in whole.history] == [row.loss for row in again.history]
    # Of the test images, as the teacher's file sees them.
    answers = reszoo.Predictor(teacher).predict(data["test"][0])
    named = np.array(["c", "a", "b"])[answers.argmax(1)]
    share = (named == data["test"][1]).mean()
    report = (tmp_path / "whole/report.html").read_text()
    assert f"<td>{share:.2%}</td>" in report.partition("<h2>Distillation</h2>")[2]
    # Another teacher is another run.
    other = reszoo.build(RESNET8, classes=["a", "b", "c"], input_shape=(32, 32, 3))
    kept = teacher.read_bytes()
    reszoo.save(other, teacher)
    with pytest.raises(reszoo.UsageError, match="teacher's weights was"):
        reszoo.train(TWO_BLOCKS, data, output=parted, resume=True, **fields)
    teacher.write_bytes(kept)


def test_a_teacher_must_fit(teacher: Path) -> None:
    others = reszoo.build(RESNET8, classes=["x", "y", "z"], input_shape=(32, 32, 3))
    with pytest.raises(reszoo.UsageError, match="must have the student's classes"):
        Teacher(teacher, reszoo.card(others))
    with pytest.raises(reszoo.UsageError, match="need a teacher"):
        find_recipe("cifar", distillation_weight=0.5)
    with pytest.raises(reszoo.UsageError, match=r"distillation_weight must be in"):
        find_recipe("cifar", teacher="x", distillation_weight=1.5)


def test_a_teacher_without_labels_is_taken_in_the_order_of_the_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = (32, 32, 3)
    bare = reszoo.build(RESNET8, classes=3, input_shape=shape, seed=0)
    path = reszoo.save(bare, tmp_path / "bare.safetensors")
    student = reszoo.build(RESNET8, classes=["x", "y", "z"], input_shape=shape)
    Teacher(path, reszoo.card(student))
    assert "class x is taken for output 0 of the teacher" in capsys.readouterr().err
