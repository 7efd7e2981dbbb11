"""Recipes as data, and how they become phases."""

import itertools
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import reszoo
from reszoo.training.command import _written, repeating
from reszoo.training.phases import phases
from reszoo.training.recipe_table import FIELDS, RECIPES, find_recipe, parse_field

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
        (1_999, {}, True, 0.9),
        (2_000, {}, False, 0.9),
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
        ({"epoch": 3}, "no recipe field 'epoch'. Did you mean 'epochs'"),
        ({"name": "mine"}, "no recipe field 'name'"),
        ({"epochs": 0}, "epochs must be a whole number of at least 1"),
        ({"epochs": 10.0}, r"Received: epochs=10\.0"),
        ({"epochs": 2, "steps": 5}, "epochs or steps, not both"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\)"),
        ({"learning_rate": -1}, "learning_rate must be above 0"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"optimizer": "adam"}, "no optimizer 'adam'. Known: sgd, caffe-sgd, lamb"),
        ({"interpolation": "area"}, "no interpolation 'area'"),
        ({"policy": "rand"}, "policy must be"),
        ({"freeze": "stage:2"}, 'freeze must be "backbone", "stages:N"'),
        ({"scale": (0.5, 0.2)}, "scale must be two numbers, the least first"),
        ({"erase": 1.5}, r"erase must lie in \[0, 1\]"),
        ({"mixup": -0.1}, "mixup and cutmix must not be negative"),
        ({"accumulate": 3}, "accumulate must divide batch_size"),
        ({"milestones": (0.5,)}, "milestones belong to"),
        ({"schedule": "steps", "milestones": (0.5, 0.2)}, "milestones must be shares"),
    ],
)
def test_impossible_recipes_are_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(reszoo.UsageError, match=text):
        find_recipe("cifar", **changes)


def test_a_mistyped_recipe_is_answered_with_the_nearest() -> None:
    with pytest.raises(reszoo.UsageError, match=r"no recipe 'cifra'.*'cifar'"):
        find_recipe("cifra")


def test_a_new_length_takes_the_place_of_the_old_one() -> None:
    assert find_recipe("cifar", steps=7).epochs is None
    assert find_recipe("he2015-cifar", epochs=7).steps is None
    assert find_recipe("cifar", seed=7).epochs == 30


@pytest.mark.parametrize("name", RECIPES)
def test_every_field_can_be_written_on_the_command_line(name: str) -> None:
    recipe = RECIPES[name]
    command = repeating("resnet20", "photos", recipe, None, None, "skip")
    assert command[-1] == name
    for field in FIELDS:
        value = recipe.to_json()[field]
        assert parse_field(f"{field}={_written(value)}") == (
            field,
            getattr(recipe, field),
        )
    assert find_recipe(recipe, **{f: getattr(recipe, f) for f in FIELDS}) == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs", r"NAME=VALUE. Received: 'epochs'"),
        ("epoch=3", "no recipe field 'epoch'"),
        ("epochs=3.5", r"epochs must be a whole number. Received: epochs=3\.5"),
        ("ema=much", "ema must be a number"),
        ("flip=maybe", "flip must be yes or no"),
        ("scale=a,b", "scale must be numbers with commas between"),
    ],
)
def test_fields_of_another_kind_are_refused(text: str, message: str) -> None:
    with pytest.raises(reszoo.UsageError, match=message):
        parse_field(text)


def test_recipes_are_plain_json() -> None:
    import json

    for recipe in RECIPES.values():
        assert json.loads(json.dumps(recipe.to_json())) == recipe.to_json()
        assert set(recipe.to_json()) == set(asdict(recipe))


def test_a_run_tells_the_command_that_repeats_it() -> None:
    recipe = find_recipe("finetune", epochs=3, flip=False, scale=(0.5, 1.0), ema=0.99)
    told = repeating("resnet18", "my photos", recipe, "imagenet", Path("out"), "error")
    assert told[:6] == [
        "reszoo",
        "train",
        "my photos",
        "--model",
        "resnet18",
        "--weights",
    ]
    fields = dict(
        parse_field(text) for flag, text in itertools.pairwise(told) if flag == "--set"
    )
    assert find_recipe(told[told.index("--recipe") + 1], **fields) == recipe
    assert told[told.index("--weights") + 1] == "imagenet"
    assert told[-4:] == ["--bad-images", "error", "--output", "out"]
    in_memory = repeating(object(), "photos", recipe, None, None, "skip")
    assert "reszoo.train(model, 'photos', recipe='finetune', epochs=3" in in_memory[2]
