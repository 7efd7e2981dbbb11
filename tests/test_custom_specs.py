"""A spec of one's own is trained, saved, loaded and exported as a row of the table."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import family
import numpy as np
import pytest
from conftest import randomise
from safetensors.numpy import load_file, save_file

import reszoo
from reszoo import specs
from reszoo.architecture import standalone_norms
from reszoo.weights.names import to_tensors
from reszoo_export.formats import FORMATS
from reszoo_export.serving import make_serving, source_answers

X = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
# Runs where nothing of this process is known.
LATER = """
import json, pathlib, sys
import numpy as np
import reszoo

checkpoint, folder = sys.argv[1], pathlib.Path(sys.argv[2])
model = reszoo.load(checkpoint)
np.save(folder / "logits.npy", model(np.load(folder / "x.npy"), training=False))
options = {"formats": "all", "calibration": "digits", "verify": "digits"}
manifest = reszoo.export(checkpoint, folder / "export", **options)
print(json.dumps({
    "spec": reszoo.card(model).resnet.to_json()["spec"],
    "top1": reszoo.evaluate(checkpoint, "digits").top1,
    "formats": [file.format for file in manifest.files],
}))
"""


_FLOAT = ("tflite", "onnx", "saved_model", "tflite-fp16", "onnx-fp16")


# ResNeXt-29 for small images (Xie et al. 2017, section 5.3), of 8 groups of 4 channels,
# which nobody published.
RESNEXT29 = reszoo.ResNetSpec(
    name="resnext29_8x4d",
    depths=(3, 3, 3),
    widths=(64, 128, 256),
    block="bottleneck",
    groups=8,
    width_per_group=4,
    stem="3x3",
    classes=10,
    image_size=16,
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "epochs"),
    [(family.SPECS["tiny"], 4), (RESNEXT29, 12)],
    ids=("tiny", "resnext29"),
)
def test_a_custom_spec_goes_all_the_way_in_a_new_process(
    spec: reszoo.ResNetSpec, epochs: int, tmp_path: Path
) -> None:
    images = X[:, : spec.image_size, : spec.image_size]
    options: dict[str, Any] = {
        "batch_size": 32, "learning_rate": 0.05, "epochs": epochs,
    }  # fmt: skip
    run = reszoo.train(spec, "digits", output=tmp_path / "run", **options)
    np.save(tmp_path / "x.npy", images)
    command = [sys.executable, "-c", LATER, str(run.best), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert reszoo.ResNetSpec(**told["spec"]) == spec
    assert told["formats"] == list(FORMATS)
    assert told["top1"] == pytest.approx(reszoo.evaluate(run.best, "digits").top1)
    assert told["top1"] > 0.8
    expected = run.model(images, training=False)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "formats"),
    [
        ("deep", _FLOAT[:2]),
        *(
            pytest.param(name, _FLOAT, marks=pytest.mark.slow)
            for name in ("deep", "pre", "pre-deep", "grouped", "late")
        ),
    ],
)
def test_every_member_of_the_family_is_saved_loaded_and_exported(
    name: str, formats: tuple[str, ...], tmp_path: Path
) -> None:
    spec = family.SPECS[name]
    model = randomise(reszoo.build(spec))
    again = reszoo.load(reszoo.save(model, tmp_path / "model.safetensors"))
    assert reszoo.card(again) == reszoo.card(model)
    np.testing.assert_array_equal(again(X, training=False), model(X, training=False))
    reszoo.export(again, tmp_path / "export", formats=formats)
    folded = make_serving(again).model
    kinds = {layer.name: type(layer).__name__ for layer in folded.layers}
    left = {layer for layer, kind in kinds.items() if kind == "ScaleShift"}
    assert left == set(standalone_norms(reszoo.card(model).resnet))
    assert "BatchNormalization" not in kinds.values()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deep", "pre", "grouped", "late"])
def test_blocks_of_every_kind_are_quantized(name: str, tmp_path: Path) -> None:
    """Trained: int8 is judged by what a model has learned.

    Files of integers alone have no floating point, also where normalization and ReLU
    come before a convolution.
    """
    options: dict[str, Any] = {"batch_size": 32, "learning_rate": 0.05, "epochs": 4}
    run = reszoo.train(family.SPECS[name], "digits", output=tmp_path / "run", **options)
    data: dict[str, Any] = {"calibration": "digits", "verify": "digits"}
    both: dict[str, Any] = {"formats": "tflite-int8,onnx-int8"}
    integers: dict[str, Any] = {"formats": "tflite-int8", "integer_io": "int8"}
    for number, asked in enumerate((both, integers)):
        manifest = reszoo.export(run.model, tmp_path / str(number), **data, **asked)
        for file in manifest.files:
            assert not file.verification.problems
            assert file.verification.agreement > 0.97, file.file


def test_weights_of_another_spec_are_refused(tmp_path: Path) -> None:
    file = reszoo.save(reszoo.build(family.SPECS["pre"]), tmp_path / "x.safetensors")
    changed = replace(family.SPECS["pre"], image_size=64)
    with pytest.raises(reszoo.CheckpointError, match=r"holds another spec.*'pre'"):
        reszoo.build(changed, weights=file)
    with pytest.raises(reszoo.CheckpointError, match=r"holds a pre\. Received: 'tiny'"):
        reszoo.load(file, family.SPECS["tiny"])


def test_tensors_without_a_card_need_the_spec(tmp_path: Path) -> None:
    model = randomise(reszoo.build(family.SPECS["deep"], classes=3))
    file = tmp_path / "bare.safetensors"
    save_file(to_tensors(model), file)
    with pytest.raises(
        reszoo.CheckpointError, match=r"fits no model of reszoo.*Give the ResNetSpec"
    ):
        reszoo.load(file)
    again = reszoo.load(file, family.SPECS["deep"])
    np.testing.assert_array_equal(again(X, training=False), model(X, training=False))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"widths": [2**20] * 3},
            r"does not hold the weights of tiny.*on its card",
        ),
        ({"depths": [10**9] * 3}, "at most 1000 blocks"),
        ({"colour": "red"}, "card cannot be read.*colour"),
        ({"depths": "many"}, "depths must be whole numbers"),
    ],
)
def test_a_spec_in_a_file_of_a_stranger_is_checked(
    changes: dict[str, Any], text: str, tmp_path: Path
) -> None:
    model = reszoo.build(family.SPECS["tiny"])
    file = reszoo.save(model, tmp_path / "model.safetensors")
    card = reszoo.card(model).to_json()
    card["architecture"]["spec"] |= changes
    save_file(load_file(file), file, {"reszoo_card": json.dumps(card)})
    with pytest.raises(reszoo.CheckpointError, match=text):
        reszoo.load(file)


@pytest.mark.parametrize("name", ["deep", "pre", "pre-deep", "grouped", "late"])
@pytest.mark.parametrize("shortcut", [None, "none"])
def test_the_family_is_recognised_in_a_keras_model(
    name: str, shortcut: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import keras

    monkeypatch.setitem(specs.SPECS, name, family.SPECS[name])
    shape = (32, 32, 3)
    base = reszoo.build(
        name, include_top=False, seed=0, input_shape=shape, shortcut=shortcut
    )
    x = keras.layers.GlobalAveragePooling2D()(base.output)
    model = keras.Model(base.input, keras.layers.Dense(4, activation="softmax")(x))
    serving = make_serving(model)
    described, ours = serving.card.resnet, reszoo.card(base).resnet
    assert (described.spec, described.shortcut) == (ours.spec, ours.shortcut)
    images = np.random.default_rng(1).integers(0, 256, (3, *shape), np.uint8)
    answers = serving.function("probabilities")(images)["probabilities"]
    expected = source_answers(model, serving)(images)
    assert expected.std(axis=0).max() > 1e-4
    np.testing.assert_allclose(answers, expected, atol=1e-5)
