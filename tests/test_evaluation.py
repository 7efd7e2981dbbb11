import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reszoo
from reszoo.metrics import score
from reszoo_export.formats import FORMATS


def test_scores_are_what_a_hand_counts() -> None:
    answers = np.array(
        [
            [0.7, 0.1, 0.05, 0.05, 0.04, 0.03, 0.03],
            [0.3, 0.2, 0.2, 0.1, 0.1, 0.06, 0.04],
            [0.3, 0.2, 0.15, 0.12, 0.11, 0.07, 0.05],
        ],
        np.float32,
    )
    found = score(answers, np.array([0, 3, 6]), "three")
    assert found.top1 == pytest.approx(1 / 3)
    assert found.top5 == pytest.approx(2 / 3)
    assert found.loss == pytest.approx(-np.log([0.7, 0.1, 0.05]).mean(), rel=1e-5)
    assert (found.images, found.data) == (3, "three")


def test_the_lower_index_wins_a_tie() -> None:
    found = score(np.full((8, 8), 0.125, np.float32), np.arange(8), "ties")
    assert (found.top1, found.top5) == (1 / 8, 5 / 8)


def test_what_is_no_number_is_wrong() -> None:
    answers = np.full((4, 8), np.nan, np.float32)
    found = score(answers, np.zeros(4, np.int64), "nothing")
    assert (found.top1, found.top5) == (0, 0)
    assert (found.balanced_accuracy, found.macro_f1) == (0, 0)


def test_balanced_accuracy_and_macro_f1_are_scikit_learns() -> None:
    sklearn = pytest.importorskip("sklearn.metrics", reason="extra demo")
    draw = np.random.default_rng(0)
    # No image of the class 4, and no answer of the class 5.
    targets = draw.choice(np.array([0, 0, 0, 0, 1, 2, 3, 5]), 300)
    answers = draw.dirichlet(np.ones(6), 300).astype(np.float32)
    answers[np.arange(300), targets] += 0.3
    answers[:, 5] = 0
    labels, files = tuple("abcdef"), tuple(map(str, range(300)))
    found = score(answers, targets, "some", labels, files)
    predicted = answers.argmax(1)
    with pytest.warns(UserWarning, match="classes not in y_true"):
        balanced = sklearn.balanced_accuracy_score(targets, predicted)
    assert found.balanced_accuracy == pytest.approx(balanced)
    macro = sklearn.f1_score(targets, predicted, average="macro", zero_division=0)
    assert found.macro_f1 == pytest.approx(macro)
    matrix = sklearn.confusion_matrix(targets, predicted, labels=np.arange(6))
    np.testing.assert_array_equal(found.confusion, matrix)
    assert found.probabilities is answers
    assert (found.labels, found.files) == (labels, files)
    told = found.to_json()
    assert json.loads(json.dumps(told)) == told
    assert told["confusion"] == matrix.tolist()
    assert "probabilities" not in told
    by_label = {row["label"]: row for row in told["classes"]}
    truth = sklearn.precision_recall_fscore_support(
        targets, predicted, labels=np.arange(6), zero_division=0
    )
    for index, label in enumerate(labels):
        row = by_label[label]
        ours = [row[name] or 0 for name in ("precision", "recall", "f1", "images")]
        assert ours == pytest.approx([numbers[index] for numbers in truth])
    assert by_label["e"]["recall"] is None


def test_the_files_of_an_export_score_like_their_checkpoint(
    run: Any, exported: Any
) -> None:
    expected = reszoo.evaluate(run.best, "digits")
    assert expected.data == "digits (test)"
    for record in exported.files:
        found = reszoo.evaluate(exported.folder / record.file, "digits")
        assert found.images == expected.images == 359
        assert found.top1 == pytest.approx(record.verification.accuracy)
        recalls = {row.index: row.recall for row in found.classes}
        assert record.verification.recalls == tuple(recalls[i] for i in range(10))
        assert found.labels == tuple("0123456789")
        assert len(found.files) == 359
        exact = FORMATS[record.format].precision == "float32"
        tolerance = 1e-4 if exact else 0.05
        assert found.loss == pytest.approx(expected.loss, abs=tolerance)


def test_a_split_can_be_chosen(run: Any) -> None:
    found = reszoo.evaluate(run.model, "digits", split="validation")
    assert found.images == 179
    measured = {metric.name: metric.value for metric in reszoo.card(run.model).metrics}
    # Training validates through TensorFlow's resizing, this through Pillow's.
    assert found.top1 == pytest.approx(measured["top1"], abs=0.006)


def test_other_classes_are_refused(run: Any, folder: Path) -> None:
    with pytest.raises(reszoo.DataError, match="has other classes than the model"):
        reszoo.evaluate(run.best, folder)
