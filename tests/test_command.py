"""The command that repeats a run, and what its words mean."""

import ast
import itertools
from dataclasses import replace
from pathlib import Path

import pytest

import reszoo
from reszoo.training.recipes import (
    FIELDS,
    RECIPES,
    _written,
    find_recipe,
    parse_field,
    repeat_command,
)


@pytest.mark.parametrize("name", RECIPES)
def test_every_field_can_be_written_on_the_command_line(name: str) -> None:
    recipe = RECIPES[name]
    command = repeat_command("resnet20", "photos", recipe, None, None, "skip")
    assert command[-1] == name
    for field in FIELDS:
        value = getattr(recipe, field)
        assert parse_field(f"{field}={_written(value)}") == (field, value)
    assert find_recipe(recipe, **{f: getattr(recipe, f) for f in FIELDS}) == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs", r"NAME=VALUE. Received: 'epochs'"),
        ("epoch=3", "Unknown recipe field 'epoch'"),
        (
            "epochs=3.5",
            r"epochs must be a whole number \(or None\). Received: epochs=3\.5",
        ),
        ("ema=much", "ema must be a number"),
        ("flip=maybe", "flip must be True or False .*Received: flip='maybe'"),
        ("scale=a,b", r"scale must be 2 numbers. Received: scale=\('a', 'b'\)"),
        ("scale=0.25", r"scale must be 2 numbers. Received: scale=\(0\.25,\)"),
        ("ema=nan", "ema must be a number"),
    ],
)
def test_fields_of_another_kind_are_refused(text: str, message: str) -> None:
    with pytest.raises(reszoo.UsageError, match=message):
        parse_field(text)


def test_the_command_repeats_the_run() -> None:
    recipe = find_recipe("finetune", epochs=3, flip=False, scale=(0.5, 1.0), ema=0.99)
    told = repeat_command(
        "resnet18", "my photos", recipe, "imagenet", Path("out"), "error"
    )
    assert told[:5] == ["reszoo", "train", "my photos", "--model", "resnet18"]
    fields = dict(
        parse_field(text) for flag, text in itertools.pairwise(told) if flag == "--set"
    )
    assert find_recipe(told[told.index("--recipe") + 1], **fields) == recipe
    assert told[told.index("--weights") + 1] == "imagenet"
    assert told[-4:] == ["--bad-images", "error", "--output", "out"]


def test_a_change_that_resets_other_fields_is_written_in_full() -> None:
    recipe = replace(RECIPES["cifar"], epochs=None, steps=9_000)
    told = repeat_command("resnet18", "photos", recipe, None, None, "skip")
    fields = dict(
        parse_field(text) for flag, text in itertools.pairwise(told) if flag == "--set"
    )
    assert fields == {"epochs": None, "steps": 9_000, "warmup_epochs": 1}
    assert find_recipe("cifar", **fields) == recipe


def call_of(told: list[str]) -> tuple[list[str], dict[str, str]]:
    """Return the arguments of the one call in a command of Python."""
    assert told[:2] == ["python", "-c"]
    call = ast.parse(told[2]).body[-1].value  # type: ignore[attr-defined]
    named = {word.arg: ast.unparse(word.value) for word in call.keywords}
    return [ast.unparse(word) for word in call.args], named


def test_what_is_in_memory_is_repeated_in_python_with_everything_given() -> None:
    recipe = find_recipe("finetune", epochs=3, scale=(0.5, 1))
    output = Path("my run")
    told = repeat_command(
        "resnet18", {}, recipe, Path("a.h5"), output, "error", "mirrored"
    )
    assert call_of(told) == (
        ["'resnet18'", "data"],
        {
            "recipe": "'finetune'",
            "epochs": "3",
            "scale": "(0.5, 1.0)",
            "weights": "'a.h5'",
            "bad_images": "'error'",
            "strategy": "'mirrored'",
            "output": "'my run'",
        },
    )
    plain = repeat_command(
        object(), Path("photos"), RECIPES["cifar"], None, None, "skip"
    )
    assert call_of(plain) == (["model", "'photos'"], {"recipe": "'cifar'"})


def test_a_recipe_of_ones_own_is_repeated_as_it_is() -> None:
    own = replace(RECIPES["he2015-cifar"], name="mine", seed=3)
    words, named = call_of(
        repeat_command("resnet20", "digits", own, None, None, "skip")
    )
    assert words == ["'resnet20'", "'digits'"]
    assert set(named) == {"recipe"}
    assert eval(named["recipe"], {"reszoo": reszoo}) == own
    assert "nesterov" not in named["recipe"]
