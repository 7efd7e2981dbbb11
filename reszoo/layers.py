"""The two layers that Keras does not have as a ResNet needs them."""

from typing import Any

import keras


@keras.saving.register_keras_serializable(package="reszoo")
class BatchNormalization(keras.layers.BatchNormalization):  # type: ignore[misc]
    """Normalise over the batch with TensorFlow's fused kernel.

    Keras 3 computes batch normalisation from single operations; the fused kernel
    trains ResNet-50 faster on a CPU, most of all in bfloat16. On other backends,
    and for what the kernel cannot do (masks, synchronised statistics, batch
    renormalisation), Keras' own code runs.

    With the kernel the moving variance follows the unbiased batch variance, as
    in torch. Momentum and epsilon default to torch's as well (a Keras momentum
    of 0.9 is torch's 0.1), for published weights rely on them.

    Input and output shape: `(batch, height, width, channels)`.
    """

    def __init__(
        self, *, momentum: float = 0.9, epsilon: float = 1e-5, **options: Any
    ) -> None:
        super().__init__(momentum=momentum, epsilon=epsilon, **options)

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        if mask is None and self._kernel_fits(inputs):
            return self._fused(inputs, training=bool(training) and self.trainable)
        return super().call(inputs, training=training, mask=mask)

    def _kernel_fits(self, inputs: Any) -> bool:
        return (
            keras.backend.backend() == "tensorflow"
            and len(inputs.shape) == 4
            and self.axis in (-1, 3)
            and self.scale
            and self.center
            and not self.synchronized
            and not self.renorm
            and keras.backend.standardize_dtype(inputs.dtype) != "float64"
        )

    def _fused(self, inputs: Any, training: bool) -> Any:
        import tensorflow as tf

        statistics = (
            {}
            if training
            else {
                "mean": self.moving_mean.value,
                "variance": self.moving_variance.value,
            }
        )
        outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            inputs,
            self.gamma.value,
            self.beta.value,
            epsilon=self.epsilon,
            is_training=training,
            **statistics,
        )
        if training:
            self._follow(self.moving_mean, mean)
            self._follow(self.moving_variance, variance)
        return outputs

    def _follow(self, moving: Any, batch: Any) -> None:
        moving.assign(moving * self.momentum + batch * (1.0 - self.momentum))


@keras.saving.register_keras_serializable(package="reszoo")
class IdentityShortcut(keras.layers.Layer):  # type: ignore[misc]
    """Bring an activation to another shape without parameters: the paper's option A.

    Takes every `stride`-th pixel and surrounds the channels with zero channels,
    equally many on both sides: the layout of the published CIFAR checkpoints.

    Args:
        filters: Channels of the output.
        stride: Step between the pixels kept.

    Input shape: `(batch, height, width, channels)`; output shape:
    `(batch, ceil(height / stride), ceil(width / stride), filters)`.
    """

    def __init__(self, filters: int, stride: int, **options: Any) -> None:
        super().__init__(**options)
        self.filters = filters
        self.stride = stride

    def call(self, inputs: Any) -> Any:
        kept = inputs[:, :: self.stride, :: self.stride, :]
        extra = self.filters - inputs.shape[-1]
        before = extra // 2
        channels = (before, extra - before)
        return keras.ops.pad(kept, ((0, 0), (0, 0), (0, 0), channels))

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        batch, *sides, _ = input_shape
        kept = (None if side is None else -(-side // self.stride) for side in sides)
        return (batch, *kept, self.filters)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        return {**config, "filters": self.filters, "stride": self.stride}
