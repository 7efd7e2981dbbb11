"""Read `keras.applications` weights from HDF5 files or models in memory."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reszoo.architecture import FINAL_NORM, StrideIn
from reszoo.errors import CheckpointError
from reszoo.files import check_regular
from reszoo.preprocessing import Preprocessing
from reszoo.weights.names import Tensors, to_float32

# Layer name -> kind of weight ("kernel", "gamma", ...) -> array.
Layers = Mapping[str, Mapping[str, NDArray[Any]]]
MAGIC = b"\x89HDF\r\n\x1a\n"
# Deeper than any file that Keras writes.
_MAX_DEPTH = 8
# Batch norm epsilon of `keras.applications` and of reszoo.
_KERAS_EPSILON = 1.001e-5
_RESZOO_EPSILON = 1e-5
# `preprocess_input(mode="caffe")`: BGR means, subtracted from 0..255; no scaling.
_CAFFE_BGR = (103.939, 116.779, 123.68)
_NAME = re.compile(r"conv([2-5])_block(\d+)_([0-3]|preact)_(conv|bn)")
# The batch normalization at the end of a V2 model.
_LAST_NORM = "post_bn"
_FIXED = {
    "conv1_conv": "conv1", "conv1_bn": "bn1", _LAST_NORM: FINAL_NORM,
    "predictions": "fc",
}  # fmt: skip
_DAMAGED = (
    OSError, KeyError, ValueError, RuntimeError, TypeError, AttributeError,
)  # fmt: skip


def read(path: Path) -> Layers:
    """Read layer weights from a Keras 2 weight file or whole-model file.

    A CheckpointError for a damaged file, another one, or one with links to others.
    """
    import h5py

    try:
        # Each object is read once, and all of them together hold no more bytes than
        # the file, however its links and addresses are made.
        left = check_regular(path).st_size
        with h5py.File(path, "r") as file:
            layers: dict[str, dict[str, NDArray[Any]]] = {}
            for names, dataset in _datasets(file, path):
                left -= dataset.id.get_storage_size()
                if left < 0:
                    raise CheckpointError(f"{path} holds more weights than bytes.")
                # A whole model keeps its weights one group deeper.
                names = names[1:] if names[0] == "model_weights" else names
                layer, kind = names[0], names[-1].split(":")[0]
                layers.setdefault(layer, {})[kind] = _stored(dataset, names, path)
    # h5py has no error of its own for damaged files.
    except _DAMAGED as error:
        raise CheckpointError(
            f"{path} is not a complete HDF5 file ({error})."
        ) from error
    if not layers:
        raise CheckpointError(f"{path} holds no weights of layers.")
    return layers


def _datasets(file: Any, path: Path) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the names that lead to each dataset in a group, and the dataset."""
    import h5py

    seen = {h5py.h5o.get_info(file.id).addr}
    waiting: list[tuple[tuple[str, ...], Any]] = [((), file)]
    while waiting:
        above, group = waiting.pop()
        if len(above) > _MAX_DEPTH:
            raise CheckpointError(
                f"{path} nests groups deeper than a weight file does."
            )
        for name in group:
            names = (*above, name)
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise CheckpointError(
                    f"{path} has a link to another file or group, {'/'.join(names)}. "
                    "Such a file is refused."
                )
            inside = group[name]
            address = h5py.h5o.get_info(inside.id).addr
            if address in seen:
                twice = (
                    "nests groups deeper than a weight file does, in a circle"
                    if isinstance(inside, h5py.Group)
                    else "has one dataset under several names"
                )
                raise CheckpointError(f"{path} {twice}: {'/'.join(names)}.")
            seen.add(address)
            if isinstance(inside, h5py.Group):
                waiting.append((names, inside))
            elif above and isinstance(inside, h5py.Dataset):
                yield names, inside


def _stored(dataset: Any, names: tuple[str, ...], path: Path) -> NDArray[Any]:
    size = dataset.size or 0
    stored = dataset.id.get_storage_size()
    whole = stored == size * dataset.dtype.itemsize
    if dataset.is_virtual or dataset.external or not whole:
        raise CheckpointError(
            f"{path} must contain {'/'.join(names)} itself, complete and uncompressed. "
            f"Received: {stored} bytes for shape {dataset.shape}. The file is refused."
        )
    return to_float32(np.asarray(dataset[()]), "/".join(names), str(path))


def is_v2(layers: Iterable[str]) -> bool:
    """Tell by its layers' names whether a ResNet of keras.applications is a V2."""
    return _LAST_NORM in layers


def stride_in(layers: Layers) -> StrideIn:
    """Return which convolution of a bottleneck has the stride."""
    return "3x3" if is_v2(layers) else "1x1"


def preprocessing(*, v2: bool = False) -> Preprocessing:
    """Return Caffe's preprocessing, or for V2 models pixels scaled to -1..1.

    keras.io resizes to 224 without a crop; the accuracies that it states were measured
    with the usual 256/224 centre crop, as here.
    """
    mean = tuple(mean / 255 for mean in reversed(_CAFFE_BGR))
    return Preprocessing(
        train_size=224,
        eval_size=224,
        crop_pct=0.875,
        interpolation="bilinear",
        mean=(0.5,) * 3 if v2 else mean,
        std=(0.5 if v2 else 1 / 255,) * 3,
    )


def to_tensors(layers: Layers, source: str) -> Tensors:
    """Convert the weights of a `keras.applications` ResNet, by layer.

    Returns tensors under torchvision's names and in its layouts, for RGB input. A
    CheckpointError if a layer is not of such a model, or a weight is missing.
    """
    tensors: Tensors = {}
    v2 = is_v2(layers)
    for layer, weights in layers.items():
        name = _torch_name(layer, source, v2=v2)
        try:
            tensors.update(_converted(name, weights, layers, layer, v2=v2))
        except KeyError as error:
            raise CheckpointError(
                f"{source} lacks {error} of layer {layer}."
            ) from error
    # V1 models of keras.applications take BGR, reszoo RGB.
    first = tensors.get("conv1.weight")
    if first is not None and first.ndim == 4 and not v2:
        tensors["conv1.weight"] = np.ascontiguousarray(first[:, ::-1])
    return tensors


def _converted(
    name: str,
    weights: Mapping[str, NDArray[Any]],
    layers: Layers,
    layer: str,
    *,
    v2: bool,
) -> Tensors:
    if name == "fc":
        kernel = np.ascontiguousarray(weights["kernel"].T)
        return {"fc.weight": kernel, "fc.bias": weights["bias"]}
    if "gamma" not in weights:
        kernel = weights["kernel"].transpose(3, 2, 0, 1)
        found = {f"{name}.weight": np.ascontiguousarray(kernel)}
        # In V2 models only convolutions that no normalization follows have one.
        kept = v2 and "bias" in weights
        return found | ({f"{name}.bias": weights["bias"]} if kept else {})
    mean, variance = weights["moving_mean"], weights["moving_variance"]
    if not v2:
        # The bias of the convolution moves into the mean, the difference of the
        # epsilons into the variance.
        bias = layers[layer.replace("_bn", "_conv")]["bias"].astype(np.float64)
        shifted = variance.astype(np.float64) + (_KERAS_EPSILON - _RESZOO_EPSILON)
        mean, variance = (x.astype(np.float32) for x in (mean - bias, shifted))
    return {
        f"{name}.weight": weights["gamma"],
        f"{name}.bias": weights["beta"],
        f"{name}.running_mean": mean,
        f"{name}.running_var": variance,
    }


def _torch_name(layer: str, source: str, *, v2: bool) -> str:
    if layer in _FIXED:
        return _FIXED[layer]
    match = _NAME.fullmatch(layer)
    if match is None:
        raise CheckpointError(
            f"{source} is not a ResNet of keras.applications: it has a layer {layer!r}."
        )
    stage, block, place, kind = match.groups()
    prefix = f"layer{int(stage) - 1}.{int(block) - 1}"
    if place == "0":
        return f"{prefix}.downsample.{0 if kind == 'conv' else 1}"
    # The first normalization of a V2 block stands before the first convolution.
    number = 1 if place == "preact" else int(place) + (v2 and kind == "bn")
    return f"{prefix}.{kind}{number}"
