import pytest

import reszoo
from reszoo.architecture import architecture, architecture_from_json
from reszoo.specs import SPECS


def test_the_zoo_lists_every_net_and_its_plain_twin() -> None:
    depths = [18, 34, 50, 101, 152, 20, 32, 44, 56, 110]
    assert reszoo.list_models("resnet*") == [f"resnet{depth}" for depth in depths]
    assert reszoo.list_models("plain*") == [f"plain{depth}" for depth in depths]
    assert reszoo.list_models() == list(SPECS)


def test_an_unknown_model_names_the_nearest() -> None:
    with pytest.raises(
        reszoo.UnknownNameError, match=r"Unknown model 'resnet5'.*'resnet50'"
    ):
        reszoo.build("resnet5")


@pytest.mark.parametrize("argument", ["shortcut", "stride_in", "pooling", "features"])
def test_an_unknown_option_lists_the_choices(argument: str) -> None:
    with pytest.raises(reszoo.UnknownNameError, match=rf"Unknown {argument} 'x'"):
        architecture("resnet50", include_top=False, **{argument: "x"})  # type: ignore[arg-type]


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
        ("resnet18", {"classes": 0}, "classes must be at least 1"),
        ("resnet18", {"input_shape": (0, 8, 3)}, "must be .height, width, channels."),
        ("resnet18", {"input_shape": (8, 8)}, r"Received: input_shape=\(8, 8\)"),
    ],
)
def test_contradictions_are_refused(
    name: str, options: dict[str, object], text: str
) -> None:
    with pytest.raises(reszoo.UsageError, match=text):
        architecture(name, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", reszoo.list_models())
def test_an_architecture_survives_json(name: str) -> None:
    for include_top in (True, False):
        described = architecture(name, include_top=include_top)
        assert architecture_from_json(described.to_json()) == described
