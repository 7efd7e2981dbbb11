"""Write golden/resnets.npz from torchvision and timm, which must agree exactly.

Run from the folder `tests` in an environment with torch, torchvision and timm:

    PYTHONPATH=. python golden/make_resnets.py
"""

from pathlib import Path
from typing import Any

import numpy as np
from formula import NETS
from torch_peers import import_torchvision
from torch_resnets import answers, with_formula

torchvision = import_torchvision()
import timm  # noqa: E402 (it imports torchvision)

golden: dict[str, Any] = {}
for name in NETS:
    ours = answers(with_formula(getattr(torchvision.models, name)()))
    theirs = answers(with_formula(timm.create_model(name)))
    apart = max(float(np.abs(ours[key] - theirs[key]).max()) for key in ours)
    print(name, "torchvision and timm differ by", apart)
    golden |= {f"{name}/{key}": value for key, value in ours.items()}
np.savez_compressed(Path(__file__).parent / "resnets.npz", **golden)
