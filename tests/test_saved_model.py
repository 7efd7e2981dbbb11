"""The SavedModel: its two signatures, what they answer, and the same bytes again."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from conftest import randomise
from PIL import Image

import reszoo
from reszoo_export.formats import ExportOptions
from reszoo_export.metadata import CARD_FILE
from reszoo_export.saved_model import writer
from reszoo_export.saved_model.reader import EXTRA_FOLDER
from reszoo_export.saved_model.screening import WARMUP_FILE
from reszoo_export.saved_model.writer import orientation
from reszoo_export.serving import Serving, make_serving, source_answers


def made() -> Any:
    """A net whose answers differ clearly from picture to picture."""
    labels = ["a", "b", "c"]
    shape = (32, 32, 3)
    net = reszoo.build("resnet20", classes=labels, input_shape=shape)
    head = randomise(net, seed=2).get_layer("fc").kernel
    head.assign(head * 10)
    return net


@pytest.fixture(scope="module")
def model() -> Any:
    return made()


@pytest.fixture(scope="module")
def serving(model: Any) -> Serving:
    return make_serving(model)


@pytest.fixture(scope="module")
def folder(serving: Serving, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "saved_model"
    writer.write(serving, path)
    return path / "1"


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Any:
    return tf.saved_model.load(str(folder))


def photo(width: int, height: int) -> Any:
    """A picture with as much detail as a photo has: blobs, not noise."""
    coarse = np.random.default_rng(width).integers(0, 256, (7, 9, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Any, kind: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def ask(loaded: Any, files: list[bytes]) -> Any:
    signature = loaded.signatures["serving_bytes"]
    return signature(image_bytes=tf.constant(files))["probabilities"].numpy()


def test_pixels_are_answered_like_the_model(
    loaded: Any, model: Any, serving: Serving
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    answers = loaded.signatures["serving_default"](image=tf.constant(images))
    expected = source_answers(model, serving)(images)
    np.testing.assert_allclose(answers["probabilities"], expected, atol=1e-5)
    again = tf.nn.softmax(answers["logits"])
    np.testing.assert_allclose(again, expected, atol=1e-5)


def test_encoded_pictures_are_answered_like_by_the_predictor(
    loaded: Any, model: Any, tmp_path: Path
) -> None:
    pictures = {
        "wide.jpg": encoded(photo(190, 70), quality=92),
        "grey.jpg": encoded(photo(60, 60).convert("L")),
        "tiny.png": encoded(photo(20, 31), "PNG"),
        "alpha.png": encoded(photo(64, 90).convert("RGBA"), "PNG"),
        "turned.png": encoded(photo(130, 70), "PNG", exif=exif(8)),
        "turned.jpg": encoded(photo(130, 70), exif=exif(6)),
    }
    for name, content in pictures.items():
        (tmp_path / name).write_bytes(content)
    expected = reszoo.Predictor(model).predict([tmp_path / name for name in pictures])
    answers = ask(loaded, list(pictures.values()))
    np.testing.assert_allclose(answers, expected, atol=1e-3)
    lying = ask(loaded, [encoded(photo(130, 70))])
    assert np.abs(lying - expected[-1]).max() > 1e-2


@pytest.mark.parametrize("bad", [b"", b"text", encoded(photo(40, 40))[:300]])
def test_an_unreadable_image_fails_its_request_and_no_other(
    loaded: Any, bad: bytes
) -> None:
    good = encoded(photo(40, 40))
    expected = ask(loaded, [good])
    with pytest.raises(tf.errors.InvalidArgumentError):
        ask(loaded, [good, bad, good])
    np.testing.assert_array_equal(ask(loaded, [good]), expected)


def exif(held: int, order: str = "<") -> bytes:
    data = Image.Exif()
    data.endian = order
    data.update({0x010F: "a maker", 0x0112: held, 0x0128: 2})
    return data.tobytes()


@pytest.mark.parametrize("order", ["<", ">"])
def test_the_way_a_camera_was_held_is_read(order: str) -> None:
    image = photo(16, 8)
    for held in (*range(1, 9), 0, 9):
        content = encoded(image, exif=exif(held, order))
        upright = held if held in range(1, 9) else 1
        assert int(orientation(tf.constant(content))) == upright
        png = encoded(image, "PNG", exif=exif(held, order))
        assert int(orientation(tf.constant(png))) == upright
    assert int(orientation(tf.constant(encoded(image)))) == 1
    assert int(orientation(tf.constant(encoded(image, "PNG")))) == 1


def test_a_broken_exif_is_no_orientation() -> None:
    whole = encoded(photo(16, 8), exif=exif(6))
    start = whole.index(b"Exif\0\0") + 6
    for length in range(0, 30, 3):
        assert int(orientation(tf.constant(whole[: start + length]))) in (1, 6)
    far = whole[: start + 4] + b"\xff\xff\xff\xff" + whole[start + 8 :]
    assert int(orientation(tf.constant(far))) == 1
    png = encoded(photo(16, 8), "PNG", exif=exif(6))
    behind = png.index(b"IEND") - 4
    chunk = png[png.index(b"eXIf") - 4 : png.index(b"IDAT") - 4]
    late = png.replace(chunk, b"")[: behind - len(chunk)] + chunk + png[behind:]
    assert int(orientation(tf.constant(late))) == 6
    assert int(orientation(tf.constant(png[: png.index(b"eXIf") + 9]))) == 1


def test_the_options_reach_both_signatures(model: Any, tmp_path: Path) -> None:
    options = ExportOptions(batch=2, input_size=40, outputs="features", version=12)
    serving = make_serving(model, options)
    writer.write(serving, tmp_path / "model")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["12"]
    loaded = tf.saved_model.load(str(tmp_path / "model/12"))
    of_pixels, of_bytes = (
        loaded.signatures[name] for name in ("serving_default", "serving_bytes")
    )
    for signature in (of_pixels, of_bytes):
        (output,) = signature.structured_outputs.items()
        assert (output[0], output[1].shape) == ("features", (2, 64))
    assert of_bytes.structured_input_signature[1]["image_bytes"].shape == (2,)
    images = np.stack(
        [serving.card.preprocessing.prepare(photo(9 + i, 9)) for i in (0, 1)]
    )
    files = tf.constant([encoded(Image.fromarray(each), "PNG") for each in images])
    expected = of_pixels(image=tf.constant(images))["features"]
    assert images.shape == (2, 40, 40, 3)
    resized = of_bytes(image_bytes=files)["features"]
    assert resized.shape == expected.shape


def test_weights_are_folded_variables_and_nothing_of_training_is_left(
    loaded: Any, serving: Serving
) -> None:
    signature = loaded.signatures["serving_default"]
    stored = {each.name: each.shape for each in signature.variables}
    assert stored == {each.value.name: each.shape for each in serving.model.variables}
    graph = signature.graph.as_graph_def()
    inside = [node for each in graph.library.function for node in each.node_def]
    kinds = {node.op for node in (*graph.node, *inside)}
    assert "Conv2D" in kinds
    for part in ("BatchNorm", "Random", "Py", "Assign", "Rsqrt"):
        assert not {kind for kind in kinds if part in kind}


def test_the_graph_holds_no_copy_of_the_weights(folder: Path) -> None:
    weights = (folder / "variables" / "variables.data-00000-of-00001").stat().st_size
    assert (folder / "saved_model.pb").stat().st_size < weights / 2


def test_the_tflite_converter_takes_the_folder_without_further_arguments(
    folder: Path, model: Any, serving: Serving
) -> None:
    """https://github.com/tensorflow/tensorflow/issues/41255."""
    content = tf.lite.TFLiteConverter.from_saved_model(str(folder)).convert()
    interpreter = Interpreter(model_content=content)
    runner = interpreter.get_signature_runner("serving_default")
    image = np.random.default_rng(3).integers(0, 256, (1, 32, 32, 3), np.uint8)
    expected = source_answers(model, serving)(image)
    probabilities = runner(image=image)["probabilities"]
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)


def test_the_function_is_callable_as_serve(loaded: Any) -> None:
    """As what Keras' `Model.export` writes; `keras.layers.TFSMLayer` calls it too."""
    image = tf.fill((2, 32, 32, 3), tf.constant(90, tf.uint8))
    answers = loaded.signatures["serving_default"](image=image)
    np.testing.assert_array_equal(loaded.serve(image)["logits"], answers["logits"])


def test_card_labels_and_warm_up_lie_beside(folder: Path, serving: Serving) -> None:
    extra = folder / EXTRA_FOLDER
    assert reszoo.Card.from_text((extra / CARD_FILE).read_text()) == serving.card
    assert (extra / "labels.txt").read_text() == "a\nb\nc\n"
    records = list(tf.data.TFRecordDataset(str(extra / WARMUP_FILE)))
    assert len(records) == 4


@pytest.mark.slow
def test_it_loads_without_keras_and_without_a_word(folder: Path) -> None:
    script = (
        "import sys\n"
        "sys.modules['reszoo'] = sys.modules['reszoo_export'] = None\n"
        "import tensorflow as tf\n"
        "sys.modules['keras'] = None\n"
        "print('loading', file=sys.stderr, flush=True)\n"
        f"loaded = tf.saved_model.load({str(folder)!r})\n"
        "print('loaded', file=sys.stderr, flush=True)\n"
        "answers = loaded.signatures['serving_default'](\n"
        "    image=tf.zeros((3, 32, 32, 3), tf.uint8))\n"
        "print(answers['probabilities'].shape)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    said = done.stderr.split("loading\n")[1].split("loaded\n")[0]
    assert done.stdout.strip() == "(3, 3)"
    assert not [line for line in said.splitlines() if "cuInit" not in line]
