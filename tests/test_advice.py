"""What a message tells people to do works when they do it."""

import inspect
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from conftest import photos

import reszoo
from reszoo.cards import Metric
from reszoo.data.sources import open_source
from reszoo.training import trainer
from reszoo.weights.published import find_published
from reszoo.zoo import set_card

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), np.uint8)
DATA = PIXELS, np.arange(12) % 2
VALUES: dict[str, Any] = {"reszoo": reszoo, "np": np, "replace": replace}


class Begun(Exception):  # noqa: N818
    """A training is about to take its first step."""


@pytest.fixture(autouse=True)
def nothing_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(config: Any) -> Any:
        raise Begun(config)

    monkeypatch.setattr(trainer, "Run", stop)


def begin(model: Any, data: Any = DATA, **options: Any) -> Any:
    """Return the configuration with which a training would begin."""
    with pytest.raises(Begun) as caught:
        reszoo.train(model, data, batch_size=4, epochs=1, **options)
    return caught.value.args[0]


def told(pattern: str, call: Any, *arguments: Any, **options: Any) -> Any:
    """Return what a pattern finds in the message that a call is refused with."""
    with pytest.raises(reszoo.ReszooError) as caught:
        call(*arguments, **options)
    found = re.search(pattern, str(caught.value))
    assert found, caught.value
    return found[1]


def options_in(text: str) -> Any:
    return eval(f"dict({text})", VALUES)


def build(**options: Any) -> Any:
    return reszoo.build("resnet8", **{"input_shape": (16, 16, 3), **options})


@pytest.mark.parametrize("options", [{"include_top": False}, {"classes": 5}])
def test_a_model_is_built_for_the_data_as_told(options: Any) -> None:
    advice = told(r"; build it with ([^.]+)\.$", begin, build(**options))
    assert len(begin(build(**options_in(advice))).source.labels) == 2


def test_a_model_of_another_shape_is_built_or_shown_as_told() -> None:
    given: Any = {"classes": 2, "input_shape": (16, 24, 3)}
    pattern = r"Build it with (input_shape=.+), or set eval_size"
    advice = told(pattern, begin, build(**given), size=32)
    config = begin(build(**{**given, **options_in(advice)}), size=32)
    assert config.card.preprocessing.eval_size == 32
    advice = told(r"or set (eval_size=.+)\.$", begin, build(**given), size=32)
    config = begin(build(**given), train_size=32, **options_in(advice))
    assert config.card.preprocessing.eval_size == (16, 24)


def test_arguments_of_fit_are_given_as_told() -> None:
    name = told(r"called (\w+)\.", begin, "resnet8", validation_split=0.5)
    assert len(begin("resnet8", **{name: 0.5}).source.splits["validation"]) == 6
    name = told(r"called (\w+)\.", begin, "resnet8", lr=0.5)
    assert begin("resnet8", **{name: 0.5}).recipe.learning_rate == 0.5
    text = told(r"one argument: (\{.+\})\.$", begin, "resnet8", validation_data=DATA)
    splits = eval(text, {"images": DATA[0], "labels": DATA[1]})
    assert len(begin("resnet8", splits).source.splits["validation"]) == 12


def test_shapes_and_labels_are_written_as_told() -> None:
    advice = told(r"such as (input_shape=.+\)); ", build, input_shape=96)
    assert build(**options_in(advice)).input_shape[1:] == (96, 96, 3)
    advice = told(r"write (\[.+\])\.$", build, classes="cat")
    labels = eval(advice.replace("...", "'dog'"))
    assert reszoo.card(build(classes=labels)).labels == ("cat", "dog")
    options = options_in(told(r"only with (.+?)\. R", build, pooling="avg"))
    assert build(pooling="avg", **options).output_shape == (None, 64)
    shifted = PIXELS / 255
    advice = told(r"0\.\.1: (.+)\.$", begin, "resnet8", (shifted, DATA[1]))
    again = eval(advice, {"images": shifted, "np": np}), DATA[1]
    assert np.array_equal(begin("resnet8", again).source.splits["all"].images, PIXELS)


def test_a_checkpoint_is_loaded_as_told(tmp_path: Path) -> None:
    file = reszoo.save(build(classes=["cat", "dog"]), tmp_path / "x.safetensors")
    name = told(r"build '(\w+)'", reszoo.build, "resnet14", weights=file)
    assert reszoo.build(name, weights=file).name == "resnet8"
    text = told(
        r"order: (.+)\. Give", reszoo.build, name, weights=file, classes=["dog", "cat"]
    )
    labels = text.split(", ")
    assert reszoo.card(reszoo.build(name, weights=file, classes=labels)).labels
    without = told(
        r"; leave (it) out", reszoo.build, name, weights=file, shortcut="projection"
    )
    assert without
    backbone = reszoo.save(build(include_top=False), tmp_path / "b.safetensors")
    for pattern in (r"\((classes=10)\)", r"\((include_top=False)\)"):
        ask: Any = {"weights": backbone, "include_top": True}
        ask |= options_in(told(pattern, reszoo.build, name, **ask))
        assert reszoo.build(name, **ask)
    own = reszoo.build(name, weights=file, input_shape=(16, 16, 3))
    measured = Metric(name="top1", value=0.5, data="here")
    set_card(own, replace(reszoo.card(own), metrics=(measured,)))
    card = reszoo.card(own)
    head = own.get_layer("fc")
    head.set_weights([2 * each for each in head.get_weights()])
    call = told(r"or use dataclasses\.(.+)\.$", reszoo.save, own, file, card=card)
    assert reszoo.save(own, file, card=eval(call, {**VALUES, "card": card}))


def test_weights_for_some_uses_only_are_asked_for_as_told() -> None:
    weights = "timm/fb_swsl_ig1b_ft_in1k"
    pattern = r"; give (reszoo\.build \w+=True) if"
    function, option = told(pattern, begin, "resnet50", weights=weights).split(" ")
    parameters = inspect.signature(eval(function, VALUES)).parameters
    assert option.removesuffix("=True") in parameters
    other = told(r"such as '(\S+)'\.$", begin, "resnet50", weights=weights)
    assert find_published("resnet50", other).commercial


def test_a_keras_model_is_exported_as_told(tmp_path: Path) -> None:
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((16, 24, 1)),
            layers.Conv2D(4, 3),
            layers.GlobalAveragePooling2D(),
            layers.Dense(2),
        ]
    )
    call = told(r"as a Keras model: (.+)\.$", reszoo.card, model)
    call = call.replace("[...]", "['a', 'b']").replace("=...", "={}, formats='onnx'")
    values = {**VALUES, "model": model, "folder": tmp_path / "x"}
    pattern = r"for example (.+\)) for inputs"
    example = told(pattern, eval, call.format(None), values)
    eval(call.format(example), values)
    images = np.random.default_rng(1).integers(0, 256, (3, 16, 24), np.uint8)
    answers = reszoo.Predictor(tmp_path / "x" / "model.onnx").predict([*images])
    logits = model(images[..., None] / np.float32(127.5) - 1)
    np.testing.assert_allclose(answers, keras.ops.softmax(logits), atol=1e-5)


@pytest.mark.parametrize(
    "given",
    [
        PIXELS[0].transpose(2, 0, 1),
        PIXELS[0, ..., 0],
        np.concatenate([PIXELS[0], PIXELS[0, ..., :1]], axis=-1),
        PIXELS[0] / 255,
        PIXELS[0].astype(np.float32),
    ],
)
def test_an_image_is_handed_over_as_told(given: Any) -> None:
    predictor = reszoo.Predictor(build(classes=2))
    pattern = r"((?:PIL|array\.|array\[|\(255 \* array).+?)\.?$"
    advice = told(pattern, predictor.top, given)
    image = eval(advice, {**VALUES, "array": given, "PIL": __import__("PIL.Image")})
    assert sum(score for _, score in predictor.top(image)) == pytest.approx(1)


def test_a_study_gets_the_split_it_asks_for(tmp_path: Path) -> None:
    asked: Any = {"data": photos(tmp_path / "p", each=4), "output": tmp_path / "s"}
    pattern = r"move a part of each class to (\w+)/CLASS, beside (\w+)/"
    with pytest.raises(reszoo.UsageError) as caught:
        reszoo.study(**asked)
    found = re.search(pattern, str(caught.value))
    assert found
    for split in found.groups():
        photos(tmp_path / "q" / split, each=4)
    assert {*found.groups()} < {*open_source(tmp_path / "q").splits}


def test_data_that_is_only_measured_may_lack_classes_as_told() -> None:
    model, labels = build(classes=3), np.array([0, 2] * 6)
    text = told(r"a test split: (\{.+?\})", reszoo.evaluate, model, (PIXELS, labels))
    splits = eval(text, {"images": PIXELS, "labels": labels})
    assert reszoo.evaluate(model, splits).images == 12
