"""Open a model file in its own runtime: one interface for all."""

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from reszoo.cards import Card
from reszoo.errors import CheckpointError, UnknownNameError, UsageError
from reszoo.preprocessing import Pixels
from reszoo.weights.reading import SUFFIXES as CHECKPOINTS
from reszoo_export.formats import FORMATS
from reszoo_export.manifest import is_export

if TYPE_CHECKING:
    import keras


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


# Images a call: the activations of 32 photos fit any machine that holds the net.
_AT_ONCE = 32


class Runtime(Protocol):
    """A file, opened.

    Attributes:
        name: Of the runtime, with its version.
        card: The card inside the file.
        threads: How many compute one answer.
        inputs: Name, dtype and shape of each input; where integers stand for
            numbers, also the scale and the zero point.
        outputs: The same of each output.
        answers: What `run` gives.
    """

    name: str
    card: Card
    threads: int
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]
    answers: Kind

    @property
    def operators(self) -> Mapping[str, int]:
        """How often each operator occurs; empty where that is not told."""
        ...

    def run(self, images: Pixels) -> Answers:
        """Answer for uint8 `(n, height, width, 3)`, whatever form the file wants.

        Returns:
            Probabilities `(n, classes)`, also of a file that gives logits or bytes;
            features `(n, width)` of a file that gives those.
        """
        ...


def run_in_batches(runtime: Runtime, images: Pixels) -> Answers:
    """Return `runtime.run(images)`, asking about at most 32 images at a time."""
    starts = range(0, max(1, len(images)), _AT_ONCE)
    return np.concatenate([runtime.run(images[at : at + _AT_ONCE]) for at in starts])


def kind_of(path: Path) -> str:
    """Return what kind of file a path stands for: its ending, "" for a folder."""
    return "" if path.is_dir() else path.suffix


# Kind of path -> who opens it, and what that imports.
_BY_KIND = {
    "": ("reszoo_export.saved_model.runtime:SavedModelRuntime", "tensorflow"),
    ".tflite": (
        "reszoo_export.tflite.runtime:TFLiteRuntime",
        "ai_edge_litert.interpreter",
    ),
    ".onnx": ("reszoo_export.onnx.runtime:OnnxRuntime", "onnxruntime"),
}


def open_runtime(
    model: "keras.Model | str | os.PathLike[str]", threads: int | None = None
) -> Runtime:
    """Open a model, a checkpoint or an exported file in its runtime.

    Args:
        model: A model from reszoo, or a path.
        threads: Threads of the runtime; one for each core if None.

    Raises:
        CheckpointError: There is no such file, or it is damaged.
        UsageError: The ending is unknown, the folder is a whole export, threads are
            out of range, or TensorFlow can no longer change their number.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"threads must be at least 1. Received: threads={threads}.")
    if not isinstance(model, str | os.PathLike):
        from reszoo_export.saved_model.runtime import KerasRuntime, limit_tensorflow

        limit_tensorflow(threads)
        return KerasRuntime(model)
    path = Path(model)
    library_of(path)
    kind = kind_of(path)
    if kind in CHECKPOINTS:
        from reszoo.zoo import load
        from reszoo_export.saved_model.runtime import KerasRuntime, limit_tensorflow

        limit_tensorflow(threads)
        return KerasRuntime(load(path))
    module, name = _BY_KIND[kind][0].split(":")
    runtime: Callable[[Path, int | None], Runtime]
    runtime = getattr(importlib.import_module(module), name)
    return runtime(path, threads)


def library_of(path: Path) -> str:
    """Return the module that opening a path imports.

    Raises:
        CheckpointError: There is no such file.
        UsageError: The ending is unknown, or the folder is a whole export.
    """
    if not path.exists():
        raise CheckpointError(f"There is no file {path}.")
    kind = kind_of(path)
    if kind in CHECKPOINTS:
        return "reszoo.zoo"
    if kind not in _BY_KIND or (not kind and not path.is_dir()):
        known = [*CHECKPOINTS, *filter(None, _BY_KIND)]
        raise UnknownNameError("kind of model file", path.name, known)
    if not kind:
        _refuse_whole_export(path)
    return _BY_KIND[kind][1]


def _refuse_whole_export(folder: Path) -> None:
    if is_export(folder):
        files = [row.file for row in FORMATS.values() if (folder / row.file).exists()]
        raise UsageError(
            f"{folder} is a whole export. Open one of the files in it: "
            f"{', '.join(files)}."
        )
