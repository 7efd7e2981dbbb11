"""Writing a state may fail or be killed at any call: the old or the new one is left."""

import errno
import json
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

import reszoo
from reszoo.training import state
from reszoo.training.state import check_same, read_state, restore, write_state

# The child that is forked and killed has no need of the threads it loses.
pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")

# What a state file is made with; each of their calls is a moment to be killed at.
_CALLS = {"open", "write", "close", "fsync", "replace", "unlink", "mkdir", "scandir"}
_DIED, _REFUSED, _UNTOUCHED, _DONE = 9, 2, 1, 0


def version(number: int) -> dict[str, Any]:
    return {"kernel": np.full((300, 300), number, np.float32), "step": np.int64(number)}


def in_child(path: Path, number: int, event: str, act: Callable[[], None]) -> int:
    """Write version 2 in another process and act at one call; return how it ended.

    Args:
        number: Of the call of a file, from 1.
        event: "c_call" is before it, "c_return" after it.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code, seen = _DIED, 0

    def watch(_: Any, happened: str, function: Any) -> None:
        nonlocal seen
        if happened == event and function.__name__ in _CALLS:
            seen += 1
            if seen == number:
                act()

    try:
        sys.setprofile(watch)
        write_state(path, version(2), {"epoch": 2})
        code = _DONE if seen >= number else _UNTOUCHED
    except reszoo.ReszooError as error:
        code = _REFUSED if "could not be written: No space left" in str(error) else 99
    finally:
        os._exit(code)


def no_space() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def epoch_in(path: Path) -> int:
    tensors, content = read_state(path)
    epoch = content["epoch"]
    assert isinstance(epoch, int)
    assert (tensors["kernel"] == epoch).all()
    assert tensors["step"] == epoch
    return epoch


@pytest.mark.parametrize("event", ["c_call", "c_return"])
def test_a_kill_at_any_call_leaves_the_old_or_the_new_state(
    tmp_path: Path, event: str
) -> None:
    path, found = tmp_path / state.STATE, []
    for number in range(1, 100):
        write_state(path, version(1), {"epoch": 1})
        code = in_child(path, number, event, lambda: os._exit(_DIED))
        found.append(epoch_in(path))
        if code == _UNTOUCHED:
            break
        assert code == _DIED
    # More than opening, writing, closing, flushing and renaming were interrupted.
    assert len(found) > 8
    assert found == sorted(found)
    assert set(found) == {1, 2}
    write_state(path, version(3), {"epoch": 3})
    assert [file.name for file in tmp_path.iterdir()] == [state.STATE]


def test_a_refusal_at_any_call_keeps_a_whole_state(tmp_path: Path) -> None:
    path = tmp_path / state.STATE
    codes = []
    for number in range(1, 100):
        write_state(path, version(1), {"epoch": 1})
        codes.append(in_child(path, number, "c_call", no_space))
        assert epoch_in(path) in (1, 2)
        if codes[-1] == _UNTOUCHED:
            break
    # Making a folder that is there may fail without harm.
    assert set(codes) == {_REFUSED, _DONE, _UNTOUCHED}
    assert codes.count(_REFUSED) > 8
    write_state(path, version(3), {"epoch": 3})
    assert [file.name for file in tmp_path.iterdir()] == [state.STATE]


def test_a_write_that_ends_in_the_middle_keeps_the_old_state(tmp_path: Path) -> None:
    path = tmp_path / state.STATE
    write_state(path, version(1), {"epoch": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(reszoo.ReszooError, match=r"could not be written: File too"):
            write_state(path, version(2), {"epoch": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert epoch_in(path) == 1
    assert [file.name for file in tmp_path.iterdir()] == [state.STATE]


def test_what_is_no_state_of_ours_is_refused(tmp_path: Path) -> None:
    path = tmp_path / state.STATE
    write_state(path, version(1), {"epoch": 1})
    whole = path.read_bytes()
    for length in (0, 5, 200, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(reszoo.CheckpointError, match=r"not a complete safetensors"):
            read_state(path)
    path.write_bytes(save({"kernel": np.zeros(3, np.float32)}))
    with pytest.raises(reszoo.CheckpointError, match=r"not the state of a run\. Start"):
        read_state(path)
    text = json.dumps({"version": 7})
    path.write_bytes(save({"a": np.zeros(1)}, metadata={"reszoo_state": text}))
    with pytest.raises(
        reszoo.CheckpointError, match=r"version 1\. Received: version 7"
    ):
        read_state(path)


def test_only_the_same_variables_are_restored() -> None:
    with pytest.raises(reszoo.CheckpointError, match=r"In only one of them: a, c\."):
        restore({"a": None, "b": None}, {"b": np.zeros(1), "c": np.zeros(1)})


def test_the_difference_of_conditions_is_listed(tmp_path: Path) -> None:
    then = {f"field {n}": n for n in range(10)}
    check_same(then, dict(then), tmp_path)
    now = {name: value + 1 for name, value in then.items()} | {"new": "x" * 99}
    with pytest.raises(
        reszoo.UsageError,
        match=r"recipe\. field 0 was 0, is 1; .* and 3 more\. Use those",
    ):
        check_same(then, now, tmp_path)
    with pytest.raises(reszoo.UsageError, match=r'new was null, is "x{56}\.\.\.\. Use'):
        check_same({}, {"new": "x" * 99}, tmp_path)
