"""From whatever a file holds to tensors under torchvision's names."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from reszoo.checkpoints.names import COUNTER, Tensors
from reszoo.errors import CheckpointError

# Where training scripts keep the weights, in timm's order: averaged ones first.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "module", "net")
# What wrappers of modules put before every name; they nest.
_PREFIXES = ("module.", "model.", "_orig_mod.")
_HEADS = {"linear.": "fc.", "head.fc.": "fc."}
# torch's AveragedModel counts its updates beside the weights.
_BOOKKEEPING = ("n_averaged",)


def to_state_dict(tree: Any, source: str) -> Tensors:
    """Find the weights in what a file holds, and name them as torchvision does.

    Takes off wrappers (`state_dict`, `model_ema`, ...), prefixes (`module.`, ...)
    and other names of the classifier (`linear`, `head.fc`). Half precision
    becomes float32, which is exact.

    Args:
        tree: Nested containers with arrays, as a reader returned them.
        source: The file, for messages.

    Raises:
        CheckpointError: There are no weights in it, or two under one name.
    """
    found = _unwrapped(tree)
    if found is None:
        raise CheckpointError(
            f"{source} holds no weights of a net: a dictionary of named tensors was "
            f"expected, alone or under {', '.join(_WRAPPERS)}."
        )
    tensors: Tensors = {}
    for name, tensor in found.items():
        plain = _plain_name(name)
        if plain in _BOOKKEEPING:
            continue
        if plain in tensors:
            raise CheckpointError(f"{source} holds {plain} twice, also as {name}.")
        tensors[plain] = _single(plain, tensor, source)
    return tensors


def _unwrapped(tree: Any) -> Mapping[str, Any] | None:
    if not isinstance(tree, Mapping):
        return None
    for key in _WRAPPERS:
        if isinstance(tree.get(key), Mapping):
            inside = _unwrapped(tree[key])
            if inside is not None:
                return inside
    weights = {k: v for k, v in tree.items() if isinstance(v, np.ndarray)}
    named = weights and all(isinstance(name, str) for name in tree)
    return weights if named and len(weights) == len(tree) else None


def _plain_name(name: str) -> str:
    shortened = next((name[len(p) :] for p in _PREFIXES if name.startswith(p)), None)
    if shortened is not None:
        return _plain_name(shortened)
    for other, ours in _HEADS.items():
        if name.startswith(other):
            return ours + name.removeprefix(other)
    return name


def _single(name: str, tensor: Any, source: str) -> Any:
    if name.endswith(COUNTER):
        return np.asarray(tensor, np.int64)
    if not np.issubdtype(tensor.dtype, np.floating):
        raise CheckpointError(
            f"Weights must be floating point. {source} has {name} as {tensor.dtype}."
        )
    # What does not fit becomes infinite, and infinite weights are refused later.
    with np.errstate(over="ignore"):
        return tensor.astype(np.float32, copy=False)
