"""Pictures of where a model looked."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Short side of an overlay at least, in pixels, and its opacity at the maximum.
_SIDE, _OPACITY = 192, 0.7


def overlay(pixels: NDArray[np.uint8], activation: NDArray[np.float32]) -> Image.Image:
    """Colour what the model saw where a class activation map is positive.

    The brightest place is the maximum of the map, whatever its value is; where it is
    negative everywhere nothing is coloured.

    Args:
        pixels: uint8 `(height, width, channels)`, the model's input.
        activation: The map of one class, `(rows, columns)`, enlarged bilinearly.
    """
    import matplotlib as mpl

    image = Image.fromarray(pixels.squeeze()).convert("RGB")
    factor = max(1, -(-_SIDE // min(image.size)))
    image = image.resize((factor * image.width, factor * image.height), 0)
    shares = np.maximum(activation, 0) / max(float(activation.max()), 1e-12)
    enlarged = Image.fromarray(shares.astype(np.float32)).resize(image.size, 2)
    strength = np.clip(np.asarray(enlarged), 0, 1)
    colours = 255 * mpl.colormaps["inferno"](strength)[..., :3]
    opacity = _OPACITY * strength[..., None]
    mixed = (1 - opacity) * np.asarray(image, np.float64) + opacity * colours
    return Image.fromarray(mixed.round().astype(np.uint8))
