"""One step of gradient descent, compiled once."""

from typing import Any

import keras
import tensorflow as tf

from reszoo.preprocessing import Preprocessing
from reszoo.resnet import logits_model
from reszoo.training.recipes import Recipe


class TrainingStep:
    """Move a model's weights along the gradient of one batch.

    Args:
        model: A model from `reszoo.build`, with a classifier.
        record: How its pixels are normalised.
        recipe: Optimizer and loss.
    """

    def __init__(
        self, model: keras.Model, record: Preprocessing, recipe: Recipe
    ) -> None:
        self._logits_of = logits_model(model)
        self._record = record
        self._recipe = recipe
        self._weights = model.trainable_variables
        self._kernels = [v for v in self._weights if v.path.endswith("/kernel")]
        self._optimizer = keras.optimizers.SGD(
            recipe.learning_rate, momentum=recipe.momentum, nesterov=True
        )
        self._optimizer.build(self._weights)
        self._compiled = tf.function(self._step)

    def __call__(
        self, images: tf.Tensor, labels: tf.Tensor, learning_rate: float
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Train on one batch.

        Args:
            images: uint8 `(batch, height, width, 3)`.
            labels: int64 `(batch,)`.
            learning_rate: For this step.

        Returns:
            The mean cross-entropy before the step, without weight decay, and the
            number of images whose class was right.
        """
        self._optimizer.learning_rate.assign(learning_rate)
        loss, correct = self._compiled(images, labels)
        return loss, correct

    def _step(self, images: tf.Tensor, labels: tf.Tensor) -> tuple[Any, Any]:
        pixels = self._record.normalise(tf.cast(images, tf.float32))
        with tf.GradientTape() as tape:
            logits = self._logits_of(pixels, training=True)
            loss = self._loss(logits, labels)
            total = loss + self._penalty()
        gradients = tape.gradient(total, [v.value for v in self._weights])
        self._optimizer.apply(gradients, self._weights)
        hits = tf.equal(tf.argmax(logits, axis=-1), labels)
        return loss, tf.reduce_sum(tf.cast(hits, tf.int32))

    def _loss(self, logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        classes = logits.shape[-1]
        smoothing = self._recipe.label_smoothing
        target = tf.one_hot(
            labels, classes, 1 - smoothing + smoothing / classes, smoothing / classes
        )
        return tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(target, logits))

    def _penalty(self) -> tf.Tensor:
        # torch's SGD adds decay * w to the gradient: that of decay / 2 * w squared.
        # Keras' own `weight_decay` is decoupled and decays batch normalisation too.
        squares = [tf.nn.l2_loss(kernel.value) for kernel in self._kernels]
        return self._recipe.weight_decay * tf.add_n(squares)
