"""The nets against published counts and against a second implementation."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import family
import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import randomise
from numpy_resnet import ResNet, logits

import reszoo
from reszoo.architecture import architecture, count_parameters
from reszoo.resnet import build_resnet
from reszoo.specs import SPECS
from reszoo.weights.names import to_tensors

# torchvision's documentation, and the counts in He et al. 2015, section 4.2.
TRAINABLE = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x8d": 88_791_336,
    "resnext101_64x4d": 83_455_272,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
    # timm's.
    "resnet10t": 5_435_488,
    "resnet14t": 10_081_632,
    "resnet26t": 16_011_872,
    "resnet18d": 11_708_744,
    "resnet26d": 16_014_408,
    "resnet34d": 21_816_904,
    "resnet50d": 25_576_264,
    "resnet101d": 44_568_392,
    "resnet152d": 60_212_040,
    # keras.applications', less the moving statistics.
    "resnet50v2": 25_613_800 - 45_440,
    "resnet101v2": 44_675_560 - 97_664,
    "resnet152v2": 60_380_648 - 143_744,
    "resnet8": 75_290,
    "resnet14": 172_506,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "resnet1202": 19_421_274,
    # He et al. 2016 and Zagoruyko and Komodakis 2016 round: 1.7 and 10.2 million (of
    # convolutions), 2.7, 36.5 and 2.2 million.
    "preresnet20": 269_722,
    "preresnet56": 853_018,
    "preresnet110": 1_727_962,
    "preresnet164": 1_703_258,
    "preresnet1001": 10_327_706,
    "wrn16_4": 2_748_890,
    "wrn28_10": 36_479_194,
    "wrn40_2": 2_243_546,
    "plain18": 11_515_688,
    "plain34": 21_623_848,
    "plain50": 22_780_456,
    "plain101": 41_772_584,
    "plain152": 57_416_232,
    "plain8": 75_290,
    "plain14": 172_506,
    "plain20": 269_722,
    "plain32": 464_154,
    "plain44": 658_586,
    "plain56": 853_018,
    "plain110": 1_727_962,
    "plain1202": 19_421_274,
}
OPTION_B = {
    "resnet20": 272_474,
    "resnet32": 466_906,
    "resnet44": 661_338,
    "resnet56": 855_770,
    "resnet110": 1_730_714,
}


def check_formula(spec: reszoo.ResNetSpec, size: tuple[int, int]) -> None:
    """Compare the model of a spec with the NumPy reference."""
    model = randomise(reszoo.build(spec, input_shape=(*size, 3)))
    x = images(*size)
    last = spec.stride_block == "last"
    expected = logits(x, to_tensors(model), last=last, epsilon=spec.epsilon)
    assert_close(model(x, training=False), expected)


def trainable(model: Any) -> int:
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


def images(height: int, width: int) -> Any:
    draw = np.random.default_rng(1)
    return draw.normal(0, 1, (2, height, width, 3)).astype(np.float32)


def assert_close(answer: Any, expected: Any) -> None:
    assert np.abs(np.asarray(answer) - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", reszoo.list_models())
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    assert count_parameters(architecture(name)) == TRAINABLE[name]


@pytest.mark.parametrize("name", family.ROWS)
def test_models_have_the_parameters_that_are_published(name: str) -> None:
    assert trainable(reszoo.build(name)) == TRAINABLE[name]


@pytest.mark.parametrize("name", OPTION_B)
def test_projection_shortcuts_of_cifar_nets_add_the_published_parameters(
    name: str,
) -> None:
    assert trainable(reszoo.build(name, shortcut="projection")) == OPTION_B[name]


@pytest.mark.parametrize(
    "shortcut", ["identity", "projection", "projection-all", "none"]
)
@pytest.mark.parametrize("size", [(32, 32), (27, 38)])
def test_cifar_nets_compute_what_the_paper_writes(
    shortcut: str, size: tuple[int, int]
) -> None:
    model = randomise(
        reszoo.build("resnet20", shortcut=shortcut, input_shape=(*size, 3))
    )
    x = images(*size)
    expected = logits(x, to_tensors(model), plain=shortcut == "none")
    assert_close(model(x, training=False), expected)


@pytest.mark.parametrize(
    "name", ["resnet18", "plain18", "resnet50", "plain50", "resnext50_32x4d"]
)
def test_imagenet_nets_compute_what_the_paper_writes(name: str) -> None:
    model = randomise(reszoo.build(name, classes=7, input_shape=(None, None, 3)))
    for size in ((64, 64), (65, 49)):
        x = images(*size)
        expected = logits(x, to_tensors(model), plain=name[0] == "p")
        assert_close(model(x, training=False), expected)


@pytest.mark.parametrize(
    "name",
    [
        *("preresnet20", "wrn16_4", "resnet10t", "resnet50v2"),
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("preresnet164", "resnet1202", "wide_resnet50_2", "resnet26d")
        ),
    ],
)
def test_each_kind_of_row_computes_what_its_source_writes(name: str) -> None:
    check_formula(SPECS[name], (49, 38))


@pytest.mark.parametrize("spec", family.SPECS.values(), ids=family.SPECS)
@pytest.mark.parametrize("size", [(64, 64), (45, 51)])
def test_custom_specs_compute_what_they_describe(
    spec: reszoo.ResNetSpec, size: tuple[int, int]
) -> None:
    check_formula(spec, size)


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("stride_in", ["1x1", "3x3"])
@pytest.mark.parametrize("name", ["deep", "grouped", "late"])
def test_dilation_keeps_the_last_stages_large(
    name: str, output_stride: int, stride_in: str
) -> None:
    spec = family.SPECS[name]
    depths, widths = (*spec.depths, 2)[-3:], (*spec.widths, 64)[-3:]
    spec = replace(spec, name="dilated", depths=(*depths, 1), widths=(*widths, 64))
    options: dict[str, Any] = {"output_stride": output_stride, "stride_in": stride_in}
    model = reszoo.build(
        spec, include_top=False, features="pyramid", input_shape=(77, 90, 3), **options
    )
    randomise(model)
    x = images(77, 90)
    answers = model(x, training=False)
    is_last = spec.stride_block == "last"
    options |= {"last": is_last, "epsilon": spec.epsilon}
    expected = ResNet(to_tensors(model), **options).stages(x)
    assert answers["layer4"].shape[1:3] == (
        -(-77 // output_stride),
        -(-90 // output_stride),
    )
    for stage, value in expected.items():
        assert_close(answers[stage], value.transpose(0, 2, 3, 1))


def test_dilation_is_trained_and_kept_in_a_checkpoint(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"depths": (1, 1, 1), "widths": (64, 64, 64)}
    spec = replace(family.SPECS["grouped"], name="dilated", **changes)
    model = reszoo.build(spec, seed=0, output_stride=8)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(images(32, 32), training=True) ** 2)
    kernel = model.get_layer("layer3.0.conv2").kernel.value
    assert np.abs(tape.gradient(loss, kernel)).max() > 0
    again = reszoo.load(reszoo.save(model, tmp_path / "dilated.safetensors"))
    assert reszoo.card(again).resnet.output_stride == 8
    x = images(32, 32)
    np.testing.assert_array_equal(again(x, training=False), model(x, training=False))
    # Weights fit every output stride.
    other = reszoo.build(
        spec, weights=tmp_path / "dilated.safetensors", output_stride=16
    )
    assert reszoo.card(other).resnet.output_stride is None


def test_dropout_sets_values_to_zero_in_training_only() -> None:
    model = reszoo.build("wrn16_4", dropout=0.4, seed=0)
    plain = reszoo.build("wrn16_4", seed=0)
    x = images(32, 32)
    np.testing.assert_array_equal(model(x, training=False), plain(x, training=False))
    assert np.abs(model(x, training=True) - plain(x, training=True)).max() > 1e-3
    inner = model.get_layer("layer2.1.dropout")
    assert inner.input is model.get_layer("layer2.1.relu2").output
    assert model.get_layer("layer2.1.conv2").input is inner.output
    zeros = np.asarray(inner(np.ones((4, 8, 8, 16), "f"), training=True))
    assert set(np.unique(zeros)) == {0.0, np.float32(1 / 0.6)}
    assert (zeros == 0).mean() == pytest.approx(0.4, abs=0.03)


def test_dropout_of_a_training_step_is_drawn_from_its_key() -> None:
    described = architecture("resnet8", dropout=0.4)
    model = build_resnet(described, keyed=True, seed=0)
    x = images(32, 32)
    one, same, other = (
        np.asarray(model([x, np.array([3, key])], training=True)) for key in (5, 5, 6)
    )
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-3
    layers = [each for each in model.layers if each.name.endswith(".dropout")]
    key = np.array([3, 5])
    drawn = [np.asarray(each([np.ones((2, 8, 8, 64), "f"), key], training=True))
             for each in layers]  # fmt: skip
    assert [(each == 0).mean() for each in drawn] == pytest.approx([0.4] * 3, abs=0.02)
    # Blocks draw independently of each other.
    assert (drawn[0] == drawn[1]).mean() == pytest.approx(0.52, abs=0.02)


def test_a_pre_activation_block_that_starts_at_zero_is_its_shortcut() -> None:
    model = reszoo.build(
        family.SPECS["pre"], include_top=False, zero_init_residual=True
    )
    kernels = {x.name: x.kernel for x in model.layers if hasattr(x, "kernel")}
    zero = {name for name, kernel in kernels.items() if not np.asarray(kernel).any()}
    assert zero == {f"layer{block}.conv2" for block in ("1.0", "2.0", "2.1", "3.0")}


# Block, stem and shortcuts of ResNet-50.
SHALLOW = replace(SPECS["resnet50"], name="shallow", depths=(2, 2, 1, 1), classes=5)


@pytest.mark.parametrize("stride_in", ["1x1", "3x3"])
def test_the_stride_sits_in_the_convolution_asked_for(stride_in: str) -> None:
    model = randomise(
        reszoo.build(SHALLOW, input_shape=(65, 65, 3), stride_in=stride_in)
    )
    x = images(65, 65)
    expected = logits(x, to_tensors(model), stride_in=stride_in)
    assert_close(model(x, training=False), expected)


def test_option_a_serves_bottlenecks_too() -> None:
    model = randomise(
        reszoo.build(SHALLOW, input_shape=(33, 33, 3), shortcut="identity")
    )
    x = images(33, 33)
    assert_close(model(x, training=False), logits(x, to_tensors(model)))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_layers_are_named_as_torchvision_names_modules(name: str) -> None:
    spec = SPECS[name]
    convolutions = 2 if spec.block == "basic" else 3
    expected = {"conv1", "bn1", "fc"}
    for stage, depth in enumerate(spec.depths, start=1):
        for block in range(depth):
            for i in range(1, convolutions + 1):
                expected |= {
                    f"layer{stage}.{block}.{kind}{i}" for kind in ("conv", "bn")
                }
        if stage > 1 or spec.block == "bottleneck":
            expected |= {f"layer{stage}.0.downsample.{i}" for i in (0, 1)}
    model = reszoo.build(name)
    assert {layer.name for layer in model.layers if layer.weights} == expected


def test_without_top_the_output_is_the_last_stage() -> None:
    shape = {"input_shape": (64, 96, 3), "include_top": False}
    assert reszoo.build(SHALLOW, **shape).output_shape == (None, 2, 3, 2048)  # type: ignore[arg-type]
    assert reszoo.build("resnet20", **shape).output_shape == (None, 16, 24, 64)  # type: ignore[arg-type]


@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_pooling_pools_the_last_stage(pooling: str) -> None:
    pooled = reszoo.build("resnet20", include_top=False, pooling=pooling, seed=1)
    stage = reszoo.build("resnet20", include_top=False, seed=1)
    x = images(16, 16)
    expected = getattr(np, {"avg": "mean"}.get(pooling, pooling))(stage(x), axis=(1, 2))
    np.testing.assert_allclose(pooled(x), expected, rtol=1e-5)


def test_the_pyramid_gives_every_stage() -> None:
    model = reszoo.build(
        "resnet18", include_top=False, features="pyramid", input_shape=(64, 64, 3)
    )
    shapes = {name: tuple(stage.shape[1:]) for name, stage in model.output.items()}
    assert shapes == {
        "layer1": (16, 16, 64),
        "layer2": (8, 8, 128),
        "layer3": (4, 4, 256),
        "layer4": (2, 2, 512),
    }


def test_softmax_is_that_of_the_logits() -> None:
    x = images(32, 32)
    raw = reszoo.build("resnet20", seed=3)(x)
    soft = reszoo.build("resnet20", seed=3, classifier_activation="softmax")(x)
    np.testing.assert_allclose(soft, keras.ops.softmax(raw), atol=1e-6)


def test_a_seed_decides_the_weights_and_layers_differ() -> None:
    one, two, other = (
        to_tensors(reszoo.build("resnet20", seed=seed)) for seed in (0, 0, 1)
    )
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert not np.array_equal(one["conv1.weight"], other["conv1.weight"])
    first, second = "layer1.0.conv1.weight", "layer1.0.conv2.weight"
    assert not np.array_equal(one[first], one[second])


def test_kernels_are_drawn_as_he_et_al_say() -> None:
    kernel = to_tensors(reszoo.build("resnet56", seed=0))["layer3.4.conv1.weight"]
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 64)), rel=0.02)
    assert abs(kernel.mean()) < 1e-3


def test_calling_a_model_changes_no_statistic_and_mixes_no_images() -> None:
    model = randomise(reszoo.build("resnet20"))
    before = to_tensors(model)
    x = images(32, 32)
    together = np.asarray(model(x))
    alone = np.concatenate([model(image[None]) for image in x])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    after = to_tensors(model)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_the_zoo_runs_on_jax() -> None:
    pytest.importorskip("jax", reason="JAX is not installed")
    script = (
        "import numpy as np, reszoo\n"
        "model = reszoo.build('resnet20', seed=0)\n"
        "print(float(np.abs(model(np.ones((1, 32, 32, 3)))).sum()) > 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"KERAS_BACKEND": "jax", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "True", done.stderr
