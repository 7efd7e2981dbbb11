"""What Keras saves and copies of reszoo's models, and what reszoo reads of Keras'."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from conftest import randomise
from test_confidence import CONFIDENCE
from tiny import RESNET8

import reszoo
from reszoo.cards import Metric
from reszoo.weights.names import to_tensors
from reszoo.zoo import set_card

layers = keras.layers
X = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
PROJECTED = replace(RESNET8, name="projected8", shortcut="projection")


def measured(spec: Any = RESNET8) -> Any:
    """A model whose labels, preprocessing and accuracy are nobody's defaults."""
    model = randomise(
        reszoo.build(spec, classes=["a", "b", "c"], input_shape=(16, 16, 3), seed=0)
    )
    card = reszoo.card(model)
    record = replace(card.preprocessing, mean=(0.5,) * 3, std=(0.25,) * 3)
    metric = Metric(name="top1", value=0.75, data="photos")
    provenance = {"source": "here", "licence": "mit"}
    changed = replace(
        card, preprocessing=record, metrics=(metric,), provenance=provenance
    )
    set_card(model, changed)
    assert reszoo.card(model) == changed
    return model


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_keras_alone_opens_a_file_of_reszoo(tmp_path: Path) -> None:
    model = measured(PROJECTED)
    model.save(tmp_path / "m.keras")
    model.save(tmp_path / "m.h5")
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", model(X))
    code = f"""
import os, sys, keras, numpy as np
os.chdir({str(tmp_path)!r})
x, y = np.load("x.npy"), np.load("y.npy")
for name in ("m.keras", "m.h5"):
    model = keras.models.load_model(name)
    assert not [m for m in sys.modules if m.startswith("reszoo")]
    assert all(type(layer).__module__.startswith("keras.") for layer in model.layers)
    print(float(np.abs(np.asarray(model(x)) - y).max() / np.abs(y).max()))
    model.save("again-" + name)
"""
    assert max(map(float, run(code).split())) <= 1e-5
    for name in ("again-m.keras", "again-m.h5"):
        assert reszoo.card(reszoo.load(tmp_path / name)) == reszoo.card(model)


@pytest.mark.slow
def test_load_model_works_once_a_name_of_reszoo_was_used(tmp_path: Path) -> None:
    # Option A is a layer that Keras does not have.
    measured().save(tmp_path / "m.keras")
    code = f"""
import reszoo, keras
reszoo.list_models()
model = keras.models.load_model({str(tmp_path / "m.keras")!r})
print(reszoo.card(model).labels)
"""
    assert run(code) == "('a', 'b', 'c')\n"


@pytest.mark.parametrize("spec", [RESNET8, PROJECTED])
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_keras_files_keep_card_and_weights(
    tmp_path: Path, suffix: str, spec: Any
) -> None:
    model, file = measured(spec), tmp_path / f"m{suffix}"
    model.save(file)
    for again in (keras.models.load_model(file), reszoo.load(file)):
        assert reszoo.card(again) == reszoo.card(model)
        np.testing.assert_array_equal(again(X), model(X))
        kinds = [type(layer) for layer in again.layers]
        assert kinds == [type(layer) for layer in model.layers]


def test_weights_of_keras_need_only_the_spec(tmp_path: Path) -> None:
    model = measured()
    model.save_weights(tmp_path / "m.weights.h5")
    again = to_tensors(reszoo.load(tmp_path / "m.weights.h5", RESNET8))
    for name, value in to_tensors(model).items():
        np.testing.assert_array_equal(again[name], value)


def test_a_clone_has_the_card_but_not_the_accuracy_of_other_weights() -> None:
    model = measured()
    clone = keras.models.clone_model(model)
    card = reszoo.card(clone)
    assert (card.labels, card.metrics) == (("a", "b", "c"), ())
    assert card.preprocessing == reszoo.card(model).preprocessing
    clone.set_weights(model.get_weights())
    assert reszoo.card(clone) == reszoo.card(model)


def test_measured_values_go_when_weights_move(tmp_path: Path) -> None:
    model = measured()
    stale = reszoo.card(model)
    model.compile("sgd", "mse")
    model.fit(X, np.zeros((2, 3)), verbose=0)
    file = tmp_path / "m.keras"
    model.save(file)
    saved = reszoo.load(reszoo.save(model, tmp_path / "m.safetensors"))
    for each in (model, saved, reszoo.load(file), keras.models.load_model(file)):
        card = reszoo.card(each)
        assert card.metrics == ()
        assert card.provenance["began_as"] == {"source": "here", "licence": "mit"}
        assert card.labels == ("a", "b", "c")
    with pytest.raises(reszoo.UsageError, match=r"metrics .* before the weights of"):
        reszoo.save(model, tmp_path / "m.safetensors", card=stale)
    reszoo.save(model, tmp_path / "m.safetensors", card=replace(stale, metrics=()))


def test_the_statistics_of_batch_norm_are_weights_too() -> None:
    model = measured()
    model(X, training=True)
    assert reszoo.card(model).metrics == ()


def test_random_weights_that_were_trained_are_not_random() -> None:
    model = reszoo.build(RESNET8, classes=2, input_shape=(16, 16, 3))
    assert reszoo.card(model).is_fresh
    model.compile("sgd", "mse")
    model.fit(X, np.zeros((2, 2)), verbose=0)
    assert not reszoo.card(model).is_fresh


def own_head(base: Any) -> Any:
    features = layers.GlobalAveragePooling2D()(base.get_layer("layer3.0.relu").output)
    return keras.Model(base.input, layers.Dense(5, name="mine")(features))


def test_a_model_with_a_head_of_ones_own_has_no_card_of_another(tmp_path: Path) -> None:
    base = measured()
    model = own_head(base)
    with pytest.raises(
        reszoo.UsageError, match=r"layers of a resnet8 .* and others than that model"
    ):
        reszoo.card(model)
    path = tmp_path / "m.safetensors"
    with pytest.raises(
        reszoo.UsageError,
        match=r"resnet8 with 3 classes, .* differs from in .*mine\.weight",
    ):
        reszoo.save(model, path, card=reszoo.card(base))
    other = reszoo.build(RESNET8, classes=4, input_shape=(16, 16, 3))
    with pytest.raises(reszoo.UsageError, match=r"differs from in fc\.weight, fc\.bia"):
        reszoo.save(base, path, card=reszoo.card(other))
    image = keras.Input((16, 16, 3))
    x = base(layers.PReLU(name="mixed")(image))
    with pytest.raises(reszoo.UsageError, match=r"the weight 'mixed/"):
        reszoo.save(keras.Model(image, x), path, card=reszoo.card(base))
    assert not path.exists()


def test_an_export_of_a_head_of_ones_own_keeps_the_preprocessing() -> None:
    from reszoo_export.serving import make_serving

    base = measured()
    serving = make_serving(own_head(base))
    assert serving.card.preprocessing == reszoo.card(base).preprocessing
    assert serving.card.labels is None


def test_the_reason_for_a_missing_card_is_the_true_one() -> None:
    model = measured()
    model.get_layer("conv1").bias_initializer = keras.initializers.Zeros()
    with pytest.raises(reszoo.UsageError, match=r"reszoo before 0\.2 did not write it"):
        reszoo.card(model)
    image = keras.Input((8, 8, 3))
    other = keras.Model(image, layers.Flatten()(image))
    with pytest.raises(
        reszoo.UsageError, match=r"has no card: reszoo did not make it.*reszoo\.export"
    ):
        reszoo.card(other)


def applications(**options: Any) -> Any:
    """ResNet50 of keras.applications with biases and statistics that count."""
    model = keras.applications.ResNet50(
        weights=None, input_shape=(32, 32, 3), **options
    )
    draw = np.random.default_rng(0)
    for layer in model.layers:
        if layer.name.endswith("_bn"):
            low = 0.1 if layer.name.endswith("_3_bn") else 0.5
            kinds = [(low, 3 * low), (-0.2, 0.2), (-0.2, 0.2), (0.5, 1.5)]
            shape = layer.gamma.shape
            layer.set_weights([draw.uniform(*kind, shape) for kind in kinds])
    return model


def check_answers(path: Path, theirs: Any) -> Any:
    ours = reszoo.load(path)
    pixels = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3))
    pixels = pixels.astype(np.float32)
    caffe = keras.applications.resnet.preprocess_input(pixels.copy())
    expected = np.asarray(theirs(caffe, training=False))
    given = reszoo.card(ours).preprocessing.normalise(pixels)
    given = keras.ops.image.resize(given, ours.input_shape[1:3], "nearest")
    whole = reszoo.build("resnet50", weights=path, input_shape=(32, 32, 3))
    answer = np.asarray(whole(reszoo.card(ours).preprocessing.normalise(pixels)))
    assert np.abs(answer - expected).max() <= 1e-5 * np.abs(expected).max()
    return ours


@pytest.fixture(scope="module")
def resnet50() -> Any:
    return applications(include_top=False)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".h5", ".keras", ".weights.h5"])
def test_a_trained_model_of_keras_applications_is_read(
    tmp_path: Path, resnet50: Any, suffix: str
) -> None:
    """Nested, with a head of one's own, and the state of an optimizer beside it."""
    theirs = keras.Sequential(
        [resnet50, layers.GlobalAveragePooling2D(), layers.Dropout(0.5),
         layers.Dense(4, name="mine")]
    )  # fmt: skip
    theirs.compile(keras.optimizers.Adam(0.0), "mse")
    theirs.fit(np.zeros((1, 32, 32, 3)), np.zeros((1, 4)), verbose=0)
    path = tmp_path / f"trained{suffix}"
    theirs.save_weights(path) if "weights" in suffix else theirs.save(path)
    model = check_answers(path, theirs)
    assert reszoo.card(model).labels is None
    assert reszoo.card(model).architecture.classes == 4


def test_other_layers_beside_a_resnet_are_named(tmp_path: Path) -> None:
    base = reszoo.build(RESNET8, include_top=False, input_shape=(16, 16, 3))
    pool, dense = layers.GlobalAveragePooling2D, layers.Dense
    heads = {
        "Rescaling": [layers.Rescaling(2.0), base, pool(), dense(2)],
        "GlobalMaxPooling2D": [base, layers.GlobalMaxPooling2D(), dense(2)],
        "Dense": [base, pool(), dense(2, "sigmoid")],
    }
    for kind, stack in heads.items():
        path = tmp_path / f"{kind}.keras"
        keras.Sequential([keras.Input((16, 16, 3)), *stack]).save(path)
        with pytest.raises(
            reszoo.CheckpointError,
            match=rf"other layers than a ResNet has: {kind}\. Export it as it is",
        ):
            reszoo.load(path)


def test_a_backbone_in_a_sequential_is_read_with_its_preprocessing(
    tmp_path: Path,
) -> None:
    base = randomise(
        reszoo.build(PROJECTED, include_top=False, input_shape=(16, 16, 3))
    )
    card = reszoo.card(base)
    record = replace(card.preprocessing, mean=(0.1, 0.2, 0.3))
    set_card(base, replace(card, preprocessing=record))
    theirs = keras.Sequential(
        [base, layers.GlobalAveragePooling2D(), layers.Dense(3, "softmax")]
    )
    theirs.save(tmp_path / "m.keras")
    ours = reszoo.load(tmp_path / "m.keras", PROJECTED)
    assert reszoo.card(ours).preprocessing.mean == (0.1, 0.2, 0.3)
    whole = reszoo.build(
        PROJECTED, weights=tmp_path / "m.keras", input_shape=(16, 16, 3),
        classifier_activation="softmax",
    )  # fmt: skip
    np.testing.assert_allclose(whole(X), theirs(X), atol=1e-6)


@pytest.mark.parametrize("policy", ["float16", "bfloat16"])
def test_pure_half_precision_works(policy: str, tmp_path: Path) -> None:
    before = keras.config.dtype_policy()
    exact = measured()
    keras.config.set_dtype_policy(policy)
    try:
        model = reszoo.build(RESNET8, classes=3, input_shape=(16, 16, 3))
        model.set_weights(exact.get_weights())
        answer = np.asarray(keras.ops.cast(model(X), "float32"))
        model(X, training=True)
    finally:
        keras.config.set_dtype_policy(before)
    np.testing.assert_allclose(answer, exact(X), atol=0.1)
    loaded = reszoo.load(reszoo.save(model, tmp_path / "m.safetensors"))
    assert all(v.dtype in (np.float32, np.int64) for v in to_tensors(loaded).values())


def test_what_was_measured_of_a_compiled_model_goes_when_it_is_trained_on() -> None:
    model = reszoo.build(RESNET8, classes=3, input_shape=(16, 16, 3), seed=0)
    reszoo.compile(model, steps_per_epoch=1, epochs=2, freeze_bn=True)
    model.fit(X, np.array([0, 1]), verbose=0)
    metric = Metric(name="top1", value=0.75, data="photos")
    set_card(
        model, replace(reszoo.card(model), metrics=(metric,), confidence=CONFIDENCE)
    )
    assert reszoo.card(model).metrics == (metric,)
    before = reszoo.card(model)
    model.fit(X, np.array([0, 1]), verbose=0)
    after = reszoo.card(model)
    assert (after.metrics, after.confidence) == ((), None)
    assert after.provenance == before.provenance


def test_a_stale_temperature_is_not_saved(tmp_path: Path) -> None:
    model = measured()
    set_card(model, replace(reszoo.card(model), metrics=(), confidence=CONFIDENCE))
    stale = reszoo.card(model)
    model.get_layer("fc").kernel.assign_add(np.ones((64, 3)))
    with pytest.raises(reszoo.UsageError, match=r"confidence .* before the weights of"):
        reszoo.save(model, tmp_path / "m.safetensors", card=stale)


@pytest.mark.parametrize("units", [3, 5])
def test_another_classifier_of_the_same_name_has_no_card(
    tmp_path: Path, units: int
) -> None:
    base = measured()
    features = base.get_layer("avgpool").output
    model = keras.Model(base.input, layers.Dense(units, name="fc")(features))
    with pytest.raises(reszoo.UsageError, match="and others than that model"):
        reszoo.card(model)
    model.save(tmp_path / "m.keras")
    loaded = reszoo.load(tmp_path / "m.keras", RESNET8)
    assert reszoo.card(loaded).labels is None
    # A model that ends where it ended before is the same one.
    assert reszoo.card(keras.Model(base.input, base.output)).labels == ("a", "b", "c")


def test_what_was_measured_is_of_the_whole_model_at_its_strides(tmp_path: Path) -> None:
    model = reszoo.build("resnet18", classes=["a", "b"], input_shape=(64, 64, 3))
    metric = Metric(name="top1", value=0.75, data="photos")
    set_card(
        model, replace(reszoo.card(model), metrics=(metric,), confidence=CONFIDENCE)
    )
    path = reszoo.save(model, tmp_path / "m.safetensors")
    assert reszoo.card(reszoo.build(weights=path)).metrics == (metric,)
    for options in ({"output_stride": 8}, {"include_top": False}):
        built: dict[str, Any] = {**options, "input_shape": (64, 64, 3)}
        card = reszoo.card(reszoo.build("resnet18", weights=path, **built))
        assert (card.metrics, card.confidence) == ((), None)


@pytest.mark.parametrize("suffix", [".keras", ".h5", ".weights.h5"])
def test_two_dense_layers_are_not_taken_for_one(tmp_path: Path, suffix: str) -> None:
    """Whichever of them the file lists last."""
    base = reszoo.build(PROJECTED, include_top=False, pooling="avg")
    hidden = layers.Dense(9, name="z_hidden")(base.output)
    model = keras.Model(base.input, layers.Dense(3, name="a_scores")(hidden))
    path = tmp_path / f"m{suffix}"
    model.save_weights(path) if "weights" in suffix else model.save(path)
    # Weights alone are no file for keras.models.load_model.
    told = r"several dense layers \(.*z_hidden.*Export it as it is, loaded by Keras: "
    with pytest.raises(reszoo.CheckpointError, match=told):
        reszoo.load(path, PROJECTED)


@keras.saving.register_keras_serializable("tests")
class Gate(keras.layers.Layer):  # type: ignore[misc]
    """A layer of somebody else's, which has units and no kernel."""

    units = 3

    def call(self, inputs: Any) -> Any:
        return inputs

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}


def test_units_of_other_layers_are_not_those_of_a_classifier(tmp_path: Path) -> None:
    base = measured()
    model = keras.Model(base.input, Gate()(base.output))
    with pytest.raises(reszoo.UsageError, match="and others than that model"):
        reszoo.card(model)
    model.save(tmp_path / "m.keras")
    with pytest.raises(reszoo.CheckpointError, match="than a ResNet has: Gate"):
        reszoo.load(tmp_path / "m.keras")


def wrapped(base: Any, *after: Any) -> Any:
    return keras.Sequential([keras.Input((16, 16, 3)), base, *after])


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_model_inside_another_keeps_its_card(tmp_path: Path, suffix: str) -> None:
    from reszoo_export.serving import make_serving

    base = measured()
    for model in (wrapped(base), wrapped(base, layers.Softmax())):
        model.save(tmp_path / f"m{suffix}")
        loaded = reszoo.load(tmp_path / f"m{suffix}")
        assert reszoo.card(loaded) == reszoo.card(base)
        np.testing.assert_array_equal(loaded(X), base(X))
        card = make_serving(model).card
        assert card.labels == ("a", "b", "c")
        assert card.preprocessing.mean == (0.5,) * 3
    scaled = keras.Sequential(
        [keras.Input((16, 16, 3)), layers.Rescaling(1 / 127.5, -1), base]
    )
    assert make_serving(scaled).card.labels == ("a", "b", "c")
    other = wrapped(base, layers.Dense(3))
    assert make_serving(other).card.labels is None
    with pytest.raises(reszoo.UsageError, match=r"card is reszoo\.card\(model\.get_la"):
        reszoo.card(other)
    assert reszoo.card(other.get_layer(base.name)) == reszoo.card(base)


def test_a_model_quantized_by_keras_is_not_exported_as_it_is() -> None:
    from reszoo_export.serving import make_serving

    model = measured()
    model.quantize("int8", filters="fc")
    assert reszoo.card(model).metrics == ()
    with pytest.raises(reszoo.UsageError, match=r"quantized by Keras \(int8\); export"):
        make_serving(model)


def test_a_sequential_of_2018_is_described_by_a_list(tmp_path: Path) -> None:
    import h5py

    path = tmp_path / "m.h5"
    keras.Sequential([keras.Input((4,)), layers.Embedding(3, 2)]).save(path)
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        config["config"] = config["config"]["layers"]
        file.attrs["model_config"] = json.dumps(config)
    with pytest.raises(reszoo.CheckpointError, match=r"than a ResNet has: Embedding"):
        reszoo.load(path)
