"""The torch libraries that some tests compare with, where they are installed."""

import importlib
from typing import Any

import pytest

REASON = "compares with torch, torchvision and timm; pip install them to run it"
# A library is undone when it is collected.
_LIBRARIES: list[Any] = []


def import_torchvision() -> Any:
    """Import torchvision, or skip the test where it is missing.

    A torchvision whose compiled operators do not fit the installed torch fails at
    import, for it describes operators nobody declared (0.28, `_meta_registrations`).
    No test calls them, so they are declared here, without a body.
    """
    torch = pytest.importorskip("torch", reason=REASON)
    try:
        return pytest.importorskip("torchvision", reason=REASON)
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(
            f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        )
    _LIBRARIES.append(library)
    return importlib.import_module("torchvision")


def import_timm() -> Any:
    """Import timm, or skip the test where it is missing."""
    import_torchvision()
    return pytest.importorskip("timm", reason=REASON)
