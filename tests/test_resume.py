"""A run that is interrupted and resumed ends bit-equal to one that never was."""

import resource
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import TWO_BLOCKS

import reszoo
from reszoo.cli.options import app
from reszoo.metrics import Metrics
from reszoo.training import history
from reszoo.training.run import Evaluator
from reszoo.training.state import STATE, read_state, stop_on_signals, write_state
from reszoo.training.step import PhaseTrainer
from reszoo.weights.names import to_tensors

_TIMES = {"images_per_second", "data_wait", "seconds"}
_SMALL: dict[str, Any] = {
    "recipe": "cifar",
    "train_size": 8,
    "eval_size": 8,
    "batch_size": 4,
    "warmup_epochs": 0,
    "learning_rate": 0.01,
    "head_learning_rate": 0.001,
    "precision": "float32",
}
# Two phases, one of three steps and one of six, with all that a state must hold.
_SGD: dict[str, Any] = {
    "epochs": 2,
    "head_epochs": 1,
    "accumulate": 2,
    "ema": 0.9,
    "mixup": 0.2,
    "stochastic_depth": 0.1,
    "dropout": 0.2,
}
_LAMB: dict[str, Any] = {
    "epochs": 3,
    "optimizer": "lamb",
    "loss": "binary",
    "cutmix": 1.0,
}


class Killed(BaseException):
    """Stands for what nothing can catch."""


def images(count: int = 12, classes: int = 2, seed: int = 0) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    pixels = draw.integers(0, 256, (count + 6, 8, 8, 3), np.uint8)
    labels = np.arange(count + 6) % classes
    return {
        "train": (pixels[:count], labels[:count]),
        "validation": (pixels[count:], labels[count:]),
    }


def train(output: Path, data: Any = None, net: Any = TWO_BLOCKS, **fields: Any) -> Any:
    given = {"resume": True, "save_every": 0.0, **_SMALL, **fields}
    return reszoo.train(net, data or images(), output=output, **given)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run that nothing disturbed; it wrote no state within an epoch."""
    output = tmp_path_factory.mktemp("whole") / "run"
    return train(output, resume=False, save_every=1e9, **_SGD)


def at_step(number: int, act: Callable[[], Any]) -> Any:
    """Return a patch that acts before the `number`-th step from now."""
    patch, step, count = pytest.MonkeyPatch(), PhaseTrainer.train, 0

    def watched(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == number:
            act()
        return step(*arguments)

    patch.setattr(PhaseTrainer, "train", watched)
    return patch


def die(*_: Any) -> None:
    raise Killed


def killed_at_step(number: int, output: Path, **fields: Any) -> None:
    patch = at_step(number, die)
    with pytest.raises(Killed):
        train(output, **fields)
    patch.undo()


def timeless(history: Any) -> list[dict[str, Any]]:
    rows = [row if isinstance(row, dict) else asdict(row) for row in history]
    return [{n: v for n, v in row.items() if n not in _TIMES} for row in rows]


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {f.name: f.read_bytes() for f in files if f.name != "report.html"}


def assert_equal(one: Path, two: Path) -> None:
    ours, content = read_state(one / STATE)
    theirs, expected = read_state(two / STATE)
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        assert values.tobytes() == theirs[name].tobytes(), name
    assert timeless(content["history"]) == timeless(expected["history"])
    for name in ("epoch", "tally", "best", "probe"):
        assert content[name] == expected[name]


def test_a_run_that_is_killed_repeatedly_ends_bit_equal(
    whole: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    # In the first epoch; without a state, resuming begins.
    killed_at_step(2, output, **_SGD)
    assert read_state(output / STATE)[1]["tally"]["steps"] == 1
    # At the end of the first epoch and phase, with some of its files written.
    patch = pytest.MonkeyPatch()
    patch.setattr(history, "write_text", die)
    with pytest.raises(Killed):
        train(output, **_SGD)
    patch.undo()
    assert (output / "best.safetensors").exists()
    assert read_state(output / STATE)[1]["history"] == []
    # In the middle of the second phase, asked to stop: it does, after the step.
    patch = at_step(2, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt):
        train(output, save_every=1e9, **_SGD)
    patch.undo()
    told = capsys.readouterr().err
    assert f"Stopped; the state is in {output}. Resume with --resume" in told
    assert read_state(output / STATE)[1]["tally"]["steps"] == 2
    result = train(output, **_SGD)
    assert "Resuming at epoch 2, step 3." in capsys.readouterr().err
    reference = whole.best.parent
    assert_equal(output, reference)
    for name in ("best.safetensors", "last.safetensors", "recipe.json"):
        assert (output / name).read_bytes() == (reference / name).read_bytes(), name
    assert timeless(result.history) == timeless(whole.history)
    ours, theirs = to_tensors(result.model), to_tensors(whole.model)
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    assert not list(output.rglob("*.tmp"))


def test_a_finished_run_has_nothing_left_to_do(
    whole: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = shutil.copytree(whole.best.parent, tmp_path / "run")
    before = contents(output)
    patch = at_step(1, die)
    result = train(output, **_SGD)
    patch.undo()
    assert "already complete" in capsys.readouterr().err
    assert result.history == whole.history
    ours, theirs = to_tensors(result.model), to_tensors(whole.model)
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    assert contents(output) == before


def test_a_state_of_earlier_names_can_be_resumed(
    whole: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = shutil.copytree(whole.best.parent, tmp_path / "run")
    tensors, content = read_state(output / STATE)
    content["conditions"]["net"] = content["conditions"].pop("model")
    write_state(output / STATE, tensors, content)
    assert train(output, **_SGD).history == whole.history
    assert "already complete" in capsys.readouterr().err


@pytest.mark.slow
def test_the_best_epoch_is_kept_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With LAMB and cutmix; a state comes only at the end of each epoch."""
    accuracies = {1: 0.5, 2: 0.9, 3: 0.1}
    outputs = [tmp_path / "whole", tmp_path / "killed"]
    current = 0

    def measured(*_: Any) -> Metrics:
        numbers: Any = {"top5": 1, "loss": 1, "balanced_accuracy": 1, "macro_f1": 1}
        return Metrics(top1=accuracies[current], **numbers, images=6, data="x")

    def count(step: Any, *arguments: Any) -> Any:
        nonlocal current
        current = arguments[4] + 1
        return step(*arguments)

    step = PhaseTrainer.train
    monkeypatch.setattr(Evaluator, "evaluate", measured)
    monkeypatch.setattr(PhaseTrainer, "train", lambda *a: count(step, *a))
    train(outputs[0], **_LAMB)
    killed_at_step(8, outputs[1], save_every=1e9, **_LAMB)
    assert read_state(outputs[1] / STATE)[1]["epoch"] == 2
    result = train(outputs[1], **_LAMB)
    assert_equal(*outputs)
    assert reszoo.card(result.model).provenance["epoch"] == 2
    one, two = (output / "best.safetensors" for output in outputs)
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize(
    ("by", "epoch"), [("accuracy", 1), ("balanced_accuracy", 2), ("loss", 3)]
)
def test_best_is_what_the_recipe_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str, epoch: int
) -> None:
    measured = iter([(0.9, 0.1, 0.8), (0.5, 0.7, 0.9), (0.5, 0.6, 0.2)])

    def evaluate(*_: Any) -> Metrics:
        top1, balanced, loss = next(measured)
        numbers: Any = {"top1": top1, "balanced_accuracy": balanced, "loss": loss}
        return Metrics(**numbers, top5=1, macro_f1=0.3, images=6, data="x")

    monkeypatch.setattr(Evaluator, "evaluate", evaluate)
    result = train(tmp_path, epochs=3, best_by=by)
    card = reszoo.card(reszoo.load(result.best))
    assert card.provenance["epoch"] == epoch
    kept = {metric.name: metric.value for metric in card.metrics}
    row = result.history[epoch - 1]
    assert kept["top1"] == row.validation_top1
    assert kept["balanced_accuracy"] == row.validation_balanced_accuracy
    assert kept["macro_f1"] == row.validation_macro_f1 == 0.3
    header = (tmp_path / "history.csv").read_text().splitlines()[0]
    assert "validation_balanced_accuracy,validation_macro_f1" in header


@pytest.mark.slow
def test_the_error_names_the_command_that_trains_on(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Followed to the letter, it trains as many epochs more."""
    output, fields = tmp_path / "run", {**_SMALL, "batch_size": 5, "head_epochs": 1}
    reszoo.train("resnet8", folder, output=output, epochs=1, **fields)
    last = to_tensors(reszoo.load(output / "last.safetensors"))
    with pytest.raises(reszoo.UsageError, match="recipe's epochs was 1, is 3") as error:
        reszoo.train("resnet8", folder, output=output, resume=True, epochs=3, **fields)
    assert "a new schedule (cosine, from learning_rate=0.01)" in str(error.value)
    command = shlex.split(str(error.value).rpartition(": ")[2])
    assert command[:2] == ["reszoo", "train"]
    app(command[1:], standalone_mode=False)
    told = capsys.readouterr().err
    assert "4 steps in 2 epochs, float32" in told
    card = reszoo.card(reszoo.load(tmp_path / "run-2" / "best.safetensors"))
    assert card.provenance["began_as"]["data"] == str(folder)
    # A model in memory is not named by a command line.
    model = reszoo.load(output / "last.safetensors")
    reszoo.train(model, folder, output=tmp_path / "own", epochs=1, **fields)
    with pytest.raises(reszoo.UsageError) as error:
        reszoo.train(
            model, folder, output=tmp_path / "own", resume=True, epochs=2, **fields
        )
    assert f"reszoo.train(reszoo.load('{tmp_path}/own/last" in str(error.value)
    assert not all(
        np.array_equal(last[name], value) for name, value in to_tensors(model).items()
    )


@pytest.mark.slow
def test_a_run_without_patience_left_stops_also_when_it_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The head's epoch is the best of all, and not counted."""
    fields: dict[str, Any] = {**_SGD, "epochs": 9, "patience": 2}
    seen: list[int] = []
    plain = Evaluator.evaluate

    def measured(evaluator: Evaluator, split: str) -> Any:
        found = plain(evaluator, split)
        return found and replace(found, top1=0.5, loss=1.0)

    monkeypatch.setattr(Evaluator, "evaluate", measured)
    whole = train(
        tmp_path / "whole", on_epoch_end=lambda row: seen.append(row.epoch), **fields
    )
    assert seen == [1, 2, 3] == [row.epoch for row in whole.history]
    assert "Stopped after epoch 3: none was better than epoch 1." in (
        capsys.readouterr().err
    )
    killed_at_step(8, tmp_path / "killed", **fields)
    resumed = train(
        tmp_path / "killed", on_epoch_end=lambda row: seen.append(-row.epoch), **fields
    )
    assert seen == [1, 2, 3, -3]
    assert timeless(resumed.history) == timeless(whole.history)
    assert_equal(tmp_path / "killed", tmp_path / "whole")
    # It had ended, and ends again without a step.
    patch = at_step(1, die)
    again = train(tmp_path / "killed", **fields)
    patch.undo()
    assert again.history == resumed.history
    assert "already complete" in capsys.readouterr().err


def test_patience_needs_a_validation_split(tmp_path: Path) -> None:
    only = {"train": images()["train"]}
    for fields in ({"patience": 2}, {"best_by": "loss"}):
        with pytest.raises(reszoo.UsageError, match="need a validation split"):
            train(tmp_path / "run", data=only, validation_share=0, **fields)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"epochs": 3}, r"recipe\. recipe's epochs was 2, is 3\. Use those"),
        ({"net": "plain20"}, r"model was .*, is .*plain20"),
        ({"data": images(16)}, r'data\'s train was .*"images": 12.* is .*16'),
        ({"data": images(seed=1)}, r"data's train was .*; data's validation was"),
        ({"data": images(classes=3)}, r'data\'s classes was \["0", "1"\], is .*"2"'),
    ],
)
def test_a_run_is_resumed_only_with_the_same_model_data_and_recipe(
    whole: Any, changes: dict[str, Any], text: str
) -> None:
    before = (whole.best.parent / STATE).read_bytes()
    with pytest.raises(reszoo.UsageError, match=text):
        train(whole.best.parent, **{**_SGD, **changes})
    assert (whole.best.parent / STATE).read_bytes() == before


def test_resuming_needs_a_folder_with_a_state(tmp_path: Path) -> None:
    with pytest.raises(reszoo.UsageError, match=r"give it as output="):
        reszoo.train("resnet20", images(), resume=True)
    with pytest.raises(
        reszoo.UsageError, match=r"overwrite=True replaces it: give only one"
    ):
        train(tmp_path, overwrite=True)
    (tmp_path / "best.safetensors").write_text("")
    with pytest.raises(reszoo.UsageError, match=r"holds a run without a state"):
        train(tmp_path)


def test_weights_that_diverge_in_the_last_step_are_an_error(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"batch_size": 12, "epochs": 2, "learning_rate": 1e30}
    with pytest.raises(reszoo.ReszooError, match=r"diverged.*Lower learning_rate"):
        train(tmp_path / "run", **fields)
    assert not (tmp_path / "run" / "best.safetensors").exists()


@pytest.mark.slow
def test_a_run_ended_by_a_full_disk_can_be_resumed(whole: Any, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk; states are the largest."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    small = ((whole.best.parent / STATE).stat().st_size // 2, limits[1])
    patch = at_step(5, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, small))
    try:
        with pytest.raises(
            reszoo.ReszooError, match=rf"{STATE} could not be written.*make room"
        ):
            train(tmp_path / "run", **_SGD)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        patch.undo()
    train(tmp_path / "run", **_SGD)
    assert_equal(tmp_path / "run", whole.best.parent)
    assert not list((tmp_path / "run").rglob("*.tmp"))


def start(data: Path, output: Path) -> subprocess.Popen[str]:
    """Begin or resume a run in a process; return when it has taken a step."""
    words = ["train", str(data), "--model", "resnet20", "--output", str(output)]
    words += ["--resume", "--save-every", "0", "--epochs", "12"]
    for name, value in _SMALL.items():
        words += ["--recipe", str(value)] if name == "recipe" else []
        words += ["--set", f"{name}={value}"] if name != "recipe" else []
    state, before = output / STATE, _stamp(output / STATE)
    process = subprocess.Popen(
        [sys.executable, "-m", "reszoo", *words], stderr=subprocess.PIPE, text=True
    )
    fresh = before == 0
    while process.poll() is None and _stamp(state) == before:
        time.sleep(0.002)
    if fresh:
        before = _stamp(state)
        while process.poll() is None and _stamp(state) == before:
            time.sleep(0.002)
    return process


def _stamp(file: Path) -> int:
    return file.stat().st_mtime_ns if file.exists() else 0


@pytest.mark.slow
def test_killed_and_terminated_processes_can_be_resumed(
    folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    with start(folder, output) as process:
        process.kill()
    assert process.returncode == -signal.SIGKILL
    with start(folder, output) as process:
        process.terminate()
        told = process.stderr.read() if process.stderr else ""
    assert "Resuming at epoch" in told
    assert f"Stopped; the state is in {output}. Resume with --resume" in told
    assert "Traceback" not in told
    assert process.returncode == 130
    assert read_state(output / STATE)[1]["epoch"] < 12
    # The images may move in the meantime.
    options: dict[str, Any] = {"net": "resnet20", "epochs": 12}
    train(output, folder.rename(tmp_path / "elsewhere"), **options)
    train(tmp_path / "whole", tmp_path / "elsewhere", save_every=1e9, **options)
    assert_equal(output, tmp_path / "whole")


def test_a_second_signal_interrupts_at_once() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with stop_on_signals() as stop:
        assert stop.received is None
        signal.raise_signal(signal.SIGINT)
        assert stop.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


def test_what_a_background_job_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stop_on_signals() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.received is None
    assert signal.signal(signal.SIGINT, before) is signal.SIG_IGN


def test_threads_leave_signals_alone() -> None:
    seen = []

    def work() -> None:
        with stop_on_signals() as stop:
            seen.append((stop.received, signal.getsignal(signal.SIGINT)))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(None, before)]
