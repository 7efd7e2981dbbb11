"""The library `faults.c`: calls of the operating system that fail, or end a process."""

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
KINDS = ("read", "write", "sync", "close", "rename", "open")
# Instead of an error's number: half of the bytes.
SHORT = -1
# What differs in the names of temporary files.
_DRAWN = re.compile(r"-\d+-[0-9a-f]{8}|tmp\w{8}|\d+")
_NAME = "reszoo-faults-"


def preload() -> None:
    """Start this program again with the library, unless it is there."""
    if _NAME in os.environ.get("LD_PRELOAD", ""):
        return
    library = Path(tempfile.gettempdir()) / f"{_NAME}{os.getuid()}.so"
    unfinished = library.with_suffix(f".{os.getpid()}")
    words = ["-shared", "-fPIC", "-O1", str(HERE / "faults.c"), "-o", str(unfinished)]
    subprocess.run(["cc", *words, "-ldl", "-lpthread"], check=True)
    unfinished.rename(library)
    os.environ |= {"LD_PRELOAD": str(library), "TF_CPP_MIN_LOG_LEVEL": "3"}
    os.execv(sys.executable, [sys.executable, *sys.argv])


class Faults:
    """The preloaded library."""

    def __init__(self) -> None:
        library = self._library = ctypes.CDLL(None)
        text, long = ctypes.c_char_p, ctypes.c_long
        library.faults_arm.argtypes = [text, ctypes.c_int, long, ctypes.c_int]
        library.faults_end.argtypes = [text, long, ctypes.c_int, long]
        library.faults_seen.restype = library.faults_changes.restype = long
        library.faults_name.argtypes = [long]
        library.faults_name.restype = text

    @contextlib.contextmanager
    def armed(
        self, folder: Path, kind: str = "read", number: int = 0, error: int = 0
    ) -> Iterator[None]:
        """Let a call on files below a folder fail; number 0 only counts."""
        index = KINDS.index(kind)
        self._library.faults_arm(f"{folder}/".encode(), index, number, error)
        try:
            yield
        finally:
            self._library.faults_disarm()

    def end(self, folder: Path, number: int, how: signal.Signals, delay: float) -> None:
        """End this process seconds after the n-th change; Ctrl-C with its group."""
        microseconds = int(delay * 1e6)
        self._library.faults_end(f"{folder}/".encode(), number, how, microseconds)

    def changes(self) -> int:
        """Return the number of writes, syncs and renames since the last arming."""
        return int(self._library.faults_changes())

    def sites(self) -> dict[tuple[str, str], list[int]]:
        """Return the numbers of the counted calls by kind and file, numbers left out.

        Files whose names differ in digits alone come from the same place.
        """
        found: dict[tuple[str, str], list[int]] = {}
        for call in range(self._library.faults_seen()):
            if logged := self._library.faults_name(call):
                kind, number, name = logged.decode(errors="replace").split(" ", 2)
                key = KINDS[int(kind)], _DRAWN.sub("#", name)
                found.setdefault(key, []).append(int(number))
        return found
