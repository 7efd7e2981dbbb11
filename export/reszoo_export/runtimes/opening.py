"""Run a file in its own runtime: one class a kind, all with the same few things.

None of them imports what it does not need: `.tflite` and `.onnx` files open
without TensorFlow.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from reszoo.cards import Card
from reszoo.checkpoints.reading import SUFFIXES as CHECKPOINTS
from reszoo.errors import CheckpointError, UnknownNameError, UsageError
from reszoo.preprocessing import Pixels
from reszoo.quiet import quiet_tensorflow
from reszoo_export.formats import FORMATS
from reszoo_export.manifest import is_export
from reszoo_export.runtimes.interface import Answers as Answers
from reszoo_export.runtimes.interface import Kind, TensorInfo
from reszoo_export.runtimes.litert import TFLiteRuntime
from reszoo_export.runtimes.onnx import OnnxRuntime
from reszoo_export.runtimes.tensorflow import (
    KerasRuntime,
    SavedModelRuntime,
    limit_tensorflow,
)

if TYPE_CHECKING:
    import keras

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
_BY_KIND: dict[str, tuple[Callable[[Path, int | None], Runtime], str]] = {
    "": (SavedModelRuntime, "tensorflow"),
    ".tflite": (TFLiteRuntime, "ai_edge_litert.interpreter"),
    ".onnx": (OnnxRuntime, "onnxruntime"),
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
        limit_tensorflow(threads)
        return KerasRuntime(model)
    path = Path(model)
    library_of(path)
    quiet_tensorflow()
    kind = kind_of(path)
    if kind in CHECKPOINTS:
        from reszoo.zoo import load

        limit_tensorflow(threads)
        return KerasRuntime(load(path))
    return _BY_KIND[kind][0](path, threads)


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
