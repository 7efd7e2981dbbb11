"""Models, checkpoints and exports that several tests look at."""

import fcntl
import gc
import importlib
import json
import os
import pickle
import random
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import reszoo
from reszoo.report import page
from reszoo.weights import download
from reszoo_export import benchmark
from reszoo_export.isolation import run_in_subprocess
from reszoo_export.manifest import read_manifest
from reszoo_export.verification import verify

# Those that people take most; the others have tests of their own, for time.
FORMATS = "saved_model,tflite,tflite-fp16,tflite-int8,onnx,onnx-int8"
_TIME = benchmark._time_in_subprocess
_FIGURE = page._figure


def pytest_collection_finish() -> None:
    """Keep the modules that are loaded now out of each garbage collection."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Draw the same random numbers whichever tests ran before, also in fixtures.

    Keras takes the seed of an initialiser that names none from Python's generator.
    """
    random.seed(0)
    if "keras" in sys.modules:
        with pytest.MonkeyPatch.context() as patch:
            # Which nothing here draws from, and which empties TensorFlow's caches.
            patch.setattr("tensorflow.random.set_seed", lambda _: None)
            sys.modules["keras"].utils.set_random_seed(0)


def within(seconds: float, function: Any, *arguments: Any) -> Any:
    """Return the answer or the error of a call in a thread, which may hang."""
    answers: list[Any] = []

    def call() -> None:
        try:
            answers.append(function(*arguments))
        except (OSError, reszoo.ReszooError) as error:
            answers.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    assert answers, "it hangs"
    return answers[0]


def randomise(model: Any, seed: int = 0) -> Any:
    """Give a model weights and batch-norm statistics that are nowhere trivial.

    The last scale of each block is small, as in trained nets; otherwise activations
    grow with depth until every probability is 0 or 1.
    """
    from reszoo.weights.names import assign_tensors, to_tensors
    from reszoo.zoo import attached_card, set_card

    draw = np.random.default_rng(seed)
    tensors = to_tensors(model)
    for name, tensor in tensors.items():
        if name.endswith("running_var") or (tensor.ndim == 1 and "weight" in name):
            tensors[name] = draw.uniform(0.5, 1.5, tensor.shape).astype(np.float32)
            if name.endswith(("bn2.weight", "bn3.weight")):
                tensors[name] *= 0.3
        elif tensor.ndim == 1:
            tensors[name] = draw.normal(0, 0.2, tensor.shape).astype(np.float32)
        elif tensor.ndim == 4:
            # As the builder draws kernels (fan-out), but by this seed, not Keras' own.
            spread = np.sqrt(2 / (tensor.size / tensor.shape[1]))
            tensors[name] = draw.normal(0, spread, tensor.shape).astype(np.float32)
        elif tensor.ndim == 2:
            spread = np.sqrt(1 / (3 * tensor.shape[1]))
            tensors[name] = draw.normal(0, spread, tensor.shape).astype(np.float32)
    assign_tensors(model, tensors, "random numbers")
    if (found := attached_card(model)) is not None:
        # The card is of these weights, as if the model had been built with them.
        set_card(model, found.card)
    return model


def descend(model: Any, images: Any, targets: Any, rate: float = 1.0) -> None:
    """Take one step of plain gradient descent on the mean cross-entropy."""
    import tensorflow as tf

    weights = [weight.value for weight in model.trainable_weights]
    with tf.GradientTape() as tape:
        logits = model(images, training=True)
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
        loss = tf.reduce_mean(loss)
    for weight, slope in zip(weights, tape.gradient(loss, weights), strict=True):
        weight.assign_sub(rate * slope)


def photos(root: Path, names: tuple[str, ...] = ("cat", "dog"), each: int = 6) -> Path:
    """Make a folder of small PNG files whose classes differ in colour."""
    draw = np.random.default_rng(0)
    for index, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for number in range(each):
            pixels = draw.integers(0, 120, (40 + number, 52, 3), np.uint8)
            pixels[..., index % 3] += 130
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of its own for downloads, which retry without waiting."""
    monkeypatch.setenv("RESZOO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "WAITS", (0.0, 0.0, 0.0))
    return tmp_path / "home"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return photos(tmp_path / "photos")


def call_here(function: str, arguments: Any, arrays: Any, **_: Any) -> Any:
    """Do what `run_in_subprocess` does, in this process."""
    module, name = function.split(":")
    called = getattr(importlib.import_module(module), name)
    result = called(arrays, **json.loads(json.dumps(arguments)))
    return json.loads(json.dumps(result))


@pytest.fixture(scope="session", autouse=True)
def one_process() -> Iterator[None]:
    """Verify exported files in this process, and make up their latency.

    New processes for each file take most of the time of an export, those that load
    TensorFlow 5 s each. Tests about them ask for `subprocesses`.
    """
    timing = benchmark.Timing(
        runtime="none", threads=1, load_ms=1, first_ms=1, base_mb=None,
        peak_mb=[None], times_ms=[[1.0]],
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "run_in_subprocess", call_here)
        patch.setattr(benchmark, "_time_in_subprocess", lambda _, **__: timing)
        yield


def draw_only(
    draw: Any, size: tuple[float, float], style: Any, **options: Any
) -> bytes:
    """Draw a figure of a report without rendering it."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(style):
        draw(Figure(figsize=size))
    return b"<svg></svg>" if options["format"] == "svg" else b""


@pytest.fixture(scope="session", autouse=True)
def no_rendering() -> Iterator[None]:
    """Draw the figures of reports without rendering them, a fifth of a short run.

    Tests of the figures ask for `figures`.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "_figure", draw_only)
        yield


@contextmanager
def rendering() -> Iterator[None]:
    """Render figures as outside these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "_figure", _FIGURE)
        yield


@pytest.fixture(scope="module")
def figures() -> Iterator[None]:
    with rendering():
        yield


@pytest.fixture
def subprocesses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verify and time files in new processes, as exports do outside these tests."""
    monkeypatch.setattr(verify, "run_in_subprocess", run_in_subprocess)
    monkeypatch.setattr(benchmark, "_time_in_subprocess", _TIME)


@contextmanager
def only_one(factory: pytest.TempPathFactory, name: str) -> Iterator[Path]:
    """Yield a folder of the whole session to one worker of pytest-xdist at a time."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (root / name).mkdir(exist_ok=True)
        yield root / name


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A ResNet-8 after four epochs on the digits, with its run folder.

    Its files are all workers': no test may change them.
    """
    with only_one(tmp_path_factory, "run") as folder:
        result = folder / "result.pickle"
        if result.exists():
            kept = pickle.loads(result.read_bytes())
            return replace(kept, model=reszoo.load(kept.best))
        with rendering():
            made = reszoo.train(
                "resnet8", "digits", epochs=4, batch_size=32, learning_rate=0.1,
                output=folder / "digits",
            )  # fmt: skip
        result.write_bytes(pickle.dumps(replace(made, model=None)))
        return made


@pytest.fixture(scope="session")
def exported(run: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """That ResNet-8 in some formats; no test may change its files either."""
    with only_one(tmp_path_factory, "export") as folder:
        output = folder / "digits"
        if output.exists():
            return read_manifest(output)
        return reszoo.export(run.best, output, formats=FORMATS, calibration="digits")
