"""Class imbalance: weights in the loss, sampling by class, and their exact resume."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from test_pipeline import STILL, VARIED, batches_of
from test_resume import assert_equal, killed_at_step, train
from test_step import IMAGES, KEY, LABELS, recipe_of, small

import reszoo
from reszoo.data.examples import Examples
from reszoo.data.pipeline import Augmentation, class_shares, epoch_slots
from reszoo.training.model import training_copy
from reszoo.training.recipes import find_recipe, parse_field, repeat_command
from reszoo.training.run import RunConfig
from reszoo.training.step import TrainingStep
from reszoo.weights.names import to_tensors

COUNTS = (40, 13, 7)


def unequal() -> Examples:
    """Noise of 60 images in three classes of unequal size, in a mixed order."""
    draw = np.random.default_rng(3)
    targets = draw.permutation(np.repeat(np.arange(3), COUNTS))
    images = draw.integers(0, 256, (60, 32, 32, 3), np.uint8)
    return Examples(targets.astype(np.int64), images=images)


def sampled(power: float | None, kind: Augmentation = STILL) -> Augmentation:
    return Augmentation(**{**vars(kind), "sampling": power})


def shown(power: float | None, epoch: int = 0) -> Counter[bytes]:
    batches = batches_of(unequal(), sampled(power), 6, epoch=epoch)
    return Counter(image.tobytes() for images, _ in batches for image in images)


def test_an_epoch_shows_all_classes_equally_often() -> None:
    examples = unequal()
    assert examples.images is not None
    times = shown(0.0)
    assert sum(times.values()) == len(examples) == 60
    for target in range(3):
        members = examples.images[examples.targets == target]
        counts = [times[image.tobytes()] for image in members]
        assert sum(counts) == 20
        assert max(counts) - min(counts) <= 1
    assert shown(1.0) == shown(None) == Counter(i.tobytes() for i in examples.images)
    assert shown(0.0, epoch=1) != times


def test_a_power_is_between_and_exact_over_the_epochs() -> None:
    expected = class_shares(unequal().targets, 3, 0.5)
    np.testing.assert_allclose(expected, np.sqrt(COUNTS) / np.sqrt(COUNTS).sum())
    seen = np.zeros(3)
    for epoch in range(40):
        slots = epoch_slots(unequal().targets, 60, (0, epoch), sampled(0.5))
        counts = np.bincount(slots[2][0], minlength=3)
        assert (np.abs(counts - 60 * expected) < 1).all()
        seen += counts / 60 / 40
    # Rounding down alone would be 0.007 off.
    np.testing.assert_allclose(seen, expected, atol=0.003)
    ((_, targets),) = batches_of(unequal(), sampled(0.5), 60, epoch=39)
    np.testing.assert_array_equal(targets, slots[2][0])


def test_sampling_keeps_the_order_of_a_seed_an_epoch_and_its_workers() -> None:
    kind = sampled(0.0, VARIED)
    whole = batches_of(unequal(), kind, 6, epoch=2)
    again = batches_of(unequal(), kind, 6, epoch=2, start=4)
    parts = [batches_of(unequal(), kind, 6, epoch=2, shard=(i, 2)) for i in range(2)]
    for (images, _), (same, _) in zip(whole[4:], again, strict=True):
        np.testing.assert_array_equal(images, same)
    for (images, targets), *halves in zip(whole, *parts, strict=True):
        together = [np.concatenate(each) for each in zip(*halves, strict=True)]
        np.testing.assert_array_equal(images, together[0])
        np.testing.assert_array_equal(targets, together[1])
    # An image that is shown more than once is varied differently.
    images = [image.tobytes() for images, _ in whole for image in images]
    assert len(set(images)) == 60


def test_weights_are_scikit_learns_and_count_what_is_shown() -> None:
    utils = pytest.importorskip("sklearn.utils.class_weight", reason="extra demo")
    targets = unequal().targets

    def weights(given: Any, sampling: float | None) -> Any:
        source = SimpleNamespace(labels=tuple("abc"), examples=lambda _: unequal())
        recipe = SimpleNamespace(class_weight=given)
        shown = SimpleNamespace(sampling=sampling)
        config = SimpleNamespace(recipe=recipe, source=source, augmentation=shown)
        return RunConfig.class_weights(config)  # type: ignore[arg-type]

    theirs = utils.compute_class_weight("balanced", classes=np.arange(3), y=targets)
    np.testing.assert_allclose(weights("balanced", None), theirs, rtol=1e-6)
    roots = np.sqrt(COUNTS)
    np.testing.assert_allclose(weights("balanced", 0.5), roots.sum() / roots / 3)
    np.testing.assert_allclose(weights("balanced", 0.0), 1)
    np.testing.assert_allclose(weights({"b": 2.5}, None), (1, 2.5, 1))
    assert weights(None, 0.0) is None


@pytest.mark.parametrize("loss", ["softmax", "binary"])
def test_the_weighted_loss_of_a_step_equals_numpy(loss: str) -> None:
    weights, smoothing = np.array([0.2, 3.0, 1.5], np.float32), 0.1
    losses = []
    for parts in (1, 2):
        recipe = recipe_of(loss=loss, label_smoothing=smoothing, accumulate=parts)
        model = small()
        for layer in model.layers:
            # Its parts have other statistics than the batch.
            layer.trainable = ".bn" not in layer.name and layer.name != "bn1"
        preprocessing = reszoo.card(model).preprocessing
        net = training_copy(model, preprocessing, recipe)
        step = TrainingStep(net, preprocessing, recipe, class_weights=weights)
        pixels = preprocessing.normalise(IMAGES.astype(np.float32))
        logits = np.asarray(net(pixels, training=False), np.float64)
        before = to_tensors(net)["fc.bias"]
        losses.append(step(tf.constant(IMAGES), tf.constant(LABELS), 0.1, KEY)[0])
        moved = to_tensors(net)["fc.bias"] - before
        soft = np.eye(3)[LABELS] * (1 - smoothing) + smoothing / 3
        positive = np.eye(3)[LABELS]
        if loss == "softmax":
            chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
            each = -(soft * np.log(chances)).sum(-1)
            error = chances - soft
        else:
            chances = 1 / (1 + np.exp(-logits))
            each = -np.where(positive, np.log(chances), np.log(1 - chances)).mean(-1)
            error = (chances - positive) / 3
        of_image = weights[LABELS]
        assert losses[-1] == pytest.approx((of_image * each).mean(), rel=1e-4)
        gradient = (of_image[:, None] * error).mean(0)
        # The first step of Nesterov's momentum: g + 0.9 g.
        np.testing.assert_allclose(moved, -0.1 * 1.9 * gradient, atol=2e-5)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_mixed_images_have_mixed_weights() -> None:
    recipe = recipe_of(mixup=1.0)
    results = []
    for weights in (None, np.ones(3, np.float32), np.full(3, 4, np.float32)):
        model = small()
        preprocessing = reszoo.card(model).preprocessing
        net = training_copy(model, preprocessing, recipe)
        step = TrainingStep(net, preprocessing, recipe, class_weights=weights)
        results.append(step(tf.constant(IMAGES), tf.constant(LABELS), 0.1, KEY)[0])
    assert results[1] == pytest.approx(results[0], rel=1e-6)
    assert results[2] == pytest.approx(4 * results[0], rel=1e-5)


def photos() -> dict[str, Any]:
    draw = np.random.default_rng(0)
    labels = np.array(["a"] * 9 + ["b"] * 3)
    pixels = draw.integers(0, 256, (12, 8, 8, 3), np.uint8)
    return {"train": (pixels, labels), "validation": (pixels[6:], labels[6:])}


@pytest.mark.slow
def test_a_killed_run_with_sampling_and_weights_ends_bit_equal(tmp_path: Path) -> None:
    fields: Any = {
        "epochs": 2,
        "sampling": 0.5,
        "class_weight": "balanced",
        "erase": 0.5,
    }
    train(tmp_path / "whole", photos(), save_every=1e9, **fields)
    killed_at_step(5, tmp_path / "killed", data=photos(), **fields)
    train(tmp_path / "killed", photos(), **fields)
    assert_equal(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"class_weight": {"c": 2}}, "Unknown label in class_weight 'c'.* Known: a, b"),
        ({"class_weight": "balance"}, '"balanced" or positive numbers by label'),
        ({"class_weight": {"a": 0}}, "class_weight must be more than 0.*'a': 0.0"),
        ({"sampling": "sqrt"}, r'"balanced" or a number \(or None\).*\'sqrt\''),
        ({"sampling": 1.5}, r"sampling must be in \[0, 1\]. Received: sampling=1.5"),
    ],
)
def test_impossible_balances_are_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(reszoo.UsageError, match=text):
        reszoo.train("resnet8", photos(), batch_size=4, **fields)


def test_a_weight_is_of_its_label_in_any_form_of_unicode() -> None:
    composed, apart = "caf\u00e9", "cafe\u0301"
    recipe = find_recipe("cifar", class_weight={apart: 2})
    assert recipe.class_weight == {composed: 2.0}


def test_balances_are_set_on_the_command_line_and_repeated() -> None:
    words = ('class_weight={"a, b": 2}', "sampling=balanced", "class_weight=balanced")
    assert [parse_field(word)[1] for word in words] == [
        {"a, b": 2.0}, "balanced", "balanced",
    ]  # fmt: skip
    assert parse_field("sampling=0.5") == ("sampling", 0.5)
    assert parse_field("class_weight=none") == ("class_weight", None)
    with pytest.raises(reszoo.UsageError, match="or positive numbers by label such"):
        parse_field("class_weight=a:2")
    recipe = find_recipe("cifar", class_weight={"é": 2}, sampling=0.5)
    command = repeat_command("resnet20", "x", recipe, None, None, "skip")
    assert 'class_weight={"é": 2.0}' in command
    assert "sampling=0.5" in command
