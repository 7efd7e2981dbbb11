"""The first layer at which a file and its model part company, named."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import randomise

import reszoo
from reszoo_export.formats import FORMATS
from reszoo_export.serving import make_serving
from reszoo_export.verification import divergence
from reszoo_export.verification.divergence import first_difference, first_divergence
from reszoo_export.verification.reference import synthetic_images

IMAGES = synthetic_images(32)[-4:]


@pytest.fixture(scope="module")
def serving() -> Any:
    shape = (32, 32, 3)
    return make_serving(
        randomise(reszoo.build("resnet20", classes=7, input_shape=shape))
    )


def changed(serving: Any, layer: str, format_: str, folder: Path) -> Path:
    """Write a file in which a layer has lost what it adds to one channel."""
    weights = serving.model.get_layer(layer).get_weights()
    others = [weight.copy() for weight in weights]
    others[0][..., 0] = 0
    serving.model.get_layer(layer).set_weights(others)
    path = folder / FORMATS[format_].file
    try:
        FORMATS[format_].write(serving, path, None)
    finally:
        serving.model.get_layer(layer).set_weights(weights)
    return path


@pytest.mark.parametrize(
    ("format_", "layer"),
    [("onnx", "layer2.0.conv2"), ("tflite", "layer3.1.conv1"), ("onnx-fp16", "fc")],
)
def test_the_layer_that_was_changed_is_named(
    serving: Any, format_: str, layer: str, tmp_path: Path
) -> None:
    path = changed(serving, layer, format_, tmp_path)
    assert first_divergence(path, FORMATS[format_], serving, IMAGES) == layer


def test_a_layer_of_a_saved_model_is_named(
    serving: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def here(function: str, arguments: Any, arrays: Any, *, seconds: float) -> Any:
        return divergence.find_stored(arrays, **arguments)

    # TensorFlow is loaded here, and takes long to load again.
    monkeypatch.setattr(divergence, "run_in_subprocess", here)
    path = changed(serving, "conv1", "saved_model", tmp_path)
    row = FORMATS["saved_model"]
    assert first_divergence(path, row, serving, IMAGES) == "conv1"


def test_no_layer_of_a_good_file_is_named(serving: Any, tmp_path: Path) -> None:
    row, path = FORMATS["onnx"], tmp_path / "model.onnx"
    row.write(serving, path, None)
    assert first_divergence(path, row, serving, IMAGES) is None
    path.write_bytes(b"nonsense")
    assert first_divergence(path, row, serving, IMAGES) is None


def test_rounding_that_grows_slowly_is_no_divergence() -> None:
    draw = np.random.default_rng(0)
    layers = {f"layer{n}": draw.normal(size=(2, 4, 4, 8)) for n in range(6)}
    noise = {name: draw.normal(size=layer.shape) for name, layer in layers.items()}
    apart = dict(zip(layers, (0.05, 0.08, 0.15, 0.3, 0.5, 2.0), strict=True))
    inside: Any = {name: layers[name] + apart[name] * noise[name] for name in layers}
    expected: Any = layers
    assert first_difference(expected, inside, 0.1) == "layer5"
    # Converters move channels in front of rows and columns.
    moved = {str(n): np.moveaxis(each, -1, 1) for n, each in enumerate(inside.values())}
    assert first_difference(expected, moved, 0.1) == "layer5"
    del inside["layer1"]
    assert first_difference(expected, inside, 0.1) == "layer1"
