"""ResNets of keras.applications, and ours under the heads of users, exported."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras_models import RECORD, check, head_on, pixels, small, stir

import reszoo
from reszoo_export.formats import ExportOptions
from reszoo_export.serving import make_serving, source_answers

layers = keras.layers


@pytest.fixture(scope="module")
def backbone() -> Any:
    return stir(
        keras.applications.ResNet50(
            weights=None, include_top=False, pooling="avg", input_shape=(32, 32, 3)
        )
    )


def test_a_fine_tuned_net_of_keras_applications(backbone: Any) -> None:
    image = keras.Input((32, 32, 3))
    x = layers.RandomFlip()(image)
    x = backbone(x, training=False)
    x = layers.Dropout(0.3)(x)
    model = keras.Model(image, layers.Dense(5, name="mine")(x))
    before = [weight.copy() for weight in model.get_weights()]
    calls = len(backbone._inbound_nodes)
    serving = make_serving(model, labels=["a", "b", "c", "d", "e"])
    images = pixels(32)
    caffe = keras.applications.resnet.preprocess_input(images.astype(np.float32))
    expected = keras.ops.softmax(model(caffe, training=False)).numpy()
    check(serving, images, expected)
    np.testing.assert_allclose(
        source_answers(model, serving)(images), expected, atol=1e-5
    )
    described = serving.card.resnet
    assert (described.name, described.stride_in) == ("resnet50", "1x1")
    assert serving.card.labels == ("a", "b", "c", "d", "e")
    assert serving.card.provenance["preprocessing"] == "of keras.applications"
    assert all(map(np.array_equal, before, model.get_weights()))
    assert len(backbone._inbound_nodes) == calls


def test_features_of_a_net_of_keras_applications(backbone: Any) -> None:
    images = pixels(32)
    caffe = keras.applications.resnet.preprocess_input(images.astype(np.float32))
    expected = backbone(caffe, training=False).numpy()
    model = keras.Sequential(
        [keras.Input((32, 32, 3)), backbone, layers.Dense(3, activation="softmax")]
    )
    serving = make_serving(model, ExportOptions(outputs="features"))
    check(serving, images, expected, atol=1e-5 * np.abs(expected).max())
    original = source_answers(model, serving)(images)
    np.testing.assert_allclose(original, expected, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"name": "resnet20"},
        {"shortcut": "projection"},
        {"shortcut": "projection-all"},
        {"name": "resnet18"},
        pytest.param(
            {"name": "resnet50", "shortcut": "identity", "stride_in": "1x1"},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_our_nets_under_a_head_of_the_users(options: dict[str, Any]) -> None:
    base = small(**options)
    model = head_on(base, layers.GlobalAveragePooling2D(), layers.Dropout(0.5))
    serving = make_serving(model)
    images = pixels(32)
    record = reszoo.card(base).preprocessing
    expected = model(record.normalise(images.astype(np.float32)), training=False)
    check(serving, images, expected.numpy())
    described, ours = serving.card.resnet, reszoo.card(base).resnet
    for name in ("spec", "shortcut", "stride_in"):
        assert getattr(described, name) == getattr(ours, name)


def test_a_plain_model_under_a_head_of_the_users() -> None:
    base = reszoo.build("plain20", include_top=False, seed=0, input_shape=(32, 32, 3))
    model = head_on(base, layers.GlobalAveragePooling2D())
    serving = make_serving(model)
    check(serving, pixels(32), source_answers(model, serving)(pixels(32)))
    described = serving.card.resnet
    assert (described.name, described.shortcut) == ("plain20", "none")


def test_a_model_that_went_through_a_keras_file_without_its_card(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = small(include_top=True, classes=3)
    # As in files that reszoo 0.1 wrote.
    model.get_layer("conv1").bias_initializer = keras.initializers.Zeros()
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    serving = make_serving(loaded)
    check(serving, pixels(32), source_answers(model, serving)(pixels(32)))
    assert "has lost its card" in capsys.readouterr().err
    assert serving.card.labels is None


def test_the_card_of_a_net_inside_tells_its_preprocessing() -> None:
    from reszoo.zoo import set_card

    base = small(pooling="avg")
    card = reszoo.card(base)
    record = replace(card.preprocessing, mean=(0.5,) * 3, std=(0.25,) * 3)
    set_card(base, replace(card, preprocessing=record, provenance={"source": "here"}))
    image = keras.Input((32, 32, 3))
    model = keras.Model(image, layers.Dense(4)(base(image)))
    serving = make_serving(model)
    assert serving.card.preprocessing == record
    assert serving.card.provenance["began_as"] == {"source": "here"}
    other = reszoo.card(small()).preprocessing
    assert make_serving(model, preprocessing=other).card.preprocessing == other


def test_half_precision_is_asked_in_float32() -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = head_on(small(pooling="avg"))
        serving = make_serving(model)
    finally:
        keras.config.set_dtype_policy("float32")
    check(serving, pixels(32), source_answers(model, serving)(pixels(32)))


def test_another_size_needs_a_model_of_open_sides() -> None:
    options = ExportOptions(input_size=40)
    with pytest.raises(reszoo.UsageError, match=r"of 32x32.*Received: input_size=40"):
        make_serving(head_on(small(pooling="avg")), options)
    model = head_on(small(pooling="avg", input_shape=(None, None, 3)))
    serving = make_serving(model, options)
    check(serving, pixels(40), source_answers(model, serving)(pixels(40)))


def changed(**changes: Any) -> Any:
    """A copy of a small net of which some layers have another configuration."""

    def clone(layer: Any) -> Any:
        config = layer.get_config()
        return type(layer).from_config({**config, **changes.get(layer.name, {})})

    base = small(pooling="avg")
    names = {layer.name for layer in base.layers}
    assert set(changes) <= names, sorted(names)
    return stir(head_on(keras.models.clone_model(base, clone_function=clone)))


def squeezed() -> Any:
    base = small()
    weight = layers.Dense(64, activation="sigmoid", name="squeeze")(
        layers.GlobalAveragePooling2D(keepdims=True)(base.output)
    )
    scaled = layers.Multiply(name="excite")([base.output, weight])
    return head_on(keras.Model(base.input, scaled), layers.GlobalAveragePooling2D())


def rescaled() -> Any:
    image = keras.Input((32, 32, 3))
    base = small(pooling="avg")
    return head_on(keras.Model(image, base(layers.Rescaling(1 / 255)(image))))


@pytest.mark.parametrize(
    "make",
    [
        squeezed,
        lambda: head_on(small(pooling="avg"), layers.Dense(8, "relu", name="hid")),
        lambda: head_on(small(pooling="max")),
        lambda: changed(**{"layer2.0.relu1": {"negative_slope": 0.1}}),
        lambda: changed(**{"layer1.0.conv1": {"dilation_rate": (2, 2)}}),
        lambda: changed(**{"layer1.0.bn1": {"axis": 1}}),
    ],
)
def test_what_is_no_resnet_is_exported_as_it_computes(make: Any) -> None:
    model = make()
    serving = make_serving(model, preprocessing=RECORD)
    assert serving.is_traced
    images = pixels(32)
    expected = model(RECORD.normalise(images.astype(np.float32)), training=False)
    check(serving, images, expected.numpy())
    np.testing.assert_allclose(
        source_answers(model, serving)(images), expected, atol=1e-5
    )


def test_preprocessing_inside_the_model_is_left_there() -> None:
    model = rescaled()
    serving = make_serving(model)
    images = pixels(32)
    expected = model(images.astype(np.float32), training=False)
    check(serving, images, expected.numpy())
    record = serving.card.preprocessing
    assert (record.mean, record.std) == ((0.0,) * 3, (1 / 255,) * 3)


def test_a_stride_elsewhere_is_exported_as_it_is() -> None:
    """Without the layers' strides it would pass for a net of the zoo."""
    base = small(shortcut="projection", pooling="avg")

    def clone(layer: Any) -> Any:
        config = layer.get_config()
        if layer.name in ("layer2.0.conv1", "layer2.0.downsample.0"):
            config |= {"strides": (1, 1)}
        return type(layer).from_config(config)

    model = stir(head_on(keras.models.clone_model(base, clone_function=clone)))
    serving = make_serving(model, preprocessing=RECORD)
    assert serving.is_traced
    expected = model(RECORD.normalise(pixels(32).astype(np.float32)), training=False)
    check(serving, pixels(32), expected.numpy())


def test_a_net_of_unknown_make_must_tell_its_preprocessing() -> None:
    base = small(pooling="avg")

    def clone(layer: Any) -> Any:
        kind, config = type(layer), layer.get_config()
        if isinstance(layer, layers.BatchNormalization):
            kind = layers.BatchNormalization
        if layer.name == "conv1":
            # Where the card is.
            config["bias_initializer"] = "zeros"
        return kind.from_config(config)

    model = stir(head_on(keras.models.clone_model(base, clone_function=clone)))
    with pytest.raises(reszoo.UsageError, match=r"pass preprocessing="):
        make_serving(model)
    record = reszoo.card(base).preprocessing
    serving = make_serving(model, preprocessing=record)
    expected = model(record.normalise(pixels(32).astype(np.float32)), training=False)
    check(serving, pixels(32), expected.numpy())
