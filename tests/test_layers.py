import os
import subprocess
import sys
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import reszoo
from reszoo.layers import BatchNormalization, Conv2D, IdentityShortcut


def data(seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(2, 3, (4, 5, 6, 7)).astype(np.float32)


def by_group(layer: Any, x: Any) -> Any:
    """Convolve every group by itself, which needs no grouped kernel."""
    kernel = tf.cast(layer.kernel.value, x.dtype)
    kernels = tf.split(kernel, layer.groups, axis=-1)
    parts = tf.split(x, layer.groups, axis=-1)
    padding = layer.padding.upper()
    return tf.concat(
        [
            tf.nn.conv2d(part, kernel, layer.strides, padding)
            for part, kernel in zip(parts, kernels, strict=True)
        ],
        axis=-1,
    )


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "float64"])
@pytest.mark.parametrize(("strides", "padding"), [(1, "same"), (2, "valid")])
def test_a_grouped_convolution_equals_one_of_each_group(
    strides: int, padding: str, dtype: str
) -> None:
    layer = Conv2D(12, 3, strides, padding, groups=4, use_bias=False, dtype=dtype)
    noise = np.random.default_rng(0).normal(size=(2, 9, 11, 8))
    x = tf.constant(noise, tf.float64 if dtype == "float64" else tf.float32)
    layer.build(x.shape)
    found = []
    for call in (layer, lambda x: by_group(layer, tf.cast(x, layer.compute_dtype))):
        with tf.GradientTape() as tape:
            tape.watch(x)
            answer = call(x)
            loss = tf.reduce_sum(tf.cast(answer, tf.float32) ** 2)
        found.append([answer, *tape.gradient(loss, [x, layer.kernel.value])])
    ours, expected = found
    tolerance = 1e-6 if dtype == "float32" else 2e-2
    for one, other in zip(ours, expected, strict=True):
        one, other = (np.asarray(tf.cast(each, tf.float32)) for each in (one, other))
        assert one.shape == other.shape
        assert np.abs(one - other).max() <= tolerance * np.abs(other).max()


def test_strided_convolutions_of_few_channels_subsample_first() -> None:
    """Otherwise TensorFlow 2.21 ends the process: `corrupted size vs. prev_size`."""
    spec = reszoo.ResNetSpec(name="narrow", depths=(1, 1), widths=(8, 16), stem="3x3")
    model = reszoo.build(spec, classes=2, input_shape=(32, 32, 3))
    layer = model.get_layer("layer2.0.downsample.0")
    assert type(layer) is keras.layers.Conv2D
    draw = np.random.default_rng(0)
    for shape, equal in (((4, 31, 32, 8), True), ((5, 32, 32, 8), False)):
        x = tf.constant(draw.normal(size=shape).astype(np.float32))
        found = []
        for convolve in (layer, type(layer).convolution_op)[: 1 + equal]:
            with tf.GradientTape() as tape:
                tape.watch(x)
                kernel = layer.kernel.value
                answer = layer(x) if convolve is layer else convolve(layer, x, kernel)
                loss = tf.reduce_sum(answer**2)
            found.append([answer, *tape.gradient(loss, [x, kernel])])
        for one, other in zip(found[0], found[-1], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-4)


@pytest.mark.slow
def test_grouped_convolutions_train_without_onednn() -> None:
    """TensorFlow's kernel then has no gradient; models that infer use it still."""
    script = """
import numpy as np, tensorflow as tf
from reszoo.layers import Conv2D

kinds, answers = [], []
for differentiable in (True, False):
    layer = Conv2D(8, 3, groups=4, differentiable=differentiable)
    layer.build((None, 8, 8, 8))
    layer.set_weights([np.arange(9 * 2 * 8.0).reshape(3, 3, 2, 8), np.zeros(8)])
    graph = tf.function(layer).get_concrete_function(tf.TensorSpec((1, 8, 8, 8)))
    kinds.append([op.type for op in graph.graph.get_operations()].count("Conv2D"))
    with tf.GradientTape() as tape:
        answers.append(layer(np.ones((1, 8, 8, 8))))
    if differentiable:
        assert tape.gradient(answers[0], layer.kernel.value) is not None
print(kinds, np.array_equal(*answers))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "TF_ENABLE_ONEDNN_OPTS": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "[4, 1] True", done.stderr


def test_a_grouped_convolution_is_traced_without_xla() -> None:
    layer = Conv2D(8, 3, padding="same", groups=2)
    layer.build((None, 8, 8, 4))

    @tf.function  # type: ignore[untyped-decorator]
    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(x) ** 2)
        return tape.gradient(loss, layer.kernel.value)

    graph = step.get_concrete_function(tf.TensorSpec((1, 8, 8, 4))).graph
    kinds = {operation.type for operation in graph.get_operations()}
    assert {"Conv2D", "Conv2DBackpropFilter"} <= kinds
    assert not [kind for kind in kinds if "Call" in kind or "XLA" in kind.upper()]


def twins() -> tuple[Any, Any]:
    """The fused layer and Keras' own, with the same non-trivial weights."""
    ours = BatchNormalization()
    theirs = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5)
    draw = np.random.default_rng(1)
    weights = [draw.uniform(0.5, 2, 7).astype(np.float32) for _ in range(4)]
    for layer in (ours, theirs):
        layer.build((None, 5, 6, 7))
        layer.set_weights(weights)
    return ours, theirs


@pytest.mark.parametrize("training", [False, True])
def test_the_fused_kernel_answers_like_keras(training: bool) -> None:
    ours, theirs = twins()
    x = data()
    np.testing.assert_allclose(
        ours(x, training=training), theirs(x, training=training), atol=1e-5
    )


def test_gradients_are_those_of_keras() -> None:
    gradients = []
    for layer in twins():
        x = tf.constant(data())
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(layer(x, training=True) ** 3)
        sources = [x, layer.gamma.value, layer.beta.value]
        gradients.append(tape.gradient(loss, sources))
    for ours, theirs in zip(*gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)


def test_moving_statistics_follow_torch() -> None:
    ours, _ = twins()
    mean, variance = ours.get_weights()[2:]
    x = data()
    ours(x, training=True)
    expected_mean = 0.9 * mean + 0.1 * x.mean((0, 1, 2))
    expected_variance = 0.9 * variance + 0.1 * x.var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(ours.get_weights()[2], expected_mean, rtol=1e-5)
    np.testing.assert_allclose(ours.get_weights()[3], expected_variance, rtol=1e-5)


def test_a_frozen_layer_uses_and_keeps_its_statistics() -> None:
    ours, theirs = twins()
    ours.trainable = False
    before = ours.get_weights()
    np.testing.assert_allclose(
        ours(data(), training=True), theirs(data(), training=False), atol=1e-5
    )
    for old, new in zip(before, ours.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_bfloat16_keeps_statistics_in_float32() -> None:
    layer = BatchNormalization(dtype="mixed_bfloat16")
    x = data()
    y = layer(x, training=True)
    assert y.dtype == tf.bfloat16
    expected = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5)
    np.testing.assert_allclose(tf.cast(y, tf.float32), expected, atol=0.03)
    np.testing.assert_allclose(layer.moving_mean, 0.1 * x.mean((0, 1, 2)), rtol=0.01)


def test_a_mask_falls_back_to_keras() -> None:
    ours, theirs = twins()
    mask = np.random.default_rng(2).random((4, 5, 6)) > 0.5
    answers = [layer(data(), training=True, mask=mask) for layer in (ours, theirs)]
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-5)


def test_option_a_keeps_every_second_pixel_between_zero_channels() -> None:
    x = np.arange(2 * 5 * 4 * 2, dtype=np.float32).reshape(2, 5, 4, 2)
    y = np.asarray(IdentityShortcut(filters=6, stride=2)(x))
    assert y.shape == (2, 3, 2, 6)
    np.testing.assert_array_equal(y[..., 2:4], x[:, ::2, ::2])
    assert not y[..., :2].any()
    assert not y[..., 4:].any()


def test_layers_survive_a_keras_file(tmp_path: Any) -> None:
    image = keras.Input((8, 8, 2))
    x = Conv2D(2, 3, groups=2)(BatchNormalization()(image))
    outputs = IdentityShortcut(4, 2)(keras.layers.Conv2D(2, 1)(x))
    model = keras.Model(image, outputs)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    kinds = [type(layer) for layer in again.layers]
    assert kinds == [type(layer) for layer in model.layers]
    x = np.random.default_rng(0).normal(size=(1, 8, 8, 2)).astype(np.float32)
    np.testing.assert_array_equal(model(x), again(x))
