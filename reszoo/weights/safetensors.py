"""Read and write safetensors files and timm's folders."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reszoo import files
from reszoo.architecture import convolutions
from reszoo.cards import Card
from reszoo.errors import MALFORMED, CheckpointError, UsageError
from reszoo.files import StrPath
from reszoo.specs import SPECS
from reszoo.weights.configs import CROP_MODES
from reszoo.weights.names import Tensors
from reszoo.weights.published import published_names

SUFFIX = ".safetensors"
# Files of a timm folder or repository; old ones have a pickled file instead.
WEIGHTS_FILE = "model.safetensors"
PICKLED_FILE = "pytorch_model.bin"
CONFIG_FILE = "config.json"
# A single key: the library writes several in a random order.
_KEY = "reszoo_card"
_DTYPES = {
    "F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8", "I64": "<i8",
    "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?",
}  # fmt: skip


def write(path: StrPath, tensors: Tensors, card: Card | None = None) -> None:
    """Write tensors, and a card if there is one, to `path` in one step."""
    from safetensors.numpy import save

    metadata = None if card is None else {_KEY: card.to_text()}
    with files.atomic_file(path) as temporary:
        # save_file would report a full disk as an error of the format.
        temporary.write_bytes(save(tensors, metadata=metadata))


def read(path: StrPath) -> tuple[Tensors, Card | None]:
    """Read tensors, and the card if reszoo wrote the file, or raise CheckpointError.

    They are views of the memory-mapped file: reading copies nothing (but bfloat16,
    which becomes float32 exactly).
    """
    from safetensors import SafetensorError, safe_open

    file = Path(path)
    check_checkpoint(file)
    try:
        header, start = _header(file)
        header.pop("__metadata__", None)
        # The library checks the header: sizes, offsets, overlaps, gaps.
        with safe_open(file, framework="numpy") as reader:
            text = (reader.metadata() or {}).get(_KEY)
        # An empty part of a file cannot be mapped.
        data: Any = np.zeros(0, np.uint8)
        if file.stat().st_size > start:
            data = np.memmap(file, np.uint8, "r", offset=start)
        tensors = {name: _view(data, x, name, file) for name, x in header.items()}
    except SafetensorError as error:
        raise CheckpointError(
            f"{file} is not a complete safetensors file ({error}). Copy it again."
        ) from error
    # json and the library may read a damaged header differently.
    except MALFORMED as error:
        raise CheckpointError(f"{file} has a damaged header ({error}).") from error
    return tensors, None if text is None else Card.from_text(text)


def check_checkpoint(file: Path) -> None:
    """Refuse what is missing, a folder, a pipe or a device.

    A CheckpointError if it is no regular file.
    """
    try:
        files.check_regular(file)
    except OSError as error:
        if not os.path.lexists(file):
            raise CheckpointError(f"There is no checkpoint {file}.") from error
        raise CheckpointError(
            f"A checkpoint must be a regular file. Received: {file} ({error.strerror})."
        ) from error


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """Return the header of a file and where its data begins."""
    with files.open_regular(file) as opened:
        length = int.from_bytes(opened.read(8), "little")
        if 8 + length > os.fstat(opened.fileno()).st_size:
            raise CheckpointError(
                f"{file} is not a complete safetensors file (its header is longer than "
                "the file). Copy it again."
            )
        if length > files.JSON_BYTES:
            raise ValueError(f"of {length:,} bytes, more than {files.JSON_BYTES:,}")
        header = files.parse_json(opened.read(length))
    if not isinstance(header, dict):
        raise ValueError("it is no JSON object")
    return header, 8 + length


def _view(data: Any, info: dict[str, Any], name: str, file: Path) -> NDArray[Any]:
    if info["dtype"] not in _DTYPES:
        raise CheckpointError(
            f"{file} has {name} as {info['dtype']}. Known: {', '.join(_DTYPES)}."
        )
    start, end = info["data_offsets"]
    raw = np.asarray(data[start:end])
    if info["dtype"] == "BF16":
        # NumPy has no bfloat16; it is the upper half of a float32.
        wide = raw.view("<u2").astype(np.uint32) << 16
        return wide.view(np.float32).reshape(info["shape"])
    return raw.view(_DTYPES[info["dtype"]]).reshape(info["shape"])


def write_timm_folder(folder: Path, tensors: Tensors, card: Card) -> None:
    """Write a folder that `timm.create_model` opens.

    The weight file also contains the card, for reszoo. A UsageError if timm has no such
    model.
    """
    built, row = card.resnet, SPECS.get(card.architecture.name)
    # timm has models of the names under which it publishes weights.
    named = any(name.startswith("timm/") for name in published_names(built.name))
    usual = row == built.spec and built.shortcut == built.spec.shortcut
    if not (named and usual and built.stride_in == "3x3" and not built.output_stride):
        raise UsageError(
            f"timm has no {built.name} that by default has shortcut="
            f"{built.shortcut!r}, stride_in={built.stride_in!r} and output_stride="
            f"{built.output_stride!r}. Save to a .safetensors file instead."
        )
    write(folder / WEIGHTS_FILE, tensors, card)
    files.write_json(folder / CONFIG_FILE, _config(card, tensors))


def _config(card: Card, tensors: Tensors) -> dict[str, Any]:
    preprocessing, built = card.preprocessing, card.resnet
    listed, reduction = convolutions(built), built.reduction
    sides = preprocessing.eval_sides
    classes = len(tensors.get("fc.bias", ()))
    content: dict[str, Any] = {
        "architecture": built.name, "num_classes": classes,
        "num_features": listed[-1].filters, "global_pool": "avg",
        "pretrained_cfg": {
            "input_size": [listed[0].in_channels, *sides], "fixed_input_size": False,
            "interpolation": preprocessing.interpolation,
            "crop_pct": preprocessing.crop_pct,
            "crop_mode": CROP_MODES[preprocessing.resize],
            "mean": list(preprocessing.mean), "std": list(preprocessing.std),
            "num_classes": classes,
            "pool_size": [-(-side // reduction) for side in sides],
            "first_conv": listed[0].name, "classifier": "fc",
            "license": card.provenance.get("licence"),
        },
    }  # fmt: skip
    if card.labels:
        content["label_names"] = list(card.labels)
    return content
