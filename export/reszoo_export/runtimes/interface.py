"""How an exported function looks from outside, and one way to ask all of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from reszoo.errors import CheckpointError
from reszoo.preprocessing import Pixels

Answers = NDArray[np.float32]
# Name, dtype and shape; where integers stand for numbers also scale and zero_point.
TensorInfo = dict[str, Any]
Kind = Literal["probabilities", "features"]
# What is read of several outputs: probabilities need no work of ours.
_PREFERRED = ("probabilities", "logits", "features")


@dataclass(frozen=True, kw_only=True)
class Interface:
    """What a file takes and gives.

    Attributes:
        batch: Images a call; None where it is open.
        dtype: Of the pixels, which lie in 0..255 whatever it is.
        channels_first: Whether the axes are (batch, channels, height, width).
        output: The output that is read, with its dtype and width.
    """

    batch: int | None
    dtype: np.dtype[Any]
    channels_first: bool
    output: TensorInfo

    @property
    def answers(self) -> Kind:
        """What comes out of `ask`."""
        return "features" if self.output["name"] == "features" else "probabilities"

    def ask(
        self, call: Callable[[NDArray[Any]], NDArray[Any]], images: Pixels
    ) -> Answers:
        """Have a file answer, whatever form it wants images in.

        Args:
            call: From pixels as the file takes them to its output.
            images: uint8 `(n, height, width, 3)`.

        Returns:
            Probabilities `(n, classes)` or features `(n, width)`.
        """
        if not len(images):
            return np.zeros((0, self.output["shape"][-1]), np.float32)
        pixels = images.transpose(0, 3, 1, 2) if self.channels_first else images
        pixels = np.ascontiguousarray(pixels, self.dtype)
        step = self.batch or len(pixels)
        starts = range(0, len(pixels), step)
        parts = [self._batch(call, pixels[at : at + step]) for at in starts]
        return self._meaning(np.concatenate(parts))

    def _batch(
        self, call: Callable[[NDArray[Any]], NDArray[Any]], pixels: NDArray[Any]
    ) -> NDArray[Any]:
        if self.batch is None or len(pixels) == self.batch:
            return call(pixels)
        filling = np.repeat(pixels[-1:], self.batch - len(pixels), axis=0)
        return call(np.concatenate([pixels, filling]))[: len(pixels)]

    def _meaning(self, answers: NDArray[Any]) -> Answers:
        if "scale" in self.output:
            steps = answers.astype(np.float64) - self.output["zero_point"]
            answers = steps * self.output["scale"]
        if self.output["name"] == "logits":
            return softmax(answers)
        return answers.astype(np.float32, copy=False)


def find_interface(
    path: Path, inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo]
) -> Interface:
    """Tell how a file is asked from what it says of itself.

    Raises:
        CheckpointError: It takes no `image`, or gives nothing that is known.
    """
    images = [each for each in inputs if len(each["shape"]) == 4]
    named = {output["name"]: output for output in outputs}
    known = [named[name] for name in _PREFERRED if name in named]
    if [each["name"] for each in inputs] != ["image"] or not images or not known:
        raise CheckpointError(
            "An exported file takes one batch of images, `image`, and gives "
            f"{', '.join(_PREFERRED)} or several of these. Received: "
            f"{[tensor['name'] for tensor in inputs]} in, {list(named)} out in {path}."
        )
    first, *_, last = images[0]["shape"]
    return Interface(
        batch=first if isinstance(first, int) and first > 0 else None,
        dtype=np.dtype(images[0]["dtype"]),
        channels_first=last != 3,
        output=known[0],
    )


def softmax(logits: NDArray[Any]) -> Answers:
    """Return probabilities `(n, classes)`, computed in float64 without overflow."""
    exact = logits.astype(np.float64)
    odds = np.exp(exact - exact.max(axis=-1, keepdims=True))
    shares: Answers = (odds / odds.sum(axis=-1, keepdims=True)).astype(np.float32)
    return shares
