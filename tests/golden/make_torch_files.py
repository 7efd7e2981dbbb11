"""Make the files under `torch/` with torch itself. Run it anew for a new case only.

Made with torch 2.13.0 and NumPy 2.4.6: `python tests/golden/make_torch_files.py`.
"""

import argparse
import collections
import importlib
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent / "torch"


def drawn(*shape: int) -> Any:
    """Numbers that differ by eighths within +-6.25, exact in every float type."""
    count = int(np.prod(shape))
    return (((np.arange(count) * 37) % 101 - 50) / 8).reshape(shape)


def contents(torch: Any) -> dict[str, Any]:
    """What goes into each file, by its name."""

    def tensor(*shape: int, dtype: str = "float32") -> Any:
        return torch.tensor(drawn(*shape)).to(getattr(torch, dtype))

    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    for value in net.state_dict().values():
        value.copy_(tensor(*value.shape))
    floats = ("float16", "bfloat16", "float32", "float64")
    integers = ("int8", "int16", "int32", "int64")
    types = {kind: tensor(3, 5, dtype=kind) for kind in (*floats, *integers)}
    types["uint8"] = torch.arange(15, dtype=torch.uint8)
    types["bool"] = tensor(3, 5) > 0
    shared = tensor(4, 6)
    return {
        "state_dict": net.state_dict(),
        "types": types,
        "parallel": {
            "state_dict": torch.nn.DataParallel(net).state_dict(),
            "best_prec1": np.float64(91.25),
            "epoch": 3,
        },
        "reference": {
            "model": net.state_dict(),
            "args": argparse.Namespace(lr=0.1, milestones=[30, 60], device="cuda"),
            "scheduler": {"milestones": collections.Counter([30, 60, 60])},
            "device": torch.device("cuda", 1),
            "type": torch.bfloat16,
            "size": torch.Size([2, 3]),
            "classes": {1, 2},
        },
        "views": {
            "parameter": torch.nn.Parameter(tensor(2, 3)),
            "transposed": tensor(4, 6).T,
            "every_second": tensor(4, 6)[:, ::2],
            "top": shared[:2],
            "bottom": shared[2:],
            "scalar": torch.tensor(2.5),
            "empty": torch.zeros(0, 3),
        },
    }


def main() -> None:
    """Write every content in both layouts."""
    torch: Any = importlib.import_module("torch")
    FOLDER.mkdir(exist_ok=True)
    for name, content in contents(torch).items():
        torch.save(content, FOLDER / f"{name}.pth")
        legacy = FOLDER / f"{name}_legacy.pth"
        torch.save(content, legacy, _use_new_zipfile_serialization=False)
    torch.jit.script(torch.nn.Linear(2, 1)).save(str(FOLDER / "script.pt"))


if __name__ == "__main__":
    main()
