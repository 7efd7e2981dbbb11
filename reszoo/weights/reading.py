"""Read a weight file of any format, recognised by its content."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reszoo.architecture import StrideIn
from reszoo.cards import Card
from reszoo.errors import CheckpointError
from reszoo.preprocessing import Preprocessing
from reszoo.weights import keras_h5, safetensors, torch_file
from reszoo.weights.names import Tensors, to_state_dict

# What checkpoints are called; the content decides how one is read.
SUFFIXES = (safetensors.SUFFIX, ".pth", ".pt", ".bin", ".th", ".h5")


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a weight file holds.

    Attributes:
        tensors: Under torchvision's names and in its layouts.
        card: The card, where reszoo wrote the file.
        preprocessing: What the format implies, where there is no card.
        stride_in: What the format implies; tensors do not tell.
    """

    tensors: Tensors
    card: Card | None = None
    preprocessing: Preprocessing | None = None
    stride_in: StrideIn | None = None


def read(path: str | os.PathLike[str]) -> Contents:
    """Read a `.safetensors`, a torch file or a `.h5` of keras.applications.

    Raises:
        CheckpointError: No such file, no such format, damaged, or built to do harm.
    """
    contents = _read(Path(path))
    wild = [
        k for k, tensor in contents.tensors.items() if not np.isfinite(tensor).all()
    ]
    if wild:
        raise CheckpointError(
            "Weights must be finite numbers. "
            f"{path} has others in {', '.join(wild[:5])}: "
            "the file is damaged, or the training it comes from had diverged."
        )
    return contents


def _read(file: Path) -> Contents:
    if not file.is_file():
        raise CheckpointError(f"There is no checkpoint {file}.")
    with file.open("rb") as opened:
        head = opened.read(9)
    if head.startswith(keras_h5.MAGIC):
        tensors = keras_h5.to_tensors(keras_h5.read(file), str(file))
        return Contents(
            tensors=tensors,
            preprocessing=keras_h5.preprocessing(),
            stride_in=keras_h5.STRIDE_IN,
        )
    if torch_file.looks_like_torch(file):
        return Contents(tensors=to_state_dict(torch_file.read(file), str(file)))
    # A safetensors file begins with the length of a JSON header.
    if file.suffix == safetensors.SUFFIX or head[8:9] == b"{":
        tensors, card = safetensors.read(file)
        return Contents(tensors=to_state_dict(tensors, str(file)), card=card)
    raise CheckpointError(
        f"{file} is no weight file that reszoo reads, or not a complete one: "
        f"safetensors, torch or HDF5 of keras.applications ({', '.join(SUFFIXES)})."
    )
