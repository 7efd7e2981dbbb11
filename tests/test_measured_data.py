"""Which images of a data set are measured, and what is said of the others."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import photos
from PIL import Image
from test_layouts import sizes
from tiny import TWO_BLOCKS

import reszoo
from reszoo.architecture import architecture
from reszoo.cards import new_card
from reszoo.data import sources
from reszoo.data.sources import open_source


@pytest.fixture(scope="module")
def unlabelled() -> Any:
    """An untrained model of three outputs whose labels are not recorded."""
    return reszoo.build("resnet8", classes=3, seed=0)


@pytest.mark.parametrize("names", [("a", "b"), tuple("abcdefghijkl")])
def test_where_labels_are_unknown_the_number_of_classes_counts(
    tmp_path: Path, unlabelled: Any, names: tuple[str, ...]
) -> None:
    data = photos(tmp_path, names, each=2)
    message = rf"has {len(names)} classes, the model has 3 outputs whose labels are not"
    with pytest.raises(reszoo.DataError, match=message):
        reszoo.evaluate(unlabelled, data)
    with pytest.raises(reszoo.DataError, match=message):
        reszoo.export(
            unlabelled, tmp_path / "export", formats="tflite", verify=str(data)
        )


def test_a_folder_without_splits_is_measured_whole(
    tmp_path: Path, unlabelled: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    data = photos(tmp_path / "test", ("a", "b", "c"), each=5)
    found = reszoo.evaluate(unlabelled, data)
    assert (found.images, found.data) == (15, f"{data} (all)")
    said = capsys.readouterr().err
    assert "class a is taken for output 0 of the model, c for 2" in said
    assert reszoo.evaluate(unlabelled, data, split="validation").images == 3


def test_only_data_that_a_model_was_trained_on_is_held_out_from(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = reszoo.train(TWO_BLOCKS, folder, epochs=1, batch_size=5)
    capsys.readouterr()
    moved = folder.rename(tmp_path / "moved")
    assert reszoo.evaluate(run.model, moved).images == 2
    assert "2 images that were held out, not all 12" in capsys.readouterr().err
    assert reszoo.evaluate(run.model, photos(tmp_path / "new", each=4)).images == 8
    assert "trained on" not in capsys.readouterr().err
    shutil.copytree(moved, folder)
    shutil.copy(folder / "cat" / "0.png", folder / "cat" / "new.png")
    assert reszoo.evaluate(run.model, folder).images == 13
    assert "has changed since the model was trained on it" in capsys.readouterr().err
    again = reszoo.train(run.model, photos(tmp_path / "more", each=5), epochs=1)
    assert reszoo.evaluate(again.model, moved).images == 2


def test_the_share_that_is_held_out_is_chosen_and_remembered(folder: Path) -> None:
    run = reszoo.train(TWO_BLOCKS, folder, epochs=1, validation_share=0.5)
    assert reszoo.evaluate(run.model, folder).images == 6
    every = reszoo.train(TWO_BLOCKS, folder, epochs=1, validation_share=0.0)
    assert every.history[0].validation_top1 is None
    assert reszoo.evaluate(every.model, folder).images == 12


def unusual(root: Path) -> Path:
    """Photos of three classes with an unreadable and a nearly black one."""
    photos(root, ("a", "b", "c"), each=60)
    (root / "a" / "bad.png").write_bytes(b"no image")
    Image.fromarray(np.full((40, 40, 3), 9, np.uint8)).save(root / "b" / "dark.png")
    return root


@pytest.mark.parametrize("what", ["evaluate", "features", "calibrate", "export"])
def test_all_that_measures_says_what_was_left_out_and_is_unusual(
    what: str, tmp_path: Path, home: Path, unlabelled: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    data = str(unusual(tmp_path / "photos"))
    options: dict[str, Any] = {"bad_images": "skip"}
    calls: dict[str, Any] = {
        "evaluate": lambda: reszoo.evaluate(unlabelled, data, **options),
        "features": lambda: reszoo.features(unlabelled, data, **options),
        "calibrate": lambda: reszoo.calibrate(
            reszoo.build("resnet8", classes=["a", "b", "c"], seed=0),
            {"train": grey(60), "val": grey(300)}, **options,
        ),
        "export": lambda: reszoo.export(
            unlabelled, tmp_path / "export", formats="onnx", verify=data, **options
        ),
    }  # fmt: skip
    calls[what]()
    said = capsys.readouterr().err
    if what == "calibrate":
        assert "nearly black" in said
        return
    assert f"skipped {data}/a/bad.png: " in said
    assert "1 images: nearly black" in said
    assert "class a is taken for output 0" in said or what != "evaluate"


def grey(count: int) -> tuple[Any, Any]:
    draw = np.random.default_rng(count)
    pixels = draw.integers(0, 9, (count, 32, 32, 3), np.uint8)
    return pixels, np.array(["a", "b", "c"])[np.arange(count) % 3]


def test_a_study_and_a_preview_say_what_is_not_used(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "test", "holdout"):
        photos(tmp_path / "data" / split, each=2)
    reszoo.preview(tmp_path / "data", model="resnet8")
    assert "holdout/ is no known name of a split" in capsys.readouterr().err
    reszoo.resize_images(tmp_path / "data", tmp_path / "small", side=32)
    assert "holdout/ is no known name of a split" in capsys.readouterr().err
    with pytest.raises(reszoo.UsageError, match="study trains from scratch"):
        reszoo.study(data=tmp_path / "data", recipe="finetune", output=tmp_path / "s")
    assert "holdout/ is no known name of a split" in capsys.readouterr().err


def test_what_was_held_out_stays_so_whatever_followed_the_training(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = reszoo.train(TWO_BLOCKS, folder, epochs=1, validation_share=0.5)
    last = run.model.get_layer("fc").bias
    last.assign(last + 1)
    # Another training, of another share, on other data.
    more = photos(tmp_path / "more", each=5)
    again = reszoo.train(run.model, more, epochs=1, validation_share=0.2)
    for model in (run.model, again.model):
        assert reszoo.evaluate(model, folder).images == 6
    assert reszoo.evaluate(again.model, more).images == 2
    capsys.readouterr()
    exported = reszoo.export(
        again.model, tmp_path / "export", formats="onnx", verify=folder
    )
    assert exported.files[0].verification.images == 6


def test_without_a_held_out_split_one_image_of_a_class_is_enough() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    source = open_source((pixels, ["a", "b", "b"]), validation_share=0)
    assert sizes(source) == {"all": 3, "train": 3}
    with pytest.raises(reszoo.DataError, match=r"at least two images.*: a\."):
        open_source((pixels, ["a", "b", "b"]))


def test_data_is_opened_once_as_the_training_opened_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    card = new_card(architecture("resnet8"))
    chosen = {"data": "elsewhere", "recipe": {"validation_share": 0}}
    opened: list[Any] = []

    def record(*data: Any, **options: Any) -> Any:
        opened.append(options["validation_share"])
        return open_source(*data, **options)

    monkeypatch.setattr(sources, "open_source", record)
    # By its default share a class of one image would be refused.
    card = replace(card, provenance=chosen)
    source = sources.open_for(card, (pixels, ["a", "b", "b"]), None)
    assert sizes(source) == {"all": 3, "train": 3}
    assert opened == [0]
