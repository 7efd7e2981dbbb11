"""scikit-learn's 1,797 scans of handwritten digits: real images inside a wheel."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reszoo.errors import DataError
from reszoo.preprocessing import Pixels

# The scans hold 0 (paper) to 16 (ink).
_DEEPEST = 16


class Arrays(NamedTuple):
    """Images `(n, height, width, 3)`, labels `(n,)`, and the classes' names."""

    images: Pixels
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]


def read() -> Arrays:
    """Return the scans as RGB of 8x8 pixels.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits,
    UCI Machine Learning Repository, 1998 (CC BY 4.0); the test part, as shipped
    with scikit-learn.

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            'The digits come with scikit-learn: pip install "reszoo[demo]".'
        ) from error
    scans = load_digits()
    grey = np.round(scans.images * (255 / _DEEPEST)).astype(np.uint8)
    images = np.repeat(grey[..., None], 3, axis=-1)
    return Arrays(images, scans.target.astype(np.int64), tuple("0123456789"))
