"""Any checkpoint in, torch-exact out, and a report of what went where."""

import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import ml_dtypes
import numpy as np
import pytest
from conftest import randomise
from numpy_resnet import logits
from safetensors.numpy import load_file, save_file
from torch_peers import import_timm, import_torchvision
from torch_writer import LAYOUTS, Writer, mapping, number

import reszoo
from reszoo.architecture import architecture
from reszoo.specs import SPECS
from reszoo.weights.loading import adapt_input, infer_architecture
from reszoo.weights.names import to_tensors
from reszoo.weights.schemes import read_state_dict

X = np.random.default_rng(5).normal(0, 1, (2, 32, 32, 3)).astype(np.float32)


def tensors_of(name: str | reszoo.ResNetSpec, **options: Any) -> Any:
    options = {"input_shape": (32, 32, 3), **options}
    return to_tensors(randomise(reszoo.build(name, **options), seed=3))


def bare(path: Path, tensors: Any) -> Path:
    """Write tensors as another library would: without a card."""
    save_file(dict(tensors), path)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return bare(tmp_path / "model.safetensors", tensors_of("resnet18", classes=6))


def test_the_net_is_told_by_its_tensors(tmp_path: Path) -> None:
    nets: dict[str, dict[str, Any]] = {
        "resnet18": {},
        "resnet34": {"shortcut": "projection-all"},
        "resnet20": {},
        "resnet32": {"shortcut": "projection"},
    }
    for name, options in nets.items():
        tensors = tensors_of(name, classes=4, **options)
        built = architecture(name, classes=4, **options)
        assert infer_architecture(tensors, "x") == built
        assert infer_architecture(tensors, "x", built.spec) == built


def test_a_cifar_net_without_projections_is_residual_unless_named() -> None:
    tensors = tensors_of("plain20")
    assert infer_architecture(tensors, "x").name == "resnet20"
    assert infer_architecture(tensors, "x", SPECS["plain20"]).shortcut == "none"


@pytest.mark.parametrize("name", ["resnet20", "plain20", "resnet18"])
def test_where_zero_channels_are_is_said_for_weights_cannot_tell(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = bare(tmp_path / "model.safetensors", tensors_of(name))
    report = reszoo.load_report(reszoo.load(path, name))
    assert report is not None
    told = "shortcuts are taken to pad channels on both sides"
    assert (told in "".join(report.notes)) == (name == "resnet20")
    assert (told in capsys.readouterr().err) == (name == "resnet20")


def test_tensors_that_fit_two_nets_are_refused() -> None:
    with pytest.raises(reszoo.CheckpointError, match=r"plain18 or a resnet18.*Say whi"):
        infer_architecture(tensors_of("plain18"), "x")


@pytest.mark.parametrize(
    ("tensors", "text"),
    [
        ({"a.weight": np.zeros(3)}, r"no ResNet as torchvision names it.*a\.weight"),
        (
            {
                "conv1.weight": np.zeros((64, 3, 7, 7)),
                "layer1.0.conv1.weight": np.zeros((64, 64, 3, 3)),
            },
            r"x fits no model of reszoo. The nearest is .* more\. Give the ResNetSpec",
        ),
    ],
)
def test_foreign_tensors_are_refused(tensors: Any, text: str) -> None:
    with pytest.raises(reszoo.CheckpointError, match=text):
        infer_architecture(tensors, "x")


def test_a_bare_file_loads_and_a_contradicted_name_is_refused(file: Path) -> None:
    model = reszoo.build("resnet18", weights=file, input_shape=(32, 32, 3))
    expected = logits(X, load_file(file))
    np.testing.assert_allclose(
        model(X), expected, atol=1e-5 * np.abs(expected).max(), rtol=0
    )
    card = reszoo.card(reszoo.load(file))
    assert card.resnet.name == "resnet18"
    assert card.resnet.input_shape == (224, 224, 3)
    assert card.labels is None
    with pytest.raises(reszoo.CheckpointError, match=r"holds a resnet18.*'resnet34'"):
        reszoo.build("resnet34", weights=file)
    with pytest.raises(reszoo.CheckpointError, match=r"made with shortcut='projection"):
        reszoo.build("resnet18", weights=file, shortcut="identity")


def test_only_the_caller_knows_the_stride_of_bare_tensors(tmp_path: Path) -> None:
    shape = (33, 33, 3)
    spec = replace(SPECS["resnet50"], name="shallow", depths=(1, 1, 1, 1), classes=4)
    tensors = tensors_of(spec, stride_in="1x1", input_shape=shape)
    file = bare(tmp_path / "v1.safetensors", tensors)
    x = np.random.default_rng(2).normal(size=(1, *shape)).astype(np.float32)
    for stride_in in ("1x1", "3x3"):
        model = reszoo.build(spec, weights=file, stride_in=stride_in, input_shape=shape)
        expected = logits(x, tensors, stride_in=stride_in)
        answer = np.asarray(model(x))
        assert np.abs(answer - expected).max() <= 1e-5 * np.abs(expected).max()
    ours = reszoo.save(model, tmp_path / "ours.safetensors")
    with pytest.raises(reszoo.CheckpointError, match=r"made with stride_in='3x3'"):
        reszoo.build(spec, weights=ours, stride_in="1x1")


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "bare": lambda tensors: tensors,
    "state_dict": lambda tensors: {"state_dict": tensors, "epoch": 3},
    "model": lambda tensors: {"model": tensors, "args": {"lr": 0.1}, "optimizer": {}},
    "ema first": lambda tensors: {
        "state_dict": {name: value * 0 for name, value in tensors.items()},
        "state_dict_ema": tensors,
    },
    "data parallel": lambda tensors: {
        "best_prec1": 91.7,
        "state_dict": {f"module.{name}": value for name, value in tensors.items()},
    },
    "averaged": lambda tensors: {
        "model_ema": {f"module.{name}": value for name, value in tensors.items()}
        | {"n_averaged": np.array(7)},
    },
    "compiled": lambda tensors: {
        f"_orig_mod.module.{name}": value for name, value in tensors.items()
    },
    "linear head": lambda tensors: {
        name.replace("fc.", "linear."): value for name, value in tensors.items()
    },
    "nested head": lambda tensors: OrderedDict(
        (name.replace("fc.", "head.fc."), value) for name, value in tensors.items()
    ),
    "old": lambda tensors: {
        name: value for name, value in tensors.items() if "num_batches" not in name
    },
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_prefixes_and_heads_come_off(wrapper: str) -> None:
    tensors = tensors_of("resnet20")
    found = read_state_dict(WRAPPERS[wrapper](tensors), "x").tensors
    expected = {k for k in tensors if wrapper != "old" or "num_batches" not in k}
    assert found.keys() == expected
    assert all(np.array_equal(found[name], tensors[name]) for name in expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_published_cifar_checkpoint_gives_its_answers(
    tmp_path: Path, layout: str
) -> None:
    """Option A as published: DataParallel names, a linear head, no counters."""
    tensors = {k: v for k, v in tensors_of("resnet20").items() if "num_b" not in k}
    writer = Writer(layout)
    entries = {
        f"module.{name.replace('fc.', 'linear.')}": writer.tensor(value)
        for name, value in tensors.items()
    }
    tree = mapping(best_prec1=number(92), state_dict=mapping(**entries))
    model = reszoo.load(writer.write(tmp_path / "resnet20.th", tree))
    expected = logits(X, tensors)
    answer = np.asarray(model(X))
    assert np.abs(answer - expected).max() <= 1e-5 * np.abs(expected).max()
    saved = load_file(reszoo.save(model, tmp_path / "back.safetensors"))
    assert all(np.array_equal(saved[name], value) for name, value in tensors.items())
    assert saved["bn1.num_batches_tracked"] == 0


def test_what_holds_no_weights_is_refused() -> None:
    for tree in ([1], {"epoch": 3}, {}, {"state_dict": {"a": "b"}}, {1: np.ones(2)}):
        with pytest.raises(
            reszoo.CheckpointError, match=r"holds no weights of a model"
        ):
            read_state_dict(tree, "x")
    twice = {"fc.bias": np.ones(2), "module.fc.bias": np.ones(2)}
    with pytest.raises(reszoo.CheckpointError, match=r"holds fc\.bias twice"):
        read_state_dict(twice, "x")
    with pytest.raises(reszoo.CheckpointError, match=r"has fc\.bias as int32"):
        read_state_dict({"fc.bias": np.ones(2, np.int32)}, "x")


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_precisions_are_read_exactly(tmp_path: Path, dtype: Any) -> None:
    tensors = {
        name: value if value.ndim == 0 else value.astype(dtype)
        for name, value in tensors_of("resnet20").items()
    }
    model = reszoo.load(bare(tmp_path / "x.safetensors", tensors))
    for name, value in to_tensors(model).items():
        assert value.dtype in (np.float32, np.int64)
        np.testing.assert_array_equal(value, tensors[name].astype(value.dtype))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    tensors = tensors_of("resnet20")
    tensors["layer1.1.bn2.bias"][3] = value
    with pytest.raises(
        reszoo.CheckpointError, match=r"must be finite.*layer1\.1\.bn2\.bias"
    ):
        reszoo.load(bare(tmp_path / "x.safetensors", tensors))


def test_another_number_of_classes_keeps_the_whole_backbone(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = (32, 32, 3)
    model = reszoo.build("resnet18", weights=file, classes=9, input_shape=shape)
    report = reszoo.load_report(model)
    assert report is not None
    assert report.head == (6, 9)
    assert report.complete
    assert (
        "100 % of the backbone; fresh head, 6 -> 9 classes" in capsys.readouterr().err
    )
    saved, now = load_file(file), to_tensors(model)
    for name, value in saved.items():
        if name not in ("fc.weight", "fc.bias"):
            np.testing.assert_array_equal(now[name], value)
    assert now["fc.weight"].shape == (9, 512)
    named = reszoo.build("resnet18", weights=file, classes=["cat", "dog"])
    assert reszoo.card(named).labels == ("cat", "dog")


def test_the_same_number_of_classes_keeps_the_head(file: Path, tmp_path: Path) -> None:
    labels = tuple("abcdef")
    model = reszoo.build("resnet18", weights=file, classes=labels)
    assert reszoo.card(model).labels == labels
    report = reszoo.load_report(model)
    assert report is not None
    assert report.head is None
    np.testing.assert_array_equal(
        to_tensors(model)["fc.weight"], load_file(file)["fc.weight"]
    )
    ours = reszoo.save(model, tmp_path / "ours.safetensors")
    with pytest.raises(reszoo.UsageError, match=r"same classes in another order: a, b"):
        reszoo.build("resnet18", weights=ours, classes=tuple("fedcba"))
    other = reszoo.build("resnet18", weights=ours, classes=tuple("ghijkl"))
    report = reszoo.load_report(other)
    assert report is not None
    assert report.head == (6, 6)
    assert reszoo.card(other).labels == tuple("ghijkl")
    assert not np.array_equal(
        to_tensors(other)["fc.weight"], to_tensors(model)["fc.weight"]
    )


def test_a_file_without_a_head_gets_one_only_on_request(
    file: Path, tmp_path: Path
) -> None:
    tensors = {k: v for k, v in load_file(file).items() if not k.startswith("fc.")}
    headless = bare(tmp_path / "headless.safetensors", tensors)
    assert not reszoo.card(reszoo.load(headless)).architecture.include_top
    with pytest.raises(
        reszoo.CheckpointError, match=r"has no classifier. Say how many"
    ):
        reszoo.build("resnet18", weights=headless)
    model = reszoo.build("resnet18", weights=headless, classes=3)
    assert model.output_shape == (None, 3)


def test_channels_are_adapted_as_timm_does() -> None:
    kernel = tensors_of("resnet20")["conv1.weight"]
    np.testing.assert_allclose(
        adapt_input(kernel, 1), kernel.sum(1, keepdims=True), rtol=1e-6
    )
    four = adapt_input(kernel, 4)
    np.testing.assert_allclose(four[:, 3], kernel[:, 0] * 0.75, rtol=1e-6)
    np.testing.assert_allclose(four[:, 1], kernel[:, 1] * 0.75, rtol=1e-6)
    with pytest.raises(reszoo.UsageError, match=r"Only weights for RGB"):
        adapt_input(four, 3)


@pytest.mark.parametrize("channels", [1, 4])
def test_a_net_for_other_channels_has_the_card_for_them(
    file: Path, channels: int, tmp_path: Path
) -> None:
    shape = (48, 48, channels)
    model = reszoo.build("resnet18", weights=file, input_shape=shape)
    record = reszoo.card(model).preprocessing
    assert len(record.mean) == len(record.std) == channels
    assert record.eval_size == 48
    expected = adapt_input(load_file(file)["conv1.weight"], channels)
    np.testing.assert_array_equal(to_tensors(model)["conv1.weight"], expected)
    again = reszoo.load(reszoo.save(model, tmp_path / "again.safetensors"))
    assert reszoo.card(again) == reszoo.card(model)
    if channels == 4:
        with pytest.raises(reszoo.UsageError, match=r"RGB.*4 input channels"):
            reszoo.export(model, tmp_path / "export")


def test_a_round_trip_through_reszoo_is_bit_equal(file: Path, tmp_path: Path) -> None:
    tensors = load_file(file)
    tensors["bn1.num_batches_tracked"] = np.array(1234)
    bare(file, tensors)
    saved = load_file(reszoo.save(reszoo.load(file), tmp_path / "out.safetensors"))
    assert saved.keys() == tensors.keys()
    for name, value in tensors.items():
        assert saved[name].dtype == value.dtype
        assert saved[name].tobytes() == value.tobytes(), name


def test_a_timm_folder_round_trips_with_its_config(tmp_path: Path) -> None:
    labels = ("cat", "dog", "Ünicode")
    model = randomise(reszoo.build("resnet18", classes=labels))
    card = reszoo.card(model)
    record = replace(card.preprocessing, crop_pct=0.95, interpolation="bicubic")
    folder = reszoo.save(model, tmp_path / "out", replace(card, preprocessing=record))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["architecture"] == "resnet18"
    assert config["pretrained_cfg"]["crop_pct"] == 0.95
    bare(folder / "model.safetensors", to_tensors(model))
    again = reszoo.card(reszoo.load(folder))
    assert again.preprocessing == record
    assert again.labels == labels
    (folder / "config.json").write_text('{"pretrained_cfg": {}}')
    with pytest.raises(reszoo.CheckpointError, match=r"is not a timm config"):
        reszoo.load(folder)
    with pytest.raises(reszoo.UsageError, match=r"timm has no resnet20"):
        reszoo.save(reszoo.build("resnet20"), tmp_path / "cifar")


def test_torchvision_and_timm_load_what_reszoo_writes(tmp_path: Path) -> None:
    torchvision, timm = import_torchvision(), import_timm()
    import torch
    from safetensors.torch import load_file as load_torch

    model = randomise(reszoo.build("resnet18", classes=1000))
    folder = reszoo.save(model, tmp_path / "out")
    images = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32)
    wide = reszoo.build("resnet18", input_shape=(64, 64, 3), weights=folder)
    expected = np.asarray(wide(images))
    nets = [torchvision.models.resnet18(), timm.create_model("resnet18")]
    for net in nets:
        net.load_state_dict(load_torch(folder / "model.safetensors"), strict=True)
    path = str(folder / "model.safetensors")
    nets.append(timm.create_model("resnet18", checkpoint_path=path))
    nets.append(timm.create_model(f"local-dir:{folder}", pretrained=True))
    for net in nets:
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        with torch.no_grad():
            answer = net.eval()(pixels).numpy()
        assert np.abs(answer - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    "name",
    [
        "ResNet50",
        pytest.param("ResNet101", marks=pytest.mark.slow),
        pytest.param("ResNet152", marks=pytest.mark.slow),
    ],
)
def test_keras_applications_nets_convert_exactly(name: str) -> None:
    theirs = getattr(keras.applications, name)(
        weights=None, classes=20, classifier_activation=None, input_shape=(64, 64, 3)
    )
    draw = np.random.default_rng(0)
    for layer in theirs.layers:
        if layer.weights and "bn" in layer.name:
            low = 0.1 if layer.name.endswith("_3_bn") else 0.5
            kinds = [(low, 3 * low), (-0.2, 0.2), (-0.2, 0.2), (0.5, 1.5)]
            shape = layer.weights[0].shape
            layer.set_weights([draw.uniform(*kind, shape) for kind in kinds])
        elif layer.weights:
            bias = draw.uniform(-0.3, 0.3, layer.weights[1].shape)
            layer.set_weights([layer.get_weights()[0], bias])
    ours = reszoo.from_keras_applications(theirs)
    pixels = draw.integers(0, 256, (2, 64, 64, 3)).astype(np.float32)
    caffe = keras.applications.resnet.preprocess_input(pixels.copy())
    expected = np.asarray(theirs(caffe, training=False))
    answer = ours(reszoo.card(ours).preprocessing.normalise(pixels), training=False)
    assert np.abs(np.asarray(answer) - expected).max() <= 1e-5 * np.abs(expected).max()
    assert reszoo.card(ours).resnet.stride_in == "1x1"


def test_other_keras_models_are_refused() -> None:
    image = keras.Input((8, 8, 3))
    model = keras.Model(image, keras.layers.Conv2D(3, 3, name="block1_conv1")(image))
    with pytest.raises(
        reszoo.CheckpointError, match=r"not a ResNet of keras\.app.*'block1_conv1'"
    ):
        reszoo.from_keras_applications(model)


def test_imagenet_needs_a_net() -> None:
    with pytest.raises(reszoo.UsageError, match=r"Choose the model"):
        reszoo.load("imagenet")
    with pytest.raises(reszoo.UsageError, match=r"weights 'imagenot'.*'imagenet'"):
        reszoo.build("resnet50", weights="imagenot")
