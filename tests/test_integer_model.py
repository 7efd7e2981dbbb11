"""The integers that a model is rounded to: ranges, kernels and biases."""

import numpy as np
import onnxruntime
import pytest
from conftest import randomise

import reszoo
from reszoo.metrics import probabilities
from reszoo_export.onnx import graph
from reszoo_export.onnx.writer import convert
from reszoo_export.quantization import grids, integer_model, ranges
from reszoo_export.serving import make_serving


def test_ranges_hold_their_share_of_images_and_a_step_at_zero() -> None:
    draw = np.random.default_rng(0)
    ends = np.stack([-draw.uniform(1, 2, 1000), draw.uniform(3, 5, 1000)], 1)
    low, high = ranges.ranges_of({"a": ends}, 1.0)["a"]
    assert (low, high) == pytest.approx((ends.min(), ends.max()), abs=0.03)
    step = (high - low) / 255
    assert low / step == pytest.approx(round(low / step), abs=1e-6)
    low, high = ranges.ranges_of({"a": ends}, 0.9)["a"]
    assert (low, high) == pytest.approx((-1.9, 4.8), abs=0.05)
    low, high = ranges.ranges_of({"dead": np.zeros((9, 2))}, 0.9)["dead"]
    assert low == 0 < high


@pytest.mark.parametrize(
    "name", ["resnet8", "resnet18", pytest.param("resnet50", marks=pytest.mark.slow)]
)
def test_a_net_of_bytes_is_the_same_net(name: str) -> None:
    """Normalisation in the first kernel is exact, borders included."""
    model = randomise(reszoo.build(name, input_shape=(32, 32, 3), classes=5))
    serving = make_serving(model)
    record = serving.card.preprocessing
    weights = integer_model.byte_weights(serving.model, record)
    bytes_net = integer_model.build_integer_model(serving.model, weights, {})
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (2, 32, 32, 3)).astype(np.float32)
    np.testing.assert_allclose(
        bytes_net(pixels), serving.model(record.normalise(pixels)), atol=1e-5
    )


def test_biases_make_up_for_rounded_kernels() -> None:
    model = randomise(reszoo.build("resnet20", input_shape=(32, 32, 3), classes=5))
    net = make_serving(model).model
    weights = integer_model.byte_weights(net, reszoo.card(model).preprocessing)
    exact = integer_model.build_integer_model(net, weights, {})
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (10, 32, 32, 3), np.uint8)
    _, inputs = ranges.observe(exact, ["relu"], images)
    steps = {name: grids.full_steps(kernel) for name, (kernel, _) in weights.items()}
    corrected = ranges.rounded_weights(exact, weights, steps, inputs)
    # A layer alone, on the images that were observed: its mean output stays.
    layer = exact.get_layer("conv1")
    kernel, bias = weights["conv1"]
    pixels = np.pad(images, ((0, 0),) * 3 + ((0, 1),), constant_values=255)
    expected = np.asarray(layer(pixels.astype(np.float32))).mean((0, 1, 2))
    layer.set_weights([grids.on_grid(kernel, steps["conv1"]), bias])
    rounded = np.asarray(layer(pixels.astype(np.float32))).mean((0, 1, 2))
    layer.set_weights(corrected["conv1"])
    mended = np.asarray(layer(pixels.astype(np.float32))).mean((0, 1, 2))
    assert np.abs(rounded - expected).max() > 1e-3
    np.testing.assert_allclose(mended, expected, atol=1e-4)


def test_a_channel_without_weights_keeps_its_bias() -> None:
    """Its step must not be so small that the bias leaves the 32 bits."""
    model = randomise(reszoo.build("resnet20", input_shape=(32, 32, 3), classes=5))
    for layer in model.layers:
        if ".bn" in layer.name:
            layer.gamma.assign(
                layer.gamma * np.r_[0, np.ones(layer.gamma.shape[0] - 1)]
            )
            layer.beta.assign(layer.beta + np.eye(1, layer.beta.shape[0])[0])
    serving = make_serving(model)
    weights = integer_model.byte_weights(serving.model, serving.card.preprocessing)
    net = integer_model.build_integer_model(serving.model, weights, {})
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    ends, _ = ranges.observe(net, integer_model.quantized_layers(serving.model), images)
    proto = convert(integer_model.as_bytes(serving, net))
    steps = {name: grids.narrow_steps(kernel) for name, (kernel, _) in weights.items()}
    spans = ranges.ranges_of(ends, 1.0)
    graph.quantize(proto.graph, steps, spans, integer_model.INSIDE)
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found = session.run(["probabilities"], {"image": images})[0]
    expected = probabilities(model, serving.card.preprocessing, images)
    assert np.abs(found - expected).sum(1).mean() < 0.02
