import json
import runpy
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jinja2 import UndefinedError
from made_card import made_card
from PIL import Image

import reszoo
from reszoo.cards import Card, Confidence
from reszoo_export.manifest import FileRecord, Manifest
from reszoo_export.snippets import _TEMPLATES, write_snippets

# Snippets are only written of files that passed; how well does not matter.
_UNREAD: Any = None
_SIZES = [(301, 447), (40, 25), (100, 153)]
_MAIN = """
#include <cstdio>
#include <cstdlib>
#include "preprocess.h"
int main(int, char** given) {
  const int width = std::atoi(given[1]), height = std::atoi(given[2]);
  std::vector<uint8_t> rgb(size_t{3} * width * height);
  if (std::fread(rgb.data(), 1, rgb.size(), stdin) != rgb.size()) return 1;
  const auto pixels = Prepare(rgb.data(), width, height);
  std::fwrite(pixels.data(), 1, pixels.size(), stdout);
}
"""
_NODE = """
import {{ readFileSync, writeFileSync }} from "node:fs";
import {{ prepare, predict }} from "{module}";
const [width, height] = [{width}, {height}];
const pixels = prepare(readFileSync("{picture}"), width, height);
writeFileSync("{picture}.pixels", pixels);
class Tensor {{
  constructor(type, data, dims) {{ Object.assign(this, {{ type, data, dims }}); }}
}}
const session = {{
  run: async ({{ image }}) => {{
    writeFileSync("{picture}.input", new Uint8Array(image.data.buffer));
    console.error(JSON.stringify([image.type, image.dims]));
    return {{ {output}: {{ data: Float32Array.from({answer}) }} }};
  }},
}};
console.log(JSON.stringify(await predict({{ Tensor }}, session, pixels)));
"""


def _picture(height: int, width: int) -> Any:
    """Make a picture with edges, ramps and noise."""
    draw = np.random.default_rng(height)
    rows, columns = np.mgrid[:height, :width]
    planes = [
        columns * 255 / width,
        rows * 255 / height,
        (rows // 9 + columns // 7) % 2,
    ]
    pixels = np.stack([*planes[:2], planes[2] * 255], -1)
    noise = draw.normal(0, 20, pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


def _record(format_: str, file: str, image: Any, *outputs: Any) -> FileRecord:
    return FileRecord(
        format=format_,
        file=file,
        bytes=1,
        sha256="0",
        inputs=[dict(zip(("name", "dtype", "shape"), image, strict=True))],
        outputs=list(outputs),
        verification=_UNREAD,
    )


def written_snippets(folder: Path, card: Card, *records: FileRecord) -> dict[str, str]:
    manifest = Manifest(folder=folder, card=card, files=records, beside={})
    names = write_snippets(folder, manifest)
    return {Path(name).name: (folder / name).read_text() for name in names}


def record_of(
    runtime: str,
    dtype: str,
    batch: int | str,
    output: str = "probabilities",
    output_dtype: str = "float32",
    shape: tuple[int, ...] = (32, 32, 3),
) -> FileRecord:
    """Return the record of a file of two classes."""
    answer: dict[str, Any] = {"name": output, "dtype": output_dtype}
    answer["shape"] = [batch, 2]
    if output_dtype == "uint8":
        answer |= {"scale": 0.00390625, "zero_point": 0}
    image = ("image", dtype, [batch, *shape])
    return _record(runtime, f"model.{runtime}", image, answer)


_ANSWER: dict[str, Any] = {
    "name": "probabilities",
    "dtype": "float32",
    "shape": ["batch", 2],
}
_ONNX = _record("onnx", "model.onnx", ("image", "uint8", ["batch", 32, 32, 3]), _ANSWER)
_TFLITE = _record(
    "tflite",
    "model.tflite",
    ("image", "float32", [1, 32, 32, 3]),
    {**_ANSWER, "shape": [1, 2]},
)


@pytest.mark.parametrize("record", [_ONNX, _TFLITE], ids=["onnx", "tflite"])
def test_only_what_fits_the_files_is_written(tmp_path: Path, record: Any) -> None:
    found = set(written_snippets(tmp_path, made_card(), record))
    always = {"preprocess.h", "server.py"}
    if record is _ONNX:
        assert found == {*always, "browser.js", "index.html", "native_onnx.cc"}
    else:
        phones = {"Android.kt", "iOS.swift", "native_tflite.cc"}
        assert found == {*always, *phones, "mediapipe_classify.py"}


def test_phones_get_the_small_file_and_its_true_formats(tmp_path: Path) -> None:
    image = ("image", "uint8", [1, 32, 32, 3])
    output = {**_ANSWER, "dtype": "uint8", "shape": [1, 2]}
    output |= {"scale": 0.00390625, "zero_point": 0}
    small = _record("tflite-int8", "model-int8.tflite", image, output)
    texts = written_snippets(tmp_path, made_card(), _TFLITE, small)
    kotlin, swift = texts["Android.kt"], texts["iOS.swift"]
    assert 'const val FILE = "model-int8.tflite"' in kotlin
    assert "input.put(pixel.toByte())" in kotlin
    assert "- 0) * 0.00390625f" in kotlin
    assert 'forResource: "model-int8"' in swift
    assert "let input = Data(pixels)" in swift
    assert "(Float($0) - 0) * 0.00390625" in swift
    assert "std::vector<uint8_t> data(" in texts["native_tflite.cc"]
    for text in (kotlin, swift):
        assert "labels.txt" in text
        assert "ImageClassifier" in text
        assert "nothing else: the graph normalises" in text


def test_int8_pixels_and_answers_are_shifted(tmp_path: Path) -> None:
    image = ("image", "int8", [1, 32, 32, 3])
    output = {**_ANSWER, "dtype": "int8", "shape": [1, 2]}
    output |= {"scale": 0.00390625, "zero_point": -128}
    small = _record("tflite-int8", "model-int8.tflite", image, output)
    texts = written_snippets(tmp_path, made_card(), small)
    kotlin, swift, native = (
        texts[name] for name in ("Android.kt", "iOS.swift", "native_tflite.cc")
    )
    assert "input.put((pixel - 128).toByte())" in kotlin
    assert "(output[0][it] - (-128)) * 0.00390625f" in kotlin
    assert "let input = Data(pixels.map { $0 ^ 128 })" in swift
    assert "(Float(Int8(bitPattern: $0)) - (-128)) * 0.00390625" in swift
    assert "std::vector<int8_t> data(" in native
    assert "data[at] = pixels[at % pixels.size()] - 128;" in native
    assert "value = (value - (-128)) * 0.00390625f;" in native
    # It refuses int8.
    assert not any("MediaPipe" in text for text in (kotlin, swift))
    (tmp_path / "server.py").write_text(texts["server.py"])
    program = runpy.run_path(str(tmp_path / "server.py"))
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)

    def run(given: Any) -> Any:
        assert (given.dtype, given.min(), given.max()) == (np.int8, -128, 127)
        return np.array([[-128, 127]], np.int8)

    answer = program["predict"](run, "int8", (1, 16, 16, 1), pixels)
    np.testing.assert_allclose(answer, [0, 255 / 256])


def test_no_template_keeps_a_word_or_asks_for_an_unknown_fact(tmp_path: Path) -> None:
    outputs = [
        {"name": name, "dtype": "float32", "shape": [4, 2]}
        for name in ("logits", "features")
    ]
    nchw = ("image", "uint8", [4, 3, 32, 32])
    nhwc = ("image", "float32", [4, 32, 32, 3])
    for number, output in enumerate(outputs):
        texts = written_snippets(
            tmp_path / str(number),
            made_card(None if number else ("cat", "dog"), interpolation="bicubic"),
            _record("onnx", "model.onnx", nchw, output),
            _record("tflite", "model.tflite", nhwc, output),
        )
        assert len(texts) == 8
        for name, text in texts.items():
            assert "@" not in text, name
            assert ("labels" in text) <= (not number), name
        compile(texts["server.py"], "server.py", "exec")
    with pytest.raises(UndefinedError, match="word"):
        _TEMPLATES.from_string("@{ word }@").render()
    either = _TEMPLATES.from_string("@% if a %@\nx\n@% else %@\ny\n@% endif %@\n")
    assert either.render(a=True) == "x\n"
    nested = "@% if a %@\n@% if b %@\ny\n@% else %@\nx\n@% endif %@\n@% endif %@\n"
    both = _TEMPLATES.from_string(nested)
    facts = ({"a": 1, "b": 0}, {"a": 1, "b": 1}, {"a": 0, "b": 1})
    assert [both.render(each) for each in facts] == ["x\n", "y\n", ""]


def test_the_server_answers_like_the_predictor(exported: Any, tmp_path: Path) -> None:
    shutil.copytree(exported.folder, tmp_path / "export")
    names = write_snippets(tmp_path / "export", exported)
    assert "snippets/server.py" in names
    program = runpy.run_path(str(tmp_path / "export/snippets/server.py"))
    photo = tmp_path / "photo.png"
    Image.fromarray(_picture(301, 447)).save(photo)
    assert len(program["FILES"]) == len(exported.files)
    for name, (open_file, dtype, shape) in program["FILES"].items():
        path = tmp_path / "export" / name
        pixels = program["prepare"](photo)
        answer = program["predict"](open_file(path), dtype, shape, pixels)
        expected = reszoo.Predictor(path).predict(photo)[0]
        np.testing.assert_allclose(answer, expected, atol=1e-3, err_msg=name)


@pytest.fixture(params=["bilinear", "bicubic"])
def card(request: pytest.FixtureRequest) -> Card:
    return made_card(crop_pct=0.875, interpolation=request.param)


@pytest.mark.skipif(not shutil.which("node"), reason="runs JavaScript with node")
def test_the_browser_sees_what_the_net_was_trained_on(
    card: Card, tmp_path: Path
) -> None:
    nchw = ("image", "float32", [2, 3, 32, 32])
    logits = {"name": "logits", "dtype": "float32", "shape": [2, 2]}
    written_snippets(tmp_path, card, _record("onnx", "model.onnx", nchw, logits))
    module = tmp_path / "module.mjs"
    shutil.copy(tmp_path / "snippets/browser.js", module)
    for height, width in _SIZES:
        picture = _picture(height, width)
        opaque = np.full((height, width, 1), 255, np.uint8)
        rgba = tmp_path / "rgba"
        rgba.write_bytes(np.concatenate([picture, opaque], -1).tobytes())
        program = tmp_path / "program.mjs"
        program.write_text(
            _NODE.format(
                module=module,
                picture=rgba,
                width=width,
                height=height,
                output="logits",
                answer="[0, 1, 5, 5]",
            )
        )
        done = subprocess.run(
            ["node", program], capture_output=True, text=True, check=False
        )
        assert not done.returncode, done.stderr
        pixels = np.fromfile(f"{rgba}.pixels", np.uint8).reshape(32, 32, 3)
        nearly_equal(pixels, card.preprocessing.prepare(picture))
        fed = np.fromfile(f"{rgba}.input", np.float32).reshape(2, 3, 32, 32)
        np.testing.assert_array_equal(fed, np.stack([pixels.transpose(2, 0, 1)] * 2))
        assert json.loads(done.stderr) == ["float32", [2, 3, 32, 32]]
        # The softmax of the first image's logits.
        np.testing.assert_allclose(json.loads(done.stdout), [0.26894, 0.73106], 1e-4)


@pytest.mark.skipif(not shutil.which("g++"), reason="compiles C++ with g++")
def test_c_plus_plus_sees_what_the_net_was_trained_on(
    card: Card, tmp_path: Path
) -> None:
    written_snippets(tmp_path, card, _ONNX)
    (tmp_path / "snippets/main.cc").write_text(_MAIN)
    command = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-o", "main"]
    subprocess.run([*command, "main.cc"], cwd=tmp_path / "snippets", check=True)
    for height, width in _SIZES:
        picture = _picture(height, width)
        done = subprocess.run(
            [tmp_path / "snippets/main", str(width), str(height)],
            input=picture.tobytes(),
            capture_output=True,
            check=True,
        )
        pixels = np.frombuffer(done.stdout, np.uint8).reshape(32, 32, 3)
        nearly_equal(pixels, card.preprocessing.prepare(picture))


def nearly_equal(pixels: Any, expected: Any) -> None:
    """Pillow rounds its weights; one number in fifty may be a grey level off."""
    difference = np.abs(pixels.astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.02


_STUBS = Path(__file__).with_name("stubs")
# Of two classes: known with the first threshold, unknown with the second.
_SURE, _LEASTS = [0.25, 0.75], {0.7: "dog", 0.8: "unknown"}


def _doubting(least: float) -> Card:
    """Return a card that answers "unknown" below a probability."""
    confidence = Confidence(
        temperature=1.0, keep=0.95, min_logit=0.0, min_probability=least,
        error_before=0.1, error_after=0.05, images=100, data="photos", data_sha256="0",
    )  # fmt: skip
    return replace(made_card(), confidence=confidence)


@pytest.mark.parametrize("least", _LEASTS)
def test_the_server_answers_unknown_below_the_threshold(
    tmp_path: Path, least: float
) -> None:
    texts = written_snippets(tmp_path, _doubting(least), _ONNX, _TFLITE)
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    program = runpy.run_path(str(tmp_path / "snippets/server.py"))
    answer = program["name_classes"](np.array(_SURE, np.float32))
    assert answer[0] == (_LEASTS[least], 0.75)
    assert len(answer) == (2 if _LEASTS[least] == "dog" else 1)
    assert "95 % of the images of known classes" in texts["server.py"]
    # Of the card, never a number that somebody once wrote.
    assert not any(
        "nknown" in text and name != "index.html"
        for name, text in written_snippets(
            tmp_path / "sure", made_card(), _ONNX
        ).items()
    )


@pytest.mark.skipif(not shutil.which("node"), reason="runs JavaScript with node")
@pytest.mark.parametrize("least", _LEASTS)
def test_the_browser_answers_unknown_below_the_threshold(
    tmp_path: Path, least: float
) -> None:
    texts = written_snippets(tmp_path, _doubting(least), _ONNX)
    shutil.copy(tmp_path / "snippets/browser.js", tmp_path / "module.mjs")
    program = f"""
import {{ label, predict }} from "./module.mjs";
class Tensor {{}}
const run = async () => ({{ probabilities: {{ data: Float32Array.from({_SURE}) }} }});
console.log(label(await predict({{ Tensor }}, {{ run }}, [1, 2, 3]), ["cat", "dog"]));
"""
    (tmp_path / "program.mjs").write_text(program)
    done = subprocess.run(
        ["node", tmp_path / "program.mjs"], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == _LEASTS[least], done.stderr
    assert "import { FILE, MEMORY, label, prepare, predict }" in texts["index.html"]


@pytest.mark.skipif(not shutil.which("g++"), reason="compiles C++ with g++")
@pytest.mark.parametrize("least", _LEASTS)
@pytest.mark.parametrize(
    "runtime", [pytest.param("onnx", marks=pytest.mark.slow), "tflite"]
)
def test_c_plus_plus_answers_unknown_below_the_threshold(
    tmp_path: Path, runtime: str, least: float
) -> None:
    # The stubs of the runtimes answer with _SURE.
    written_snippets(tmp_path, _doubting(least), record_of(runtime, "uint8", 1))
    (tmp_path / "snippets/main.cc").write_text(f"""
#include <cstdio>
#include "native_{runtime}.cc"
int main() {{
  Classifier classifier("model");
  const uint8_t rgb[3] = {{1, 2, 3}};
  std::puts(Label(classifier.Predict(rgb, 1, 1), {{"cat", "dog"}}).c_str());
}}
""")
    warnings = ["-Wall", "-Wextra", "-Werror", f"-I{_STUBS}"]
    command = ["g++", "-std=c++17", *warnings, "-o", "main", "main.cc"]
    subprocess.run(command, cwd=tmp_path / "snippets", check=True)
    done = subprocess.run(
        ["./main"],
        cwd=tmp_path / "snippets",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == _LEASTS[least]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("kotlinc"), reason="compiles Kotlin with kotlinc")
def test_kotlin_answers_unknown_below_the_threshold(tmp_path: Path) -> None:
    sources = sorted((_STUBS / "kotlin").glob("*.kt"))
    calls = []
    for number, least in enumerate(_LEASTS):
        written_snippets(tmp_path / str(number), _doubting(least), _TFLITE)
        sources.append(tmp_path / f"{number}.kt")
        text = (tmp_path / f"{number}/snippets/Android.kt").read_text()
        assert ".setScoreThreshold(UNKNOWN_BELOW)" in text
        sources[-1].write_text(f"package variant{number}\n{text}")
        values = 'floatArrayOf(0.25f, 0.75f), listOf("cat", "dog")'
        calls.append(f"    println(variant{number}.label({values}))\n")
    (tmp_path / "main.kt").write_text(f"fun main() {{\n{''.join(calls)}}}\n")
    library = ["-cp", "/usr/share/java/kotlin-stdlib-jdk7.jar"]
    words = map(str, sources)
    command = ["kotlinc", *library, *words, "main.kt", "-d", "all.jar"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    command = ["kotlin", "-cp", f"all.jar:{library[1]}", "MainKt"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == list(_LEASTS.values())
    swift = (tmp_path / "1/snippets/iOS.swift").read_text()
    assert "let unknownBelow: Float = 0.8" in swift
    assert 'return probabilities[best] < unknownBelow ? "unknown"' in swift
