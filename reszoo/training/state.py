"""The saved state of a run, and stopping between two steps."""

import json
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from reszoo.errors import CheckpointError, UsageError
from reszoo.files import atomic_file
from reszoo.weights.safetensors import read

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


STATE = "state.safetensors"
# Arrays by the names of their variables, and the content.
State = tuple[dict[str, NDArray[Any]], dict[str, Any]]
# Raised when the content changes its meaning.
_VERSION = 1
_KEY = "reszoo_state"
_SHOWN = 8


def write_state(
    path: Path, variables: Mapping[str, tf.Variable], content: Mapping[str, Any]
) -> None:
    """Write variables and JSON content to `path` in one step.

    Raises:
        ReszooError: The disk refused; the state before is unchanged.
    """
    tensors = {name: np.asarray(value) for name, value in variables.items()}
    text = json.dumps({"version": _VERSION, **content}, allow_nan=False)
    with atomic_file(path) as temporary:
        temporary.write_bytes(save(tensors, metadata={_KEY: text}))


def read_state(path: Path) -> State:
    """Return the arrays and the content that `write_state` wrote.

    Raises:
        CheckpointError: The file is damaged, no state, or of another version.
    """
    tensors, _ = read(path)
    with safe_open(path, framework="numpy") as opened:
        text = (opened.metadata() or {}).get(_KEY)
    if text is None:
        raise CheckpointError(f"{path} is not the state of a run. Start a new one.")
    content: dict[str, Any] = json.loads(text)
    if content["version"] != _VERSION:
        raise CheckpointError(
            f"This reszoo goes on with states of version {_VERSION}. Received: version "
            f"{content['version']} in {path}; use the release that began the run."
        )
    return tensors, content


def restore(
    variables: Mapping[str, tf.Variable], tensors: Mapping[str, NDArray[Any]]
) -> None:
    """Assign every variable from the arrays of a state.

    Raises:
        CheckpointError: The names differ: the state belongs to another net.
    """
    odd = sorted(set(variables) ^ set(tensors))
    if odd:
        raise CheckpointError(
            "The state belongs to another net or optimizer. Only on one side: "
            f"{', '.join(odd[:_SHOWN])}."
        )
    for name, variable in variables.items():
        variable.assign(tensors[name])


def check_same(then: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Refuse to go on with a run under other conditions.

    Args:
        then: Conditions of the run by name, as the state has them.
        now: Those of this call, as JSON values.
        folder: Of the run, for the message.

    Raises:
        UsageError: Something differs; the message lists it.
    """
    differences = [
        f"{name} was {_short(then.get(name))}, is {_short(now.get(name))}"
        for name in sorted(set(then) | set(now))
        if then.get(name) != now.get(name)
    ]
    if differences:
        more = len(differences) - _SHOWN
        listed = "; ".join(differences[:_SHOWN] + [f"and {more} more"] * (more > 0))
        raise UsageError(
            f"The run in {folder} can only be resumed as it was begun. {listed}. "
            "Use the same data and recipe, or another output folder."
        )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
