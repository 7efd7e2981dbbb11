"""From an `Architecture` to a functional `keras.Model`.

Layers carry the names of torchvision's modules, so the layer names are the
checkpoint format. Differences to the paper are torchvision's as well: the stride
of a bottleneck sits in its 3x3 convolution (v1.5) unless `stride_in="1x1"`.
"""

import math
import sys
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import keras

from reszoo.architecture import FINAL_NORM, Architecture, Convolution, convolutions
from reszoo.blocks import residual
from reszoo.errors import UsageError
from reszoo.layers import (
    BatchNormalization,
    Conv2D,
    IdentityShortcut,
    KeyedDropout,
    ScaleShift,
    StochasticDepth,
    check_names,
    classifier,
    layer_seed,
    subsample_first,
)

Tensor = Any
# Layers in a row in one block.
_MOST_LAYERS = 16
_NHWC = {"data_format": "channels_last"}


def build_resnet(
    architecture: Architecture, *, folded: bool = False,
    zero_init_residual: bool = False, stochastic_depth: float = 0.0,
    keyed: bool = False, head_dropout: float = 0.0, synchronized: bool = False,
    seed: int | None = None, name: str | None = None,
) -> keras.Model:  # fmt: skip
    """Build the model that an architecture describes, with fresh weights.

    Args:
        architecture: Spec and options.
        folded: Whether to build the inference form: convolutions have a bias, into
            which batch normalization is folded; where it follows no convolution, a
            scale and a shift remain.
        zero_init_residual: Whether the last scale of each block starts at zero (the
            last kernel where no scale follows), so that the block is its shortcut
            (Goyal et al., arXiv:1706.02677, 5.1).
        stochastic_depth: Probability that training leaves the last block out; it
            falls linearly towards the first. Needs `keyed`.
        keyed: Whether stochastic depth and dropout draw from a key: if there are any,
            the model takes a second input, int64 `(2,)`. Otherwise dropout draws from
            Keras' generator of seeds.
        head_dropout: Probability of setting a feature before the classifier to zero
            in training. Needs `keyed`.
        synchronized: Whether devices share their batch statistics.
        seed: Decides the fresh weights; None draws them anew each time.
        name: Name of the model; the spec's by default.

    Returns:
        A functional model from `(batch, height, width, channels)` to logits,
        probabilities, pooled features, or feature maps.
    """
    check_names()
    builder = _Builder(**{k: value for k, value in locals().items() if k != "name"})
    return builder.model(name or architecture.name)


@dataclass
class _Builder:
    architecture: Architecture
    folded: bool
    zero_init_residual: bool
    stochastic_depth: float
    keyed: bool
    head_dropout: float
    synchronized: bool
    seed: int | None

    def __post_init__(self) -> None:
        self.spec = self.architecture.spec
        self.is_pre = self.spec.activation_order == "pre"
        self.key: Tensor = None

    def model(self, name: str) -> keras.Model:
        image = keras.Input(self.architecture.input_shape, name="image")
        rates = (self.stochastic_depth, self.architecture.dropout, self.head_dropout)
        if self.keyed and any(rates):
            self.key = keras.Input(batch_shape=(2,), dtype="int64", name="key")
        blocks = groupby(convolutions(self.architecture), lambda each: each.block)
        x = self.stem(image, list(next(blocks)[1]))
        stages: dict[str, Tensor] = {}
        for index, (_, listed) in enumerate(blocks):
            block = list(listed)
            x = stages[f"layer{block[0].stage}"] = self.block(x, block, index)
        if self.is_pre:
            x = _relu(self.norm(x, FINAL_NORM), "relu")
            stages[list(stages)[-1]] = x
        outputs = stages if self.architecture.features else self.top(x)
        inputs = image if self.key is None else [image, self.key]
        # Keras walks from the outputs to the inputs recursively, here and where users
        # make models of their own of the layers.
        layers = _MOST_LAYERS * sum(self.spec.depths)
        sys.setrecursionlimit(max(sys.getrecursionlimit(), 1000 + layers))
        return keras.Model(inputs, outputs, name=name)

    def stem(self, x: Tensor, listed: list[Convolution]) -> Tensor:
        for number, each in enumerate(listed, start=1):
            x = self.convolution(x, each)
            if number < len(listed):
                # timm numbers convolution, normalization and ReLU.
                x = _relu(x, f"conv1.{3 * number - 1}")
        if not self.is_pre:
            x = _relu(x, "relu")
        if self.spec.stem == "3x3":
            return x
        # After a ReLU zeros equal torch's minus infinity. Without one, before the
        # first pre-activation block, keras.applications pads with zeros as well.
        x = keras.layers.ZeroPadding2D(1, name="maxpool.pad", **_NHWC)(x)
        return keras.layers.MaxPooling2D(3, 2, name="maxpool", **_NHWC)(x)

    def block(self, x: Tensor, listed: list[Convolution], index: int) -> Tensor:
        path = [each for each in listed if not each.is_shortcut]
        name, norm = path[0].block, path[0].norm_before
        given = x if norm is None else _relu(self.norm(x, norm), f"{name}.relu1")
        if self.architecture.shortcut == "none":
            z = self.path(given, path, index)
            return z if self.is_pre else _relu(z, f"{name}.relu")
        return residual(
            lambda _: self.sometimes(self.path(given, path, index), name, index),
            lambda a: self.shortcut(a, given, listed),
            activation=None if self.is_pre else "relu",
            name=name,
        )(x)

    def path(self, x: Tensor, path: list[Convolution], index: int) -> Tensor:
        # The ReLU before the first convolution of a pre-activation block is relu1.
        before = 1 + self.is_pre
        for number, each in enumerate(path[:-1]):
            x = self.convolution(x, each)
            x = _relu(x, f"{each.block}.relu{number + before}")
        x = self.dropout(x, path[-1].block, index)
        return self.convolution(x, path[-1], ends_block=True)

    def dropout(self, x: Tensor, block: str, index: int) -> Tensor:
        rate, name = self.architecture.dropout, f"{block}.dropout"
        if not rate or self.folded:
            return x
        if self.key is None:
            seed = layer_seed(self.seed, name)
            return keras.layers.Dropout(rate, seed=seed, name=name)(x)
        return KeyedDropout(rate, index, name=name)([x, self.key])

    def shortcut(self, x: Tensor, given: Tensor, listed: list[Convolution]) -> Tensor:
        last = listed[-1]
        if last.is_shortcut:
            if last.pool:
                given = self.average(given, last.pool, f"{last.block}.downsample")
            return self.convolution(given, last)
        stride = math.prod(each.stride for each in listed)
        if stride == 1 and x.shape[-1] == last.filters:
            return x
        return IdentityShortcut(last.filters, stride, name=f"{last.block}.shortcut")(x)

    def average(self, x: Tensor, stride: int, prefix: str) -> Tensor:
        padding = "same"
        if stride == 1:
            # In place of a stride that an output stride takes, timm's windows average
            # zeros right and below the image (`AvgPool2dSame`); otherwise the last
            # window is cut (ceil_mode=True, count_include_pad=False).
            padding, name = "valid", f"{prefix}.pad"
            x = keras.layers.ZeroPadding2D(((0, 1), (0, 1)), name=name, **_NHWC)(x)
        return keras.layers.AveragePooling2D(
            2, stride, padding=padding, name=f"{prefix}.0", **_NHWC
        )(x)

    def sometimes(self, z: Tensor, name: str, index: int) -> Tensor:
        rate = self.stochastic_depth * index / max(1, sum(self.spec.depths) - 1)
        if not rate:
            return z
        return StochasticDepth(rate, index, name=f"{name}.drop")([z, self.key])

    def convolution(
        self, x: Tensor, each: Convolution, *, ends_block: bool = False
    ) -> Tensor:
        # At stride 2 "same" pads by input size and on one side only, which moves
        # the picture by a pixel against torch: 6 to 7 % of the logits.
        padding = "same" if each.stride == 1 else "valid"
        if each.stride > 1 and each.kernel_size > 1:
            side, name = each.kernel_size // 2, f"{each.name}.pad"
            x = keras.layers.ZeroPadding2D(side, name=name, **_NHWC)(x)
        starts_at_zero = ends_block and self.zero_init_residual
        # He et al. 2015b (arXiv:1502.01852), fan-out as torchvision.
        kernel = keras.initializers.VarianceScaling(
            2.0, "fan_out", "untruncated_normal", layer_seed(self.seed, each.name)
        )
        if starts_at_zero and each.norm is None:
            kernel = keras.initializers.Zeros()
        # Keras' own layer where it is as good: its class is what files name.
        layer: Any = keras.layers.Conv2D
        if each.groups > 1:
            layer = partial(Conv2D, groups=each.groups, differentiable=not self.folded)
        layer = layer(
            each.filters, each.kernel_size, each.stride, padding=padding,
            use_bias=self.folded or (self.spec.bias and each.norm is None),
            dilation_rate=each.dilation, kernel_initializer=kernel, name=each.name,
            **_NHWC,
        )  # fmt: skip
        if each.kernel_size == 1 < each.stride and each.in_channels < 16:
            subsample_first(layer)
        x = layer(x)
        if each.norm is None or self.folded:
            return x
        return self.norm(x, each.norm, starts_at_zero=starts_at_zero)

    def norm(self, x: Tensor, name: str, *, starts_at_zero: bool = False) -> Tensor:
        if self.folded:
            return ScaleShift(name=name)(x)
        return BatchNormalization(
            epsilon=self.spec.epsilon,
            gamma_initializer="zeros" if starts_at_zero else "ones",
            synchronized=self.synchronized,
            name=name,
        )(x)

    def top(self, x: Tensor) -> Tensor:
        pooling = "avg" if self.architecture.include_top else self.architecture.pooling
        if pooling == "avg":
            x = keras.layers.GlobalAveragePooling2D(name="avgpool", **_NHWC)(x)
        elif pooling == "max":
            x = keras.layers.GlobalMaxPooling2D(name="maxpool_global", **_NHWC)(x)
        if self.architecture.classes is None:
            return x
        if self.head_dropout:
            place = sum(self.spec.depths)
            x = KeyedDropout(self.head_dropout, place, name="dropout")([x, self.key])
        x = classifier(self.architecture.classes, self.seed)(x)
        if self.architecture.classifier_activation == "softmax":
            x = keras.layers.Softmax(dtype="float32", name="probabilities")(x)
        return x


def logits_model(model: keras.Model) -> keras.Model:
    """Return a model that shares `model`'s layers and ends in its logits.

    A UsageError if the model has no classifier.
    """
    if "fc" not in {layer.name for layer in model.layers}:
        raise UsageError(
            f"{model.name!r} has no classifier. Build it with include_top=True."
        )
    inputs = model.inputs if len(model.inputs) > 1 else model.inputs[0]
    return keras.Model(inputs, model.get_layer("fc").output, name=model.name)


def backbone_and_head(model: keras.Model) -> tuple[keras.Model, keras.Model]:
    """Divide a classifier at its pooled features; both parts share its layers.

    A key for dropout is the second input of both.
    """
    (image, *key), features = model.inputs, model.get_layer("avgpool").output
    backbone = keras.Model([image, *key] if key else image, features)
    return backbone, keras.Model([features, *key] if key else features, model.output)


def _relu(x: Tensor, name: str) -> Tensor:
    return keras.layers.ReLU(name=name)(x)
