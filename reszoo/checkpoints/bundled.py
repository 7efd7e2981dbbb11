"""Weights that come inside the package: small nets, trained here, there without a net.

Their cards tell the data, the recipe, the seed, the command and the measured accuracy.
"""

from pathlib import Path
from typing import Any

from reszoo.checkpoints import safetensors
from reszoo.errors import CheckpointError, UsageError

_FOLDER = Path(__file__).parents[1] / "bundled"
# Name of the weights -> net -> file. Trained on CIFAR-10 as strongly compressed JPEGs:
# on the original pixels they answer differently than nets trained on those.
BUNDLED: dict[str, dict[str, Path]] = {
    "cifar10": {
        "resnet20": _FOLDER / "resnet20-cifar10.safetensors",
        "resnet32": _FOLDER / "resnet32-cifar10.safetensors",
    },
}


def find_bundled(name: str, net: str | None) -> Path:
    """Return the file of bundled weights.

    Args:
        name: A key of `BUNDLED`.
        net: The net they are wanted for; may be None where there is one only.

    Raises:
        UsageError: The package has none for this net.
    """
    files = BUNDLED[name]
    if net is None and len(files) == 1:
        return next(iter(files.values()))
    if net not in files:
        raise UsageError(
            f"weights={name!r} comes with reszoo for {', '.join(files)}. Received: "
            f"{net!r}; take one of these, or train the net."
        )
    return files[net]


def bundled_rows() -> list[dict[str, Any]]:
    """Return the bundled weights as `published.table_rows` returns the others.

    The accuracies are those in the files' own cards.
    """
    return [
        _row(name, net, path)
        for name, files in BUNDLED.items()
        for net, path in files.items()
    ]


def _row(name: str, net: str, path: Path) -> dict[str, Any]:
    card = safetensors.read(path)[1]
    if card is None:
        raise CheckpointError(f"{path} holds no card; install reszoo again.")
    measured = {metric.name: round(100 * metric.value, 2) for metric in card.metrics}
    return {
        "net": net,
        "weights": name,
        "default": False,
        "top1": measured["top1"],
        "top5": measured["top5"],
        "at": card.preprocessing.eval_size,
        "licence": card.provenance["licence"],
        "commercial": True,
        "address": None,
    }
