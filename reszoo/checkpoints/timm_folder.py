"""timm's folders: `model.safetensors` beside `config.json`."""

import json
from pathlib import Path
from typing import Any

from reszoo.cards import Card
from reszoo.checkpoints import safetensors
from reszoo.checkpoints.names import Tensors
from reszoo.errors import CheckpointError, ReszooError, UsageError
from reszoo.files import write_json
from reszoo.preprocessing import Preprocessing
from reszoo.specs import SPECS

WEIGHTS_FILE = "model.safetensors"
# What older repositories have instead.
PICKLED_FILE = "pytorch_model.bin"
CONFIG_FILE = "config.json"


def write(folder: Path, tensors: Tensors, card: Card) -> None:
    """Write a folder that `timm.create_model` opens.

    The card goes into the weight file as well, so that reszoo loses nothing.

    Raises:
        UsageError: timm has no such net.
    """
    built, spec = card.architecture, SPECS[card.architecture.spec]
    if (built.shortcut, built.stride_in, spec.stem) != (
        "projection",
        "3x3",
        "imagenet",
    ):
        raise UsageError(
            f"timm has no {built.spec} with shortcut={built.shortcut!r} and "
            f"stride_in={built.stride_in!r}. Save to a .safetensors file instead."
        )
    safetensors.write(folder / WEIGHTS_FILE, tensors, card)
    write_json(folder / CONFIG_FILE, _config(card, tensors))


def read_config(path: Path) -> tuple[Preprocessing, tuple[str, ...] | None]:
    """Read how to show images and what the classes are called.

    Args:
        path: A `config.json` as timm writes it.

    Returns:
        The preprocessing at the size trained for (timm's default for evaluation),
        and the labels where the file has them.

    Raises:
        CheckpointError: The file is damaged or describes something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        config = content["pretrained_cfg"]
        _, height, width = config["input_size"]
        if height != width:
            raise ValueError(f"input of {height}x{width} is not square")
        record = Preprocessing(
            train_size=height,
            eval_size=height,
            crop_pct=config["crop_pct"],
            interpolation=config["interpolation"],
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
        )
        labels = content.get("label_names") or config.get("label_names")
        return record, tuple(map(str, labels)) if labels else None
    except (OSError, ValueError, KeyError, TypeError, ReszooError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{path} is no config of timm ({reason}).") from error


def _config(card: Card, tensors: Tensors) -> dict[str, Any]:
    record = card.preprocessing
    channels = card.architecture.input_shape[2]
    features = 4 * 512 if SPECS[card.architecture.spec].block == "bottleneck" else 512
    content: dict[str, Any] = {
        "architecture": card.architecture.spec,
        "num_classes": len(tensors.get("fc.bias", ())),
        "num_features": features,
        "global_pool": "avg",
        "pretrained_cfg": {
            "input_size": [channels, record.eval_size, record.eval_size],
            "fixed_input_size": False,
            "interpolation": record.interpolation,
            "crop_pct": record.crop_pct,
            "crop_mode": "center",
            "mean": list(record.mean),
            "std": list(record.std),
            "num_classes": len(tensors.get("fc.bias", ())),
            "pool_size": [-(-record.eval_size // 32)] * 2,
            "first_conv": "conv1",
            "classifier": "fc",
            "license": card.provenance.get("licence"),
        },
    }
    if card.labels:
        content["label_names"] = list(card.labels)
    return content
