"""What needs TensorFlow says so where Keras runs on another backend."""

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import reszoo
from reszoo.specs import SPECS

X, Y = np.zeros((4, 32, 32, 3), np.float32), np.array([0, 1, 0, 1])
CALLS: dict[str, Any] = {
    "compile": lambda m, _: reszoo.compile(m, steps_per_epoch=2, epochs=1),
    "evaluate": lambda m, _: reszoo.evaluate(m, (X.astype(np.uint8), Y)),
    "train": lambda m, _: reszoo.train(m, (X.astype(np.uint8), Y), epochs=1),
    "export": lambda m, folder: reszoo.export(m, folder / "export"),
    "predict": lambda m, _: reszoo.Predictor(m).predict(X[0].astype(np.uint8)),
    "study": lambda _, folder: reszoo.study(output=folder / "study"),
    "gradient_norms": lambda m, _: reszoo.gradient_norms(m, X, Y),
    "calibrate": lambda m, _: reszoo.calibrate(m, (X.astype(np.uint8), Y)),
    "explain": lambda m, _: reszoo.explain(m, X[0].astype(np.uint8)),
    "features": lambda m, _: reszoo.features(m, (X.astype(np.uint8), Y)),
    "check_weights": lambda _, folder: reszoo.check_weights("resnet18", images=folder),
}


@pytest.mark.parametrize("call", CALLS)
def test_one_sentence_says_what_needs_tensorflow(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = reszoo.build("resnet8", classes=2, seed=0)
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    text = r"needs Keras on TensorFlow.*Received: KERAS_BACKEND=jax; start Python with"
    with pytest.raises(reszoo.UsageError, match=text):
        CALLS[call](model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_torch_is_refused_before_a_layer_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    for build in (partial(reszoo.build, "resnet8"), partial(reszoo.mlp, 4)):
        with pytest.raises(reszoo.UsageError, match=r"ved: KERAS_BACKEND=torch; sta"):
            build()


@pytest.mark.parametrize("backend", ["jax", "openvino"])
def test_a_backend_that_is_not_installed_is_no_part_of_reszoo(
    tmp_path: Path, backend: str
) -> None:
    (tmp_path / f"{backend}.py").write_text(
        f"raise ModuleNotFoundError(name={backend!r})"
    )
    places = ":".join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-m", "reszoo", "convert", "x.pth", str(tmp_path / "y")],
        env={"KERAS_BACKEND": backend, "PATH": "", "PYTHONPATH": places},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert (
        done.stderr.splitlines()[-1]
        == f"reszoo: this needs {backend}, which KERAS_BACKEND asks for; install it, "
        "or set that to tensorflow"
    )


def test_jax_builds_saves_loads_and_fits_and_says_the_rest(tmp_path: Path) -> None:
    pytest.importorskip("jax", reason="JAX is not installed")
    script = """
import sys, numpy as np, keras
sys.path.insert(0, "tests")
from pathlib import Path
from test_backends import CALLS, X, Y
import reszoo
folder = Path(sys.argv[1])
model = reszoo.build("resnet8", classes=2, seed=0)
model = reszoo.load(reszoo.save(model, folder / "a.safetensors"))
model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
model.fit(X, Y, verbose=0)
for name, call in CALLS.items():
    try:
        call(model, folder)
    except reszoo.UsageError as error:
        assert "KERAS_BACKEND=jax" in str(error), error
        print(name)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path],
        env={"KERAS_BACKEND": "jax", "PATH": "", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == list(CALLS), done.stderr


def test_a_callback_that_sets_the_learning_rate_is_told_why_not() -> None:
    """keras-team/keras: ReduceLROnPlateau on a schedule (tensorflow#36612)."""
    model = reszoo.build(SPECS["resnet8"], classes=2, seed=0)
    reszoo.compile(model, steps_per_epoch=1, epochs=9, freeze_bn=True)
    reduce = keras.callbacks.ReduceLROnPlateau(monitor="loss", patience=1, min_delta=9)
    with pytest.raises(reszoo.UsageError, match=r"recipe decides the learning rate of"):
        model.fit(X, Y, epochs=3, verbose=0, callbacks=[reduce])
