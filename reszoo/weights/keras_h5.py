"""Read the weights of ResNets from Keras' files or models in memory.

Whole-model files (`.keras`, `.h5`) describe their layers; `.weights.h5` files and those
that `keras.applications` downloads hold the weights alone.
"""

import io
import re
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reszoo.architecture import FINAL_NORM, NORM_TENSORS
from reszoo.archives import open_archive, read_member
from reszoo.cards import AttachedCard, Card, Layers, describe_structure
from reszoo.errors import CheckpointError, summarized
from reszoo.files import JSON_BYTES, check_regular, parse_json
from reszoo.preprocessing import Preprocessing
from reszoo.weights.names import TORCH_NAMES, Tensors, to_float32, to_torch

Weights = Mapping[str, NDArray[Any]]
Described = list[tuple[str, str, Mapping[str, Any]]]
MAGIC = b"\x89HDF\r\n\x1a\n"
SUFFIX = ".keras"
# Members of a `.keras` file.
_CONFIG, _WEIGHTS = "config.json", "model.weights.h5"
# In an HDF5 file: attributes that are read, and a collection of texts with its size.
_TEXTS = re.compile(rb"model_config\0"), re.compile(rb"name\0")
_HEAP = re.compile(rb"GCOL\x01...(.{8})", re.DOTALL)
# Deeper than any file that Keras writes.
_MAX_DEPTH = 12
# Batch norm epsilon of `keras.applications` and of reszoo.
_KERAS_EPSILON, _RESZOO_EPSILON = 1.001e-5, 1e-5
# `preprocess_input(mode="caffe")`: BGR means, subtracted from 0..255; no scaling.
_CAFFE_BGR = (103.939, 116.779, 123.68)
_NAME = re.compile(r"conv([2-5])_block(\d+)_([0-3]|preact)_(conv|bn)")
# The batch normalization at the end of a V2 model.
_LAST_NORM = "post_bn"
_FIXED = {
    "conv1_conv": "conv1", "conv1_bn": "bn1", _LAST_NORM: FINAL_NORM, "fc": "fc"
}  # fmt: skip
_OURS = re.compile(r"(conv1|bn1|norm|fc|conv1\.\d|layer\d+\.\d+\..+)")
# What may stand in a file beside the layers of a ResNet without changing its logits.
_PASSIVE = (
    "Activation", "Add", "AveragePooling2D", "BatchNormalization", "Conv2D", "Dense",
    "Dropout", "Flatten", "GlobalAveragePooling2D", "IdentityShortcut", "InputLayer",
    "KeyedDropout", "MaxPooling2D", "ReLU", "Softmax", "StochasticDepth",
    "ZeroPadding2D",
)  # fmt: skip
_AS_IT_IS = "Export it as it is, loaded by Keras: reszoo.export(model, folder)."
_DAMAGED = (
    OSError, LookupError, ValueError, RuntimeError, TypeError, AttributeError,
    struct.error, zipfile.BadZipFile,
)  # fmt: skip


def is_keras(path: Path) -> bool:
    """Tell by its content whether a file is one of Keras."""
    if not _is_hdf5(path):
        with suppress(*_DAMAGED), open_archive(path) as archive:
            return {_CONFIG, _WEIGHTS} <= set(archive.namelist())
        return False
    return True


def read_model(path: Path) -> tuple[Layers, Any]:
    """Read the weights of layers, without the optimizer's, and the model's config.

    The config is as Keras wrote it; None in a file of weights alone. A CheckpointError
    for a damaged file, another one, or one with links to others.
    """
    layers: dict[str, dict[str, NDArray[Any]]] = {}
    try:
        # Each object is read once, and all of them together hold no more bytes than
        # the file, however its links and addresses are made.
        left = check_regular(path).st_size
        with _opened(path) as (file, config):
            for names, dataset in _datasets(file, path):
                left -= dataset.id.get_storage_size()
                if left < 0:
                    raise CheckpointError(f"{path} holds more weights than bytes.")
                # The states of dropout are no weights.
                state = any(name.startswith("seed_generator") for name in names)
                if names[0] in ("optimizer", "optimizer_weights") or state:
                    continue
                layer, kind = names[-2], names[-1].split(":")[0]
                if layer == "vars":
                    layer = _text(dataset.parent, "name")
                kinds = layers.setdefault(layer, {})
                if kind in kinds:
                    raise CheckpointError(f"{path} has two layers named {layer!r}.")
                kinds[kind] = _stored(dataset, names, path)
        numbered = {name: _with_kinds(weights) for name, weights in layers.items()}
    # h5py has no error of its own for damaged files.
    except _DAMAGED as error:
        text = f"{path} is not a complete HDF5 file ({error})."
        raise CheckpointError(text) from error
    if not layers:
        raise CheckpointError(f"{path} holds no weights of layers.")
    return numbered, config


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """Open the HDF5 file in a file of Keras; yield it with the model's config."""
    import h5py

    if _is_hdf5(path):
        _check_texts(np.memmap(path, np.uint8, "r"))
        with h5py.File(path, "r") as file:
            known = "model_config" in file.attrs
            yield file, parse_json(_text(file, "model_config")) if known else None
        return
    with open_archive(path) as archive:
        config = parse_json(read_member(archive, _CONFIG, JSON_BYTES))
        content = read_member(archive, _WEIGHTS, path.stat().st_size)
    _check_texts(content)
    with h5py.File(io.BytesIO(content), "r") as file:
        yield file, config


def _check_texts(content: Any) -> None:
    """Refuse damaged texts: libhdf5 allocates their length, and may search forever."""
    for match in chain.from_iterable(each.finditer(content) for each in _TEXTS):
        at = match.start()
        for layout, versions in (("<BBHHH", (1, 2)), ("<BBHHHx", (3,))):
            head = bytes(content[max(0, at - struct.calcsize(layout)) : at])
            version, _, *sizes = struct.unpack(layout, head)
            if version in versions and sizes[0] == len(match[0]):
                sizes = [each + -each % 8 * (version == 1) for each in sizes]
                kind, value = at + sizes[0], at + sum(sizes)
                length = int.from_bytes(content[value : value + 4], "little")
                # Of a variable length: the value is the length and the place.
                if content[kind] & 15 == 9 and length > len(content):
                    raise ValueError("a text is longer than the file")
    for match in _HEAP.finditer(content):
        at, end = match.end(), match.start() + int.from_bytes(match[1], "little")
        while at + 16 <= end:
            size = int.from_bytes(content[at + 8 : at + 16], "little")
            # An object has a header and is padded; the free rest counts its own.
            size += (16 - size % -8) * any(content[at : at + 2])
            if not 16 <= size <= end - at:
                raise ValueError("a heap of texts is damaged")
            at += size


def _text(place: Any, name: str) -> str:
    """Return an attribute that is text: reading other types can crash libhdf5."""
    import h5py

    attribute, layout = place.attrs.get_id(name), place.file.id.get_create_plist()
    is_text = isinstance(attribute.get_type(), h5py.h5t.TypeStringID)
    if attribute.shape or not is_text or layout.get_sizes() != (8, 8):
        raise ValueError(f"{name!r} is not a text")
    text = place.attrs[name]
    return text.decode() if isinstance(text, bytes) else str(text)


def _is_hdf5(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _with_kinds(weights: Weights) -> Weights:
    """Name numbered weights, which Keras 3 stores in the order of its layers."""
    if "0" not in weights:
        return weights
    kinds = ["kernel", "bias"]
    if weights["0"].ndim == 1:
        kinds = ["gamma", "beta", "moving_mean", "moving_variance"]
    return {kinds[int(number)]: value for number, value in weights.items()}


def _datasets(file: Any, path: Path) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the names that lead to each dataset in a group, and the dataset."""
    import h5py

    too_deep = "nests groups deeper than a weight file does"
    seen = {h5py.h5o.get_info(file.id).addr}
    waiting: list[tuple[tuple[str, ...], Any]] = [((), file)]
    while waiting:
        above, group = waiting.pop()
        if len(above) > _MAX_DEPTH:
            raise CheckpointError(f"{path} {too_deep}.")
        for name in group:
            names = (*above, name)
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise CheckpointError(
                    f"{path} has a link to another file or group, {'/'.join(names)}. "
                    "Such a file is refused."
                )
            inside = group[name]
            is_group = isinstance(inside, h5py.Group)
            if (address := h5py.h5o.get_info(inside.id).addr) in seen:
                one = "has one dataset under several names"
                twice = f"{too_deep}, in a circle" if is_group else one
                raise CheckpointError(f"{path} {twice}: {'/'.join(names)}.")
            seen.add(address)
            if is_group:
                waiting.append((names, inside))
            elif above and isinstance(inside, h5py.Dataset):
                yield names, inside


def _stored(dataset: Any, names: tuple[str, ...], path: Path) -> NDArray[Any]:
    stored = dataset.id.get_storage_size()
    whole = stored == (dataset.size or 0) * dataset.dtype.itemsize
    if dataset.is_virtual or dataset.external or not whole:
        raise CheckpointError(
            f"{path} must contain {'/'.join(names)} itself, complete and uncompressed. "
            f"Received: {stored} bytes for shape {dataset.shape}. The file is refused."
        )
    # Values of other types, which are refused, are not read.
    values = dataset[()] if dataset.dtype.kind == "f" else np.empty(0, dataset.dtype)
    return to_float32(np.asarray(values), "/".join(names), str(path))


def is_v2(layers: Iterable[str]) -> bool:
    """Tell by its layers' names whether a ResNet of keras.applications is a V2."""
    return _LAST_NORM in layers


def preprocessing(*, v2: bool = False) -> Preprocessing:
    """Return Caffe's preprocessing, or for V2 models pixels scaled to -1..1.

    keras.io resizes to 224 without a crop; the accuracies that it states were measured
    with the usual 256/224 centre crop, as here.
    """
    mean = tuple(mean / 255 for mean in reversed(_CAFFE_BGR))
    return Preprocessing(
        train_size=224, eval_size=224, crop_pct=0.875, interpolation="bilinear",
        mean=(0.5,) * 3 if v2 else mean, std=(0.5 if v2 else 1 / 255,) * 3,
    )  # fmt: skip


def _described(
    config: Any, weighted: Iterable[str]
) -> tuple[Described, AttachedCard | None, int]:
    """List all layers; return them, the card inside, and how many layers it is of."""
    listed: Described = []
    attached, own, waiting = None, 0, [config.get("config", config)]
    for model in waiting:
        entries = [
            # `.h5` files have the name a class is registered under.
            (each["class_name"].split(">")[-1], each["config"]["name"], each["config"])
            # Until 2018 the config of a Sequential was the list.
            for each in (model if isinstance(model, list) else model["layers"])
        ]
        for kind, name, inside in entries:
            if "layers" in inside:
                waiting.append(inside)
                continue
            listed.append((kind, name, inside))
            initializer = inside.get("bias_initializer") or {}
            value = (initializer.get("config") or {}).get("value")
            if (found := AttachedCard.from_text(value)) is not None:
                attached, names = found, {name for _, name, _ in entries}
                same = describe_structure(map(_dense, entries)) == found.structure
                # Of none where others have weights as well.
                own = len(entries) if same and names.issuperset(weighted) else 0
    return listed, attached, own


def _dense(entry: tuple[str, str, Mapping[str, Any]]) -> tuple[str, str, int, str]:
    """Return what `describe_structure` takes of a layer."""
    kind, name, config = entry
    if kind != "Dense":
        return kind, name, 0, ""
    return kind, name, config["units"], config["kernel_initializer"]["class_name"]


def find_card(
    config: Any, layers: Layers, source: str
) -> tuple[Card | None, Preprocessing | None]:
    """Find the card in the config of a model from reszoo.

    Returns the card, where it is of all weights; otherwise the preprocessing of the
    model inside, if reszoo made it. A CheckpointError if the model has layers that do
    not belong to a ResNet.
    """
    dense = [name for name, held in layers.items() if _with_head("", held)]
    if len(dense) > 1:
        raise CheckpointError(
            f"{source} has several dense layers ({summarized(dense)}), where a ResNet "
            f"has one. {_AS_IT_IS}"
        )
    if config is None:
        return None, None
    try:
        listed, attached, own = _described(config, layers)
        if own < len(listed):
            _check_layers(listed, source)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{source} has a damaged config ({error!r}).") from error
    if attached and own:
        return attached.of_weights(layers), None
    return None, attached.card.preprocessing if attached else None


def _check_layers(listed: Described, source: str) -> None:
    """Refuse layers of which the tensors alone do not tell."""
    activations = {"linear", "relu", "softmax"}
    kinds = [
        kind
        for kind, _, config in listed
        if kind not in _PASSIVE or config.get("activation", "linear") not in activations
    ]
    if kinds:
        raise CheckpointError(
            f"{source} is a Keras model with other layers than a ResNet has: "
            f"{summarized(list(dict.fromkeys(kinds)))}. {_AS_IT_IS}"
        )


def is_ours(layers: Layers) -> bool:
    """Tell whether layers are named as reszoo names them, the classifier aside."""
    named = [name for name in layers if _OURS.fullmatch(name)]
    return len(named) >= len(layers) - 1 and len(named) > 1


def own_tensors(layers: Layers) -> Tensors:
    """Return the weights of layers of reszoo under torchvision's names."""
    return {
        f"{_with_head(layer, weights)}.{TORCH_NAMES.get(kind, kind)}": to_torch(value)
        for layer, weights in layers.items()
        for kind, value in weights.items()
    }


def _with_head(layer: str, weights: Weights) -> str:
    """Return the name of a layer, or `fc` for a classifier of any name."""
    kernel = weights.get("kernel")
    return "fc" if kernel is not None and kernel.ndim == 2 else layer


def to_tensors(layers: Layers, source: str) -> Tensors:
    """Convert the weights of a `keras.applications` ResNet, by layer.

    Returns tensors under torchvision's names and in its layouts, for RGB input. A
    CheckpointError if a layer is not of such a model, or a weight is missing.
    """
    tensors: Tensors = {}
    v2 = is_v2(layers)
    for layer, weights in layers.items():
        name = _torch_name(_with_head(layer, weights), source, v2=v2)
        try:
            before = layer.replace("_bn", "_conv")
            shift = layers[before]["bias"] if "gamma" in weights and not v2 else None
            tensors |= _converted(name, weights, shift, v2=v2)
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
    name: str, weights: Weights, shift: NDArray[Any] | None, *, v2: bool
) -> Tensors:
    """Convert the weights of a layer; a V1 convolution's bias, `shift`, is in front."""
    if "gamma" not in weights:
        found = {f"{name}.weight": to_torch(weights["kernel"])}
        # In V2 models only convolutions that no normalization follows have one.
        kept = name == "fc" or (v2 and "bias" in weights)
        return found | ({f"{name}.bias": weights["bias"]} if kept else {})
    mean, variance = weights["moving_mean"], weights["moving_variance"]
    if shift is not None:
        # The bias of the convolution moves into the mean, the difference of the
        # epsilons into the variance.
        exact = variance.astype(np.float64) + (_KERAS_EPSILON - _RESZOO_EPSILON)
        moved = mean - shift.astype(np.float64)
        mean, variance = (x.astype(np.float32) for x in (moved, exact))
    values = (weights["gamma"], weights["beta"], mean, variance)
    return {f"{name}.{x}": v for x, v in zip(NORM_TENSORS, values, strict=True)}


def _torch_name(layer: str, source: str, *, v2: bool) -> str:
    if layer in _FIXED:
        return _FIXED[layer]
    match = _NAME.fullmatch(layer)
    if match is None:
        raise CheckpointError(
            f"{source} is not a ResNet of keras.applications: it has a layer "
            f"{layer!r}, which none has had since 2019."
        )
    stage, block, place, kind = match.groups()
    prefix = f"layer{int(stage) - 1}.{int(block) - 1}"
    if place == "0":
        return f"{prefix}.downsample.{0 if kind == 'conv' else 1}"
    # The first normalization of a V2 block stands before the first convolution.
    number = 1 if place == "preact" else int(place) + (v2 and kind == "bn")
    return f"{prefix}.{kind}{number}"
