"""One step of training, against arithmetic by hand and against itself."""

from dataclasses import replace
from typing import Any

import family
import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import randomise

import reszoo
from reszoo.training.devices import Devices
from reszoo.training.model import resolve_precision, training_copy
from reszoo.training.phases import phases
from reszoo.training.recipes import Recipe, find_recipe
from reszoo.training.step import (
    PhaseTrainer,
    TrainingStep,
    binary_loss,
    softmax_loss,
)
from reszoo.weights.names import to_tensors

KEY = (3, 4)
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
LABELS = np.array([0, 1, 2, 1])


def recipe_of(**fields: Any) -> Recipe:
    defaults = {"precision": "float32", "batch_size": 4, "label_smoothing": 0.0}
    return find_recipe("cifar", **{**defaults, **fields})


def small(classes: int = 3, seed: int = 0, **options: Any) -> Any:
    options.setdefault("input_shape", (8, 8, 3))
    return randomise(reszoo.build("resnet8", classes=classes, seed=seed, **options))


def step_of(model: Any, recipe: Recipe) -> tuple[TrainingStep, Any]:
    preprocessing = reszoo.card(model).preprocessing
    net = training_copy(model, preprocessing, recipe)
    return TrainingStep(net, preprocessing, recipe), net


def test_a_step_is_torchs_sgd_with_decay_on_kernels_only() -> None:
    """Two Nesterov steps by hand: v = m v + g + decay w; w -= rate (g + decay w + m v).

    The gradient of the loss by the bias of `fc` is the mean of probability minus
    target, and it has no decay; that of its kernel multiplies by the features.
    """
    model = small()
    step, net = step_of(model, recipe_of(weight_decay=0.01, momentum=0.9))
    velocity = {"weight": np.zeros((3, 64)), "bias": np.zeros(3)}
    features = reszoo.build(
        "resnet8", include_top=False, pooling="avg", input_shape=(8, 8, 3)
    )
    preprocessing = reszoo.card(model).preprocessing
    for _ in range(2):
        before = to_tensors(net)
        for layer in features.layers:
            layer.set_weights(net.get_layer(layer.name).get_weights())
        pixels = preprocessing.normalise(IMAGES.astype(np.float32))
        pooled = np.asarray(features(pixels, training=True), np.float64)
        logits = pooled @ before["fc.weight"].T + before["fc.bias"]
        soft = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        error = (soft - np.eye(3)[LABELS]) / 4
        loss, hits = step(tf.constant(IMAGES), tf.constant(LABELS), 0.1, KEY)
        expected_loss = -np.log(soft[np.arange(4), LABELS]).mean()
        assert loss == pytest.approx(expected_loss, rel=1e-4)
        assert hits == (logits.argmax(-1) == LABELS).sum()
        after = to_tensors(net)
        gradients = {
            "weight": error.T @ pooled + 0.01 * before["fc.weight"],
            "bias": error.sum(0),
        }
        for kind, gradient in gradients.items():
            velocity[kind] = 0.9 * velocity[kind] + gradient
            moved = 0.1 * (gradient + 0.9 * velocity[kind])
            np.testing.assert_allclose(
                after[f"fc.{kind}"], before[f"fc.{kind}"] - moved, atol=2e-5
            )


def test_the_callers_model_stays_as_it_is() -> None:
    model = small()
    before = to_tensors(model)
    step, net = step_of(model, recipe_of())
    step(tf.constant(IMAGES), tf.constant(LABELS), 0.1, KEY)
    after, trained = to_tensors(model), to_tensors(net)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert not np.array_equal(before["conv1.weight"], trained["conv1.weight"])
    assert not np.array_equal(before["bn1.running_mean"], trained["bn1.running_mean"])


def test_accumulated_gradients_are_those_of_the_batch() -> None:
    """With frozen batch normalisation, which is all that sees the parts."""
    images = np.concatenate([IMAGES, IMAGES[::-1]])
    labels = np.concatenate([LABELS, LABELS])
    results = []
    for parts in (1, 4):
        model = small()
        for layer in model.layers:
            layer.trainable = ".bn" not in layer.name and layer.name != "bn1"
        step, net = step_of(model, recipe_of(batch_size=8, accumulate=parts))
        losses = [
            step(tf.constant(images), tf.constant(labels), 0.05, KEY) for _ in range(2)
        ]
        results.append((losses, to_tensors(net)))
    (whole, one), (parted, other) = results
    np.testing.assert_allclose(whole, parted, rtol=1e-4)
    for name in one:
        np.testing.assert_allclose(one[name], other[name], atol=1e-5, err_msg=name)


def test_the_softmax_loss_spreads_a_share_over_all_classes() -> None:
    logits = np.random.default_rng(0).normal(0, 2, (5, 4))
    labels = np.eye(4)[[0, 1, 2, 3, 1]]
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    target = 0.8 * labels + 0.2 / 4
    found = softmax_loss(tf.constant(logits), tf.constant(labels), 0.2)
    np.testing.assert_allclose(found, -(target * logs).sum(-1), rtol=1e-6)


def test_the_binary_loss_takes_both_mixed_classes_for_true() -> None:
    logits = np.random.default_rng(0).normal(0, 2, (2, 4))
    mixed = np.array([[0.7, 0.0, 0.3, 0.0], [0.1, 0.9, 0.0, 0.0]])
    true = np.array([[1, 0, 1, 0], [0, 1, 0, 0]])
    chance = 1 / (1 + np.exp(-logits))
    expected = -(true * np.log(chance) + (1 - true) * np.log(1 - chance)).mean(-1)
    found = binary_loss(tf.constant(logits, tf.float32), tf.constant(mixed), 0.0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_half_precision_learns_like_full_precision() -> None:
    if resolve_precision(find_recipe("cifar")) != "bfloat16":
        pytest.skip("this processor has no bfloat16 instructions")
    losses = {}
    for name in ("float32", "bfloat16"):
        step, net = step_of(small(), recipe_of(precision=name))
        assert {variable.dtype for variable in net.variables} == {"float32"}
        losses[name] = [
            step(tf.constant(IMAGES), tf.constant(LABELS), 0.01, KEY)[0]
            for _ in range(20)
        ]
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"][0] == pytest.approx(losses["float32"][0], rel=0.05)
    assert losses["bfloat16"][-1] < 0.3 * losses["bfloat16"][0]


def test_bfloat16_without_such_instructions_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("reszoo.training.model.has_bfloat16", lambda: False)
    assert resolve_precision(find_recipe("cifar")) == "float32"
    with pytest.raises(reszoo.UsageError, match="no bfloat16 instructions"):
        resolve_precision(find_recipe("cifar", precision="bfloat16"))


def test_training_works_at_another_size_than_evaluation() -> None:
    model = small(input_shape=(8, 8, 3))
    preprocessing = replace(reszoo.card(model).preprocessing, train_size=12)
    net = training_copy(model, preprocessing, recipe_of())
    assert net.input_shape == (None, 12, 12, 3)
    assert np.array_equal(to_tensors(net)["fc.weight"], to_tensors(model)["fc.weight"])


def test_stochastic_depth_drops_blocks_with_its_rate() -> None:
    """The last block of three is left out half of the time, the first one never."""
    model = small()
    recipe = recipe_of(stochastic_depth=0.5)
    net = training_copy(model, reszoo.card(model).preprocessing, recipe)
    assert "layer1.0.drop" not in {layer.name for layer in net.layers}
    drop = net.get_layer("layer3.0.drop")
    branch = tf.ones((4_000, 1, 1, 2))
    kept = np.asarray(drop([branch, tf.constant(KEY, tf.int64)], training=True))
    assert set(np.unique(kept)) == {0.0, 2.0}
    assert np.array_equal(kept[..., 0], kept[..., 1])
    assert kept.mean() == pytest.approx(1.0, abs=0.06)
    again = np.asarray(drop([branch, tf.constant(KEY, tf.int64)], training=True))
    other = np.asarray(drop([branch, tf.constant((3, 5), tf.int64)], training=True))
    assert np.array_equal(kept, again)
    assert not np.array_equal(kept, other)
    quiet = drop([branch, tf.constant(KEY, tf.int64)], training=False)
    assert np.array_equal(quiet, branch)
    neighbour = net.get_layer("layer2.0.drop")
    assert neighbour.rate == pytest.approx(0.5 * 1 / 2)


@pytest.mark.parametrize("net", ["resnet8", family.SPECS["pre"]], ids=("post", "pre"))
def test_recomputation_changes_no_step(net: Any) -> None:
    """Weights and moving statistics move as without, by the same random draws."""
    shape = (8, 8, 3)
    model = randomise(reszoo.build(net, classes=3, input_shape=shape, dropout=0.3))
    images, labels = tf.constant(IMAGES), tf.constant(LABELS, tf.int64)
    after, convolutions = [], []
    for recompute in (False, True):
        recipe = recipe_of(stochastic_depth=0.3, recompute=recompute)
        step, copy = step_of(model, recipe)
        for number in range(2):
            step(images, labels, 0.1, (3, number))
        after.append(to_tensors(copy))
        rate, key = tf.constant(0.1), tf.constant(KEY, tf.int64)
        graph = step._whole.get_concrete_function(images, labels, rate, key).graph
        kinds = [operation.type for operation in graph.get_operations()]
        convolutions.append(kinds.count("Conv2D"))
    plain, again = after
    before = to_tensors(model)
    for name, tensor in plain.items():
        np.testing.assert_allclose(again[name], tensor, 1e-5, 1e-7, err_msg=name)
        if not name.endswith("num_batches_tracked"):
            assert not np.array_equal(tensor, before[name]), name
    assert convolutions[1] > 1.5 * convolutions[0]


@pytest.mark.parametrize("built", [0.0, 0.5])
def test_the_recipe_sets_the_dropout_of_blocks(built: float) -> None:
    model = reszoo.build("wrn16_4", input_shape=(8, 8, 3), dropout=built)
    preprocessing = reszoo.card(model).preprocessing
    for asked, expected in ((0.3, 0.3), (0.0, built)):
        net = training_copy(model, preprocessing, recipe_of(block_dropout=asked))
        found = {x.rate for x in net.layers if x.name.endswith(".dropout")}
        assert found == ({expected} if expected else set())
    assert reszoo.card(model).resnet.dropout == built


def test_dropout_before_the_classifier_drops_features_and_keeps_the_mean() -> None:
    model = small()
    preprocessing = reszoo.card(model).preprocessing
    net = training_copy(model, preprocessing, recipe_of(dropout=0.25))
    pixels = preprocessing.normalise(IMAGES.astype(np.float32))
    dropped = keras.Model(net.inputs, net.get_layer("dropout").output)
    whole = keras.Model(net.inputs, net.get_layer("avgpool").output)
    for layer in net.layers:
        layer.trainable = "bn" not in layer.name
    features = np.asarray(whole([pixels, np.array(KEY)], training=True))
    kept = np.asarray(
        [dropped([pixels, np.array([seed, 7])], training=True) for seed in range(200)]
    )
    assert (kept[:, features > 0] == 0).mean() == pytest.approx(0.25, abs=0.01)
    np.testing.assert_allclose(kept.max(0), features / 0.75, rtol=1e-4, atol=1e-5)
    same = [dropped([pixels, np.array(KEY)], training=True) for _ in range(2)]
    np.testing.assert_array_equal(*same)
    np.testing.assert_allclose(
        np.asarray(net([pixels, np.array(KEY)], training=False)),
        np.asarray(model(pixels, training=False)),
        atol=1e-5,
    )


def test_a_block_that_starts_at_zero_is_its_shortcut() -> None:
    model = reszoo.build("resnet20", zero_init_residual=True, seed=0)
    scales = {
        layer.name: float(np.abs(layer.gamma).max())
        for layer in model.layers
        if "bn" in layer.name
    }
    zero = {name for name, scale in scales.items() if scale == 0}
    assert zero == {f"layer{s}.{b}.bn2" for s in (1, 2, 3) for b in (0, 1, 2)}
    with pytest.raises(reszoo.UsageError, match="is for random weights"):
        reszoo.build("resnet20", zero_init_residual=True, weights="imagenet")


def test_the_average_follows_every_weight_and_statistic() -> None:
    model = small()
    card = reszoo.card(model)
    preprocessing = card.preprocessing
    recipe = recipe_of(ema=0.75, epochs=1, warmup_epochs=0)
    (phase,) = phases(recipe, 16)
    net = training_copy(model, preprocessing, recipe)
    trainer = PhaseTrainer(net, card.resnet, preprocessing, phase, Devices())
    expected = None
    for step in range(4):
        trainer.train(tf.constant(IMAGES), tf.constant(LABELS), step, 0)
        now = [np.asarray(variable.value, np.float64) for variable in net.variables]
        # The first step is copied, as torchvision does.
        expected = expected or now
        expected = [0.75 * a + 0.25 * b for a, b in zip(expected, now, strict=True)]
    averages = trainer.evaluated_variables()
    for variable, mean in zip(net.variables, expected or [], strict=True):
        np.testing.assert_allclose(averages[variable.path], mean, atol=1e-6)
