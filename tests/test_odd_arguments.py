"""Paths with `~`, files in place of folders and values of other types."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

import reszoo
from reszoo.cli import main
from reszoo.data.resize import resize_images
from reszoo.errors import DataError, ReszooError, UsageError
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


TABLE = type("DataFrame", (dict,), {})(name=["cat", "dog"], code=[0, 1])


@pytest.mark.parametrize(
    "given", [True, 3.0, "3", [1, 2], {"cat", "dog"}, {"cat": 0}, TABLE, b"cat"]
)
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
    with pytest.raises(UsageError, match="model must be a string or a ResNetSpec"):
        reszoo.build(given)
    with pytest.raises(UsageError, match="pattern must be a string"):
        reszoo.list_models(given)
    with pytest.raises(UsageError, match="recipe must be a string or a Recipe"):
        find_recipe(given)
    with pytest.raises(UsageError, match="formats must be"):
        find_formats(None)  # type: ignore[arg-type]


def test_a_file_without_an_ending_is_no_exported_file(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("not a model")
    for function in (reszoo.inspect, reszoo.Predictor):
        with pytest.raises(UsageError, match="notes"):
            function(tmp_path / "notes")


@pytest.mark.parametrize(
    "given",
    [np.array(["cat", "dog"]), ("cat", "dog"), np.array(["cat", "dog"], object)],
)
def test_labels_may_be_an_array(given: Any, tmp_path: Path) -> None:
    model = reszoo.build("resnet8", classes=given)
    assert reszoo.card(model).labels == ("cat", "dog")
    card = replace(reszoo.card(reszoo.build("resnet8", classes=2)), labels=given)
    assert card.labels == ("cat", "dog")
    plain = keras.applications.MobileNet(
        input_shape=(32, 32, 3), alpha=0.25, weights=None, classes=2,
        classifier_activation=None,
    )  # fmt: skip
    manifest = reszoo.export(
        plain, tmp_path / "export", formats=["onnx"], labels=given,
        preprocessing=card.preprocessing,
    )  # fmt: skip
    assert manifest.card.labels == ("cat", "dog")


@pytest.mark.parametrize("given", [b"cat", [b"cat", b"dog"], [0, 1], {"cat", "dog"}])
def test_labels_of_another_type_are_refused(given: Any, tmp_path: Path) -> None:
    model = reszoo.build("resnet8", classes=2)
    with pytest.raises(UsageError, match="labels must be a list of strings"):
        replace(reszoo.card(model), labels=given)
    with pytest.raises(UsageError, match="labels must be a list of strings"):
        reszoo.export(model, tmp_path / "export", formats=["onnx"], labels=given)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("given", [[[0], [0, 1]], [["cat"], ["cat", "dog"]]])
def test_labels_of_several_lengths_are_refused(given: Any) -> None:
    images = np.zeros((2, 32, 32, 3), np.uint8)
    with pytest.raises(UsageError, match="Labels must be integers or strings, one an"):
        reszoo.train("resnet8", (images, given))


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return reszoo.build("resnet8", classes=2, seed=0)


def not_none(path: Any) -> Any:
    """Return 3 in place of None, which some functions take for something else."""
    return 3 if path is None else path


TAKE_A_PATH: dict[str, Callable[[keras.Model, Any], object]] = {
    "save": lambda model, path: reszoo.save(model, path),
    "load": lambda _, path: reszoo.load(path),
    "weights": lambda _, path: reszoo.build("resnet8", weights=not_none(path)),
    "export": lambda model, path: reszoo.export(model, path),
    "export a file": lambda _, path: reszoo.export(path, "unused"),
    "inspect": lambda _, path: reszoo.inspect(path),
    "verify": lambda _, path: reszoo.verify(path),
    "web": lambda _, path: reszoo.write_site(path, "unused"),
    "push": lambda _, path: reszoo.push(path, "owner/name", dry_run=True),
    "Predictor": lambda _, path: reszoo.Predictor(not_none(path)),
    "predict_files": lambda _, path: reszoo.predict_files(path, "a.png", "unused.csv"),
    "its output": lambda _, path: reszoo.predict_files("m.onnx", "a.png", path),
    "its inputs": lambda _, path: reszoo.predict_files("m.onnx", [path], "unused.csv"),
    "benchmark": lambda _, path: reszoo.benchmark([path]),
    "resize": lambda _, path: resize_images("data", path),
    "study": lambda _, path: reszoo.study("digits", output=path),
    "train": lambda _, path: reszoo.train("resnet8", "digits", output=not_none(path)),
    "preview": lambda _, path: reszoo.preview("digits", output=not_none(path)),
    "calibrate": lambda model, path: reszoo.calibrate(
        model, "digits", output=not_none(path)
    ),
    "data": lambda _, path: reszoo.train("resnet8", path),
}


@pytest.mark.parametrize("given", [None, 3, b"a", "a\0b", "loop/a", "loop", "a" * 300])
@pytest.mark.parametrize("name", TAKE_A_PATH)
def test_what_is_no_path_is_refused_in_a_sentence(
    name: str, given: Any, model: keras.Model, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    with pytest.raises(ReszooError, match=r"Received|no checkpoint") as no:
        TAKE_A_PATH[name](model, given)
    assert len(str(no.value)) < 500
    assert [path.name for path in tmp_path.iterdir()] == ["loop"]


def test_an_image_whose_path_cannot_be_costs_no_other_answer(
    model: keras.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32)).save("a.png")
    Path("loop").symlink_to("loop")
    reszoo.save(model, "m.safetensors")
    Path("list.csv").write_text(f"path\na.png\n{'x' * 300}.png\nloop\na.png\n")
    result = reszoo.predict_files("m.safetensors", "list.csv", "answers.csv")
    assert (result.images, result.unreadable) == (4, 2)
    answers = Path("answers.csv").read_text()
    assert "File name too long" in answers
    assert "Too many levels of symbolic links" in answers
    for path in ("x" * 300, "loop", "a\0.png", "~nobody-here/a.png"):
        with pytest.raises(DataError):
            reszoo.Predictor("m.safetensors").predict(path)


def test_the_home_of_nobody_is_a_name_like_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: keras.Model
) -> None:
    monkeypatch.chdir(tmp_path)
    reszoo.save(model, "~nobody-here/m.safetensors")
    assert (tmp_path / "~nobody-here" / "m.safetensors").is_file()
    assert reszoo.load("~nobody-here/m.safetensors").count_params() > 0


@pytest.mark.parametrize("given", [None, "resnet50", 3])
def test_a_model_of_keras_applications_is_a_model(given: Any) -> None:
    with pytest.raises(UsageError, match="model must be a Model"):
        reszoo.from_keras_applications(given)


def test_a_card_that_is_saved_is_a_card(model: keras.Model, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"card must be a Card \(or None\)"):
        reszoo.save(model, tmp_path / "m.safetensors", card=3)  # type: ignore[arg-type]
    assert not [*tmp_path.iterdir()]


def test_a_pattern_of_weights_is_a_string() -> None:
    with pytest.raises(UsageError, match="pattern must be a string"):
        next(reszoo.check_weights(3, images="unused"))  # type: ignore[arg-type]
