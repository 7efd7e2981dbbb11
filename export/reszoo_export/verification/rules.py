"""Distances between a file's answers and its model's, and their limits."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from reszoo.cards import Card
from reszoo_export.formats import ONE_CLASS, VARIED, Tolerance
from reszoo_export.manifest import Disagreement
from reszoo_export.runtimes import Answers
from reszoo_export.verification.reference import Reference

# Probabilities below are equal: runtimes flush such numbers to zero differently.
_LEAST = 1e-20
# A length below which features have no direction.
_SHORTEST = 1e-12
_TOP = 5
_SHOWN = 5


def log_difference(answers: Answers, expected: Answers) -> float:
    """Return the largest difference of logarithms, relative where beyond 1."""
    ours, theirs = (np.log(np.maximum(each, _LEAST)) for each in (answers, expected))
    return float((np.abs(ours - theirs) / np.maximum(1, np.abs(theirs))).max())


def moved_share(answers: Answers, expected: Answers) -> float:
    """Return how much probability went to other classes, mean over the images.

    What one class loses another gains: half the sum of the differences.
    """
    return float(np.abs(answers - expected).sum(axis=-1).mean() / 2)


def accuracy_of(answers: Answers, labels: NDArray[np.int64]) -> float:
    """Return the share of images whose top-1 is what they show.

    As everywhere, the lower index wins a tie, which int8 files often have.
    """
    return float((answers.argmax(axis=-1) == labels).mean())


def chance_of_accuracy(
    answers: Answers, expected: Answers, labels: NDArray[np.int64]
) -> float:
    """Return by how much accuracy may differ from the model's by chance, in 0..1.

    Of the images about which one is right and the other wrong, as many fall to either
    side if both are equally good; their difference is then less than twice the root
    of their number in 19 of 20 cases (McNemar's test).
    """
    right, of_model = (each.argmax(axis=-1) == labels for each in (answers, expected))
    return float(2 * np.sqrt((right != of_model).sum()) / len(labels))


def chance_of_loss(answers: Answers, expected: Answers) -> float:
    """Return how much of what tells images apart is lost: 1 if all answers are alike.

    It is `moved` by how much the model's own answers move from image to image, so
    that a net of flat answers is judged as strictly as a confident one.
    """
    mean = np.broadcast_to(expected.mean(axis=0, keepdims=True), expected.shape)
    return moved_share(answers, expected) / max(moved_share(expected, mean), _SHORTEST)


def top5_agreement(answers: Answers, expected: Answers) -> float:
    """Return the share of the model's five best that are the file's, in 0..1."""
    ours, theirs = (_best(each) for each in (answers, expected))
    shared = (ours[:, :, None] == theirs[:, None, :]).any(axis=1)
    return float(shared.mean())


def confidence_changes(answers: Answers, expected: Answers) -> NDArray[np.float32]:
    """Return how much more confident a file is of its top-1, `(n,)`."""
    changes: NDArray[np.float32] = answers.max(axis=-1) - expected.max(axis=-1)
    return changes


def agreeing_images(
    answers: Answers, expected: Answers, margin: float, tie: float
) -> NDArray[np.bool_]:
    """Tell for which images the top-1 is the same, or a tie in the model's eyes."""
    chosen = answers.argmax(-1)
    of_chosen = np.take_along_axis(expected, chosen[:, None], axis=-1)[:, 0]
    best = expected.max(-1)
    same: NDArray[np.bool_] = of_chosen >= np.minimum(best - margin, tie * best)
    return same


def relative_difference(answers: Answers, expected: Answers) -> float:
    """Return the largest difference of a feature by the largest feature."""
    return float(np.abs(answers - expected).max() / largest(expected))


def largest(features: Answers) -> float:
    """Return the size of the largest feature; never 0."""
    return max(float(np.abs(features).max()), _SHORTEST)


def cosines(answers: Answers, expected: Answers) -> NDArray[np.float64]:
    """Return the cosine between each image's features and the model's, `(n,)`."""
    ours, theirs = answers.astype(np.float64), expected.astype(np.float64)
    lengths = np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
    products = (ours * theirs).sum(axis=-1)
    cosine: NDArray[np.float64] = products / np.maximum(lengths, _SHORTEST)
    return cosine


def worst_images(
    answers: Answers, expected: Answers, among: slice, card: Card
) -> tuple[Disagreement, ...]:
    """Return the images with the largest differences, the largest first.

    Args:
        answers: The file's probabilities, `(n, classes)`.
        expected: The model's.
        among: Which images are considered.
        card: Tells the labels.
    """
    indices = np.arange(len(answers))[among]
    largest = np.abs(answers - expected)[among].max(axis=-1)
    order = np.argsort(-largest, kind="stable")[:_SHOWN]
    return tuple(
        _disagreement(int(indices[at]), answers, expected, card) for at in order
    )


def _disagreement(
    image: int, answers: Answers, expected: Answers, card: Card
) -> Disagreement:
    ours, theirs = answers[image], expected[image]
    return Disagreement(
        image=image,
        model_label=card.label(int(theirs.argmax())),
        model_probability=float(theirs.max()),
        file_label=card.label(int(ours.argmax())),
        file_probability=float(ours.max()),
        difference=float(np.abs(ours - theirs).max()),
    )


def relabelling(answers: Answers, labels: NDArray[np.int64]) -> Sequence[int] | None:
    """Return what each class most often shows, if that is another order of them all.

    Args:
        answers: Probabilities, `(n, classes)`.
        labels: What the images show, `(n,)`.
    """
    classes = answers.shape[-1]
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (answers.argmax(-1), labels), 1)
    shown = counts.argmax(axis=-1)
    if len(set(shown.tolist())) < classes or not counts.max(axis=-1).all():
        return None
    return [int(label) for label in shown]


def _best(answers: Answers) -> NDArray[np.int64]:
    best: NDArray[np.int64] = np.argsort(-answers, axis=-1, kind="stable")[:, :_TOP]
    return best


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
    apart = relative_difference(answers, expected)
    if rule.max_relative is not None and apart > rule.max_relative:
        problems.append(
            f"a feature differs from the model's by {apart:.2g} of the largest one; "
            f"at most {rule.max_relative:g} is allowed"
        )
    judged = slice(0, len(reference.labels) or None)
    cosine = float(cosines(answers[judged], expected[judged]).mean())
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
    apart = log_difference(answers, expected)
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
    moved = moved_share(answers, expected)
    problem = (
        f"{moved:.2%} of the probability moved to other classes{where}; "
        f"at most {most:.2%} may"
    )
    return [problem] if moved > most else []


def _lost(rule: Tolerance, answers: Answers, expected: Answers) -> list[str]:
    lost = chance_of_loss(answers, expected)
    if rule.max_lost is None or lost <= rule.max_lost:
        return []
    problem = (
        f"{lost:.0%} of what tells the images apart is lost; "
        f"at most {rule.max_lost:.0%} may be"
    )
    return [problem]


def _drifted(rule: Tolerance, answers: Answers, expected: Answers) -> list[str]:
    drift = float(confidence_changes(answers, expected).mean())
    if rule.max_drift is None or abs(drift) <= rule.max_drift:
        return []
    return [
        f"the mean confidence moved by {drift:+.2%}; at most {rule.max_drift:.2%} may"
    ]


def _wrong_classes(rule: Tolerance, answers: Answers, expected: Answers) -> list[str]:
    problems = []
    agreeing = agreeing_images(answers, expected, rule.margin, rule.tie)
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
    accuracy = accuracy_of(answers, labels)
    of_model = accuracy_of(expected, labels)
    problems = []
    # Rounded, for 0.97 - 0.96 is more than 0.01 in floating point.
    drop = round(of_model - accuracy, 9)
    chance = chance_of_accuracy(answers, expected, labels)
    if rule.max_accuracy_drop is not None and drop > max(
        rule.max_accuracy_drop, chance
    ):
        problems.append(
            f"accuracy fell from {of_model:.2%} to {accuracy:.2%}; "
            f"at most {rule.max_accuracy_drop:.2%} may be lost, "
            f"and chance explains {chance:.2%}"
        )
    order = relabelling(answers, labels)
    if order is not None:
        explained = accuracy_of(answers[:, np.argsort(order)], labels)
        if explained >= _EXPLAINED and accuracy <= _UNEXPLAINED * explained:
            problems.append(
                f"the labels seem to be in another order: accuracy is {accuracy:.2%}, "
                f"and would be {explained:.2%} if class 0 were {order[0]}"
            )
    return problems


def _most_frequent(answers: Answers) -> float:
    return float(np.bincount(answers.argmax(-1)).max() / len(answers))
