"""ResNets for Keras, from a name in a notebook to a verified file on a phone.

Every public name is imported on first use: `import reszoo` loads no TensorFlow.
"""

import importlib
import pkgutil
import re
import sys
from typing import Any

__version__ = "0.2.0"

# Public name -> "module:name", from the imports in the stub file.
_STUB = (pkgutil.get_data(__name__, "__init__.pyi") or b"").decode()
_IMPORTS = re.findall(r"^from (\S+) import (\w+) as \w+$", _STUB, re.M)
_LAZY = {name: f"{module}:{name}" for module, name in _IMPORTS}
_LAZY["card"] = "reszoo.zoo:get_card"

__all__ = sorted([*_LAZY, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'reszoo' has no attribute {name!r}")
    module, attribute = _LAZY[name].split(":")
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    # Keras then knows the classes in its files of reszoo's models.
    if "keras" in sys.modules:
        importlib.import_module("reszoo.layers")
    if "tensorflow" in sys.modules:
        importlib.import_module("reszoo.training.compile")
    return value


def __dir__() -> list[str]:
    return __all__
