"""The compiled training step, and the trainer of one phase of a recipe."""

from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from reszoo.architecture import Architecture
from reszoo.data.augment.mix import mix
from reszoo.errors import UsageError
from reszoo.preprocessing import Preprocessing
from reszoo.resnet import backbone_and_head
from reszoo.training import optimizers
from reszoo.training.devices import Devices
from reszoo.training.model import BatchNormCount, freeze, recomputed, set_momentum
from reszoo.training.phases import Phase
from reszoo.training.recipes import Recipe
from reszoo.training.teacher import distillation_loss

# timm's --bce-target-thresh of the procedures A1 to A3: with mixed images both
# classes count in full (arXiv:2110.00476, section 2.2).
_MIXED_TARGET = 0.2
# AutoGraph has nothing to convert in a step, and slows its tracing by a quarter.
_compiled = partial(tf.function, autograph=False)


def softmax_loss(logits: tf.Tensor, soft: tf.Tensor, smoothing: float) -> tf.Tensor:
    """Return the cross-entropy of each image, in nats: float32 `(batch,)`.

    Logits and soft targets, whose rows sum to one, are float32 `(batch, classes)`; a
    share of each row is spread over all classes.
    """
    smooth = soft * (1 - smoothing) + smoothing / soft.shape[-1]
    return tf.nn.softmax_cross_entropy_with_logits(smooth, logits)


def binary_loss(logits: tf.Tensor, soft: tf.Tensor, smoothing: float) -> tf.Tensor:
    """Return the mean binary cross-entropy over the classes of each image, in nats.

    A class whose (smoothed) target exceeds a fifth has the target 1, as in timm's
    training of ResNet strikes back. Arguments and result as in `softmax_loss`.
    """
    smooth = soft * (1 - smoothing) + smoothing / soft.shape[-1]
    positive = tf.cast(smooth > _MIXED_TARGET, tf.float32)
    entropy = tf.nn.sigmoid_cross_entropy_with_logits(positive, logits)
    return tf.reduce_mean(entropy, axis=-1)


LOSSES = {"softmax": softmax_loss, "binary": binary_loss}


class TrainingStep:
    """Update the trainable weights of a model by the gradient of one batch.

    The model is from images to logits, such as a `training_copy`. Create it and this
    step within the `scope()` of the devices that share each batch. Class weights in the
    loss are `(classes,)`; None is 1. A teacher is from the model's normalised pixels to
    logits (see `Teacher`). With `cache_features`, images are the features instead.
    """

    def __init__(
        self, model: keras.Model, preprocessing: Preprocessing, recipe: Recipe,
        devices: Devices | None = None,
        class_weights: NDArray[np.float32] | None = None,
        teacher: Callable[[tf.Tensor], tf.Tensor] | None = None,
    ) -> None:  # fmt: skip
        self._teacher = teacher
        self._devices = devices = devices or Devices()
        self._model, self._recipe = model, recipe
        self._compute: Callable[[Any], tf.Tensor]
        self._normalise: Callable[[Any], Any] = preprocessing.normalise
        if recipe.cache_features:
            self._compute = partial(backbone_and_head(model)[1], training=True)
            self._normalise = tf.identity
        elif recipe.recompute:
            self._compute = recomputed(model)
        else:
            self._compute = partial(model, training=True)
        self._class_weights = class_weights
        self._weights = model.trainable_variables
        decays = [weight_decay_of(weight, recipe) for weight in self._weights]
        names = [each.name for each in model.layers]
        places = optimizers.rate_scales(names, recipe.layer_decay)
        scales = [places.get(each.path.split("/")[0], 1.0) for each in self._weights]
        rule = update_rule(recipe)
        self.optimizer = optimizers.Optimizer(rule, self._weights, decays, scales)
        self._whole = _compiled(devices.replicated(self._descend))
        self._part = _compiled(devices.replicated(self._gradients))
        self._apply = _compiled(self.optimizer.apply)

    def __call__(
        self, images: tf.Tensor, targets: tf.Tensor, learning_rate: float, key: Any
    ) -> tuple[float, int]:
        """Train on one batch: uint8 `(batch, height, width, channels)`, int64 targets.

        They are this worker's part of it. The key, int64 `(2,)`, is that of mixup,
        cutmix, stochastic depth and dropout. Returns the mean (weighted) loss before
        the step, without weight decay, and the number of images classified correctly;
        over the whole batch.
        """
        # As tensors, for each new Python number would be traced again.
        rate = tf.constant(learning_rate, tf.float32)
        key = tf.constant(key, tf.int64)
        if self._recipe.accumulate == 1:
            loss, correct = self._whole(images, targets, rate, key)
            return float(loss), int(correct)
        return self._accumulate(images, targets, rate, key)

    def variables(self) -> dict[str, tf.Variable]:
        """Return the variables of the model and of the optimizer, by name."""
        # "net/" is part of the format of saved states.
        weights = {f"net/{each.path}": each.value for each in self._model.variables}
        return weights | self.optimizer.state()

    def _accumulate(
        self, images: tf.Tensor, targets: tf.Tensor, rate: tf.Tensor, key: tf.Tensor
    ) -> tuple[float, int]:
        parts, loss, correct = self._recipe.accumulate, 0.0, 0
        total: list[Any] = [0.0] * len(self._weights)
        batches = zip(tf.split(images, parts), tf.split(targets, parts), strict=True)
        for index, batch in enumerate(batches):
            own = tf.random.fold_in(key, index)
            gradients, part_loss, part_correct = self._part(*batch, own)
            total = [a + b / parts for a, b in zip(total, gradients, strict=True)]
            loss, correct = loss + float(part_loss) / parts, correct + int(part_correct)
        self._apply(total, rate)
        return loss, correct

    def _descend(
        self, images: tf.Tensor, targets: tf.Tensor, rate: tf.Tensor, key: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        gradients, loss, correct = self._gradients(images, targets, key)
        self.optimizer.apply(gradients, rate)
        return loss, correct

    def _gradients(
        self, images: tf.Tensor, targets: tf.Tensor, key: tf.Tensor
    ) -> tuple[list[tf.Tensor], tf.Tensor, tf.Tensor]:
        recipe, devices = self._recipe, self._devices
        images, targets, key = devices.shard(images, targets, key)
        pixels = self._normalise(tf.cast(images, tf.float32))
        soft = tf.one_hot(targets, self._model.output_shape[-1], dtype=tf.float32)
        pixels, soft = mix(pixels, soft, key, recipe.mixup, recipe.cutmix)
        # A model with stochastic depth or dropout draws from the key.
        inputs = [pixels, key] if len(self._model.inputs) > 1 else pixels
        of_teacher = self._teacher(pixels) if self._teacher else None
        with tf.GradientTape() as tape:
            logits = self._compute(inputs)
            losses = LOSSES[recipe.loss](logits, soft, recipe.label_smoothing)
            if self._class_weights is not None:
                losses *= tf.linalg.matvec(soft, self._class_weights)
            if of_teacher is not None:
                softness, share = (
                    recipe.distillation_temperature, recipe.distillation_weight,
                )  # fmt: skip
                taught = distillation_loss(logits, of_teacher, softness)
                losses = (1 - share) * losses + share * taught
            loss = tf.reduce_mean(losses)
        gradients = tape.gradient(loss, [weight.value for weight in self._weights])
        correct = tf.equal(tf.argmax(logits, axis=-1), targets)
        correct = tf.reduce_sum(tf.cast(correct, tf.float32))
        # Shards are equal in size: the mean of their means is that of the batch.
        loss, correct = devices.all_reduce("SUM", [loss / devices.count, correct])
        return devices.all_reduce("MEAN", gradients), loss, correct


def weight_decay_of(weight: keras.Variable, recipe: Recipe) -> float:
    """Return the weight decay of one weight under a recipe."""
    decayed = optimizers.is_decayed(weight.path, len(weight.shape), recipe.decay_on)
    return recipe.weight_decay if decayed else 0.0


def update_rule(recipe: Recipe) -> optimizers.UpdateRule:
    """Return the update rule of a recipe's optimizer."""
    if recipe.optimizer == "lamb":
        return optimizers.Lamb()
    if recipe.optimizer.startswith("adam"):
        return optimizers.Adam(decoupled=recipe.optimizer == "adamw")
    inside = recipe.optimizer == "caffe-sgd"
    return optimizers.Sgd(recipe.momentum, recipe.nesterov, rate_inside=inside)


class PhaseTrainer:
    """Train a `training_copy` through a phase; hold its optimizer and averaged weights.

    Which of its layers are trainable is set here (a UsageError if none is);
    `batch_norm` tells how many batch normalisations are frozen and live.
    """

    def __init__(
        self, model: keras.Model, architecture: Architecture,
        preprocessing: Preprocessing, phase: Phase, devices: Devices,
        class_weights: NDArray[np.float32] | None = None,
        teacher: Callable[[tf.Tensor], tf.Tensor] | None = None,
    ) -> None:  # fmt: skip
        self.model, self.phase = model, phase
        recipe = phase.recipe
        self.batch_norm: BatchNormCount = freeze(
            model, architecture, recipe.freeze, bool(recipe.freeze_bn)
        )
        if not model.trainable_variables:
            raise UsageError(
                "Nothing is left to train, for every layer is frozen. Set "
                "layer.trainable = True on some, at least on the head."
            )
        if recipe.bn_momentum is not None:
            set_momentum(model, recipe.bn_momentum)
        with devices.scope():
            shown = model, preprocessing, recipe
            self._step = TrainingStep(*shown, devices, class_weights, teacher)
            self._average = None
            if recipe.ema is not None:
                # The average of a frozen weight would differ from it by rounding.
                layers = [each for each in model.layers if each.trainable]
                moving = [weight for each in layers for weight in each.variables]
                self._average = optimizers.MovingAverage(moving)
                self._update_average = _compiled(self._average.update)

    def train(
        self, images: tf.Tensor, targets: tf.Tensor, step: int, epoch: int
    ) -> tuple[float, int]:
        """Take one step; see `TrainingStep`.

        The images are uint8 `(batch, height, width, 3)`, the targets int64 `(batch,)`;
        the step is of this phase, the epoch over all phases, both counted from 0.
        """
        # The 1 makes it another stream than that of the augmentation.
        entropy = np.random.SeedSequence((self.phase.recipe.seed, epoch, step, 1))
        key = entropy.generate_state(2, np.uint32).astype(np.int64)
        rate, decay = self.phase.learning_rate(step), self.phase.ema_decay(step)
        loss, correct = self._step(images, targets, rate, key)
        if decay is not None:
            self._update_average(tf.constant(decay, tf.float64))
        return loss, correct

    def variables(self) -> dict[str, tf.Variable]:
        """Return every variable of the training state, by name."""
        return self._step.variables() | (self._average.state() if self._average else {})

    def evaluated_variables(self) -> dict[str, tf.Variable]:
        """Return the values to evaluate and save, by path: the averages, if any."""
        variables = {each.path: each.value for each in self.model.variables}
        if self._average:
            variables |= self._average.averages()
        return variables
