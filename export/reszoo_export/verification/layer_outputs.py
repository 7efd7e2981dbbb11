"""What every layer of a model gives for some images."""

from collections.abc import Iterator

import keras
import numpy as np
from numpy.typing import NDArray

from reszoo.preprocessing import Pixels
from reszoo_export.runtimes.interface import softmax
from reszoo_export.serving import Serving

# What files keep as a tensor of its own, unless an activation follows at once.
_COMPUTING = (
    keras.layers.Add,
    keras.layers.Conv2D,
    keras.layers.Dense,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.MaxPooling2D,
)
_ACTIVATIONS = (keras.layers.Activation, keras.layers.ReLU)


def layer_outputs(serving: Serving, images: Pixels) -> dict[str, NDArray[np.float32]]:
    """Return the output of each layer that computes, in order.

    Converters fuse an activation with what comes before it: a layer that is followed
    by one is told with it. A sum is told under the name of its block.

    Args:
        serving: The folded net.
        images: uint8 `(n, height, width, 3)`.
    """
    named = dict(_named_outputs(serving.net))
    inner = keras.Model(serving.net.inputs[0], list(named.values()))
    pixels = serving.card.preprocessing.normalise(images.astype(np.float32))
    outputs = inner(pixels, training=False)
    found = {
        name: np.asarray(output, np.float32)
        for name, output in zip(named, outputs, strict=True)
    }
    if serving.options.outputs in (None, "probabilities"):
        found["softmax"] = softmax(list(found.values())[-1])
    return found


def _named_outputs(net: keras.Model) -> Iterator[tuple[str, keras.KerasTensor]]:
    for layer in net.layers:
        if isinstance(layer, _COMPUTING):
            name = layer.name.removesuffix(".add")
            yield name, _activated(layer).output


def _activated(layer: keras.Layer) -> keras.Layer:
    followers = [node.operation for node in layer._outbound_nodes]
    if len(followers) == 1 and isinstance(followers[0], _ACTIVATIONS):
        return followers[0]
    return layer
