"""Stop between two steps when somebody asks for it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ASKS = (signal.SIGINT, signal.SIGTERM)
# A shell has its background jobs ignore Ctrl-C; of None, Python did not set it.
_NOT_OURS = (signal.SIG_IGN, None)


class Stopped(KeyboardInterrupt):
    """A run ended between two steps, on all workers, because somebody asked for it."""


class Stop:
    """Whether the run has been asked to stop, and how."""

    asked: signal.Signals | None = None

    def _ask(self, number: int, frame: FrameType | None) -> None:
        # Who asks twice does not want to wait for the step.
        if self.asked:
            raise KeyboardInterrupt
        self.asked = signal.Signals(number)


@contextmanager
def stopping() -> Iterator[Stop]:
    """Turn Ctrl-C and SIGTERM into a wish that the loop looks at after each step.

    An exception in the middle of a step would leave a state that nobody could go on
    with exactly. Signals that are ignored, and all outside the main thread, stay as
    they are.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in _ASKS}
    ours = [number for number in _ASKS if before[number] not in _NOT_OURS]
    for number in ours:
        signal.signal(number, stop._ask)
    try:
        yield stop
    finally:
        for number in ours:
            signal.signal(number, before[number])
