"""Opened sessions of a model file: under threads, after a fork, and closed."""

import ctypes
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Generic, TypeVar

from reszoo.environment import check_tensorflow_usable
from reszoo.errors import CheckpointError, UsageError

Session = TypeVar("Session")
# All that are in use; a fork has to look after them.
_LIVE: "weakref.WeakSet[Sessions[Any]]" = weakref.WeakSet()


class Sessions(Generic[Session]):
    """The sessions in which a runtime runs one file.

    Args:
        open_session: Opens the file; called again where another session is needed.
        path: The file. Every session must be of the same content, so that a file
            that was replaced is not opened again. None for a model in memory.
        most: How many sessions may be open. Each then serves one call at a time, and
            a call waits while all are busy. None for a runtime whose session serves
            any number of calls at once.
        forkable: Whether the runtime can open the file again in a forked process.
    """

    def __init__(
        self,
        open_session: Callable[[], Session],
        path: Path | None = None,
        *,
        most: int | None = None,
        forkable: bool = True,
    ) -> None:
        self._open_session, self._path = open_session, path
        self._most, self._forkable = most, forkable
        self._file = _identity(path)
        self._closed = False
        self._start([open_session()])
        _LIVE.add(self)

    def _start(self, sessions: list[Session]) -> None:
        # The busy ones are in `_all` only.
        self._all, self._idle, self._opening = sessions, list(sessions), 0
        self._changed = threading.Condition()

    @contextmanager
    def borrow(self) -> Iterator[Session]:
        """Yield a session that no other call uses, unless the runtime allows that.

        A UsageError if they are closed, or TensorFlow's and in a forked process; a
        CheckpointError if a further session is needed, and the file has changed.
        """
        session = self._take()
        try:
            yield session
        except BaseException:
            # A session that failed half-way may hold another call's numbers.
            self._give_back(session, usable=self._most is None)
            raise
        self._give_back(session)

    def close(self) -> None:
        """Let go of all sessions; the busy ones when their calls have ended."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._all, self._idle = [], []
            # It may hold the model. Nothing is opened from here on.
            del self._open_session
            self._changed.notify_all()

    def check_open(self) -> None:
        """Raise UsageError after `close`."""
        if self._closed:
            raise UsageError(
                "A Predictor that was closed cannot be used. Received: a call after "
                f"close(); open {self._path or 'the model'} again."
            )

    def _take(self) -> Session:
        if not self._forkable:
            check_tensorflow_usable()
        with self._changed:
            while True:
                self.check_open()
                if self._idle:
                    return self._idle[-1] if self._most is None else self._idle.pop()
                if len(self._all) + self._opening < (self._most or 1):
                    self._opening += 1
                    open_session = self._open_session
                    break
                self._changed.wait()
        return self._open_another(open_session)

    def _open_another(self, open_session: Callable[[], Session]) -> Session:
        opened: list[Session] = []
        try:
            if _identity(self._path) != self._file:
                raise CheckpointError(
                    f"{self._path} has changed or is gone since it was opened. Open "
                    "what is there now with another Predictor."
                )
            opened.append(open_session())
            return opened[0]
        finally:
            with self._changed:
                self._opening -= 1
                if not self._closed:
                    self._all += opened
                    self._idle += opened if self._most is None else []
                self._changed.notify_all()

    def _give_back(self, session: Session, usable: bool = True) -> None:
        if self._most is None:
            return
        with self._changed:
            if not usable:
                self._all = [each for each in self._all if each is not session]
            elif not self._closed:
                self._idle.append(session)
            self._changed.notify()

    def after_fork(self) -> None:
        """Start anew in a child process, which has none of the sessions' threads."""
        for session in self._all:
            # Never destroyed: a destructor would wait for those threads, or crash.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))
        self._start([])


def _identity(path: Path | None) -> tuple[int, ...] | None:
    """Return what tells that a file is still the same one; None without a file."""
    with suppress(OSError):
        if path is not None:
            found = path.stat()
            return found.st_ino, found.st_size, found.st_mtime_ns
    return None


def _after_fork() -> None:
    for sessions in list(_LIVE):
        sessions.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
