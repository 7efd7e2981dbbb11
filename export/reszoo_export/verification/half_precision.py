"""Whether what happens inside a file fits into float16."""

from pathlib import Path

import numpy as np

from reszoo.preprocessing import Pixels
from reszoo_export.formats import Format
from reszoo_export.verification.activations import activations_of

_IMAGES = 4
_LARGEST = float(np.finfo(np.float16).max)


def too_large_for_halves(row: Format, path: Path, images: Pixels) -> list[str]:
    """Tell whether an activation of a float16 TFLite file is beyond float16.

    Its answers do not show it: on a CPU LiteRT computes such files in float32, on a
    phone's GPU in float16. ONNX files say themselves that they compute in float32.

    Args:
        row: The file's format.
        path: The file.
        images: uint8 `(n, height, width, 3)`, of which some are used.
    """
    if row.precision != "float16" or row.runtime != "tflite":
        return []
    places = np.linspace(0, len(images) - 1, _IMAGES).astype(int)
    inside = activations_of(row.runtime, path, images[places])
    for name, array in inside.items():
        # What is no number is not small either.
        if not np.abs(array).max() <= _LARGEST:
            problem = (
                f"activations of {name!r} do not fit into float16, which ends at "
                f"{_LARGEST:g}: on a GPU they become infinite"
            )
            return [problem]
    return []
