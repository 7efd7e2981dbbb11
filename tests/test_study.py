"""The study: its numbers, that it goes on exactly, and what it concludes."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import reszoo
from reszoo.data.pipeline import Augmentation
from reszoo.preprocessing import default_preprocessing
from reszoo.report.study import PAGE, PLOT_SECTIONS, write_page
from reszoo.specs import SPECS
from reszoo.studies import course
from reszoo.studies.families import Net, find_family
from reszoo.studies.results import (
    RESULTS,
    Course,
    Point,
    StudyResult,
    conclude,
    read_results,
    spread,
)
from reszoo.training.state import Stopped

SMALL: dict[str, Any] = {"layers": (6,), "seeds": 2, "steps": 8, "save_every": 1e9}


def numbers(result: StudyResult) -> list[Course]:
    """All that must repeat itself."""
    return [replace(course, seconds=0) for course in result.courses]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    return reszoo.study("dense", output=tmp_path_factory.mktemp("study"), **SMALL)


def test_the_same_seed_gives_the_same_numbers(
    found: StudyResult, tmp_path: Path
) -> None:
    again = reszoo.study("dense", output=tmp_path, **SMALL)
    assert numbers(again) == numbers(found)
    assert len({course.points for course in found.courses}) == 4
    assert read_results(found.folder) == found


def test_test_images_beyond_the_room_for_them_are_prepared_each_time(
    found: StudyResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan_of(found)
    kept = made.judging
    monkeypatch.setattr(course, "_KEPT", len(made.test) * 8 * 8 * 3 - 1)
    anew = plan_of(found).judging
    assert isinstance(kept, list)
    assert isinstance(anew, tf.data.Dataset)
    for one, other in zip(kept, anew, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])
    assert sum(len(labels) for _, labels in kept) == len(made.test)


def test_the_first_gradients_are_those_of_the_net(found: StudyResult) -> None:
    """Of the first batch, computed anew without anything of the study."""
    net, seen = reszoo.mlp(6, seed=1), found.of(Net(layers=6, shortcut="identity"))[1]
    plan: list[Any] = []

    def keep(batches: Any) -> Any:
        plan.append(next(iter(batches)))
        return iter(plan)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(course, "quietly", keep)
        made = plan_of(found)
        images, labels = next(made.batches(1, 0))
    pixels = made.record.normalise(tf.cast(images, tf.float32))
    with tf.GradientTape() as tape:
        scores = net(pixels, training=True)
        loss = keras.losses.sparse_categorical_crossentropy(labels, scores, True)
        loss = tf.reduce_mean(loss)
    kernels = [v.value for v in net.trainable_variables if v.path.endswith("kernel")]
    norms = [float(tf.norm(g)) for g in tape.gradient(loss, kernels)]
    np.testing.assert_allclose(seen.snapshots[0].gradients, norms, rtol=2e-3)
    fresh = reszoo.mlp(6, seed=1)
    relu = keras.Model(fresh.input, fresh.get_layer("block0.relu1").output)
    scale = float(np.std(relu(pixels, training=True)))
    np.testing.assert_allclose(seen.snapshots[0].activations[1], scale, rtol=2e-3)


def plan_of(found: StudyResult) -> course.Plan:
    source = reszoo.data.sources.open_source("digits")
    return course.Plan(
        train=source.examples("train"),
        test=source.examples("test"),
        record=record_of_eight(),
        augmentation=Augmentation(),
        phase=phase_of(found),
        folder=found.folder,
        save_every=1e9,
    )


def record_of_eight() -> Any:
    record = default_preprocessing(SPECS["resnet20"])
    return replace(record, train_size=8, eval_size=8, crop_pct=1.0)


def phase_of(found: StudyResult) -> Any:
    from reszoo.training.phases import phases
    from reszoo.training.recipe_table import find_recipe

    batch = found.conditions["recipe's batch_size"]
    recipe = find_recipe("he2015-cifar", steps=8, batch_size=batch, crop="none")
    return phases(recipe, 1259)[0]


def test_a_study_that_was_stopped_goes_on_exactly(
    found: StudyResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = course._take_step
    steps: list[int] = []

    def stopping(learner: Any, plan: Any, so_far: Any, batch: Any) -> bool:
        if len(steps) == 21:
            # In the middle of the third course of four.
            course._save(learner, Net(layers=6, shortcut="identity"), 0, plan, so_far)
            raise Stopped
        steps.append(so_far.step)
        return plain(learner, plan, so_far, batch)

    with monkeypatch.context() as patched:
        patched.setattr(course, "_take_step", stopping)
        with pytest.raises(Stopped):
            reszoo.study("dense", output=tmp_path, **SMALL)
    assert len(read_results(tmp_path).courses) == 2
    resumed = reszoo.study("dense", output=tmp_path, resume=True, **SMALL)
    assert numbers(resumed) == numbers(found)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [PAGE, RESULTS, *PLOT_SECTIONS]
    )


def test_seeds_can_be_added_and_nothing_else_changed(
    found: StudyResult, tmp_path: Path
) -> None:
    options = {**SMALL, "shortcuts": ("none",), "output": tmp_path}
    one = reszoo.study("dense", **{**options, "seeds": 1})
    more = reszoo.study("dense", **options, resume=True)
    assert more.courses[0] == one.courses[0]
    assert sorted(map(str, numbers(more))) == sorted(
        str(each) for each in numbers(found) if each.net.plain
    )
    with pytest.raises(reszoo.UsageError, match="holds a study already"):
        reszoo.study("dense", **options)
    with pytest.raises(reszoo.UsageError, match="recipe's steps was 8, is 9"):
        reszoo.study("dense", **{**options, "steps": 9}, resume=True)
    assert len(read_results(tmp_path).courses) == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"layers": (21,)}, r"nets of 20, 32, 44, 56, 110 layers. Received: 21"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"recipe": "finetune"}, "trains whole nets from scratch"),
        ({"accumulate": 2, "crop": "resized"}, "with accumulate, crop=resized; take"),
        ({"shortcuts": ("no",)}, "There is no shortcut 'no'"),
        ({"resume": True, "overwrite": True}, "give one"),
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
    plain, residual = result.courses
    assert plain.parameters == residual.parameters
    assert plain.training_error > 0.6
    assert residual.training_error < 0.25
    first, _, _ = plain.snapshots
    assert first.gradients[0] > 100 * first.gradients[-2]
    first, _, _ = residual.snapshots
    assert max(first.gradients) < 100 * min(first.gradients)


@pytest.mark.slow
def test_convolutional_twins_learn_too(tmp_path: Path) -> None:
    shortcuts = ("projection", "none")
    result = reszoo.study(
        layers=(20,), shortcuts=shortcuts, seeds=1, steps=30, output=tmp_path
    )
    plain, residual = result.courses
    assert (plain.net.label, residual.net.label) == ("plain-20", "residual-20 (B)")
    assert residual.parameters > plain.parameters
    assert residual.training_error < plain.training_error < 0.8
    assert len(residual.snapshots[0].gradients) == 20
    assert len(residual.snapshots[0].activations) == 19


def made(errors: dict[tuple[str, int], list[float]]) -> StudyResult:
    """A study that ended with these training errors."""
    found = [
        Course(
            net=Net(layers=layers, shortcut=shortcut),  # type: ignore[arg-type]
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
    return StudyResult(data="d", conditions={}, courses=tuple(found), folder=Path())


@pytest.mark.parametrize(
    ("plain", "residual", "told"),
    [
        (([0.02, 0.03], [0.4, 0.5]), ([0.02, 0.02], [0.01, 0.02]), "supports the cl"),
        (([0.02, 0.03], [0.4, 0.5]), ([0.02, 0.02], [0.3, 0.4]), "half of the claim"),
        (
            ([0.02, 0.03], [0.8, 0.9]),
            ([0.02, 0.02], [0.04, 0.04]),
            "by 82.5 p.* by 2.0",
        ),
        (([0.02, 0.30], [0.1, 0.4]), ([0.02, 0.02], [0.01, 0.02]), "not decide the"),
        (([0.4, 0.5], [0.02, 0.03]), ([0.02, 0.02], [0.01, 0.02]), "not support the"),
        (([0.02], [0.5]), ([0.02], [0.02]), "supports the claim.*One seed shows no"),
    ],
)
def test_the_conclusion_follows_from_the_numbers(
    plain: Any, residual: Any, told: str
) -> None:
    errors = {("none", 20): plain[0], ("none", 56): plain[1]}
    errors |= {("identity", 20): residual[0], ("identity", 56): residual[1]}
    *_, verdict = conclude(made(errors))
    assert re.search(told, verdict), verdict


def test_the_conclusion_tells_the_errors_and_their_spread() -> None:
    errors = {("none", 20): [0.02, 0.04], ("none", 56): [0.5, 0.6]}
    first, verdict = conclude(made(errors))
    assert first == (
        "Plain nets: the training error rises with depth, from 3.00 ± 1.41 % (20 "
        "layers) to 55.00 ± 7.07 % (56 layers)."
    )
    assert "one kind only" in verdict
    assert str(spread([0.5])) == "50.00"


def test_a_course_that_diverged_counts_as_wrong() -> None:
    (course,) = made({("none", 20): [0.1]}).courses
    assert replace(course, diverged=True).training_error == 1
    assert replace(course, diverged=True).test_error == 1


def test_the_page_shows_plots_table_and_conclusion(found: StudyResult) -> None:
    page = (found.folder / PAGE).read_text()
    assert page.count("<img") == len(PLOT_SECTIONS)
    assert "<script" not in page
    for sentence in found.conclusion:
        assert sentence.replace("'", "&#39;") in page
    for name in PLOT_SECTIONS:
        with Image.open(found.folder / name) as plot:
            assert min(plot.size) > 400
            assert len(plot.convert("RGB").getcolors(1 << 20) or ()) > 50


def test_a_study_page_is_safe_and_needs_no_snapshots(
    found: StudyResult, tmp_path: Path
) -> None:
    courses = tuple(
        replace(course, snapshots=(), points=()) for course in found.courses
    )
    diverged = tuple(replace(course, diverged=True) for course in courses)
    data = "<script>$x_{\udcff\n"
    write_page(replace(found, folder=tmp_path, data=data, courses=diverged))
    page = (tmp_path / PAGE).read_text()
    assert page.count("&lt;script&gt;$x_{\\xff\\n") == 2
    assert "<script" not in page


def test_plots_and_page_repeat_themselves(found: StudyResult, tmp_path: Path) -> None:
    write_page(replace(found, folder=tmp_path))
    for name in (PAGE, *PLOT_SECTIONS):
        assert (tmp_path / name).read_bytes() == (found.folder / name).read_bytes()


def test_results_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / RESULTS).write_text("{}")
    with pytest.raises(reszoo.DataError, match="not a study's results"):
        read_results(tmp_path)
    (tmp_path / RESULTS).write_text(json.dumps({"version": 9}))
    with pytest.raises(reszoo.DataError, match="version 9"):
        read_results(tmp_path)


def test_families_order_plain_before_residual() -> None:
    nets = find_family("cifar").nets((56, 20), ("projection", "identity", "none"))
    assert [net.label for net in nets] == [
        "plain-20", "plain-56", "residual-20 (A)", "residual-56 (A)",
        "residual-20 (B)", "residual-56 (B)",
    ]  # fmt: skip
