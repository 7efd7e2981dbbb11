"""How far a file's answers lie from its model's: the numbers, without judgement."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from reszoo.cards import Card
from reszoo_export.manifest import Disagreement
from reszoo_export.runtimes.interface import Answers

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


def moved(answers: Answers, expected: Answers) -> float:
    """Return how much probability went to other classes, mean over the images.

    What one class loses another gains: half the sum of the differences.
    """
    return float(np.abs(answers - expected).sum(axis=-1).mean() / 2)


def accuracy(answers: Answers, labels: NDArray[np.int64]) -> float:
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


def lost(answers: Answers, expected: Answers) -> float:
    """Return how much of what tells images apart is lost: 1 if all answers are alike.

    It is `moved` by how much the model's own answers move from image to image, so
    that a net of flat answers is judged as strictly as a confident one.
    """
    mean = np.broadcast_to(expected.mean(axis=0, keepdims=True), expected.shape)
    return moved(answers, expected) / max(moved(expected, mean), _SHORTEST)


def top5_agreement(answers: Answers, expected: Answers) -> float:
    """Return the share of the model's five best that are the file's, in 0..1."""
    ours, theirs = (_best(each) for each in (answers, expected))
    shared = (ours[:, :, None] == theirs[:, None, :]).any(axis=1)
    return float(shared.mean())


def confidence_changes(answers: Answers, expected: Answers) -> NDArray[np.float32]:
    """Return how much more confident a file is of its top-1, `(n,)`."""
    changes: NDArray[np.float32] = answers.max(axis=-1) - expected.max(axis=-1)
    return changes


def agreeing(
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
