"""`reszoo.compile`: recipes inside Keras' own `fit`."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import randomise

import reszoo
from reszoo.cards import Metric
from reszoo.training.compile import RecipeLoss
from reszoo.training.model import training_copy
from reszoo.training.phases import phases
from reszoo.training.recipes import find_recipe
from reszoo.training.step import TrainingStep
from reszoo.weights.names import to_tensors
from reszoo.zoo import set_card

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)
LABELS = np.arange(12) % 3


def small() -> Any:
    return randomise(reszoo.build("resnet8", classes=3, input_shape=(8, 8, 3), seed=0))


def fit(model: Any, epochs: int = 1) -> Any:
    pixels = reszoo.card(model).preprocessing.normalise(IMAGES.astype(np.float32))
    return model.fit(
        pixels, LABELS, batch_size=4, epochs=epochs, shuffle=False, verbose=0
    )


@pytest.mark.parametrize(
    "optimizer",
    [
        "sgd",
        "lamb",
        pytest.param("caffe-sgd", marks=pytest.mark.slow),
        pytest.param("adamw", marks=pytest.mark.slow),
    ],
)
def test_fit_takes_the_steps_that_train_takes(optimizer: str) -> None:
    fields: dict[str, Any] = {
        "optimizer": optimizer,
        "learning_rate": 0.02,
        "weight_decay": 0.01,
        "label_smoothing": 0.1,
    }
    model, other = small(), small()
    reszoo.compile(model, "cifar", steps_per_epoch=3, epochs=2, **fields)
    fit(model, epochs=2)
    recipe = find_recipe("cifar", epochs=2, precision="float32", batch_size=4, **fields)
    preprocessing = reszoo.card(other).preprocessing
    net = training_copy(other, preprocessing, recipe)
    step, (phase,) = TrainingStep(net, preprocessing, recipe), phases(recipe, 12)
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
    reszoo.compile(model, "cifar", steps_per_epoch=3, epochs=3)
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


def test_compile_freezes_and_prints_the_counts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = small()
    before = to_tensors(model)
    reszoo.compile(
        model,
        "finetune",
        steps_per_epoch=3,
        epochs=1,
        freeze="stages:2",
        freeze_bn=True,
    )
    assert "batch normalisation: 7 frozen, 0 live" in capsys.readouterr().err
    fit(model)
    after = to_tensors(model)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert {name.split(".")[0] for name in changed} == {"layer3", "fc"}
    assert not [name for name in changed if "bn" in name]


def test_compile_again_unfreezes_only_what_compile_froze() -> None:
    model = small()
    model.get_layer("layer1.0.conv1").trainable = False
    reszoo.compile(model, "cifar", steps_per_epoch=3, epochs=1, freeze="backbone")
    assert learning(model) == {"fc"}
    recipe = find_recipe("cifar", precision="float32")
    all_but_one = {layer.name for layer in model.layers if layer.weights}
    all_but_one -= {"layer1.0.conv1"}
    assert learning(training_copy(model, reszoo.card(model).preprocessing, recipe)) == (
        all_but_one
    )
    with pytest.raises(reszoo.UsageError, match="resnet8 has 3 stages"):
        reszoo.compile(model, "cifar", steps_per_epoch=3, epochs=1, freeze="stages:4")
    assert learning(model) == {"fc"}
    reszoo.compile(model, "cifar", steps_per_epoch=3, epochs=1)
    assert learning(model) == all_but_one


def learning(model: Any) -> set[str]:
    return {layer.name for layer in model.layers if layer.trainable and layer.weights}


def test_the_card_names_the_recipe_and_has_no_metrics() -> None:
    model = small()
    reszoo.compile(model, "cifar", steps_per_epoch=3, epochs=2, learning_rate=0.02)
    card = reszoo.card(model)
    assert not card.is_fresh
    told = card.provenance["recipe"]
    assert (told["name"], told["epochs"], told["learning_rate"]) == ("cifar", 2, 0.02)
    # The recipe's crop is not carried out, so nothing is said of it.
    assert "crop" not in told
    assert "began_as" not in card.provenance
    known = {"source": "somewhere", "licence": "mit"}
    top1 = (Metric(name="top1", value=0.5, data="some"),)
    set_card(model, replace(card, provenance=known, metrics=top1))
    reszoo.compile(model, "cifar", steps_per_epoch=3, epochs=1)
    assert reszoo.card(model).provenance["began_as"] == known
    assert reszoo.card(model).metrics == ()


def test_a_loaded_keras_file_trains_on_like_the_model(tmp_path: Path) -> None:
    model = small()
    # LAMB, for its step depends on all that it keeps: two means and the step's number.
    fields: dict[str, Any] = {"optimizer": "lamb", "label_smoothing": 0.1}
    reszoo.compile(
        model, "cifar", steps_per_epoch=3, epochs=2, freeze="backbone", **fields
    )
    fit(model)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    pixels = reszoo.card(model).preprocessing.normalise(IMAGES.astype(np.float32))
    for each in (model, again):
        each.fit(pixels, LABELS, batch_size=4, shuffle=False, verbose=0)
    for one, two in zip(model.variables, again.variables, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6, err_msg=one.path)
    assert int(again.optimizer.iterations.value) == 6


def test_a_clone_takes_the_same_compile_config() -> None:
    model = small()
    reszoo.compile(model, "he2015-cifar", steps_per_epoch=3, epochs=2)
    clone = keras.models.clone_model(model)
    clone.compile_from_config(model.get_compile_config())
    assert clone.optimizer.get_config() == model.optimizer.get_config()
    assert clone.loss.get_config() == model.loss.get_config()
    rates = []
    for step in (0, 3, 5, 9):
        clone.optimizer.iterations.assign(step)
        rates.append(float(clone.optimizer.learning_rate))
    np.testing.assert_allclose(rates, [0.1, 0.01, 0.001, 0.001], rtol=1e-6)


ONLY_TRAIN = (
    "accumulate batch_size block_dropout channels crop crop_pct cutmix ema ema_every "
    "erase eval_size flip head_epochs head_learning_rate interpolation mixup pad "
    "policy precision ratio recompute repeats resize scale seed steps stochastic_depth "
    "sync_bn train_size zero_init_residual"
)


def test_fields_that_only_train_supports_are_refused() -> None:
    model = small()
    for name in ONLY_TRAIN.split():
        field: dict[str, Any] = {name: 1}
        with pytest.raises(reszoo.UsageError, match=f"does not support {name};"):
            reszoo.compile(model, steps_per_epoch=3, epochs=1, **field)
    with pytest.raises(reszoo.UsageError, match="data set decides the batch size"):
        reszoo.compile(model, steps_per_epoch=3, epochs=1, batch_size=4)
    for changed in ({"sampling": "balanced"}, {"block_dropout": 0.1}):
        own = find_recipe("cifar", **changed)
        with pytest.raises(reszoo.UsageError, match=f"support {next(iter(changed))};"):
            reszoo.compile(model, own, steps_per_epoch=3, epochs=1)
    assert reszoo.card(model).is_fresh


@pytest.mark.parametrize(
    ("options", "received"),
    [
        ({"classifier_activation": "softmax", "classes": 3}, "activation='softmax'"),
        ({"include_top": False}, "include_top=False"),
    ],
)
def test_a_model_without_logits_is_refused(
    options: dict[str, Any], received: str
) -> None:
    model = reszoo.build("resnet8", input_shape=(8, 8, 3), **options)
    with pytest.raises(reszoo.UsageError, match=f"ends in logits.*{received}"):
        reszoo.compile(model, steps_per_epoch=3, epochs=1)


@pytest.mark.parametrize(("scale", "warns"), [(255, True), (1, True), (None, False)])
def test_a_first_batch_that_is_not_normalised_warns(
    scale: float | None, warns: bool
) -> None:
    model = small()
    reszoo.compile(model, "cifar", steps_per_epoch=3, epochs=2)
    pixels = IMAGES.astype(np.float32)
    # Whichever images come first.
    pixels[:, 0, :2] = [[0], [255]]
    normalise = reszoo.card(model).preprocessing.normalise
    images = normalise(pixels) if scale is None else pixels * scale / 255
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(images, LABELS, batch_size=4, epochs=2, verbose=0)
    told = [str(each.message) for each in caught]
    assert len(told) == warns
    if warns:
        assert f"values from 0 to {scale:g}; normalised images have some" in told[0]
        assert "preprocessing.normalise(image)" in told[0]


def test_one_hot_targets_are_refused_in_words() -> None:
    model = small()
    reszoo.compile(model, "cifar", steps_per_epoch=3, epochs=2)
    targets = np.eye(3, dtype=np.float32)[np.arange(len(IMAGES)) % 3]
    with pytest.raises(reszoo.UsageError, match=r"0 to 2, one an.*3\); use argmax"):
        model.fit(IMAGES.astype(np.float32), targets, batch_size=4, verbose=0)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_precision_computes_and_is_not_what_weights_are_of(kind: str) -> None:
    try:
        keras.config.set_dtype_policy(kind)
        with pytest.raises(reszoo.UsageError, match=f"float32 w.*: {kind}; build"):
            reszoo.compile(small(), steps_per_epoch=3, epochs=2)
        keras.config.set_dtype_policy(f"mixed_{kind}")
        model = small()
        reszoo.compile(model, "cifar", steps_per_epoch=3, epochs=2)
        assert np.isfinite(fit(model).history["loss"][0])
    finally:
        keras.config.set_dtype_policy("float32")


def test_targets_of_many_classes_are_exact_in_half_precision() -> None:
    before = keras.config.floatx()
    keras.config.set_floatx("float16")
    try:
        loss = RecipeLoss("softmax", 0.0)
    finally:
        keras.config.set_floatx(before)
    logits = 50 * np.eye(3000, dtype=np.float32)[[2049]]
    assert float(loss(np.array([2049]), logits)) == pytest.approx(0, abs=1e-4)


def test_more_steps_than_are_scheduled_are_told_of(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = small()
    reszoo.compile(model, "cifar", steps_per_epoch=3, epochs=2)
    fit(model, epochs=2)
    assert "schedule" not in capsys.readouterr().err
    fit(model, epochs=2)
    told = capsys.readouterr().err
    assert told.count("All 6 steps of reszoo.compile's schedule") == 1
    assert "the learning rate stays at 0. To train on, compile again" in told


def test_half_precision_goes_on_after_the_last_scheduled_step(
    capsys: pytest.CaptureFixture[str],
) -> None:
    try:
        keras.config.set_dtype_policy("mixed_float16")
        model = small()
        reszoo.compile(model, "cifar", steps_per_epoch=1, epochs=1)
        fit(model)
    finally:
        keras.config.set_dtype_policy("float32")
    assert "the learning rate stays at 0. To train" in capsys.readouterr().err


@pytest.mark.parametrize("steps", [0, 3.5, None])
def test_steps_of_an_epoch_are_a_whole_number(steps: Any) -> None:
    with pytest.raises(reszoo.UsageError, match=r"steps_per_epoch must be"):
        reszoo.compile(small(), steps_per_epoch=steps, epochs=1)
