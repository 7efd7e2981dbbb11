"""The residual block, and the perceptrons made of it.

Two weighted layers compute z[l+2] from an activation a[l]: linear, normalise, ReLU,
linear, normalise. A plain network outputs g(z[l+2]), where g is the ReLU. A
residual network adds the activation from before the two layers first (He et al. 2015,
arXiv:1512.03385, equation 1):

    a[l+2] = g(z[l+2] + a[l])

A block that is not needed only has to output z = 0: since a[l] >= 0 already, g leaves
it unchanged, while a plain block would have to learn the identity. The derivative of
the sum by a[l] is one plus that of z, so gradients reach the first layers whatever the
layers between do.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras

from reszoo.errors import UsageError, known
from reszoo.layers import BatchNormalization, check_names, classifier, layer_seed
from reszoo.specs import Shortcut

Tensor = Any
Function = Callable[[Tensor], Tensor]
# A vector keeps its width from block to block, so there is nothing to project where
# shapes change.
_SHORTCUTS = ("identity", "none")


def residual(
    main_path: Function | Sequence[Function],
    shortcut: Function | None = None,
    *,
    activation: str | Function | None = "relu",
    name: str | None = None,
) -> Function:
    """Make a residual block: `a[l+2] = g(z[l+2] + a[l])`, g being the ReLU.

    Sources: He et al. 2015 (arXiv:1512.03385), section 3.2; for pre-activation blocks
    He et al. 2016 (arXiv:1603.05027).

    Args:
        main_path: Computes z[l+2] from a[l]: a function, or layers that follow one
            another, the last of which is linear (or a normalisation).
        shortcut: Brings a[l] to the shape of z[l+2] where the two differ: a
            projection W a[l] (the paper's equation 2), for example. None adds a[l]
            as it is.
        activation: g, as of `keras.layers.Activation`. None outputs the sum, for
            pre-activation blocks, whose main path normalizes and activates first.
        name: The layers that add and activate are `<name>.add` and `<name>.relu` (of
            another activation `<name>.activation`). None lets Keras number them.

    Returns:
        A function from a Keras tensor of any shape, `(batch, features)` or
        `(batch, height, width, channels)`, to one of the shape of z[l+2].

    Raises:
        UsageError: From that function: shortcut and main path differ in shape.

    Example:
        >>> a = keras.Input((64,))
        >>> block1 = reszoo.residual([Dense(64, "relu"), Dense(64)])
        >>> block2 = reszoo.residual([Dense(64, "relu"), Dense(64)])
        >>> keras.Model(a, block2(block1(a)))
    """

    def block(a: Tensor) -> Tensor:
        z = _through(main_path, a)
        carried = a if shortcut is None else shortcut(a)
        if z.shape != carried.shape:
            raise UsageError(
                "A block adds tensors of one shape. Received: "
                f"{tuple(z.shape)} from the main path and {tuple(carried.shape)} from "
                f"the shortcut of {name or 'the block'!r}; give a shortcut= that "
                "projects a[l] to the first."
            )
        added = keras.layers.Add(name=name and f"{name}.add")([z, carried])
        if activation is None:
            return added
        if activation == "relu":
            return keras.layers.ReLU(name=name and f"{name}.relu")(added)
        other = name and f"{name}.activation"
        return keras.layers.Activation(activation, name=other)(added)

    return block


def _through(path: Function | Sequence[Function], x: Tensor) -> Tensor:
    """Apply a function, or layers one after another, to a Keras tensor."""
    for layer in path if isinstance(path, Sequence) else (path,):
        x = layer(x)
    return x


def mlp(
    layers: int, *, width: int = 64, classes: int = 10,
    input_shape: Sequence[int] = (8, 8, 3), shortcut: Shortcut = "identity",
    seed: int | None = None, name: str | None = None,
) -> keras.Model:  # fmt: skip
    """Build a multilayer perceptron, with shortcuts or without.

    As the CIFAR networks of He et al. 2015, section 4.2, it has 2n + 2 weighted layers:
    one that brings the image to `width`, n blocks of two, and the classifier. Each but
    the last is followed by batch normalisation and a ReLU.

    Args:
        layers: Weighted layers: an even number, 4 at least.
        width: Of all but the last.
        classes: Number of classes.
        input_shape: `(height, width, channels)` of the images, or `(features,)`.
        shortcut: "identity" adds the activation from two layers before, "none" does
            not. The two models are equal in width, depth and parameters.
        seed: Decides the fresh weights; None draws them anew each time.
        name: Of the model.

    Returns:
        A functional model from `(batch, *input_shape)` to logits `(batch, classes)`.

    Raises:
        UsageError: `layers` is odd or too small, or there is no such shortcut.

    Example:
        >>> reszoo.mlp(56, shortcut="none").count_params()
    """
    if layers < 4 or layers % 2:
        raise UsageError(
            "layers must be even and at least 4: one in front, two a block, and the "
            f"classifier. Received: layers={layers}."
        )
    is_plain = known("shortcut", shortcut, _SHORTCUTS) == "none"
    check_names()
    image = keras.Input(tuple(input_shape), name="image")
    x = keras.layers.Flatten(name="flatten")(image)
    x = _through([*_linear("", 1, width, seed), keras.layers.ReLU(name="relu")], x)
    for block in (f"block{number}" for number in range((layers - 2) // 2)):
        first, last = (_linear(f"{block}.", n, width, seed) for n in (1, 2))
        path = [*first, keras.layers.ReLU(name=f"{block}.relu1"), *last]
        if is_plain:
            x = _through([*path, keras.layers.ReLU(name=f"{block}.relu")], x)
        else:
            x = residual(path, name=block)(x)
    kind = "plain" if is_plain else "residual"
    logits = classifier(classes, seed)(x)
    return keras.Model(image, logits, name=name or f"{kind}_mlp{layers}")


def _linear(
    prefix: str, number: int, width: int, seed: int | None
) -> list[keras.layers.Layer]:
    """Return a linear layer and the batch normalization after it."""
    name = f"{prefix}linear{number}"
    # He et al. 2015b (arXiv:1502.01852).
    initializer = keras.initializers.VarianceScaling(
        2.0, "fan_in", "untruncated_normal", layer_seed(seed, name)
    )
    # A bias would be undone by the normalization.
    dense = keras.layers.Dense(
        width, use_bias=False, kernel_initializer=initializer, name=name
    )
    return [dense, BatchNormalization(name=f"{prefix}bn{number}")]
