"""Predictor and every generated snippet see the same pixels of unusual images."""

import runpy
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from made_card import made_card
from scripts import ROOT
from test_snippets import nearly_equal, record_of, written_snippets
from unusual_images import write_unusual_images

import reszoo
from reszoo.architecture import architecture
from reszoo.cards import Card, new_card
from reszoo.data.image_files import open_image

_EXPORT = ROOT / "saved_models/resnet20-cifar10"
_STUBS = ROOT / "tests/stubs"
_FILES = [
    "model.tflite",
    "model-int8.tflite",
    "model.onnx",
    pytest.param("saved_model", marks=pytest.mark.slow),
]
# What the stubs of the runtimes answer.
_ANSWER = [0.25, 0.75]
_SIZE = 32


@pytest.fixture(scope="module")
def unusual(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return write_unusual_images(tmp_path_factory.mktemp("unusual"))


@pytest.fixture(scope="module")
def prepared(unusual: Any) -> Any:
    """What Predictor shows a model, in the order of the files."""
    record = made_card().preprocessing
    return [record.prepare(open_image(path)) for path in unusual[0]]


@pytest.fixture(scope="module")
def decoded(unusual: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pixels as decoders of other languages give them, and a list of them."""
    folder = tmp_path_factory.mktemp("decoded")
    lines = []
    for number, path in enumerate(unusual[0]):
        rgb = np.asarray(open_image(path))
        height, width, _ = rgb.shape
        alpha = np.random.default_rng(number).integers(0, 256, (height, width, 1))
        rgba = np.concatenate([rgb, alpha.astype(np.uint8)], -1)
        (folder / f"{number}.rgb").write_bytes(rgb.tobytes())
        (folder / f"{number}.rgba").write_bytes(rgba.tobytes())
        lines.append(f"{width} {height} {folder / str(number)}")
    (folder / "list").write_text("\n".join(lines) + "\n")
    return folder / "list"


@pytest.mark.parametrize("file", _FILES)
def test_predictor_and_the_python_server_answer_alike(unusual: Any, file: str) -> None:
    shown, refused = unusual
    program = runpy.run_path(str(_EXPORT / "snippets/server.py"))
    predictor = reszoo.Predictor(_EXPORT / file)
    open_file, dtype, shape = program["FILES"][file]
    run = open_file(_EXPORT / file)
    for path in shown:
        pixels = program["prepare"](path)
        expected = predictor.card.preprocessing.prepare(open_image(path))
        np.testing.assert_array_equal(pixels, expected, path.name)
        answer = program["predict"](run, dtype, shape, pixels)
        for image in (path, path.read_bytes()):
            np.testing.assert_allclose(
                answer, predictor.predict(image)[0], atol=1e-5, err_msg=path.name
            )
    for path in refused:
        with pytest.raises(reszoo.DataError, match="is not a readable image"):
            predictor.predict(path)
        # Whatever Pillow raises: the server answers with its text.
        with pytest.raises((OSError, ValueError)):
            program["prepare"](path)


@pytest.mark.slow
def test_serving_bytes_answers_alike_or_refuses(unusual: Any) -> None:
    shown, refused = unusual
    loaded = tf.saved_model.load(str(_EXPORT / "saved_model/1"))
    ask = loaded.signatures["serving_bytes"]
    predictor = reszoo.Predictor(_EXPORT / "model.onnx")
    known = {".jpg", ".png"}
    for path in (path for path in shown if path.suffix in known):
        answer = ask(image_bytes=tf.constant([path.read_bytes()]))["probabilities"]
        # TensorFlow and Pillow round resized pixels differently, by one grey level.
        expected = predictor.predict(path)
        np.testing.assert_allclose(answer, expected, atol=0.02, err_msg=path.name)
    for path in refused:
        with pytest.raises(tf.errors.InvalidArgumentError):
            ask(image_bytes=tf.constant([path.read_bytes()]))


def test_each_unusual_image_gets_an_answer_of_its_own(unusual: Any) -> None:
    """Otherwise the tests here would not notice a picture in place of another."""
    predictor = reszoo.Predictor(_EXPORT / "model.onnx")
    held = [path for path in unusual[0] if path.name.startswith("held-")][:7]
    answers = predictor.predict(held)
    distances = np.abs(answers[:, None] - answers[None]).max(-1)
    assert (distances + np.eye(len(held))).min() > 1e-3


_JAVASCRIPT = """
import { appendFileSync, readFileSync, writeFileSync } from "node:fs";
import { prepare, predict } from "./browser.mjs";
const [list, out] = process.argv.slice(2);
class Tensor { constructor(type, data, dims) { Object.assign(this, { data }); } }
let input;
const session = { run: async ({ image }) => {
  input = new Uint8Array(image.data.buffer);
  return { probabilities: { data: Float32Array.from([0.25, 0.75]) } };
} };
writeFileSync(out, "");
for (const line of readFileSync(list, "utf8").trim().split("\\n")) {
  const [width, height, path] = line.split(" ");
  const pixels = prepare(readFileSync(path + ".rgba"), Number(width), Number(height));
  console.log((await predict({ Tensor }, session, pixels)).join(" "));
  appendFileSync(out, pixels);
  appendFileSync(out, input);
}
"""
_C_PLUS_PLUS = """
#include "SNIPPET"

#include <fstream>
#include <iostream>
#include <iterator>
#include <string>

int main(int, char** given) {
  std::ifstream list(given[1]);
  std::ofstream out(given[2], std::ios::binary);
  const auto write = [&out](const std::vector<uint8_t>& bytes) {
    out.write(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  };
  Classifier classifier("model");
  std::string path;
  for (int width, height; list >> width >> height >> path;) {
    std::ifstream file(path + ".rgb", std::ios::binary);
    const std::vector<char> read{std::istreambuf_iterator<char>(file), {}};
    const auto* rgb = reinterpret_cast<const uint8_t*>(read.data());
    const auto answer = classifier.Predict(rgb, width, height);
    std::cout << answer[0] << " " << answer[1] << std::endl;
    write(Prepare(rgb, width, height));
    write(last_input);
  }
}
"""
# Before Kotlin 1.8 not in the standard library itself; Debian has 1.3.
_KOTLIN_LIBRARY = "/usr/share/java/kotlin-stdlib-jdk7.jar"
_KOTLIN = """
import android.content.Context
import android.graphics.Bitmap
import java.io.File
import org.tensorflow.lite.Interpreter

fun main(args: Array<String>) {
    val context = Context(args[2])
    val classifier = Classifier(context)
    File(args[1]).outputStream().buffered().use { out ->
        for (line in File(args[0]).readLines()) {
            val (width, height, path) = line.split(" ")
            val rgba = File(path + ".rgba").readBytes()
            fun at(index: Int) = rgba[index].toInt() and 255
            val colours = IntArray(rgba.size / 4) {
                (at(4 * it + 3) shl 24) or (at(4 * it) shl 16) or
                    (at(4 * it + 1) shl 8) or at(4 * it + 2)
            }
            val bitmap = Bitmap(colours, width.toInt(), height.toInt())
            println(classifier.predict(bitmap).joinToString(" "))
            val pixels = prepare(bitmap)
            for (pixel in pixels) out.write(pixel)
            out.write(Interpreter.lastInput)
            val (name, side) = predictMediaPipe(context, bitmap)[0]
            check(side == WIDTH.toFloat())
            check(name == "ff%02x%02x%02x".format(pixels[0], pixels[1], pixels[2]))
        }
    }
}
"""


def _check(done: Any, out: Path, prepared: Sequence[Any], dtype: Any) -> None:
    """Compare what a program printed and wrote with what Predictor shows a model."""
    assert not done.returncode, done.stderr
    answers = [list(map(float, line.split())) for line in done.stdout.splitlines()]
    assert answers == [_ANSWER] * len(prepared)
    content, side = out.read_bytes(), 3 * _SIZE**2
    step = side * (1 + np.dtype(dtype).itemsize)
    assert len(content) == step * len(prepared)
    for number, expected in enumerate(prepared):
        part = content[number * step :]
        pixels = np.frombuffer(part, np.uint8, side)
        nearly_equal(pixels, expected.reshape(-1))
        fed = np.frombuffer(part, dtype, side, offset=side)
        np.testing.assert_array_equal(fed, pixels)


def _run(*command: Any, cwd: Path) -> Any:
    return subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=False
    )


@pytest.mark.skipif(not shutil.which("node"), reason="runs JavaScript with node")
def test_javascript_shows_the_model_what_predictor_does(
    decoded: Path, prepared: Any, tmp_path: Path
) -> None:
    written_snippets(tmp_path, made_card(), record_of("onnx", "uint8", "batch"))
    folder = tmp_path / "snippets"
    (folder / "browser.js").rename(folder / "browser.mjs")
    (folder / "program.mjs").write_text(_JAVASCRIPT)
    done = _run("node", "program.mjs", decoded, "out", cwd=folder)
    _check(done, folder / "out", prepared, np.uint8)


@pytest.mark.skipif(not shutil.which("g++"), reason="compiles C++ with g++")
@pytest.mark.parametrize(
    ("runtime", "dtype"),
    [
        ("onnx", "uint8"),
        pytest.param("tflite", "float32", marks=pytest.mark.slow),
    ],
)
def test_c_plus_plus_shows_the_model_what_predictor_does(
    decoded: Path, prepared: Any, tmp_path: Path, runtime: str, dtype: str
) -> None:
    written_snippets(tmp_path, made_card(), record_of(runtime, dtype, 1))
    folder = tmp_path / "snippets"
    program = _C_PLUS_PLUS.replace("SNIPPET", f"native_{runtime}.cc")
    (folder / "main.cc").write_text(program)
    done = _run(*_compiler("-O1", "-o", "main"), cwd=folder)
    assert not done.returncode, done.stderr
    done = _run("./main", decoded, "out", cwd=folder)
    _check(done, folder / "out", prepared, dtype)


def _compiler(*options: str) -> list[Any]:
    warnings = ["-Wall", "-Wextra", "-Werror"]
    return ["g++", "-std=c++17", *warnings, f"-I{_STUBS}", *options, "main.cc"]


# Every branch of the templates: dtype of the input, kind and dtype of the output.
_VARIANTS = [
    ("float32", "probabilities", "float32"),
    ("uint8", "probabilities", "uint8"),
    ("uint8", "logits", "float32"),
    ("float32", "features", "float32"),
]


def _variant(number: int) -> tuple[Card, tuple[int, int, int]]:
    """Return a card with every interpolation and way of resizing, the last one grey."""
    kind = "bicubic" if number % 2 else "bilinear"
    changes: dict[str, Any] = {"interpolation": kind}
    changes["resize"] = ("crop", "pad", "squash", "pad")[number]
    if number < 3:
        return made_card(**changes), (32, 32, 3)
    net = architecture("resnet20", classes=2, input_shape=(32, 32, 1))
    card = new_card(net, ("cat", "dog"))
    record = replace(card.preprocessing, **changes)
    return replace(card, preprocessing=record), (32, 32, 1)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="compiles C++ with g++")
@pytest.mark.parametrize("runtime", ["onnx", "tflite"])
def test_every_variant_of_the_c_plus_plus_compiles(
    tmp_path: Path, runtime: str
) -> None:
    for number, (dtype, output, output_dtype) in enumerate(_VARIANTS):
        if runtime == "onnx" and output_dtype == "uint8":
            continue
        folder = tmp_path / str(number)
        card, shape = _variant(number)
        record = record_of(runtime, dtype, 1 + number, output, output_dtype, shape)
        written_snippets(folder, card, record)
        program = _C_PLUS_PLUS.replace("SNIPPET", f"native_{runtime}.cc")
        (folder / "snippets/main.cc").write_text(program)
        done = _run(*_compiler("-fsyntax-only"), cwd=folder / "snippets")
        assert not done.returncode, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("kotlinc"), reason="compiles Kotlin with kotlinc")
def test_kotlin_shows_the_model_what_predictor_does_and_every_variant_compiles(
    decoded: Path, prepared: Any, tmp_path: Path
) -> None:
    sources = []
    for number, (dtype, output, output_dtype) in enumerate(_VARIANTS):
        folder = tmp_path / str(number)
        card, shape = _variant(number)
        record = record_of("tflite", dtype, 1 + number, output, output_dtype, shape)
        written_snippets(folder, card, record)
        sources.append(folder / "snippets/Android.kt")
        if number:
            # All are compiled at once, each with names of its own.
            text = sources[-1].read_text()
            sources[-1].write_text(f"package variant{number}\n{text}")
    (tmp_path / "main.kt").write_text(_KOTLIN)
    (tmp_path / "model.tflite").write_bytes(b"model")
    stubs = sorted((_STUBS / "kotlin").glob("*.kt"))
    command = ["kotlinc", "-cp", _KOTLIN_LIBRARY, *stubs, *sources, "main.kt"]
    done = _run(*command, "-d", "all.jar", cwd=tmp_path)
    assert not done.returncode, done.stderr
    command = ["kotlin", "-cp", f"all.jar:{_KOTLIN_LIBRARY}", "MainKt"]
    done = _run(*command, decoded, "out", tmp_path, cwd=tmp_path)
    # The snippet writes in the order of the processor.
    _check(done, tmp_path / "out", prepared, np.float32)


# Run or compiled by the tests of this file, test_snippets.py and test_mediapipe.py.
_TESTED = {
    "server.py", "browser.js", "preprocess.h", "native_onnx.cc", "native_tflite.cc",
    "Android.kt", "mediapipe_classify.py",
}  # fmt: skip


def test_a_snippet_that_is_not_compiled_here_says_so_first(tmp_path: Path) -> None:
    records = [record_of("onnx", "uint8", "batch"), record_of("tflite", "uint8", 1)]
    texts = written_snippets(tmp_path, made_card(), *records)
    assert set(texts) > _TESTED
    for name, text in texts.items():
        says = "reszoo's tests" in text.splitlines()[0]
        assert says == (name not in _TESTED), name
