import json
import math
from dataclasses import replace
from typing import Any

import family
import keras
import pytest

import reszoo
from reszoo.architecture import (
    architecture,
    architecture_from_json,
    convolutions,
    count_parameters,
    standalone_norms,
)
from reszoo.specs import SPECS, find_spec


def test_the_zoo_lists_every_net_and_its_plain_twin() -> None:
    depths = [18, 34, 50, 101, 152, 8, 14, 20, 32, 44, 56, 110, 1202]
    plain = [name for name in reszoo.list_models() if name.startswith("plain")]
    assert plain == [f"plain{depth}" for depth in depths]
    twins = [name.replace("plain", "resnet") for name in plain]
    assert [name for name in reszoo.list_models("resnet*") if name in twins] == twins
    assert reszoo.list_models("*50*") == [
        "resnet50", "resnext50_32x4d", "wide_resnet50_2", "resnet50d", "resnet50v2",
        "plain50",
    ]  # fmt: skip
    assert reszoo.list_models("resne*t") == ["resnet10t", "resnet14t", "resnet26t"]
    assert reszoo.list_models("preresnet*") == [
        f"preresnet{depth}" for depth in (20, 56, 110, 164, 1001)
    ]
    assert reszoo.list_models("wrn*") == ["wrn16_4", "wrn40_2", "wrn28_10"]
    assert reszoo.list_models() == list(SPECS)


def test_an_unknown_model_names_the_nearest() -> None:
    with pytest.raises(
        reszoo.UnknownNameError, match=r"Unknown model 'resnet5'.*'resnet50'"
    ):
        reszoo.build("resnet5")


@pytest.mark.parametrize("argument", ["shortcut", "stride_in", "pooling", "features"])
def test_an_unknown_option_lists_the_choices(argument: str) -> None:
    with pytest.raises(reszoo.UnknownNameError, match=rf"Unknown {argument} 'x'"):
        architecture("resnet50", include_top=False, **{argument: "x"})


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("plain18", {"shortcut": "projection"}, "plain18 is a model without shortcuts"),
        ("resnet18", {"stride_in": "1x1"}, "needs bottleneck blocks"),
        ("resnet18", {"pooling": "avg"}, "only with include_top=False"),
        ("resnet18", {"features": "pyramid"}, "only with include_top=False"),
        (
            "resnet18",
            {"include_top": False, "classes": 5},
            "only with include_top=True",
        ),
        ("resnet18", {"classes": 0}, r"classes must be in \[1, 1000000\]"),
        ("resnet18", {"input_shape": (0, 8, 3)}, "must be .height, width, channels."),
        ("resnet18", {"input_shape": (8, 8)}, r"Received: input_shape=\(8, 8\)"),
        ("resnet18", {"output_stride": 4}, r"one of \(8, 16, 32\).*output_stride=4"),
        ("resnet20", {"output_stride": 4}, r"one of \(8, 16, 32\).*output_stride=4"),
        ("wrn16_4", {"output_stride": 8}, "wrn16_4 stands for only 4 pixels.*=8"),
        ("wrn16_4", {"dropout": 1.0}, r"dropout must be in \[0, 1\).*dropout=1.0"),
        ("wrn16_4", {"dropout": "1"}, "dropout must be a number.*dropout='1'"),
    ],
)
def test_contradictions_are_refused(
    name: str, options: dict[str, object], text: str
) -> None:
    with pytest.raises(reszoo.UsageError, match=text):
        architecture(name, **options)


@pytest.mark.parametrize("name", reszoo.list_models())
def test_an_architecture_survives_json(name: str) -> None:
    for include_top in (True, False):
        described = architecture(name, include_top=include_top)
        assert architecture_from_json(described.to_json()) == described


def test_a_card_written_before_the_family_grew_is_read() -> None:
    content = architecture("resnet18").to_json()
    custom = architecture(family.SPECS["pre"]).to_json()
    for added in ("output_stride", "dropout"):
        assert added not in {**content, **custom}
    for added in ("stride_block", "bias", "epsilon"):
        del custom["spec"][added]
    assert architecture_from_json(content) == architecture("resnet18")
    assert architecture_from_json(custom) == architecture(family.SPECS["pre"])


def test_an_output_stride_that_a_model_has_anyway_changes_nothing() -> None:
    assert architecture("resnet18", output_stride=32) == architecture("resnet18")
    dilated = architecture("resnet18", output_stride=8)
    assert replace(dilated, output_stride=32) == architecture("resnet18")


SPEC: dict[str, Any] = {"name": "mine", "depths": (1, 2), "widths": (8, 16)}


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"name": "a/b"}, r"letters, digits.*Received: name='a/b'"),
        ({"depths": (1,)}, r"one number per stage.*Received: depths=\(1,\)"),
        ({"depths": (900, 101)}, "at most 1000 blocks"),
        ({"depths": ()}, r"one number per stage.*Received: depths=\(\)"),
        (
            {"widths": (8, 0)},
            r"widths must be at least 1. .*: widths=\(8, 0\)",
        ),
        ({"widths": "ab"}, "widths must be whole numbers. Received: widths='ab'"),
        ({"classes": 0}, r"classes must be in \[1, 1000000\]. Received: classes=0"),
        ({"groups": True}, "groups must be a whole number"),
        ({"groups": None}, "groups must be a whole number"),
        (
            {"stem_widths": (8, 8)},
            r"otherwise one.*stem_widths=\(8, 8\) for stem='7x7'",
        ),
        ({"stem": "deep", "stem_widths": (8,)}, "must have 3 numbers"),
        ({"groups": 2}, 'groups and width_per_group need block="bottleneck"'),
        ({"block": "bottleneck", "width_per_group": 4}, "at least one channel"),
        ({"epsilon": 0}, r"epsilon must be in \(0, 1\]. Received: epsilon=0"),
        ({"epsilon": "small"}, "epsilon must be a number. Received: epsilon='small'"),
        ({"bias": True}, "bias needs activation_order=.pre.*bias=True with"),
        ({"bias": 1, "activation_order": "pre"}, "bias must be True or False.*bias=1"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(
    fields: dict[str, Any], text: str
) -> None:
    with pytest.raises(reszoo.UsageError, match=text):
        reszoo.ResNetSpec(**{**SPEC, **fields})


@pytest.mark.parametrize(
    "field",
    ["block", "stem", "shortcut", "downsampling", "activation_order", "stride_block"],
)
def test_an_unknown_value_of_a_spec_lists_the_choices(field: str) -> None:
    with pytest.raises(reszoo.UnknownNameError, match=rf"{field} 'x'.*Known: "):
        reszoo.ResNetSpec(**{**SPEC, field: "x"})


def test_a_spec_needs_a_name_of_its_own() -> None:
    with pytest.raises(reszoo.UsageError, match="give the spec another name"):
        reszoo.build(reszoo.ResNetSpec(**{**SPEC, "name": "resnet18"}))
    assert architecture(SPECS["resnet18"]) == architecture("resnet18")


def test_zero_channels_cannot_make_channels_fewer() -> None:
    spec = reszoo.ResNetSpec(**{**SPEC, "widths": (16, 8), "shortcut": "identity"})
    with pytest.raises(reszoo.UsageError, match=r"must not fall.*\[16, 16, 8\]"):
        reszoo.build(spec)
    reszoo.build(spec, shortcut="projection")


@pytest.mark.parametrize("spec", family.SPECS.values(), ids=family.SPECS)
def test_a_custom_architecture_survives_json(spec: reszoo.ResNetSpec) -> None:
    described = architecture(spec, input_shape=(None, None, 1), classes=3, dropout=0.3)
    content = json.loads(json.dumps(described.to_json()))
    assert architecture_from_json(content) == described
    assert content["spec"]["depths"] == list(spec.depths)
    assert architecture("resnet18").to_json()["spec"] == "resnet18"


OPTIONS: list[dict[str, Any]] = [{}, {"shortcut": "projection-all"}]
OPTIONS += [{"shortcut": "none"}, {"stride_in": "1x1", "shortcut": "identity"}]


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        pytest.param(spec, options, id=f"{spec.name}-{options}")
        for spec in (*map(find_spec, ("resnet18", "resnet50")), *family.SPECS.values())
        for options in OPTIONS
        if spec.block == "bottleneck" or "stride_in" not in options
    ],
)
def test_the_list_names_every_convolution_of_the_model(
    spec: reszoo.ResNetSpec, options: dict[str, Any]
) -> None:
    model = reszoo.build(spec, include_top=False, **options)
    described = reszoo.card(model).resnet
    listed = {each.name: each for each in convolutions(described)}
    layers = {layer.name: layer for layer in model.layers}
    made = {n for n, x in layers.items() if isinstance(x, keras.layers.Conv2D)}
    assert set(listed) == made
    for each in listed.values():
        layer = layers[each.name]
        assert tuple(layer.kernel.shape) == each.keras_shape
        assert layer.strides == (each.stride, each.stride)
        assert layer.groups == each.groups
        if each.norm is not None:
            assert layers[each.norm].input is layer.output
    norms = {n for n, x in layers.items() if hasattr(x, "moving_mean")}
    named = {norm for each in listed.values() for norm in each.norms}
    assert named | set(standalone_norms(described)) == norms
    weights = (math.prod(weight.shape) for weight in model.trainable_weights)
    assert count_parameters(described) == sum(weights)
