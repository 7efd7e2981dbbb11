"""Judge a file's answers by the tolerance of its format."""

import numpy as np

from reszoo_export.runtimes.interface import Answers
from reszoo_export.verification import distances
from reszoo_export.verification.reference import Reference
from reszoo_export.verification.tolerances import ONE_CLASS, VARIED, Tolerance

# Labels in another order explain the answers if they make this much of them right,
# and as they stand at most this share of that.
_EXPLAINED, _UNEXPLAINED = 0.5, 0.5


def wrong_probabilities(
    rule: Tolerance, answers: Answers, reference: Reference
) -> list[str]:
    """Tell what is wrong with probabilities `(n, classes)`."""
    expected = reference.answers
    real = slice(0, len(reference.labels))
    made_up = slice(len(reference.labels), None)
    problems = _too_far(rule, answers, expected)
    problems += _moved(rule.max_moved, answers[real], expected[real], "")
    problems += _moved(
        rule.max_moved_synthetic, answers[made_up], expected[made_up],
        " on the made-up images",
    )  # fmt: skip
    judged = slice(0, len(reference.labels) or None)
    problems += _lost(rule, answers[judged], expected[judged])
    if len(reference.labels):
        problems += _drifted(rule, answers[real], expected[real])
        problems += _wrong_classes(rule, answers[real], expected[real])
        problems += _wrong_labels(rule, answers[real], reference)
    return problems


def wrong_features(
    rule: Tolerance, answers: Answers, reference: Reference
) -> list[str]:
    """Tell what is wrong with features `(n, width)`."""
    expected, problems = reference.answers, []
    apart = distances.relative_difference(answers, expected)
    if rule.max_relative is not None and apart > rule.max_relative:
        problems.append(
            f"a feature differs from the model's by {apart:.2g} of the largest one; "
            f"at most {rule.max_relative:g} is allowed"
        )
    judged = slice(0, len(reference.labels) or None)
    cosine = float(distances.cosines(answers[judged], expected[judged]).mean())
    if rule.min_cosine is not None and cosine < rule.min_cosine:
        problems.append(
            f"the features' mean cosine with the model's is {cosine:.4f}; "
            f"at least {rule.min_cosine:g} is needed"
        )
    return problems


def _too_far(rule: Tolerance, answers: Answers, expected: Answers) -> list[str]:
    problems = []
    difference = float(np.abs(answers - expected).max())
    if rule.max_difference is not None and difference > rule.max_difference:
        problems.append(
            f"a probability differs from the model's by {difference:.2g}; "
            f"at most {rule.max_difference:g} is allowed"
        )
    apart = distances.log_difference(answers, expected)
    if rule.max_log_difference is not None and apart > rule.max_log_difference:
        problems.append(
            f"the logarithm of a probability is off by {apart:.2g}; "
            f"at most {rule.max_log_difference:g} is allowed"
        )
    return problems


def _moved(
    most: float | None, answers: Answers, expected: Answers, where: str
) -> list[str]:
    if most is None or not len(answers):
        return []
    moved = distances.moved(answers, expected)
    problem = (
        f"{moved:.2%} of the probability moved to other classes{where}; "
        f"at most {most:.2%} may"
    )
    return [problem] if moved > most else []


def _lost(rule: Tolerance, answers: Answers, expected: Answers) -> list[str]:
    lost = distances.lost(answers, expected)
    if rule.max_lost is None or lost <= rule.max_lost:
        return []
    problem = (
        f"{lost:.0%} of what tells the images apart is lost; "
        f"at most {rule.max_lost:.0%} may be"
    )
    return [problem]


def _drifted(rule: Tolerance, answers: Answers, expected: Answers) -> list[str]:
    drift = float(distances.confidence_changes(answers, expected).mean())
    if rule.max_drift is None or abs(drift) <= rule.max_drift:
        return []
    return [
        f"the mean confidence moved by {drift:+.2%}; at most {rule.max_drift:.2%} may"
    ]


def _wrong_classes(rule: Tolerance, answers: Answers, expected: Answers) -> list[str]:
    problems = []
    agreeing = distances.agreeing(answers, expected, rule.margin, rule.tie)
    agreement = float(agreeing.mean())
    if agreement < rule.min_agreement:
        problems.append(
            f"the top-1 is the model's on {agreement:.2%} of the images, ties "
            f"included; at least {rule.min_agreement:.2%} is needed"
        )
    same = float((answers.argmax(-1) == expected.argmax(-1)).mean())
    if same < rule.min_same:
        problems.append(
            f"the top-1 is exactly the model's on {same:.2%} of the images; "
            f"at least {rule.min_same:.2%} is needed"
        )
    most, of_model = _most_frequent(answers), _most_frequent(expected)
    if most > ONE_CLASS and of_model < VARIED:
        problems.append(
            f"{most:.2%} of the images get one and the same class; the model gives "
            f"none to more than {of_model:.2%}"
        )
    return problems


def _wrong_labels(rule: Tolerance, answers: Answers, reference: Reference) -> list[str]:
    labels = reference.labels
    expected = reference.answers[: len(labels)]
    accuracy = distances.accuracy(answers, labels)
    of_model = distances.accuracy(expected, labels)
    problems = []
    # Rounded, for 0.97 - 0.96 is more than 0.01 in floating point.
    drop = round(of_model - accuracy, 9)
    chance = distances.chance_of_accuracy(answers, expected, labels)
    if rule.max_accuracy_drop is not None and drop > max(
        rule.max_accuracy_drop, chance
    ):
        problems.append(
            f"accuracy fell from {of_model:.2%} to {accuracy:.2%}; "
            f"at most {rule.max_accuracy_drop:.2%} may be lost, "
            f"and chance explains {chance:.2%}"
        )
    order = distances.relabelling(answers, labels)
    if order is not None:
        explained = distances.accuracy(answers[:, np.argsort(order)], labels)
        if explained >= _EXPLAINED and accuracy <= _UNEXPLAINED * explained:
            problems.append(
                f"the labels seem to be in another order: accuracy is {accuracy:.2%}, "
                f"and would be {explained:.2%} if class 0 were {order[0]}"
            )
    return problems


def _most_frequent(answers: Answers) -> float:
    return float(np.bincount(answers.argmax(-1)).max() / len(answers))
