"""Keep the log noise of TensorFlow and its converters away from our users."""

import importlib.util
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType


def quiet_tensorflow() -> None:
    """Have TensorFlow's first import say nothing, whoever imports it.

    TensorFlow 2.21 logs from C++ while it is imported and while it looks for
    devices, and no longer heeds TF_CPP_MIN_LOG_LEVEL there. Does nothing where
    TensorFlow is loaded already.
    """
    waiting = any(isinstance(finder, _QuietFinder) for finder in sys.meta_path)
    if "tensorflow" not in sys.modules and not waiting:
        sys.meta_path.insert(0, _QuietFinder())


@contextmanager
def held_stderr(show: bool = True) -> Iterator[None]:
    """Hold back what the process writes to its error stream, also from C++.

    Args:
        show: Whether to show it after all if the body fails.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except Exception:
            if show:
                held.seek(0)
                os.write(kept, held.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)


@contextmanager
def quiet_converters() -> Iterator[None]:
    """Hold back what converters print, log and warn, unless the body fails."""
    with held_stderr(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(max(before, logging.WARNING))
        try:
            yield
        finally:
            logging.disable(before)


class _QuietFinder:
    """Finds `tensorflow` as everybody does, once, and silences its loading."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_quietly(module: ModuleType) -> None:
            with held_stderr():
                load(module)
                module.config.list_physical_devices()
            logging.getLogger("tensorflow").setLevel(logging.ERROR)

        spec.loader.exec_module = load_quietly  # type: ignore[method-assign]
        return spec
