"""From an `Architecture` to a functional `keras.Model`.

Layers carry the names of torchvision's modules, so the layer names are the
checkpoint format. Differences to the paper are torchvision's as well: the stride
of a bottleneck sits in its 3x3 convolution (v1.5) unless `stride_in="1x1"`.
"""

from typing import Any

import keras

from reszoo.blocks import residual
from reszoo.errors import UsageError
from reszoo.layers import (
    BatchNormalization,
    Conv2D,
    IdentityShortcut,
    StochasticDepth,
    layer_seed,
)
from reszoo.specs import SPECS, Architecture

Tensor = Any
_NHWC = {"data_format": "channels_last"}


def build_resnet(
    architecture: Architecture,
    *,
    folded: bool = False,
    zero_init_residual: bool = False,
    stochastic_depth: float = 0.0,
    synchronized: bool = False,
    seed: int | None = None,
    name: str | None = None,
) -> keras.Model:
    """Build the model that an architecture describes, with fresh weights.

    Args:
        architecture: Variant and options.
        folded: Whether convolutions carry a bias and batch normalisation is left
            out: the inference form, into which trained statistics are folded.
        zero_init_residual: Whether the last scale of each block starts at zero, so
            that the block is its shortcut (Goyal et al., arXiv:1706.02677, 5.1).
        stochastic_depth: Probability that training leaves the last block out; it
            falls linearly towards the first. Above 0 the model takes a second
            input: an int64 key `(2,)` from which it draws.
        synchronized: Whether devices share their batch statistics.
        seed: Decides the fresh weights; None draws them anew each time.
        name: Name of the model; the variant's by default.

    Returns:
        A functional model from `(batch, height, width, channels)` to logits,
        probabilities, pooled features, or feature maps.
    """
    builder = _Builder(architecture, folded, seed)
    builder.zero_init_residual = zero_init_residual
    builder.stochastic_depth = stochastic_depth
    builder.synchronized = synchronized
    return builder.model(name or architecture.spec)


def normalization_name(convolution: str) -> str:
    """Return the name of the batch normalisation that follows a convolution."""
    if convolution.endswith("downsample.0"):
        return convolution[:-1] + "1"
    return convolution.replace("conv", "bn")


def convolution_names(model: keras.Model) -> list[str]:
    """List the convolutions of a model from `build_resnet`, input first."""
    return [
        layer.name for layer in model.layers if isinstance(layer, keras.layers.Conv2D)
    ]


class _Builder:
    def __init__(
        self, architecture: Architecture, folded: bool, seed: int | None
    ) -> None:
        self.options = architecture
        self.spec = SPECS[architecture.spec]
        self.folded = folded
        self.seed = seed
        self.zero_init_residual = False
        self.stochastic_depth = 0.0
        self.synchronized = False
        self.key: Tensor = None

    def model(self, name: str) -> keras.Model:
        image = keras.Input(self.options.input_shape, name="image")
        if self.stochastic_depth:
            self.key = keras.Input(batch_shape=(2,), dtype="int64", name="key")
        x = self.stem(image)
        stages: dict[str, Tensor] = {}
        for index in range(len(self.spec.depths)):
            x = stages[f"layer{index + 1}"] = self.stage(x, index)
        outputs = stages if self.options.features else self.top(x)
        inputs = image if self.key is None else [image, self.key]
        return keras.Model(inputs, outputs, name=name)

    def stem(self, image: Tensor) -> Tensor:
        if self.spec.stem == "cifar":
            x = self.conv_bn(image, self.spec.widths[0], 3, 1, "conv1")
            return _relu(x, "relu")
        x = self.conv_bn(image, self.spec.widths[0], 7, 2, "conv1")
        x = _relu(x, "relu")
        # Zeros stand in for torch's minus infinity: after a ReLU no input is below.
        x = keras.layers.ZeroPadding2D(1, name="maxpool.pad", **_NHWC)(x)
        return keras.layers.MaxPooling2D(3, 2, name="maxpool", **_NHWC)(x)

    def stage(self, x: Tensor, index: int) -> Tensor:
        width = self.spec.widths[index]
        for block in range(self.spec.depths[index]):
            stride = 2 if index and not block else 1
            x = self.block(x, width, stride, f"layer{index + 1}.{block}")
        return x

    def block(self, x: Tensor, width: int, stride: int, name: str) -> Tensor:
        path = self.basic if self.spec.block == "basic" else self.bottleneck

        def main_path(a: Tensor) -> Tensor:
            return path(a, width, stride, name)

        if self.options.shortcut == "none":
            return _relu(main_path(x), f"{name}.relu")
        filters = width if self.spec.block == "basic" else 4 * width
        return residual(
            lambda a: self.sometimes(main_path(a), name),
            lambda a: self.shortcut(a, filters, stride, name),
            name=name,
        )(x)

    def basic(self, x: Tensor, width: int, stride: int, name: str) -> Tensor:
        x = self.conv_bn(x, width, 3, stride, f"{name}.conv1")
        x = _relu(x, f"{name}.relu1")
        return self.conv_bn(x, width, 3, 1, f"{name}.conv2")

    def bottleneck(self, x: Tensor, width: int, stride: int, name: str) -> Tensor:
        first, second = (stride, 1) if self.options.stride_in == "1x1" else (1, stride)
        x = self.conv_bn(x, width, 1, first, f"{name}.conv1")
        x = _relu(x, f"{name}.relu1")
        x = self.conv_bn(x, width, 3, second, f"{name}.conv2")
        x = _relu(x, f"{name}.relu2")
        return self.conv_bn(x, 4 * width, 1, 1, f"{name}.conv3")

    def shortcut(self, x: Tensor, filters: int, stride: int, name: str) -> Tensor:
        same_shape = stride == 1 and x.shape[-1] == filters
        if self.options.shortcut == "projection-all" or (
            self.options.shortcut == "projection" and not same_shape
        ):
            return self.conv_bn(x, filters, 1, stride, f"{name}.downsample.0")
        if same_shape:
            return x
        return IdentityShortcut(filters, stride, name=f"{name}.shortcut")(x)

    def sometimes(self, z: Tensor, name: str) -> Tensor:
        names = [
            f"layer{stage + 1}.{block}"
            for stage, depth in enumerate(self.spec.depths)
            for block in range(depth)
        ]
        index = names.index(name)
        rate = self.stochastic_depth * index / max(1, len(names) - 1)
        if not rate:
            return z
        return StochasticDepth(rate, index, name=f"{name}.drop")([z, self.key])

    def conv_bn(
        self, x: Tensor, filters: int, kernel: int, stride: int, name: str
    ) -> Tensor:
        # At stride 2 "same" pads by input size and on one side only, which moves
        # the picture by a pixel against torch: 6 to 7 % of the logits.
        padding = "same" if stride == 1 else "valid"
        if stride > 1 and kernel > 1:
            pad = keras.layers.ZeroPadding2D(kernel // 2, name=f"{name}.pad", **_NHWC)
            x = pad(x)
        x = Conv2D(
            filters,
            kernel,
            stride,
            padding=padding,
            use_bias=self.folded,
            # He et al. 2015b (arXiv:1502.01852), fan-out as torchvision.
            kernel_initializer=self.initializer(
                name, 2.0, "fan_out", "untruncated_normal"
            ),
            name=name,
            **_NHWC,
        )(x)
        return x if self.folded else self.norm(x, normalization_name(name))

    def norm(self, x: Tensor, name: str) -> Tensor:
        last = "bn2" if self.spec.block == "basic" else "bn3"
        starts_at_zero = self.zero_init_residual and name.endswith(f".{last}")
        return BatchNormalization(
            gamma_initializer="zeros" if starts_at_zero else "ones",
            synchronized=self.synchronized,
            name=name,
        )(x)

    def top(self, x: Tensor) -> Tensor:
        pooling = "avg" if self.options.include_top else self.options.pooling
        if pooling == "avg":
            x = keras.layers.GlobalAveragePooling2D(name="avgpool", **_NHWC)(x)
        elif pooling == "max":
            x = keras.layers.GlobalMaxPooling2D(name="maxpool_global", **_NHWC)(x)
        if not self.options.include_top:
            return x
        # float32 also under a mixed-precision policy: the loss needs the digits.
        x = keras.layers.Dense(
            self.options.classes,
            # torch's default for a linear layer: uniform within 1 / sqrt(fan in).
            kernel_initializer=self.initializer("fc", 1 / 3, "fan_in", "uniform"),
            dtype="float32",
            name="fc",
        )(x)
        if self.options.classifier_activation == "softmax":
            x = keras.layers.Softmax(dtype="float32", name="probabilities")(x)
        return x

    def initializer(
        self, layer: str, scale: float, mode: str, distribution: str
    ) -> keras.initializers.Initializer:
        seed = layer_seed(self.seed, layer)
        return keras.initializers.VarianceScaling(scale, mode, distribution, seed)


def logits_model(model: keras.Model) -> keras.Model:
    """Return a model that shares `model`'s layers and ends in its logits.

    Raises:
        UsageError: The model has no classifier.
    """
    if "fc" not in {layer.name for layer in model.layers}:
        raise UsageError(
            f"{model.name!r} has no classifier. Build it with include_top=True."
        )
    inputs = model.inputs if len(model.inputs) > 1 else model.inputs[0]
    return keras.Model(inputs, model.get_layer("fc").output, name=model.name)


def _relu(x: Tensor, name: str) -> Tensor:
    return keras.layers.ReLU(name=name)(x)
