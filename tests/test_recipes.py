"""Recipes as data, and how they become phases."""

import itertools
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest

import reszoo
from reszoo.data.augment import strength_of
from reszoo.training.phases import phases
from reszoo.training.recipes import DEFAULTS, NEEDS, RECIPES, find_recipe
from reszoo.training.run import RunConfig

# From the papers and scripts named in the table: epochs, batch, rate, decay.
PUBLISHED = {
    "torchvision-v1": (90, 256, 0.1, 1e-4),
    "torchvision-v2": (600, 1024, 0.5, 2e-5),
    "rsb-a1": (600, 2048, 5e-3, 0.01),
    "rsb-a2": (300, 2048, 5e-3, 0.02),
    "rsb-a3": (100, 2048, 8e-3, 0.02),
}
IMAGENET = 1_281_167


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipes_have_their_published_numbers(name: str) -> None:
    recipe = RECIPES[name]
    assert PUBLISHED[name] == (
        recipe.epochs,
        recipe.batch_size,
        recipe.learning_rate,
        recipe.weight_decay,
    )


def test_he2015_falls_at_32000_and_48000_of_64000_steps() -> None:
    (phase,) = phases(RECIPES["he2015-cifar"], 45_000)
    assert (phase.steps, phase.steps_per_epoch, phase.epochs) == (64_000, 351, 183)
    rates = [phase.learning_rate(step) for step in (0, 31_999, 32_000, 47_999, 48_000)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001])
    assert sum(phase.steps_of(epoch) for epoch in range(183)) == 64_000
    assert phase.steps_of(182) == 64_000 - 182 * 351


def test_torchvision_v1_falls_every_thirty_epochs() -> None:
    (phase,) = phases(RECIPES["torchvision-v1"], IMAGENET)
    per = phase.steps_per_epoch
    rates = [phase.learning_rate(epoch * per) for epoch in (0, 29, 30, 59, 60, 89)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert phase.learning_rate(30 * per - 1) == pytest.approx(0.1)


def test_the_usual_rate_warms_up_and_falls_to_zero() -> None:
    (phase,) = phases(
        find_recipe("cifar", epochs=5, batch_size=10, learning_rate=0.8), 40
    )
    rates = [phase.learning_rate(step) for step in range(20)]
    assert rates[0] == pytest.approx(0.008)
    assert rates[:5] == sorted(rates[:5])
    assert rates[4] == pytest.approx(0.8)
    assert rates[12] == pytest.approx(0.4)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0 < rates[-1] < 0.01


@pytest.mark.parametrize(
    ("images", "steps"),
    [(1_000, 500), (19_999, 6_240), (20_000, 10_000), (600_000, 187_500)],
)
def test_the_size_of_the_set_decides_how_long_fine_tuning_is(
    images: int, steps: int
) -> None:
    """BiT's steps, and ten epochs at least."""
    head, everything = phases(RECIPES["finetune"], images)
    assert everything.steps == steps
    assert (head.first_epoch, head.epochs, everything.first_epoch) == (0, 2, 2)
    assert head.recipe.freeze == "backbone"
    assert head.recipe.freeze_bn
    assert {head.learning_rate(step) for step in range(5)} == {0.03}


@pytest.mark.parametrize(
    ("images", "changes", "frozen", "momentum"),
    [
        (32, {}, False, 0.9),
        (32, {"batch_size": 16}, False, 0.9),
        (32, {"batch_size": 15}, True, 0.9),
        (2_000, {"batch_size": 8}, True, 0.96),
        (2_000, {"accumulate": 4}, True, 0.9),
        (64_000, {}, False, 1 - 10 / 2_000),
        (64_000, {"bn_momentum": 0.5}, False, 0.5),
        (100, {"freeze_bn": False}, False, 0.9),
    ],
)
def test_batch_norm_is_frozen_where_statistics_would_be_poor(
    images: int, changes: dict[str, Any], frozen: bool, momentum: float
) -> None:
    recipe = phases(find_recipe("finetune", **changes), images)[-1].recipe
    assert recipe.freeze_bn is frozen
    assert recipe.bn_momentum == pytest.approx(momentum)


def test_devices_share_a_batch_when_batch_norm_is_decided() -> None:
    recipe = RECIPES["finetune"]
    assert not phases(recipe, 5_000, devices=2)[-1].recipe.freeze_bn
    assert phases(recipe, 5_000, devices=4)[-1].recipe.freeze_bn
    shared = find_recipe("finetune", sync_bn=True)
    assert not phases(shared, 5_000, devices=4)[-1].recipe.freeze_bn


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"epoch": 3}, "Unknown recipe field 'epoch'. Did you mean 'epochs'"),
        ({"name": "mine"}, "Unknown recipe field 'name'"),
        ({"epochs": 0}, r"epochs must be at least 1. Received: epochs=0"),
        (
            {"epochs": 10.0},
            r"epochs must be a whole number \(or None\).*: epochs=10\.0",
        ),
        ({"epochs": True}, r"epochs must be a whole number \(or None\).*: epochs=True"),
        ({"epochs": np.float64(3)}, "epochs must be a whole number"),
        ({"learning_rate": "0.1"}, "learning_rate must be a number. .*='0.1'"),
        ({"learning_rate": float("nan")}, "learning_rate must be a number"),
        ({"weight_decay": "x"}, "weight_decay must be a number. .*: weight_decay='x'"),
        ({"momentum": None}, "momentum must be a number. Received: momentum=None"),
        ({"nesterov": 3}, "nesterov must be True or False. Received: nesterov=3"),
        (
            {"flip": "no"},
            r"flip must be True or False \(or None\). Received: flip='no'",
        ),
        ({"freeze_bn": "no"}, r"freeze_bn must be True or False \(or None\)"),
        ({"freeze": 3}, r"freeze must be a string \(or None\). Received: freeze=3"),
        ({"scale": 0.25}, r"scale must be 2 numbers. Received: scale=0\.25"),
        ({"scale": (0.1, 0.2, 0.3)}, r"scale must be 2 numbers.*=\(0\.1, 0\.2, 0\.3\)"),
        ({"scale": ("a", 1)}, r"scale must be 2 numbers. Received: scale=\('a', 1\)"),
        ({"milestones": 0.5}, r"milestones must be numbers. .*: milestones=0\.5"),
        ({"epochs": 2, "steps": 5}, "epochs or steps, not both"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\)"),
        ({"learning_rate": -1}, r"learning_rate must be more than 0"),
        ({"seed": -1}, r"seed must be at least 0"),
        (
            {"optimizer": "adagrad"},
            "Unknown optimizer 'adagrad'. Known: sgd, caffe-sgd, adam, adamw, lamb",
        ),
        ({"interpolation": "area"}, "Unknown interpolation 'area'"),
        ({"policy": "rand"}, "policy is 'trivial' or 'rand-mM-mstdS'.*: 'rand'"),
        ({"policy": "rand-m30"}, "M and S from 0 to 10.*'rand-m30'"),
        ({"policy": "rand-m7-mstd11"}, "M and S from 0 to 10.*'rand-m7-mstd11'"),
        ({"freeze": "stage:2"}, 'freeze must be "backbone", "stages:N"'),
        ({"scale": (0.5, 0.2)}, r"scale must be two numbers in \(0, 1\], the smaller"),
        ({"erase": 1.5}, r"erase must be in \[0, 1\]"),
        ({"mixup": -0.1}, r"mixup must be at least 0"),
        ({"accumulate": 3}, "accumulate must divide batch_size"),
        ({"milestones": (0.5,)}, 'milestones has an effect with schedule="steps" only'),
        ({"schedule": "steps"}, 'schedule="steps" needs milestones'),
        ({"factor": 0.5}, "factor has an effect with"),
        (
            {"scale": (0.5, 1)},
            r"scale=\(0\.5, 1\.0\) with crop='pad'. Leave one out",
        ),
        ({"crop": "none", "pad": 0.1}, 'pad has an effect with crop="pad" only'),
        ({"epochs": 3, "warmup_epochs": 5}, "warmup_epochs=5, epochs=3. Give a sm"),
        (
            {"epochs": 3, "warmup_epochs": 3},
            "warmup_epochs must be less than the",
        ),
        (
            {"schedule": "steps", "milestones": (0.5, 0.2)},
            r"milestones must be increasing shares .* in \(0, 1\)",
        ),
        ({"schedule": "steps", "milestones": (30, 60)}, "must be increasing shares"),
        ({"schedule": "cosin"}, "Unknown schedule 'cosin'. Did you mean 'cosine'"),
        ({"schedule_per": "batch"}, "Unknown schedule_per 'batch'"),
        ({"decay_on": "kernel"}, "Unknown decay_on 'kernel'. Did you mean 'kernels'"),
        ({"warmup_epochs": -1}, r"must be at least 0.*: warmup_epochs=-1"),
        ({"floor": 1.5}, r"floor must be in \[0, 1\]"),
        ({"layer_decay": 0}, r"layer_decay must be in \(0, 1\]. .*: layer_decay=0"),
        ({"patience": 0}, r"patience must be at least 1"),
    ],
)
def test_impossible_recipes_are_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(reszoo.UsageError, match=text):
        find_recipe("cifar", **changes)


def test_numbers_of_numpy_and_lists_become_plain_ones() -> None:
    given = {
        "epochs": np.int64(3),
        "learning_rate": np.float32(0.5),
        "weight_decay": 0,
        "nesterov": np.True_,
        "crop": "resized",
        "scale": [np.float64(0.5), 1],
        "ratio": np.array([0.5, 2.0]),
    }
    recipe = find_recipe("cifar", **given)
    values = [getattr(recipe, field) for field in given]
    assert values == [3, 0.5, 0.0, True, "resized", (0.5, 1.0), (0.5, 2.0)]
    kinds = [type(value) for value in values]
    assert kinds == [int, float, float, bool, str, tuple, tuple]
    assert {type(part) for part in (*recipe.scale, *recipe.ratio)} == {float}


def test_a_path_is_text_in_a_field() -> None:
    assert find_recipe("cifar", teacher=Path("runs") / "best").teacher == "runs/best"
    with pytest.raises(reszoo.UsageError, match="seed must be a whole number"):
        find_recipe("cifar", seed=Path("1"))


def test_policies_have_the_names_of_timm() -> None:
    assert strength_of("trivial") is None
    assert strength_of("rand-m7-mstd0.5-inc1") == strength_of("rand-m7-mstd0.5")
    assert strength_of("rand-m7-mstd0.5") == (7, 0.5)
    assert strength_of("rand-m10") == (10, 0)
    assert find_recipe("rsb-a2", policy="rand-m7-mstd0.5-inc1").policy is not None


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("torchvision-v1", {"schedule": "cosine"}, {"milestones": ()}),
        ("he2015-cifar", {"schedule": "constant"}, {"milestones": ()}),
        ("rsb-a2", {"schedule": "constant"}, {"floor": 0, "warmup_prefix": True}),
        ("cifar", {"crop": "resized"}, {"pad": 0}),
        ("finetune", {"crop": "pad", "pad": 0.1}, {"scale": (0.08, 1), "pad": 0.1}),
        ("torchvision-v2", {"epochs": 3}, {"warmup_epochs": None}),
        ("torchvision-v2", {"epochs": 6}, {"warmup_epochs": 5}),
        ("cifar", {"steps": 2}, {"warmup_epochs": None}),
        ("he2015-cifar", {"steps": 2}, {"warmup_epochs": 0}),
    ],
)
def test_what_belongs_to_the_old_value_of_a_field_goes_with_it(
    name: str, changes: dict[str, Any], told: dict[str, Any]
) -> None:
    recipe = find_recipe(name, **changes)
    assert {field: getattr(recipe, field) for field in told} == told


@pytest.mark.parametrize(
    ("name", "changes", "text"),
    [
        ("he2015-cifar", {"schedule": "cosine", "milestones": (0.5,)}, "milestones"),
        ("rsb-a2", {"schedule": "constant", "floor": 0.1}, "floor"),
        ("finetune", {"crop": "resized", "pad": 0.1}, "pad"),
    ],
)
def test_what_cannot_act_is_refused_where_it_is_given_as_well(
    name: str, changes: dict[str, Any], text: str
) -> None:
    with pytest.raises(reszoo.UsageError, match=f"^{text} has an effect with"):
        find_recipe(name, **changes)


def test_every_choice_can_replace_the_one_of_every_recipe() -> None:
    for (field, *_), name in itertools.product(NEEDS.values(), RECIPES):
        for value in get_args(get_type_hints(reszoo.Recipe)[field]):
            needed = {"milestones": (0.5,)} if value == "steps" else {}
            recipe = find_recipe(name, **{field: value}, **needed)
            idle = [
                f
                for f, (o, *values) in NEEDS.items()
                if getattr(recipe, o) not in (*values, "auto")
            ]
            assert all(getattr(recipe, f) == DEFAULTS[f] for f in idle)


def test_a_warm_up_as_long_as_a_training_in_steps_is_refused() -> None:
    recipe = find_recipe("cifar", steps=10, batch_size=10, warmup_epochs=2)
    assert phases(recipe, 40)[0].learning_rate(9) == pytest.approx(0.05)
    with pytest.raises(reszoo.UsageError, match=r"warmup_epochs=2, epochs=2"):
        phases(recipe, 50)


def test_recipes_need_no_tensorflow() -> None:
    code = "import reszoo.training.recipes, sys\nassert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_mistyped_recipe_is_answered_with_the_nearest() -> None:
    with pytest.raises(reszoo.UsageError, match=r"Unknown recipe 'cifra'.*'cifar'"):
        find_recipe("cifra")


def test_a_new_length_takes_the_place_of_the_old_one() -> None:
    assert find_recipe("cifar", steps=7).epochs is None
    assert find_recipe("he2015-cifar", epochs=7).steps is None
    assert find_recipe("cifar", seed=7).epochs == 30


def test_recipes_are_plain_json() -> None:
    import json

    for recipe in RECIPES.values():
        assert json.loads(json.dumps(recipe.to_json())) == recipe.to_json()
        assert set(recipe.to_json()) == set(asdict(recipe))


@pytest.mark.parametrize(
    ("side", "changes", "crop"),
    [
        (32, {}, "pad"),
        (95, {}, "pad"),
        (96, {}, "resized"),
        (32, {"crop": "resized"}, "resized"),
        (224, {"crop": "pad", "pad": 0.1}, "pad"),
    ],
)
def test_small_pictures_are_shifted_and_large_ones_cropped(
    side: int, changes: dict[str, Any], crop: str
) -> None:
    config = RunConfig(
        model=None,
        card=SimpleNamespace(preprocessing=SimpleNamespace(train_size=side)),  # type: ignore[arg-type]
        source=SimpleNamespace(flip_safe=True),  # type: ignore[arg-type]
        recipe=find_recipe("finetune", **changes),
        phases=(),
        folder=None,
        save_every=0,
        devices=None,  # type: ignore[arg-type]
    )
    assert config.augmentation.crop == crop
    if crop == "pad":
        assert config.augmentation.pad == round(config.recipe.pad * side) > 0
    else:
        assert config.augmentation.scale == (0.25, 1)
