"""The machine that this process runs on, and what the process may use of it."""

import math
import os
import platform
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from reszoo.errors import UsageError

_CPUINFO = Path("/proc/cpuinfo")
# Control groups of Linux: which ones this process is in, and their files.
_MEMBERSHIP, _CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def processor() -> str:
    """Return the processor's name."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def processor_flags() -> set[str]:
    """Return the processor's abilities by Linux' names; nothing on other systems."""
    return set(_cpuinfo("flags").split())


@cache
def _cpuinfo(field: str) -> str:
    """Return what Linux tells of its first processor, or ""."""
    named = (each for each in _text(_CPUINFO).splitlines() if each.startswith(field))
    return next(named, "").partition(":")[2].strip()


def usable_cores() -> int:
    """Return how many cores this process may use, which may be fewer than there are.

    The default of every number of threads. Counts the CPU affinity of the process,
    and the CPU quota of its control groups (of a container), rounded up.
    """
    return max(1, min([allowed_cores(), *map(math.ceil, _quotas())]))


def allowed_cores() -> int:
    """Return how many cores the CPU affinity of this process allows."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas() -> Iterator[float]:
    """Yield the CPU quotas of this process' control groups, in cores."""
    for line in _text(_MEMBERSHIP).splitlines():
        _, controllers, path = line.split(":", 2)
        mount = _CGROUPS / controllers
        group = mount / path.lstrip("/")
        # A container sees its own group as the root, and a path that is not there.
        for folder in (group, *group.parents):
            if controllers == "":  # Version 2: "quota period", or "max period".
                quota, _, period = _text(folder / "cpu.max").partition(" ")
            else:
                quota = _text(folder / "cpu.cfs_quota_us")
                period = _text(folder / "cpu.cfs_period_us")
            if quota.isdecimal() and period.isdecimal():
                yield int(quota) / int(period)
            if folder == mount:
                break


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


_forked_from_tensorflow = False


def check_tensorflow_usable() -> None:
    """Raise UsageError in a process where TensorFlow would wait forever.

    A fork, after TensorFlow has started to compute, copies its state but not its
    threads.
    """
    if _forked_from_tensorflow:
        raise UsageError(
            "TensorFlow cannot compute in a process that was forked after it had "
            "started. Received: a fork of such a process; start workers with "
            "multiprocessing.get_context('spawn'), open the model only in the workers, "
            "or use a .tflite or .onnx file, which works after a fork."
        )


def check_backend(what: str) -> None:
    """Raise UsageError where something needs TensorFlow and Keras runs on another."""
    import keras

    backend = keras.backend.backend()
    if backend != "tensorflow":
        raise UsageError(
            f"{what} needs Keras on TensorFlow; building, loading, saving, calling and "
            f"fitting a model do not. Received: KERAS_BACKEND={backend}; start Python "
            "with KERAS_BACKEND=tensorflow."
        )


def _after_fork() -> None:
    global _forked_from_tensorflow
    module = sys.modules.get("tensorflow.python.eager.context")
    context = getattr(module, "_context", None)
    # None until TensorFlow starts its threads, with the first operation.
    if getattr(context, "_context_handle", None) is not None:
        _forked_from_tensorflow = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
