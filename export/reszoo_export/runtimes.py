"""Open a model in its runtime: one interface for checkpoints and exported files."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from reszoo import environment
from reszoo.cards import Card
from reszoo.defaults import PREDICTION_BATCH_SIZE
from reszoo.errors import CheckpointError, ReszooError, UnknownNameError, UsageError
from reszoo.fields import check_range
from reszoo.files import StrPath, as_path
from reszoo.metrics import softmax
from reszoo.preprocessing import Pixels
from reszoo.weights.location import SUFFIXES as CHECKPOINTS
from reszoo.weights.location import checkpoint_in
from reszoo_export.formats import FORMATS, OUTPUTS, RUNTIMES, RuntimeSpec
from reszoo_export.manifest import is_export
from reszoo_export.sessions import Sessions

if TYPE_CHECKING:
    import keras

# Probabilities `(n, classes)` or features `(n, width)`.
ModelOutput = NDArray[np.float32]
# Name, dtype and shape; of quantized tensors also scale and zero_point.
TensorInfo = dict[str, Any]
OutputKind = Literal["probabilities", "features"]
Activations = Mapping[str, NDArray[np.float32]]


def fixed_batch(image: TensorInfo) -> int | None:
    """Return the images in a call, where a file has a fixed number of them."""
    first = image["shape"][0]
    return first if isinstance(first, int) and first > 0 else None


def run_file(
    call: Callable[[NDArray[Any]], NDArray[Any]],
    images: Pixels,
    image: TensorInfo,
    output: TensorInfo,
) -> ModelOutput:
    """Run a file on uint8 `(n, height, width, channels)`, whatever input it requires.

    `call` is from pixels as the input `image` takes them, 0..255 in any dtype but int8,
    for which its zero point -128 is added, to `output`, which is returned as float32.
    """
    if not len(images):
        return np.zeros((0, *output["shape"][1:]), np.float32)
    pixels: NDArray[Any] = images
    if image["shape"][-1] != images.shape[-1]:
        # Axes are (batch, channels, height, width).
        pixels = pixels.transpose(0, 3, 1, 2)
    if zero_point := image.get("zero_point", 0):
        pixels = pixels.astype(np.int16) + zero_point
    pixels = np.ascontiguousarray(pixels, image["dtype"])
    step = fixed_batch(image) or len(pixels)
    if missing := -len(pixels) % step:
        pixels = np.concatenate([pixels, np.repeat(pixels[-1:], missing, axis=0)])
    parts = [call(pixels[at : at + step]) for at in range(0, len(pixels), step)]
    found = np.concatenate(parts)[: len(images)]
    if "scale" in output:
        found = (found.astype(np.float64) - output["zero_point"]) * output["scale"]
    return found.astype(np.float32, copy=False)


def find_output(
    path: Path, inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo]
) -> TensorInfo:
    """Return the output that is used of a file with these inputs and outputs.

    A CheckpointError if the input is not `image`, or no output is known.
    """
    images = [each["name"] for each in inputs if len(each["shape"]) == 4]
    named = {output["name"]: output for output in outputs}
    known = [named[name] for name in OUTPUTS if name in named]
    if len(inputs) != 1 or images != ["image"] or not known:
        raise CheckpointError(
            "An exported file takes one batch of images, `image`, and gives "
            f"{', '.join(OUTPUTS)} or several of these. Received: "
            f"{[tensor['name'] for tensor in inputs]} in, {list(named)} out in {path}."
        )
    return known[0]


def name_open_sides(shape: Iterable[int]) -> tuple[int | str, ...]:
    """Return a shape with "batch" for an open first side (-1) and "?" for others."""
    return tuple(
        side if side >= 0 else "?" if axis else "batch"
        for axis, side in enumerate(shape)
    )


@dataclass(kw_only=True)
class Runtime:
    """An opened file; a CheckpointError if its signature is not that of an export."""

    path: Path  # for errors
    name: str  # with its version
    card: Card  # inside the file
    threads: int  # how many compute one output
    # Name, dtype and shape of each; of quantized ones also scale and zero point.
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]
    sessions: Sessions[Any]  # what runs the file, in as many threads as it has callers
    # From a session, pixels in the file's dtype and layout, and the name of an output
    # to that output.
    compute: Callable[[Any, NDArray[Any], str], NDArray[Any]]
    # Returns how often each operator occurs; None for a checkpoint.
    count: Callable[[], Mapping[str, int]] | None = None

    def __post_init__(self) -> None:
        classes = self.card.architecture.classes
        # That `run` uses.
        self.output = find_output(self.path, self.inputs, self.outputs)
        width = self.output["shape"][-1]
        # Before a label is made for each.
        if self.output_kind == "probabilities" and width != classes:
            raise CheckpointError(
                f"The card must be of the {width} classes that the output has. "
                f"Received: {classes} classes in {self.path}."
            )

    @property
    def output_kind(self) -> OutputKind:
        """What `run` returns."""
        return "features" if self.output["name"] == "features" else "probabilities"

    @cached_property
    def operators(self) -> Mapping[str, int]:
        """How often each operator occurs; empty for a checkpoint."""
        return self.count() if self.count else {}

    def close(self) -> None:
        """Free the file's memory (see `Sessions.close`)."""
        self.sessions.close()
        # It may hold the graph.
        self.count = None

    def run(self, images: Pixels) -> ModelOutput:
        """Run the file on uint8 `(n, height, width, channels)`.

        Returns probabilities `(n, classes)`, also where the file gives logits or uint8,
        or features `(n, width)` where it gives these.
        """
        name = self.output["name"]
        outputs = self.read(images, name)
        return softmax(outputs) if name == "logits" else outputs

    def read(self, images: Pixels, name: str) -> ModelOutput:
        """Return an output of the file by its name, as float32 `(n, ...)`.

        A UsageError if the file has no such output.
        """
        named = {each["name"]: each for each in self.outputs}
        if name not in named:
            raise UsageError(
                f"This needs an output {name!r}. Received: {self.path} with "
                f"{', '.join(sorted(named))}; export the checkpoint again with "
                f"outputs={name!r} (--outputs {name}), or use the checkpoint."
            )
        image, output = self.inputs[0], named[name]
        with self._borrow() as session:
            return run_file(
                lambda few: self.compute(session, few, name), images, image, output
            )

    def call(self, pixels: NDArray[Any], output: str) -> NDArray[Any]:
        """Run the file once, on pixels in its own dtype, axes and batch size."""
        with self._borrow() as session:
            return self.compute(session, pixels, output)

    @contextmanager
    def _borrow(self) -> Iterator[Any]:
        """Yield a session; what it cannot compute is a CheckpointError.

        Runtimes check the shapes and indices inside a damaged file only here.
        """
        with self.sessions.borrow() as session:
            try:
                yield session
            except (ReszooError, MemoryError):
                raise
            except Exception as error:
                raise CheckpointError(
                    f"{self.path} opens, but {self.name} cannot compute it "
                    f"({type(error).__name__}: {error}). Get the file again, or check "
                    "an export with reszoo verify."
                ) from error


def in_batches(
    call: Callable[[Any], Any], images: Pixels, size: int = PREDICTION_BATCH_SIZE
) -> NDArray[Any]:
    """Return what a function gives for images, so many of them at a time."""
    starts = range(0, max(1, len(images)), size)
    return np.concatenate([np.asarray(call(images[at : at + size])) for at in starts])


def open_keras(model: "keras.Model") -> Runtime:
    """Return the runtime of a model in memory."""
    import keras

    from reszoo.zoo import get_card

    environment.check_backend("Predicting and measuring with a model")
    card = get_card(model)
    session = _KerasSession(model, card)
    shape = [None, *card.architecture.input_shape]
    pool = model.get_layer("avgpool").input.shape[1:]
    classes = [card.architecture.classes]
    shapes = {"logits": classes, "probabilities": classes}
    shapes |= {"features": pool[-1:], "cam": [*pool[:2], *classes]}
    outputs = [
        {"name": name, "dtype": "float32", "shape": [None, *shape]}
        for name, shape in shapes.items()
    ]
    return Runtime(
        path=Path(model.name), name=f"keras {keras.__version__}", card=card,
        threads=tensorflow_threads(), outputs=outputs,
        inputs=[{"name": "image", "dtype": "uint8", "shape": shape}],
        sessions=Sessions(lambda: session, forkable=False),
        compute=_KerasSession.call,
    )  # fmt: skip


class _KerasSession:
    """A model in memory; maps and features are computed by a function of their own."""

    def __init__(self, model: "keras.Model", card: Card) -> None:
        from reszoo.metrics import inference_function

        self._model, self._card = model, card
        run: Any = inference_function(model, card.preprocessing, card.temperature)
        # Traced now, by one thread; TensorFlow would warn of the fifth model's first
        # call.
        run.get_concrete_function()
        self._run: Any = run
        self._explain: Any = None

    def call(self, pixels: NDArray[Any], output: str) -> Any:
        """Return an output for pixels."""
        if output in ("features", "cam"):
            from reszoo.metrics import explaining_function

            if self._explain is None:
                self._explain = explaining_function(self._model, self._card)
            return self._explain(pixels)[output].numpy()
        return self._run(pixels)[output].numpy()


def tensorflow_threads() -> int:
    """Return how many threads compute one operation."""
    import tensorflow as tf

    threads: int = tf.config.threading.get_intra_op_parallelism_threads()
    return threads or environment.usable_cores()


def limit_tensorflow(threads: int | None) -> None:
    """Set the number of TensorFlow's threads; None limits it to the usable cores.

    A UsageError if TensorFlow has started to compute with another number, or this
    process was forked after that.
    """
    import tensorflow as tf

    environment.check_tensorflow_usable()
    chosen = tf.config.threading.get_intra_op_parallelism_threads()
    if threads is None:
        # By itself it follows the CPU affinity, but not the quota of a container. Once
        # it has started, it keeps its threads.
        cores = environment.usable_cores()
        if not chosen and cores < environment.allowed_cores():
            with suppress(RuntimeError):
                tf.config.threading.set_intra_op_parallelism_threads(cores)
    if threads in (None, chosen):
        return
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    except RuntimeError as error:
        raise UsageError(
            "The number of TensorFlow's threads can be set only before its first "
            f"operation. Received: threads={threads}; set it in a new process."
        ) from error


def find_runtime(path: Path) -> RuntimeSpec | None:
    """Return the runtime of a file or folder; None for a checkpoint.

    A CheckpointError if there is no such file; a UsageError if the suffix is unknown,
    or the folder is a whole export.
    """
    if not path.exists():
        raise CheckpointError(f"There is no file {path}.")
    if path.is_dir() and is_export(path):
        files = [row.file for row in FORMATS.values() if (path / row.file).exists()]
        raise UsageError(
            f"{path} is an export folder. Choose one of its files: {', '.join(files)}."
        )
    fitting = [row for row in RUNTIMES.values() if row.matches(path)]
    if not fitting and checkpoint_in(path):
        return None
    if not fitting and path.is_dir():
        # Its reader tells what is missing.
        fitting = [row for row in RUNTIMES.values() if not row.suffix]
    if fitting:
        return fitting[0]
    if path.suffix in CHECKPOINTS:
        return None
    suffixes = [row.suffix for row in RUNTIMES.values() if row.suffix]
    raise UnknownNameError("kind of model file", path.name, [*CHECKPOINTS, *suffixes])


@contextmanager
def reader_errors(path: Path) -> Iterator[None]:
    """Turn what libraries raise on damaged files into a CheckpointError."""
    try:
        yield
    except (ReszooError, MemoryError):
        raise
    except ModuleNotFoundError as error:
        raise UsageError(f"{path} needs {error.name} to be installed.") from error
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        problem = f"is damaged, or of another kind than its name says ({reason})"
        if isinstance(error, OSError):
            problem = f"cannot be read ({error.strerror or error})"
        raise CheckpointError(f"{path} {problem}.") from error


def open_runtime(
    model: "keras.Model | StrPath",
    threads: int | None = None,
    *,
    trust_saved_model: bool = False,
) -> Runtime:
    """Open a model, a checkpoint or an exported file in its runtime.

    Threads are one for each core if None; a trusted SavedModel may have operators that
    do more than compute (see `saved_model.screening`). A CheckpointError if there is no
    such file, it is damaged, or could do more than compute; a UsageError if the suffix
    is unknown, the folder is a whole export, threads are out of range, or the number of
    TensorFlow's threads is already set.
    """
    check_range("threads", threads, "[1, inf)", int, NoneType)
    if not isinstance(model, str | os.PathLike):
        limit_tensorflow(threads)
        return open_keras(model)
    path = as_path(model)
    if (row := find_runtime(path)) is not None:
        with reader_errors(path):
            row.reader.check_file(path, trusted=trust_saved_model)
            return row.reader.open_file(path, threads)
    with reader_errors(path):
        from reszoo.zoo import load

    limit_tensorflow(threads)
    return open_keras(load(path))


def compute_activations(path: Path, row: RuntimeSpec, images: Pixels) -> Activations:
    """Return the activations of an exported file (see `Reader.activation_reader`).

    Images are uint8 `(n, height, width, 3)`; arrays have them along their first axis,
    and are in the order of computation.
    """
    runtime = open_runtime(path)
    read = row.reader.activation_reader(path)
    calls: list[Activations] = []

    def call(pixels: NDArray[Any]) -> NDArray[Any]:
        calls.append(read(pixels))
        return np.zeros((len(pixels), 1), np.float32)

    run_file(call, images, runtime.inputs[0], runtime.output)
    return {
        name: np.concatenate([each[name] for each in calls])[: len(images)]
        for name in calls[0]
    }


def float_activations(arrays: Mapping[str, NDArray[Any]]) -> Activations:
    """Select the activations: floating point with a batch, not shapes or integers."""
    return {
        name: np.asarray(array, np.float32)
        for name, array in arrays.items()
        if array.dtype.kind == "f" and array.ndim >= 2
    }
