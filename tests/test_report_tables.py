"""The counts of a report, against scikit-learn and by hand."""

import numpy as np
import pytest
from guesses import answers
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    balanced_accuracy_score,
    confusion_matrix,
    precision_recall_fscore_support,
)

from reszoo import metrics


def test_counts_agree_with_scikit_learn() -> None:
    labels, probabilities = answers(7, 300)
    predicted = probabilities.argmax(1)
    confusion = metrics.confusion_matrix(labels, probabilities)
    np.testing.assert_array_equal(confusion, confusion_matrix(labels, predicted))
    rows = metrics.class_rows(confusion)
    truth = precision_recall_fscore_support(labels, predicted)
    for row in rows:
        ours = (row.precision, row.recall, row.f1, row.images)
        assert ours == pytest.approx([numbers[row.index] for numbers in truth])
    recalls = [row.recall for row in rows]
    assert recalls == sorted(truth[1])
    assert metrics.mean_recall(rows) == pytest.approx(
        balanced_accuracy_score(labels, predicted)
    )


def test_counts_by_hand() -> None:
    labels = np.array([0, 0, 0, 0, 1, 2])
    told = np.array([0, 1, 1, 2, 1, 0])
    sure = np.array([0.9, 0.6, 0.8, 0.7, 0.9, 0.8])
    probabilities = np.full((6, 4), 0.01, np.float32)
    probabilities[np.arange(6), told] = sure
    confusion = metrics.confusion_matrix(labels, probabilities)
    two, zero, one, none = metrics.class_rows(confusion)
    assert (two.index, two.recall, two.precision, two.confused_with) == (2, 0.0, 0.0, 0)
    assert (zero.recall, zero.confused_with, zero.confused) == (0.25, 1, 2)
    assert (one.recall, one.precision, one.confused_with) == (1.0, 1 / 3, None)
    # Class 3 has no image and no answer, so there is nothing to divide.
    assert (none.index, none.images) == (3, 0)
    assert none.recall is none.precision is none.f1 is None
    assert metrics.mean_recall([two, zero, one, none]) == pytest.approx(1.25 / 3)
    assert metrics.frequent_confusions(confusion, 2) == [(0, 1, 2), (0, 2, 1)]
    assert metrics.frequent_confusions(confusion, 9)[2:] == [(2, 0, 1)]
    assert metrics.worst_mistakes(labels, probabilities, 3) == [2, 5, 3]
    ties = np.array([[0.4, 0.4, 0.2]], np.float32)
    assert metrics.predictions(ties) == [0]


def test_calibration_agrees_with_scikit_learn_and_by_hand() -> None:
    labels, probabilities = answers(5, 400)
    bins = metrics.calibration_bins(labels, probabilities)
    right = probabilities.argmax(1) == labels
    share, mean = calibration_curve(right, probabilities.max(1), n_bins=15)
    filled = [group for group in bins if group.images]
    assert [group.accuracy for group in filled] == pytest.approx(share)
    assert [group.confidence for group in filled] == pytest.approx(mean)
    # Two images at 0.95, one of them right, and two at 0.55 that are both right.
    sure = np.array([0.95, 0.95, 0.55, 0.55], np.float32)
    four = metrics.calibration_bins(
        np.array([0, 1, 0, 0]), np.stack([sure, 1 - sure], 1), bins=10
    )
    assert [group.images for group in four] == [0] * 5 + [2, 0, 0, 0, 2]
    assert metrics.calibration_error(four) == pytest.approx((0.45 + 0.45) / 2)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below() -> None:
    half = np.array([[0.5, 0.5]], np.float32)
    assert metrics.calibration_bins(np.array([0]), half, bins=2)[0].images == 1


def test_probabilities_that_round_above_one_are_counted() -> None:
    over = np.array([[1.0000001, 0.0]], np.float32)
    assert metrics.calibration_bins(np.array([0]), over)[-1].images == 1


@pytest.mark.parametrize(
    ("hits", "images", "low", "high"),
    # scipy.stats.binomtest(hits, images).proportion_ci(method="wilson")
    [(0, 5, 0.0, 0.434482), (90, 100, 0.825634, 0.944771), (7, 7, 0.645670, 1.0)],
)
def test_the_interval_is_wilsons(
    hits: int, images: int, low: float, high: float
) -> None:
    assert metrics.share_interval(hits, images) == pytest.approx((low, high), abs=1e-6)
