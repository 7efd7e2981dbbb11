"""What is frozen stays, bit for bit."""

from typing import Any

import family
import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import randomise

import reszoo
from reszoo.specs import find_spec
from reszoo.training.devices import Devices
from reszoo.training.model import freeze, frozen_layers, training_copy
from reszoo.training.phases import phases
from reszoo.training.recipes import find_recipe
from reszoo.training.step import PhaseTrainer
from reszoo.weights.names import to_tensors

NETS = ("resnet18", "resnet34", "resnet50")
NORMS = {"resnet18": 20, "resnet34": 36, "resnet50": 53}


def moved(name: str, **fields: Any) -> set[str]:
    """Train for one step; return the names of the tensors that changed."""
    side = 32 if name in NETS else 8
    model = randomise(
        reszoo.build(name, classes=3, input_shape=(side, side, 3), seed=0)
    )
    card = reszoo.card(model)
    preprocessing = card.preprocessing
    recipe = find_recipe("cifar", batch_size=2, precision="float32", **fields)
    (phase,) = phases(recipe, 2)
    net = training_copy(model, preprocessing, recipe)
    trainer = PhaseTrainer(net, card.resnet, preprocessing, phase, Devices())
    images = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)
    before = to_tensors(net)
    trainer.train(tf.constant(images), tf.constant([0, 1], tf.int64), 0, 0)
    after = to_tensors(net)
    return {name for name in before if not np.array_equal(before[name], after[name])}


def is_norm(tensor: str) -> bool:
    return ".bn" in tensor or tensor.startswith("bn1") or "downsample.1" in tensor


@pytest.mark.parametrize(
    "name", ["resnet18", pytest.param("resnet50", marks=pytest.mark.slow)]
)
def test_frozen_batch_norm_does_not_move_while_all_else_does(name: str) -> None:
    changed = moved(name, freeze_bn=True)
    assert not any(map(is_norm, changed))
    assert {"conv1.weight", "layer4.1.conv2.weight", "fc.bias"} <= changed


@pytest.mark.parametrize(
    ("setting", "still", "moves"),
    [
        ("stages:0", ("conv1", "bn1"), ("layer1.", "layer3.", "fc")),
        ("stages:2", ("conv1", "bn1", "layer1.", "layer2."), ("layer3.", "fc")),
        pytest.param(
            *("stages:3", ("conv1", "bn1", "layer1.", "layer2.", "layer3."), ("fc",)),
            marks=pytest.mark.slow,
        ),
        ("backbone", ("conv1", "bn1", "layer1.", "layer2.", "layer3."), ("fc",)),
    ],
)
@pytest.mark.parametrize(
    "freeze_bn", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_frozen_stages_do_not_move(
    setting: str, still: Any, moves: Any, freeze_bn: bool
) -> None:
    changed = moved("resnet8", freeze=setting, freeze_bn=freeze_bn)
    assert not [name for name in changed if name.startswith(still)]
    assert all(any(name.startswith(part) for name in changed) for part in moves)
    assert any(map(is_norm, changed)) == (not freeze_bn and "layer3." in moves)


@pytest.fixture(scope="module", params=NETS)
def built(request: pytest.FixtureRequest) -> Any:
    return reszoo.build(request.param, classes=3, input_shape=(32, 32, 3))


@pytest.mark.parametrize("setting", [None, "stages:1", "stages:4", "backbone"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_every_batch_norm_is_counted_and_set(
    built: Any, setting: str | None, batch_norm: bool
) -> None:
    model, described = built, reszoo.card(built).resnet
    for layer in model.layers:
        layer.trainable = True
    counted = freeze(model, described, setting, batch_norm)
    assert sum(counted) == NORMS[model.name]
    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    assert counted.frozen == sum(not layer.trainable for layer in norms)
    if batch_norm or setting in ("backbone", "stages:4"):
        assert counted.live == 0
    elif setting is None:
        assert counted.frozen == 0
    else:
        assert str(counted) == (
            f"batch normalisation: {counted.frozen} frozen, {counted.live} live"
        )
    assert model.get_layer("fc").trainable


KINDS = [*family.SPECS.values(), *map(find_spec, ("resnet50v2", "preresnet20"))]


@pytest.mark.parametrize("spec", KINDS, ids=lambda spec: spec.name)
def test_parts_of_every_kind_of_model_are_named(spec: reszoo.ResNetSpec) -> None:
    model = reszoo.build(
        spec, include_top=False, features="pyramid", input_shape=(64, 64, 3)
    )
    described = reszoo.card(model).resnet
    stages = [f"layer{number}" for number in range(1, len(spec.depths) + 1)]
    assert list(model.output) == stages
    assert model.output[stages[-1]].shape[1] == 64 // described.reduction
    named = {layer.name for layer in model.layers if layer.weights}
    first = {name for name in named if name.split(".")[0] in ("conv1", "bn1", "layer1")}
    assert frozen_layers(described, "stages:1") == first
    assert frozen_layers(described, "backbone") == named


def test_a_stage_that_is_not_there_is_refused() -> None:
    model = reszoo.build("resnet20")
    with pytest.raises(reszoo.UsageError, match="resnet20 has 3 stages"):
        freeze(model, reszoo.card(model).resnet, "stages:4", False)


def test_layers_that_the_caller_froze_stay_frozen() -> None:
    model = reszoo.build("resnet20", input_shape=(8, 8, 3))
    model.get_layer("layer1.0.conv1").trainable = False
    net = training_copy(model, reszoo.card(model).preprocessing, find_recipe("cifar"))
    assert not net.get_layer("layer1.0.conv1").trainable
    assert net.get_layer("layer1.0.conv2").trainable
