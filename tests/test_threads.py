"""Model files under threads, after a fork, pickled, and on few cores."""

import gc
import json
import os
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripts import ROOT, script_of

import reszoo
from reszoo import environment
from reszoo.environment import usable_cores
from reszoo_export.runtimes import open_runtime
from reszoo_export.sessions import Sessions

_EXPORT = ROOT / "saved_models/resnet20-cifar10"
_FILES = {
    "checkpoint": ROOT / "reszoo/bundled/resnet20-cifar10.safetensors",
    "saved_model": _EXPORT / "saved_model",
    "tflite": _EXPORT / "model.tflite",
    "tflite-int8": _EXPORT / "model-int8.tflite",
    "onnx": _EXPORT / "model.onnx",
}
_OF_TENSORFLOW = ("checkpoint", "saved_model")
_CLIENTS, _CALLS = 8, 25


@pytest.fixture(scope="module")
def stress() -> Any:
    return script_of("stress/threads.py")


@pytest.fixture(scope="module")
def images() -> Any:
    """Twelve images whose answers all differ."""
    draw = np.random.default_rng(0)
    colours = draw.integers(0, 256, (12, 1, 1, 3))
    noise = draw.integers(-60, 60, (12, 32, 32, 3))
    return np.clip(colours + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", [*_FILES, "keras.Model"])
def test_every_thread_gets_the_answers_to_its_own_images(
    stress: Any, images: Any, name: str
) -> None:
    path = _FILES.get(name) or reszoo.load(_FILES["checkpoint"])
    # threads=1 lets several TFLite interpreters run at once, also on two cores.
    threads = 1 if "tflite" in name else None
    predictor = reszoo.Predictor(path, threads=threads)
    expected = reszoo.Predictor(path).predict(images)
    distances = np.abs(expected[:, None] - expected[None]).max(-1)
    assert (distances + np.eye(len(images))).min() > 100 * stress.TOLERANCE
    found = stress.ask(
        lambda index: predictor.predict(images[index])[0], expected, _CLIENTS, _CALLS
    )
    assert found == {"right": _CLIENTS * _CALLS}


@pytest.mark.parametrize("file", ["model.tflite", "model.onnx"])
def test_the_generated_server_answers_clients_at_once(
    stress: Any, images: Any, file: str
) -> None:
    predictor = reszoo.Predictor(_EXPORT / file)
    encoded = [stress.png(image) for image in images]
    with stress.Server(_EXPORT, file) as server:
        found = stress.ask(
            partial(server.served, encoded, predictor.labels),
            predictor.predict(images),
            _CLIENTS,
            _CALLS,
        )
        assert found == {"right": _CLIENTS * _CALLS}
        status, answer = server.post(encoded[0][:200])
        assert status == 400
        assert "not a readable image" in answer["error"]
        assert server.post(b"")[0] == 413


@pytest.mark.slow
def test_functions_run_in_threads(images: Any, tmp_path: Path) -> None:
    model = reszoo.load(_FILES["checkpoint"])
    images = np.concatenate([images[:10], images[:10]])
    labels = [*(reszoo.card(model).labels or ())] * 2
    expected = reszoo.evaluate(model, (images, labels))
    answers = reszoo.Predictor(model).predict(images)
    parameters = reszoo.build("resnet20", classes=3).count_params()
    numbers = iter(range(100))

    def work() -> None:
        path = tmp_path / f"{next(numbers)}.safetensors"
        reszoo.save(model, path)
        again = reszoo.load(path)
        np.testing.assert_array_equal(again.get_weights()[0], model.get_weights()[0])
        assert reszoo.evaluate(again, (images, labels)) == expected
        assert reszoo.build("resnet20", classes=3).count_params() == parameters
        for name in ("tflite", "onnx"):
            assert reszoo.inspect(_FILES[name]).card is not None
            opened = reszoo.Predictor(_FILES[name])
            np.testing.assert_allclose(opened.predict(images), answers, atol=1e-5)

    assert not _in_threads(work)


class _Busy:
    """A session that notices calls at once, and tells how many there were."""

    def __init__(self) -> None:
        self.inside = 0

    def call(self) -> None:
        self.inside += 1
        threading.Event().wait(0.002)
        assert self.inside == 1
        self.inside -= 1


def _in_threads(function: Callable[[], None], count: int = 8) -> list[BaseException]:
    errors: list[BaseException] = []

    def work() -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_a_session_serves_one_call_at_a_time_and_no_more_are_opened() -> None:
    opened: list[_Busy] = []

    def open_session() -> _Busy:
        opened.append(_Busy())
        return opened[-1]

    sessions = Sessions(open_session, most=3)

    def work() -> None:
        for _ in range(20):
            with sessions.borrow() as session:
                session.call()

    assert not _in_threads(work)
    assert 2 <= len(opened) <= 3


def test_a_session_whose_call_failed_is_not_used_again() -> None:
    opened: list[object] = []

    def open_session() -> object:
        opened.append(object())
        return opened[-1]

    sessions = Sessions(open_session, most=1)
    with pytest.raises(ZeroDivisionError), sessions.borrow() as first:
        raise ZeroDivisionError
    with sessions.borrow() as second:
        assert second is not first
    assert len(opened) == 2


def test_a_file_that_was_replaced_is_not_mixed_with_the_one_opened(
    tmp_path: Path,
) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"1")
    sessions = Sessions(object, path, most=2)
    with sessions.borrow():
        path.write_bytes(b"22")
        with (
            pytest.raises(reszoo.CheckpointError, match=r"model has changed or is gon"),
            sessions.borrow(),
        ):
            pass
    with sessions.borrow():  # The one that is open still answers.
        pass


def test_tflite_files_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reszoo_export.tflite.reader.usable_cores", lambda: 6)
    for threads, most in [(None, 1), (1, 6), (4, 1), (2, 3), (12, 1)]:
        sessions: Any = open_runtime(_FILES["tflite"], threads).sessions
        assert sessions._most == most


@pytest.mark.parametrize("name", _FILES)
def test_a_closed_predictor_says_so(images: Any, name: str) -> None:
    with reszoo.Predictor(_FILES[name]) as predictor:
        assert predictor.predict(images[:1]).shape == (1, 10)
        answers = predictor.stream(images, batch_size=2)
        next(answers)
    predictor.close()
    asked: list[Callable[[], Any]] = [
        lambda: predictor.predict(images[0]),
        lambda: predictor.top(images[0]),
        lambda: list(answers),
        lambda: pickle.dumps(predictor),
    ]
    for ask in asked:
        with pytest.raises(reszoo.UsageError, match=r"a call after close\(\); open"):
            ask()


@pytest.mark.parametrize("name", [*_FILES, "keras.Model"])
def test_a_closed_predictor_frees_its_model(images: Any, name: str) -> None:
    path = _FILES.get(name) or reszoo.load(_FILES["checkpoint"])
    predictor: Any = reszoo.Predictor(path)
    predictor.predict(images[:1])
    (session,) = predictor._runtime.sessions._idle
    del path
    gone = weakref.ref(session)
    del session
    predictor.close()
    gc.collect()
    assert gone() is None
    assert predictor.labels[0]


def test_a_call_under_way_ends_although_the_predictor_is_closed() -> None:
    sessions = Sessions(_Busy, most=1)
    waiting = []

    def ask() -> None:
        with pytest.raises(reszoo.UsageError, match="closed"), sessions.borrow():
            pass

    with sessions.borrow() as session:
        waiting = [threading.Thread(target=ask) for _ in range(3)]
        for thread in waiting:
            thread.start()
        sessions.close()
        session.call()
    for thread in waiting:
        thread.join(60)
        assert not thread.is_alive()
    sessions.close()


@pytest.mark.parametrize("name", _FILES)
def test_a_pickled_predictor_opens_its_file_again(
    images: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _FILES[name]
    monkeypatch.chdir(path.parent)
    predictor = reszoo.Predictor(path.name)
    monkeypatch.chdir(tmp_path)
    again = pickle.loads(pickle.dumps(predictor))
    assert again.labels == predictor.labels
    np.testing.assert_array_equal(again.predict(images), predictor.predict(images))


def test_threads_are_pickled_too() -> None:
    predictor: Any = reszoo.Predictor(_FILES["onnx"], threads=3)
    assert pickle.loads(pickle.dumps(predictor))._runtime.threads == 3


def test_a_model_in_memory_is_not_pickled() -> None:
    predictor = reszoo.Predictor(reszoo.build("resnet20"))
    with pytest.raises(reszoo.UsageError, match=r"in memory; write .* reszoo\.save"):
        pickle.dumps(predictor)


_SPAWN = """
import multiprocessing, sys
import numpy as np, reszoo
def ask(given):
    return given[0].predict(given[1])
if __name__ == "__main__":
    images = np.load(sys.argv[1])
    for path in sys.argv[2:]:
        predictor = reszoo.Predictor(path)
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            answers = pool.map(ask, [(predictor, images[:2]), (predictor, images[2:])])
        assert np.array_equal(np.concatenate(answers), predictor.predict(images))
        print("equal")
"""


# Every process that imports TensorFlow takes seconds.
_BY_RUNTIME = pytest.mark.parametrize(
    "names",
    [("tflite", "onnx"), pytest.param(_OF_TENSORFLOW, marks=pytest.mark.slow)],
)


@_BY_RUNTIME
def test_spawned_workers_take_a_predictor(
    images: Any, tmp_path: Path, names: tuple[str, ...]
) -> None:
    done = _run(_SPAWN, tmp_path, images[:4], *(_FILES[name] for name in names))
    assert done.stdout.split() == ["equal"] * len(names), done.stderr


# Some children end as multiprocessing's do, others as a program does.
_FORK = """
import os, sys
import numpy as np, reszoo
images, path, ending = np.load(sys.argv[1]), sys.argv[2], sys.argv[3]
predictor = reszoo.Predictor(path)
expected = predictor.predict(images)
child = os.fork()
if child == 0:
    try:
        for model in (predictor, reszoo.Predictor(path)):
            assert np.array_equal(model.predict(images), expected)
        print("equal", flush=True)
    except reszoo.UsageError as error:
        print(error, flush=True)
    sys.exit() if ending == "normal" else os._exit(0)
print("status", os.waitpid(child, 0)[1])
print("parent", np.array_equal(predictor.predict(images), expected))
"""


@pytest.mark.parametrize(
    ("name", "ending"),
    [("tflite", "normal"), ("tflite-int8", "at once"), ("onnx", "normal")],
)
def test_a_forked_process_opens_the_file_again(
    images: Any, tmp_path: Path, name: str, ending: str
) -> None:
    done = _run(_FORK, tmp_path, images, _FILES[name], ending)
    lines = done.stdout.splitlines()
    assert lines == ["equal", "status 0", "parent True"], done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["checkpoint", "saved_model"])
def test_tensorflow_after_a_fork_is_refused_not_waited_for(
    images: Any, tmp_path: Path, name: str
) -> None:
    done = _run(_FORK, tmp_path, images, _FILES[name], "at once")
    refusal, *rest = done.stdout.splitlines()
    assert "TensorFlow cannot compute in a process that was forked after" in refusal
    assert "get_context('spawn')" in refusal
    assert rest == ["status 0", "parent True"]


_FORK_FIRST = """
import os, sys
import numpy as np, reszoo, tensorflow
tensorflow.constant(1) if sys.argv[3] == "started" else None
child = os.fork()
if child == 0:
    try:
        reszoo.Predictor(sys.argv[2]).predict(np.load(sys.argv[1]))
        print("answered", flush=True)
    except reszoo.UsageError as error:
        print(str(error)[:30], flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("state", "told"),
    [("imported", "answered"), ("started", "TensorFlow cannot compute in a ")],
)
def test_a_fork_before_tensorflow_starts_may_use_it(
    images: Any, tmp_path: Path, state: str, told: str
) -> None:
    code = f"import reszoo.environment\n{_FORK_FIRST}"
    done = _run(code, tmp_path, images, _FILES["checkpoint"], state)
    assert done.stdout.strip() == told.strip(), done.stderr


def _run(code: str, folder: Path, images: Any, *arguments: Any) -> Any:
    np.save(folder / "images.npy", images)
    (folder / "program.py").write_text(code)
    paths = [str(ROOT), str(ROOT / "export")]
    return subprocess.run(
        [sys.executable, "program.py", "images.npy", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


_ONE_CORE = """
import json, os, sys
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
import reszoo
from reszoo_export.runtimes import open_runtime
print(json.dumps([open_runtime(path).threads for path in sys.argv[2:]]))
"""


@_BY_RUNTIME
def test_threads_by_default_are_the_cores_that_a_process_may_use(
    images: Any, tmp_path: Path, names: tuple[str, ...]
) -> None:
    done = _run(_ONE_CORE, tmp_path, images, *(_FILES[name] for name in names))
    assert json.loads(done.stdout) == [1] * len(names), done.stderr


_QUOTA = """
import reszoo.environment
reszoo.environment._quotas = lambda: iter([1.0])
import reszoo, sys, tensorflow as tf
print(reszoo.Predictor(sys.argv[2])._runtime.threads)
print(tf.config.threading.get_intra_op_parallelism_threads())
"""


@pytest.mark.slow
def test_tensorflow_is_told_of_the_quota(images: Any, tmp_path: Path) -> None:
    done = _run(_QUOTA, tmp_path, images, _FILES["saved_model"])
    assert done.stdout.split() == ["1", "1"], done.stderr


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        ("0::/", {"cpu.max": "max 100000"}, 8),
        ("0::/", {"cpu.max": "200000 100000"}, 2),
        ("0::/", {"cpu.max": "150000 100000"}, 2),
        ("0::/", {"cpu.max": "10000 100000"}, 1),
        ("0::/a/b", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),
        ("0::/not/here", {"cpu.max": "400000 100000"}, 4),
        ("0::/", {}, 8),
        ("0::/", {"cpu.max": "nonsense"}, 8),
        (
            "5:cpu,cpuacct:/box\n1:name=systemd:/box",
            {
                "cpu,cpuacct/box/cpu.cfs_quota_us": "250000",
                "cpu,cpuacct/box/cpu.cfs_period_us": "100000",
            },
            3,
        ),
        (
            "5:cpu,cpuacct:/",
            {
                "cpu,cpuacct/cpu.cfs_quota_us": "-1",
                "cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            8,
        ),
    ],
)
def test_the_quota_of_a_container_limits_the_cores(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    membership: str,
    files: dict[str, str],
    cores: int,
) -> None:
    (tmp_path / "membership").write_text(f"{membership}\n")
    for name, text in files.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(f"{text}\n")
    monkeypatch.setattr(environment, "_MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(environment, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert usable_cores() == cores
