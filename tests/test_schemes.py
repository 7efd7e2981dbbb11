"""Checkpoints as other libraries name them: the same answers, and what became of heads.

The files are written without torch (`checkpoint_layouts.py`), so that these tests run
without it; `test_scheme_peers.py` compares with the libraries themselves.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_layouts import LAYOUTS, WITH_CLASSIFIER, body, mlp, prefixed, write
from conftest import randomise
from numpy_resnet import ResNet, logits
from torch_writer import Writer, call, many, mapping, number, text
from torch_writer import name as named

import reszoo
from reszoo.errors import CheckpointError
from reszoo.weights.names import to_tensors

X = np.random.default_rng(5).normal(0, 1, (2, 32, 32, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def tensors() -> Any:
    model = reszoo.build("resnet8", classes=5, shortcut="projection")
    return to_tensors(randomise(model, seed=3))


def close(answer: Any, expected: Any) -> bool:
    error = np.abs(np.asarray(answer) - expected).max()
    return bool(error <= 1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("library", LAYOUTS)
def test_every_layout_gives_the_models_answers(
    library: str, tensors: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "model.pth", LAYOUTS[library](tensors))
    model = reszoo.load(file, None if library != "Transformers" else "resnet8")
    report, said = reszoo.load_report(model), capsys.readouterr().err
    assert report is not None
    assert report.complete
    if library in WITH_CLASSIFIER:
        assert close(model(X), logits(X, tensors))
    else:
        stages = list(ResNet(tensors).stages(X).values())[-1].transpose(0, 2, 3, 1)
        assert close(model(X), stages)
        assert "there is no classifier" in said
        assert report.skipped
    if report.skipped:
        assert f"not part of the model: {report.skipped[0]}" in said


def test_a_new_classifier_replaces_a_projection(tensors: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "moco.pth", LAYOUTS["MoCo"](tensors))
    model = reszoo.build("resnet8", weights=file, classes=4, shortcut="projection")
    assert model.output_shape == (None, 4)
    report = reszoo.load_report(model)
    assert report is not None
    assert "a projection of MoCo, so there is no classifier" in str(report)
    assert "fresh head of 4 classes" in str(report)
    assert "module.encoder_q.fc.weight" in report.skipped
    held = to_tensors(model)
    for name, value in body(tensors).items():
        np.testing.assert_array_equal(held[name], value)
    with pytest.raises(reszoo.CheckpointError, match=r"has no classifier\. Say how"):
        reszoo.build("resnet8", weights=file, shortcut="projection")
    bare = reszoo.build(
        "resnet8", weights=file, include_top=False, shortcut="projection"
    )
    assert bare.output_shape[-1] == 64


@pytest.mark.parametrize(
    ("change", "text"),
    [
        # What stands within the backbone changes what it computes.
        (
            lambda t: t | {"layer1.0.se.fc1.weight": np.ones((4, 16, 1, 1))},
            "layer1.0.se",
        ),
        (lambda t: t | {"adapter.weight": np.ones((3, 3, 1, 1))}, "adapter"),
        (
            lambda t: prefixed(t, "first.") | prefixed(t, "second."),
            r"more than one ResNet: first\., second\.",
        ),
        (lambda t: {"a": t, "b": t}, "more than one ResNet: a, b"),
        (
            lambda t: body(t) | {"classifier.4.weight": np.ones((5, 64, 1, 1))},
            r"segmentation model.*output_stride=8",
        ),
    ],
)
def test_what_tensors_do_not_tell_is_refused(
    change: Any, text: str, tensors: Any, tmp_path: Path
) -> None:
    file = write(tmp_path / "x.pth", change(tensors))
    with pytest.raises(reszoo.CheckpointError, match=text):
        reszoo.load(file)


def test_a_classifier_of_two_layers_is_not_taken_for_one(
    tensors: Any, tmp_path: Path
) -> None:
    file = write(tmp_path / "x.pth", body(tensors) | mlp(tensors, "fc"))
    report = reszoo.load_report(reszoo.load(file))
    assert report is not None
    assert report.skipped[0] == "fc.0.weight"


def test_the_averaged_or_teaching_copy_is_named(tensors: Any, tmp_path: Path) -> None:
    report = reszoo.load_report(
        reszoo.load(write(tmp_path / "x.pth", LAYOUTS["DINO"](tensors)))
    )
    assert "teacher is loaded, not student" in str(report)


def test_the_config_in_a_file_of_openmmlab_is_honoured(
    tensors: Any, tmp_path: Path
) -> None:
    tree = LAYOUTS["mmpretrain"](tensors)
    card = reszoo.card(reszoo.load(write(tmp_path / "rgb.pth", tree)))
    assert card.labels == tuple("abcde")
    assert card.preprocessing.mean == (120 / 255, 110 / 255, 100 / 255)
    text = tree["meta"]["cfg"].replace("to_rgb=True", "to_rgb=False")
    few = {"dataset_meta": {"classes": ["a", "b"]}, "cfg": text}
    model = reszoo.load(write(tmp_path / "bgr.pth", tree | {"meta": few}))
    assert "2 labels for 5 classes are left out" in str(reszoo.load_report(model))
    assert reszoo.card(model).labels is None
    # Blue comes first in such a file.
    assert reszoo.card(model).preprocessing.mean == (100 / 255, 110 / 255, 120 / 255)
    reversed_ = tensors | {"conv1.weight": tensors["conv1.weight"][:, ::-1]}
    assert close(model(X), logits(X, reversed_))


def test_caffes_stride_is_that_of_the_config(tmp_path: Path) -> None:
    spec = reszoo.ResNetSpec(
        name="small", block="bottleneck", depths=(1, 1), widths=(8, 16), stem="3x3",
        classes=5, image_size=32,
    )  # fmt: skip
    tensors = to_tensors(randomise(reszoo.build(spec), seed=3))
    meta = {"cfg": "model = dict(backbone=dict(style='caffe'))"}
    tree = {"meta": meta, "state_dict": prefixed(body(tensors), "backbone.")}
    model = reszoo.load(write(tmp_path / "x.pth", tree), spec)
    assert reszoo.card(model).resnet.stride_in == "1x1"


@pytest.mark.parametrize(
    "tree",
    [
        {"layer1.0.conv1.weight": np.ones(3)},
        {"res2.0.conv1.weight": np.ones((2, 2, 1, 1))},
        {"layer1.0.conv1.weight": np.ones((2, 2, 1, 1)), "fc.weight": np.ones(2)},
        {f"layer{'9' * 5000}.0.conv1.weight": np.ones(3), "4.0.conv1.weight": X},
    ],
)
def test_what_only_looks_like_a_resnet_is_refused(tree: Any, tmp_path: Path) -> None:
    with pytest.raises(reszoo.CheckpointError):
        reszoo.load(write(tmp_path / "x.pth", tree))


def test_a_bare_file_of_transformers_says_what_is_assumed(tmp_path: Path) -> None:
    tensors = to_tensors(randomise(reszoo.build("resnet18", classes=3), seed=3))
    model = reszoo.load(write(tmp_path / "x.pth", LAYOUTS["Transformers"](tensors)))
    said = str(reszoo.load_report(model))
    assert "hidden_act relu and downsample_in_bottleneck false are assumed" in said
    held = to_tensors(model)
    assert all(np.array_equal(held[name], value) for name, value in tensors.items())


@pytest.mark.parametrize("kind", ["a second dense layer", "a normalization"])
def test_modules_around_a_classifier_make_it_another_function(
    kind: str, tensors: Any, tmp_path: Path
) -> None:
    width = tensors["fc.weight"].shape[1]
    around = {"classifier.weight": np.ones((7, 5)), "classifier.bias": np.ones(7)}
    if kind == "a normalization":
        around = {f"neck.{n}": np.ones(width) for n in ("weight", "running_mean")}
    tree = prefixed(tensors, "backbone.") | around
    report = reszoo.load_report(reszoo.load(write(tmp_path / "x.pth", tree)))
    assert report is not None
    assert "fc.weight" not in report.loaded
    assert "no single dense layer" in str(report)
    # Weights of a loss, one for each class, and a head beside it, change nothing.
    beside = {"criterion.weight": np.ones(5), "other.weight": np.ones((4, width))}
    tree = prefixed(tensors, "backbone.") | beside
    model = reszoo.load(write(tmp_path / "y.pth", tree))
    assert close(model(X), logits(X, tensors))


@pytest.mark.parametrize("key", ["ema_state_dict", "ema_model", "params_ema"])
def test_averaged_weights_come_first(key: str, tensors: Any, tmp_path: Path) -> None:
    last = {name: value + 1 for name, value in tensors.items()}
    plain = key.removesuffix("_ema").removeprefix("ema_")
    model = reszoo.load(write(tmp_path / "x.pth", {plain: last, key: tensors}))
    assert close(model(X), logits(X, tensors))
    assert f"{key} is loaded, not {plain}" in str(reszoo.load_report(model))


ARRAY = call("numpy._core.multiarray", "_reconstruct", named("numpy", "ndarray"))
TYPE = call("numpy", "dtype", text("U5"), b"\x89", b"\x88")
BESIDE = {
    "an array": ARRAY + many(number(1), many(number(2)), TYPE, b"\x89") + b"b",
    "a text of NumPy": call("numpy._core.multiarray", "scalar", TYPE, text("a" * 5)),
    "a module": named("__main__", "Net") + b")\x81" + mapping(a=number(1)) + b"b",
    "a path": call("pathlib", "PosixPath", text("runs")),
}


@pytest.mark.parametrize("key", ["losses", "history", "best_acc", "model"])
@pytest.mark.parametrize("kind", BESIDE)
def test_what_training_keeps_beside_the_weights_is_passed_over(
    key: str, kind: str, tensors: Any, tmp_path: Path
) -> None:
    tree = {key: BESIDE[kind], "epoch": 3, "state_dict": tensors}
    assert close(reszoo.load(write(tmp_path / "x.pth", tree))(X), logits(X, tensors))


@pytest.mark.parametrize("layout", ["zip", "legacy"])
@pytest.mark.parametrize("kind", BESIDE)
def test_what_lies_beside_the_weights_in_any_dict_is_passed_over(
    kind: str, layout: str, tensors: Any, tmp_path: Path
) -> None:
    extra = {"best": BESIDE[kind], "epochs": 3}
    for tree in (
        {"checkpoint": {"stats": extra, "model": tensors}},
        {"run": {"last": {"stats": extra, "model": tensors}, "stats": extra}},
        {"model_ema": {"decay": BESIDE[kind], "module": tensors}, "epoch": 3},
        {"state_dict": {**tensors, "best": BESIDE[kind]}, "epoch": 3},
    ):
        model = reszoo.load(write(tmp_path / "x.pth", tree, layout))
        assert close(model(X), logits(X, tensors))


def test_weights_in_a_nested_dict_are_not_passed_over(
    tensors: Any, tmp_path: Path
) -> None:
    module = BESIDE["a module"]
    for tree in (
        {"checkpoint": {"model": tensors, "teacher": module}},
        {"checkpoint": {"model": module, "epoch": 3}},
        {"model": {"layers": module, "epoch": 3}, "epoch": 3},
        {"state_dict": {**tensors, "fc.weight": module}, "epoch": 3},
        {"state_dict": {"model": {**tensors, "fc.weight": module}}},
    ):
        file = write(tmp_path / "x.pth", tree)
        with pytest.raises(CheckpointError, match=r"wants to call __main__\.Net"):
            reszoo.load(file)


@pytest.mark.parametrize("key", ["model_ema", "teacher", "fc.weight"])
def test_weights_are_not_passed_over(key: str, tensors: Any, tmp_path: Path) -> None:
    held = {"state_dict": tensors} if "fc" not in key else tensors
    file = write(tmp_path / "x.pth", held | {key: BESIDE["a module"]})
    with pytest.raises(CheckpointError, match=r"wants to call __main__\.Net"):
        reszoo.load(file)


@pytest.mark.parametrize(
    "beside",
    [
        {"classes": list("edcba")},
        {"class_to_idx": {"a": 4, "b": 3, "c": 2, "d": 1, "e": 0}},
        {"idx_to_class": {"4": "a", "3": "b", "2": "c", "1": "d", "0": "e"}},
        {"hyper_parameters": {"class_names": list("edcba"), "classes": 5}},
    ],
)
def test_class_names_in_a_file_are_the_labels(
    beside: dict[str, Any], tensors: Any, tmp_path: Path
) -> None:
    model = reszoo.load(write(tmp_path / "x.pth", {"model": tensors} | beside))
    assert reszoo.card(model).labels == tuple("edcba")


@pytest.mark.parametrize(
    ("beside", "told"),
    [
        ({"classes": ["cat", "dog"]}, "2 labels for 5 classes are left out"),
        (
            {"class_to_idx": dict(zip("abcde", range(1, 6), strict=True))},
            "class_to_idx is left out: it does not name the classes from 0 on",
        ),
        (
            {"class_to_idx": dict(zip("abcdef", [*range(5), 4], strict=True))},
            "is left out",
        ),
    ],
)
def test_class_names_that_do_not_fit_are_reported(
    beside: dict[str, Any], told: str, tensors: Any, tmp_path: Path
) -> None:
    model = reszoo.load(write(tmp_path / "x.pth", {"model": tensors} | beside))
    assert reszoo.card(model).labels is None
    assert told in str(reszoo.load_report(model))


def test_labels_that_two_classes_share_are_numbered(
    tensors: Any, tmp_path: Path
) -> None:
    meta = {"CLASSES": ["crane", "ox", "crane", "eel", "hen"]}
    model = reszoo.load(write(tmp_path / "x.pth", {"m": tensors, "meta": meta}))
    numbered = ("crane (0)", "ox", "crane (2)", "eel", "hen")
    assert reszoo.card(model).labels == numbered


def numbered(tensors: Any) -> Any:
    """Name the backbone as `Sequential(*resnet.children())` does."""
    places = {"conv1": "0", "bn1": "1"} | {f"layer{i}": f"{i + 3}" for i in range(1, 5)}
    split = ((*name.partition("."), each) for name, each in tensors.items())
    return {f"{places[a]}.{b}": each for a, _, b, each in split if a in places}


@pytest.mark.parametrize("first", ["backbone", "features"])
def test_a_backbone_under_two_names_is_loaded(
    first: str, tensors: Any, tmp_path: Path
) -> None:
    writer = Writer("zip")
    shared = {key: writer.tensor(x) for key, x in tensors.items() if x.ndim}
    parts = {
        "backbone": prefixed(shared, "backbone."),
        "features": prefixed(numbered(shared), "features."),
    }
    tree = parts.pop(first) | next(iter(parts.values()))
    model = reszoo.load(writer.write(tmp_path / "x.pth", mapping(**tree)))
    assert close(model(X), logits(X, tensors))
    # Which of two classifiers is used, tensors do not tell.
    width = tensors["fc.weight"].shape[1]
    head = {"classifier.weight": np.ones((4, width)), "classifier.bias": np.ones(4)}
    tree |= {key: writer.tensor(each.astype("f4")) for key, each in head.items()}
    file = writer.write(tmp_path / "y.pth", mapping(**tree))
    report = reszoo.load_report(reszoo.load(file))
    assert report is not None
    assert {"backbone.fc.weight", "classifier.weight"} <= {*report.skipped}
    # Two that differ are still two.
    tree["features.0.weight"] = writer.tensor(tensors["conv1.weight"] + 1)
    with pytest.raises(CheckpointError, match="more than one ResNet"):
        reszoo.load(writer.write(tmp_path / "z.pth", mapping(**tree)))
