"""The residual block: what this zoo is about, in one function.

Two weighted layers compute z[l+2] from an activation a[l]: linear, normalise, ReLU,
linear, normalise. A plain net goes on with g(z[l+2]), g being the ReLU. A residual
net adds the activation from before the two layers first (He et al. 2015,
arXiv:1512.03385, equation 1):

    a[l+2] = g(z[l+2] + a[l])

If the best that a block can do is nothing, z = 0 does it, since a[l] >= 0 already and
g leaves it as it is; a plain block would have to learn the identity. And the
derivative of the sum by a[l] is one plus that of z, so a gradient reaches the first
layers whatever the layers between do with it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras

from reszoo.errors import UsageError

Tensor = Any
Function = Callable[[Tensor], Tensor]


def residual(
    main_path: Function | Sequence[Function],
    shortcut: Function | None = None,
    *,
    name: str = "residual",
) -> Function:
    """Make a residual block: `a[l+2] = g(z[l+2] + a[l])`, g being the ReLU.

    Source: He et al. 2015 (arXiv:1512.03385), section 3.2.

    Args:
        main_path: Computes z[l+2] from a[l]: a function, or layers that follow one
            another, the last of which is linear (or a normalisation).
        shortcut: Brings a[l] to the shape of z[l+2] where the two differ: a
            projection W a[l] (the paper's equation 2), for example. None adds a[l]
            as it is.
        name: The layers that add and rectify are `<name>.add` and `<name>.relu`.

    Returns:
        A function from a Keras tensor of any shape, `(batch, features)` or
        `(batch, height, width, channels)`, to one of the shape of z[l+2].

    Raises:
        UsageError: From that function: shortcut and main path differ in shape.

    Example:
        >>> a = keras.Input((64,))
        >>> block = reszoo.residual([Dense(64, "relu"), Dense(64)], name="block1")
        >>> keras.Model(a, block(a))
    """

    def block(a: Tensor) -> Tensor:
        z = _through(main_path, a)
        carried = a if shortcut is None else shortcut(a)
        if z.shape != carried.shape:
            raise UsageError(
                "A block adds tensors of one shape. Received: "
                f"{tuple(z.shape)} from the main path and {tuple(carried.shape)} from "
                f"the shortcut of {name!r}; give a shortcut= that projects a[l] to "
                "the first."
            )
        added = keras.layers.Add(name=f"{name}.add")([z, carried])
        return keras.layers.ReLU(name=f"{name}.relu")(added)

    return block


def _through(path: Function | Sequence[Function], x: Tensor) -> Tensor:
    for layer in path if isinstance(path, Sequence) else (path,):
        x = layer(x)
    return x
