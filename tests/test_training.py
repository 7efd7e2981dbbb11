"""`reszoo.train` as a whole."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import photos
from PIL import Image
from sample_images import orientation_exif
from tiny import TWO_BLOCKS

import reszoo
from reszoo.data import pipeline
from reszoo.data.pipeline import training_batches
from reszoo.data.sources import open_source
from reszoo.training import phases
from reszoo.weights.names import to_tensors

FILES = {
    "best.safetensors",
    "last.safetensors",
    "state.safetensors",
    "history.csv",
    "curves.png",
    "recipe.json",
    "report.html",
    "tensorboard",
}
QUICK: dict[str, Any] = {"recipe": "cifar", "precision": "float32", "epochs": 1}


def test_a_run_writes_checkpoints_state_history_and_report(run: Any) -> None:
    folder = run.best.parent
    assert {file.name for file in folder.iterdir()} == FILES
    with (folder / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4]
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert all(float(row["images_per_second"]) > 0 for row in rows)
    with Image.open(folder / "curves.png") as curves:
        assert len(set(curves.convert("RGB").get_flattened_data())) > 100
    page = run.report.read_text(encoding="utf-8")
    measured = reszoo.evaluate(run.model, "digits")
    assert f"{measured.top1:.2%} of the 359 test images" in page
    assert "reszoo train digits --model resnet8 --recipe cifar" in page


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


def test_training_learns_and_is_reproducible(tmp_path: Path) -> None:
    root = photos(tmp_path / "p", ("red", "green"), each=20)
    runs = [
        reszoo.train(
            TWO_BLOCKS, root, recipe="cifar", epochs=4, batch_size=8, learning_rate=0.02
        )
        for _ in range(2)
    ]
    assert runs[0].history[-1].top1 > 0.9
    one, two = (to_tensors(each.model) for each in runs)
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert runs[0].best is None


def test_fine_tuning_trains_the_head_first_and_reports_its_accuracy(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = photos(tmp_path / "p", ("red", "green", "blue"), each=20)
    tuned = reszoo.train(
        "resnet8",
        root,
        weights=run.best,
        output=tmp_path / "run",
        epochs=2,
        batch_size=16,
        head_epochs=2,
        freeze_bn=True,
    )
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == (
        f"35 tensors loaded from {run.best}: 100 % of the backbone; fresh head, "
        "10 -> 3 classes"
    )
    assert "12 steps in 4 epochs (head only in the first 2); epochs=2 " in lines[1]
    assert "epochs=2 counts the others, " in lines[1]
    assert lines[1].endswith("batch normalisation: 7 frozen, 0 live")
    assert [row.phase for row in tuned.history] == ["head", "head", "all", "all"]
    assert tuned.recipe.name == "finetune"
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "head alone, on the frozen backbone, for 2 epochs" in page
    before, after = to_tensors(reszoo.load(run.best)), to_tensors(tuned.model)
    still = [n for n in before if np.array_equal(before[n], after[n])]
    assert {name for name in after if "running" in name} <= set(still)
    began_as = reszoo.card(tuned.model).provenance["began_as"]
    assert began_as["data"] == "digits"


def test_the_head_alone_leaves_the_backbone_as_it_is(run: Any, folder: Path) -> None:
    probe = reszoo.train(
        "resnet8",
        folder,
        recipe="linear-probe",
        weights=run.best,
        steps=2,
        batch_size=4,
    )
    before, after = to_tensors(reszoo.load(run.best)), to_tensors(probe.model)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"fc.weight", "fc.bias"}
    assert [row.epoch for row in probe.history] == [1]


@pytest.mark.parametrize(
    ("data", "flip", "mirrored"),
    [("digits", None, False), ("folder", None, True), ("folder", False, False)],
)
def test_only_images_that_may_be_flipped_are(
    folder: Path, monkeypatch: pytest.MonkeyPatch, data: str, flip: Any, mirrored: bool
) -> None:
    seen = []

    def look(*arguments: Any, **options: Any) -> Any:
        seen.append(arguments[2])
        return training_batches(*arguments, **options)

    monkeypatch.setattr(pipeline, "training_batches", look)
    reszoo.train(
        TWO_BLOCKS,
        folder if data == "folder" else data,
        steps=1,
        batch_size=8,
        flip=flip,
    )
    assert seen[0].flip is mirrored
    assert seen[0].pad == 4


def test_training_that_diverges_is_an_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(reszoo.ReszooError, match=r"diverged.*Lower learning_rate"):
        reszoo.train(
            TWO_BLOCKS,
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
    with pytest.raises(reszoo.UsageError, match=rf"already holds a run \({name}\)"):
        reszoo.train("resnet8", folder, output=tmp_path)
    with pytest.raises(reszoo.UsageError, match=r"is a file"):
        reszoo.train("resnet8", folder, output=tmp_path / name)
    with pytest.raises(reszoo.UsageError, match="a run without a state"):
        reszoo.train("resnet8", folder, output=tmp_path, resume=True)
    assert (tmp_path / name).read_text() == "mine"


def test_an_existing_run_is_kept_by_default(run: Any, folder: Path) -> None:
    before = run.best.read_bytes()
    with pytest.raises(reszoo.UsageError, match=r"already holds a run.*--overwrite"):
        reszoo.train("resnet8", folder, output=run.best.parent)
    assert run.best.read_bytes() == before


def test_invalid_arguments_are_refused(folder: Path) -> None:
    with pytest.raises(reszoo.UsageError, match="batch_size=128 for 10 images"):
        reszoo.train("resnet8", folder, batch_size=128)
    with pytest.raises(reszoo.UsageError, match="10 outputs for the 2 classes"):
        reszoo.train(reszoo.build("resnet8"), folder, batch_size=4)
    other = reszoo.build("resnet8", classes=["cat", "cow"])
    with pytest.raises(reszoo.DataError, match="only in the model: cow"):
        reszoo.train(other, folder, batch_size=4)
    headless = reszoo.build("resnet8", include_top=False)
    with pytest.raises(reszoo.UsageError, match="needs a model with a classifier"):
        reszoo.train(headless, folder, batch_size=4)
    with pytest.raises(reszoo.UsageError, match="goes with the name of a model"):
        reszoo.train(other, folder, weights="imagenet")
    with pytest.raises(reszoo.UsageError, match="give it as output="):
        reszoo.train("resnet8", folder, resume=True)


def spoil(folder: Path) -> set[str]:
    """Add one of everything that is wrong with folders of photos; tell the unusable."""
    picture = np.random.default_rng(0).integers(0, 256, (40, 52, 3), np.uint8)
    image = Image.fromarray(picture)
    image.save(folder / "dog" / "cut.jpg")
    whole = (folder / "dog" / "cut.jpg").read_bytes()
    (folder / "dog" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "dog" / "page.jpg").write_text("<html>not found</html>")
    (folder / "dog" / "empty.jpg").touch()
    image.save(folder / "dog" / "misnamed.jpg", format="PNG")
    image.convert("CMYK").save(folder / "dog" / "print.jpg")
    deep = Image.fromarray(picture[..., 0].astype(np.uint16) * 257)
    deep.save(folder / "dog" / "deep.png")
    image.save(
        folder / "dog" / "moving.gif", save_all=True, append_images=[image.rotate(90)]
    )
    for held in range(1, 9):
        exif = orientation_exif(held)
        image.save(folder / "dog" / f"held{held}.jpg", exif=exif)
    return {str(folder / "dog" / name) for name in ("cut.jpg", "page.jpg", "empty.jpg")}


def test_unreadable_images_are_skipped_listed_and_not_counted(
    folder: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unusable = spoil(folder)
    source = open_source(folder, bad_images="skip")
    count = len(source.examples("train"))
    assert count + len(source.examples("validation")) == 12 + 12
    done = reszoo.train(TWO_BLOCKS, folder, batch_size=4, **QUICK)
    lines = capsys.readouterr().err.splitlines()
    skipped = {line.split(": ")[0].removeprefix("skipped ") for line in lines[:3]}
    assert skipped == unusable
    assert f": {count} images" in lines[3]
    assert f" {count // 4} steps in 1 epoch," in lines[3]
    assert len(done.history) == 1


def test_the_first_unreadable_image_ends_training_on_request(
    folder: Path, home: Path
) -> None:
    spoil(folder)
    with pytest.raises(reszoo.DataError, match=r"cut\.jpg"):
        reszoo.train(TWO_BLOCKS, folder, batch_size=4, bad_images="error", **QUICK)


def test_truncated_photos_are_recovered_on_request(
    folder: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(folder)
    reszoo.train(TWO_BLOCKS, folder, batch_size=4, bad_images="recover", **QUICK)
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "cut.jpg" in line] == []
    assert len([line for line in lines if line.startswith("skipped")]) == 2


@pytest.mark.parametrize(
    "name", [pytest.param("resnet18", marks=pytest.mark.slow), "resnet8"]
)
def test_the_trained_weights_are_evaluated(name: str, folder: Path) -> None:
    """Layers that leave blocks out change the order that Keras gives variables."""
    shape: dict[str, Any] = {"input_shape": (32, 32, 3), "shortcut": "projection"}
    model = reszoo.build(name, classes=2, seed=0, **shape)
    done = reszoo.train(
        model,
        folder,
        recipe="cifar",
        stochastic_depth=0.2,
        learning_rate=1e-9,
        weight_decay=0.0,
        train_size=32,
        batch_size=2,
        steps=1,
        precision="float32",
    )
    fresh = reszoo.build(name, classes=2, seed=0, **shape)
    before, after = to_tensors(fresh), to_tensors(done.model)
    for tensor in before:
        if "running" not in tensor:
            np.testing.assert_allclose(before[tensor], after[tensor], atol=1e-5)


def test_another_size_stays_with_the_checkpoint(folder: Path, tmp_path: Path) -> None:
    done = reszoo.train(
        TWO_BLOCKS,
        folder,
        batch_size=4,
        train_size=24,
        eval_size=40,
        output=tmp_path / "run",
        **QUICK,
    )
    card = reszoo.card(reszoo.load(tmp_path / "run" / "best.safetensors"))
    assert card.preprocessing.train_size == 24
    assert card.preprocessing.eval_size == 40
    measured = reszoo.evaluate(done.model, folder)
    (loss,) = (metric.value for metric in card.metrics if metric.name == "loss")
    assert measured.loss == pytest.approx(loss, rel=0.02)
    with pytest.raises(
        reszoo.UsageError, match=r"built for images of 32 x 32.*40 x 40"
    ):
        reszoo.train(
            reszoo.build("resnet8", classes=2), folder, batch_size=4, eval_size=40
        )


def test_a_run_from_other_initial_weights_is_not_resumed(
    run: Any, folder: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        **QUICK,
        "batch_size": 4,
        "output": tmp_path / "run",
    }
    reszoo.train("resnet8", folder, weights=run.best, **options)
    with pytest.raises(reszoo.UsageError, match="first weights was"):
        reszoo.train("resnet8", folder, resume=True, **options)


def test_epochs_of_few_steps_share_a_row_of_the_history(
    run: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phases, "_BIT_STEPS", ((10**9, 6),))
    monkeypatch.setattr(phases, "_LEAST_EPOCHS", 1)
    tuned = reszoo.train(
        "resnet8",
        folder,
        weights=run.best,
        batch_size=4,
        learning_rate=1e-4,
        precision="float32",
        output=tmp_path / "run",
    )
    assert [(row.epoch, row.phase) for row in tuned.history] == [
        (2, "head"),
        (5, "all"),
    ]
    last = tuned.history[-1]
    assert round(last.seconds * last.images_per_second) == 6 * 4
    assert 0 <= last.top1 <= 1


def test_an_output_inside_the_data_is_refused(folder: Path) -> None:
    with pytest.raises(reszoo.UsageError, match="must not be inside the data"):
        reszoo.train("resnet8", folder, batch_size=4, output=folder / "run")
    assert not (folder / "run").exists()


def test_a_model_without_anything_to_train_is_refused(folder: Path) -> None:
    model = reszoo.build("resnet8", classes=2)
    for layer in model.layers:
        layer.trainable = False
    with pytest.raises(reszoo.UsageError, match="every layer is frozen"):
        reszoo.train(model, folder, batch_size=4, **QUICK)


def test_each_refusal_says_the_next_step(folder: Path) -> None:
    pixels, labels = np.zeros((8, 8, 8, 3), np.uint8), np.arange(8) % 2
    with pytest.raises(reszoo.UsageError, match=r'train\("resnet18", \(images, labels'):
        reszoo.train(pixels, labels)
    for name, advice in {
        "callbacks": r"on_epoch_end=.*model\.fit\(callbacks=",
        "validation_data": '"validation": \\(images, labels',
        "validation_split": "it is called validation_share",
    }.items():
        given: Any = {name: 1}
        with pytest.raises(reszoo.UsageError, match=f"has no {name}=: .*{advice}"):
            reszoo.train("resnet8", folder, **given)
    with pytest.raises(reszoo.UsageError, match=r"input_shape=\(96, 96, 3\)"):
        reszoo.build("resnet8", input_shape=96)  # type: ignore[arg-type]
    with pytest.raises(reszoo.UsageError, match='"cifar10" with resnet20'):
        reszoo.build("resnet20", weights="imagenet")
    source = open_source({"train": (pixels, labels), "val": (pixels, labels)})
    assert source.examples("val") is source.examples("validation")
    assert reszoo.RECIPES["cifar"].name == "cifar"


def test_another_share_is_held_out_on_request(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", each=10)
    run = reszoo.train(TWO_BLOCKS, root, validation_share=0.4, batch_size=4, **QUICK)
    provenance = reszoo.card(run.model).provenance
    assert provenance["images"] == 12
    assert provenance["recipe"]["validation_share"] == 0.4
    with pytest.raises(reszoo.UsageError, match="has splits of its own"):
        reszoo.train(TWO_BLOCKS, "digits", validation_share=0.4, **QUICK)
    with pytest.raises(reszoo.UsageError, match=r"validation_share must be in"):
        reszoo.train(TWO_BLOCKS, root, validation_share=1.0)
