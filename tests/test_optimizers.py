"""Optimizers, rates and averages held against torch's, timm's and Caffe's."""

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_step import IMAGES, KEY, LABELS, recipe_of, small, step_of
from torch_peers import import_timm

import reszoo
from reszoo.errors import UsageError
from reszoo.training.optimizers import (
    Adam,
    Lamb,
    MovingAverage,
    Optimizer,
    Sgd,
    is_decayed,
    rate_scales,
)
from reszoo.training.phases import Phase, learning_rate, phases
from reszoo.training.recipes import RECIPES, Decayed, find_recipe
from reszoo.weights.names import to_tensors

STEPS, EPOCH = 50, 5
NAMES = ("conv/kernel", "fc/kernel", "fc/bias", "bn/gamma", "asleep/kernel")
DECAYS = [0.05 if name.endswith("kernel") else 0.0 for name in NAMES]
SCALES = (0.5625, 1.0, 1.0, 0.75, 0.5625)
RULES: dict[str, Any] = {
    "sgd": Sgd(),
    "sgd-nesterov": Sgd(nesterov=True),
    "caffe": Sgd(rate_inside=True),
    "caffe-nesterov": Sgd(rate_inside=True, nesterov=True),
    "adam": Adam(),
    "adamw": Adam(decoupled=True),
    "adamw-layers": Adam(decoupled=True),
    "lamb": Lamb(),
    "lamb-other": Lamb(beta1=0.8, beta2=0.99, epsilon=1e-3, max_norm=None),
}


@pytest.fixture(scope="module")
def golden() -> Any:
    file = Path(__file__).parent / "golden" / "trajectories.npz"
    with np.load(file) as content:
        return dict(content)


def variables(golden: Any) -> list[Any]:
    return [tf.Variable(golden[f"start/{name}"], name=name) for name in NAMES]


def gradients(golden: Any, step: int) -> list[Any]:
    return [tf.constant(golden[f"gradients/{name}"][step]) for name in NAMES]


def assert_on_path(golden: Any, label: str, step: int, found: list[Any]) -> None:
    """Nowhere further off than a few roundings of the largest number."""
    for name, value in zip(NAMES, found, strict=True):
        expected = golden[f"{label}/{name}"][step]
        most = 1e-6 * max(1e-3, np.abs(expected).max())
        assert np.abs(value.numpy() - expected).max() <= most, (label, name, step)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "tf.function"])
@pytest.mark.parametrize("label", RULES)
def test_every_step_is_where_torch_and_caffe_are(
    label: str, compiled: bool, golden: Any
) -> None:
    weights = variables(golden)
    scales = SCALES if label == "adamw-layers" else None
    optimizer = Optimizer(RULES[label], weights, DECAYS, scales)
    apply: Any = tf.function(optimizer.apply) if compiled else optimizer.apply
    for step in range(STEPS):
        rate = tf.constant(golden["rates"][step], tf.float32)
        apply(gradients(golden, step), rate)
        assert_on_path(golden, label, step, weights)
    if compiled:
        assert apply.experimental_get_tracing_count() == 1


def test_the_state_is_all_that_is_needed_to_go_on(golden: Any) -> None:
    """Under a strategy too: within `run`, in its scope, and outside of both."""
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    weights = variables(golden)
    optimizer = Optimizer(Lamb(), weights, DECAYS)

    for step in range(20):
        optimizer.apply(gradients(golden, step), golden["rates"][step])
    with strategy.scope():
        again = [
            tf.Variable(weight.numpy(), name=weight.name[:-2]) for weight in weights
        ]
        second = Optimizer(Lamb(), again, DECAYS)
    assert list(second.state()) == list(optimizer.state())
    assert "square/fc/bias" in second.state()
    for name, variable in second.state().items():
        variable.assign(optimizer.state()[name].numpy())
    replicated = tf.function(lambda *args: strategy.run(second.apply, args))
    for step in range(20, 25):
        rate = tf.constant(golden["rates"][step], tf.float32)
        replicated(gradients(golden, step), rate)
        assert_on_path(golden, "lamb", step, again)
    with strategy.scope():
        second.apply(gradients(golden, 25), golden["rates"][25])
    second.apply(gradients(golden, 26), golden["rates"][26])
    assert_on_path(golden, "lamb", 26, again)
    assert second.iterations.numpy() == 27
    with strategy.scope(), pytest.raises(UsageError, match=r"`strategy\.scope\(\)`"):
        optimizer.apply(gradients(golden, 27), 0.1)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_layer_decay_is_timms(name: str) -> None:
    timm = import_timm()
    groups = importlib.import_module("timm.optim").param_groups_layer_decay(
        timm.create_model(name), weight_decay=0.1, layer_decay=0.75
    )
    theirs = {
        name: group["lr_scale"] for group in groups for name in group["param_names"]
    }
    model = reszoo.build(name, classes=10)
    ours = rate_scales([layer.name for layer in model.layers], 0.75)
    assert len(theirs) == len(model.trainable_weights)
    for parameter, scale in theirs.items():
        assert ours[parameter.rpartition(".")[0]] == pytest.approx(scale), parameter


def test_a_step_scales_the_rate_of_every_block() -> None:
    """The same gradients move each layer by its share of what it moved without."""
    moved = []
    for layer_decay in (1.0, 0.5):
        recipe = recipe_of(layer_decay=layer_decay, weight_decay=0.0, momentum=0.0)
        recipe = replace(recipe, nesterov=False)
        step, net = step_of(small(), recipe)
        before = to_tensors(net)
        step(tf.constant(IMAGES), tf.constant(LABELS), 0.1, KEY)
        after = to_tensors(net)
        moved.append({name: after[name] - before[name] for name in before})
    shares = {
        "fc": 1, "layer3.0.conv2": 0.5, "layer2.0.bn1": 0.25, "layer1.0.conv1": 0.125,
        "conv1": 0.0625, "bn1": 0.0625,
    }  # fmt: skip
    for name, share in shares.items():
        one, other = (change[f"{name}.weight"] for change in moved)
        np.testing.assert_allclose(other, share * one, atol=2e-7)
        assert np.abs(one).max() > 1e-5


def test_adam_has_rates_of_its_own() -> None:
    recipe = find_recipe("finetune", optimizer="adamw")
    assert (recipe.learning_rate, recipe.head_learning_rate) == (1e-3, 1e-3)
    assert not recipe.nesterov
    assert (
        find_recipe("cifar", optimizer="adam", learning_rate=0.1).learning_rate == 0.1
    )
    assert find_recipe(recipe, optimizer="adam").learning_rate == 1e-3
    with pytest.raises(UsageError, match='nesterov has an effect with optimizer="sgd"'):
        find_recipe("cifar", optimizer="adamw", nesterov=True)


def rescaled(decay: float, *, every: int, batch_size: int, epochs: int) -> float:
    """Return the decay that torchvision's reference script makes of its option."""
    return 1 - min(1.0, (1 - decay) * batch_size * every / epochs)


def test_a_recipe_has_the_decay_that_torchvision_scales_to_its_length() -> None:
    decay = rescaled(0.99998, every=32, batch_size=1024, epochs=600)
    assert RECIPES["torchvision-v2"].ema == decay


def test_the_average_is_torchvisions(golden: Any) -> None:
    weights = variables(golden)
    for weight, name in zip(weights, NAMES, strict=True):
        weight.assign(tf.zeros_like(golden[f"start/{name}"]))
    average = MovingAverage(weights)
    update = tf.function(average.update)
    decay = rescaled(0.999, every=2, batch_size=1024, epochs=10)
    phase = phase_of(EPOCH, epochs=10, ema=decay, ema_every=2, warmup_epochs=1)
    for step in range(STEPS):
        for weight, name in zip(weights, NAMES, strict=True):
            weight.assign(golden[f"sgd/{name}"][step])
        now = phase.ema_decay(step)
        if now is not None:
            update(tf.constant(now, tf.float64))
        assert_on_path(golden, "average", step, list(average.copies))
    assert list(average.state()) == [f"average/{name}" for name in NAMES]
    assert update.experimental_get_tracing_count() == 1


def test_an_average_of_a_long_memory_is_not_blurred() -> None:
    """In float32, 1 - 0.99999 would be 0.14 % too large."""
    weight = tf.Variable([0.0], name="w")
    average = MovingAverage([weight])
    weight.assign([1.0])
    average.update(0.99999)
    np.testing.assert_allclose(average.copies[0], [1e-5], rtol=1e-6)
    with pytest.raises(ValueError, match="float64"):
        average.update(tf.constant(0.99999))


def phase_of(per_epoch: int, **fields: Any) -> Phase:
    (phase,) = phases(find_recipe("cifar", batch_size=2, **fields), 2 * per_epoch)
    return phase


def test_averages_follow_as_often_as_the_recipe_says() -> None:
    phase = phase_of(10, ema=0.9, warmup_epochs=0)
    assert [phase.ema_decay(step) for step in range(3)] == [0.0, 0.9, 0.9]
    phase = phase_of(6, ema=0.9, ema_every=4, warmup_epochs=0)
    every_4 = [phase.ema_decay(step) for step in range(12)]
    assert [step for step in range(12) if every_4[step] is not None] == [0, 4, 6, 10]


TIMM: dict[str, Any] = {"warmup_start": 1e-6 / 0.5, "floor": 1e-5 / 0.5}
SCHEDULES: dict[str, dict[str, Any]] = {
    "torchvision": {"warmup_epochs": 5, "floor": 0.004, "schedule_per": "epoch"},
    "multistep": {
        "schedule": "steps",
        "milestones": (0.5, 0.58),
        "schedule_per": "epoch",
        "warmup_epochs": 0,
    },
    "timm": {
        **TIMM,
        "warmup_epochs": 5,
        "warmup_prefix": False,
        "schedule_per": "epoch",
    },
    "timm-prefix": {**TIMM, "warmup_epochs": 5, "schedule_per": "epoch"},
    "timm-updates": {**TIMM, "warmup_epochs": 1, "warmup_prefix": False},
}


@pytest.mark.parametrize("label", SCHEDULES)
def test_rates_are_torchs_and_timms(label: str, golden: Any) -> None:
    recipe = find_recipe("cifar", epochs=STEPS, learning_rate=0.5, **SCHEDULES[label])
    expected = golden[f"schedule/{label}"]
    count = len(expected)
    if recipe.schedule_per == "step":
        found = [learning_rate(recipe, step, EPOCH, STEPS) for step in range(count)]
    else:
        steps = [learning_rate(recipe, n, 3, 3 * STEPS) for n in range(3 * count)]
        assert steps[0::3] == steps[1::3] == steps[2::3]
        found = steps[::3]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_rates_per_step_and_without_a_slope() -> None:
    fields: dict[str, Any] = {"learning_rate": 1, "epochs": 5}
    warm = find_recipe(
        "cifar", schedule="constant", warmup_epochs=0.5, warmup_start=0.2, **fields
    )
    rates = [learning_rate(warm, step, 8, 40) for step in range(6)]
    np.testing.assert_allclose(rates, [0.2, 0.4, 0.6, 0.8, 1, 1])
    flat = find_recipe(
        "cifar",
        schedule="steps",
        milestones=(0.5, 0.75),
        warmup_epochs=1,
        warmup_shape="constant",
        **fields,
    )
    found = [learning_rate(flat, step, 2, 8) for step in range(8)]
    np.testing.assert_allclose(found, [0.01, 0.01, 1, 1, 0.1, 0.1, 0.01, 0.01])


def test_decay_is_for_the_weights_that_were_named() -> None:
    layers = [
        keras.layers.Dense(2, name="fc"),
        keras.layers.BatchNormalization(name="bn"),
    ]
    model = keras.Sequential([keras.layers.Input((3,)), *layers])
    weights = model.trainable_variables
    choices: Any = get_args(Decayed)
    decayed = {
        which: [
            v.path.split("/")[-1] for v in weights if is_decayed(v.path, v.ndim, which)
        ]
        for which in choices
    }
    assert decayed["kernels"] == ["kernel"]
    assert decayed["all-but-norm"] == ["kernel", "bias"]
    assert decayed["all"] == ["kernel", "bias", "gamma", "beta"]
    optimizer = Optimizer(Sgd(), weights, [0.0] * 4)
    assert list(optimizer.state())[1] == f"velocity/{weights[0].path}"
    optimizer.apply([tf.ones_like(v.value) for v in weights], 1.0)
    np.testing.assert_array_equal(model.get_layer("bn").gamma, [0, 0])


def test_variables_that_cannot_be_told_apart_or_moved_are_refused() -> None:
    one, two = tf.Variable([1.0], name="w"), tf.Variable([1.0], name="w")
    with pytest.raises(UsageError, match="Received two of the name 'w'"):
        MovingAverage([one, two])
    with pytest.raises(UsageError, match=r"must be float32\. Received: 'n' of int64"):
        MovingAverage([tf.Variable(1, dtype=tf.int64, name="n")])
    with pytest.raises(UsageError, match="2 decays and 1 variables"):
        Optimizer(Sgd(), [one], [0.0, 0.0])
    with pytest.raises(UsageError, match=r"Without one: w\. Leave frozen ones out"):
        Optimizer(Sgd(), [one], [0.0]).apply([None], 0.1)
