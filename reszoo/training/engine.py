"""A net in one phase of its training: its weights and what moves them."""

import keras
import numpy as np
import tensorflow as tf

from reszoo.errors import UsageError
from reszoo.preprocessing import Preprocessing
from reszoo.training.distribution import Devices
from reszoo.training.freezing import BatchNormCount, freeze
from reszoo.training.net import set_momentum
from reszoo.training.optimizers import Average
from reszoo.training.phases import Phase
from reszoo.training.schedules import ema_decay_at
from reszoo.training.step import TrainingStep


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
