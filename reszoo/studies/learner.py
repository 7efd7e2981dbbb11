"""One net that is traced once and trained from many seeds."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from reszoo.data.pipeline import quietly
from reszoo.fresh import start_anew
from reszoo.preprocessing import Preprocessing
from reszoo.studies.results import Snapshot
from reszoo.training.losses import LOSSES, targets
from reszoo.training.optimizers import Optimizer
from reszoo.training.recipes import Recipe
from reszoo.training.step import decay, rule_of

# Digits of a norm that are kept: a plot shows fewer.
_DIGITS = 4


class Learner:
    """A net, what moves its weights, and what is seen on the way.

    Args:
        net: From images to logits, built in the precision it shall learn in.
        record: How pixels are normalised.
        recipe: Optimizer, loss and decay.
    """

    def __init__(self, net: keras.Model, record: Preprocessing, recipe: Recipe) -> None:
        self.net, self._record, self._recipe = net, record, recipe
        self._weights = net.trainable_variables
        decays = [decay(weight, recipe) for weight in self._weights]
        self._optimizer = Optimizer(rule_of(recipe), self._weights, decays)
        self._watched = keras.Model(net.inputs, [net.output, *_rectified(net)])
        self._kernels = [_is_main_kernel(weight) for weight in self._weights]
        self._step: Callable[..., Any] = tf.function(self._descend, autograph=False)
        pixels = tf.TensorSpec((None, *net.input_shape[1:]), tf.uint8)
        self._answer = tf.function(
            self._hits,
            input_signature=[pixels, tf.TensorSpec((None,), tf.int64)],
            autograph=False,
        )

    @property
    def parameters(self) -> int:
        """Number of weights that learn."""
        return sum(int(np.prod(weight.shape)) for weight in self._weights)

    def variables(self) -> dict[str, tf.Variable]:
        """Return all that a state must hold, by name."""
        found = {f"net/{each.path}": each.value for each in self.net.variables}
        return found | self._optimizer.state()

    def begin(self, seed: int) -> None:
        """Take fresh weights and forget all momentum."""
        start_anew(self.net, seed)
        for variable in self._optimizer.state().values():
            variable.assign(tf.zeros_like(variable))

    def learn(
        self, images: tf.Tensor, labels: tf.Tensor, rate: float
    ) -> tuple[float, int]:
        """Take one step; return the mean loss before it and how many were right.

        Args:
            images: uint8 `(batch, height, width, 3)`.
            labels: int64 `(batch,)`.
            rate: Learning rate.
        """
        loss, hits, _, _ = self._step(images, labels, _rate(rate), tf.constant(False))
        return float(loss), int(hits)

    def look(
        self, images: tf.Tensor, labels: tf.Tensor, rate: float, step: int
    ) -> tuple[float, int, Snapshot]:
        """Do what `learn` does and tell what went through the net."""
        loss, hits, gradients, activations = self._step(
            images, labels, _rate(rate), tf.constant(True)
        )
        seen = Snapshot(
            step=step, gradients=_short(gradients), activations=_short(activations)
        )
        return float(loss), int(hits), seen

    def error(
        self, batches: Iterable[tuple[tf.Tensor, tf.Tensor]], images: int
    ) -> float:
        """Return the share of images that the net gets wrong, in 0..1.

        Args:
            batches: All of them once: uint8 images and int64 labels.
            images: How many there are.
        """
        right = sum(int(self._answer(*batch)) for batch in quietly(batches))
        return 1 - right / images

    def _descend(
        self, images: tf.Tensor, labels: tf.Tensor, rate: tf.Tensor, watch: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        pixels = self._record.normalise(tf.cast(images, tf.float32))
        target = targets(labels, self.net.output_shape[-1])
        with tf.GradientTape() as tape:
            logits, *activations = self._watched(pixels, training=True)
            loss = LOSSES[self._recipe.loss](
                logits, target, self._recipe.label_smoothing
            )
            loss = tf.reduce_mean(loss)
        gradients = tape.gradient(loss, [weight.value for weight in self._weights])
        seen = self._seen(watch, gradients, activations)
        self._optimizer.apply(gradients, rate)
        right = tf.equal(tf.argmax(logits, axis=-1), labels)
        return loss, tf.reduce_sum(tf.cast(right, tf.int32)), *seen

    def _seen(
        self, watch: tf.Tensor, gradients: list[tf.Tensor], activations: list[tf.Tensor]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        chosen = [
            gradient
            for gradient, kept in zip(gradients, self._kernels, strict=True)
            if kept
        ]

        def norms() -> tf.Tensor:
            return tf.stack([tf.norm(gradient) for gradient in chosen])

        def scales() -> tf.Tensor:
            wide = (tf.cast(each, tf.float32) for each in activations)
            return tf.stack([tf.math.reduce_std(each) for each in wide])

        # Only in a few steps, for it reads every activation once more.
        return (
            tf.cond(watch, norms, lambda: tf.zeros(len(chosen))),
            tf.cond(watch, scales, lambda: tf.zeros(len(activations))),
        )

    def _hits(self, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        pixels = self._record.normalise(tf.cast(images, tf.float32))
        logits = self.net(pixels, training=False)
        right = tf.equal(tf.argmax(logits, axis=-1), labels)
        return tf.reduce_sum(tf.cast(right, tf.int32))


def _rate(rate: float) -> tf.Tensor:
    """Return a learning rate as a tensor, lest each new number be traced."""
    return tf.constant(rate, tf.float32)


def _rectified(net: keras.Model) -> Iterator[Any]:
    return (
        layer.output for layer in net.layers if isinstance(layer, keras.layers.ReLU)
    )


def _is_main_kernel(weight: keras.Variable) -> bool:
    # Shortcuts with weights lie beside the layers that depth counts.
    return weight.path.endswith("/kernel") and "downsample" not in weight.path


def _short(values: tf.Tensor) -> tuple[float, ...]:
    return tuple(float(f"{value:.{_DIGITS}g}") for value in np.asarray(values))
