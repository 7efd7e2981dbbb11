"""Whether an answer depends on anything but its image: on its batch, or on chance."""

import numpy as np

from reszoo.preprocessing import Pixels
from reszoo_export.runtimes.interface import Answers, TensorInfo
from reszoo_export.runtimes.opening import Runtime

_BATCHES = range(1, 9)


def dependences(
    runtime: Runtime, images: Pixels, answers: Answers, allowed: float
) -> list[str]:
    """Ask about some images again, in other company, and tell what changed.

    Where the batch is open, it takes every size from 1 to 8; where it is fixed, an
    image changes its place and its neighbours. A batch of one is only asked twice.

    Args:
        runtime: The file, opened.
        images: uint8 `(n, height, width, 3)`.
        answers: What it gave for them.
        allowed: Largest change of a number that is rounding.
    """
    chosen = _spread(len(images))
    fixed = _fixed_batch(runtime.inputs)
    sizes = _BATCHES if fixed is None else (fixed,)
    again, other = 0.0, 0.0
    for size in sizes:
        places = np.roll(chosen, size)[:size]
        first = runtime.run(images[places])
        other = max(other, _largest(first - answers[places]))
        if size == sizes[-1]:
            again = _largest(first - runtime.run(images[places]))
    problems = []
    if not other <= allowed:
        problems.append(
            f"an answer moves by {other:.2g} with the other images of its batch"
        )
    if not again <= allowed:
        problems.append(f"asked twice about an image, it moves by {again:.2g}")
    return problems


def _spread(count: int) -> np.ndarray:
    """Return places of images, real and made up, as many as the largest batch asks."""
    return np.linspace(0, count - 1, max(_BATCHES)).astype(int)


def _fixed_batch(inputs: list[TensorInfo]) -> int | None:
    batch = inputs[0]["shape"][0]
    return batch if isinstance(batch, int) and batch > 0 else None


def _largest(change: Answers) -> float:
    return float(np.abs(change).max())
