"""Atomic writes of files and folders, and the cache folder."""

import glob
import json
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from reszoo.errors import ReszooError


def cache_folder() -> Path:
    """Return the folder for downloads and cached facts about data sets.

    It is the environment variable `RESZOO_HOME`, or else `reszoo` in the user's
    cache (`XDG_CACHE_HOME`, or else `~/.cache`). It need not exist yet.
    """
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("RESZOO_HOME") or f"{caches}/reszoo"
    return Path(home).expanduser().absolute()


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to `path` at the end.

    The content is flushed to the disk before the rename, so that after a power
    cut `path` holds the old or the new file, never a mixture. When the body
    fails, the temporary file is removed and `path` stays as it was.

    Args:
        path: The final name. Missing parent folders are made.

    Raises:
        ReszooError: The disk refused the write (full, read-only).
    """
    final = Path(path).resolve()
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
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, the folder's final name.

    It takes that name at the end. An existing folder of that name is renamed first
    and removed last, so that a failure at any point leaves the old or the new folder
    complete. (Only a process killed between two renames leaves the old one as
    `.NAME.old`; the next write to `path` restores it first.) Parents and errors are
    as in `atomic_file`.
    """
    final = Path(path).resolve()
    with disk_errors(final):
        temporary = _prepared(final)
        temporary.mkdir()
        try:
            yield temporary
            for written in temporary.rglob("*"):
                flush(written)
            _swap_in(temporary, final)
            flush(final.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text to `path` in one step (see `atomic_file`)."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write `content` as indented JSON to `path` in one step."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def _prepared(final: Path) -> Path:
    """Prepare a write to `final`; return the temporary name."""
    final.parent.mkdir(parents=True, exist_ok=True)
    _sweep(final)
    writer = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    return final.with_name(f".{final.name}.{writer}.tmp")


def _aside(final: Path) -> Path:
    return final.with_name(f".{final.name}.old")


def _sweep(final: Path) -> None:
    """Remove what killed processes of this machine left; restore what they moved."""
    if _aside(final).exists() and not final.exists():
        _aside(final).rename(final)
    host = socket.gethostname()
    for left in final.parent.glob(f".{glob.escape(f'{final.name}.{host}')}-*.tmp"):
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


def _swap_in(temporary: Path, final: Path) -> None:
    if not final.exists():
        temporary.rename(final)
        return
    aside = _aside(final)
    _remove(aside)
    final.rename(aside)
    try:
        temporary.rename(final)
    except OSError:
        aside.rename(final)
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
    except OSError as error:
        if error.errno is None:
            raise
        raise ReszooError(
            f"{final} could not be written: {os.strerror(error.errno)}. "
            "What was there before is unchanged; "
            "make room on the disk or choose another place."
        ) from error
