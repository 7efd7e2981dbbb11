"""V2 models of keras.applications: exact in both directions of a step, and read."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import formula
import h5py
import keras
import numpy as np
import pytest
from conftest import descend
from loopback import serve
from test_hdf5 import write_layers

import reszoo
from reszoo.specs import SPECS
from reszoo.weights.location import keras_applications_contents
from reszoo.weights.names import layers_of, to_tensors
from reszoo.weights.published import PUBLISHED
from reszoo_export.serving import make_serving

NAMES = ["resnet50v2", "resnet101v2", "resnet152v2"]


def theirs(name: str, **options: Any) -> Any:
    """Build the model of keras.applications, with weights that are nowhere trivial."""
    make = getattr(keras.applications, name.upper().replace("RESNET", "ResNet"))
    if options.get("include_top", True):
        options["classifier_activation"] = None
    model = make(weights=None, **options)
    for layer in model.layers:
        for weight in layer.weights:
            kind = weight.path.rsplit("/", 1)[-1]
            shape, label = tuple(weight.shape), f"{layer.name}.{kind}"
            if kind == "kernel":
                bound = np.sqrt(3 / np.prod(shape[:-1]))
                weight.assign(formula.uniform(label, shape, -bound, bound))
            elif kind in ("gamma", "moving_variance"):
                weight.assign(formula.uniform(label, shape, 0.5, 1.5))
            else:
                weight.assign(formula.uniform(label, shape, -0.2, 0.2))
    return model


@pytest.fixture
def float64() -> Iterator[None]:
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_dtype_policy("float32")


def assert_close(answer: Any, expected: Any, what: str) -> None:
    limit = 1e-5 * np.abs(expected).max()
    assert limit > 0, what
    assert np.abs(np.asarray(answer) - expected).max() <= limit, what


def both_answers(name: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield our answers and theirs: logits, and stages at two sizes."""
    model, images = theirs(name), formula.images(1, 224, 224)
    ours = reszoo.from_keras_applications(model)
    yield {"logits": ours(images)}, {"logits": model(images, training=False)}
    bare = theirs(name, include_top=False, input_shape=(None, None, 3))
    ends = {
        f"layer{stage}": layer.output
        for stage in range(1, 5)
        for layer in bare.layers
        if layer.name == f"conv{stage + 1}_block{SPECS[name].depths[stage - 1]}_out"
    }
    stages = keras.Model(bare.input, {**ends, "layer4": bare.output})
    pyramid = reszoo.build(
        name, include_top=False, features="pyramid", input_shape=(None, None, 3)
    )
    pyramid.set_weights(reszoo.from_keras_applications(bare).get_weights())
    for size in formula.SIZES:
        images = formula.images(1, *size)
        yield pyramid(images), stages(images, training=False)


def both_steps(name: str, size: tuple[int, int]) -> tuple[Any, Any]:
    """Return how one step of theirs and one of ours change each tensor."""
    options: dict[str, Any] = {"input_shape": (*size, 3), "classes": 10}
    model = theirs(name, **options)
    images, targets = formula.images(2, *size), np.array([3, 7])
    ours = reszoo.from_keras_applications(model)
    start = to_tensors(ours)
    for each in (model, ours):
        descend(each, images, targets)
    expected, moved = (
        {key: value - start[key] for key, value in tensors.items()}
        for tensors in (
            keras_applications_contents(layers_of(model), "after").tensors,
            to_tensors(ours),
        )
    )
    # Their moving statistics have Keras' momentum of 0.99, ours torch's of 0.9.
    scaled = {k: 10 * x if ".running_" in k else x for k, x in expected.items()}
    return scaled, moved


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_logits_and_stages_are_those_of_keras_applications(name: str) -> None:
    compared: set[str] = set()
    for answers, expected in both_answers(name):
        for key, value in expected.items():
            assert_close(answers[key], np.asarray(value), key)
        compared |= set(expected)
    assert compared == {"logits", *formula.STAGES}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    # The deeper ones have the same blocks.
    [(NAMES[0], formula.SIZES[0]), *((name, formula.SIZES[1]) for name in NAMES)],
)
@pytest.mark.usefixtures("float64")
def test_one_step_moves_every_tensor_as_in_keras(
    name: str, size: tuple[int, int]
) -> None:
    expected, moved = both_steps(name, size)
    assert set(expected) == {k for k in moved if not k.endswith("num_batches_tracked")}
    for key, value in expected.items():
        # The biases that the next normalization undoes have gradients of 0.
        if np.abs(value).max() > 1e-12:
            assert_close(moved[key], value, key)
        else:
            assert np.abs(moved[key]).max() <= 1e-12, key


@pytest.mark.slow
@pytest.mark.parametrize("include_top", [True, False])
def test_files_of_keras_applications_are_read(
    include_top: bool, tmp_path: Path
) -> None:
    model = theirs("resnet50v2", include_top=include_top)
    path = tmp_path / "weights.h5"
    with h5py.File(path, "w") as file:
        write_layers(file, layers_of(model))
    loaded = reszoo.load(path)
    card = reszoo.card(loaded)
    built = card.resnet
    assert (built.name, built.include_top) == ("resnet50v2", include_top)
    assert (card.labels is not None) == include_top
    pixels = formula.uniform("pixels", (1, 224, 224, 3), 0, 255)
    centred = keras.applications.resnet_v2.preprocess_input(pixels.copy())
    expected = np.asarray(model(centred, training=False))
    normalised = card.preprocessing.normalise(pixels)
    np.testing.assert_allclose(normalised, centred, atol=1e-5)
    assert_close(loaded(normalised, training=False), expected, "logits")
    again = reszoo.build("resnet50v2", weights=path, include_top=False)
    assert reszoo.card(again).architecture.name == "resnet50v2"
    with pytest.raises(reszoo.CheckpointError, match=r"made with stride_in='3x3'"):
        reszoo.build("resnet50v2", weights=path, stride_in="1x1")


@pytest.mark.slow
def test_biases_and_epsilon_are_kept_when_normalization_is_folded() -> None:
    model = theirs("resnet50v2", classes=5)
    images = formula.images(1, 224, 224)
    expected = np.asarray(model(images, training=False))
    for given in (model, reszoo.from_keras_applications(model)):
        serving = make_serving(given)
        record = serving.card.preprocessing
        assert serving.card.architecture.name == "resnet50v2"
        assert (record.mean, record.std) == ((0.5,) * 3, (0.5,) * 3)
        assert_close(serving.model(images), expected, "logits")


def test_layers_of_another_model_are_refused() -> None:
    layers: dict[str, Any] = {"block_9_conv": {}, "post_bn": {"gamma": np.ones(4)}}
    with pytest.raises(
        reszoo.CheckpointError,
        match=r"m is not a ResNet of keras.applications: it has a layer 'block_9_conv'",
    ):
        keras_applications_contents(layers, "m")


@pytest.mark.slow
@pytest.mark.parametrize("part", ["", "_notop"])
def test_published_files_come_with_the_publishers_card(
    part: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"keras/imagenet{part}"
    path = tmp_path / "weights.h5"
    with h5py.File(path, "w") as file:
        write_layers(file, layers_of(theirs("resnet50v2", include_top=not part)))
    row = PUBLISHED["resnet50v2", name]
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    with serve() as site:
        site.files["/w.h5"] = path.read_bytes()
        changes: dict[str, Any] = {
            "address": f"{site.url}/w.h5", "checksum": f"md5:{md5}",
        }  # fmt: skip
        monkeypatch.setitem(PUBLISHED, ("resnet50v2", name), replace(row, **changes))
        asked = name if part else "imagenet"
        model = reszoo.build("resnet50v2", weights=asked, include_top=not part)
    card = reszoo.card(model)
    assert (card.labels is None) == bool(part)
    assert card.provenance["licence"] == "bsd-3-clause"
    assert card.preprocessing == row.preprocessing
    assert [metric.value for metric in card.metrics] == ([] if part else [0.76, 0.93])
    loaded, read = to_tensors(model), to_tensors(reszoo.load(path))
    assert all(np.array_equal(value, read[key]) for key, value in loaded.items())
