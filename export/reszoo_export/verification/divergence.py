"""Find the first layer at which a file and its model differ."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from reszoo.errors import ReszooError
from reszoo.metrics import softmax
from reszoo.preprocessing import Pixels
from reszoo_export.formats import FORMATS, Format
from reszoo_export.isolation import Arrays, run_in_subprocess
from reszoo_export.runtimes import Activations, compute_activations

if TYPE_CHECKING:
    from reszoo_export.serving import Serving

# Activations of a deep model fill the memory; two images tell a fault from chance.
_IMAGES = 2
_SECONDS = 600.0
# Rounding adds up with depth; a fault multiplies the difference at one layer.
_JUMP = 2.5
# Unrelated tensors differ by 1.4.
_UNRELATED = 0.9
_MIN_SIZE = 1e-12
# Beside the layers' outputs; no layer of Keras has such a name.
_PIXELS = "pixels/"


def first_divergence(
    path: Path, row: Format, serving: "Serving", images: Pixels
) -> str | None:
    """Find the first layer whose output in a file is not the model's.

    Converters rename, fuse and reorder tensors, so a layer's output is matched with the
    tensors of the file by shape and content. `serving` is what was written into the
    file; of the images, uint8 `(n, height, width, 3)`, the first two are used: best
    those on which the outputs differ most. Returns a name such as "layer2.0.conv1"
    ("layer2.0" is the sum at the end of the block); None if every layer matches, or the
    file does not run.
    """
    images = images[:_IMAGES]
    arrays: Arrays = {_PIXELS: images, **layer_outputs(serving, images)}
    arguments = {"format_name": row.name, "path": str(path.absolute())}
    function, layer = f"{__name__}:find_stored", None
    with suppress(ReszooError):
        layer = run_in_subprocess(function, arguments, arrays, seconds=_SECONDS)
    return layer


def find_stored(arrays: Arrays, *, format_name: str, path: str) -> str | None:
    """Compare the layers in the subprocess of `first_divergence`."""
    row, expected = FORMATS[format_name], dict(arrays)
    found = compute_activations(Path(path), row.runtime, expected.pop(_PIXELS))
    return first_difference(expected, found, row.tolerance.max_activation_difference)


def layer_outputs(serving: "Serving", images: Pixels) -> dict[str, NDArray[np.float32]]:
    """Return the output of each layer of a folded model that computes, in order.

    Converters fuse an activation with the layer before it, so the output of that layer
    is the activation's. A sum has the name of its block.
    """
    import keras
    from keras import layers

    computing = (
        layers.Add, layers.Conv2D, layers.Dense, layers.GlobalAveragePooling2D,
        layers.MaxPooling2D,
    )  # fmt: skip
    named: dict[str, keras.KerasTensor] = {}
    for layer in serving.model.layers:
        if isinstance(layer, computing) and len(layer._inbound_nodes) == 1:
            last, followers = layer, [node.operation for node in layer._outbound_nodes]
            activations = (layers.Activation, layers.ReLU)
            if len(followers) == 1 and isinstance(followers[0], activations):
                (last,) = followers
            named[layer.name.removesuffix(".add")] = last.output
    if serving.is_traced:
        named["scores"] = serving.model.output
    inner = keras.Model(serving.model.inputs[0], list(named.values()))
    pixels = serving.card.preprocessing.normalise(images.astype(np.float32))
    arrays = inner(pixels, training=False)
    outputs = {
        name: np.asarray(array, np.float32)
        for name, array in zip(named, arrays, strict=True)
    }
    gives_probabilities = serving.options.outputs in (None, "probabilities", "cam")
    if gives_probabilities and not serving.has_sigmoid:
        outputs["softmax"] = softmax(list(outputs.values())[-1])
    return outputs


def first_difference(
    expected: Activations, found: Activations, allowed: float
) -> str | None:
    """Return the first layer that no tensor of a file resembles.

    Layers are in order, with the images along the first axis; tensors have channels
    last or second. `allowed` is a root mean square difference, relative to the layer's
    own.
    """
    largest = 0.0
    for name, layer in expected.items():
        distances = (_distance(each, layer) for each in found.values())
        distance = min(distances, default=np.inf)
        # `not <=` because of NaN.
        if not distance <= min(max(allowed, _JUMP * largest), _UNRELATED):
            return name
        largest = max(largest, distance)
    return None


def _distance(tensor: NDArray[np.float32], layer: NDArray[np.float32]) -> float:
    sizes = [side for side in tensor.shape if side != 1]
    if sorted(sizes) != sorted(side for side in layer.shape if side != 1):
        return np.inf
    shape = np.squeeze(layer).shape
    size = max(_root_mean_square(layer), _MIN_SIZE)
    distances = (
        _root_mean_square(each.reshape(layer.shape) - layer) / size
        for each in (tensor, np.moveaxis(tensor, 1, -1))
        if each.squeeze().shape == shape
    )
    return min(distances, default=np.inf)


def _root_mean_square(array: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(np.square(array, dtype=np.float64))))
