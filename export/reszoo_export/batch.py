"""Classify many image files: `reszoo.predict_files` and the command `predict`."""

import csv
import hashlib
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

import reszoo
from reszoo import defaults
from reszoo.console import Progress, say
from reszoo.data.image_files import reason_of
from reszoo.data.image_paths import iterate_paths
from reszoo.environment import usable_cores
from reszoo.errors import DataError, ReszooError, UnknownNameError, UsageError
from reszoo.fields import check_range
from reszoo.files import StrPath, as_path, disk_errors, flush
from reszoo_export.manifest import size_and_hash
from reszoo_export.predictor import Predictor, map_ahead
from reszoo_export.runtimes import ModelOutput, find_runtime

# One image's values by column.
Row = Mapping[str, Any]
SUFFIXES = (".csv", ".jsonl", ".parquet")
# Seconds of work that a kill costs, at most.
_COMMIT_SECONDS = 1.0
# Rows of a row group in a Parquet file: what is in memory while it is written.
_ROW_GROUP = 1 << 15


class Written(NamedTuple):
    """What is written: rows, the bytes that they take, and rows with an error."""

    rows: int = 0
    bytes: int = 0
    errors: int = 0


class RowFile:
    """A file of rows that is complete under its name, or not there.

    Until all rows are there, they are in a hidden folder beside the output, with a
    journal: its first line says what the rows depend on, each further one how many rows
    are on the disk. What stands behind these in the file of rows is dropped when it is
    continued.

    `output` is the final name, with one of `SUFFIXES` (for Parquet pyarrow must be
    installed), `columns` tells of each whether it holds text, not numbers, and one is
    "error"; `committed` is what is on the disk.
    """

    def __init__(self, output: Path, columns: Mapping[str, bool]) -> None:
        self.output, self.columns = output, columns
        self.committed = Written()
        self._suffix = output.suffix.lower()
        if self._suffix not in SUFFIXES:
            raise UnknownNameError("kind of output file", output.name, SUFFIXES)
        if self._suffix == ".parquet":
            _pyarrow()
        self._final = output.resolve()
        folder = self._final.with_name(f".{self._final.name}.partial")
        self._folder, self._rows = folder, folder / "rows"
        self._journal = folder / "journal"
        # For the paths of the inputs while rows are written.
        self.inputs = folder / "inputs"

    @contextmanager
    def reserved(self, *, resume: bool, overwrite: bool) -> Iterator[None]:
        """Keep other processes from writing the same file, if it may be written.

        A UsageError tells of a file, or an unfinished one, that is neither to be
        resumed nor overwritten, and of another process that is writing it.
        """
        if resume and overwrite:
            raise UsageError(
                "resume continues an unfinished file, overwrite starts it again. "
                "Received both."
            )
        if self._final.is_dir():
            raise UsageError(f"The output must be a file. {self.output} is a folder.")
        with disk_errors(self.output):
            descriptor = _lock(self._folder, self.output)
            try:
                if overwrite:
                    self._journal.unlink(missing_ok=True)
                else:
                    self._check_free(resume)
                yield
            finally:
                if not self._read_journal():
                    shutil.rmtree(self._folder, ignore_errors=True)
                os.close(descriptor)

    def _check_free(self, resume: bool) -> None:
        unfinished = bool(self._read_journal())
        if unfinished and not resume:
            raise UsageError(
                f"{self.output} is unfinished. Continue it with --resume "
                "(resume=True), or start again with --overwrite (overwrite=True)."
            )
        if self._final.exists() and not unfinished:
            what = "is complete, so there is nothing to resume" if resume else "exists"
            raise UsageError(
                f"{self.output} {what}. Choose another name, or replace it with "
                "--overwrite (overwrite=True)."
            )

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Find what is on the disk already: nothing, unless it is unfinished.

        `identity` is what the rows depend on, by the name that messages give it; a
        UsageError names what is not as it was.
        """
        lines = self._read_journal()
        if not lines:
            self._rows.write_bytes(self._encode([], header=True))
            self._journal.write_text(f"{json.dumps(identity)}\n", encoding="utf-8")
            self._commit(Written(0, self._rows.stat().st_size))
            return
        try:
            known, (rows, size, errors) = map(json.loads, (lines[0], lines[-1]))
            changed = [name for name in identity if known.get(name) != identity[name]]
        except (ValueError, TypeError, AttributeError) as error:
            raise ReszooError(
                f"{self._journal} is damaged ({error}). Start again with --overwrite "
                "(overwrite=True)."
            ) from error
        if changed:
            raise UsageError(
                f"{self.output} cannot be continued: {' and '.join(changed)} changed. "
                "Start again with --overwrite (overwrite=True)."
            )
        # What a kill cut off would run into the next line.
        os.truncate(self._journal, sum(len(line) + 1 for line in lines))
        self.committed = Written(rows, size, errors)

    def _read_journal(self) -> list[str]:
        """Return the complete lines, if they tell of any rows."""
        with suppress(FileNotFoundError):
            lines = self._journal.read_text(encoding="utf-8").split("\n")[:-1]
            return lines if len(lines) > 1 else []
        return []

    def _commit(self, written: Written) -> None:
        flush(self._rows)
        with self._journal.open("a", encoding="utf-8") as journal:
            journal.write(f"{json.dumps(written)}\n")
        flush(self._journal)
        self.committed = written

    def append(self, groups: Iterable[Sequence[Row]]) -> Iterator[Written]:
        """Write groups of rows behind those on the disk; yield what has been written.

        That will soon be on the disk.
        """
        if self._named():
            return
        if not self._rows.exists() or self._rows.stat().st_size < self.committed.bytes:
            raise ReszooError(
                f"{self._rows} has less than its journal says. Start again with "
                "--overwrite (overwrite=True)."
            )
        os.truncate(self._rows, self.committed.bytes)
        written, due = self.committed, time.monotonic() + _COMMIT_SECONDS
        with self._rows.open("ab") as file:
            for group in groups:
                file.write(self._encode(group))
                errors = sum(row["error"] is not None for row in group)
                written = Written(
                    written.rows + len(group), file.tell(), written.errors + errors
                )
                if time.monotonic() >= due:
                    file.flush()
                    self._commit(written)
                    due = time.monotonic() + _COMMIT_SECONDS
                yield written
        self._commit(written)

    def _encode(self, rows: Sequence[Row], *, header: bool = False) -> bytes:
        if self._suffix != ".csv":
            # A Parquet file cannot be continued: it is made of these at the end.
            lines = [f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows]
            return "".join(lines).encode("utf-8", "backslashreplace")
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return _encodable(text.getvalue()).encode()

    def finish(self) -> None:
        """Give the file its name, and remove what belongs to the unfinished one."""
        if not self._named():
            complete = self._rows
            if self._suffix == ".parquet":
                complete = self._folder / "complete"
                _write_parquet(self._rows, complete, self.columns)
                flush(complete)
            complete.replace(self._final)
            flush(self._final.parent)
        # The journal goes last: without it nothing could be resumed.
        self._rows.unlink(missing_ok=True)
        self.inputs.unlink(missing_ok=True)
        shutil.rmtree(self._folder)

    def _named(self) -> bool:
        """Return whether the last attempt ended within `finish`, after the renaming."""
        return not self._rows.exists() and self._final.exists()


def _lock(folder: Path, output: Path) -> int:
    """Make a folder and lock it for this process, which a kill undoes."""
    try:
        import fcntl
    except ImportError as error:
        raise UsageError(
            "Writing answers to a file needs the file locks of Linux or macOS. "
            f"Received: {output} on {sys.platform}; print them with --json, or use "
            "Predictor.stream."
        ) from error
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise UsageError(
                f"Another process is writing {output}. Wait for it, or choose another "
                "name."
            ) from error
        # Whoever had the lock may have removed the folder: lock the new one.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), folder.stat()):
                return descriptor
        os.close(descriptor)


def _encodable(text: str) -> str:
    """Replace what UTF-8 cannot hold: bytes of file names, which PEP 383 decodes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UsageError(
            "Parquet files need pyarrow. Install it with "
            "`pip install 'reszoo[parquet]'`, or write .csv or .jsonl."
        ) from error
    return pyarrow


def arrow_table(rows: Sequence[Row], columns: Mapping[str, bool]) -> Any:
    """Return rows as a `pyarrow.Table`; a UsageError if pyarrow is not installed."""
    arrow = _pyarrow()
    types = {True: arrow.string(), False: arrow.float32()}
    schema = arrow.schema([(name, types[text]) for name, text in columns.items()])
    rows = [{**row, "path": _encodable(row["path"])} for row in rows]
    return arrow.Table.from_pylist(rows, schema)


def _write_parquet(rows: Path, output: Path, columns: Mapping[str, bool]) -> None:
    """Convert JSON Lines to a Parquet file, a group of rows at a time."""
    schema = arrow_table([], columns).schema
    with (
        rows.open(encoding="utf-8") as lines,
        # Errors in closing Arrow's own files lack the system's number.
        output.open("wb") as file,
        _pyarrow().parquet.ParquetWriter(file, schema) as writer,
    ):
        while group := [json.loads(line) for line in islice(lines, _ROW_GROUP)]:
            writer.write_table(arrow_table(group, columns))


# Images that are computed together. They are the same ones wherever a run is resumed,
# for the last digits of a float model may depend on the other images in a call.
GROUP = defaults.PREDICTION_BATCH_SIZE


@dataclass(frozen=True, kw_only=True)
class PredictResult:
    """What `predict_files` wrote."""

    output: Path
    images: int  # number of rows
    unreadable: int  # rows with an error instead of an answer


def predict_files(
    model: StrPath, inputs: StrPath | Iterable[StrPath], output: StrPath, *,
    top: int = defaults.TOP, threads: int | None = None, resume: bool = False,
    overwrite: bool = False, unknown: bool = defaults.UNKNOWN,
    trust_saved_model: bool = False, isolated: bool = defaults.ISOLATED,
) -> PredictResult:  # fmt: skip
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
        unknown: Whether images below the card's threshold have the label "unknown" and
            no second one (see `Predictor.top`).
        trust_saved_model: See `reszoo.Predictor`.
        isolated: See `reszoo.Predictor`.

    Raises:
        UsageError: The output exists, or resuming is refused: the model, the paths, a
            file's size or time, `top` or reszoo's version changed.
        DataError: A folder or a glob has no images, or a CSV file is invalid.
        CheckpointError: The model cannot be opened.
        ReszooError: The disk refused the write; what is written can be resumed.
    """
    model, target = as_path(model), as_path(output)
    given = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
    same = [p for p in (model, *map(as_path, given)) if p.resolve() == target.resolve()]
    if same:
        raise UsageError(f"The output would replace {same[0]}. Choose another name.")
    options = {"trust_saved_model": trust_saved_model, "isolated": isolated}
    options["unknown"] = unknown
    classify = FileClassifier(model, top=top, threads=threads, **options)
    rows = RowFile(target, classify.columns)
    with rows.reserved(resume=resume, overwrite=overwrite):
        images, digest = _keep_paths(iterate_paths(given), rows.inputs)
        identity = {"the inputs": digest, "the model": size_and_hash(model)[1]}
        identity |= {"unknown (--unknown)": "yes"} if unknown else {}
        version = {"reszoo's version": reszoo.__version__}
        rows.begin({**identity, "top (--top)": top, **version})
        done = rows.committed.rows
        try:
            with (
                rows.inputs.open(encoding="ascii") as kept,
                Progress("Images", images, done, lines=True) as progress,
            ):
                paths = map(json.loads, islice(kept, done, None))
                for written in rows.append(classify.groups(paths)):
                    note = f"{written.errors:,} unreadable" if written.errors else ""
                    progress.advance(written.rows - done, note)
                    done = written.rows
        except KeyboardInterrupt:
            say(f"{target} is unfinished: --resume (resume=True) continues it.")
            raise
        rows.finish()
    return PredictResult(output=target, images=images, unreadable=rows.committed.errors)


def _keep_paths(paths: Iterable[str], file: Path) -> tuple[int, str]:
    """Write paths to a file, which takes less memory than a list.

    Returns their number, and a digest of them and of each file's size and time.
    """
    count, digest = 0, hashlib.sha256()
    with file.open("w", encoding="ascii") as kept:
        for path in paths:
            line, state = f"{json.dumps(path)}\n", "missing"
            with suppress(OSError, ValueError):
                found = os.stat(path)  # noqa: PTH116
                state = f"{found.st_size} {found.st_mtime_ns}"
            kept.write(line)
            digest.update(f"{line}{state}\n".encode("ascii"))
            count += 1
    return count, digest.hexdigest()


class FileClassifier:
    """Classifies image files, several groups at a time, and answers with rows.

    Each thread decodes a group of images and runs the model on it on one core, so that
    decoding and inference overlap, and no core waits for another. Arguments and errors
    are those of `predict_files`.
    """

    labels: tuple[str, ...]  # names of the classes
    columns: dict[str, bool]  # column -> whether it holds text, not numbers

    def __init__(
        self,
        model: StrPath,
        *,
        top: int = defaults.TOP,
        threads: int | None = None,
        unknown: bool = defaults.UNKNOWN,
        **options: bool,
    ) -> None:
        check_range("top", top, "[1, inf)", int)
        check_range("threads", threads, "[1, inf)", int, NoneType)
        # Of the runtimes only TensorFlow cannot give every call a thread of its own.
        runtime = find_runtime(Path(model))
        # A subprocess serves one call at a time.
        isolated = options.get("isolated", defaults.ISOLATED)
        own_threads = runtime is not None and bool(runtime.suffix) and not isolated
        self._predictor = Predictor(model, 1 if own_threads else threads, **options)
        # Refuses a file that gives features.
        self._predictor.predict([])
        self._unknown = unknown and bool(self._predictor.threshold)
        self.labels = self._predictor.labels
        self._threads = threads or usable_cores()
        places = ["", *(f"_{n}" for n in range(2, min(top, len(self.labels)) + 1))]
        self._answers = [(f"label{n}", f"probability{n}") for n in places]
        names = chain(["path"], *self._answers, ["error"])
        self.columns = {name: not name.startswith("probability") for name in names}

    def __call__(self, paths: Sequence[str]) -> list[Row]:
        """Return a row for each image, an unreadable one's with the reason."""
        answers = self._predictor.scores(
            paths, unknown=self._unknown, batch_size=GROUP, errors="return"
        )
        return list(map(self._row, paths, answers))

    def _row(self, path: str, answer: ModelOutput | DataError) -> Row:
        row: dict[str, Any] = dict.fromkeys(self.columns)
        row["path"] = path
        if isinstance(answer, DataError):
            # In one line, without the path.
            reason = " ".join(reason_of(answer.__cause__ or answer).split())
            return row | {"error": reason}
        if not np.isfinite(answer).all():
            return row | {"error": "the model's probabilities are not finite"}
        most = len(self._answers)
        ranked = self._predictor.ranked(answer, most, unknown=self._unknown)
        for columns, values in zip(self._answers, ranked, strict=False):
            row.update(zip(columns, values, strict=True))
        return row

    def groups(self, paths: Iterable[str]) -> Iterator[list[Row]]:
        """Return the rows of many images, in order, a group at a time.

        Paths are taken, and images opened, only a little ahead of the rows.
        """
        # Threads must not be the first to load Pillow's formats, each on its own.
        Image.preinit()
        Image.init()
        remaining = iter(paths)
        groups = iter(lambda: list(islice(remaining, GROUP)), [])
        return map_ahead(self, groups, self._threads, 2 * self._threads)
