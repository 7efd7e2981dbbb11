"""Training the head on features of a frozen backbone that are computed once."""

import json
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import photos
from test_resume import _SMALL, assert_equal, images, killed_at_step, train
from tiny import TWO_BLOCKS

import reszoo
from reszoo.cli.options import app
from reszoo.data.pipeline import Augmentation, training_batches
from reszoo.data.sources import open_source
from reszoo.metrics import pooled_function
from reszoo.training import features, state
from reszoo.training.phases import phases
from reszoo.training.recipes import find_recipe
from reszoo.training.run import Run
from reszoo.training.state import STATE, read_state
from reszoo.weights.names import to_tensors

PROBE: dict[str, Any] = {
    "recipe": "linear-probe", "epochs": 3, "crop": "pad", "pad": 0.125, "flip": True,
    "learning_rate": 0.1,
}  # fmt: skip
# With all that a state must hold, and images that an epoch repeats.
RICH: dict[str, Any] = {
    **PROBE, "cache_features": 2, "dropout": 0.2, "ema": 0.9, "sampling": "balanced",
    "class_weight": "balanced", "accumulate": 2,
}  # fmt: skip


def head(result: Any) -> Any:
    return to_tensors(result.model)["fc.weight"]


def assert_near(one: Any, two: Any) -> None:
    """The head moved, and alike; frozen weights are the same to the last bit."""
    fresh = reszoo.build(TWO_BLOCKS, classes=2, input_shape=(8, 8, 3), seed=0)
    assert np.abs(head(one) - to_tensors(fresh)["fc.weight"]).max() > 1e-2
    ours, theirs = to_tensors(one.model), to_tensors(two.model)
    for name, values in ours.items():
        exact = 2e-6 if name.startswith("fc.") else 0
        np.testing.assert_allclose(values, theirs[name], rtol=0, atol=exact)
    for row, other in zip(one.history, two.history, strict=True):
        assert row.loss == pytest.approx(other.loss, abs=1e-5)
        assert row.validation_loss == pytest.approx(other.validation_loss, abs=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {"cache_features": 3},
        {"cache_features": 3, "dropout": 0.3, "ema": 0.9, "batch_size": 6},
        {"cache_features": 1, "crop": "none", "pad": 0.0, "flip": False},
    ],
    ids=["augmented", "dropout and averages", "still"],
)
def test_as_many_variants_as_epochs_train_as_without(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    given = {**PROBE, **fields}
    cached = train(tmp_path / "cached", **given)
    given["cache_features"] = None
    assert_near(cached, train(tmp_path / "plain", **given))
    # Temperature and the report's probabilities come from features, too.
    found = reszoo.evaluate(cached.model, images()["validation"])
    best = cached.history[reszoo.card(cached.model).provenance["epoch"] - 1]
    assert found.loss == pytest.approx(best.validation_loss, abs=1e-5)
    shown = cached.report.read_text()
    assert f"{found.top1:.2%} of the 6 validation images" in shown


def test_a_head_phase_is_cached_and_the_others_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields: dict[str, Any] = {
        "recipe": "finetune", "head_epochs": 2, "epochs": 1, "crop": "pad",
        "learning_rate": 1e-4, "head_learning_rate": 0.1,
    }  # fmt: skip
    cached = train(tmp_path / "cached", cache_features=2, **fields)
    assert "(12 images x 2 variants + 6 held out) x 32 features x 4 bytes" in (
        capsys.readouterr().err
    )
    plain = train(tmp_path / "plain", **fields)
    assert [row.phase for row in cached.history] == ["head", "head", "all"]
    for row, other in zip(cached.history, plain.history, strict=True):
        assert row.loss == pytest.approx(other.loss, abs=1e-4)
        assert row.validation_loss == pytest.approx(other.validation_loss, abs=1e-4)
    ours, theirs = (to_tensors(each.model)["conv1.weight"] for each in (cached, plain))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_every_image_passes_the_backbone_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    passed = {"train": 0, "held out": 0}

    def watched(of: str) -> Any:
        def made(*arguments: Any) -> Any:
            compute = pooled_function(*arguments)

            def count(pixels: Any) -> Any:
                passed[of] += len(pixels)
                return compute(pixels)

            return count

        return made

    monkeypatch.setattr(features, "pooled_function", watched("train"))
    monkeypatch.setattr("reszoo.training.run.pooled_function", watched("held out"))
    monkeypatch.setattr(features, "_AT_ONCE", 5)
    probe = {"recipe": "linear-probe", "learning_rate": 0.1, "epochs": 4}
    result = train(tmp_path / "run", cache_features=1, **probe)
    assert passed == {"train": 12, "held out": 6}
    told = capsys.readouterr().err
    assert "features of the frozen backbone are computed once and kept" in told
    assert "(12 images x 1 variant + 6 held out) x 32 features x 4 bytes" in told
    assert "flipped at random" not in told
    assert reszoo.card(result.model).provenance["recipe"]["cache_features"] == 1
    assert "cache_features" in result.report.read_text()


@pytest.mark.slow
def test_epochs_show_the_variants_in_turn() -> None:
    source = open_source(images(classes=3))
    examples = source.examples("train")
    model = reszoo.build(TWO_BLOCKS, classes=3, input_shape=(8, 8, 3), seed=0)
    record = reszoo.card(model).preprocessing
    augmentation = Augmentation(crop="pad", pad=2, flip=True)
    recipe = find_recipe("linear-probe", cache_features=2, batch_size=4)

    def shown(augmentation: Augmentation, epochs: range, start: int = 0) -> Any:
        seen = (examples, record, augmentation)
        batches = features.feature_batches(model, recipe, *seen, epochs, start)
        return [(np.asarray(one), np.asarray(two)) for one, two in batches]

    batches = shown(augmentation, range(4))
    compute = pooled_function(model, record)
    for epoch in range(4):
        # The order is that of the epoch, the pixels are those of its variant.
        options: Any = {"batch_size": 4, "seed": 0}
        seen = (examples, record, augmentation)
        ordered = training_batches(*seen, epoch=epoch, **options)
        for index, (_, targets) in enumerate(ordered):
            assert (batches[3 * epoch + index][1] == targets.numpy()).all()
        pixels = training_batches(*seen, epoch=epoch % 2, **options)
        made = np.concatenate([compute(each)["pooled"] for each, _ in pixels])
        own = np.concatenate([each for each, _ in batches[3 * epoch : 3 * epoch + 3]])
        rows = [np.abs(made - row).max(axis=1).argmin() for row in own]
        assert sorted(rows) == [*range(12)]
        np.testing.assert_allclose(own, made[rows], atol=1e-6)
    # From the middle of an epoch on they are the same.
    rest = shown(augmentation, range(1, 4), start=2)
    assert all((a[0] == b[0]).all() for a, b in zip(rest, batches[5:], strict=True))
    # An image that is repeated within an epoch is shown in several variants.
    drawn = replace(augmentation, sampling=0.0)
    examples = replace(examples, targets=np.array([0] + [1] * 11))
    rare = [one[two == 0] for one, two in shown(drawn, range(1))]
    assert len(np.unique(np.concatenate(rare), axis=0)) == 2


def test_files_are_written_at_the_end_and_as_often_as_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Any] = []
    write_state = state.write_state

    def record(path: Path, variables: Any, content: Any) -> None:
        if content["epoch"]:
            rows = path.with_name("history.csv").read_text().splitlines()[1:]
            assert len(rows) == len(content["history"]) == content["epoch"]
            assert path.with_name("best.safetensors").exists()
            assert path.with_name("last.safetensors").exists()
        written.append(content["epoch"])
        write_state(path, variables, content)

    monkeypatch.setattr(state, "write_state", record)
    train(tmp_path / "rarely", save_every=1e9, **RICH)
    assert written == [0, 3]
    told: list[int] = []
    fields = {**RICH, "on_epoch_end": lambda row: told.append(row.epoch)}
    train(tmp_path / "told", save_every=1e9, **fields)
    assert written == [0, 3, 0, 1, 2, 3]
    assert told == [1, 2, 3]


def test_what_diverges_on_cached_features_keeps_earlier_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_step = Run._train

    def diverging(run: Run, *batch: Any) -> tuple[float, int]:
        found = take_step(run, *batch)
        return found if run.position < (2, 1) else (float("nan"), 0)

    monkeypatch.setattr(Run, "_train", diverging)
    told = r"after 1 steps of epoch 3\..* The earlier epochs are in "
    with pytest.raises(reszoo.ReszooError, match=told):
        train(tmp_path / "run", save_every=1e9, **RICH)
    rows = (tmp_path / "run" / "history.csv").read_text().splitlines()[1:]
    assert len(rows) == 2
    assert (tmp_path / "run" / "best.safetensors").exists()


@pytest.mark.slow
def test_a_killed_run_ends_bit_equal(tmp_path: Path) -> None:
    train(tmp_path / "whole", resume=False, save_every=1e9, **RICH)
    for step in (2, 5):
        killed_at_step(step, tmp_path / "run", **RICH)
    train(tmp_path / "run", **RICH)
    assert_equal(tmp_path / "run", tmp_path / "whole")
    assert read_state(tmp_path / "run" / STATE)[1]["epoch"] == 3
    with pytest.raises(reszoo.UsageError, match=r"cache_features was 2, is 3"):
        train(tmp_path / "run", **{**RICH, "cache_features": 3})


@pytest.mark.slow
def test_a_run_is_killed_by_the_system_and_ends_bit_equal(tmp_path: Path) -> None:
    root = photos(tmp_path / "p", ("red", "green"), each=12)
    fields = {**_SMALL, "epochs": 30, "dropout": 0.2, "crop": "pad", "pad": 0.125}
    fields |= {"recipe": "linear-probe", "learning_rate": 0.1, "cache_features": 3}

    def command(output: Path) -> list[str]:
        words = ["--model", "resnet8", "--output", str(output), "--resume"]
        for name, value in fields.items():
            option = name.replace("_", "-")
            own = name in ("recipe", "epochs", "cache_features")
            words += [f"--{option}", str(value)] if own else []
            words += [] if own else ["--set", f"{name}={value}"]
        return [sys.executable, "-m", "reszoo", "train", str(root), *words]

    path, epoch = tmp_path / "run" / STATE, 0
    frequent = [*command(tmp_path / "run"), "--save-every", "0"]
    with subprocess.Popen(frequent, stderr=subprocess.PIPE) as process:
        while process.poll() is None and epoch < 3:
            time.sleep(0.001)
            # While it is read, another may take its place.
            with suppress(reszoo.CheckpointError):
                epoch = read_state(path)[1]["epoch"] if path.exists() else 0
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert 3 <= read_state(path)[1]["epoch"] < 30
    for output in (tmp_path / "run", tmp_path / "whole"):
        subprocess.run(command(output), check=True, capture_output=True)
    assert_equal(tmp_path / "run", tmp_path / "whole")
    for name in ("best.safetensors", "last.safetensors"):
        one, two = ((tmp_path / folder / name) for folder in ("run", "whole"))
        assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize(
    ("recipe", "fields", "text"),
    [
        ("cifar", {}, r"needs a phase with a frozen backbone.*freeze=None"),
        ("linear-probe", {"freeze_bn": False}, r"needs a phase .*freeze_bn=False"),
        ("linear-probe", {"mixup": 0.2}, r"act on what precedes.*mixup=0.2"),
        ("finetune", {"cutmix": 1.0}, r"act on what precedes.*cutmix=1.0"),
        ("linear-probe", {"teacher": "x"}, r"act on what precedes.*teacher='x'"),
        ("linear-probe", {"stochastic_depth": 0.1}, r"act on what.*stochastic_depth"),
        ("linear-probe", {"block_dropout": 0.1}, r"act on what.*block_dropout=0.1"),
        ("linear-probe", {"flip": True}, r"cache_features=1 shows.*flip=True"),
        ("linear-probe", {"policy": "trivial"}, r"shows images as.*policy='trivial'"),
        (
            "linear-probe",
            {"cache_features": 2, "crop": "none", "flip": False},
            r"more are augmented variants.*cache_features=2, crop='none'",
        ),
        ("linear-probe", {"cache_features": 0}, r"cache_features must be at least 1"),
    ],
)
def test_what_cached_features_cannot_do_is_refused(
    recipe: str, fields: dict[str, Any], text: str
) -> None:
    with pytest.raises(reszoo.UsageError, match=text):
        find_recipe(recipe, **{"cache_features": 1, **fields})


@pytest.mark.parametrize(
    ("devices", "variants", "width", "text"),
    [
        (2, 1, 32, r"needs one device.*Received: 2 devices"),
        (1, 4, 32, r"as many epochs as variants.*3 epochs.*x 4 variants"),
        (1, 3, 2**24, r"at most 2,147 MB.*\+ 6 held out\) x 16,777,216 .* 2,818.6 MB"),
    ],
)
def test_features_that_do_not_fit_are_refused(
    devices: int, variants: int, width: int, text: str
) -> None:
    fields: Any = {"epochs": 3, "batch_size": 4, "cache_features": variants}
    recipe = find_recipe("linear-probe", **fields)
    model: Any = SimpleNamespace(
        get_layer=lambda _: SimpleNamespace(kernel=np.broadcast_to(0, (width, 2)))
    )
    source = open_source(images())
    with pytest.raises(reszoo.UsageError, match=text):
        features.cache_notes(phases(recipe, 12), source, model, devices)


def test_the_command_line_caches_features(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", str(folder), "--model", "resnet8", "--recipe", "linear-probe"]
    words += ["--batch-size", "4", "--epochs", "1", "--size", "8", "--output"]
    app([*words, str(tmp_path / "plain")], standalone_mode=False)
    assert "Note: cache_features=1 computes the features" in capsys.readouterr().err
    cached = [*words, str(tmp_path / "run"), "--cache-features", "1"]
    app(cached, standalone_mode=False)
    told = capsys.readouterr().err
    assert "Note: features of the frozen backbone are computed once" in told
    recipe = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert (recipe["cache_features"], recipe["crop"], recipe["flip"]) == (
        1, "none", False,
    )  # fmt: skip
