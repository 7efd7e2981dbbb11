"""torch-exact in: the published architecture, held against torchvision and timm."""

from pathlib import Path
from typing import Any

import formula
import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import descend
from torch_peers import import_timm, import_torchvision
from torch_resnets import answers, with_formula

import reszoo
from reszoo.weights.names import assign_tensors, to_tensors

GOLDEN = Path(__file__).parent / "golden" / "resnets.npz"
# These repeat the blocks of ResNet-18 and ResNet-50, only more of them.
DEEPEST = ("resnet34", "resnet101", "resnet152")
NAMES = [
    pytest.param(name, marks=[pytest.mark.slow] if name in DEEPEST else [])
    for name in formula.NETS
]


@pytest.fixture(scope="module")
def golden() -> Any:
    with np.load(GOLDEN) as content:
        return dict(content)


def our_answers(name: str) -> dict[str, Any]:
    """The same dict as `torch_resnets.answers`, from our net."""
    model = reszoo.build(name, input_shape=(None, None, 3))
    tensors = {k: formula.weight(k, v.shape) for k, v in to_tensors(model).items()}
    assign_tensors(model, tensors, "the formula")
    stages = {s: _last_relu(model, s).output for s in formula.STAGES}
    looking = keras.Model(model.input, {"logits": model.output, **stages})
    found: dict[str, Any] = {}
    for size in formula.SIZES:
        label = f"{size[0]}x{size[1]}"
        seen = looking(formula.images(1, *size), training=False)
        found[f"{label}/logits"] = np.asarray(seen["logits"])[0]
        for stage in formula.STAGES:
            key = f"{label}/{stage}"
            value = np.asarray(seen[stage]).transpose(0, 3, 1, 2).reshape(-1)
            found[key] = value[formula.sample(key, value.size, formula.STAGE_SAMPLES)]
            found[f"{key}/largest"] = np.abs(value).max()
    return {**found, "step": _step(model)}


def _last_relu(model: Any, stage: str) -> Any:
    names = [layer.name for layer in model.layers]
    return model.get_layer(
        [n for n in names if n.startswith(f"{stage}.") and n.endswith(".relu")][-1]
    )


def _step(model: Any) -> Any:
    side = formula.STEP_SIDE
    labels = tf.range(formula.STEP_IMAGES) * 7
    images = formula.images(formula.STEP_IMAGES, side, side)
    descend(model, images, labels, formula.STEP_RATE)
    return formula.samples(to_tensors(model))


def assert_torch_exact(ours: dict[str, Any], torchs: dict[str, Any]) -> None:
    for key, expected in torchs.items():
        if key == "step":
            assert np.abs(ours[key] - expected).max() <= 1e-5
        else:
            largest = torchs.get(f"{key}/largest", np.abs(expected).max())
            assert np.abs(ours[key] - expected).max() <= 1e-5 * largest, key


@pytest.mark.parametrize("name", NAMES)
def test_logits_stages_and_one_step_are_torchs(name: str, golden: Any) -> None:
    of_net = {
        key.removeprefix(f"{name}/"): value
        for key, value in golden.items()
        if key.startswith(f"{name}/")
    }
    assert len(of_net) == 2 * (1 + 2 * len(formula.STAGES)) + 1
    assert_torch_exact(our_answers(name), of_net)


@pytest.mark.parametrize("name", NAMES)
def test_torchvision_and_timm_themselves_agree(name: str) -> None:
    torchvision, timm = import_torchvision(), import_timm()
    ours = our_answers(name)
    for net in (getattr(torchvision.models, name)(), timm.create_model(name)):
        assert_torch_exact(ours, answers(with_formula(net)))
