"""The rules of verification against answers made up to break each one."""

from typing import Any

import numpy as np
import pytest

from reszoo_export.formats import FORMATS
from reszoo_export.reference import Reference
from reszoo_export.verify import compare

INT8 = FORMATS["tflite-int8"]


class Scripted:
    """A runtime that gives image number n the n-th answer."""

    name, threads, operators = "scripted", 1, dict[str, int]()
    inputs, outputs = [{"name": "image"}], [{"name": "probabilities"}]

    def __init__(self, answers: Any) -> None:
        self.answers = answers
        self.calls: list[int] = []

    def run(self, images: Any) -> Any:
        self.calls.append(len(images))
        return self.answers[images[:, 0, 0] @ np.array([256, 1, 0])]


def rows(first: Any, second: Any, top: float, share: float, classes: int = 10) -> Any:
    """Probabilities: `top` for the first class, `share` of that for the second."""
    rest = (1 - top * (1 + share)) / (classes - 2)
    answers = np.full((len(first), classes), rest, np.float32)
    answers[np.arange(len(first)), first] = top
    answers[np.arange(len(first)), second] = top * share
    return answers


def complaints(answers: Any, expected: Any, labels: Any, row: Any = INT8) -> list[str]:
    images = np.zeros((len(expected), 2, 2, 3), np.uint8)
    images[:, 0, 0, :2] = np.array(np.divmod(np.arange(len(expected)), 256)).T
    runtime: Any = Scripted(answers)
    reference = Reference(images, expected, np.asarray(labels), 0)
    found = compare(row, runtime, reference)
    assert max(runtime.calls) <= 32
    return list(found.problems)


def flipped(share: float, count: int, *, right: bool) -> list[str]:
    """Judge a file that takes the second class for the first on some images."""
    first = np.arange(100) % 10
    second, third = (first + 1) % 10, (first + 2) % 10
    expected, answers = rows(first, second, 0.4, share), rows(first, second, 0.4, share)
    answers[:count] = rows(second[:count], first[:count], 0.4, share)
    return complaints(answers, expected, first if right else third)


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
        assert "the top-1 is exactly the model's on" in found
        if "int8" in name:
            assert "accuracy fell from 100.00%" in found


def test_two_classes_that_are_nearly_even_excuse_nothing() -> None:
    """The model is undecided about every image: each answer counts as a tie."""
    first = np.arange(100) % 2
    expected = np.where(first[:, None] == [0, 1], 0.52, 0.48).astype(np.float32)
    found = " ".join(complaints(expected[:1].repeat(100, axis=0), expected, first))
    assert "exactly the model's on 50.00%" in found
    assert "accuracy fell from 100.00% to 50.00%" in found
    assert "ties included" not in found


def test_min_agreement_of_int8_holds() -> None:
    assert flipped(0.88, 3, right=False) == []
    (problem,) = flipped(0.88, 4, right=False)
    assert "is the model's on 96.00% of the images, ties included; at least" in problem


def test_ties_of_int8_count_as_agreement_up_to_the_floor() -> None:
    assert flipped(0.92, 10, right=False) == []
    (problem,) = flipped(0.92, 11, right=False)
    assert "exactly the model's on 89.00% of the images; at least 90.00%" in problem


def test_max_accuracy_drop_of_int8_holds_on_ties_as_well() -> None:
    assert flipped(0.92, 1, right=True) == []
    (problem,) = flipped(0.92, 2, right=True)
    assert "accuracy fell from 100.00% to 98.00%; at most 1.00%" in problem


def test_int8_may_move_only_so_much_probability() -> None:
    first = np.arange(100) % 10
    expected = rows(first, (first + 1) % 10, 0.8, 0)
    for top, moved in ((0.66, None), (0.64, "16.00%")):
        found = complaints(rows(first, (first + 1) % 10, top, 0), expected, first)
        assert [problem[:6] for problem in found] == ([moved] if moved else [])


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
