"""Classify many image files: `reszoo.predict_files` and the command `predict`."""

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import reszoo
from reszoo import defaults
from reszoo.console import Progress, say
from reszoo.data.image_files import reason_of
from reszoo.data.image_paths import iterate_paths
from reszoo.environment import usable_cores
from reszoo.errors import DataError, UsageError
from reszoo_export.batch_output import Row, RowFile
from reszoo_export.manifest import size_and_hash
from reszoo_export.predictor import Predictor
from reszoo_export.runtimes import ModelOutput, find_runtime

# Images that are computed together. They are the same ones wherever a run is resumed,
# for the last digits of a float model may depend on the other images in a call.
GROUP = defaults.PREDICTION_BATCH_SIZE
_Path = str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True)
class PredictResult:
    """What `predict_files` wrote.

    Attributes:
        output: The file.
        images: Number of rows.
        unreadable: Number of rows with an error instead of an answer.
    """

    output: Path
    images: int
    unreadable: int


def predict_files(
    model: _Path,
    inputs: _Path | Iterable[_Path],
    output: _Path,
    *,
    top: int = defaults.TOP,
    threads: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    trust_saved_model: bool = False,
) -> PredictResult:
    """Classify image files and write a row for each to a CSV, JSONL or Parquet file.

    Rows are in the order of the inputs and have the columns `path`, `label` and
    `probability` (0..1), `label_2` and `probability_2` to `label_{top}` and
    `probability_{top}`, and `error`. They equal `Predictor`'s answers. An unreadable
    image has a row with the reason as its error and nothing else.

    Memory does not grow with the number of images. Until all rows are there, they are
    kept beside the output, which never holds a part of them.

    Args:
        model: Checkpoint, SavedModel folder, `.tflite` or `.onnx` file.
        inputs: Image files, folders, which are searched at any depth, globs, and `.csv`
            files that list paths in a column "path" or one a line; see
            `reszoo.data.image_paths.iterate_paths`.
        output: A `.csv`, `.jsonl` or `.parquet` file; the latter needs pyarrow.
        top: Number of labels for each image; all classes where there are fewer.
        threads: Images that are decoded and classified at the same time; one for each
            core if None.
        resume: Continue an unfinished output, after a kill for example; the result is
            the same file. Starts one where there is none.
        overwrite: Replace an output that exists, or start an unfinished one again.
        trust_saved_model: See `reszoo.Predictor`.

    Raises:
        UsageError: The output exists, or resuming is refused: the model, the paths, a
            file's size or time, `top` or reszoo's version changed.
        DataError: A folder or a glob has no images, or a CSV file is invalid.
        CheckpointError: The model cannot be opened.
        ReszooError: The disk refused the write; what is written can be resumed.
    """
    model, target = Path(model), Path(output).expanduser()
    given = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
    _check_distinct(target, [model, *map(Path, given)])
    classify = FileClassifier(
        model, top=top, threads=threads, trust_saved_model=trust_saved_model
    )
    rows = RowFile(target, classify.columns)
    with rows.reserved(resume=resume, overwrite=overwrite):
        images, digest = _keep_paths(iterate_paths(given), rows.inputs)
        rows.begin(
            {
                "the inputs": digest,
                "the model": size_and_hash(model)[1],
                "top (--top)": top,
                "reszoo's version": reszoo.__version__,
            }
        )
        done = rows.committed.rows
        paths = islice(_kept_paths(rows.inputs), done, None)
        try:
            with Progress("Images", images, done, lines=True) as progress:
                for written in rows.append(classify.groups(paths)):
                    note = f"{written.errors:,} unreadable" if written.errors else ""
                    progress.advance(written.rows - done, note)
                    done = written.rows
        except KeyboardInterrupt:
            say(f"{target} is unfinished: --resume (resume=True) continues it.")
            raise
        rows.finish()
    return PredictResult(output=target, images=images, unreadable=rows.committed.errors)


def _check_distinct(output: Path, others: Iterable[Path]) -> None:
    same = [other for other in others if other.resolve() == output.resolve()]
    if same:
        raise UsageError(f"The output would replace {same[0]}. Choose another name.")


def _keep_paths(paths: Iterable[str], file: Path) -> tuple[int, str]:
    """Write paths to a file, which takes less memory than a list.

    Returns:
        Their number, and a digest of them and of each file's size and time.
    """
    count, digest = 0, hashlib.sha256()
    with file.open("w", encoding="ascii") as kept:
        for path in paths:
            line = f"{json.dumps(path)}\n"
            kept.write(line)
            digest.update(f"{line}{_state(path)}\n".encode("ascii"))
            count += 1
    return count, digest.hexdigest()


def _kept_paths(file: Path) -> Iterator[str]:
    with file.open(encoding="ascii") as kept:
        yield from map(json.loads, kept)


def _state(path: str) -> str:
    try:
        found = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):
        return "missing"
    return f"{found.st_size} {found.st_mtime_ns}"


class FileClassifier:
    """Classifies image files, several groups at a time, and answers with rows.

    Each thread decodes a group of images and runs the model on it on one core, so that
    decoding and inference overlap, and no core waits for another.

    Args:
        model: Checkpoint, SavedModel folder, `.tflite` or `.onnx` file.
        top: Number of labels for each image; all classes where there are fewer.
        threads: Number of threads; one for each core if None.

    Attributes:
        labels: Names of the classes.
        columns: Column -> whether it holds text, not numbers.

    Raises:
        CheckpointError: The model cannot be opened.
        UsageError: `top` or `threads` is below 1, or the file gives features.
    """

    labels: tuple[str, ...]
    columns: dict[str, bool]

    def __init__(
        self,
        model: _Path,
        *,
        top: int = defaults.TOP,
        threads: int | None = None,
        trust_saved_model: bool = False,
    ) -> None:
        if top < 1:
            raise UsageError(f"top must be at least 1. Received: top={top}.")
        if threads is not None and threads < 1:
            raise UsageError(
                f"threads must be at least 1. Received: threads={threads}."
            )
        # Of the runtimes only TensorFlow cannot give every call a thread of its own.
        runtime = find_runtime(Path(model))
        own_threads = runtime is not None and bool(runtime.suffix)
        self._predictor = Predictor(
            model,
            threads=1 if own_threads else threads,
            trust_saved_model=trust_saved_model,
        )
        # Refuses a file that gives features.
        self._predictor.predict([])
        self.labels = self._predictor.labels
        self._threads = threads or usable_cores()
        self._answers = list(_answer_columns(min(top, len(self.labels))))
        names = chain(["path"], *self._answers, ["error"])
        self.columns = {name: not name.startswith("probability") for name in names}

    def __call__(self, paths: Sequence[str]) -> list[Row]:
        """Return a row for each image, an unreadable one's with the reason."""
        answers = self._predictor.stream(paths, batch_size=GROUP, errors="return")
        return [
            self._row(path, answer) for path, answer in zip(paths, answers, strict=True)
        ]

    def _row(self, path: str, answer: ModelOutput | DataError) -> Row:
        row: dict[str, Any] = dict.fromkeys(self.columns)
        row["path"] = path
        if isinstance(answer, DataError):
            return row | {"error": _reason(answer)}
        if not np.isfinite(answer).all():
            return row | {"error": "the model's probabilities are not finite"}
        best = np.argsort(-answer, kind="stable")
        for (label, probability), index in zip(self._answers, best, strict=False):
            row[label], row[probability] = self.labels[index], float(answer[index])
        return row

    def groups(self, paths: Iterable[str]) -> Iterator[list[Row]]:
        """Yield the rows of many images, in order, a group at a time.

        Paths are taken, and images opened, only a little ahead of the rows.
        """
        # Threads must not be the first to load Pillow's formats, each on its own.
        Image.preinit()
        Image.init()
        remaining, waiting = iter(paths), deque[Future[list[Row]]]()
        pool = ThreadPoolExecutor(self._threads)
        try:
            while group := list(islice(remaining, GROUP)):
                waiting.append(pool.submit(self, group))
                if len(waiting) > 2 * self._threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _answer_columns(top: int) -> Iterator[tuple[str, str]]:
    yield "label", "probability"
    for place in range(2, top + 1):
        yield f"label_{place}", f"probability_{place}"


def _reason(error: DataError) -> str:
    """Return why an image is unreadable, without its path, in one line."""
    cause = error.__cause__ or error
    system = isinstance(cause, OSError) and cause.strerror
    return " ".join((system or reason_of(cause)).split())
