"""Paths with `~`, files in place of folders and values of other types."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import reszoo
from reszoo.cli import main
from reszoo.data.resize import resize_images
from reszoo.errors import UsageError
from reszoo.training.recipes import find_recipe
from reszoo_export.formats import find_formats


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a home with a checkpoint and an image, from another working directory."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("reszoo.cli.enable_quiet_cli", lambda: None)
    reszoo.save(reszoo.build("resnet8", classes=2, seed=0), "~/m.safetensors")
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for label in "01":
        (tmp_path / "data" / "val" / label).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "data" / "val" / label / "a.png")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    monkeypatch.setattr(sys, "argv", ["reszoo", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code


@pytest.mark.usefixtures("home")
def test_a_home_is_expanded_where_a_file_is_read_as_where_it_is_saved() -> None:
    assert reszoo.load("~/m.safetensors").output_shape == (None, 2)
    assert reszoo.build("resnet8", weights=Path("~/m.safetensors")) is not None
    predictor = reszoo.Predictor("~/m.safetensors")
    assert str(predictor.predict("~/a.png")) == str(predictor.predict("../a.png"))
    assert reszoo.evaluate("~/m.safetensors", "~/data").images == 2


def test_a_home_in_quotes_is_expanded_on_the_command_line(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("explain", "~/m.safetensors", "~/a.png", "--output", "~/maps")
    assert call(monkeypatch, *arguments) in (0, None)
    assert (home / "maps" / "a.png").exists()
    assert not [*(home / "elsewhere").iterdir()]


def test_explain_without_images_leaves_no_folder(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, images, maps = (home / x for x in ("m.safetensors", "elsewhere", "maps"))
    arguments = ("explain", str(model), str(images), "--output", str(maps))
    assert call(monkeypatch, *arguments) == 1
    assert not maps.exists()


def test_a_file_where_a_folder_is_to_be_is_one_line(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for output, told in [("a.png", "is a file"), ("a.png/maps", "Not a directory")]:
        path = str(home / output)
        arguments = ("explain", "~/m.safetensors", "~/a.png", "--output", path)
        assert call(monkeypatch, *arguments) in (1, 2)
        assert told in capsys.readouterr().err


@pytest.mark.parametrize("given", [True, 3.0, "3", [1, 2]])
def test_classes_are_a_number_or_labels(given: Any) -> None:
    with pytest.raises(UsageError, match="must be a number, or a list of labels"):
        reszoo.build("resnet8", classes=given)


@pytest.mark.parametrize("given", [True, 3, b"m.safetensors"])
def test_weights_of_another_type_are_refused_in_a_sentence(given: Any) -> None:
    with pytest.raises(UsageError, match=f"Received: {type(given).__name__}"):
        reszoo.load(given)


@pytest.mark.parametrize("given", [None, "m.safetensors"])
def test_a_card_is_of_a_model(given: Any) -> None:
    with pytest.raises(UsageError, match="A card is of a Keras model"):
        reszoo.card(given)


def test_no_output_is_written_into_the_data(home: Path) -> None:
    data = home / "data" / "val"
    for work in (resize_images, reszoo.study):
        with pytest.raises(UsageError, match="must not be inside the data"):
            work(data=data, output=data / "made")
    assert [path.name for path in sorted(data.iterdir())] == ["0", "1"]


@pytest.mark.parametrize("given", [["resnet20"], 3, b"resnet20"])
def test_names_of_another_type_are_refused_in_a_sentence(given: Any) -> None:
    with pytest.raises(UsageError, match="model must be a string or ResNetSpec"):
        reszoo.build(given)
    with pytest.raises(UsageError, match="pattern must be a string"):
        reszoo.list_models(given)
    with pytest.raises(UsageError, match="recipe must be a string or Recipe"):
        find_recipe(given)
    with pytest.raises(UsageError, match="formats must be"):
        find_formats(None)  # type: ignore[arg-type]


def test_a_file_without_an_ending_is_no_exported_file(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("not a model")
    for function in (reszoo.inspect, reszoo.Predictor):
        with pytest.raises(UsageError, match="notes"):
            function(tmp_path / "notes")
