"""Layers and initialization of ResNets that Keras does not have."""

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import keras
import numpy as np

from reszoo.errors import UsageError

Shape = tuple[int | None, ...]


def check_names() -> None:
    """Raise UsageError where Keras runs on torch."""
    if keras.backend.backend() == "torch":
        raise UsageError(
            "Keras on torch has no layers with dots in their names, which models of "
            "reszoo have. Received: KERAS_BACKEND=torch; start Python with "
            "KERAS_BACKEND=tensorflow or jax."
        )


def layer_seed(seed: int | None, layer: str) -> int | None:
    """Return a seed of a layer's own, for one initializer instance repeats its draw.

    None draws anew each time.
    """
    if seed is None:
        return None
    entropy = np.random.SeedSequence((seed, zlib.crc32(layer.encode())))
    return int(entropy.generate_state(1)[0] >> 1)


def classifier(classes: int, seed: int | None) -> keras.layers.Dense:
    """Return the last layer of a model, `fc`: `(batch, features)` to logits."""
    return keras.layers.Dense(
        classes,
        # torch's default for a linear layer: uniform within 1 / sqrt(fan in).
        kernel_initializer=keras.initializers.VarianceScaling(
            1 / 3, "fan_in", "uniform", layer_seed(seed, "fc")
        ),
        # Also under a mixed-precision policy: the loss needs the digits.
        dtype="float32",
        name="fc",
    )


def reinitialize(model: keras.Model, seed: int) -> None:
    """Reinitialize a model with the weights that `seed` gives when it is built.

    Studies run several seeds with one traced model, from `reszoo.build` or
    `reszoo.mlp`.
    """
    for layer in model.layers:
        for variable in layer.weights:
            name = variable.path.rsplit("/", 1)[-1]
            initializer = getattr(layer, f"{name}_initializer")
            config = initializer.get_config()
            if "seed" in config:
                config["seed"] = layer_seed(seed, layer.name)
            variable.assign(type(initializer).from_config(config)(variable.shape))


def _stored_as_keras(layer: type) -> type:
    """Have a layer stored under the name of the Keras layer that it extends.

    Keras imports nothing but its own modules while it reads a file, so that plain Keras
    opens such a file. Where reszoo is loaded, `from_config` decides which of the two a
    file means, for `.h5` files name other people's layers in the same way.
    """
    layer.__module__ = "keras.layers"
    registered = keras.saving.get_custom_objects()
    registered[layer.__name__] = registered[f"reszoo>{layer.__name__}"] = layer
    return layer


@_stored_as_keras
class Conv2D(keras.layers.Conv2D):  # type: ignore[misc]
    """Convolve, in groups with TensorFlow's own kernel.

    On the TensorFlow backend Keras 3.15 compiles every grouped convolution with XLA,
    which takes 300 times longer on a CPU than the kernel that TensorFlow has for it,
    and leaves an XLA call in exported graphs. That kernel has no gradient on CPUs
    without oneDNN (and none in float64): there each group is convolved by itself, in
    twice the time. All else is `keras.layers.Conv2D`.

    Args:
        differentiable: Whether gradients are taken. Models that only infer say False
            and keep one operation on every machine.

    Input and output shape: `(batch, height, width, channels)`.
    """

    def __init__(
        self, *arguments: Any, differentiable: bool = True, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self.differentiable = differentiable

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        is_tensorflow = keras.backend.backend() == "tensorflow"
        if self.groups == 1 or not is_tensorflow or self.data_format != "channels_last":
            return super().convolution_op(inputs, kernel)
        import tensorflow as tf

        kernel = keras.ops.convert_to_tensor(kernel)
        parts = [(inputs, kernel)]
        if self.differentiable and not _has_grouped_gradients(kernel.dtype):
            split = (tf.split(each, self.groups, axis=-1) for each in (inputs, kernel))
            parts = list(zip(*split, strict=True))
        padding, dilations = self.padding.upper(), self.dilation_rate
        outputs = [
            tf.nn.conv2d(*part, self.strides, padding, dilations=dilations)
            for part in parts
        ]
        return outputs[0] if len(outputs) == 1 else tf.concat(outputs, axis=-1)

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super().get_config()
        return config if self.differentiable else {**config, "differentiable": False}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> keras.layers.Conv2D:
        """Return a layer of Keras where there is one group."""
        special = config["groups"] > 1 or not config.get("differentiable", True)
        return cls(**config) if special else keras.layers.Conv2D.from_config(config)


def subsample_first(layer: keras.layers.Conv2D) -> None:
    """Let a strided 1x1 convolution drop pixels first and then convolve: same numbers.

    Of fewer than 16 channels and batches such as 5 images, the gradient of TensorFlow's
    own way (2.21, oneDNN, AVX-512) writes behind a buffer and ends the process.
    """
    rows, columns = layer.strides

    def convolve(inputs: Any, kernel: Any) -> Any:
        inputs = inputs[:, ::rows, ::columns]
        return keras.ops.conv(inputs, kernel, 1, "valid", "channels_last")

    layer.convolution_op = convolve


@cache
def _has_grouped_gradients(dtype: Any) -> bool:
    """Try whether this machine has gradients of grouped convolutions."""
    import tensorflow as tf

    # Outside of the graph that a layer may just be traced into.
    with tf.init_scope():
        try:
            tf.raw_ops.Conv2DBackpropInput(
                input_sizes=(1, 4, 4, 4), filter=tf.ones((3, 3, 2, 4), dtype),
                out_backprop=tf.ones((1, 4, 4, 4), dtype), strides=[1, 1, 1, 1],
                padding="SAME",
            )  # fmt: skip
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError):
            return False
    return True


_KEPT = ContextVar("moving statistics are kept", default=False)


@contextmanager
def statistics_kept() -> Iterator[None]:
    """Keep the moving statistics of batch normalization, also in training.

    For a gradient that computes layers a second time.
    """
    before = _KEPT.set(True)
    try:
        yield
    finally:
        _KEPT.reset(before)


# Stands in an argument that Keras ignores without renormalisation.
_MARK = {"stored_by": "reszoo"}


@_stored_as_keras
class BatchNormalization(keras.layers.BatchNormalization):  # type: ignore[misc]
    """Normalise over the batch with TensorFlow's fused kernel.

    Keras 3 computes batch normalisation from single operations; the fused kernel
    trains ResNet-50 faster on a CPU, most of all in bfloat16. On other backends,
    and for what the kernel cannot do (masks, batch renormalisation), Keras' own
    code runs.

    The moving variance follows the unbiased batch variance, as in torch. Momentum
    and epsilon default to torch's as well (a Keras momentum of 0.9 is torch's 0.1),
    for published weights rely on them.

    Under a `tf.distribute` strategy each device normalises by the statistics of its
    own part of the batch, or with `synchronized` by those of the whole batch. The
    moving statistics stay equal on all devices either way; Keras lets them drift
    apart, and follows the biased variance when synchronised.

    Input and output shape: `(batch, height, width, channels)`.
    """

    def __init__(
        self, *, momentum: float = 0.9, epsilon: float = 1e-5, **options: Any
    ) -> None:
        super().__init__(momentum=momentum, epsilon=epsilon, **options)

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super().get_config()
        return config if self.renorm else {**config, "renorm_clipping": _MARK}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> keras.layers.BatchNormalization:
        """Return a layer of Keras where reszoo did not write the config."""
        if config.get("renorm_clipping") == _MARK:
            return cls(**{**config, "renorm_clipping": None})
        return keras.layers.BatchNormalization.from_config(config)

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        if mask is None and self._kernel_fits(inputs):
            learns = bool(training) and self.trainable
            if learns and self.synchronized and _devices() > 1:
                return self._shared(inputs)
            return self._fused(inputs, training=learns)
        return super().call(inputs, training=training, mask=mask)

    def _kernel_fits(self, inputs: Any) -> bool:
        return (
            keras.backend.backend() == "tensorflow"
            and len(inputs.shape) == 4
            and self.axis in (-1, 3)
            and self.scale
            and self.center
            and not self.renorm
            # float32 statistics, whatever the policy computes in.
            and self.variable_dtype == "float32"
            and keras.backend.standardize_dtype(inputs.dtype) != "float64"
        )

    def _fused(self, inputs: Any, training: bool) -> Any:
        import tensorflow as tf

        moving = (self.moving_mean.value, self.moving_variance.value)
        outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            inputs, self.gamma.value, self.beta.value,
            *((None, None) if training else moving), epsilon=self.epsilon,
            is_training=training,
        )  # fmt: skip
        if training and not _KEPT.get():
            self._follow(*_mean_over_devices(mean, variance))
        return outputs

    def _shared(self, inputs: Any) -> Any:
        """Normalise by the statistics of the batches of all devices together."""
        import tensorflow as tf

        values = tf.cast(inputs, tf.float32)
        own, spread = tf.nn.moments(values, axes=(0, 1, 2))
        # Not the mean of squares less the square of the mean, which loses digits
        # where the mean is far from 0: here only the devices' means are subtracted.
        mean, square, within = _mean_over_devices(own, own * own, spread)
        variance = within + tf.maximum(square - mean * mean, 0.0)
        count = tf.cast(tf.size(values) // values.shape[-1] * _devices(), tf.float32)
        if not _KEPT.get():
            self._follow(mean, variance * count / (count - 1))
        outputs = tf.nn.batch_normalization(
            values, mean, variance, self.beta.value, self.gamma.value, self.epsilon
        )
        return tf.cast(outputs, inputs.dtype)

    def _follow(self, mean: Any, variance: Any) -> None:
        pairs = ((self.moving_mean, mean), (self.moving_variance, variance))
        for moving, batch in pairs:
            moving.assign(moving * self.momentum + batch * (1.0 - self.momentum))


def _devices() -> int:
    """Return over how many devices the batch at hand is spread."""
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    return int(context.num_replicas_in_sync) if context else 1


def _mean_over_devices(*statistics: Any) -> Sequence[Any]:
    """Return the means of tensors of one shape, in one reduction."""
    import tensorflow as tf

    if _devices() == 1:
        return statistics
    context = tf.distribute.get_replica_context()
    stacked = context.all_reduce(tf.distribute.ReduceOp.MEAN, tf.stack(statistics))
    return tuple(tf.unstack(stacked))


@keras.saving.register_keras_serializable(package="reszoo")
class ScaleShift(keras.layers.Layer):  # type: ignore[misc]
    """Scale and shift every channel: what batch normalization does in inference.

    It stands where there is no convolution to fold the normalization into.

    Input and output shape: `(batch, height, width, channels)`.
    """

    def build(self, input_shape: Shape) -> None:
        channels = (input_shape[-1],)
        self.scale = self.add_weight(channels, "ones", name="scale")
        self.shift = self.add_weight(channels, "zeros", name="shift")

    def call(self, inputs: Any) -> Any:
        return inputs * self.scale + self.shift


@keras.saving.register_keras_serializable(package="reszoo")
class IdentityShortcut(keras.layers.Layer):  # type: ignore[misc]
    """Bring an activation to another shape without parameters: the paper's option A.

    Takes every `stride`-th pixel and surrounds the channels with zero channels up to
    `filters`, equally many on both sides: the layout of the published CIFAR
    checkpoints.

    Input shape: `(batch, height, width, channels)`; output shape: `(batch, ceil(height
    / stride), ceil(width / stride), filters)`.
    """

    def __init__(self, filters: int, stride: int, **options: Any) -> None:
        super().__init__(**options)
        self.filters, self.stride = filters, stride

    def call(self, inputs: Any) -> Any:
        kept = inputs[:, :: self.stride, :: self.stride, :]
        extra = self.filters - inputs.shape[-1]
        channels = (extra // 2, extra - extra // 2)
        return keras.ops.pad(kept, ((0, 0), (0, 0), (0, 0), channels))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch, *sides, _ = input_shape
        kept = (None if side is None else -(-side // self.stride) for side in sides)
        return (batch, *kept, self.filters)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "filters": self.filters, "stride": self.stride}


@keras.saving.register_keras_serializable(package="reszoo")
class StochasticDepth(keras.layers.Layer):  # type: ignore[misc]
    """Leave a block out for some images of a training batch (arXiv:1603.09382).

    What is kept is scaled up, so that the mean stays what inference sees. The draw is a
    function of a key: a run can be repeated and gone on with. The rate is the
    probability of leaving the block out, in [0, 1); the block has an index, so that
    every block draws its own.

    Input: `(batch, height, width, channels)` and an int64 key `(2,)`.
    """

    def __init__(self, rate: float, index: int, **options: Any) -> None:
        super().__init__(**options)
        self.rate, self.index = rate, index

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        import tensorflow as tf

        branch, key = inputs
        if not training:
            return branch
        stream, shape = self._draw(tf.shape(branch))
        folded = tf.random.fold_in(tf.cast(key, tf.int64), stream)
        draw = tf.random.stateless_uniform(shape, folded)
        return branch * tf.cast(draw >= self.rate, branch.dtype) / (1 - self.rate)

    def _draw(self, shape: Any) -> tuple[int, Any]:
        """Return the number and the shape of a draw for an input of some shape."""
        return self.index, (shape[0], 1, 1, 1)

    def compute_output_shape(self, input_shape: list[Shape]) -> Shape:
        return input_shape[0]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate, "index": self.index}


@keras.saving.register_keras_serializable(package="reszoo")
class KeyedDropout(StochasticDepth):
    """Set single values to zero in training, drawn from a key.

    Arguments and input are those of `StochasticDepth`.
    """

    def _draw(self, shape: Any) -> tuple[int, Any]:
        return -1 - self.index, shape
