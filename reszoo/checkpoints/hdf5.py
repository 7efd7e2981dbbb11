"""Read `keras.applications` weight files (`.h5`) without trusting them.

Only datasets that lie wholly and uncompressed in the file itself are read: no links
out of it, no virtual or external storage, no shape larger than what is stored.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reszoo.errors import CheckpointError

MAGIC = b"\x89HDF\r\n\x1a\n"
Layers = dict[str, dict[str, NDArray[Any]]]
# Deeper than any file that Keras writes; ends cycles of hard links.
_DEEPEST = 8


def read(path: Path) -> Layers:
    """Read layer weights from a Keras 2 weight file or whole-model file.

    Args:
        path: The `.h5` file.

    Returns:
        Layer name -> kind of weight ("kernel", "gamma", ...) -> array.

    Raises:
        CheckpointError: Damaged, not such a file, or built to do harm.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            layers: Layers = {}
            for names, dataset in _datasets(file, path, ()):
                # A whole model keeps its weights one group deeper.
                names = names[1:] if names[0] == "model_weights" else names
                layer, kind = names[0], names[-1].split(":")[0]
                layers.setdefault(layer, {})[kind] = _stored(dataset, names, path)
    except CheckpointError:
        raise
    # What h5py raises on damaged files; it has no error of its own.
    except (
        OSError,
        KeyError,
        ValueError,
        RuntimeError,
        TypeError,
        AttributeError,
    ) as e:
        raise CheckpointError(f"{path} is not a complete HDF5 file ({e}).") from e
    if not layers:
        raise CheckpointError(f"{path} holds no weights of layers.")
    return layers


def _datasets(
    group: Any, path: Path, above: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Any]]:
    import h5py

    if len(above) > _DEEPEST:
        raise CheckpointError(f"{path} nests groups deeper than a weight file does.")
    for name in group:
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise CheckpointError(
                f"{path} links to another place at {'/'.join((*above, name))}. "
                "Such a file is refused; nothing of it was read."
            )
        inside = group[name]
        if isinstance(inside, h5py.Group):
            yield from _datasets(inside, path, (*above, name))
        elif above and isinstance(inside, h5py.Dataset):
            yield (*above, name), inside


def _stored(dataset: Any, names: tuple[str, ...], path: Path) -> NDArray[Any]:
    size = dataset.size or 0
    stored = dataset.id.get_storage_size()
    if (
        dataset.is_virtual
        or dataset.external
        or stored != size * dataset.dtype.itemsize
    ):
        raise CheckpointError(
            f"{path} does not hold {'/'.join(names)} itself, whole and uncompressed "
            f"({stored} bytes for shape {dataset.shape}). Such a file is refused."
        )
    if not np.issubdtype(dataset.dtype, np.floating):
        raise CheckpointError(
            f"Weights must be floating point. {path} has {'/'.join(names)} as "
            f"{dataset.dtype}."
        )
    # What does not fit becomes infinite, and infinite weights are refused later.
    with np.errstate(over="ignore"):
        return np.asarray(dataset[()], np.float32)
