"""The machine that this process runs on."""

import platform
from functools import cache
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


def processor() -> str:
    """Return the processor's name."""
    named = (line for line in _cpuinfo() if line.startswith("model name"))
    line = next(named, "")
    return line.partition(":")[2].strip() or platform.processor() or platform.machine()


def processor_flags() -> set[str]:
    """Return the processor's abilities by Linux' names; nothing on other systems."""
    named = (line for line in _cpuinfo() if line.startswith("flags"))
    return set(next(named, "").partition(":")[2].split())


@cache
def _cpuinfo() -> tuple[str, ...]:
    try:
        return tuple(_CPUINFO.read_text(encoding="utf-8").splitlines())
    except OSError:
        return ()
