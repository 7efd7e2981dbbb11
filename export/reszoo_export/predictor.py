"""`reszoo.Predictor`: the same predictions from any model file."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, TypeVar, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from reszoo import defaults
from reszoo.cards import Card
from reszoo.data.image_files import open_image
from reszoo.environment import usable_cores
from reszoo.errors import DataError, UsageError, known
from reszoo.fields import check_range
from reszoo.files import StrPath, as_path
from reszoo.metrics import softmax
from reszoo.preprocessing import Pixels
from reszoo_export.isolation import open_isolated
from reszoo_export.runtimes import ModelOutput, OutputKind, in_batches, open_runtime

if TYPE_CHECKING:
    import keras


class BinaryFile(Protocol):
    """A file that was opened for reading in binary mode."""

    def read(self) -> bytes:
        """Return the rest of the file."""
        ...


class Tensor(Protocol):
    """A `tf.Tensor`, or another object that NumPy can read as an array."""

    def __array__(self, *args: Any) -> NDArray[Any]: ...


# What Predictor takes as one image; the bytes are those of an image file.
ImageLike = StrPath | bytes | BinaryFile | Image.Image | Pixels | Tensor
# An image with what messages call it.
_Named = tuple[str, ImageLike]
OnError = Literal["raise", "return"]
Item = TypeVar("Item")
Found = TypeVar("Found")
# The answer to an image that is none of the classes.
UNKNOWN = "unknown"
# Kind of output -> what to do where another kind is needed.
_INSTEAD = {
    "probabilities": "Use predict, or export the checkpoint again with "
    "outputs='features'.",
    "features": "Use features, or open the checkpoint or a file that was exported "
    "without outputs='features'.",
}


class Predictor:
    """Runs a checkpoint, a SavedModel, a `.tflite` or a `.onnx` file on images.

    Images are resized and cropped with the preprocessing in the file's card. `.tflite`
    and `.onnx` files are opened without TensorFlow.

    * **Threads**: any number of threads may use a Predictor at once, and each gets
      the answers to its own images. ONNX Runtime and TensorFlow compute their calls
      at the same time. A TFLite interpreter computes one call at a time; a Predictor
      opens as many as the cores allow, `cores // threads`, and further calls wait.
      Behind a server, which has several calls at once, `threads=1` computes the most
      images per second.
    * **Processes**: a pickled Predictor is its path and `threads`; unpickling opens
      the file again. After a fork, `.tflite` and `.onnx` files are opened again by
      the first call in the child. TensorFlow cannot compute in a fork of a process
      that has used it, so that checkpoints and SavedModels raise a UsageError there:
      start the workers with "spawn", or open the Predictor in the workers only.
    * **Closing**: `close()`, or the end of a `with` block, frees the model's memory.

    Args:
        path: The file or folder; a model from reszoo works too.
        threads: Threads of the runtime; one for each core that the process may use
            (CPU affinity and the container's quota) if None.
        trust_saved_model: Whether a SavedModel may have operators that do more than
            compute, such as reading and writing files. Only for files of known origin.
        isolated: Whether the file is opened and run in a subprocess, which may take
            only so much memory and time. A crash of its runtime is an error then, and
            the next call opens the file again. It computes without GPUs, one call at a
            time, and takes some 0.1 ms longer for a call.

    Attributes:
        card: The card inside the file.
        labels: Names of the classes, in the order of the probabilities; their numbers
            where labels are unavailable, empty where the file gives features.
        output_kind: What the file gives, "probabilities" or "features".

    Raises:
        CheckpointError: There is no such file, it is damaged, has no card, or is a
            SavedModel that could do more than compute.
        UsageError: The file's suffix is unknown, it is a whole export, the number of
            TensorFlow's threads is already set, or TensorFlow is needed in a process
            that was forked after it had started.

    Example:
        >>> reszoo.Predictor("model.tflite").top("cat.jpg", k=2)
        [('cat', 0.93), ('dog', 0.06)]
    """

    card: Card
    labels: tuple[str, ...]
    output_kind: OutputKind

    def __init__(
        self, path: "StrPath | keras.Model", threads: int | None = None,
        *, trust_saved_model: bool = False, isolated: bool = False,
    ) -> None:  # fmt: skip
        options = {"trust_saved_model": trust_saved_model}
        if is_file := isinstance(path, str | os.PathLike):
            path = as_path(path)
        if isolated:
            if not isinstance(path, Path):
                raise UsageError(
                    "Only a file can be isolated. Received: a model in memory."
                )
            self._runtime = open_isolated(path, threads, **options)
        else:
            self._runtime = open_runtime(path, threads, **options)
        # For pickling; the working directory may be another one then.
        self._path = Path(path).absolute() if is_file else None
        self._threads = threads
        self._options = {**options, "isolated": isolated}
        self.card = self._runtime.card
        self.card.check_input()
        self.output_kind = self._runtime.output_kind
        classes = self.card.architecture.classes or 0
        indices = range(classes if self.output_kind == "probabilities" else 0)
        self.labels = tuple(self.card.label(index) for index in indices)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the model's memory; calls that are under way still end.

        A closed Predictor cannot be used again; closing it twice does no harm.
        """
        self._runtime.close()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        if self._path is None:
            raise UsageError(
                "A Predictor is pickled as the path of its file. Received: a Predictor "
                "of a model in memory; write the model with reszoo.save, and open that "
                "file."
            )
        self._runtime.sessions.check_open()
        return partial(type(self), **self._options), (self._path, self._threads)

    def predict(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        batch_size: int = defaults.PREDICTION_BATCH_SIZE,
    ) -> ModelOutput:
        """Classify one image or several.

        Args:
            images: One image or several. An image is a uint8 RGB array or `tf.Tensor`
                `(height, width, 3)` in 0..255, a path, the bytes of an image file, a
                file opened in binary mode, or a PIL image. Several are a batch of
                arrays `(n, height, width, 3)`, or a list or another iterable.
            batch_size: Images that are decoded and computed at a time.

        Returns:
            Probabilities, float32 `(n, classes)`.

        Raises:
            UsageError: An array is not uint8 RGB, something is no image, the file
                gives features, or the Predictor is closed.
            DataError: A file is not a readable image.
        """
        return self._run(images, batch_size, "probabilities")

    def features(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        batch_size: int = defaults.PREDICTION_BATCH_SIZE,
    ) -> ModelOutput:
        """Return the input of the classifier, from a file exported to give that.

        Arguments and errors are those of `predict`; a UsageError also if the file gives
        probabilities. Returns float32 `(n, width)`.
        """
        return self._run(images, batch_size, "features")

    @overload
    def stream(
        self, images: Iterable[ImageLike], *, batch_size: int = ...,
        prefetch: int = ..., errors: Literal["raise"] = ...,
    ) -> Iterator[ModelOutput]: ...  # fmt: skip

    @overload
    def stream(
        self, images: Iterable[ImageLike], *, errors: Literal["return"],
        batch_size: int = ..., prefetch: int = ...,
    ) -> Iterator[ModelOutput | DataError]: ...  # fmt: skip

    def stream(
        self, images: Iterable[ImageLike], *,
        batch_size: int = defaults.PREDICTION_BATCH_SIZE, prefetch: int = 0,
        errors: OnError = "raise",
    ) -> Iterator[ModelOutput | DataError]:  # fmt: skip
        """Yield the answer to each image of an iterable, in order, in constant memory.

        Args:
            images: What `predict` takes; may be endless.
            batch_size: Images that are computed at a time: so many are taken from
                `images` before their answers are yielded.
            prefetch: Batches that threads decode ahead of the one that is computed.
                With 0 no image is taken before its batch is computed.
            errors: "raise" ends at an image file that is not readable; "return" yields
                the DataError in place of its answer, and goes on.

        Yields:
            Probabilities, float32 `(classes,)`, or features where the file gives these.

        Raises:
            UsageError: As for `predict`, or an argument is out of range.
            DataError: A file is not a readable image, and errors is "raise".
        """
        check_range("prefetch", prefetch, "[0, inf)", int)
        known("errors", errors, ("raise", "return"))
        return self._answers(_named(images, batch_size), batch_size, errors, prefetch)

    def scores(
        self, images: Iterable[ImageLike], *, unknown: bool, batch_size: int,
        errors: OnError,
    ) -> Iterator[ModelOutput | DataError]:  # fmt: skip
        """Yield what `ranked` takes of each image, otherwise as `stream`."""
        output = self.threshold[0] if unknown else None
        named = _named(images, batch_size)
        return self._answers(named, batch_size, errors, output=output)

    def _answers(
        self, images: Iterator[_Named], batch_size: int, errors: OnError = "raise",
        prefetch: int = 0, output: str | None = None,
    ) -> Iterator[ModelOutput | DataError]:  # fmt: skip
        def prepare(item: _Named) -> Pixels | DataError:
            try:
                return self.prepare(*item)
            except DataError as error:
                if errors == "return":
                    return error
                raise

        prepared: Iterator[Pixels | DataError] = map(prepare, images)
        if prefetch:
            ahead = prefetch * batch_size
            prepared = map_ahead(prepare, images, usable_cores(), ahead)
        while batch := list(islice(prepared, batch_size)):
            readable = [each for each in batch if not isinstance(each, DataError)]
            answers = iter(self._compute(readable, output))
            for each in batch:
                yield each if isinstance(each, DataError) else next(answers)

    def _run(
        self, images: ImageLike | Iterable[ImageLike], batch_size: int,
        kind: OutputKind, output: str | None = None,
    ) -> ModelOutput:  # fmt: skip
        self._check_kind(kind)
        named, empty = _named(images, batch_size), self._compute([], output)
        answers: list[Any] = [*self._answers(named, batch_size, output=output)]
        return np.array(answers, empty.dtype).reshape(-1, *empty.shape[1:])

    def _compute(
        self, images: Pixels | list[Pixels], output: str | None
    ) -> ModelOutput:
        shape, runtime = self.card.preprocessing.input_shape, self._runtime
        pixels = np.asarray(images, np.uint8).reshape(-1, *shape)
        return runtime.read(pixels, output) if output else runtime.run(pixels)

    def prepare(self, name: str, image: ImageLike) -> Pixels:
        """Return what the model sees of an image, uint8 `(height, width, channels)`.

        Messages call it `name` if it has no path; errors are those of `predict`.
        """
        record = self.card.preprocessing
        return record.prepare(load_image(image, name, record.channels))

    def predict_prepared(
        self, images: Pixels, output: str | None = None
    ) -> ModelOutput:
        """Classify uint8 `(n, height, width, channels)`, already resized and cropped.

        Or return another output of the file by its name, such as "cam". A UsageError
        for another dtype or shape, or if the file has no such output or probabilities.
        """
        if output is None:
            self._check_kind("probabilities")
        shape = self.card.preprocessing.input_shape
        if images.dtype != np.uint8 or images.shape[1:] != shape:
            sides = ", ".join(map(str, shape))
            raise UsageError(
                f"Prepared images must be uint8 of shape (n, {sides}). "
                f"Received: {images.dtype} {images.shape}; predict takes any size."
            )
        return in_batches(lambda few: self._compute(few, output), images)

    def logits(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        batch_size: int = defaults.PREDICTION_BATCH_SIZE,
    ) -> ModelOutput:
        """Return calibrated logits, float32 `(n, classes)`, where the file gives them.

        Arguments and errors are those of `predict`; a UsageError also if the file has
        no logits.
        """
        return self._run(images, batch_size, "probabilities", "logits")

    def top(
        self,
        image: ImageLike,
        k: int = defaults.TOP,
        *,
        unknown: bool = defaults.UNKNOWN,
    ) -> list[tuple[str, float]]:
        """Return the `k` most probable labels of one image, best first.

        Args:
            image: As for `predict`, but a single one.
            k: Number of labels; all classes where there are fewer.
            unknown: Whether an image below the card's threshold is "unknown" (see
                `Card.confidence`): of the largest logit, or of the largest probability
                where the file gives no logits.

        Returns:
            Pairs of label and probability. Of an unknown image it is one pair,
            "unknown" and the largest probability.
        """
        check_range("k", k, "[1, inf)", int)
        output = self.threshold[0] if unknown else None
        size = defaults.PREDICTION_BATCH_SIZE
        answer = self._run(image, size, "probabilities", output)
        if len(answer) != 1:
            raise UsageError(f"top takes one image. Received: {len(answer)}.")
        return self.ranked(answer[0], k, unknown=unknown)

    def ranked(
        self, scores: ModelOutput, k: int, *, unknown: bool
    ) -> list[tuple[str, float]]:
        """Return what `top` returns for an image with these `scores`."""
        name, least = self.threshold if unknown else ("probabilities", 0.0)
        probabilities = softmax(scores) if name == "logits" else scores
        # `not >=` because of NaN.
        if unknown and not scores.max() >= least:
            return [(UNKNOWN, float(probabilities.max()))]
        best = np.argsort(-probabilities, kind="stable")[:k]
        return [(self.labels[index], float(probabilities[index])) for index in best]

    @cached_property
    def threshold(self) -> tuple[str, float]:
        """The output that tells whether an image is known, and its least maximum.

        That is of "logits" if there are any. A UsageError if the card has no
        thresholds.
        """
        self._check_kind("probabilities")
        if (found := self.card.confidence) is None:
            raise UsageError(
                'Answering with "unknown" needs thresholds in the card, which '
                "reszoo.train measures where half of the validation split has enough "
                "images. Received: a card without; run reszoo calibrate on the "
                "checkpoint, and export it again."
            )
        if "logits" in {each["name"] for each in self._runtime.outputs}:
            return "logits", found.min_logit
        return "probabilities", found.min_probability

    def _check_kind(self, needed: OutputKind) -> None:
        if self.output_kind != needed:
            raise UsageError(
                f"This file gives {self.output_kind}, not {needed}. "
                f"{_INSTEAD[self.output_kind]}"
            )


def _named(images: Any, batch_size: int) -> Iterator[_Named]:
    """Yield one image, or those of an iterable, with what messages call them."""
    check_range("batch_size", batch_size, "[1, inf)", int)
    single = (str, bytes, bytearray, memoryview, Image.Image, os.PathLike, Mapping)
    if hasattr(images, "__array__") and not isinstance(images, Image.Image):
        images = _as_array(images, "the image")
        # A column of paths, for example.
        listed = images.ndim == 1 and images.dtype.kind in "OSU"
        several = images.ndim == 4 or listed
    else:
        one = isinstance(images, single) or hasattr(images, "read")
        several = isinstance(images, Iterable) and not one
    if several:
        return ((f"images[{at}]", image) for at, image in enumerate(images))
    return iter([("the image", images)])


def map_ahead(
    function: Callable[[Item], Found], items: Iterable[Item], threads: int, ahead: int
) -> Iterator[Found]:
    """Yield a function's results in order; threads compute so many items ahead."""
    pool, waiting = ThreadPoolExecutor(threads), deque[Future[Found]]()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def load_image(
    image: Any, name: str = "the image", channels: int = 3
) -> Image.Image | Pixels:
    """Return one image, rotated as its EXIF orientation says.

    For a model of one channel, arrays may also be grey. A UsageError, in which `name`
    is what an image without a path is called, if it is no image, an array is not uint8
    RGB in 0..255 of shape (height, width, 3), or a PIL image has 32 bits per channel; a
    DataError for a file that is not readable.
    """
    if isinstance(image, str | os.PathLike):
        # Of a list of images, a path that cannot be costs that image only.
        return open_image(Path(os.path.expanduser(image)))  # noqa: PTH111
    if isinstance(image, bytes | bytearray | memoryview):
        return open_image(bytes(image), name)
    if isinstance(image, Image.Image):
        if image.mode == "F":
            raise UsageError(
                "A PIL image must have a known range. Received: mode 'F', 32 bits per "
                "pixel; scale it to 0..255 and convert it to 'L' or 'RGB'."
            )
        return ImageOps.exif_transpose(image)
    if hasattr(image, "read"):
        return open_image(_content(image, name), name)
    if not hasattr(image, "__array__") and not isinstance(image, list | tuple):
        raise _not_an_image(image, name)
    array = _as_array(image, name)
    if array.ndim == 0 and array.dtype.kind in "OSU":
        # The bytes of a file, as tf.io.read_file gives them.
        item = array.item()
        if not isinstance(item, str | os.PathLike | bytes):
            raise _not_an_image(item, name)
        return load_image(item, name, channels)
    # With one channel, grey arrays as well: (height, width) or (height, width, 1).
    shapes = [(3,)] if channels == 3 else [(3,), (1,), ()]
    fits = array.ndim >= 2 and array.shape[2:] in shapes
    if array.dtype != np.uint8 or not fits or not array.size:
        raise _wrong_array(array)
    return array


def _as_array(image: Any, name: str) -> NDArray[Any]:
    try:
        return np.asarray(image)
    # Tensors without values raise errors of their library.
    except Exception as error:
        raise _not_an_image(image, name) from error


def _content(file: Any, name: str) -> bytes:
    """Return all of an open file, from its beginning where it can go back."""
    try:
        if hasattr(file, "seek") and getattr(file, "seekable", lambda: True)():
            file.seek(0)
        content = file.read()
    except (OSError, ValueError) as error:
        raise DataError(f"{name} cannot be read from its file ({error}).") from error
    if not isinstance(content, bytes):
        raise UsageError(
            "An image file must be opened for reading in binary mode. Received: "
            f"{type(file).__name__} as {name}, whose read() gives "
            f"{type(content).__name__}."
        )
    return content


def _not_an_image(image: object, name: str) -> UsageError:
    what = "None" if image is None else type(image).__name__
    return UsageError(
        "An image is a path, the bytes of an image file, a file opened in binary "
        "mode, a PIL image, or a uint8 RGB array or tensor of shape (height, width, "
        f"3). Received: {what} as {name}."
    )


def _wrong_array(array: NDArray[Any]) -> UsageError:
    numeric = bool(array.size) and array.dtype.kind in "iuf"
    low, high = (array.min(), array.max()) if numeric else (0, 0)
    span = f" in {low:g}..{high:g}" if numeric else ""
    return UsageError(
        "An image array must be uint8 RGB in 0..255 of shape (height, width, 3). "
        f"Received: {array.dtype} {array.shape}{span}; "
        f"{_remedy(array, low, high, numeric)}."
    )


def _remedy(array: NDArray[Any], low: Any, high: Any, numeric: bool) -> str:
    """Return what helps, the first that does."""
    sides, channels = array.shape[:2], array.shape[2:]
    grey, coloured = channels in [(), (1,)], channels == (3,)
    if 0 in array.shape:
        return "it has no pixels"
    if grey and len(sides) == 2:
        image = "PIL.Image.fromarray(array.squeeze())"
        return f"convert grey images to RGB: {image}.convert('RGB')"
    if sides[:1] == (3,) and len(channels) == 1 and not coloured:
        return "channels must be last: array.transpose(1, 2, 0)"
    if channels == (4,):
        return "drop the transparency: array[..., :3]"
    if not coloured:
        return "it is not an image"
    if not numeric or not np.isfinite((low, high)).all():
        return "the model normalises integers itself"
    if low < 0:
        normalised = "it seems to be normalised; the model normalises images itself"
        return f"{normalised}, so pass it as it was before"
    if high <= 1:
        scaled = "it seems to be scaled to 0..1; the model scales images itself"
        return f"{scaled}, so pass (255 * array).round().astype(np.uint8)"
    if high <= 255:
        return "the model normalises integers: pass array.round().astype(np.uint8)"
    return "values above 255 have no known range: scale it to 0..255 first"
