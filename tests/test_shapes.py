"""Rectangular models and models of grey images, and the three ways of resizing."""

import runpy
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from conftest import randomise
from made_card import made_card
from PIL import Image
from test_snippets import record_of, written_snippets
from tiny import RESNET8
from unusual_images import write_unusual_images

import reszoo
from reszoo.architecture import architecture
from reszoo.cards import new_card
from reszoo.data.image_files import open_image
from reszoo.preprocessing import Preprocessing, Resize, to_grey
from reszoo_export.saved_model.writer import prepare_encoded

RESIZES: tuple[Resize, ...] = ("crop", "squash", "pad")
SHAPES = [
    pytest.param((64, 96, 3), marks=pytest.mark.slow, id="rectangular"),
    pytest.param((48, 40, 1), id="grey"),
]
_BILINEAR = Image.Resampling.BILINEAR


def record(
    resize: Resize, size: Any = (64, 96), channels: int = 3, **changes: Any
) -> Preprocessing:
    card = made_card(resize=resize, eval_size=size, crop_pct=1.0)
    mean, std = (0.3, 0.5, 0.7)[:channels], (0.2,) * channels
    return replace(card.preprocessing, mean=mean, std=std, **changes)


def picture(height: int, width: int) -> Any:
    """Edges, ramps and noise, in colour."""
    rows, columns = np.mgrid[:height, :width]
    planes = [
        columns * 255 / width,
        rows * 255 / height,
        (rows // 9 + columns // 7) % 2,
    ]
    pixels = np.stack([*planes[:2], 255 * planes[2]], -1)
    noise = np.random.default_rng(height).normal(0, 20, pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize(("size", "channels"), [((64, 96), 3), ((50, 31), 1), (40, 1)])
def test_pillow_and_tensorflow_prepare_every_shape_alike(
    resize: Resize, size: Any, channels: int
) -> None:
    same = record(resize, size, channels)
    prepare = tf.function(
        same.prepare_tensor, [tf.TensorSpec((None, None, 3), tf.uint8)]
    )
    for shape in [(300, 400), (133, 77), (40, 45), (3, 300), (900, 2), (1, 1)]:
        image = picture(*shape)
        shown = same.prepare(image)
        assert shown.shape == same.input_shape
        off = np.abs(shown.astype(int) - prepare(image).numpy())
        assert off.max() <= 1, shape


def test_a_crop_covers_the_input_and_the_others_show_the_whole_image() -> None:
    image = np.zeros((200, 200, 3), np.uint8)
    image[:34] = image[-34:] = 255  # The rows that a crop to 2:3 cuts off, one more.
    crop, squash, pad = (record(resize).prepare(image) for resize in RESIZES)
    assert crop[2:-2].max() == 0
    expected = Image.fromarray(image).resize((96, 200), _BILINEAR).resize((96, 64))
    assert np.abs(squash.astype(int) - np.asarray(expected)).max() <= 60
    assert squash[0].min() == squash[-1].min() == 255
    # 64 of 96 columns, with the mean colour on either side.
    inside = Image.fromarray(image).resize((64, 64), _BILINEAR)
    np.testing.assert_array_equal(pad[:, 16:80], np.asarray(inside))
    np.testing.assert_array_equal(
        pad[:, :16], np.broadcast_to([76, 128, 178], (64, 16, 3))
    )
    np.testing.assert_array_equal(pad[:, 80:], pad[:, :16])
    np.testing.assert_allclose(record("pad").normalise(pad[:, 0] * 1.0), 0, atol=0.01)


def test_grey_is_pillows_grey_to_the_last_bit() -> None:
    image = picture(120, 90)
    expected = np.asarray(Image.fromarray(image).convert("L"))[..., None]
    np.testing.assert_array_equal(to_grey(tf.constant(image)), expected)
    same = record("crop", (120, 90), 1)
    for each in (image, expected, expected[..., 0], Image.fromarray(image)):
        np.testing.assert_array_equal(same.prepare(each), expected)
    deep = np.linspace(0, 65535, 120 * 90).astype(np.uint16).reshape(120, 90)
    shown = same.prepare(Image.fromarray(deep))
    np.testing.assert_array_equal(shown[..., 0], deep >> 8)


def test_cards_of_square_crops_are_what_they_were() -> None:
    content = record("crop", 32).to_json()
    assert "resize" not in content
    assert content["eval_size"] == 32
    assert record("crop", (32, 32)) == record("crop", 32)
    for resize in RESIZES:
        same = record(resize, (32, 48), 1)
        assert same.to_json()["eval_size"] == [32, 48]
        assert Preprocessing(**same.to_json()) == same
    whole = "eval_size must be a whole"
    for wrong, told in (
        ([32], whole),
        ([32, 32, 32], whole),
        ([32, 0], r"eval_size must be in \[1, 4096\]"),
        ([32, "x"], whole),
        ([True, True], whole),
    ):
        with pytest.raises(reszoo.UsageError, match=told):
            Preprocessing(**{**content, "eval_size": wrong})
    with pytest.raises(reszoo.UsageError, match="Did you mean 'squash'"):
        Preprocessing(**{**content, "resize": "squish"})


@pytest.fixture(scope="module", params=SHAPES)
def trained(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run on photos of two classes, in which every augmentation is on."""
    folder = tmp_path_factory.mktemp("photos")
    for label, name in enumerate(("cat", "dog")):
        (folder / name).mkdir()
        for number in range(70):
            image = picture(70 + number, 80 + 3 * label)
            image[..., label] = 255
            Image.fromarray(image).save(folder / name / f"{number}.png")
    resize: Resize = "pad" if request.param[2] == 1 else "squash"
    height, width, channels = request.param
    done = reszoo.train(
        RESNET8,
        folder,
        recipe="cifar",
        epochs=2,
        batch_size=24,
        warmup_epochs=0.5,
        eval_size=(height, width),
        train_size=(height, width),
        channels=channels,
        resize=resize,
        policy="trivial",
        crop="resized",
        erase=0.5,
        cutmix=1.0,
        output=tmp_path_factory.mktemp("shapes") / "run",
    )
    return folder, done, request.param, resize


def test_a_run_ends_in_a_checkpoint_that_predicts_as_its_model(trained: Any) -> None:
    folder, done, shape, resize = trained
    model = reszoo.load(done.best)
    made = reszoo.card(model).preprocessing
    assert (made.input_shape, made.resize, made.crop_pct) == (shape, resize, 1.0)
    assert reszoo.card(model).architecture.input_shape == shape
    paths = sorted(folder.glob("*/*.png"))[::9]
    pixels = np.stack([made.prepare(Image.open(path)) for path in paths])
    logits = model(made.normalise(pixels.astype(np.float32)), training=False)
    predictor = reszoo.Predictor(done.best)
    shown = predictor.predict(paths)
    np.testing.assert_allclose(shown, tf.nn.softmax(logits), atol=1e-5)
    np.testing.assert_array_equal(predictor.predict_prepared(pixels), shown)
    if shape[2] == 1:
        grey = np.asarray(Image.open(paths[0]).convert("L"))
        for array in (grey, grey[..., None]):
            np.testing.assert_allclose(predictor.predict(array)[0], shown[0], atol=1e-6)
    (loss,) = (each.value for each in reszoo.card(model).metrics if each.name == "loss")
    assert reszoo.evaluate(done.best, folder).loss == pytest.approx(loss, rel=0.02)


@pytest.mark.slow
def test_all_nine_files_of_it_are_verified_and_answer_alike(
    trained: Any, tmp_path: Path
) -> None:
    folder, done, shape, _ = trained
    model = reszoo.load(done.best)
    manifest = reszoo.export(
        model, tmp_path / "export", formats="all", calibration=folder
    )
    assert len(manifest.files) == 9
    paths = sorted(folder.glob("*/*.png"))[::9]
    expected = reszoo.Predictor(model).predict(paths)
    for file in manifest.files:
        assert sorted(file.inputs[0]["shape"][1:]) == sorted(shape)
        shown = reszoo.Predictor(tmp_path / "export" / file.file).predict(paths)
        exact = file.format in ("saved_model", "tflite", "onnx")
        np.testing.assert_allclose(shown, expected, atol=1e-5 if exact else 0.05)
    served = tf.saved_model.load(str(tmp_path / "export/saved_model/1"))
    files = tf.constant([path.read_bytes() for path in paths])
    answer = served.signatures["serving_bytes"](image_bytes=files)["probabilities"]
    # TensorFlow and Pillow may round a resized pixel to neighbouring grey levels.
    np.testing.assert_allclose(answer, expected, atol=0.01)


def test_options_of_export_keep_the_answers_of_a_grey_rectangle(tmp_path: Path) -> None:
    model = randomise(reszoo.build(RESNET8, input_shape=(24, 40, 1), classes=3))
    images = np.random.default_rng(0).integers(0, 256, (130, 24, 40), np.uint8)
    expected = reszoo.Predictor(model).predict([*images[:5]])
    options: Any = {"layout": "nchw", "input_dtype": "float32"}
    folder = tmp_path / "float"
    (file,) = reszoo.export(model, folder, formats="onnx", **options).files
    assert file.inputs[0]["shape"][1:] == [1, 24, 40]
    assert file.inputs[0]["dtype"] == "float32"
    shown = reszoo.Predictor(folder / file.file).predict([*images[:5]])
    np.testing.assert_allclose(shown, expected, atol=1e-5)
    data = images, np.arange(130) % 3
    folder = tmp_path / "integers"
    options = {"calibration": data, "integer_io": "uint8"}
    (file,) = reszoo.export(model, folder, formats="tflite-int8", **options).files
    shown = reszoo.Predictor(folder / file.file).predict([*images[:5]])
    np.testing.assert_allclose(shown, expected, atol=0.05)


_READ = """
import { readFileSync, writeFileSync } from "node:fs";
import { prepare } from "./browser.mjs";
for (const line of readFileSync("list", "utf8").trim().split("\\n")) {
  const [width, height, path] = line.split(" ");
  const rgb = readFileSync(path), rgba = Buffer.alloc((rgb.length / 3) * 4);
  for (let at = 0; at < rgb.length; at++) rgba[at + Math.floor(at / 3)] = rgb[at];
  writeFileSync(path + ".js", prepare(rgba, Number(width), Number(height)));
}
"""
_MAIN = """
#include <fstream>
#include <iterator>
#include <string>
#include "preprocess.h"
int main() {
  std::ifstream list("list");
  std::string path;
  for (int width, height; list >> width >> height >> path;) {
    std::ifstream file(path, std::ios::binary);
    const std::vector<char> read{std::istreambuf_iterator<char>(file), {}};
    const auto shown =
        Prepare(reinterpret_cast<const uint8_t*>(read.data()), width, height);
    std::ofstream(path + ".cc", std::ios::binary)
        .write(reinterpret_cast<const char*>(shown.data()), shown.size());
  }
}
"""


@pytest.fixture(scope="module")
def unusual(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    shown, _ = write_unusual_images(tmp_path_factory.mktemp("unusual"))
    return shown


@pytest.mark.parametrize(
    ("resize", "size", "channels"),
    [
        pytest.param("crop", (24, 40), 3, marks=pytest.mark.slow),
        pytest.param("squash", 32, 1, marks=pytest.mark.slow),
        ("pad", (33, 20), 1),
        pytest.param("crop", (40, 24), 1, marks=pytest.mark.slow),
        pytest.param("squash", (40, 24), 3, marks=pytest.mark.slow),
        pytest.param("pad", (24, 40), 3, marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_every_snippet_shows_the_model_what_predictor_does(
    resize: Resize, size: Any, channels: int, unusual: list[Path], tmp_path: Path
) -> None:
    net = architecture("resnet20", classes=2, input_shape=(32, 32, channels))
    same = record(resize, size, channels)
    if resize == "pad":
        same = replace(same, crop_pct=0.9)
    card = replace(new_card(net, ("cat", "dog")), preprocessing=same)
    shape = same.input_shape
    records = [
        record_of("onnx", "uint8", "batch", shape=shape),
        record_of("tflite", "uint8", 1, shape=shape),
    ]
    written_snippets(tmp_path, card, *records)
    folder, lines = tmp_path / "snippets", []
    program = runpy.run_path(str(folder / "server.py"))
    expected = [same.prepare(open_image(path)) for path in unusual]
    for number, path in enumerate(unusual):
        np.testing.assert_array_equal(
            program["prepare"](path), expected[number], path.name
        )
        rgb = open_image(path)
        (folder / str(number)).write_bytes(rgb.tobytes())
        lines.append(f"{rgb.width} {rgb.height} {number}\n")
    (folder / "list").write_text("".join(lines))
    if shutil.which("node"):
        (folder / "browser.js").rename(folder / "browser.mjs")
        (folder / "program.mjs").write_text(_READ)
        subprocess.run(["node", "program.mjs"], cwd=folder, check=True)
    if shutil.which("g++"):
        (folder / "main.cc").write_text(_MAIN)
        options = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-o", "main"]
        subprocess.run(["g++", *options, "main.cc"], cwd=folder, check=True)
        subprocess.run(["./main"], cwd=folder, check=True)
    apart: list[Any] = []
    for number, pixels in enumerate(expected):
        for file in folder.glob(f"{number}.*"):
            off = np.abs(np.fromfile(file, np.uint8) - pixels.reshape(-1).astype(int))
            assert off.max() <= 1, (file.name, unusual[number].name)
            apart.append(off > 0)
    # Pillow rounds its weights.
    assert np.concatenate(apart or [np.zeros(1)]).mean() < 0.02


@pytest.mark.parametrize("resize", RESIZES)
def test_served_bytes_are_prepared_as_by_pillow(resize: Resize, tmp_path: Path) -> None:
    for channels in (1, 3):
        same = record(resize, (24, 40), channels)
        files = []
        for number, mode in enumerate(("RGB", "L", "LA", "P", "RGBA", "1")):
            path = tmp_path / f"{mode}.png"
            Image.fromarray(picture(60 + number, 50)).convert(mode).save(path)
            files.append(path)
        served = prepare_encoded(
            tf.constant([path.read_bytes() for path in files]), same
        )
        for path, pixels in zip(files, served.numpy(), strict=True):
            expected = same.prepare(Image.open(path)).astype(int)
            assert np.abs(pixels - expected).max() <= 1, path.name
