"""Scripts of the repository, which no package holds, as modules."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
# The export that the repository holds.
EXPORT = ROOT / "saved_models/resnet20-cifar10"


def script_of(path: str) -> Any:
    """Import a script of the repository."""
    file = ROOT / path
    name = file.stem
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules[name] = module
    # Scripts import each other.
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(file.parent)
        spec.loader.exec_module(module)
    return module
