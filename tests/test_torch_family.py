"""Members of the family beyond the paper's, held against torchvision and timm."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import formula
import keras
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import load_file, save_file
from torch_peers import import_timm, import_torchvision
from torch_resnets import with_formula

import reszoo
from reszoo.weights.names import assign_tensors, to_tensors

# timm's resnet50d: a deep stem, and average pooling in front of projections.
RESNET50D = reszoo.ResNetSpec(
    name="resnet50d",
    depths=(3, 4, 6, 3),
    widths=(64, 128, 256, 512),
    block="bottleneck",
    stem="deep",
    stem_widths=(32, 32, 64),
    downsampling="avgpool",
)
SIZES = ((224, 224), (97, 65))


def theirs(name: str) -> Any:
    """Build torchvision's model, or timm's where torchvision has none."""
    torchvision, timm = import_torchvision(), import_timm()
    made = getattr(torchvision.models, name, None)
    return with_formula(timm.create_model(name) if made is None else made())


def ours(spec: str | reszoo.ResNetSpec) -> Any:
    model = reszoo.build(spec, input_shape=(None, None, 3), seed=0)
    tensors = {k: formula.weight(k, v.shape) for k, v in to_tensors(model).items()}
    assign_tensors(model, tensors, "the formula")
    return model


def pixels_of(images: Any) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


@pytest.fixture
def float64() -> Iterator[None]:
    """Build Keras models in float64.

    In float32 rounding turns some ReLUs on or off: torch's updates differ by up to 5 %
    from torch's own in float64.
    """
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_dtype_policy("float32")


def torch_step(model: Any, images: Any, targets: Any) -> dict[str, Any]:
    """Return what one step of plain gradient descent adds to every tensor."""
    import torch

    model = model.double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    logits = model.train()(pixels_of(images).double())
    torch.nn.functional.cross_entropy(logits, torch.from_numpy(targets)).backward()
    optimizer.step()
    after = model.state_dict()
    return {name: (after[name] - before[name]).numpy() for name in before}


def keras_step(model: Any, images: Any, targets: Any) -> dict[str, Any]:
    before = to_tensors(model)
    weights = [weight.value for weight in model.trainable_weights]
    with tf.GradientTape() as tape:
        logits = model(images, training=True)
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
        loss = tf.reduce_mean(loss)
    for weight, slope in zip(weights, tape.gradient(loss, weights), strict=True):
        weight.assign_sub(slope)
    return {name: value - before[name] for name, value in to_tensors(model).items()}


MODELS = ["resnext50_32x4d", "wide_resnet50_2", pytest.param(RESNET50D, id="resnet50d")]


def name_of(spec: str | reszoo.ResNetSpec) -> str:
    return spec if isinstance(spec, str) else spec.name


def both_steps(spec: str | reszoo.ResNetSpec) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return how one step of torch and one of ours change each tensor."""
    import_torchvision()
    side = formula.STEP_SIDE
    images = formula.images(formula.STEP_IMAGES, side, side)
    targets = np.arange(formula.STEP_IMAGES) * 7
    expected = torch_step(theirs(name_of(spec)), images, targets)
    return expected, keras_step(ours(spec), images, targets)


@pytest.mark.parametrize("spec", MODELS)
def test_logits_are_torchs(spec: str | reszoo.ResNetSpec) -> None:
    import_torchvision()
    import torch

    torchs, model = theirs(name_of(spec)).eval(), ours(spec)
    for size in SIZES:
        images = formula.images(2, *size)
        with torch.no_grad():
            expected = torchs(pixels_of(images)).numpy()
        answer = np.asarray(model(images, training=False))
        assert np.abs(answer - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("spec", MODELS)
@pytest.mark.usefixtures("float64")
def test_one_step_moves_every_tensor_as_torchs(spec: str | reszoo.ResNetSpec) -> None:
    expected, moved = both_steps(spec)
    for name, update in expected.items():
        # In float64 Keras' own batch normalization runs, whose moving variance follows
        # the biased one; that of float32 is compared below.
        if not name.endswith(("num_batches_tracked", "running_var")):
            largest = np.abs(update).max()
            assert largest > 0, name
            assert np.abs(moved[name] - update).max() <= 1e-6 * largest, name


@pytest.mark.parametrize("spec", MODELS)
def test_statistics_follow_the_batch_as_torchs(spec: str | reszoo.ResNetSpec) -> None:
    expected, moved = both_steps(spec)
    statistics = [name for name in expected if ".running_" in name]
    assert statistics
    for name in statistics:
        largest = np.abs(expected[name]).max()
        assert np.abs(moved[name] - expected[name]).max() <= 1e-4 * largest, name


@pytest.mark.parametrize("spec", MODELS)
def test_checkpoints_load_strictly_both_ways(
    spec: str | reszoo.ResNetSpec, tmp_path: Path
) -> None:
    torchs = theirs(name_of(spec))
    import torch

    file = reszoo.save(reszoo.build(spec, seed=0), tmp_path / "ours.safetensors")
    tensors = load_file(file)
    state = {name: torch.from_numpy(value) for name, value in tensors.items()}
    torchs.load_state_dict(state, strict=True)
    with_formula(torchs)
    bare = {name: value.numpy() for name, value in torchs.state_dict().items()}
    save_file(bare, tmp_path / "theirs.safetensors")
    loaded = reszoo.load(tmp_path / "theirs.safetensors", spec)
    report = reszoo.load_report(loaded)
    assert report is not None
    assert report.complete
    for name, value in to_tensors(loaded).items():
        np.testing.assert_array_equal(value, bare[name], name)
