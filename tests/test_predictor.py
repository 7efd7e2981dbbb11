import io
import itertools
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import FORMATS as EXPORTED
from PIL import Image

import reszoo
from reszoo import files
from reszoo.data.sources import open_source
from reszoo.metrics import softmax
from reszoo.weights.names import to_tensors
from reszoo.zoo import set_card
from reszoo_export.formats import FORMATS, ExportOptions, find_formats
from reszoo_export.onnx import reader as onnx_reader
from reszoo_export.runtimes import open_runtime
from reszoo_export.serving import make_serving

_BUNDLED = Path(__file__).parents[1] / "saved_models/resnet20-cifar10"


@pytest.fixture(scope="module")
def digit(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One held-out scan: its file, its pixels and its class."""
    examples = open_source("digits").examples("test")
    images = examples.images
    assert images is not None
    path = tmp_path_factory.mktemp("digit") / "digit.png"
    Image.fromarray(images[7]).save(path)
    return path, images[7], str(examples.targets[7])


@pytest.fixture(params=["checkpoint", *(row.name for row in find_formats(EXPORTED))])
def predictor(request: pytest.FixtureRequest, run: Any, exported: Any) -> Any:
    if request.param == "checkpoint":
        return reszoo.Predictor(run.best)
    return reszoo.Predictor(exported.folder / FORMATS[request.param].file)


def test_the_same_image_in_any_form_gets_the_same_answer(
    predictor: Any, digit: Any
) -> None:
    path, pixels, label = digit
    forms = [path, str(path), pixels, Image.fromarray(pixels), pixels[None], [path]]
    answers = [predictor.predict(form) for form in forms]
    for answer in answers[1:]:
        np.testing.assert_array_equal(answer, answers[0])
    assert answers[0].shape == (1, 10)
    assert answers[0].dtype == np.float32
    assert answers[0].sum() == pytest.approx(1, abs=0.02)
    top = predictor.top(path, k=3)
    assert top[0] == (label, pytest.approx(answers[0].max()))
    assert [p for _, p in top] == sorted((p for _, p in top), reverse=True)


def test_several_images_are_answered_in_order(predictor: Any, digit: Any) -> None:
    _, pixels, _ = digit
    other = np.ascontiguousarray(pixels[::-1])
    both = predictor.predict([pixels, other])
    np.testing.assert_allclose(both[:1], predictor.predict(pixels), atol=1e-5)
    np.testing.assert_allclose(both[1:], predictor.predict(other), atol=1e-5)
    assert predictor.predict([]).shape == (0, 10)


def test_every_kind_of_object_that_holds_an_image_is_an_image(
    digit: Any, tmp_path: Path
) -> None:
    path, pixels, _ = digit
    content = path.read_bytes()
    used_up = io.BytesIO(content)
    used_up.read()
    pipe = io.BytesIO(content)
    pipe.seekable = lambda: False  # type: ignore[method-assign]
    predictor = reszoo.Predictor(_BUNDLED / "model.onnx")
    expected = predictor.predict(path)
    forms: list[Any] = [
        content, bytearray(content), memoryview(content), used_up, pipe,
        tf.constant(pixels), tf.constant(pixels[None]), tf.constant(content),
        tf.constant([content]), np.str_(path), np.array([str(path)]),
        np.array([path], object), iter([path]), (pixels,), {"only": path}.values(),
        tf.data.Dataset.from_tensors(pixels),
    ]  # fmt: skip
    for form in forms:
        np.testing.assert_array_equal(predictor.predict(form), expected)
    with path.open("rb") as file:
        assert predictor.top(file) == predictor.top(path)
    mixed = predictor.predict([content, io.BytesIO(content), path, pixels])
    np.testing.assert_array_equal(mixed, np.repeat(expected, 4, axis=0))


@pytest.mark.parametrize(
    ("image", "received"),
    [
        (None, "None as the image"),
        ([None], r"None as images\[0\]"),
        (["PATH", {}], r"dict as images\[1\]"),
        (3.5, "float as the image"),
        ({"image": 1}, "dict as the image"),
        (object(), "object as the image"),
        (np.array(None), "None as the image"),
        (keras.KerasTensor((8, 8, 3)), "KerasTensor as the image"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_image_is_refused_in_one_sentence(
    digit: Any, image: Any, received: str
) -> None:
    predictor = reszoo.Predictor(_BUNDLED / "model.onnx")
    if isinstance(image, list):
        image = [digit[0] if each == "PATH" else each for each in image]
    told = rf"^An image is a path, the bytes of an image file.* Received: {received}\.$"
    with pytest.raises(reszoo.UsageError, match=told):
        predictor.predict(image)


def test_files_that_hold_no_image_are_refused_by_what_is_wrong(
    digit: Any, tmp_path: Path
) -> None:
    predictor = reszoo.Predictor(_BUNDLED / "model.onnx")
    closed = io.BytesIO()
    closed.close()
    cases: list[tuple[Any, type[Exception], str]] = [
        (b"", reszoo.DataError, "the image is not a readable image"),
        ([digit[0], b"GIF89a"], reszoo.DataError, r"images\[1\] is not a readable im"),
        (io.BytesIO(b"text"), reszoo.DataError, "the image is not .* known image form"),
        (closed, reszoo.DataError, "the image cannot be read from its file .*closed"),
        (io.StringIO("text"), reszoo.UsageError, "binary mode. .* gives str"),
        (tmp_path / "none.png", reszoo.DataError, "There is no image .*none.png"),
    ]
    for image, error, told in cases:
        with pytest.raises(error, match=told):
            predictor.predict(image)


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_a_stream_answers_what_predict_answers(predictor: Any, prefetch: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (11, 40, 36, 3), np.uint8)
    streamed = predictor.stream(iter(images), batch_size=4, prefetch=prefetch)
    expected = predictor.predict(images, batch_size=4)
    np.testing.assert_array_equal(list(streamed), expected)
    np.testing.assert_allclose(predictor.predict(images), expected, atol=1e-5)
    assert list(predictor.stream([])) == []


def test_a_stream_takes_no_more_images_than_it_needs() -> None:
    predictor = reszoo.Predictor(_BUNDLED / "model.onnx")
    taken = itertools.count()

    def endless() -> Any:
        for number in taken:
            yield np.full((8, 8, 3), number % 256, np.uint8)

    for batch_size, prefetch in [(1, 0), (3, 0), (3, 2)]:
        before = next(taken)
        answers = predictor.stream(endless(), batch_size=batch_size, prefetch=prefetch)
        assert next(taken) == before + 1
        assert next(answers).shape == (10,)
        assert next(taken) == before + 2 + batch_size * (1 + prefetch)
        answers.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("prefetch", [0, 2])
def test_unreadable_files_in_a_stream_end_it_or_are_answers_of_their_own(
    digit: Any, prefetch: int
) -> None:
    predictor = reszoo.Predictor(_BUNDLED / "model.onnx")
    images = [digit[0], b"bad", digit[0], "none.png", digit[0]]
    answers: list[Any] = list(
        predictor.stream(images, batch_size=2, prefetch=prefetch, errors="return")
    )
    assert [isinstance(each, reszoo.DataError) for each in answers] == [
        False, True, False, True, False,
    ]  # fmt: skip
    assert "images[1] is not a readable image" in str(answers[1])
    expected = predictor.predict(digit[0])[0]
    np.testing.assert_allclose(
        np.stack(answers[::2]), np.tile(expected, (3, 1)), atol=1e-6
    )
    stopped = predictor.stream(images, batch_size=1, prefetch=prefetch)
    np.testing.assert_allclose(next(stopped), expected, atol=1e-6)
    with pytest.raises(reszoo.DataError, match=r"images\[1\] is not a readable"):
        next(stopped)


def test_streams_and_batches_are_refused_before_the_first_image() -> None:
    predictor = reszoo.Predictor(_BUNDLED / "model.onnx")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"batch_size": 0}, "batch_size must be at least 1. Received: batch_size=0"),
        ({"prefetch": -1}, "prefetch must be at least 0.*Received: prefetch=-1"),
        ({"prefetch": None}, "prefetch must be a whole number.*prefetch=None"),
        ({"errors": "skip"}, "Unknown errors 'skip'. Known: raise, return"),
    ]
    for options, told in wrong:
        with pytest.raises(reszoo.UsageError, match=told):
            predictor.stream([], **options)
    with pytest.raises(reszoo.UsageError, match="batch_size must be at least 1"):
        predictor.predict([], batch_size=-1)


def test_a_model_of_another_size_than_its_card_is_refused(tmp_path: Path) -> None:
    model = reszoo.build("resnet20", input_shape=(64, 96, 3), classes=3)
    card = reszoo.card(model)
    record = replace(card.preprocessing, eval_size=32)
    path = reszoo.save(model, tmp_path / "model.safetensors")
    set_card(model, replace(card, preprocessing=record))
    told = r"built for images of 64 x 96, .* 32 x 32 \(height x width\)"
    with pytest.raises(reszoo.UsageError, match=told):
        reszoo.Predictor(model)
    with pytest.raises(reszoo.UsageError, match=told):
        reszoo.evaluate(model, "digits")
    assert reszoo.Predictor(path).predict(np.zeros((9, 9, 3), np.uint8)).any()
    open_sides = reszoo.build("resnet20", input_shape=(None, None, 3), classes=3)
    assert reszoo.Predictor(open_sides).predict(np.zeros((9, 9, 3), np.uint8)).any()


def array(*shape: int, value: float = 1, dtype: Any = np.float32) -> Any:
    return np.full(shape, value, dtype)


@pytest.mark.parametrize(
    ("image", "received", "remedy"),
    [
        (array(8, 8, 3), r"float32 \(8, 8, 3\) in 1..1", r"pass \(255 \* array\)"),
        (array(8, 8, 3, value=-1.5), r"in -1.5..-1.5", "seems to be normalised"),
        (array(8, 8, 3, value=200), r"in 200..200", r"array.round\(\).astype"),
        (array(8, 8, 3, value=256, dtype=np.int32), r"int32.*in 256", "scale it"),
        (array(8, 8, 3, value=np.nan), r"float32.*in nan..nan", "normalises integers"),
        (array(8, 8, dtype=np.uint8), r"uint8 \(8, 8\)", "convert grey images to RGB"),
        (array(8, 8, 1, dtype=np.uint8), r"\(8, 8, 1\)", "convert grey images to RGB"),
        (array(8, 8, 4, dtype=np.uint8), r"\(8, 8, 4\)", "drop the transparency"),
        (array(3, 8, 8, dtype=np.uint8), r"\(3, 8, 8\)", r"transpose\(1, 2, 0\)"),
        (array(2, 3, 8, 8, dtype=np.uint8), r"\(3, 8, 8\)", r"transpose\(1, 2, 0\)"),
        (array(0, 8, 3, dtype=np.uint8), r"\(0, 8, 3\);", "has no pixels"),
        (array(2, dtype=np.uint8), r"uint8 \(2,\)", "is not an image"),
    ],
)
def test_other_arrays_are_refused_with_how_to_mend_them(
    run: Any, image: Any, received: str, remedy: str
) -> None:
    told = f"must be uint8 RGB in 0..255.*Received: .*{received}.*{remedy}"
    with pytest.raises(reszoo.UsageError, match=told):
        reszoo.Predictor(run.model).predict(image)


def test_a_picture_without_a_white_is_refused(run: Any) -> None:
    with pytest.raises(reszoo.UsageError, match=r"a known range. Received: mode 'F'"):
        reszoo.Predictor(run.model).predict(Image.new("F", (8, 8)))


def test_prepared_images_have_the_size_of_the_file(run: Any) -> None:
    predictor = reszoo.Predictor(run.model)
    with pytest.raises(
        reszoo.UsageError,
        match=r"shape \(n, 32, 32, 3\). Received: uint8 \(2, 8, 8, 3\)",
    ):
        predictor.predict_prepared(array(2, 8, 8, 3, dtype=np.uint8))
    with pytest.raises(reszoo.UsageError, match=r"Received: float32 \(2, 32, 32, 3\)"):
        predictor.predict_prepared(array(2, 32, 32, 3))


def test_files_of_features_give_what_the_classifier_sees(
    run: Any, digit: Any, tmp_path: Path
) -> None:
    made = make_serving(run.model, ExportOptions(outputs="features"))
    path = tmp_path / "model.onnx"
    FORMATS["onnx"].write(made, path, None)
    predictor = reszoo.Predictor(path)
    assert (predictor.output_kind, predictor.labels) == ("features", ())
    features = predictor.features([digit[1], digit[0]])
    assert features.shape == (2, 64)
    head = to_tensors(run.model)
    logits = features @ head["fc.weight"].T + head["fc.bias"]
    logits /= reszoo.card(run.model).temperature
    answers = reszoo.Predictor(run.model)
    np.testing.assert_allclose(
        softmax(logits), answers.predict([digit[1], digit[0]]), atol=1e-5
    )
    assert predictor.features([]).shape == (0, 64)
    asked: list[Any] = [
        lambda: predictor.predict(digit[0]),
        lambda: predictor.top(digit[0]),
        lambda: reszoo.evaluate(path, "digits"),
    ]
    for ask in asked:
        with pytest.raises(
            reszoo.UsageError, match=r"gives features, not prob.*Use features, or"
        ):
            ask()
    with pytest.raises(reszoo.UsageError, match=r"gives probabilities, not feat"):
        answers.features(digit[0])


def test_what_cannot_be_opened_is_refused(run: Any, tmp_path: Path) -> None:
    with pytest.raises(reszoo.CheckpointError, match="There is no file"):
        reszoo.Predictor(tmp_path / "model.onnx")
    (tmp_path / "model.pb").write_bytes(b"")
    with pytest.raises(
        reszoo.UsageError, match=r"Unknown kind of model file 'model.pb'"
    ):
        reszoo.Predictor(tmp_path / "model.pb")
    with pytest.raises(reszoo.UsageError, match="threads must be at least 1"):
        reszoo.Predictor(run.best, threads=0)
    with pytest.raises(reszoo.UsageError, match="k must be at least 1"):
        reszoo.Predictor(run.model).top(np.zeros((8, 8, 3), np.uint8), k=0)
    with pytest.raises(reszoo.UsageError, match=r"takes one image. Received: 2"):
        reszoo.Predictor(run.model).top(np.zeros((2, 8, 8, 3), np.uint8))
    for name in ("x.onnx", "x.tflite"):
        (tmp_path / name).write_bytes(b"nonsense")
        with pytest.raises(reszoo.CheckpointError, match=f"{name} is damaged, or"):
            reszoo.Predictor(tmp_path / name)
    with pytest.raises(reszoo.CheckpointError):
        reszoo.Predictor(tmp_path)


@pytest.mark.parametrize("file", ["model.tflite", "model-int8.tflite", "model.onnx"])
def test_files_for_devices_open_without_tensorflow(
    exported: Any, digit: Any, file: str
) -> None:
    script = (
        "import sys, reszoo\n"
        f"predictor = reszoo.Predictor({str(exported.folder / file)!r})\n"
        f"top = predictor.top({str(digit[0])!r})\n"
        "print(top[0][0], {'tensorflow', 'keras', 'tf2onnx'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{digit[2]} set()\n"
    # LiteRT writes this from C++, and a library does not redirect its host's streams.
    created = "INFO: Created TensorFlow Lite XNNPACK delegate for CPU."
    assert set(done.stderr.splitlines()) <= {created}


def test_a_model_that_was_never_told_names_answers_with_numbers() -> None:
    predictor = reszoo.Predictor(reszoo.build("resnet20", classes=3))
    assert predictor.labels == ("0", "1", "2")


def test_a_folder_may_have_a_dot_in_its_name(
    exported: Any, digit: Any, tmp_path: Path
) -> None:
    for name in ("sv.v2", "sv.onnx", "sv.pt"):
        shutil.copytree(exported.folder / "saved_model", tmp_path / name)
        assert reszoo.Predictor(tmp_path / name).top(digit[0])[0][0] == digit[2]


def test_a_whole_export_tells_what_is_in_it(exported: Any) -> None:
    with pytest.raises(
        reszoo.UsageError,
        match=r"export folder.*: saved_model, model\.tflite, .*model\.onnx",
    ):
        reszoo.Predictor(exported.folder)


def test_many_images_are_asked_about_32_at_a_time(run: Any, digit: Any) -> None:
    predictor: Any = reszoo.Predictor(run.model)
    size = predictor.card.preprocessing.eval_size
    images = np.random.default_rng(0).integers(0, 256, (70, size, size, 3), np.uint8)
    whole = predictor._runtime.run(images)
    asked: list[int] = []
    answer = predictor._runtime.run

    def counting(some: Any) -> Any:
        asked.append(len(some))
        return answer(some)

    predictor._runtime.run = counting
    np.testing.assert_allclose(predictor.predict_prepared(images), whole, atol=1e-5)
    assert asked == [32, 32, 6]


def test_predicting_reads_an_onnx_file_once(
    exported: Any, digit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Any] = []
    read = files.read_regular

    def counted(path: Path, most: int) -> bytes:
        reads.append(path)
        return read(path, most)

    monkeypatch.setattr(onnx_reader, "read_regular", counted)
    runtime = open_runtime(exported.folder / "model.onnx")
    assert not reads
    assert runtime.operators["Conv"] == 7
    assert runtime.operators["Softmax"] == len(reads) == 1


@pytest.mark.parametrize("file", ["model.tflite", "model.onnx"])
def test_files_for_devices_keep_to_the_threads_given(
    exported: Any, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime
    from ai_edge_litert import interpreter

    given: list[int] = []
    session, litert = onnxruntime.InferenceSession, interpreter.Interpreter

    def onnx_session(path: Any, options: Any, **others: Any) -> Any:
        given.append(options.intra_op_num_threads)
        return session(path, options, **others)

    def litert_interpreter(path: str, num_threads: int) -> Any:
        given.append(num_threads)
        return litert(path, num_threads=num_threads)

    monkeypatch.setattr(onnxruntime, "InferenceSession", onnx_session)
    monkeypatch.setattr(interpreter, "Interpreter", litert_interpreter)
    for threads in (1, 3):
        runtime = open_runtime(exported.folder / file, threads)
        assert runtime.threads == threads
    assert given == [1, 3]


@pytest.mark.slow
@pytest.mark.parametrize("file", ["checkpoint", "saved_model"])
def test_tensorflow_keeps_to_the_threads_given(
    run: Any, exported: Any, file: str
) -> None:
    path = run.best if file == "checkpoint" else exported.folder / file
    script = (
        "import os, reszoo, tensorflow as tf\n"
        f"runtime = reszoo.Predictor({str(path)!r}, threads=1)._runtime\n"
        "print(runtime.threads, tf.config.threading.get_intra_op_parallelism_threads())"
        "\ntry:\n"
        f"    reszoo.Predictor({str(path)!r}, threads=7)\n"
        "except reszoo.UsageError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    first, second = done.stdout.splitlines()
    assert first == "1 1"
    assert "only before its first operation. Received: threads=7" in second
