"""Public objects between processes, and as text where the encoding is small."""

import copy
import inspect
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import photos
from made_card import made_card
from PIL import Image
from scripts import ROOT

import reszoo
from reszoo.specs import SPECS
from reszoo.studies.results import RunResult, StudyResult, Variant
from reszoo.training.recipes import RECIPES
from reszoo.weights.names import LoadReport
from reszoo_export.benchmark import Measurement
from reszoo_export.manifest import Latency, read_manifest

_EXPORT = ROOT / "saved_models/resnet20-cifar10"
_ERRORS = [
    value
    for value in (getattr(reszoo, name) for name in reszoo.__all__)
    if isinstance(value, type) and issubclass(value, reszoo.ReszooError)
]


def _errors() -> list[Any]:
    unknown = reszoo.UnknownNameError("model", "resnet21", ["resnet20", "resnet32"])
    others = [error for error in _ERRORS if error is not reszoo.UnknownNameError]
    return [unknown, *(error("Expected this. Received: “café”.") for error in others)]


def _study(folder: Path) -> StudyResult:
    values: dict[str, Any] = dict.fromkeys(inspect.signature(RunResult).parameters, ())
    values |= {"variant": Variant(layers=20, shortcut="identity"), "seed": 0}
    runs = (RunResult(**values),)
    return StudyResult(data="digits", conditions={"size": 8}, runs=runs, folder=folder)


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """One of every public class that is no error."""
    folder = tmp_path_factory.mktemp("objects")
    images = np.zeros((6, 32, 32, 3), np.uint8)
    card = made_card(("café", "dog"))
    model = reszoo.build("resnet20", classes=["café", "dog"])
    latency = Latency.of([1.0], batch=1, threads=1)
    photographs = photos(folder / "photos")
    return [
        card,
        card.preprocessing,
        reszoo.Confidence(
            **dict.fromkeys(("temperature", "keep", "min_logit"), 1.0),
            **dict.fromkeys(("min_probability", "error_before", "error_after"), 0.5),
            images=50,
            data="café",
            data_sha256="0",
        ),
        *SPECS.values(),
        *RECIPES.values(),
        read_manifest(_EXPORT),
        reszoo.inspect(_EXPORT / "model.onnx"),
        reszoo.evaluate(model, (images, ["café", "dog"] * 3)),
        reszoo.load_report(reszoo.build("resnet20", weights="cifar10")),
        Measurement(
            file="model.onnx",
            runtime="onnxruntime 1",
            bytes=7,
            latency=latency,
            medians_ms=(1.0,),
        ),
        reszoo.scan(photographs),
        reszoo.resize_images(photographs, folder / "resized", side=16),
        reszoo.Explanation(
            label="café",
            probability=0.5,
            map=np.zeros((4, 4), np.float32),
            overlay=Image.new("RGB", (4, 4)),
        ),
        reszoo.features(model, (images, ["café", "dog"] * 3)),
        reszoo.PushResult(
            repo="me/café", files={"a.txt": 1}, model_card="café", timm=True
        ),
        reszoo.CheckedWeights(
            model="resnet18", weights="x", published_top1=70.0, published_top5=None
        ),
        reszoo.PredictResult(output=folder / "a.csv", images=3, unreadable=1),
        _study(folder),
        reszoo.Predictor(_EXPORT / "model.onnx"),
    ]


def test_every_public_class_is_among_the_objects(objects: list[Any]) -> None:
    found = {type(each) for each in (*objects, *_errors())}
    # A run holds a model; it is pickled in a test of its own.
    found |= {reszoo.TrainResult, LoadReport}
    public = [getattr(reszoo, name) for name in reszoo.__all__]
    assert not {each for each in public if isinstance(each, type)} - found


def test_objects_are_the_same_after_pickling_and_copying(objects: list[Any]) -> None:
    for each in objects:
        for again in (pickle.loads(pickle.dumps(each)), copy.deepcopy(each)):
            assert type(again) is type(each)
            if not isinstance(each, reszoo.Predictor):
                assert again == each or repr(again) == repr(each)


def test_errors_are_the_same_after_pickling() -> None:
    for each in _errors():
        again = pickle.loads(pickle.dumps(each))
        assert type(again) is type(each)
        assert str(again) == str(each)
        assert vars(again) == vars(each)


def test_objects_add_no_characters_that_cp1252_lacks(objects: list[Any]) -> None:
    for each in (*objects, *_errors()):
        for text in (str(each), repr(each), f"{each}"):
            text.encode("cp1252")


_WORKERS = """
import multiprocessing, pickle, sys
import reszoo
def fail(kind):
    if kind == "unknown":
        reszoo.build("resnet21")
    raise reszoo.DataError(kind)
if __name__ == "__main__":
    method, path = sys.argv[1:]
    objects = pickle.load(open(path, "rb"))
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(str, objects) == list(map(str, objects))
        for kind in ("unknown", "broken"):
            try:
                pool.apply(fail, [kind])
            except reszoo.ReszooError as error:
                print(type(error).__name__, error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_workers_take_objects_and_raise_our_errors(
    objects: list[Any], tmp_path: Path, method: str
) -> None:
    program, file = tmp_path / "program.py", tmp_path / "objects.pickle"
    program.write_text(_WORKERS)
    plain = [each for each in objects if not isinstance(each, reszoo.Predictor)]
    file.write_bytes(pickle.dumps(plain))
    done = subprocess.run(
        [sys.executable, program, method, file],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    lines = done.stdout.splitlines()
    assert lines[0].startswith("UnknownNameError Unknown model 'resnet21'. Did you me")
    assert lines[1:] == ["DataError broken"], done.stderr


def test_a_run_is_the_same_after_pickling(run: Any) -> None:
    again = pickle.loads(pickle.dumps(run))
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    np.testing.assert_array_equal(
        reszoo.Predictor(again.best).predict(images),
        reszoo.Predictor(run.best).predict(images),
    )
    assert (again.recipe, again.history) == (run.recipe, run.history)
    np.testing.assert_array_equal(
        again.model.get_weights()[0], run.model.get_weights()[0]
    )
