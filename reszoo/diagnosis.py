"""What a bug report needs to know of the machine and of the installed libraries."""

import os
import platform
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from reszoo import __version__
from reszoo.environment import allowed_cores, processor, usable_cores
from reszoo.files import cache_folder

# Not dependencies, but what reszoo meets in the wild.
_OTHERS = ("torch", "torchvision", "timm", "openvino", "mediapipe", "jax", "keras-hub")
_VARIABLES = re.compile(r"RESZOO_|TF_|KERAS_|CUDA_VISIBLE|ONEDNN|OMP_|XLA_|HF_HUB_OFF")
_TOOLS = ("npm", "nvidia-smi", "chromium")


def describe_environment() -> dict[str, Any]:
    """Return the machine, versions and settings, without importing any library.

    Paths in the user's home begin with "~"; of the environment only variables that
    change what reszoo or its libraries do are listed.
    """
    return {
        "reszoo": __version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "executable": _short(sys.executable),
        "system": platform.platform(),
        "processor": processor(),
        "cores": {"usable": usable_cores(), "allowed": allowed_cores()},
        "memory_gb": _memory(),
        "gpus": _gpus(),
        "libraries": _libraries(),
        "tools": {name: _short(shutil.which(name) or "") or None for name in _TOOLS},
        "cache": {"folder": _short(str(cache_folder())), "mb": _size(cache_folder())},
        "variables": {
            name: _short(value)
            for name, value in sorted(os.environ.items())
            if _VARIABLES.match(name)
        },
    }


def _short(path: str) -> str:
    home = str(Path.home())
    return f"~{path.removeprefix(home)}" if path.startswith(f"{home}/") else path


def _memory() -> float | None:
    """Return the machine's memory in GB, None where the system does not tell."""
    try:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    return round(pages * size / 1e9, 1)


def _gpus() -> list[str]:
    """Return NVIDIA's GPUs with their drivers, as `nvidia-smi` names them."""
    query = "--query-gpu=name,driver_version,memory.total"
    try:
        done = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.strip().splitlines()


def _libraries() -> dict[str, str | None]:
    """Return the versions of all dependencies; None for those not installed."""
    try:
        required = metadata.requires("reszoo") or []
    except metadata.PackageNotFoundError:
        required = []
    names = [found[0] for each in required if (found := re.match(r"[\w.-]+", each))]
    versions: dict[str, str | None] = {}
    for name in sorted({*names, *_OTHERS}, key=str.lower):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _size(folder: Path) -> float:
    """Return how many MB (10**6 bytes) the files in a folder take."""
    files = (path for path in folder.rglob("*") if not path.is_symlink())
    return round(sum(each.stat().st_size for each in files if each.is_file()) / 1e6, 1)
