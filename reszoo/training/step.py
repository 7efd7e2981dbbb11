"""The compiled training step: losses, gradients and one phase's state."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from reszoo.data.augment.mix import mix
from reszoo.errors import UsageError
from reszoo.preprocessing import Preprocessing
from reszoo.training.devices import Devices
from reszoo.training.model import BatchNormCount, freeze, set_momentum
from reszoo.training.optimizers import Average, Lamb, Optimizer, Sgd, decay_of
from reszoo.training.phases import Phase
from reszoo.training.recipes import Recipe
from reszoo.training.schedules import ema_decay_at

# timm's --bce-target-thresh of the procedures A1 to A3: with mixed images both
# classes count in full (arXiv:2110.00476, section 2.2).
_MIXED_TARGET = 0.2


def targets(labels: tf.Tensor, classes: int) -> tf.Tensor:
    """Return float32 rows `(batch, classes)` with a one at each label."""
    return tf.one_hot(labels, classes, dtype=tf.float32)


def softmax_loss(
    logits: tf.Tensor, target: tf.Tensor, label_smoothing: float
) -> tf.Tensor:
    """Return the cross-entropy of each image, in nats.

    Args:
        logits: float32 `(batch, classes)`.
        target: float32 of the same shape; rows sum to one.
        label_smoothing: Share of each row that is spread over all classes.

    Returns:
        float32 `(batch,)`.
    """
    smooth = _smoothed(target, label_smoothing)
    return tf.nn.softmax_cross_entropy_with_logits(smooth, logits)


def binary_loss(
    logits: tf.Tensor, target: tf.Tensor, label_smoothing: float
) -> tf.Tensor:
    """Return the mean binary cross-entropy of each image's classes, in nats.

    Every class is its own question, as in ResNet strikes back. A class with more
    than a fifth of the (smoothed) target is wholly true, as in timm. Arguments and
    result as in `softmax_loss`.
    """
    true = tf.cast(_smoothed(target, label_smoothing) > _MIXED_TARGET, tf.float32)
    entropy = tf.nn.sigmoid_cross_entropy_with_logits(true, logits)
    return tf.reduce_mean(entropy, axis=-1)


LOSSES = {"softmax": softmax_loss, "binary": binary_loss}


def _smoothed(target: tf.Tensor, share: float) -> tf.Tensor:
    return target * (1 - share) + share / target.shape[-1]


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


class Engine:
    """The step, the optimizer and the average of one phase.

    Args:
        net: From `twin`; what learns is set here.
        spec: Its variant.
        record: How pixels are normalised.
        phase: What is carried out.
        devices: Over which each batch is spread.

    Attributes:
        batch_norm: How many batch normalisations are frozen and live.
    """

    def __init__(
        self,
        net: keras.Model,
        spec: str,
        record: Preprocessing,
        phase: Phase,
        devices: Devices,
    ) -> None:
        self.net, self.phase = net, phase
        recipe = phase.recipe
        self.batch_norm: BatchNormCount = freeze(
            net, spec, recipe.freeze, bool(recipe.freeze_bn)
        )
        if recipe.bn_momentum is not None:
            set_momentum(net, recipe.bn_momentum)
        with devices.scope():
            if not net.trainable_variables:
                raise UsageError(
                    "Nothing is left to train, for every layer is frozen. Set "
                    "layer.trainable = True on some, at least on the head."
                )
            self._step = TrainingStep(net, record, recipe, devices)
            self._average = None if recipe.ema is None else Average(net.variables)
        average = self._average
        self._follow = tf.function(average.update) if average else None

    def train(
        self, images: tf.Tensor, labels: tf.Tensor, step: int, epoch: int
    ) -> tuple[float, int]:
        """Take one step.

        Args:
            images: uint8 `(batch, height, width, 3)`; this worker's part of the batch.
            labels: int64 `(batch,)`.
            step: Of this phase, counted from 0.
            epoch: Over all phases, counted from 0.

        Returns:
            The mean loss before the step, and how many images were right; over the
            whole batch.
        """
        # Another stream than that of the images' own variation.
        entropy = np.random.SeedSequence((self.phase.recipe.seed, epoch, step, 1))
        key = entropy.generate_state(2, np.uint32).astype(np.int64)
        loss, hits = self._step(images, labels, self.phase.learning_rate(step), key)
        self._update_average(step)
        return loss, hits

    def variables(self) -> dict[str, tf.Variable]:
        """Return every variable that a state must hold, by name."""
        found = {f"net/{each.path}": each.value for each in self.net.variables}
        found |= self._step.optimizer.state()
        return found | (dict(self._average.state()) if self._average else {})

    def judged(self) -> dict[str, tf.Variable]:
        """Return what is evaluated, by path: the average, or the net without one."""
        variables = self.net.variables
        values = (each.value for each in variables)
        found = self._average.copies if self._average else values
        return dict(zip((each.path for each in variables), found, strict=True))

    def _update_average(self, step: int) -> None:
        recipe = self.phase.recipe
        if self._follow is None or recipe.ema is None:
            return
        decay = ema_decay_at(
            step,
            self.phase.steps_per_epoch,
            recipe.ema,
            every=recipe.ema_every,
            warmup=int(self.phase.schedule.warmup),
        )
        if decay is not None:
            self._follow(tf.constant(decay, tf.float64))
