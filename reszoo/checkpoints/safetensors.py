"""reszoo's own checkpoint: safetensors with the card in its metadata.

The file holds named arrays and one JSON text, no code. torchvision and timm load
it with `strict=True`.
"""

import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from reszoo.cards import Card
from reszoo.checkpoints.names import Tensors
from reszoo.errors import CheckpointError
from reszoo.files import atomic_file

SUFFIX = ".safetensors"
# A single key: the library writes several in a random order.
_KEY = "reszoo_card"


def write(path: str | os.PathLike[str], tensors: Tensors, card: Card) -> None:
    """Write tensors and card to `path` in one step."""
    with atomic_file(path) as temporary:
        # Not save_file: it reports a full disk as an error of the format.
        temporary.write_bytes(save(tensors, metadata={_KEY: card.to_text()}))


def read(path: str | os.PathLike[str]) -> tuple[Tensors, Card]:
    """Read the tensors and the card of a checkpoint.

    Raises:
        CheckpointError: No such file, not safetensors, damaged, or without card.
    """
    file = Path(path)
    card = read_card(file)
    with _opened(file) as reader:
        return {name: reader.get_tensor(name) for name in reader.keys()}, card  # noqa: SIM118


def read_card(path: str | os.PathLike[str]) -> Card:
    """Read the card of a checkpoint without its weights (see `read`)."""
    with _opened(Path(path)) as reader:
        text = (reader.metadata() or {}).get(_KEY)
    if text is None:
        raise CheckpointError(
            f"{path} has no reszoo card, so its net and labels are unknown. "
            "Only checkpoints that reszoo wrote can be opened."
        )
    return Card.from_text(text)


def _opened(file: Path) -> safe_open:
    if not file.is_file():
        raise CheckpointError(f"There is no checkpoint {file}.")
    try:
        return safe_open(file, framework="numpy")
    except SafetensorError as error:
        raise CheckpointError(
            f"{file} is not a complete safetensors file ({error}). Copy it again."
        ) from error
