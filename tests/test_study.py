"""The study: its numbers, exact resuming, and what it concludes."""

import io
import json
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from scripts import script_of

import reszoo
from reszoo.data.pipeline import Augmentation
from reszoo.data.sources import open_source
from reszoo.preprocessing import default_preprocessing
from reszoo.specs import SPECS
from reszoo.studies.plan import StudyPlan
from reszoo.studies.report import PAGE, PLOTS, conclude, write_page
from reszoo.studies.results import (
    RESULTS,
    Point,
    RunResult,
    StudyResult,
    Variant,
    find_family,
    read_results,
    spread,
)
from reszoo.studies.study import StudyRun, VariantTrainer
from reszoo.training import run
from reszoo.training.devices import Devices
from reszoo.training.phases import phases
from reszoo.training.recipes import find_recipe
from reszoo.training.run import Evaluator
from reszoo.training.state import STATE, Stopped

pytestmark = pytest.mark.usefixtures("figures")
SMALL: dict[str, Any] = {"layers": (6,), "seeds": 2, "steps": 8, "save_every": 1e9}


def numbers(result: StudyResult) -> list[RunResult]:
    """All that must be reproducible."""
    return [replace(run, seconds=0) for run in result.runs]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    return reszoo.study("dense", output=tmp_path_factory.mktemp("study"), **SMALL)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_numbers(
    found: StudyResult, tmp_path: Path
) -> None:
    again = reszoo.study("dense", output=tmp_path, **{**SMALL, "seeds": 1})
    assert numbers(again) == [run for run in numbers(found) if run.seed == 0]
    assert len({run.points for run in found.runs}) == 4
    assert read_results(found.folder) == found


def test_only_small_splits_are_cached(
    found: StudyResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, model = plan_of(found), reszoo.mlp(6, seed=1)
    test = plan.source.examples("test")
    answers = []
    for room in (0, 1):
        monkeypatch.setattr(run, "_CACHED_BYTES", len(test) * 8 * 8 * 3 - 1 + room)
        evaluator = Evaluator(model, plan.preprocessing, plan.source, Devices())
        answers += [evaluator.outputs(test), evaluator.outputs(test)]
        kind = type(evaluator._batches[id(test)]).__name__
        assert ("Cache" in kind) == bool(room)
    assert len(answers[0]) == len(test)
    for other in answers[1:]:
        np.testing.assert_array_equal(answers[0], other)


def test_the_first_gradients_are_those_of_the_model(found: StudyResult) -> None:
    """Of the first batch, computed without anything of the study."""
    model = reszoo.mlp(6, seed=1)
    seen = found.of(Variant(layers=6, shortcut="identity"))[1]
    plan = plan_of(found)
    images, targets = next(plan.batches(1, 0))
    pixels = plan.preprocessing.normalise(tf.cast(images, tf.float32))
    with tf.GradientTape() as tape:
        scores = model(pixels, training=True)
        loss = keras.losses.sparse_categorical_crossentropy(targets, scores, True)
        loss = tf.reduce_mean(loss)
    kernels = [v.value for v in model.trainable_variables if v.path.endswith("kernel")]
    norms = [float(tf.norm(g)) for g in tape.gradient(loss, kernels)]
    np.testing.assert_allclose(seen.snapshots[0].gradients, norms, rtol=2e-3)
    fresh = reszoo.mlp(6, seed=1)
    relu = keras.Model(fresh.input, fresh.get_layer("block0.relu1").output)
    scale = float(np.std(relu(pixels, training=True)))
    np.testing.assert_allclose(seen.snapshots[0].activations[1], scale, rtol=2e-3)


def test_a_snapshot_changes_nothing(found: StudyResult) -> None:
    plan, model = plan_of(found), reszoo.mlp(6, seed=1)
    trainer = VariantTrainer(model, plan)
    before = [variable.numpy() for variable in model.variables]
    batch = next(plan.batches(1, 0))
    snapshot = trainer.snapshot(*batch, step=3)
    assert (snapshot.step, len(snapshot.gradients)) == (3, 6)
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value, err_msg=variable.path)


def plan_of(found: StudyResult) -> StudyPlan:
    preprocessing = default_preprocessing(SPECS["resnet20"])
    batch = found.conditions["recipe's batch_size"]
    recipe = find_recipe("he2015-cifar", steps=8, batch_size=batch, crop="none")
    return StudyPlan(
        source=open_source("digits"),
        preprocessing=replace(preprocessing, train_size=8, eval_size=8, crop_pct=1.0),
        augmentation=Augmentation(),
        phase=phases(recipe, 1259)[0],
        folder=found.folder,
        save_every=1e9,
    )


@pytest.mark.slow
def test_a_study_that_was_stopped_is_resumed_exactly(
    found: StudyResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = StudyRun._train
    steps: list[int] = []

    def signalled(self: StudyRun, *batch: tf.Tensor) -> tuple[float, int]:
        steps.append(self._step)
        if len(steps) == 21:
            # In the middle of the third run of four.
            signal.raise_signal(signal.SIGTERM)
        return train(self, *batch)

    with monkeypatch.context() as patched:
        patched.setattr(StudyRun, "_train", signalled)
        with pytest.raises(Stopped):
            reszoo.study("dense", output=tmp_path, **SMALL)
    assert steps == [*range(8), *range(8), *range(5)]
    assert len(read_results(tmp_path).runs) == 2
    resumed = reszoo.study("dense", output=tmp_path, resume=True, **SMALL)
    assert numbers(resumed) == numbers(found)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([PAGE, RESULTS, *PLOTS])


@pytest.mark.slow
def test_a_study_that_was_killed_is_resumed_exactly(
    found: StudyResult, tmp_path: Path
) -> None:
    """After every step, among them the last before a point and the last of a run."""
    code = (
        "import os, signal, sys, reszoo\n"
        "from reszoo.studies.study import StudyRun\n"
        "save, left = StudyRun.save, int(sys.argv[2])\n"
        "def killed(run):\n"
        "    global left\n"
        "    save(run)\n"
        "    left -= 1\n"
        "    if not left: os.kill(os.getpid(), signal.SIGKILL)\n"
        "StudyRun.save = killed\n"
        "reszoo.study('dense', output=sys.argv[1], resume=True, layers=(6,), seeds=2,\n"
        "    steps=8, save_every=0)\n"
    )
    for saves in ("5", "4", "16"):
        arguments = [sys.executable, "-c", code, str(tmp_path), saves]
        killed = subprocess.run(arguments, capture_output=True, check=False)
        assert killed.returncode == -signal.SIGKILL
        assert (tmp_path / STATE).exists()
    resumed = reszoo.study("dense", output=tmp_path, resume=True, **SMALL)
    assert numbers(resumed) == numbers(found)


@pytest.mark.slow
def test_seeds_can_be_added_and_nothing_else_changed(
    found: StudyResult, tmp_path: Path
) -> None:
    options = {**SMALL, "shortcuts": ("none",), "output": tmp_path}
    one = reszoo.study("dense", **{**options, "seeds": 1})
    more = reszoo.study("dense", **options, resume=True)
    assert more.runs[0] == one.runs[0]
    assert sorted(map(str, numbers(more))) == sorted(
        str(each) for each in numbers(found) if each.variant.plain
    )
    with pytest.raises(reszoo.UsageError, match="already holds a study"):
        reszoo.study("dense", **options)
    with pytest.raises(reszoo.UsageError, match="recipe's steps was 8, is 9"):
        reszoo.study("dense", **{**options, "steps": 9}, resume=True)
    assert len(read_results(tmp_path).runs) == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {"layers": (21,)},
            r"networks of 8, 14, 20, 32, 44, 56, 110, 1202 layers. Received: 21",
        ),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"recipe": "finetune"}, "A study trains from scratch"),
        ({"accumulate": 2, "crop": "resized"}, "with accumulate, crop=resized; use"),
        ({"shortcuts": ("no",)}, "Unknown shortcut 'no'"),
        ({"resume": True, "overwrite": True}, "give only one"),
    ],
)
def test_what_cannot_be_studied_is_refused(
    options: Any, told: str, tmp_path: Path
) -> None:
    with pytest.raises(reszoo.UsageError, match=told):
        reszoo.study(output=tmp_path / "study", **options)
    assert not (tmp_path / "study").exists()


@pytest.mark.slow
def test_shortcuts_let_fifty_dense_layers_learn(tmp_path: Path) -> None:
    result = reszoo.study("dense", layers=(50,), seeds=1, steps=70, output=tmp_path)
    plain, residual = result.runs
    assert plain.parameters == residual.parameters
    assert plain.training_error > 0.6
    assert residual.training_error < 0.25
    first, _, _ = plain.snapshots
    assert first.gradients[0] > 100 * first.gradients[-2]
    first, _, _ = residual.snapshots
    assert max(first.gradients) < 100 * min(first.gradients)


@pytest.mark.slow
def test_convolutional_networks_learn_too(tmp_path: Path) -> None:
    shortcuts = ("projection", "none")
    result = reszoo.study(
        layers=(20,), shortcuts=shortcuts, seeds=1, steps=30, output=tmp_path
    )
    plain, residual = result.runs
    assert (plain.variant.label, residual.variant.label) == (
        "plain-20",
        "residual-20 (B)",
    )
    assert residual.parameters > plain.parameters
    assert residual.training_error < plain.training_error < 0.8
    assert len(residual.snapshots[0].gradients) == 20
    assert len(residual.snapshots[0].activations) == 19


def made(errors: dict[tuple[str, int], list[float]]) -> StudyResult:
    """A study that ended with these training errors."""
    found = [
        RunResult(
            variant=Variant(layers=layers, shortcut=shortcut),
            seed=seed,
            parameters=1,
            seconds=1,
            diverged=False,
            points=(Point(step=1, loss=1, training_error=error, test_error=0.5),),
            snapshots=(),
        )
        for (shortcut, layers), each in errors.items()
        for seed, error in enumerate(each)
    ]
    return StudyResult(data="d", conditions={}, runs=tuple(found), folder=Path())


@pytest.mark.parametrize(
    ("plain", "residual", "told"),
    [
        (([0.02, 0.03], [0.4, 0.5]), ([0.02, 0.02], [0.01, 0.02]), "supports the cl"),
        (
            ([0.02, 0.03], [0.4, 0.5]),
            ([0.02, 0.02], [0.3, 0.4]),
            "only half of the claim",
        ),
        (
            ([0.02, 0.03], [0.8, 0.9]),
            ([0.02, 0.02], [0.04, 0.04]),
            "mostly supports the claim: .* by 82.5 p.* by 2.0",
        ),
        (([0.02, 0.30], [0.1, 0.4]), ([0.02, 0.02], [0.01, 0.02]), "not decide the"),
        # As 180 photos gave.
        (
            ([0.50, 0.51], [0.63, 0.63]),
            ([0.40, 0.41], [0.73, 0.73]),
            "does not support the claim: .*residual networks rose by 32.5 points",
        ),
        (
            ([0.02, 0.30], [0.1, 0.4]),
            ([0.02, 0.02], [0.51, 0.52]),
            "does not support the claim: .*residual networks rose by 49.5 points",
        ),
        (([0.4, 0.5], [0.02, 0.03]), ([0.02, 0.02], [0.01, 0.02]), "not support the"),
        (
            ([0.02], [0.5]),
            ([0.02], [0.02]),
            "supports the claim.*A single seed shows no",
        ),
    ],
)
def test_the_conclusion_follows_from_the_numbers(
    plain: Any, residual: Any, told: str
) -> None:
    errors = {("none", 20): plain[0], ("none", 56): plain[1]}
    errors |= {("identity", 20): residual[0], ("identity", 56): residual[1]}
    *_, verdict = conclude(made(errors))
    assert re.search(told, verdict), verdict


def test_the_conclusion_states_the_errors_and_their_spread() -> None:
    errors = {("none", 20): [0.02, 0.04], ("none", 56): [0.5, 0.6]}
    first, verdict = conclude(made(errors))
    assert first == (
        "Plain networks: the training error rises with depth, from 3.00 ± 1.41 % (20 "
        "layers) to 55.00 ± 7.07 % (56 layers)."
    )
    assert "only one kind is here" in verdict
    assert str(spread([0.5])) == "50.00"


def test_networks_near_chance_are_told_from_a_result() -> None:
    near = made(
        {
            ("none", 20): [0.69, 0.70], ("none", 56): [0.71, 0.72],
            ("identity", 20): [0.68, 0.68], ("identity", 56): [0.72, 0.72],
        }
    )  # fmt: skip
    four = {"data's classes": ["a", "b", "c", "d"]}
    *_, verdict = conclude(replace(near, conditions=four))
    assert verdict.startswith("This does not support the claim: the models had not ")
    assert "learned yet. The training error (plain-20 69.5 %, residual-20" in verdict
    assert "had not learned" in conclude(replace(near, chance=0.76))[-1]
    assert "had not learned" not in conclude(replace(near, chance=0.9))[-1]
    deep = {("none", 20): [0.1, 0.1], ("none", 56): [0.6, 0.6]}
    deep |= {("identity", 20): [0.1, 0.1], ("identity", 56): [0.7, 0.7]}
    *_, verdict = conclude(replace(made(deep), conditions=four))
    assert "does not support the claim" in verdict
    assert "the models had not learned yet. The training error (residual-56 " in verdict
    deep[("identity", 56)] = [0.1, 0.1]
    *_, verdict = conclude(replace(made(deep), conditions=four))
    assert verdict.startswith("This supports the claim")
    assert "not learned" not in verdict


def test_the_orders_of_activation_are_compared_at_the_greatest_depth() -> None:
    errors = {("none", 20): [0.1, 0.1], ("none", 56): [0.6, 0.6]}
    errors |= {("identity", 20): [0.1, 0.1], ("identity", 56): [0.2, 0.21]}
    errors |= {("pre-activation", 20): [0.3, 0.3], ("pre-activation", 56): [0.1, 0.1]}
    *_, pre, order, verdict = conclude(made(errors))
    assert pre.startswith("Pre-activation networks: the training error falls with d")
    assert order == (
        "With 56 layers, the training error of pre-activation networks is lower than "
        "that of residual networks: 10.00 ± 0.00 % against 20.50 ± 0.71 %."
    )
    assert "plain networks rose by 50.0 points with depth, that of residual" in verdict


def own_models() -> dict[str, Any]:
    def linear(input_shape: Any, classes: int) -> keras.Model:
        layers = keras.layers
        dense = layers.Dense(classes)
        return keras.Sequential([layers.Input(input_shape), layers.Flatten(), dense])

    return {"linear": linear, "perceptron": lambda: reszoo.mlp(4, seed=3)}


@pytest.mark.slow
def test_models_of_ones_own_are_compared(tmp_path: Path) -> None:
    result = reszoo.study(
        models=own_models(), seeds=2, steps=40, batch_size=32, crop="none",
        learning_rate=0.01, output=tmp_path,
    )  # fmt: skip
    assert [v.label for v in result.variants] == ["linear-1", "perceptron-4"]
    linear, perceptron = (result.of(variant)[0] for variant in result.variants)
    assert (linear.parameters, len(linear.snapshots[0].gradients)) == (1930, 1)
    assert max(perceptron.training_error, linear.training_error) < 0.3
    assert len({run.points for run in result.runs}) == 4
    (told,) = result.conclusion
    assert re.match(r"\S+ has the lowest training error, .*; \S+ does not .* %\.", told)
    assert "models of one&#39;s own" in (tmp_path / PAGE).read_text()
    assert read_results(tmp_path) == result


def test_models_of_ones_own_are_ordered_by_error() -> None:
    errors = {("a", 2): [0.1, 0.1], ("b", 3): [0.3, 0.3], ("c", 3): [0.1, 0.1]}
    (told,) = conclude(made(errors))
    assert told == (
        "a-2 has the lowest training error, 10.00 ± 0.00 %; c-3 does not differ beyond "
        "the spread of seeds, 10.00 ± 0.00 %; b-3 is higher, 30.00 ± 0.00 %."
    )


@pytest.mark.parametrize(
    ("models", "options", "told"),
    [
        ({"none": lambda: None}, {}, "needs another name than none, identity"),
        ({"a": lambda depth: None}, {}, "'a', which needs depth"),
        ({"a": lambda layers: None}, {}, r"layers needs layers=\(20, 56\)"),
        ({"a": lambda: None}, {"layers": (4,)}, "takes? the number of layers"),
        ({"a": lambda: None}, {"shortcuts": ("none",)}, "instead of a family"),
        ({"a": lambda: None}, {}, "must return a functional.* Received: NoneType"),
        ({"a": lambda: reszoo.mlp(4, classes=3)}, {}, r"return 10 logits. .* \(3,\)"),
    ],
)
def test_models_that_cannot_be_studied_are_refused(
    models: Any, options: Any, told: str, tmp_path: Path
) -> None:
    with pytest.raises(reszoo.UsageError, match=told):
        reszoo.study(models=models, output=tmp_path / "study", **options)
    assert not (tmp_path / "study").exists()


@pytest.mark.slow
def test_builders_get_the_depths_of_the_study(tmp_path: Path) -> None:
    result = reszoo.study(
        models={"mlp": reszoo.mlp}, layers=(6, 4), seeds=1, steps=2, output=tmp_path
    )
    assert [variant.label for variant in result.variants] == ["mlp-4", "mlp-6"]
    assert [len(run.snapshots[0].gradients) for run in result.runs] == [4, 6]
    assert "does not change" in result.conclusion[0] or "mlp:" in result.conclusion[0]


def table() -> tuple[Any, Any]:
    """Two classes that differ in one of five columns of unlike scales."""
    random = np.random.default_rng(0)
    labels = np.arange(200) % 2
    rows = random.normal(size=(200, 5)) * [1, 1e4, 1e-3, 1, 0] + 7
    rows[:, 1] += 3e4 * labels
    return rows, np.where(labels, "ill", "well")


@pytest.mark.slow
def test_dense_networks_take_tables(tmp_path: Path) -> None:
    options: dict[str, Any] = {"layers": (4,), "seeds": 1, "steps": 40}
    result = reszoo.study("dense", table(), output=tmp_path / "study", **options)
    assert result.chance == 0.5
    for each in result.runs:
        assert each.test_error < 0.1
        assert len(each.snapshots[0].gradients) == 4
    page = (tmp_path / "study" / PAGE).read_text()
    assert "rows of 5 columns" in page
    rows, labels = table()
    both = {"train": (rows, labels), "test": (rows[:9], labels[:9])}
    options |= {"shortcuts": ("none",), "steps": 1}
    split = reszoo.study("dense", both, output=tmp_path / "split", **options)
    assert split.conditions["data's test"]["images"] == 9
    with pytest.raises(
        reszoo.UsageError, match=r'images\. Received: a table.*="dense"'
    ):
        reszoo.study("cifar", table(), output=tmp_path / "other")
    rows[3, 3] = np.nan
    with pytest.raises(reszoo.DataError, match="1 values that are missing or infinite"):
        reszoo.study("dense", (rows, labels), output=tmp_path / "other")


def test_gradient_norms_are_those_of_the_loss_and_change_nothing() -> None:
    model = reszoo.mlp(6, input_shape=(4,), classes=3, seed=1)
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    y = np.arange(8) % 3
    before = [each.numpy() for each in model.variables]
    norms = reszoo.gradient_norms(model, x, y)
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value, err_msg=variable.path)
    assert list(norms) == [
        "linear1", "block0.linear1", "block0.linear2", "block1.linear1",
        "block1.linear2", "fc",
    ]  # fmt: skip
    # By differences of the loss along the gradient of the last layer: its norm.
    kernel = model.get_layer("fc").kernel
    probabilities = keras.Model(
        model.input, keras.layers.Softmax(name="p")(model.output)
    )
    assert reszoo.gradient_norms(probabilities, x, y)["fc"] == pytest.approx(
        norms["fc"], rel=1e-4
    )

    def loss() -> float:
        scores = model(x, training=True)
        losses = keras.losses.sparse_categorical_crossentropy(y, scores, True)
        return float(np.mean(losses))

    with tf.GradientTape() as tape:
        scores = model(x, training=True)
        mean = tf.reduce_mean(
            keras.losses.sparse_categorical_crossentropy(y, scores, True)
        )
    gradient = tape.gradient(mean, kernel.value)
    step = 1e-2 * gradient / tf.norm(gradient)
    kernel.assign(kernel + step)
    above = loss()
    kernel.assign(kernel - 2 * step)
    assert (above - loss()) / 2e-2 == pytest.approx(norms["fc"], rel=1e-2)
    with pytest.raises(
        reszoo.UsageError, match=r"integers from 0 to 2\. Received: int"
    ):
        reszoo.gradient_norms(model, x, y + 1)


@pytest.mark.parametrize("kind", ["none", "identity", "pre-activation"])
def test_only_the_ends_of_blocks_are_drawn(kind: str) -> None:
    """A plot of all activations zigzags between the inside of blocks and their ends."""
    from reszoo.studies.study import activations

    family = find_family("preact")
    model = family.build(Variant(layers=8, shortcut=kind), (8, 8, 3), 10)
    outputs, ends = activations(model)
    names = [outputs[index]._keras_history.operation.name for index in ends]
    blocks = [f"layer{stage}.0" for stage in (1, 2, 3)]
    if kind == "pre-activation":
        assert names == [*(f"{block}.add" for block in blocks), "relu"]
    else:
        assert names == ["relu", *(f"{block}.relu" for block in blocks)]


def test_a_run_that_diverged_counts_as_wrong() -> None:
    (run,) = made({("none", 20): [0.1]}).runs
    assert replace(run, diverged=True).training_error == 1
    assert replace(run, diverged=True).test_error == 1


def test_the_page_shows_plots_table_and_conclusion(found: StudyResult) -> None:
    page = (found.folder / PAGE).read_text()
    assert page.count("<img") == len(PLOTS)
    assert "<script" not in page
    for sentence in found.conclusion:
        assert sentence.replace("'", "&#39;") in page
    for name in PLOTS:
        with Image.open(found.folder / name) as plot:
            assert min(plot.size) > 400
            assert len(plot.convert("RGB").getcolors(1 << 20) or ()) > 50


def test_a_study_page_is_safe_and_needs_no_snapshots(
    found: StudyResult, tmp_path: Path
) -> None:
    runs = tuple(replace(run, snapshots=(), points=()) for run in found.runs)
    diverged = tuple(replace(run, diverged=True) for run in runs)
    data = "<script>$x_{\udcff\n"
    write_page(replace(found, folder=tmp_path, data=data, runs=diverged))
    page = (tmp_path / PAGE).read_text()
    assert page.count("&lt;script&gt;$x_{\\xff\\n") == 2
    assert "<script" not in page


def test_plots_and_page_are_reproducible(found: StudyResult, tmp_path: Path) -> None:
    write_page(replace(found, folder=tmp_path))
    for name in (PAGE, *PLOTS):
        assert (tmp_path / name).read_bytes() == (found.folder / name).read_bytes()


def test_results_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / RESULTS).write_text("{}")
    with pytest.raises(reszoo.DataError, match="does not hold the results"):
        read_results(tmp_path)
    (tmp_path / RESULTS).write_text(json.dumps({"version": 9}))
    with pytest.raises(reszoo.DataError, match="version 9"):
        read_results(tmp_path)


def test_results_of_version_1_can_be_read(found: StudyResult, tmp_path: Path) -> None:
    content = json.loads((found.folder / RESULTS).read_text())
    runs = content.pop("runs")
    courses = [{**run, "net": run["variant"]} for run in runs]
    for course in courses:
        del course["variant"]
    old = json.dumps({**content, "version": 1, "courses": courses})
    (tmp_path / RESULTS).write_text(old)
    assert read_results(tmp_path) == replace(found, folder=tmp_path)


def test_families_order_plain_before_residual() -> None:
    shortcuts = ("projection", "identity", "none")
    variants = find_family("cifar").variants((56, 20), shortcuts)
    assert [variant.label for variant in variants] == [
        "plain-20", "plain-56", "residual-20 (A)", "residual-56 (A)",
        "residual-20 (B)", "residual-56 (B)",
    ]  # fmt: skip


def test_the_picture_of_the_docs_is_drawn_from_the_results_in_the_docs() -> None:
    script = script_of("benchmarks/study_plots.py")
    with (
        Image.open(script.PICTURE) as kept,
        Image.open(io.BytesIO(script.picture())) as drawn,
    ):
        assert kept.size == drawn.size
        difference = np.abs(np.asarray(kept, float) - np.asarray(drawn, float))
    assert difference.mean() < 1
    result = json.loads((script.DOCS / "preact-study.json").read_text())
    assert {run["variant"]["shortcut"] for run in result["runs"]} == {
        "none", "identity", "pre-activation",
    }  # fmt: skip
    assert len(result["runs"]) == 27
