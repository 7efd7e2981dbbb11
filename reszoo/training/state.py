"""The saved state of a run, and stopping on signals between two steps."""

import json
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from reszoo.console import say
from reszoo.errors import CheckpointError, UsageError, summarized
from reszoo.files import atomic_file, parse_json
from reszoo.weights.safetensors import read

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A shell has its background jobs ignore Ctrl-C; None is a handler not set by Python.
_NOT_OURS = (signal.SIG_IGN, None)


class Stopped(KeyboardInterrupt):
    """A run was stopped between two steps, on all workers, by a signal to one."""


class StopRequest:
    """Whether a run is requested to stop, and by which signal."""

    received: signal.Signals | None = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # A second signal does not wait for the step.
        if self.received:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)


@contextmanager
def stop_on_signals(folder: Path | None = None) -> Iterator[StopRequest]:
    """Turn Ctrl-C and SIGTERM into a request that the loop checks after each step.

    An exception in the middle of a step would leave a state from which no run could
    resume exactly. Signals that are ignored, and all outside the main thread, are left
    as they are. The folder of the state is for the message after a stop.
    """
    request, before = StopRequest(), {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in _SIGNALS}
    ours = [number for number, handler in before.items() if handler not in _NOT_OURS]
    for number in ours:
        signal.signal(number, request._handle)
    try:
        yield request
    except Stopped:
        way_on = "Resume with --resume (resume=True)."
        if folder:
            say(f"Stopped; the state is in {folder}. {way_on}")
        raise
    finally:
        for number in ours:
            signal.signal(number, before[number])


STATE = "state.safetensors"
# Arrays by the names of their variables, and the JSON content.
State = tuple[dict[str, NDArray[Any]], dict[str, Any]]
# Increased when the content changes its meaning.
_VERSION = 1
_KEY = "reszoo_state"
_SHOWN = 8


def write_state(
    path: Path, variables: Mapping[str, tf.Variable], content: Mapping[str, Any]
) -> None:
    """Write variables and JSON content to `path` atomically.

    A ReszooError if the disk refused; the state before is unchanged.
    """
    tensors = {name: np.asarray(value) for name, value in variables.items()}
    text = json.dumps({"version": _VERSION, **content}, allow_nan=False)
    with atomic_file(path) as temporary:
        temporary.write_bytes(save(tensors, metadata={_KEY: text}))


def read_state(path: Path) -> State:
    """Return the arrays and the content that `write_state` wrote.

    A CheckpointError if the file is damaged, not a state, or of another version.
    """
    tensors, _ = read(path)
    with safe_open(path, framework="numpy") as opened:
        text = (opened.metadata() or {}).get(_KEY)
    if text is None:
        raise CheckpointError(f"{path} is not the state of a run. Start a new one.")
    try:
        content: dict[str, Any] = parse_json(text)
        version = content["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is a damaged state ({error}).") from error
    if version != _VERSION:
        raise CheckpointError(
            f"This reszoo resumes from states of version {_VERSION}. Received: version "
            f"{version} in {path}; use the release that started the run."
        )
    return tensors, content


def restore(
    variables: Mapping[str, tf.Variable], tensors: Mapping[str, NDArray[Any]]
) -> None:
    """Assign every variable from the arrays of a state.

    A CheckpointError if the names differ: the state belongs to another model.
    """
    unmatched = sorted(set(variables) ^ set(tensors))
    if unmatched:
        raise CheckpointError(
            "The state belongs to another model or optimizer. In only one of them: "
            f"{summarized(unmatched, _SHOWN)}."
        )
    for name, variable in variables.items():
        variable.assign(tensors[name])


def check_output(
    folder: Path, files: Iterable[str], marks: Iterable[str], kind: str, resume: bool,
    overwrite: bool,
) -> list[str]:  # fmt: skip
    """Refuse an output folder that holds something else than the arguments say.

    A UsageError if it is a file, holds a run or study (`kind`) that is neither to be
    resumed nor overwritten, or holds files and no run or study. Returns the names of
    those files there. One is known by the files that are `marks`; others may have the
    other names.
    """
    if resume and overwrite:
        raise UsageError(
            f"resume=True continues the {kind} in the output folder, overwrite=True "
            "replaces it: give only one of them."
        )
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file. The output of a {kind} is a folder.")
    found = [name for name in files if (folder / name).exists()]
    occupied = folder.is_dir() and any(folder.iterdir())
    if occupied and not set(found) & set(marks):
        raise UsageError(
            f"The output of a {kind} must be a new or empty folder, or one with a "
            f"{kind}. Received: {folder}, which holds other files."
        )
    if found and not resume and not overwrite:
        raise UsageError(
            f"{folder} already holds a {kind} ({', '.join(found)}). Resume it "
            "(resume=True, --resume), replace it (overwrite=True, --overwrite), or "
            "choose another folder."
        )
    return found


def check_same(
    then: Mapping[str, Any], now: Mapping[str, Any], folder: Path, advice: str = ""
) -> None:
    """Raise UsageError for a run that would be resumed under other conditions.

    They are given by name, as the state has them and as of this call, as JSON values.
    The message tells the folder and `advice`: how it goes on under the new ones.
    """
    differences = [
        f"{name} was {_short(then.get(name))}, is {_short(now.get(name))}"
        for name in sorted(set(then) | set(now))
        if then.get(name) != now.get(name)
    ]
    if differences:
        raise UsageError(
            f"The run in {folder} can only be resumed with the same model, data and "
            f"recipe. {summarized(differences, _SHOWN, '; ')}. Use those, or another "
            f"output folder.{advice}"
        )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
