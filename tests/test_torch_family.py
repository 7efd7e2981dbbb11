"""Members of the family beyond the paper's, held against torchvision and timm."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import formula
import keras
import numpy as np
import pytest
from conftest import descend
from safetensors.numpy import load_file, save_file
from torch_peers import import_timm, import_torchvision
from torch_resnets import with_formula

import reszoo
from reszoo.architecture import architecture, count_parameters
from reszoo.weights.names import assign_tensors, to_tensors

SIZES = formula.SIZES
# One of each kind of block and stem; the others have the same, only more of them.
KINDS = ("resnext50_32x4d", "resnet50d", "resnet10t", "resnet14t")
MODELS = [
    pytest.param(name, marks=[] if name in KINDS else [pytest.mark.slow])
    for name in (
        "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2",
        "wide_resnet101_2", "resnet10t", "resnet14t", "resnet26t", "resnet18d",
        "resnet26d", "resnet34d", "resnet50d", "resnet101d", "resnet152d",
    )
]  # fmt: skip


def theirs(name: str) -> Any:
    """Build torchvision's model, or timm's where torchvision has none."""
    torchvision, timm = import_torchvision(), import_timm()
    made = getattr(torchvision.models, name, None)
    return with_formula(timm.create_model(name) if made is None else made())


def filled(model: Any) -> Any:
    tensors = {k: formula.weight(k, v.shape) for k, v in to_tensors(model).items()}
    assign_tensors(model, tensors, "the formula")
    return model


def ours(name: str) -> Any:
    return filled(reszoo.build(name, input_shape=(None, None, 3), seed=0))


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
    descend(model, images, targets)
    return {name: value - before[name] for name, value in to_tensors(model).items()}


def both_steps(name: str, size: tuple[int, int]) -> tuple[Any, Any]:
    """Return how one step of torch and one of ours change each tensor."""
    import_torchvision()
    images, targets = formula.images(2, *size), np.array([7, 400])
    expected = torch_step(theirs(name), images, targets)
    return expected, keras_step(ours(name), images, targets)


def stages_of(model: Any, images: Any) -> dict[str, Any]:
    """Return the logits and the output of every stage of a torch model."""
    import torch

    found: dict[str, Any] = {}

    def keep(stage: str) -> Any:
        return lambda _module, _inputs, output: found.__setitem__(stage, output)

    hooks = [
        getattr(model, stage).register_forward_hook(keep(stage))
        for stage in formula.STAGES
    ]
    with torch.no_grad():
        found["logits"] = model.eval()(pixels_of(images))
    for hook in hooks:
        hook.remove()
    moved = {n: x.permute(0, 2, 3, 1) if x.ndim == 4 else x for n, x in found.items()}
    return {name: value.numpy() for name, value in moved.items()}


def assert_close(answers: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        largest = np.abs(value).max()
        assert np.abs(np.asarray(answers[name]) - value).max() <= 1e-5 * largest, name


def looking(model: Any) -> Any:
    """Return a model that gives the logits and the output of every stage."""
    names = [layer.name for layer in model.layers if layer.name.endswith(".relu")]
    last = {name.split(".")[0]: model.get_layer(name).output for name in names}
    return keras.Model(model.input, {"logits": model.output, **last})


def both_answers(name: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield our logits and stages, and torch's, at two sizes."""
    import_torchvision()
    torchs, model = theirs(name), looking(ours(name))
    for size in SIZES:
        images = formula.images(1, *size)
        yield model(images, training=False), stages_of(torchs, images)


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_stages_are_torchs(name: str) -> None:
    for answers, expected in both_answers(name):
        assert set(expected) == {"logits", *formula.STAGES}
        assert_close(answers, expected)


# torchvision dilates bottlenecks only; timm all blocks, and average pools.
DILATED = [("resnet50", "torchvision"), ("resnext50_32x4d", "torchvision")]
DILATED += [(name, "timm") for name in ("resnet18", "resnet50", "resnet18d")]
DILATED += [("resnet50d", "timm")]


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize(("name", "library"), DILATED)
def test_output_strides_dilate_as_torchs(
    name: str, library: str, output_stride: int
) -> None:
    torchvision, timm = import_torchvision(), import_timm()
    if library == "timm":
        torchs = timm.create_model(name, output_stride=output_stride)
    else:
        dilated = [False, output_stride == 8, True]
        make = getattr(torchvision.models, name)
        torchs = make(replace_stride_with_dilation=dilated)
    model = reszoo.build(
        name,
        input_shape=(None, None, 3),
        output_stride=output_stride,
        seed=0,
    )
    images = formula.images(1, 129, 97)
    expected = stages_of(with_formula(torchs), images)
    assert expected["layer4"].shape[1] == -(-129 // output_stride)
    assert_close(looking(filled(model))(images, training=False), expected)


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_as_many_as_theirs(name: str) -> None:
    torchs = theirs(name)
    counts = [parameter.numel() for parameter in torchs.parameters()]
    assert count_parameters(architecture(name)) == sum(counts)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.usefixtures("float64")
def test_one_step_moves_every_tensor_as_torchs(
    name: str, size: tuple[int, int]
) -> None:
    expected, moved = both_steps(name, size)
    for tensor, update in expected.items():
        # In float64 Keras' own batch normalization runs, whose moving variance follows
        # the biased one; that of float32 is compared below.
        if not tensor.endswith(("num_batches_tracked", "running_var")):
            largest = np.abs(update).max()
            assert largest > 0, tensor
            assert np.abs(moved[tensor] - update).max() <= 1e-6 * largest, tensor


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", MODELS)
def test_statistics_follow_the_batch_as_torchs(
    name: str, size: tuple[int, int]
) -> None:
    expected, moved = both_steps(name, size)
    statistics = [tensor for tensor in expected if ".running_" in tensor]
    assert statistics
    for tensor in statistics:
        largest = np.abs(expected[tensor]).max()
        off = np.abs(moved[tensor] - expected[tensor]).max()
        assert off <= 1e-5 * largest, tensor


@pytest.mark.parametrize("name", MODELS)
def test_checkpoints_load_strictly_both_ways(name: str, tmp_path: Path) -> None:
    torchs = theirs(name)
    import torch

    file = reszoo.save(reszoo.build(name, seed=0), tmp_path / "ours.safetensors")
    tensors = load_file(file)
    state = {key: torch.from_numpy(value) for key, value in tensors.items()}
    torchs.load_state_dict(state, strict=True)
    with_formula(torchs)
    bare = {key: value.numpy() for key, value in torchs.state_dict().items()}
    save_file(bare, tmp_path / "theirs.safetensors")
    loaded = reszoo.load(tmp_path / "theirs.safetensors", name)
    report = reszoo.load_report(loaded)
    assert report is not None
    assert report.complete
    for key, value in to_tensors(loaded).items():
        np.testing.assert_array_equal(value, bare[key], key)
