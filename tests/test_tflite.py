"""TFLite files in floating point: what they answer, and what is inside."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lively import IMAGES, lively, varied_answers_of

from reszoo.weights.names import to_tensors
from reszoo_export.formats import FORMATS, ExportOptions
from reszoo_export.serving import Serving, make_serving
from reszoo_export.tflite import writer

Interpreter = Any
KINDS = {"tflite": 1e-5, "tflite-fp16": 2e-3, "tflite-dynamic": 0.1}


@pytest.fixture(scope="module")
def model() -> Any:
    return lively()


def opened(path: Path, batch: int | None = None) -> Interpreter:
    """Open a file without the delegate, which hides the operators that it takes."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    made = Interpreter(str(path), experimental_op_resolver_type=plain)
    if batch:
        made.resize_tensor_input(
            made.get_input_details()[0]["index"], (batch, 32, 32, 3)
        )
    made.allocate_tensors()
    return made


@pytest.fixture(scope="module")
def expected(model: Any) -> Any:
    return varied_answers_of(model)


def asked(path: Path, images: Any, resize: bool = False) -> dict[str, Any]:
    """Ask a file about images, all of them in one call where that fits."""
    made = opened(path, len(images) if resize else None)
    runner = made.get_signature_runner("serving_default")
    size = made.get_input_details()[0]["shape"][0]
    pixels = images.astype(np.float32)
    answers: list[dict[str, Any]] = [
        runner(image=pixels[at : at + size]) for at in range(0, len(pixels), size)
    ]
    return {
        name: np.concatenate([each[name] for each in answers]) for name in answers[0]
    }


def written(model: Any, path: Path, name: str = "tflite", **options: Any) -> Path:
    FORMATS[name].write(make_serving(model, ExportOptions(**options)), path, None)
    return path


@pytest.fixture(scope="module")
def files(model: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tflite")
    return {name: written(model, folder / FORMATS[name].file, name) for name in KINDS}


@pytest.mark.parametrize("name", KINDS)
def test_answers_are_the_models(
    files: dict[str, Path], expected: Any, name: str
) -> None:
    answers = asked(files[name], IMAGES)
    assert list(answers) == ["probabilities"]
    difference = np.abs(answers["probabilities"] - expected).max()
    assert difference < KINDS[name]
    # Nor is it the float32 file under another name.
    assert (difference > 1e-5) == (name != "tflite")


@pytest.mark.parametrize("name", KINDS)
def test_one_float32_image_goes_in_and_no_shape_is_open(
    files: dict[str, Path], name: str
) -> None:
    made = opened(files[name])
    (image,), (answer,) = made.get_input_details(), made.get_output_details()
    assert (image["dtype"], answer["dtype"]) == (np.float32, np.float32)
    assert list(image["shape_signature"]) == [1, 32, 32, 3]
    assert list(answer["shape_signature"]) == [1, 5]
    for tensor in made.get_tensor_details():
        assert -1 not in tensor["shape_signature"], tensor["name"]


def test_only_few_builtin_operators_are_left(files: dict[str, Path]) -> None:
    """Two for the normalisation, two for each shortcut of option A, one to pool."""
    counts = {
        name: Counter(each["op_name"] for each in opened(path)._get_ops_details())
        for name, path in files.items()
    }
    assert counts["tflite"] == {
        "MUL": 1, "ADD": 1 + 3, "CONV_2D": 7, "PAD": 2 + 2, "STRIDED_SLICE": 2,
        "MEAN": 1, "FULLY_CONNECTED": 1, "SOFTMAX": 1,
    }  # fmt: skip
    assert counts["tflite-dynamic"] == counts["tflite"]
    del counts["tflite-fp16"]["DEQUANTIZE"]
    assert counts["tflite-fp16"] == counts["tflite"]
    for name, count in counts.items():
        assert set(count) <= FORMATS[name].operators


def test_only_kernels_are_float16_and_runtimes_can_map_them(
    files: dict[str, Path],
) -> None:
    content = files["tflite-fp16"].read_bytes()
    made = opened(files["tflite-fp16"])
    halves = [t for t in made.get_tensor_details() if t["dtype"] == np.float16]
    assert len(halves) == 7 + 1
    whole = opened(files["tflite"])
    exact = {
        each["name"]: whole.get_tensor(each["index"])
        for each in whole.get_tensor_details()
        if each["dtype"] == np.float32 and each["name"]
    }
    for tensor in halves:
        weights = made.get_tensor(tensor["index"])
        assert content.index(weights.tobytes()) % 16 == 0
        rest = weights.astype(np.float64) - exact[tensor["name"]]
        assert 0 < np.abs(rest).max() < 2e-3 * np.abs(weights).max()
        # Sums over a filter's places, or over all inputs of a class, are kept.
        axes = (1, 2) if rest.ndim == 4 else (1,)
        nearest = exact[tensor["name"]].astype(np.float16) - exact[tensor["name"]]
        lost = np.abs(rest.sum(axis=axes)).mean()
        assert lost < 0.25 * np.abs(nearest.sum(axis=axes)).mean()


def test_files_are_as_small_as_their_precision_promises(
    files: dict[str, Path],
) -> None:
    whole, half, quarter = (files[name].stat().st_size for name in KINDS)
    assert half < 0.56 * whole
    assert quarter < 0.32 * whole


@pytest.mark.parametrize("name", ["tflite", "tflite-dynamic"])
def test_an_open_batch_takes_any_number_of_images(
    model: Any, expected: Any, tmp_path: Path, name: str
) -> None:
    path = written(model, tmp_path / "x.tflite", name, batch="dynamic")
    assert opened(path).get_input_details()[0]["shape_signature"][0] == -1
    alone = [asked(path, image[None])["probabilities"] for image in IMAGES]
    for count in (1, 2, 7):
        together = asked(path, IMAGES[:count], resize=True)["probabilities"]
        np.testing.assert_allclose(together, np.concatenate(alone[:count]), atol=1e-6)
    np.testing.assert_allclose(np.concatenate(alone), expected, atol=KINDS[name])


def test_a_fixed_batch_is_in_every_shape(
    model: Any, expected: Any, tmp_path: Path
) -> None:
    path = written(model, tmp_path / "x.tflite", batch=7)
    made = opened(path)
    assert list(made.get_output_details()[0]["shape_signature"]) == [7, 5]
    assert not [t for t in made.get_tensor_details() if -1 in t["shape_signature"]]
    answers = asked(path, IMAGES)["probabilities"]
    np.testing.assert_allclose(answers, expected, atol=1e-5)


def test_other_outputs_are_what_the_layers_of_the_model_give(
    model: Any, expected: Any, tmp_path: Path
) -> None:
    logits = asked(written(model, tmp_path / "a", outputs="logits"), IMAGES)
    assert list(logits) == ["logits"]
    odds = np.exp(logits["logits"])
    shares = odds / odds.sum(-1, keepdims=True)
    np.testing.assert_allclose(shares, expected, atol=1e-5)
    pooled = asked(written(model, tmp_path / "b", outputs="features"), IMAGES)
    assert list(pooled) == ["features"]
    tensors = to_tensors(model)
    again = pooled["features"] @ tensors["fc.weight"].T + tensors["fc.bias"]
    np.testing.assert_allclose(again, logits["logits"], atol=1e-4)


def test_a_conversion_can_be_told_what_else_to_do(model: Any) -> None:
    serving: Serving = make_serving(model)
    told = writer.convert(serving, exclude_conversion_metadata=False)
    assert b"CONVERSION_METADATA" in told
    assert b"CONVERSION_METADATA" not in writer.convert(serving)
