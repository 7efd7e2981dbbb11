"""Made-up images on which sloppy exports differ: flat, saturated, busy, empty."""

import numpy as np
from numpy.typing import NDArray

from reszoo.preprocessing import Pixels

_COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
_COARSE = 4


def synthetic_images(size: int) -> Pixels:
    """Make the images that every file is asked about.

    Args:
        size: Height and width, in pixels.

    Returns:
        uint8 `(17, size, size, 3)`: black, grey and white; red, green and blue (each
        tells the order of channels); checkerboards of one and of four pixels; ramps
        up and down along both axes (tell the side of a padding, and axes that were
        swapped); one that goes another way in each channel; noise of all levels, and
        of black and white; one white pixel in the centre, and one in a corner.
    """
    levels = [np.full((size, size), level) for level in (0, 128, 255)]
    flat = [_grey(level) for level in levels]
    colours = [np.broadcast_to(colour, (size, size, 3)) for colour in _COLOURS]
    rows, columns = np.mgrid[:size, :size]
    boards = [_board(rows, columns), _board(rows // _COARSE, columns // _COARSE)]
    ramps = [axis * 255 // max(1, size - 1) for axis in (rows, columns)]
    falling = [255 - ramp for ramp in ramps]
    turning = np.stack([*ramps, falling[0]], axis=-1)
    busy = [_grey(plane) for plane in (*boards, *ramps, *falling)]
    draw = np.random.default_rng(0)
    noise = draw.integers(0, 256, (size, size, 3))
    points = [_point(size, size // 2), _point(size, 0)]
    made = [*flat, *colours, *busy, turning, noise, 255 * (noise % 2), *points]
    return np.stack(made).astype(np.uint8)


def _grey(plane: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.repeat(plane[..., None], 3, axis=-1)


def _board(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.int64]:
    return 255 * ((rows + columns) % 2)


def _point(size: int, place: int) -> NDArray[np.int64]:
    image = np.zeros((size, size, 3), np.int64)
    image[place, place] = 255
    return image
