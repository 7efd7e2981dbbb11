"""Predictors that open their file in a subprocess of its own."""

import os
import pickle
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile_models import BUNDLED, CHANGES, hostile, initialised
from PIL import Image

import reszoo
import reszoo.cli
from reszoo_export import isolation
from reszoo_export.isolation import SubprocessError, open_isolated
from reszoo_export.runtimes import open_runtime

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 40, 36, 3), np.uint8)


@pytest.mark.parametrize(
    "name",
    [
        "model.onnx",
        "model.tflite",
        pytest.param("saved_model", marks=pytest.mark.slow),
    ],
)
def test_answers_are_those_of_this_process(name: str) -> None:
    with reszoo.Predictor(BUNDLED / name, isolated=True) as apart:
        here = reszoo.Predictor(BUNDLED / name)
        np.testing.assert_allclose(apart.predict(IMAGES), here.predict(IMAGES), 0, 1e-6)
        assert (apart.labels, apart.card) == (here.labels, here.card)


def test_the_runtime_describes_itself() -> None:
    path = BUNDLED / "model.onnx"
    apart, here = open_isolated(path, 1), open_runtime(path, 1)
    for name in ("name", "threads", "inputs", "outputs", "operators", "output"):
        assert getattr(apart, name) == getattr(here, name)


def worker_of(predictor: Any) -> Any:
    with predictor._runtime.sessions.borrow() as worker:
        return worker


def test_a_crash_is_an_error_and_the_next_call_opens_the_file_again() -> None:
    predictor = reszoo.Predictor(BUNDLED / "model.onnx", isolated=True)
    expected = predictor.predict(IMAGES)
    os.kill(worker_of(predictor)._process.pid, signal.SIGSEGV)
    with pytest.raises(SubprocessError, match="crashed"):
        predictor.predict(IMAGES)
    np.testing.assert_array_equal(predictor.predict(IMAGES), expected)


def test_what_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = reszoo.Predictor(BUNDLED / "model.onnx", isolated=True)
    worker = worker_of(predictor)
    worker._seconds = 0.5
    os.kill(worker._process.pid, signal.SIGSTOP)
    with pytest.raises(SubprocessError, match=r"did not finish within 0\.5 seconds"):
        predictor.predict(IMAGES)


def test_the_process_ends_with_the_predictor() -> None:
    predictor = reszoo.Predictor(BUNDLED / "model.onnx", isolated=True)
    process = worker_of(predictor)._process
    predictor.close()
    assert process.wait(60) is not None
    with pytest.raises(reszoo.UsageError, match="closed"):
        predictor.predict(IMAGES)


def test_threads_get_their_own_answers() -> None:
    predictor = reszoo.Predictor(BUNDLED / "model.tflite", isolated=True)
    expected = predictor.predict(IMAGES)
    wrong: list[int] = []

    def ask(index: int) -> None:
        for _ in range(5):
            if not np.array_equal(predictor.predict(IMAGES[index])[0], expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_options_are_pickled() -> None:
    predictor = reszoo.Predictor(BUNDLED / "model.onnx", isolated=True)
    again = pickle.loads(pickle.dumps(predictor))
    assert worker_of(again)._process.pid != worker_of(predictor)._process.pid


@pytest.mark.slow
def test_errors_are_those_of_this_process(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no such file")
    with pytest.raises(reszoo.CheckpointError, match="is damaged, or of another kind"):
        reszoo.Predictor(tmp_path / "model.onnx", isolated=True)
    with pytest.raises(reszoo.UsageError, match="Only a file can be isolated"):
        reszoo.Predictor(reszoo.build("resnet20", classes=2), isolated=True)
    canary = tmp_path / "canary"
    change = CHANGES["WriteFile in __inference_serve"]
    path = hostile(tmp_path / "hostile", change, canary)
    with pytest.raises(reszoo.CheckpointError, match="could do more than compute"):
        reszoo.Predictor(path, isolated=True)
    assert not canary.exists()
    trusted = initialised(tmp_path / "trusted", canary)
    reszoo.Predictor(trusted, isolated=True, trust_saved_model=True)
    assert canary.exists()


def greedy(folder: Path) -> Path:
    """Make a file that allocates 60 GB when it is run."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(BUNDLED / "model.onnx")
    size = numpy_helper.from_array(np.array([15_000_000_000], np.int64), "size")
    model.graph.initializer.append(size)
    nodes = [
        helper.make_node("ConstantOfShape", ["size"], ["ones"]),
        helper.make_node("ReduceSum", ["ones"], ["sum"], keepdims=0),
        helper.make_node("Add", ["softly", "sum"], ["probabilities"]),
    ]
    for node in model.graph.node:
        node.output[:] = [
            "softly" if name == "probabilities" else name for name in node.output
        ]
    model.graph.node.extend(nodes)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.usefixtures("subprocesses")
def test_memory_is_limited(tmp_path: Path) -> None:
    model = greedy(tmp_path)
    with pytest.raises(reszoo.ReszooError):
        reszoo.Predictor(model, isolated=True).predict(IMAGES)
    with pytest.raises(reszoo.ReszooError):
        reszoo.benchmark(model, batch_sizes=(1,), rounds=1, seconds=0.1, isolated=True)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were opened in a subprocess."""
    paths: list[Path] = []

    def spy(path: Path, *arguments: Any, **options: Any) -> Any:
        paths.append(path)
        return open_isolated(path, *arguments, **options)

    monkeypatch.setattr("reszoo_export.predictor.open_isolated", spy)
    return paths


def test_files_of_images_are_classified_apart(
    tmp_path: Path, opened: list[Path]
) -> None:
    for place, image in enumerate(IMAGES):
        Image.fromarray(image).save(tmp_path / f"{place}.png")
    model = BUNDLED / "model-int8.tflite"
    for name, isolated in (("here.csv", False), ("apart.csv", True)):
        output = tmp_path / name
        reszoo.predict_files(model, tmp_path / "*.png", output, isolated=isolated)
    assert (tmp_path / "here.csv").read_text() == (tmp_path / "apart.csv").read_text()
    assert opened == [model]


def test_commands_open_files_apart(
    tmp_path: Path,
    opened: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("reszoo.cli.enable_quiet_cli", lambda: None)
    model, image = BUNDLED / "model-int8.tflite", tmp_path / "0.png"
    labels = reszoo.Predictor(model).labels
    for label in labels:
        (tmp_path / "data" / label).mkdir(parents=True)
        for place, pixels in enumerate(IMAGES[:2]):
            Image.fromarray(pixels).save(tmp_path / "data" / label / f"{place}.png")
    Image.fromarray(IMAGES[0]).save(image)
    found = []
    for options in ([], ["--isolated"]):
        data = str(tmp_path / "data")
        for command in (
            ["predict", str(model), str(image)],
            ["evaluate", str(model), data, "--split", "all"],
        ):
            words = ["reszoo", *command, "--json", *options]
            monkeypatch.setattr("sys.argv", words)
            with pytest.raises(SystemExit) as end:
                reszoo.cli.main()
            assert not end.value.code
            found.append(capsys.readouterr().out)
    assert found[:2] == found[2:]
    assert opened == [model] * 2


def test_replies_are_checked() -> None:
    with pytest.raises(SubprocessError, match="no array"):
        isolation._array({"dtype": "|O", "shape": [1]}, b"12345678")
    with pytest.raises(SubprocessError, match="no array"):
        isolation._array({"dtype": "<f4", "shape": [3]}, b"12345678")
