"""Read a weight file of any format, recognised by its content."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from reszoo.cards import Layers
from reszoo.errors import CheckpointError
from reszoo.files import open_regular
from reszoo.weights import keras_h5, safetensors, torch_file
from reszoo.weights.published import imagenet_labels
from reszoo.weights.schemes import Contents, read_state_dict

# Suffixes of checkpoints; how a file is read depends on its content.
SUFFIXES = (
    safetensors.SUFFIX, ".pth", ".pt", ".bin", ".th", ".ckpt", ".h5", keras_h5.SUFFIX
)  # fmt: skip


def read(path: str | os.PathLike[str]) -> Contents:
    """Read a `.safetensors`, a torch file or a file of Keras.

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
    if keras_h5.is_keras(file):
        layers, config = keras_h5.read_model(file)
        return keras_applications_contents(layers, str(file), config)
    if torch_file.looks_like_torch(file):
        return replace(read_state_dict(torch_file.read(file), str(file)), in_order=True)
    # A safetensors file begins with the length of a JSON header.
    if file.suffix == safetensors.SUFFIX or head[8:9] == b"{":
        tensors, card = safetensors.read(file)
        return replace(read_state_dict(tensors, str(file)), card=card)
    raise CheckpointError(
        "A checkpoint is a safetensors file, a torch file or a file of Keras "
        f"({', '.join(SUFFIXES)}). Received: {file}, which is of "
        "another format or incomplete."
    )


def keras_applications_contents(
    layers: Layers, source: str, config: Any = None
) -> Contents:
    """Return the weights of a Keras model that reszoo or keras.applications built.

    Args:
        layers: Its weights.
        source: Where they come from, for messages.
        config: Of the model; None if unknown.

    A CheckpointError if they are of no ResNet.
    """
    card, preprocessing = keras_h5.find_card(config, layers, source)
    if keras_h5.is_ours(layers):
        tensors = keras_h5.own_tensors(layers)
        return Contents(tensors=tensors, card=card, preprocessing=preprocessing)
    return Contents(
        tensors=keras_h5.to_tensors(layers, source),
        preprocessing=keras_h5.preprocessing(v2=keras_h5.is_v2(layers)),
        labels=imagenet_labels(),
        stride_in=keras_h5.stride_in(layers),
    )
