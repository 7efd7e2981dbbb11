"""One step of gradient descent, compiled once."""

from typing import Any

import keras
import tensorflow as tf

from reszoo.data.augment.mix import mix
from reszoo.preprocessing import Preprocessing
from reszoo.training.distribution import Devices
from reszoo.training.losses import LOSSES, targets
from reszoo.training.optimizers import Lamb, Optimizer, Sgd, decay_of
from reszoo.training.recipes import Recipe


class TrainingStep:
    """Move a model's weights along the gradient of one batch.

    Args:
        net: From `twin`: images to logits. Layers that are not `trainable` stay.
        record: How its pixels are normalised.
        recipe: Optimizer, loss and mixing of images.
        devices: Over which each batch is spread. Make the net, and this, in their
            `scope()`.
    """

    def __init__(
        self,
        net: keras.Model,
        record: Preprocessing,
        recipe: Recipe,
        devices: Devices | None = None,
    ) -> None:
        self._devices = devices = devices or Devices()
        self._net = net
        self._record = record
        self._recipe = recipe
        self._weights = net.trainable_variables
        decays = [decay(weight, recipe) for weight in self._weights]
        self.optimizer = Optimizer(rule_of(recipe), self._weights, decays)
        self._whole = tf.function(devices.everywhere(self._descend))
        self._part = tf.function(devices.everywhere(self._gradients))
        self._apply = tf.function(self.optimizer.apply)

    def __call__(
        self, images: tf.Tensor, labels: tf.Tensor, learning_rate: float, key: Any
    ) -> tuple[float, int]:
        """Train on one batch.

        Args:
            images: uint8 `(batch, height, width, 3)`; this worker's part of the batch.
            labels: int64 `(batch,)`.
            learning_rate: For this step.
            key: int64 `(2,)`; decides how images are mixed and blocks left out.

        Returns:
            The mean loss before the step, without weight decay, and the number of
            images whose class was right; over the whole batch.
        """
        rate = tf.constant(learning_rate, tf.float32)
        key = tf.constant(key, tf.int64)
        if self._recipe.accumulate == 1:
            loss, hits = self._whole(images, labels, rate, key)
            return float(loss), int(hits)
        return self._in_parts(images, labels, rate, key)

    def _in_parts(
        self, images: tf.Tensor, labels: tf.Tensor, rate: tf.Tensor, key: tf.Tensor
    ) -> tuple[float, int]:
        parts = self._recipe.accumulate
        total: list[tf.Tensor] = []
        loss, hits = 0.0, 0
        for index, (some, of_them) in enumerate(
            zip(tf.split(images, parts), tf.split(labels, parts), strict=True)
        ):
            own = tf.random.fold_in(key, index)
            gradients, part_loss, part_hits = self._part(some, of_them, own)
            gradients = [gradient / parts for gradient in gradients]
            total = _added(total, gradients)
            loss, hits = loss + float(part_loss) / parts, hits + int(part_hits)
        self._apply(total, rate)
        return loss, hits

    def _descend(
        self, images: tf.Tensor, labels: tf.Tensor, rate: tf.Tensor, key: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        gradients, loss, hits = self._gradients(images, labels, key)
        self.optimizer.apply(gradients, rate)
        return loss, hits

    def _gradients(
        self, images: tf.Tensor, labels: tf.Tensor, key: tf.Tensor
    ) -> tuple[list[tf.Tensor], tf.Tensor, tf.Tensor]:
        recipe, devices = self._recipe, self._devices
        images, labels, key = devices.part(images, labels, key)
        pixels = self._record.normalise(tf.cast(images, tf.float32))
        target = targets(labels, self._net.output_shape[-1])
        pixels, target = mix(pixels, target, key, recipe.mixup, recipe.cutmix)
        inputs = [pixels, key] if recipe.stochastic_depth else pixels
        with tf.GradientTape() as tape:
            logits = self._net(inputs, training=True)
            loss = LOSSES[recipe.loss](logits, target, recipe.label_smoothing)
            loss = tf.reduce_mean(loss)
        # Parts are equal in size: the mean of their means is that of the batch.
        gradients = tape.gradient(loss, [weight.value for weight in self._weights])
        right = tf.equal(tf.argmax(logits, axis=-1), labels)
        hits = tf.reduce_sum(tf.cast(right, tf.float32))
        loss, hits = devices.total([loss / devices.count, hits])
        return devices.mean(gradients), loss, hits


def _added(total: list[tf.Tensor], more: list[tf.Tensor]) -> list[tf.Tensor]:
    if not total:
        return more
    return [one + other for one, other in zip(total, more, strict=True)]


def decay(weight: keras.Variable, recipe: Recipe) -> float:
    """Return the weight decay of one weight under a recipe."""
    decayed = decay_of(weight.path, len(weight.shape), recipe.decay_on)
    return recipe.weight_decay if decayed else 0.0


def rule_of(recipe: Recipe) -> Sgd | Lamb:
    """Return how a recipe's optimizer moves a weight."""
    if recipe.optimizer == "lamb":
        return Lamb()
    inside = recipe.optimizer == "caffe-sgd"
    return Sgd(momentum=recipe.momentum, nesterov=recipe.nesterov, rate_inside=inside)
