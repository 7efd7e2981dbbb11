"""Name the first layer at which a file and its model part company."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from reszoo.errors import VerificationError
from reszoo.preprocessing import Pixels
from reszoo_export.formats import FORMATS, Format
from reszoo_export.verification.activations import activations_of
from reszoo_export.verification.apart import run_apart

if TYPE_CHECKING:
    from reszoo_export.serving import Serving

# Activations of a deep net fill the memory; one image more tells chance from fault.
_IMAGES = 2
_SECONDS = 600.0
_REQUEST, _IMAGES_FILE, _LAYERS_FILE = "request.json", "images.npy", "layers.npz"
# By precision: how far activations may lie apart, relative to their size. Rounding
# adds up with depth, so what parts company also grows by a factor at one layer.
_APART = {"float32": 1e-4, "float16": 1e-2, "dynamic": 0.05, "int8": 0.1}
_APART["int16x8"] = _APART["dynamic"]
_JUMP = 2.5
# Tensors that have nothing to do with each other lie 1.4 apart.
_STRANGERS = 0.9
_SMALLEST = 1e-12


def first_divergence(
    path: Path, row: Format, serving: "Serving", images: Pixels
) -> str | None:
    """Find the first layer whose output in a file is not the model's.

    A layer's output is looked for among all tensors of the file, by shape and
    content, because converters rename, fuse and reorder.

    Args:
        path: The file or folder.
        row: Its format.
        serving: What was written into it.
        images: uint8 `(n, height, width, 3)`, of which the first two are used; best
            those on which the answers differ most.

    Returns:
        The layer's name, such as "layer2.0.conv1"; "layer2.0" is the sum at the
        block's end. None where no layer stands out, or the file does not run.
    """
    from reszoo_export.verification.layer_outputs import layer_outputs

    images = images[:_IMAGES]
    expected = layer_outputs(serving, images)
    with tempfile.TemporaryDirectory(prefix="reszoo-") as place:
        folder = Path(place)
        np.save(folder / _IMAGES_FILE, images)
        np.savez(folder / _LAYERS_FILE, *expected.values())
        request = {
            "format": row.name,
            "path": str(path.absolute()),
            "layers": list(expected),
        }
        (folder / _REQUEST).write_text(json.dumps(request), encoding="utf-8")
        try:
            found: str | None = run_apart(f"{__name__}:find_in", folder, _SECONDS)
        except VerificationError:
            return None
    return found


def find_in(folder: Path) -> str | None:
    """Do what `first_divergence` left in a folder."""
    request = json.loads((folder / _REQUEST).read_text(encoding="utf-8"))
    row, path = FORMATS[request["format"]], Path(request["path"])
    with np.load(folder / _LAYERS_FILE, allow_pickle=False) as arrays:
        # savez numbers what has no name.
        expected = {
            name: arrays[f"arr_{index}"] for index, name in enumerate(request["layers"])
        }
    inside = activations_of(row.runtime, path, np.load(folder / _IMAGES_FILE))
    return first_apart(expected, inside, _APART[row.precision])


def first_apart(
    expected: Mapping[str, NDArray[np.float32]],
    inside: Mapping[str, NDArray[np.float32]],
    allowed: float,
) -> str | None:
    """Return the first layer that no tensor resembles.

    Args:
        expected: What each layer gives, in order, the images along the first axis.
        inside: Tensors of a file, channels last or second.
        allowed: Largest root mean square difference, relative to the layer's own.
    """
    largest = 0.0
    for name, layer in expected.items():
        apart = min((_apart(each, layer) for each in inside.values()), default=np.inf)
        # What is no number is not close either.
        if not apart <= min(max(allowed, _JUMP * largest), _STRANGERS):
            return name
        largest = max(largest, apart)
    return None


def _apart(tensor: NDArray[np.float32], layer: NDArray[np.float32]) -> float:
    sizes = [side for side in tensor.shape if side != 1]
    if sorted(sizes) != sorted(side for side in layer.shape if side != 1):
        return np.inf
    shape = np.squeeze(layer).shape
    forms = [tensor, np.moveaxis(tensor, 1, -1)]
    fitting = [
        each.reshape(layer.shape) for each in forms if each.squeeze().shape == shape
    ]
    size = max(_root_mean_square(layer), _SMALLEST)
    distances = (_root_mean_square(each - layer) / size for each in fitting)
    return min(distances, default=np.inf)


def _root_mean_square(array: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(np.square(array, dtype=np.float64))))
