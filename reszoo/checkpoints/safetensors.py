"""safetensors files, reszoo's own with the card in their metadata.

The file holds named arrays and one JSON text, no code. torchvision and timm load
it with `strict=True`.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from reszoo.cards import Card
from reszoo.checkpoints.names import Tensors
from reszoo.errors import CheckpointError
from reszoo.files import atomic_file

SUFFIX = ".safetensors"
# A single key: the library writes several in a random order.
_KEY = "reszoo_card"
_DTYPES = {
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "F64": "<f8",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}


def write(
    path: str | os.PathLike[str], tensors: Tensors, card: Card | None = None
) -> None:
    """Write tensors, and a card if there is one, to `path` in one step."""
    metadata = None if card is None else {_KEY: card.to_text()}
    with atomic_file(path) as temporary:
        # Not save_file: it reports a full disk as an error of the format.
        temporary.write_bytes(save(tensors, metadata=metadata))


def read(path: str | os.PathLike[str]) -> tuple[Tensors, Card | None]:
    """Read the tensors, and the card if reszoo wrote the file.

    Returns:
        Views of the file, which is mapped and not copied: reading takes no more
        memory than the file is long.

    Raises:
        CheckpointError: No such file, not safetensors, or damaged.
    """
    file = Path(path)
    # The library checks the header: sizes, offsets, overlaps, gaps.
    with _opened(file) as reader:
        text = (reader.metadata() or {}).get(_KEY)
    try:
        tensors = _views(file)
    # Where json and the library read a damaged header differently.
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} has a damaged header ({error}).") from error
    return tensors, None if text is None else Card.from_text(text)


def _views(file: Path) -> Tensors:
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    header.pop("__metadata__", None)
    if file.stat().st_size == 8 + length:
        return {n: np.zeros(info["shape"], np.float32) for n, info in header.items()}
    data = np.memmap(file, np.uint8, "r", offset=8 + length)
    return {name: _view(data, info, name, file) for name, info in header.items()}


def _view(data: Any, info: dict[str, Any], name: str, file: Path) -> NDArray[Any]:
    if info["dtype"] not in _DTYPES:
        raise CheckpointError(
            f"{file} has {name} as {info['dtype']}. Known: {', '.join(_DTYPES)}."
        )
    start, end = info["data_offsets"]
    raw = np.asarray(data[start:end])
    if info["dtype"] == "BF16":
        # No type of NumPy's own: the upper half of a float32, exactly.
        wide = raw.view("<u2").astype(np.uint32) << 16
        return wide.view(np.float32).reshape(info["shape"])
    return raw.view(_DTYPES[info["dtype"]]).reshape(info["shape"])


def _opened(file: Path) -> safe_open:
    if not file.is_file():
        raise CheckpointError(f"There is no checkpoint {file}.")
    try:
        return safe_open(file, framework="numpy")
    except SafetensorError as error:
        raise CheckpointError(
            f"{file} is not a complete safetensors file ({error}). Copy it again."
        ) from error
