"""The rules of verification against answers made up to break each one."""

from typing import Any

import numpy as np
import pytest

from reszoo_export.formats import FORMATS, TOLERANCES
from reszoo_export.verification.comparison import feature_problems, probability_problems
from reszoo_export.verification.reference import Reference

INT8 = FORMATS["tflite-int8"]


def rows(first: Any, second: Any, top: float, share: float, classes: int = 10) -> Any:
    """Probabilities: `top` for the first class, `share` of that for the second."""
    rest = (1 - top * (1 + share)) / (classes - 2)
    answers = np.full((len(first), classes), rest, np.float32)
    answers[np.arange(len(first)), first] = top
    answers[np.arange(len(first)), second] = top * share
    return answers


def complaints(answers: Any, expected: Any, labels: Any, row: Any = INT8) -> list[str]:
    images = np.zeros((len(expected), 2, 2, 3), np.uint8)
    reference = Reference(images, expected, np.asarray(labels), 0)
    return probability_problems(row.tolerance, answers, reference)


def flipped(share: float, count: int, *, right: bool) -> list[str]:
    """Judge a file that takes the second class for the first on some images."""
    first = np.arange(100) % 10
    second, neither = (first + 1) % 10, np.arange(100) // 10
    expected, answers = rows(first, second, 0.4, share), rows(first, second, 0.4, share)
    answers[:count] = rows(second[:count], first[:count], 0.4, share)
    return complaints(answers, expected, first if right else neither)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("classes", "top"), [(3, 0.35), (10, 0.8), (1000, 0.09)])
def test_one_and_the_same_answer_never_passes(
    name: str, classes: int, top: float
) -> None:
    first = np.linspace(0, classes - 1, 120).astype(int)
    expected = rows(first, (first + 1) % classes, top, 0.95 * (classes < 10), classes)
    answers = np.zeros_like(expected)
    answers[:, 0] = 1
    for constant in (answers, np.repeat(expected[:1], 120, axis=0)):
        found = " ".join(complaints(constant, expected, first, FORMATS[name]))
        assert "100.00% of the images get one and the same class" in found
        assert "the top-1 agreement with the model is" in found
        if "int8" in name:
            assert "accuracy dropped from 100.00%" in found


def test_two_classes_that_are_nearly_even_excuse_nothing() -> None:
    """The model is undecided about every image: each answer counts as a tie."""
    first = np.arange(100) % 2
    expected = np.where(first[:, None] == [0, 1], 0.52, 0.48).astype(np.float32)
    found = " ".join(complaints(expected[:1].repeat(100, axis=0), expected, first))
    assert "agreement with the model is 50.00%, ties not included" in found
    assert "accuracy dropped from 100.00% to 50.00%" in found
    assert "ties included" not in found


def test_min_agreement_of_int8_holds() -> None:
    assert flipped(0.88, 3, right=False) == []
    (problem,) = flipped(0.88, 4, right=False)
    assert (
        "agreement with the model is 96.00%, ties included; at least 97.00%" in problem
    )


def test_ties_of_int8_count_as_agreement_up_to_the_floor() -> None:
    assert flipped(0.92, 10, right=False) == []
    (problem,) = flipped(0.92, 11, right=False)
    assert "is 89.00%, ties not included; at least 90.00% is required" in problem


def test_accuracy_may_fall_by_what_chance_explains() -> None:
    """Of a hundred images: twice the root of those about which the two disagree."""
    assert flipped(0.92, 4, right=True) == []
    (problem,) = flipped(0.92, 5, right=True)
    assert (
        "accuracy dropped from 100.00% to 95.00%; at most 1.00% is allowed" in problem
    )
    assert "and chance explains 4.47%" in problem


@pytest.mark.parametrize(("fell", "rose"), [(10, 0), (12, 2), (15, 5)])
def test_max_accuracy_drop_of_int8_holds_where_images_are_many(
    fell: int, rose: int
) -> None:
    first = np.arange(1000) % 10
    expected = rows(first, (first + 1) % 10, 0.4, 0.92)
    answers, labels = expected.copy(), first.copy()
    # The file is right about the last images alone, and wrong about the first.
    labels[1000 - rose :] = (first[1000 - rose :] + 1) % 10
    changed = np.r_[:fell, 1000 - rose : 1000]
    answers[changed] = rows((first[changed] + 1) % 10, first[changed], 0.4, 0.92)
    assert complaints(answers, expected, labels) == []
    answers[500] = rows(first[500:501] + 1, first[500:501], 0.4, 0.92)
    (problem,) = complaints(answers, expected, labels)
    assert "at most 1.00% is allowed, and chance explains" in problem


def test_int8_may_move_only_so_much_probability() -> None:
    first = np.arange(100) % 10
    expected = rows(first, (first + 1) % 10, 0.8, 0)
    for top, moved in ((0.66, None), (0.64, "16.00%")):
        found = complaints(rows(first, (first + 1) % 10, top, 0), expected, first)
        told = [problem for problem in found if "total variation" in problem]
        assert [moved in problem for problem in told if moved] == [True] * bool(moved)
        assert bool(told) == bool(moved)


@pytest.mark.parametrize(("top", "drift"), [(0.71, None), (0.69, "-11.00%")])
def test_int8_may_lose_only_so_much_confidence(top: float, drift: str | None) -> None:
    first = np.arange(100) % 10
    expected = rows(first, (first + 1) % 10, 0.8, 0)
    found = complaints(rows(first, (first + 1) % 10, top, 0), expected, first)
    assert found == (
        [f"the mean confidence changed by {drift}; at most 10.00% is allowed"]
        if drift
        else []
    )


def test_flat_answers_are_judged_by_what_tells_them_apart() -> None:
    """All answers lie within 0.002: no absolute rule sees that they became one."""
    expected = rows(np.arange(20) % 10, (np.arange(20) + 1) % 10, 0.101, 0.99)
    blurred = (expected + 2 * expected.mean(axis=0)) / 3
    images, labels = np.zeros((20, 2, 2, 3), np.uint8), np.zeros(0, np.int64)
    reference = Reference(images, expected, labels, 20)
    (problem,) = probability_problems(INT8.tolerance, blurred, reference)
    assert (
        "is 67% of the model's own variation between images; at most 50.00%" in problem
    )
    closer = (2 * expected + expected.mean(axis=0)) / 3
    assert probability_problems(INT8.tolerance, closer, reference) == []


def undecided(lead: float, tolerance: Any) -> list[str]:
    """Judge a file that takes the model's second class where it leads by `lead`."""
    expected = np.array([[0.4, 0.4 - lead, 0.2 + lead]] * 20, np.float32)
    answers = expected.copy()
    answers[0] = answers[0, [1, 0, 2]]
    images, labels = np.zeros((20, 2, 2, 3), np.uint8), np.zeros(20, np.int64)
    reference = Reference(images, expected, labels, 0)
    found = probability_problems(tolerance, answers, reference)
    return [problem for problem in found if "ties included" in problem]


def test_only_a_small_lead_excuses_floating_point() -> None:
    assert not undecided(0.9e-4, TOLERANCES["float32"])
    assert "is 95.00%, ties included" in undecided(1.1e-4, TOLERANCES["float32"])[0]
    assert not undecided(4.9e-3, TOLERANCES["float16"])
    assert undecided(5.1e-3, TOLERANCES["float16"])


def test_labels_in_another_order_are_told_from_bad_answers() -> None:
    shown = np.arange(100) % 10
    turned = (shown + 3) % 10
    expected = rows(turned, (turned + 1) % 10, 0.8, 0)
    (problem,) = complaints(expected, expected, shown)
    assert "the labels seem to be in another order: accuracy is 0.00%" in problem
    assert "would be 100.00% if class 0 were 7" in problem
    poor = rows(np.arange(100) // 10, (shown + 1) % 10, 0.8, 0)
    assert complaints(poor, poor, shown) == []
    assert complaints(expected, expected, turned) == []


@pytest.mark.parametrize(
    ("tolerance", "noise", "told"),
    [
        (TOLERANCES["float32"], 1e-5, None),
        (TOLERANCES["float32"], 1e-3, "of the largest one; at most 0.0001 is allowed"),
        (INT8.tolerance, 0.1, None),
        (INT8.tolerance, 1.0, "at least 0.97 is required"),
    ],
)
def test_features_are_judged_by_size_and_direction(
    tolerance: Any, noise: float, told: str | None
) -> None:
    draw = np.random.default_rng(0)
    expected = draw.uniform(0, 2, (20, 64)).astype(np.float32)
    answers = (expected + noise * draw.normal(size=(20, 64))).astype(np.float32)
    images, labels = np.zeros((20, 2, 2, 3), np.uint8), np.zeros(0, np.int64)
    found = feature_problems(
        tolerance, answers, Reference(images, expected, labels, 20)
    )
    assert [told in problem for problem in found if told] == [True] * bool(told)
    assert bool(found) == bool(told)


@pytest.mark.parametrize(
    ("of_model", "of_file", "seen"), [(79, 96, True), (79, 95, False), (80, 96, False)]
)
def test_a_file_that_prefers_one_class_more_than_its_model_is_seen(
    of_model: int, of_file: int, seen: bool
) -> None:
    most = [np.where(np.arange(100) < n, 0, 1) for n in (of_model, of_file)]
    expected, answers = (rows(first, 1 - first, 0.9, 0) for first in most)
    found = str(complaints(answers, expected, most[0]))
    assert ("one and the same class" in found) == seen
