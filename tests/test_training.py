import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import photos, randomise
from PIL import Image

import reszoo
from reszoo.checkpoints.names import to_tensors
from reszoo.data.pipeline import training_batches
from reszoo.training import trainer
from reszoo.training.recipes import RECIPES, find_recipe
from reszoo.training.step import TrainingStep


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    recipe = find_recipe("cifar", epochs=5, warmup_epochs=1, learning_rate=0.8)
    rates = [recipe.learning_rate_at(step, 4) for step in range(20)]
    np.testing.assert_allclose(rates[:4], [0.2, 0.4, 0.6, 0.8])
    assert rates[4] == 0.8
    assert rates[12] == pytest.approx(0.4)
    assert 0 < rates[-1] < 0.01
    assert rates[4:] == sorted(rates[4:], reverse=True)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"epoch": 3}, "no recipe field 'epoch'. Did you mean 'epochs'"),
        ({"epochs": 0}, "epochs must be a whole number of at least 1"),
        ({"epochs": 10.0}, r"Received: epochs=10\.0"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\)"),
        ({"learning_rate": -1}, "learning_rate must be above 0"),
        ({"seed": -1}, "seed must be a whole number"),
    ],
)
def test_impossible_recipes_are_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(reszoo.UsageError, match=text):
        find_recipe("cifar", **changes)
    with pytest.raises(reszoo.UsageError, match=r"no recipe 'cifra'.*'cifar'"):
        find_recipe("cifra")


def test_a_step_is_torchs_sgd_with_decay_on_kernels_only() -> None:
    """Two Nesterov steps by hand: v = m v + g + decay w; w -= rate (g + decay w + m v).

    The gradient of the loss by the bias of `fc` is the mean of probability minus
    target, and it has no decay; that of its kernel multiplies by the features.
    """
    recipe = find_recipe("cifar", weight_decay=0.01, momentum=0.9)
    model = randomise(reszoo.build("resnet20", classes=3, input_shape=(8, 8, 3)))
    card = reszoo.card(model)
    step = TrainingStep(model, card.preprocessing, recipe)
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    labels = np.array([0, 1, 2, 1])
    velocity = {"weight": np.zeros((3, 64)), "bias": np.zeros(3)}
    features = reszoo.build(
        "resnet20", include_top=False, pooling="avg", input_shape=(8, 8, 3)
    )
    for _ in range(2):
        before = to_tensors(model)
        for layer in features.layers:
            layer.set_weights(model.get_layer(layer.name).get_weights())
        pixels = card.preprocessing.normalise(images.astype(np.float32))
        pooled = np.asarray(features(pixels, training=True), np.float64)
        logits = pooled @ before["fc.weight"].T + before["fc.bias"]
        soft = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        error = (soft - np.eye(3)[labels]) / 4
        loss, hits = step(images, labels, 0.1)
        expected_loss = -np.log(soft[np.arange(4), labels]).mean()
        assert float(loss) == pytest.approx(expected_loss, rel=1e-4)
        assert int(hits) == (logits.argmax(-1) == labels).sum()
        after = to_tensors(model)
        gradients = {
            "weight": error.T @ pooled + 0.01 * before["fc.weight"],
            "bias": error.sum(0),
        }
        for kind, gradient in gradients.items():
            velocity[kind] = 0.9 * velocity[kind] + gradient
            moved = 0.1 * (gradient + 0.9 * velocity[kind])
            np.testing.assert_allclose(
                after[f"fc.{kind}"], before[f"fc.{kind}"] - moved, atol=2e-5
            )


def test_a_run_leaves_checkpoints_history_and_curves(run: Any) -> None:
    folder = run.best.parent
    names = {"best.safetensors", "last.safetensors", "history.csv", "curves.png"}
    assert {file.name for file in folder.iterdir()} == names | {"recipe.json"}
    with (folder / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4]
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert all(float(row["images_per_second"]) > 0 for row in rows)
    with Image.open(folder / "curves.png") as curves:
        assert len(set(curves.convert("RGB").get_flattened_data())) > 100


def test_best_is_the_epoch_with_the_highest_validation_accuracy(run: Any) -> None:
    best = max(run.history, key=lambda row: (row.validation_top1, -row.validation_loss))
    card = reszoo.card(reszoo.load(run.best))
    assert card.provenance["epoch"] == best.epoch
    assert card.metrics[0].value == best.validation_top1
    assert card.labels == tuple("0123456789")
    kept, returned = to_tensors(reszoo.load(run.best)), to_tensors(run.model)
    assert all(np.array_equal(kept[name], returned[name]) for name in kept)
    last = reszoo.card(reszoo.load(run.last))
    assert last.provenance["epoch"] == 4


def test_training_learns_and_repeats_itself(tmp_path: Path) -> None:
    root = photos(tmp_path / "p", ("red", "green"), each=20)
    runs = [
        reszoo.train("resnet20", root, epochs=4, batch_size=8, learning_rate=0.02)
        for _ in range(2)
    ]
    assert runs[0].history[-1].top1 > 0.9
    one, two = (to_tensors(each.model) for each in runs)
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert runs[0].best is None


def test_smoothed_labels_spread_a_share_over_all_classes() -> None:
    recipe = find_recipe("cifar", label_smoothing=0.2, weight_decay=0.0)
    shape = (8, 8, 3)
    model, twin = (
        randomise(reszoo.build("resnet20", classes=4, input_shape=shape, seed=0))
        for _ in range(2)
    )
    record = reszoo.card(model).preprocessing
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
    labels = np.array([0, 1, 2, 3, 1, 2])
    logits = np.asarray(
        twin(record.normalise(images.astype(np.float32)), training=True), np.float64
    )
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    target = 0.8 * np.eye(4)[labels] + 0.2 / 4
    loss, _ = TrainingStep(model, record, recipe)(images, labels, 0.1)
    assert float(loss) == pytest.approx(-(target * logs).sum(-1).mean(), rel=1e-4)


@pytest.mark.parametrize(
    ("data", "flip", "mirrored"),
    [("digits", None, False), ("folder", None, True), ("folder", False, False)],
)
def test_only_what_may_be_mirrored_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch, data: str, flip: Any, mirrored: bool
) -> None:
    seen = []

    def look(*arguments: Any, **options: Any) -> Any:
        seen.append(arguments[3])
        return training_batches(*arguments, **options)

    monkeypatch.setattr(trainer, "training_batches", look)
    reszoo.train(
        "plain20",
        folder if data == "folder" else data,
        epochs=1,
        batch_size=8 if data == "folder" else 1000,
        flip=flip,
    )
    assert seen[0].flip is mirrored
    assert seen[0].pad == 4


def test_training_that_diverges_is_an_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(reszoo.ReszooError, match=r"diverged.*Lower learning_rate"):
        reszoo.train(
            "resnet20",
            folder,
            batch_size=4,
            epochs=3,
            warmup_epochs=0,
            learning_rate=1e30,
            output=tmp_path / "run",
        )
    assert not (tmp_path / "run" / "best.safetensors").exists()


@pytest.mark.parametrize("name", ["best.safetensors", "recipe.json"])
def test_any_file_of_a_run_keeps_its_folder(
    folder: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(reszoo.UsageError, match=rf"holds a run already \({name}\)"):
        reszoo.train("resnet20", folder, output=tmp_path)
    with pytest.raises(reszoo.UsageError, match=r"is a file"):
        reszoo.train("resnet20", folder, output=tmp_path / name)
    assert (tmp_path / name).read_text() == "mine"


def test_a_run_that_is_there_is_kept_unless_told_otherwise(
    run: Any, folder: Path
) -> None:
    before = run.best.read_bytes()
    with pytest.raises(reszoo.UsageError, match=r"holds a run already.*--overwrite"):
        reszoo.train("resnet20", folder, output=run.best.parent)
    assert run.best.read_bytes() == before


def test_requests_that_cannot_be_meant_are_refused(folder: Path) -> None:
    with pytest.raises(reszoo.UsageError, match="batch_size=128 for 10 images"):
        reszoo.train("resnet20", folder)
    with pytest.raises(reszoo.UsageError, match="10 outputs for the 2 classes"):
        reszoo.train(reszoo.build("resnet20"), folder, batch_size=4)
    other = reszoo.build("resnet20", classes=["cat", "cow"])
    with pytest.raises(reszoo.DataError, match="only in the model: cow"):
        reszoo.train(other, folder, batch_size=4)
    headless = reszoo.build("resnet20", include_top=False)
    record = reszoo.card(headless).preprocessing
    with pytest.raises(reszoo.UsageError, match="has no classifier"):
        TrainingStep(headless, record, RECIPES["cifar"])


def test_a_truncated_image_ends_training_with_its_name(folder: Path) -> None:
    bad = folder / "cat" / "bad.jpg"
    Image.open(folder / "dog" / "0.png").save(bad)
    bad.write_bytes(bad.read_bytes()[:-100])
    with pytest.raises(reszoo.DataError, match=r"bad\.jpg is not a readable image"):
        reszoo.train("resnet20", folder, batch_size=4, epochs=1)
