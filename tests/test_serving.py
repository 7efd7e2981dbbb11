"""What the exported function answers, and for which models it can be made."""

from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest
from conftest import randomise

import reszoo
from reszoo.weights.names import to_tensors
from reszoo_export.formats import ONNX, TFLITE, ExportOptions
from reszoo_export.serving import Serving, float32_twin, make_serving, source_answers


def small(**options: Any) -> Any:
    shape = {"input_shape": (32, 32, 3)}
    return randomise(reszoo.build("resnet8", seed=0, **{**shape, **options}))


def images(serving: Serving, count: int = 4) -> Any:
    shape = (count, *serving.card.preprocessing.input_shape)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def answers(serving: Serving, output: str) -> Any:
    return serving.function(output)(images(serving))[output].numpy()


def test_another_size_is_that_of_the_whole_function() -> None:
    model = small(classes=["a", "b", "c"])
    serving = make_serving(model, ExportOptions(input_size=40))
    assert serving.spec(None, "uint8").shape == (None, 40, 40, 3)
    assert serving.card.preprocessing.eval_size == 40
    assert serving.card.preprocessing.train_size == 32
    assert serving.card.architecture.input_shape == (40, 40, 3)
    wide = reszoo.build("resnet8", classes=3, input_shape=(40, 40, 3))
    wide.set_weights(model.get_weights())
    pixels = serving.card.preprocessing.normalise(images(serving).astype(np.float32))
    expected = keras.ops.softmax(wide(pixels, training=False))
    np.testing.assert_allclose(answers(serving, "probabilities"), expected, atol=1e-5)
    original = source_answers(model, serving)(images(serving))
    np.testing.assert_allclose(original, expected, atol=1e-5)


def test_figures_of_another_size_are_not_kept() -> None:
    model = small(classes=3)
    from reszoo.cards import Metric
    from reszoo.zoo import set_card

    metric = Metric(name="top1", value=0.9, data="somewhere")
    set_card(model, replace(reszoo.card(model), metrics=(metric,)))
    assert make_serving(model).card.metrics == (metric,)
    assert make_serving(model, ExportOptions(input_size=32)).card.metrics == (metric,)
    assert make_serving(model, ExportOptions(input_size=40)).card.metrics == ()


@pytest.mark.parametrize(
    ("name", "size", "least"), [("resnet8", 3, 4), ("resnet18", 31, 32)]
)
def test_sizes_that_vanish_inside_are_refused(name: str, size: int, least: int) -> None:
    model = reszoo.build(name, classes=3)
    message = rf"{name} divides.*at least {least} pixels\. Received: input_size={size}"
    with pytest.raises(reszoo.UsageError, match=message):
        make_serving(model, ExportOptions(input_size=size))
    make_serving(model, ExportOptions(input_size=least))


@pytest.mark.parametrize(
    "options",
    [{"classes": 3}, {"include_top": False}, {"include_top": False, "pooling": "avg"}],
)
def test_features_are_what_a_classifier_would_see(options: dict[str, Any]) -> None:
    model = small(**options)
    serving = make_serving(model, ExportOptions(outputs="features"))
    bare = reszoo.build("resnet8", include_top=False, input_shape=(32, 32, 3))
    bare.set_weights(model.get_weights()[: len(bare.weights)])
    pixels = serving.card.preprocessing.normalise(images(serving).astype(np.float32))
    expected = np.asarray(bare(pixels, training=False)).mean(axis=(1, 2))
    assert expected.std() > 0.05
    np.testing.assert_allclose(answers(serving, "features"), expected, atol=1e-5)
    original = source_answers(model, serving)(images(serving))
    np.testing.assert_allclose(original, expected, atol=1e-5)
    assert serving.card.labels is None
    assert serving.card.architecture.classes is None


def test_a_net_without_classifier_gives_features_only() -> None:
    model = small(include_top=False)
    for outputs in (None, "logits", "probabilities"):
        with pytest.raises(reszoo.UsageError, match=r"include_top=False; .*'features'"):
            make_serving(model, ExportOptions(outputs=outputs))


def test_formats_ask_for_their_own_batch_and_outputs() -> None:
    serving = make_serving(small(classes=3))
    assert serving.batch(1) == 1
    assert serving.batch(None) is None
    assert serving.options.names(ONNX) == ("logits", "probabilities")
    asked = replace(serving, options=ExportOptions(batch=7, outputs="logits"))
    assert (asked.batch(1), asked.options.names(TFLITE)) == (7, ("logits",))
    assert replace(asked, options=ExportOptions(batch="dynamic")).batch(1) is None


def test_a_float32_twin_follows_the_card() -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = small(classes=3)
        before = to_tensors(model)
        serving = make_serving(model, ExportOptions(input_size=24))
        twin = float32_twin(model, serving.card)
    finally:
        keras.config.set_dtype_policy("float32")
    assert {layer.compute_dtype for layer in (*twin.layers, *serving.model.layers)} == {
        "float32"
    }
    assert twin.input_shape == (None, 24, 24, 3)
    after = to_tensors(twin)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    plain = small(classes=3)
    assert float32_twin(plain, make_serving(plain).card) is plain


def test_labels_are_told_where_the_card_lacks_them() -> None:
    serving = make_serving(small(classes=2), labels=["cat", "dog"])
    assert serving.card.labels == ("cat", "dog")
    with pytest.raises(reszoo.UsageError, match=r"Received: 3 labels for 2 classes"):
        make_serving(small(classes=2), labels=["cat", "dog", "owl"])
    named = small(classes=["cat", "dog"])
    with pytest.raises(reszoo.UsageError, match=r"cat, dog, in another order"):
        make_serving(named, labels=["dog", "cat"])


def test_a_model_after_plain_fit_does_not_claim_what_it_was_before() -> None:
    model = small(classes=3)
    model.compile("sgd", "mse")
    assert make_serving(model).card == reszoo.card(model)
    model.fit(np.zeros((2, 32, 32, 3)), np.zeros((2, 3)), verbose=0)
    serving = make_serving(model)
    assert serving.card.provenance["source"] == "trained or changed with Keras"
    expected = source_answers(model, serving)(images(serving))
    np.testing.assert_allclose(answers(serving, "probabilities"), expected, atol=1e-5)
