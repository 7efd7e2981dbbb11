"""The nets against published counts and against a second implementation."""

import subprocess
import sys
from typing import Any

import family
import keras
import numpy as np
import pytest
from conftest import randomise
from numpy_resnet import logits

import reszoo
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
    "wide_resnet50_2": 68_883_240,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "plain18": 11_515_688,
    "plain34": 21_623_848,
    "plain50": 22_780_456,
    "plain101": 41_772_584,
    "plain152": 57_416_232,
    "plain20": 269_722,
    "plain32": 464_154,
    "plain44": 658_586,
    "plain56": 853_018,
    "plain110": 1_727_962,
}
OPTION_B = {
    "resnet20": 272_474,
    "resnet32": 466_906,
    "resnet44": 661_338,
    "resnet56": 855_770,
    "resnet110": 1_730_714,
}


def trainable(model: Any) -> int:
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


def images(height: int, width: int) -> Any:
    draw = np.random.default_rng(1)
    return draw.normal(0, 1, (2, height, width, 3)).astype(np.float32)


def assert_close(answer: Any, expected: Any) -> None:
    assert np.abs(np.asarray(answer) - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", reszoo.list_models())
def test_parameter_counts_are_the_published_ones(name: str) -> None:
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
@pytest.mark.parametrize("size", [(64, 64), (65, 49)])
def test_imagenet_nets_compute_what_the_paper_writes(
    name: str, size: tuple[int, int]
) -> None:
    model = randomise(reszoo.build(name, classes=7, input_shape=(None, None, 3)))
    x = images(*size)
    expected = logits(x, to_tensors(model), plain=name[0] == "p")
    assert_close(model(x, training=False), expected)


@pytest.mark.parametrize("spec", family.SPECS.values(), ids=family.SPECS)
@pytest.mark.parametrize("size", [(64, 64), (45, 51)])
def test_custom_specs_compute_what_they_describe(
    spec: reszoo.ResNetSpec, size: tuple[int, int]
) -> None:
    model = randomise(reszoo.build(spec, input_shape=(*size, 3)))
    x = images(*size)
    assert_close(model(x, training=False), logits(x, to_tensors(model)))


def test_a_pre_activation_block_that_starts_at_zero_is_its_shortcut() -> None:
    model = reszoo.build(
        family.SPECS["pre"], include_top=False, zero_init_residual=True
    )
    kernels = {x.name: x.kernel for x in model.layers if hasattr(x, "kernel")}
    zero = {name for name, kernel in kernels.items() if not np.asarray(kernel).any()}
    assert zero == {f"layer{block}.conv2" for block in ("1.0", "2.0", "2.1", "3.0")}


@pytest.mark.parametrize("stride_in", ["1x1", "3x3"])
def test_the_stride_sits_in_the_convolution_asked_for(stride_in: str) -> None:
    model = randomise(
        reszoo.build(
            "resnet50", classes=5, input_shape=(65, 65, 3), stride_in=stride_in
        )
    )
    x = images(65, 65)
    expected = logits(x, to_tensors(model), stride_in=stride_in)
    assert_close(model(x, training=False), expected)


def test_option_a_serves_bottlenecks_too() -> None:
    model = randomise(
        reszoo.build(
            "resnet50", classes=5, input_shape=(33, 33, 3), shortcut="identity"
        )
    )
    x = images(33, 33)
    assert_close(model(x, training=False), logits(x, to_tensors(model)))


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101"])
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
    assert reszoo.build("resnet50", **shape).output_shape == (None, 2, 3, 2048)  # type: ignore[arg-type]
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
        "resnet34", include_top=False, features="pyramid", input_shape=(64, 64, 3)
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
