"""The residual block and the perceptrons made of it."""

from typing import Any

import keras
import numpy as np
import pytest

import reszoo
from reszoo.layers import reinitialize
from reszoo.weights.names import to_tensors

Dense = keras.layers.Dense


def test_a_block_adds_what_came_in_and_rectifies_the_sum() -> None:
    a = keras.Input((6,))
    first, second = Dense(6, "relu", name="first"), Dense(6, name="second")
    model = keras.Model(a, reszoo.residual([first, second], name="block")(a))
    x = np.random.default_rng(0).normal(size=(5, 6)).astype("f")
    hidden = np.maximum(x @ np.asarray(first.kernel.value), 0)
    z = hidden @ np.asarray(second.kernel.value)
    np.testing.assert_allclose(model(x), np.maximum(z + x, 0), atol=1e-6)
    assert {"block.add", "block.relu"} <= {layer.name for layer in model.layers}


def test_a_block_whose_weights_are_zero_passes_activations_on() -> None:
    a = keras.Input((4,))
    model = keras.Model(a, reszoo.residual(Dense(4, kernel_initializer="zeros"))(a))
    x = np.arange(8, dtype="f").reshape(2, 4)
    np.testing.assert_array_equal(model(x), x)


def test_a_projection_brings_the_shortcut_to_another_width() -> None:
    a = keras.Input((4,))
    main, projection = Dense(6), Dense(6, use_bias=False)
    model = keras.Model(a, reszoo.residual(main, projection)(a))
    x = np.random.default_rng(1).normal(size=(3, 4)).astype("f")
    expected = np.maximum(np.asarray(main(x)) + np.asarray(projection(x)), 0)
    np.testing.assert_allclose(model(x), expected, atol=1e-6)


def test_shapes_that_cannot_be_added_are_refused() -> None:
    # Keras would stretch a width of 1 without a word.
    for width in (6, 1):
        told = rf"one shape. Received: \(None, {width}\) from the main path and \(None"
        with pytest.raises(reszoo.UsageError, match=told):
            reszoo.residual(Dense(width), name="b")(keras.Input((4,)))


def test_plain_and_residual_perceptrons_are_twins() -> None:
    plain = reszoo.mlp(10, shortcut="none", seed=3)
    residual = reszoo.mlp(10, seed=3)
    assert plain.count_params() == residual.count_params()
    ours, theirs = ({v.path: v for v in net.variables} for net in (plain, residual))
    assert list(ours) == list(theirs)
    for path, variable in ours.items():
        np.testing.assert_array_equal(variable.value, theirs[path].value, path)
    kernels = [path for path in ours if path.endswith("/kernel")]
    assert len(kernels) == 10
    image = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("f")
    assert abs(plain(image) - residual(image)).numpy().max() > 0.1


def test_an_untrained_block_of_a_perceptron_is_what_the_equation_says() -> None:
    net = reszoo.mlp(4, width=16, seed=0)
    image = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype("f")
    a = keras.Model(net.input, net.get_layer("relu").output)(image)
    after = keras.Model(net.input, net.get_layer("block0.relu").output)(image)
    x = a
    for name in ("linear1", "bn1", "relu1", "linear2", "bn2"):
        x = net.get_layer(f"block0.{name}")(x)
    np.testing.assert_allclose(after, np.maximum(x + a, 0), atol=1e-6)


@pytest.mark.parametrize("layers", [2, 7])
def test_a_perceptron_has_whole_blocks(layers: int) -> None:
    with pytest.raises(reszoo.UsageError, match=f"even and at least 4.*{layers}"):
        reszoo.mlp(layers)


def test_a_perceptron_projects_nothing() -> None:
    with pytest.raises(reszoo.UnknownNameError, match="projection"):
        reszoo.mlp(8, shortcut="projection")


@pytest.mark.parametrize("kind", ["resnet20", "plain20", "mlp"])
def test_a_net_that_starts_anew_is_the_net_built_from_that_seed(kind: str) -> None:
    def built(seed: int) -> Any:
        if kind == "mlp":
            return reszoo.mlp(6, seed=seed)
        return reszoo.build(kind, seed=seed, shortcut=None)

    net, wanted = built(1), built(2)
    for variable in net.variables:
        variable.assign(variable + 1.0)
    reinitialize(net, 2)
    tensors, expected = to_tensors(net), to_tensors(wanted)
    assert len(tensors) > 10
    for name, tensor in expected.items():
        np.testing.assert_array_equal(tensors[name], tensor, err_msg=name)


def test_blocks_without_a_name_are_numbered_by_keras() -> None:
    a = keras.Input((4,))
    first, second = (reszoo.residual(Dense(4)) for _ in range(2))
    model = keras.Model(a, second(first(a)))
    names = {layer.name for layer in model.layers}
    assert len(names) == len(model.layers) == 7


def test_a_block_without_activation_outputs_the_sum() -> None:
    a = keras.Input((4,))
    ones = Dense(4, kernel_initializer="identity")
    x = np.array([[-3.0, 0.5, 1.0, -0.5]], "float32")
    model = keras.Model(a, reszoo.residual(ones, activation=None, name="b")(a))
    np.testing.assert_array_equal(model(x), 2 * x)
    model = keras.Model(a, reszoo.residual(ones, activation="relu6", name="b")(a))
    np.testing.assert_array_equal(model(4 * x), np.clip(8 * x, 0, 6))
    assert model.layers[-1].name == "b.activation"
