"""Files: which are read and how much of them, atomic writes, what they may replace."""

import errno
import glob
import json
import math
import os
import re
import secrets
import shutil
import socket
import stat
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from reszoo.errors import ReszooError, UsageError, summarized

# Tells what an earlier output in a folder consists of, as `folder_entries` lists it;
# None where the folder holds something else.
Named = Callable[[Path], Collection[str] | None]
StrPath: TypeAlias = str | os.PathLike[str]
# NumPy, of an array that it could write in part only; it drops the system's number.
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")
# What libraries keep the text of.
_DISK_ERRORS = (
    errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EINTR,
)  # fmt: skip
# Ends of names: of what is being written, and of what it replaces.
_ENDS = _TEMPORARY, _OLD = ".tmp", ".old"


def as_path(path: Any) -> Path:
    """Return a path that a user gave, with `~` expanded; nothing need be there yet.

    A UsageError for a value of another type, a name that is too long or has a null
    character, and a link that leads to itself.
    """
    try:
        # The home folder of nobody stays as it is written.
        found = Path(os.path.expanduser(path))  # noqa: PTH111
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            found.stat()
    except (TypeError, ValueError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(error, TypeError):
            reason = f"it is of type {type(path).__name__}"
        text = f"Expected a path. Received: {path!r:.200} ({reason})."
        raise UsageError(text) from error
    return found


def cache_folder() -> Path:
    """Return the folder for downloads and cached facts about data sets.

    It is the environment variable `RESZOO_HOME`, or else `reszoo` in the user's
    cache (`XDG_CACHE_HOME`, or else `~/.cache`). It need not exist yet.
    """
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("RESZOO_HOME") or f"{caches}/reszoo"
    return Path(home).expanduser().absolute()


# The most bytes that a reader takes of a file of JSON, such as a manifest, and how
# deep its objects may be nested.
JSON_BYTES = 1 << 24
_JSON_DEPTH = 50
# A value takes one byte or two in the file, and 60 in memory.
_JSON_VALUES = 1_000_000


def check_regular(path: StrPath) -> os.stat_result:
    """Return the status of a regular file, or of one that a link leads to.

    A pipe or a device may never end, and opening one may wait forever: every reader of
    files of unknown origin asks this first, or opens them with `open_regular`. An
    OSError if there is no such file, or it is a folder, pipe, socket or device.
    """
    status = os.stat(path)  # noqa: PTH116
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return status


def open_regular(path: StrPath, most: int | None = None) -> BinaryIO:
    """Open a regular file of at most `most` bytes (None: any size) for reading.

    An OSError if it cannot be opened, is larger, or is not regular (`check_regular`).
    """
    check_regular(path)
    # Should it have become a pipe since, opening it does not wait.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    file = os.fdopen(descriptor, "rb")
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    if most is not None and status.st_size > most:
        file.close()
        raise OSError(errno.EFBIG, f"larger than {most:,} bytes", str(path))
    return file


def read_regular(path: StrPath, most: int) -> bytes:
    """Return the content of a regular file of at most `most` bytes (`open_regular`)."""
    with open_regular(path, most) as file:
        return file.read(os.fstat(file.fileno()).st_size)


def read_json(path: StrPath) -> Any:
    """Return the content of a regular file of UTF-8 JSON.

    An OSError if it cannot be read (`open_regular`); a ValueError if it is not JSON of
    UTF-8, or one that `parse_json` refuses.
    """
    return parse_json(read_regular(path, JSON_BYTES).decode("utf-8"))


def parse_json(text: str | bytes) -> Any:
    """Parse JSON of unknown origin.

    A ValueError if it is no JSON, has numbers that are not finite, is nested deeper
    than 50 objects, has text that UTF-8 cannot hold, or more than a million values.
    """
    marks = (",", "[", "{") if isinstance(text, str) else (b",", b"[", b"{")
    # Those in texts count as well: it is a bound.
    if sum(map(text.count, marks)) > _JSON_VALUES:  # type: ignore[arg-type]
        raise ValueError(f"it has more than {_JSON_VALUES:,} values")
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    _check_json(content, _JSON_DEPTH)
    return content


def _check_json(value: Any, depth: int) -> None:
    if depth < 0:
        raise ValueError(f"it is nested deeper than {_JSON_DEPTH} objects")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number")
    if isinstance(value, str) and not value.isascii():
        value.encode()  # A UnicodeEncodeError is a ValueError.
    if isinstance(value, list | dict):
        for inside in (
            value if isinstance(value, list) else chain(value, value.values())
        ):
            _check_json(inside, depth - 1)


@contextmanager
def atomic_file(path: StrPath) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to `path` at the end.

    The content is flushed to the disk before the rename, so that after a power cut
    `path` holds the old or the new file, never a mixture. When the body fails, the
    temporary file is removed and `path` stays as it was. Missing parent folders are
    made. A ReszooError if the disk refused the write (full, read-only).
    """
    final = as_path(path).resolve()
    with disk_errors(final):
        temporary = _prepared(final)
        try:
            yield temporary
            flush(temporary)
            temporary.replace(final)
            flush(final.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(
    path: StrPath, check: Callable[[Path], object] | None = None
) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, the folder's final name.

    It takes that name at the end. An existing folder of that name is renamed first and
    removed last, so that a failure at any point leaves the old or the new folder
    complete. (Only a process killed between two renames leaves the old one as
    `.NAME.old`; the next write to `path` restores it first.) Where the folder is a
    working directory or a mount point it stays, and its contents are replaced. `check`
    raises if what is in a folder must not be replaced; it is called when the new folder
    is complete, because others may have written there meanwhile. All else is as in
    `atomic_file`.
    """
    final = as_path(path).resolve()
    with disk_errors(final):
        place = final if _must_stay(final) else final.parent
        temporary = _prepared(final, place)
        temporary.mkdir()
        try:
            yield temporary
            for written in temporary.rglob("*"):
                flush(written)
            _swap(temporary, final, place, check)
            flush(final.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def check_outside(folder: Path, data: Any) -> None:
    """Refuse an output folder that would become a class or a split of the data."""
    is_path = isinstance(data, str | os.PathLike)
    root = as_path(data).resolve() if is_path else None
    if root and root.is_dir() and folder.resolve().is_relative_to(root):
        raise UsageError(
            "The output folder must not be inside the data, where it would be taken "
            f"for a class. Received: {folder} inside {data}."
        )


def free_folder(
    path: StrPath, content: Path | None = None, *, kind: str = "",
    named: Named | None = None, overwrite: bool = False,
    inputs: Iterable[StrPath] = (),
) -> Path:  # fmt: skip
    """Return a folder that an output may create or replace, with `~` expanded.

    A folder that is empty or missing is free. One with an earlier output is free if
    that may be overwritten, and if there is nothing else in it: neither what `named`
    does not tell, nor one of the inputs. Such an output is called `kind` ("an export");
    "" where none may be replaced. `content` is where the content is now, if it has been
    moved. A UsageError if the folder is not free; names what would be lost.
    """
    folder = as_path(path)
    content = content or folder
    if is_free(content):
        return folder
    entries = named(content) if named and content.is_dir() else None
    if entries is None:
        reason = f" and is not {kind} of reszoo" if kind else " already"
        raise UsageError(f"{folder} exists{reason}. Choose another folder.")
    if not overwrite:
        raise UsageError(
            f"{folder} already holds {kind}. Choose another folder, "
            "or pass overwrite=True (--overwrite) to replace it."
        )
    others = sorted(folder_entries(content) - set(entries))
    place = content.resolve()
    for each in map(as_path, inputs):
        # Data may also be the name of a data set, as "digits".
        if each.exists() and each.resolve().is_relative_to(place):
            others.append(str(each))
    if others:
        raise UsageError(
            f"Only {kind} itself can be overwritten. Received: {folder}, which holds "
            f"other files too: {summarized(others)}; move them to another place, or "
            "choose another folder."
        )
    return folder


def is_free(folder: Path) -> bool:
    """Tell whether a path is free for a folder: nothing is there, or an empty one."""
    if not os.path.lexists(folder):
        return True
    # Unfinished outputs of this or another process are no content.
    return folder.is_dir() and not _finished(folder)


def folder_entries(folder: Path) -> set[str]:
    """List what is in a folder at any depth, by relative path.

    Links are listed, not followed; folders only if empty, with "/" at the end.
    """
    found = set()
    for root, folders, files in os.walk(folder):
        inside = Path(root).relative_to(folder)
        links = [name for name in folders if (Path(root) / name).is_symlink()]
        found |= {(inside / name).as_posix() for name in (*files, *links)}
        if not (folders or files) and root != str(folder):
            found.add(f"{inside.as_posix()}/")
    finished = {entry.name for entry in _finished(folder)}
    return {name for name in found if name.split("/")[0] in finished}


def _finished(folder: Path) -> list[Path]:
    """Return what is in a folder, without what `atomic_folder` puts there."""
    start = f".{folder.resolve().name}."
    return [
        entry
        for entry in folder.iterdir()
        if not (entry.name.startswith(start) and entry.name.endswith(_ENDS))
    ]


def _must_stay(folder: Path) -> bool:
    """Tell whether a folder cannot be renamed, or leaves shells in a removed one."""
    if not folder.is_dir():
        return False
    return folder.is_mount() or folder in (Path.cwd(), *Path.cwd().parents)


def write_text(path: StrPath, text: str) -> None:
    """Write UTF-8 text to `path` in one step (see `atomic_file`)."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: StrPath, content: Any) -> None:
    """Write `content` as indented JSON to `path` in one step."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def _prepared(final: Path, place: Path | None = None) -> Path:
    """Prepare a write to `final`; return a temporary name in `place`, or beside it."""
    place = place or final.parent
    place.mkdir(parents=True, exist_ok=True)
    _sweep(final, place)
    writer = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    return place / f".{final.name}.{writer}{_TEMPORARY}"


def _sweep(final: Path, place: Path) -> None:
    """Remove what killed processes of this machine left; restore what they moved."""
    aside = place / f".{final.name}{_OLD}"
    if place == final and aside.exists():
        for entry in list(aside.iterdir()):
            if not os.path.lexists(final / entry.name):
                entry.rename(final / entry.name)
        aside.rmdir()
    elif aside.exists() and not final.exists():
        aside.rename(final)
    host = socket.gethostname()
    for left in place.glob(f".{glob.escape(f'{final.name}.{host}')}-*{_TEMPORARY}"):
        pid = left.name.removeprefix(f".{final.name}.{host}-").split("-")[0]
        if pid.isdigit() and not _alive(int(pid)):
            _remove(left)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _swap(
    temporary: Path, final: Path, place: Path, check: Callable[[Path], object] | None
) -> None:
    """Give a new folder its final name, or its contents where that folder stays."""
    if not os.path.lexists(final):
        temporary.rename(final)
        return
    check = check or (lambda folder: None)
    check(final)
    aside = place / f".{final.name}{_OLD}"
    if place == final:
        aside.mkdir()
        old = [(each, aside / each.name) for each in _finished(final)]
        new = [(each, final / each.name) for each in temporary.iterdir()]
    else:
        _remove(aside)
        old, new = [(final, aside)], [(temporary, final)]
    done: list[tuple[Path, Path]] = []
    try:
        for before, after in chain(old, new):
            if len(done) == len(old):
                # Now nobody else writes there by its name.
                check(aside)
            before.rename(after)
            done.append((before, after))
    except (OSError, ReszooError):
        for before, after in reversed(done):
            if not os.path.lexists(before):
                after.rename(before)
        with suppress(OSError):
            aside.rmdir()
        raise
    shutil.rmtree(aside, ignore_errors=True)


def flush(path: Path) -> None:
    """Make sure that a file's or folder's content is on the disk."""
    # Some file systems refuse to flush folders; the files are flushed anyway.
    with suppress(PermissionError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def disk_errors(final: Path) -> Iterator[None]:
    """Turn errors of the disk into a ReszooError that names `final`."""
    try:
        yield
    except Exception as error:
        number = disk_error_of(error)
        if number is None:
            raise
        raise ReszooError(
            f"{final} could not be written: {os.strerror(number)}. What was there "
            "before is unchanged; make room on the disk or choose another place."
        ) from error


@contextmanager
def read_errors(file: StrPath, raised: type[ReszooError]) -> Iterator[None]:
    """Turn an OSError of reading a file into another error that names it."""
    try:
        yield
    except OSError as error:
        text = f"{file} cannot be read ({error.strerror or error})."
        raise raised(text) from error


def disk_error_of(error: Exception) -> int | None:
    """Return the `errno` of a disk's error; some libraries keep only its text."""
    if isinstance(error, ReszooError):
        return None
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if _SHORT_WRITE.fullmatch(str(error)):
        return errno.ENOSPC
    return next((n for n in _DISK_ERRORS if os.strerror(n) in str(error)), None)
