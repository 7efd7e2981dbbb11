"""Does frozen batch normalisation stay bit for bit, in every model?

Run: python benchmarks/freezing.py

One training step of each of the five ImageNet ResNets (32 pixels, random weights and
statistics) for each setting of `freeze`, with `freeze_bn`; then every tensor of every
batch normalisation is compared. `tests/test_freezing.py` does it for the shallow ones.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from test_freezing import NETS, is_norm, moved

_SETTINGS = (None, "stages:0", "stages:2", "stages:4", "backbone")


def main() -> None:
    """Print a line for each model and setting; exit 1 if anything frozen moved."""
    wrong = 0
    for name in NETS:
        for setting in _SETTINGS:
            changed = moved(name, freeze=setting, freeze_bn=True)
            norms = sum(map(is_norm, changed))
            wrong += norms
            print(
                f"{name}  freeze={setting}: {norms} tensors of batch normalisation "
                f"moved, {len(changed)} tensors learned",
                flush=True,
            )
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
