"""`reszoo.compile`: recipes inside Keras' own `fit`."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from conftest import randomise

import reszoo
from reszoo.checkpoints.names import to_tensors
from reszoo.training.net import twin
from reszoo.training.phases import phases
from reszoo.training.recipe_table import find_recipe
from reszoo.training.step import TrainingStep

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)
LABELS = np.arange(12) % 3


def small() -> Any:
    return randomise(reszoo.build("resnet20", classes=3, input_shape=(8, 8, 3), seed=0))


def fit(model: Any, epochs: int = 1) -> Any:
    pixels = reszoo.card(model).preprocessing.normalise(IMAGES.astype(np.float32))
    return model.fit(
        pixels, LABELS, batch_size=4, epochs=epochs, shuffle=False, verbose=0
    )


@pytest.mark.parametrize("optimizer", ["sgd", "caffe-sgd", "lamb"])
def test_fit_takes_the_steps_that_train_takes(optimizer: str) -> None:
    fields: dict[str, Any] = {
        "optimizer": optimizer,
        "learning_rate": 0.02,
        "weight_decay": 0.01,
        "label_smoothing": 0.1,
        "batch_size": 4,
    }
    model, other = small(), small()
    reszoo.compile(model, "cifar", steps_per_epoch=3, epochs=2, **fields)
    fit(model, epochs=2)
    recipe = find_recipe("cifar", epochs=2, precision="float32", **fields)
    record = reszoo.card(other).preprocessing
    net = twin(other, record, recipe)
    step, (phase,) = TrainingStep(net, record, recipe), phases(recipe, 12)
    for index in range(6):
        some = slice(index % 3 * 4, index % 3 * 4 + 4)
        images, labels = tf.constant(IMAGES[some]), tf.constant(LABELS[some])
        step(images, labels, phase.learning_rate(index), (0, 0))
    one, two = to_tensors(model), to_tensors(net)
    for name in one:
        np.testing.assert_allclose(one[name], two[name], atol=2e-5, err_msg=name)


def test_what_is_frozen_after_compile_stays_in_fit() -> None:
    """Keras alone would go on with the step that it traced before."""
    model = small()
    reszoo.compile(model, "cifar", steps_per_epoch=3, epochs=3, batch_size=4)
    fit(model)
    first = to_tensors(model)
    for layer in model.layers:
        layer.trainable = layer.name == "fc"
    fit(model)
    second = to_tensors(model)
    changed = {name for name in first if not np.array_equal(first[name], second[name])}
    assert changed == {"fc.weight", "fc.bias"}
    for layer in model.layers:
        layer.trainable = True
    fit(model)
    third = to_tensors(model)
    still = {name for name in first if np.array_equal(second[name], third[name])}
    assert {name for name in still if not name.endswith("tracked")} == set()


def test_compile_freezes_and_tells(capsys: pytest.CaptureFixture[str]) -> None:
    model = small()
    before = to_tensors(model)
    reszoo.compile(model, "finetune", steps_per_epoch=3, epochs=1, freeze="stages:2")
    assert "batch normalisation: 19 frozen, 0 live" in capsys.readouterr().err
    fit(model)
    after = to_tensors(model)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert {name.split(".")[0] for name in changed} == {"layer3", "fc"}
    assert not [name for name in changed if "bn" in name]


def test_what_only_train_can_do_is_refused() -> None:
    with pytest.raises(reszoo.UsageError, match="cannot carry out ema, mixup"):
        reszoo.compile(small(), steps_per_epoch=3, epochs=1, mixup=0.2, ema=0.9)
