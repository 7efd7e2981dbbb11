"""Write rows to a CSV, JSON Lines or Parquet file, resumably after a kill.

Until all rows are there, they are in a hidden folder beside the output, with a journal:
its first line says what the rows depend on, each further one how many rows are on the
disk. What stands behind these in the file of rows is dropped when it is continued.
"""

import csv
import io
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from reszoo.errors import ReszooError, UnknownNameError, UsageError
from reszoo.files import disk_errors, flush

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

    Args:
        output: The final name; its suffix is one of `SUFFIXES`.
        columns: Column -> whether it holds text, not numbers. One is "error".

    Attributes:
        committed: What is on the disk.

    Raises:
        UnknownNameError: The suffix is another one.
        UsageError: It is Parquet and pyarrow is not installed.
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

        Raises:
            UsageError: There is a file, or an unfinished one, that is neither to be
                resumed nor overwritten, or another process is writing it.
            ReszooError: The disk refused a write.
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

        Args:
            identity: What the rows depend on, by the name that messages give it.

        Raises:
            UsageError: Something in it is not as it was; names it.
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
        """Write groups of rows behind those that are on the disk.

        Yields:
            After each group, what has been written, and will soon be on the disk.
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
    # POSIX only, so not at import.
    import fcntl

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
    """Return rows as a `pyarrow.Table`.

    Raises:
        UsageError: pyarrow is not installed.
    """
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
        _pyarrow().parquet.ParquetWriter(output, schema) as writer,
    ):
        while group := [json.loads(line) for line in islice(lines, _ROW_GROUP)]:
            writer.write_table(arrow_table(group, columns))
