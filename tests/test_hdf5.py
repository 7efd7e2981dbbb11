"""`.h5` files of keras.applications: read exactly, and never trusted."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import reszoo
from reszoo.weights import keras_h5
from reszoo.weights.location import read


def write_layers(group: Any, layers: Mapping[str, Mapping[str, Any]]) -> None:
    """Write weights as Keras 2 did: group / layer / layer / kind:0."""
    for layer, weights in layers.items():
        inside = group.create_group(layer).create_group(layer)
        for kind, value in weights.items():
            inside[f"{kind}:0"] = value


@pytest.fixture
def small(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    with h5py.File(tmp_path / "small.h5", "w") as file:
        weights = {
            "kernel": draw.normal(size=(3, 3, 3, 8)),
            "bias": draw.normal(size=8),
        }
        write_layers(file, {"conv1_conv": weights})
    return tmp_path / "small.h5"


def test_a_whole_model_holds_the_same_weights(small: Path) -> None:
    expected = keras_h5.read_model(small)[0]
    with h5py.File(small, "a") as file:
        file.create_group("model_weights")
        file.move("conv1_conv", "model_weights/conv1_conv")
    found = keras_h5.read_model(small)[0]
    for kind, value in expected["conv1_conv"].items():
        np.testing.assert_array_equal(found["conv1_conv"][kind], value)


def test_a_published_file_gives_the_published_answers(tmp_path: Path) -> None:
    theirs = keras.applications.ResNet50(weights=None, classifier_activation=None)
    draw = np.random.default_rng(1)
    layers: dict[str, dict[str, Any]] = {}
    for layer in theirs.layers:
        if not layer.weights:
            continue
        if layer.name.endswith("_bn"):
            values = [draw.uniform(0.3, 0.6, w.shape) for w in layer.weights]
            layer.set_weights(values)
        kinds = [weight.path.rsplit("/", 1)[-1] for weight in layer.weights]
        layers[layer.name] = dict(zip(kinds, layer.get_weights(), strict=True))
    path = tmp_path / "resnet50.h5"
    with h5py.File(path, "w") as file:
        write_layers(file, layers)
    ours = reszoo.load(path)
    card = reszoo.card(ours)
    assert card.labels is not None
    assert card.labels[0] == "tench"
    pixels = draw.integers(0, 256, (1, 224, 224, 3)).astype(np.float32)
    caffe = keras.applications.resnet.preprocess_input(pixels.copy())
    expected = np.asarray(theirs(caffe, training=False))
    answer = np.asarray(ours(card.preprocessing.normalise(pixels), training=False))
    assert np.abs(answer - expected).max() <= 1e-5 * np.abs(expected).max()


def link_out(file: Any, tmp_path: Path) -> None:
    file["stolen"] = h5py.ExternalLink("/etc/passwd", "/")


def soft_link(file: Any, tmp_path: Path) -> None:
    file["conv1_bn"] = h5py.SoftLink("/conv1_conv")


def external_storage(file: Any, tmp_path: Path) -> None:
    secret = tmp_path / "secret.bin"
    secret.write_bytes(b"\0" * 4000)
    group = file.create_group("conv1_bn")
    group.create_dataset("gamma:0", (1000,), "f4", external=str(secret))


def virtual(file: Any, tmp_path: Path) -> None:
    layout = h5py.VirtualLayout((8,), "f4")
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", (8,))
    file.create_group("conv1_bn").create_virtual_dataset("gamma:0", layout)


def absurd_shape(file: Any, tmp_path: Path) -> None:
    group = file.create_group("conv1_bn")
    group.create_dataset("gamma:0", (2**40,), "f4", chunks=(1024,))


def bomb(file: Any, tmp_path: Path) -> None:
    group = file.create_group("conv1_bn")
    group.create_dataset("gamma:0", data=np.zeros(10**6, "f4"), compression="gzip")


def deep(file: Any, tmp_path: Path) -> None:
    group = file.create_group("conv1_bn")
    group["again"] = group


def words(file: Any, tmp_path: Path) -> None:
    file.create_group("conv1_bn")["gamma:0"] = np.array([b"os.system"])


@pytest.mark.parametrize(
    ("harm", "text"),
    [
        (link_out, r"has a link .*, stolen"),
        (soft_link, r"has a link .*, conv1_bn"),
        (external_storage, r"must contain conv1_bn/gamma:0 itself"),
        (virtual, r"must contain conv1_bn/gamma:0 itself"),
        (absurd_shape, r"must contain conv1_bn/gamma:0 itself.*\(1099511627776,\)"),
        (bomb, r"must contain conv1_bn/gamma:0 itself"),
        (deep, r"nests groups deeper"),
        (words, r"Weights must be floating point"),
    ],
)
def test_files_built_to_do_harm_are_refused(
    small: Path, tmp_path: Path, harm: Any, text: str
) -> None:
    with h5py.File(small, "a") as file:
        harm(file, tmp_path)
    with pytest.raises(reszoo.CheckpointError, match=text):
        keras_h5.read_model(small)[0]


# Bytes behind others, which make libhdf5 search forever or read beyond its memory.
@pytest.mark.parametrize(
    ("before", "distance", "new", "text"),
    [
        (b"\x19\x01", 1, b"\x07", "'model_config' is not a text"),
        (b"model_config", 48, b"\xff" * 4, "a text is longer than the file"),
        # No more texts, then a rest without a size.
        (b"GCOL", 16, bytes(16), "a heap of texts is damaged"),
        (b"GCOL", 5, b"\xff" * 3 + b"\0\x10" + bytes(22), "a heap of texts is damaged"),
        (b"GCOL", 24, b"\xf0" + b"\xff" * 7, "a heap of texts is damaged"),
    ],
)  # fmt: skip
def test_damaged_texts_are_not_read(
    small: Path, before: bytes, distance: int, new: bytes, text: str
) -> None:
    with h5py.File(small, "a") as file:
        file.attrs["model_config"] = "{}"
    content = bytearray(small.read_bytes())
    at = content.index(before) + distance
    content[at : at + len(new)] = new
    small.write_bytes(content)
    with pytest.raises(reszoo.CheckpointError, match=text):
        keras_h5.read_model(small)


def test_a_weight_of_another_name_or_number_is_named(
    small: Path, tmp_path: Path
) -> None:
    """Of a file whose names are damaged."""
    with h5py.File(small, "a") as file:
        file["conv1_conv/conv1_conv/0:0"] = np.zeros(3)
        file["conv1_conv/conv1_conv/9:0"] = np.zeros(3)
    with pytest.raises(reszoo.CheckpointError, match="not a complete HDF5 file"):
        keras_h5.read_model(small)
    layers = {"conv1": {"kernel": np.zeros((3, 3, 3, 8)), "gamna": np.zeros(8)}}
    assert set(keras_h5.own_tensors(layers)) == {"conv1.weight", "conv1.gamna"}


def test_truncated_files_are_refused(small: Path) -> None:
    content = small.read_bytes()
    for kept in (9, 100, len(content) // 2, len(content) - 1):
        small.write_bytes(content[:kept])
        with pytest.raises(reszoo.CheckpointError, match=r"not a complete HDF5"):
            read(small)


@settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(place=st.floats(0, 1), bit=st.integers(0, 7), length=st.integers(1, 4))
def test_damage_is_an_error_or_changes_no_shape(
    small: Path, place: float, bit: int, length: int
) -> None:
    content = small.read_bytes()
    damaged = bytearray(content)
    start = int(place * (len(content) - length))
    for index in range(start, start + length):
        damaged[index] ^= 1 << bit
    other = small.with_suffix(".damaged")
    other.write_bytes(damaged)
    try:
        layers = keras_h5.read_model(other)[0]
    except reszoo.CheckpointError:
        return
    shapes = {weight.shape for kinds in layers.values() for weight in kinds.values()}
    assert shapes <= {(3, 3, 3, 8), (8,)}
