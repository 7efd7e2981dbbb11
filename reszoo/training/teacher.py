"""Distillation: a student learns the softened probabilities of a teacher."""

from dataclasses import replace

import numpy as np
import tensorflow as tf

from reszoo import metrics
from reszoo.cards import Card, checksum
from reszoo.console import say
from reszoo.data.examples import Examples
from reszoo.errors import UsageError
from reszoo.files import StrPath
from reszoo.training.model import evaluation_copy
from reszoo.weights.names import assign_tensors, layers_of, to_tensors
from reszoo.zoo import get_card, load

_AT_ONCE = 100


def distillation_loss(
    logits: tf.Tensor, of_teacher: tf.Tensor, temperature: float
) -> tf.Tensor:
    """Return the divergence from a teacher's probabilities of each image, `(batch,)`.

    T^2 times the Kullback-Leibler divergence of the softmax of both logits over T
    (Hinton et al. 2015, arXiv:1503.02531, section 2), in nats: the factor keeps the
    gradient as large as that of the targets, whatever T is.
    """
    shares = tf.nn.softmax(of_teacher / temperature)
    ours, theirs = (tf.nn.log_softmax(x / temperature) for x in (logits, of_teacher))
    return temperature**2 * tf.reduce_sum(shares * (theirs - ours), axis=-1)


class Teacher:
    """A model in inference, in float32, that sees what a student is trained on.

    Args:
        path: Any checkpoint that `reszoo.load` reads.
        card: Of the student, with the labels of the data.

    Raises:
        UsageError: Its labels, number of classes or channels are not the student's.
    """

    def __init__(self, path: StrPath, card: Card) -> None:
        model = load(path)
        own, student = get_card(model), card.preprocessing
        channels = (own.preprocessing.channels, student.channels)
        same = own.labels is None or sorted(own.labels) == sorted(card.labels or ())
        if own.architecture.classes != card.architecture.classes or not same:
            raise UsageError(
                "The teacher must have the student's classes. Received: teacher="
                f"{str(path)!r} with {own.architecture.classes} classes"
                f"{'' if same else ', other labels'}; train it on the same data."
            )
        if channels[0] != channels[1]:
            raise UsageError(
                "The teacher must take images of the student's channels. Received: "
                f"{channels[0]} and {channels[1]}."
            )
        if own.labels is None:
            first = card.label(0)
            say(f"class {first} is taken for output 0 of the teacher, and so on")
        self.weights = checksum(layers_of(model))
        # As it was trained, for the report.
        self._record = own.preprocessing
        self._classify = metrics.inference_function(model, own.preprocessing)
        shown = replace(student, eval_size=student.train_size)
        self._model = evaluation_copy(model, shown)
        assign_tensors(self._model, to_tensors(model), str(path))
        # From the student's normalised pixels to its own, mixed ones as well.
        std = np.asarray(own.preprocessing.std)
        shift = np.asarray(student.mean) - np.asarray(own.preprocessing.mean)
        self._scale = (np.asarray(student.std) / std).astype(np.float32)
        self._shift = (shift / std).astype(np.float32)
        names = own.labels or card.labels or ()
        self._order = [names.index(label) for label in card.labels or ()]

    def predictions(self, examples: Examples) -> metrics.Targets:
        """Return its answer to each image, prepared by its card, in student's order."""
        batches = metrics.prepared_batches(examples, self._record, _AT_ONCE)
        found = [self._classify(tf.constant(each))["logits"] for each in batches]
        return metrics.predictions(np.concatenate(found)[:, self._order])

    def __call__(self, pixels: tf.Tensor) -> tf.Tensor:
        """Return logits for the student's input, in the order of the student's."""
        logits = self._model(pixels * self._scale + self._shift, training=False)
        return tf.stop_gradient(tf.gather(logits, self._order, axis=-1))
