"""Class activation maps: exact, in models and in exported files."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import descend, photos
from PIL import Image
from test_confidence import CONFIDENCE, own_logits, tiny

import reszoo
from reszoo.data.sources import open_source
from reszoo.report.page import overlay
from reszoo.zoo import set_card
from reszoo_export.formats import FORMATS, ExportOptions
from reszoo_export.quantization.ranges import Calibration, draw_calibration
from reszoo_export.runtimes import open_runtime
from reszoo_export.serving import make_serving
from reszoo_export.verification.comparison import cam_difference
from reszoo_export.verification.reference import (
    Reference,
    read_reference,
    synthetic_images,
)


def images(count: int = 5) -> Any:
    draw = np.random.default_rng(3)
    return draw.integers(0, 256, (count, 32, 32, 3), np.uint8)


def expected_maps(model: Any, pixels: Any) -> Any:
    """The classifier at every place of the last feature map, by NumPy."""
    import keras

    inner = keras.Model(model.input, model.get_layer("avgpool").input)
    card = reszoo.card(model)
    record = card.preprocessing
    features = inner(record.normalise(pixels.astype(np.float32)), training=False)
    kernel = model.get_layer("fc").kernel.numpy()
    return np.einsum("bhwc,ck->bhwk", features.numpy(), kernel) / card.temperature


def test_a_map_is_the_classifier_at_every_place() -> None:
    model, pixels = tiny(), images()
    maps = open_runtime(model).read(pixels, "cam")
    np.testing.assert_allclose(maps, expected_maps(model, pixels), atol=1e-5)
    bias = model.get_layer("fc").bias.numpy() / CONFIDENCE.temperature
    logits = reszoo.Predictor(model).logits(pixels)
    np.testing.assert_allclose(maps.mean((1, 2)) + bias, logits, atol=1e-5)
    np.testing.assert_allclose(
        logits, own_logits(model, pixels) / CONFIDENCE.temperature, atol=1e-5
    )


@pytest.mark.parametrize("name", ["saved_model", "tflite", "tflite-fp16", "onnx"])
def test_files_give_maps_besides_the_usual_outputs(name: str, tmp_path: Path) -> None:
    model, pixels, row = tiny(), images(), FORMATS[name]
    serving = make_serving(model, ExportOptions(outputs="cam"))
    row.write(serving, tmp_path / row.file, None)
    runtime = open_runtime(tmp_path / row.file)
    assert {each["name"] for each in runtime.outputs} == {
        "cam", "logits", "probabilities",
    }  # fmt: skip
    assert set(runtime.operators) <= row.operators
    maps = runtime.read(pixels, "cam")
    near = 1e-5 if row.precision == "float32" else 2e-2
    np.testing.assert_allclose(maps, expected_maps(model, pixels), atol=near)
    bias = serving.model.get_layer("fc").bias.numpy()
    nothing = np.zeros((5, 3), np.float32)
    reference = Reference(pixels, nothing, np.zeros(5, np.int64), 0, bias)
    assert cam_difference(runtime, reference) <= row.tolerance.max_cam_difference
    assert row.tolerance.max_cam_difference == 1e-5
    # A wrong bias does not pass.
    wrong = replace(reference, bias=bias + 1e-2)
    assert cam_difference(runtime, wrong) > 1e-4
    # The usual outputs are those of a file without maps.
    usual = reszoo.Predictor(tmp_path / row.file).predict(pixels)
    atol = 1e-5 if row.precision == "float32" else 2e-3
    np.testing.assert_allclose(
        usual, reszoo.Predictor(model).predict(pixels), atol=atol
    )
    found = reszoo.explain(tmp_path / row.file, pixels[0], "b")
    np.testing.assert_allclose(found.map, maps[0, ..., 1], atol=1e-5)
    # Written again it is the same.
    again = tmp_path / "again" / row.file
    again.parent.mkdir()
    row.write(serving, again, None)
    if again.is_file():
        assert again.read_bytes() == (tmp_path / row.file).read_bytes()


SLOW = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("tflite-dynamic", "tflite-int16x8")
]


@pytest.fixture(scope="module", params=["tflite-int8", "onnx-int8", *SLOW])
def quantized(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A format, an opened file calibrated on images of little contrast; a reference."""
    row, folder = FORMATS[request.param], tmp_path_factory.mktemp("quantized")
    serving = make_serving(tiny(), ExportOptions(outputs="cam"))
    draw = np.random.default_rng(0)
    shown = draw.integers(100, 150, (100, 32, 32, 3), np.uint8)
    row.write(serving, folder / row.file, Calibration(shown))
    pixels = np.concatenate([shown[:4], synthetic_images(32, 3)])
    nothing = np.zeros((len(pixels), 3), np.float32)
    bias = serving.model.get_layer("fc").bias.numpy()
    reference = Reference(pixels, nothing, np.zeros(4, np.int64), 23, bias)
    return row, open_runtime(folder / row.file), reference


def test_means_of_maps_are_logits_beyond_the_calibrated_ranges(quantized: Any) -> None:
    row, runtime, reference = quantized
    limit = row.tolerance.max_cam_difference
    assert limit == (5e-3 if row.name == "tflite-int16x8" else 1e-5)
    assert cam_difference(runtime, reference) <= limit
    assert set(runtime.operators) <= row.operators


@pytest.mark.parametrize("wrong", ["scale", "classes", "place", "bias", "nan"])
def test_wrong_maps_of_integers_are_found(wrong: str, quantized: Any) -> None:
    row, runtime, reference = quantized
    if wrong == "bias":
        reference = replace(reference, bias=reference.bias + 0.1)

    def damaged(session: Any, pixels: Any, output: str) -> Any:
        value = np.array(runtime.compute(session, pixels, output))
        if output == "cam" and wrong == "place":
            value[:, 0, 0] = 0
        defects = {"scale": value * 1.02, "classes": value[..., ::-1]}
        defects["nan"] = value * np.nan
        return defects.get(wrong, value) if output == "cam" else value

    found = cam_difference(replace(runtime, compute=damaged), reference)
    assert not found <= row.tolerance.max_cam_difference


def test_an_export_with_maps_is_verified_again(tmp_path: Path) -> None:
    made = reszoo.export(tiny(), tmp_path / "cam", formats="onnx", outputs="cam")
    found = made.files[0].verification.cam_difference
    assert found is not None
    assert found <= 1e-5
    again = reszoo.verify(made.folder).files[0].verification
    assert again.cam_difference == pytest.approx(found, abs=1e-6)
    stored = read_reference(made.folder, made.card, cam=True)
    np.testing.assert_array_equal(
        stored.bias, make_serving(tiny()).model.get_layer("fc").bias
    )
    with np.load(made.folder / "reference.npz") as arrays:
        content = dict(arrays)
    content["bias"] += 1
    np.savez_compressed(made.folder / "reference.npz", **content)
    with pytest.raises(reszoo.VerificationError, match=r"map and the bias differ by"):
        reszoo.verify(made.folder)


@pytest.mark.slow
def test_files_with_maps_repeat_byte_for_byte(tmp_path: Path) -> None:
    model, found = tiny(), []
    source = open_source(photos(tmp_path / "photos", ("a", "b", "c"), 50))
    drawn = draw_calibration(source, reszoo.card(model), images()[:0])
    for turn in ("first", "second"):
        serving, parts = make_serving(model, ExportOptions(outputs="cam")), {}
        (tmp_path / turn).mkdir()
        for name in ("saved_model", "tflite-int8", "onnx-int8"):
            path = tmp_path / turn / FORMATS[name].file
            FORMATS[name].write(serving, path, replace(drawn, choices={}))
            files = [path, *path.rglob("*")] if path.is_dir() else [path]
            for each in filter(Path.is_file, files):
                parts[str(each.relative_to(tmp_path / turn))] = each.read_bytes()
        found.append(parts)
    one, other = found
    assert len(one) >= 5
    assert set(one) == set(other)
    assert [name for name in one if one[name] != other[name]] == []


def test_maps_need_a_file_that_gives_them(tmp_path: Path) -> None:
    model = tiny()
    FORMATS["onnx"].write(make_serving(model), tmp_path / "model.onnx", None)
    with pytest.raises(
        reszoo.UsageError, match=r"needs an output 'cam'.*--outputs cam"
    ):
        reszoo.explain(tmp_path / "model.onnx", images()[0])
    with pytest.raises(reszoo.UnknownNameError, match="label"):
        reszoo.explain(model, images()[0], "x")
    with pytest.raises(reszoo.UsageError, match="integer_io gives probabilities"):
        reszoo.export(
            model, tmp_path / "x", formats="tflite-int8", integer_io="uint8",
            outputs="cam", calibration="digits",
        )  # fmt: skip


@pytest.mark.slow
def test_explain_finds_the_place_that_the_class_depends_on() -> None:
    """A model that learns where the bright square is has its peak there."""
    model = tiny(None)
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 60, (24, 32, 32, 3)).astype(np.uint8)
    places = draw.integers(0, 3, (24, 2)) * 8 + 2
    targets = np.arange(24) % 3
    for image, (top, left), target in zip(pixels, places, targets, strict=True):
        image[top : top + 8, left : left + 8, target] = 255
    record = reszoo.card(model).preprocessing
    for _ in range(12):
        descend(model, record.normalise(pixels.astype(np.float32)), targets, 0.3)
    set_card(model, reszoo.card(model))
    hits = 0
    for image, (top, left), target in zip(pixels, places, targets, strict=True):
        found = reszoo.explain(model, image, "abc"[target])
        row, column = np.unravel_index(found.map.argmax(), found.map.shape)
        step = 32 // found.map.shape[0]
        hits += bool(
            abs((row + 0.5) * step - top - 4) <= 8
            and abs((column + 0.5) * step - left - 4) <= 8
        )
    assert hits >= 18


def test_an_overlay_colours_the_maximum_and_nothing_negative() -> None:
    grey = np.full((32, 32, 3), 100, np.uint8)
    activation = np.full((4, 4), -1.0, np.float32)
    np.testing.assert_array_equal(
        np.asarray(overlay(grey, activation)), np.full((192, 192, 3), 100)
    )
    activation[0, 3] = 5
    painted = np.asarray(overlay(grey, activation)).astype(int)
    changed = np.abs(painted - 100).sum(-1)
    assert changed[:40, -40:].min() > 0
    assert changed[100:, :90].max() == 0
    assert overlay(grey[..., :1], activation).mode == "RGB"


def test_the_command_writes_a_map_for_each_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from reszoo.cli.options import app

    path = reszoo.save(tiny(), tmp_path / "tiny.safetensors")
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        Image.fromarray(images()[0]).save(tmp_path / folder / "cat.png")
    inputs = [str(tmp_path / folder) for folder in ("one", "two")]
    command = ["explain", str(path), *inputs, "--output", str(tmp_path / "maps")]
    app(command, standalone_mode=False)
    assert "cat-2.png" in capsys.readouterr().out
    first = Image.open(tmp_path / "maps" / "cat.png")
    expected = reszoo.explain(path, images()[0]).overlay
    np.testing.assert_array_equal(np.asarray(first), np.asarray(expected))
    with pytest.raises(reszoo.UsageError, match="--overwrite"):
        app(command, standalone_mode=False)


def test_features_are_what_the_classifier_sees() -> None:
    model, pixels = tiny(), images(6)
    labels = np.array(["x", "y"] * 3)
    found = reszoo.features(model, (pixels, labels))
    assert found.labels == ("x", "y")
    assert found.values.shape == (6, 64)
    head = [getattr(model.get_layer("fc"), kind).numpy() for kind in ("kernel", "bias")]
    np.testing.assert_allclose(
        found.values @ head[0] + head[1], own_logits(model, pixels), atol=1e-4
    )
    np.testing.assert_array_equal(found.targets, [0, 1] * 3)
    split = {"train": (pixels[:4], labels[:4]), "test": (pixels[4:], labels[4:])}
    whole = reszoo.features(model, split)
    np.testing.assert_allclose(np.sort(whole.values, 0), np.sort(found.values, 0), 1e-5)
    only = reszoo.features(model, split, split="test")
    np.testing.assert_allclose(only.values, found.values[4:], rtol=1e-5)


def test_code_for_one_output_is_not_written_for_three(tmp_path: Path) -> None:
    made = reszoo.export(tiny(), tmp_path / "cam", formats="tflite", outputs="cam")
    names = {path.name for path in (made.folder / "snippets").iterdir()}
    assert names == {"server.py"}
