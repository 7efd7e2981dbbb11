"""Read a weight file of any format, recognised by its content."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reszoo.architecture import StrideIn
from reszoo.cards import Card
from reszoo.errors import CheckpointError
from reszoo.files import open_regular
from reszoo.preprocessing import Preprocessing
from reszoo.weights import keras_h5, safetensors, torch_file
from reszoo.weights.names import Tensors, to_state_dict

# Suffixes of checkpoints; how a file is read depends on its content.
SUFFIXES = (safetensors.SUFFIX, ".pth", ".pt", ".bin", ".th", ".h5")


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The contents of a weight file."""

    tensors: Tensors  # under torchvision's names and in its layouts
    card: Card | None = None  # if reszoo wrote the file
    preprocessing: Preprocessing | None = None  # as the format implies, without a card
    stride_in: StrideIn | None = None  # as the format implies; tensors are the same


def read(path: str | os.PathLike[str]) -> Contents:
    """Read a `.safetensors`, a torch file or a `.h5` of keras.applications.

    A CheckpointError for no such file, an unknown format, a damaged or malicious one,
    or weights that are NaN or infinite.
    """
    contents = _read(Path(path))
    tensors = contents.tensors.items()
    wrong = [name for name, tensor in tensors if not np.isfinite(tensor).all()]
    if wrong:
        raise CheckpointError(
            f"Weights must be finite. {path} has NaN or infinity in "
            f"{', '.join(wrong[:5])}: the file is damaged, or its training diverged."
        )
    return contents


def _read(file: Path) -> Contents:
    safetensors.check_checkpoint(file)
    with open_regular(file) as opened:
        head = opened.read(9)
    if head.startswith(keras_h5.MAGIC):
        return keras_applications_contents(keras_h5.read(file), str(file))
    if torch_file.looks_like_torch(file):
        return Contents(tensors=to_state_dict(torch_file.read(file), str(file)))
    # A safetensors file begins with the length of a JSON header.
    if file.suffix == safetensors.SUFFIX or head[8:9] == b"{":
        tensors, card = safetensors.read(file)
        return Contents(tensors=to_state_dict(tensors, str(file)), card=card)
    raise CheckpointError(
        "A checkpoint is a safetensors file, a torch file or an HDF5 file of "
        f"keras.applications ({', '.join(SUFFIXES)}). Received: {file}, which is of "
        "another format or incomplete."
    )


def keras_applications_contents(layers: keras_h5.Layers, source: str) -> Contents:
    """Return the weights of layers as a file of keras.applications holds them.

    A CheckpointError if they are of no ResNet.
    """
    return Contents(
        tensors=keras_h5.to_tensors(layers, source),
        preprocessing=keras_h5.preprocessing(v2=keras_h5.is_v2(layers)),
        stride_in=keras_h5.stride_in(layers),
    )
