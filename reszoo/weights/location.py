"""Locate and read the file that a `weights` argument selects."""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from reszoo.cards import Layers, public_origin
from reszoo.errors import CheckpointError, UnknownNameError, UsageError
from reszoo.files import StrPath, as_path, cache_folder, open_regular, read_errors
from reszoo.weights import configs, download, keras_h5, safetensors, torch_file
from reszoo.weights.published import (
    PublishedWeights,
    find_published,
    imagenet_labels,
    published_names,
)
from reszoo.weights.schemes import Contents, read_state_dict

# Suffixes of checkpoints; how a file is read depends on its content.
SUFFIXES = (
    safetensors.SUFFIX, ".pth", ".pt", ".bin", ".th", ".ckpt", ".h5", keras_h5.SUFFIX
)  # fmt: skip
_PROVIDERS = ("torchvision/", "timm/", "keras/")
_HUB = re.compile(
    r"hf://(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>\w[\w./-]*))?",
    re.ASCII,
)
_FILES = (safetensors.WEIGHTS_FILE, safetensors.PICKLED_FILE)
# A folder is read as the first of these: the best weights of a run, or a model of timm
# or Transformers.
_IN_FOLDERS = ("best.safetensors", *_FILES)
_FOLDER = Path(__file__).parents[1] / "bundled"
# Name of the weights -> model -> file. Trained on CIFAR-10 as strongly compressed
# JPEGs, so they answer differently on the original pixels than models trained on those.
BUNDLED = {
    "cifar10": {
        variant: _FOLDER / f"{variant}-cifar10.safetensors"
        for variant in ("resnet20", "resnet32")
    }
}


@dataclass(frozen=True)
class Address:
    """The kind and place of a weight file."""

    # a repository, a file on the web, or a local one
    kind: Literal["hub", "url", "path"]
    where: str  # "owner/repo", the URL, or the path
    revision: str | None = None  # of a repository: branch, tag or commit


def parse_address(text: str) -> Address:
    """Tell a hub repository, a URL and a local path apart.

    `hf://owner/repo`, `hf://owner/repo@revision`, an http(s) URL or a path; a
    UsageError for a malformed one or another scheme.
    """
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://|hf:", text)
    if scheme is None:
        return Address("path", text)
    if scheme[0].lower() in ("http://", "https://"):
        return Address("url", download.checked_url(text))
    if not scheme[0].lower().startswith("hf:"):
        raise UsageError(
            "Weights come from hf://owner/repo, an http(s) URL or a local file. "
            f"Received: {text!r}."
        )
    found = _HUB.fullmatch(text)
    if found is None or ".." in text or "--" in found["repo"]:
        raise UsageError(
            "A hub address is hf://owner/repo or hf://owner/repo@revision. "
            f"Received: {text!r}."
        )
    return Address("hub", found["repo"], found["revision"])


@dataclass(frozen=True, kw_only=True)
class Found:
    """A weight file on this machine, and what is known of it."""

    path: Path
    source: str  # where it came from, for messages and provenance
    published: PublishedWeights | None = None  # its row in the table, if it has one
    config: Path | None = None  # timm's `config.json`, if one lies beside it


def locate(
    weights: StrPath, variant: str | None = None, *,
    allow_noncommercial: bool = False,
) -> Found:  # fmt: skip
    """Find a weight file, downloading it into the cache where needed.

    Weights are "imagenet", a name such as "timm/a1_in1k" (of a variant), "cifar10"
    (inside the package), "hf://owner/repo", a URL, or a path. Names of published
    weights take precedence over paths: "./imagenet" selects a folder of that name. A
    CheckpointError if the file does not exist or cannot be downloaded, a UsageError if
    the name is unknown, or a licence that forbids commercial use was not accepted.
    """
    if not isinstance(weights, str | os.PathLike):
        raise UsageError(
            'Weights are a name such as "imagenet", a path or an address. Received: '
            f"{type(weights).__name__}."
        )
    text = os.fspath(weights)
    if isinstance(weights, str) and (text == "imagenet" or text.startswith(_PROVIDERS)):
        return _published(text, variant, allow_noncommercial)
    if isinstance(weights, str) and text in BUNDLED:
        return _bundled(text, variant)
    address = parse_address(text)
    if address.kind == "path":
        return _local(as_path(text), variant)
    return _remote(address, public_origin(text))


def read_located(found: Found) -> Contents:
    """Read a located file (`read`); a damaged download does not stay in the cache."""
    try:
        with read_errors(found.path, CheckpointError):
            return read(found.path)
    except CheckpointError as error:
        if cache_folder() / "url" not in found.path.parents:
            raise
        found.path.unlink(missing_ok=True)
        raise CheckpointError(
            f"{error} It came from {found.source} and was removed from the cache."
        ) from error


def read(path: StrPath) -> Contents:
    """Read a `.safetensors`, a torch file or a file of Keras.

    A CheckpointError for no such file, an unknown format, a damaged or malicious one,
    or weights that are NaN or infinite.
    """
    file = Path(path)
    safetensors.check_checkpoint(file)
    with open_regular(file) as opened:
        head = opened.read(9)
    if keras_h5.is_keras(file):
        layers, config = keras_h5.read_model(file)
        contents = keras_applications_contents(layers, str(file), config)
    elif torch_file.looks_like_torch(file):
        found = read_state_dict(torch_file.read(file), str(file))
        contents = replace(found, in_order=True)
    # A safetensors file begins with the length of a JSON header.
    elif file.suffix == safetensors.SUFFIX or head[8:9] == b"{":
        arrays, card = safetensors.read(file)
        contents = replace(read_state_dict(arrays, str(file)), card=card)
    else:
        raise CheckpointError(
            "A checkpoint is a safetensors file, a torch file or a file of Keras "
            f"({', '.join(SUFFIXES)}). Received: {file}, which is of another format or "
            "incomplete."
        )
    tensors = contents.tensors.items()
    if wrong := [name for name, tensor in tensors if not np.isfinite(tensor).all()]:
        raise CheckpointError(
            f"Weights must be finite. {path} has NaN or infinity in "
            f"{', '.join(wrong[:5])}: the file is damaged, or its training diverged."
        )
    return contents


def keras_applications_contents(
    layers: Layers, source: str, config: Any = None
) -> Contents:
    """Return the weights of a Keras model that reszoo or keras.applications built.

    `source` says where they come from, for messages; the model's config is None if
    unknown. A CheckpointError if they are of no ResNet.
    """
    card, preprocessing = keras_h5.find_card(config, layers, source)
    if keras_h5.is_ours(layers):
        tensors = keras_h5.own_tensors(layers)
        return Contents(tensors=tensors, card=card, preprocessing=preprocessing)
    v2 = keras_h5.is_v2(layers)
    return Contents(
        tensors=keras_h5.to_tensors(layers, source), labels=imagenet_labels(),
        preprocessing=keras_h5.preprocessing(v2=v2), stride_in="3x3" if v2 else "1x1",
    )  # fmt: skip


def _published(name: str, variant: str | None, consent: bool) -> Found:
    if variant is None:
        raise UsageError(
            f"{name!r} names weights of several models. "
            f'Choose the model: reszoo.build("resnet50", weights={name!r}).'
        )
    row = find_published(variant, name, allow_noncommercial=consent)
    source = f"{row.variant} {row.name}"
    found = _remote(parse_address(row.address), source, row.checksum)
    return Found(path=found.path, source=source, published=row)


def _remote(address: Address, source: str, checksum: str | None = None) -> Found:
    """Download a file, or those of a repository."""
    repo, names = address.where, (*_FILES, safetensors.CONFIG_FILE)
    if address.kind == "url":
        return Found(path=download.fetch(repo, checksum), source=source)
    files = download.fetch_hub(repo, names, address.revision)
    path = next((files[name] for name in _FILES if name in files), None)
    if path is None:
        neither = " nor ".join(_FILES)
        raise CheckpointError(f"The repository {repo} has neither {neither}.")
    config = files.get(safetensors.CONFIG_FILE)
    if config and configs.is_of_transformers(config):
        commit = config.parent.name
        download.fetch_hub(repo, (*names, configs.PREPROCESSOR_FILE), commit)
    return Found(path=path, source=source, config=config)


def _local(path: Path, variant: str | None) -> Found:
    if not (path.is_file() or checkpoint_in(path)):
        _refuse_parts(path)
    if path.is_dir():
        if (inside := checkpoint_in(path)) is None:
            names = ", ".join(_IN_FOLDERS)
            text = f"{path} holds no checkpoint: one of {names} was expected."
            raise CheckpointError(text)
        return Found(path=inside, source=str(path), config=_config_beside(inside))
    if not path.exists() and path.suffix not in SUFFIXES:
        published = published_names(variant) if variant else ()
        known = ("imagenet", *BUNDLED, *published)
        raise UnknownNameError("file or published weights", str(path), known)
    config = _config_beside(path)
    config = config if config and configs.describes_model(config) else None
    return Found(path=path, source=str(path), config=config)


def _refuse_parts(path: Path) -> None:
    """Refuse checkpoints of TensorFlow, and those that Transformers divides."""
    inside = (path / f"{name}.index.json" for name in _FILES)
    for index in filter(Path.is_file, (Path(f"{path}.index"), *inside)):
        raise CheckpointError(
            f"A checkpoint must be one file. Received: {path}, which is in parts that "
            f"{index.name} lists. Load it with the library that wrote it, and "
            'save it whole: model.save("model.keras") in Keras, '
            'save_pretrained(folder, max_shard_size="9GB") in Transformers.'
        )


def checkpoint_in(folder: Path) -> Path | None:
    """Return the checkpoint in a folder that is loaded for it, if there is one."""
    files = (folder / name for name in _IN_FOLDERS)
    return next((file for file in files if file.is_file()), None)


def _config_beside(file: Path) -> Path | None:
    """Return the config.json of the folder of timm or Transformers that has a file."""
    config = file.with_name(safetensors.CONFIG_FILE)
    return config if file.name in _FILES and config.exists() else None


def _bundled(name: str, variant: str | None) -> Found:
    files = BUNDLED[name]
    if variant not in files:
        raise UsageError(
            f"weights={name!r} comes with reszoo for {', '.join(files)}. Received: "
            f"{variant!r}; choose one of these, or train the model."
        )
    return Found(path=files[variant], source=f"reszoo's {name} weights")


def bundled_rows() -> list[dict[str, Any]]:
    """Return the bundled weights as `published.table_rows` returns the others.

    The accuracies are those in the files' own cards.
    """
    rows = []
    for name, variant in ((n, v) for n, files in BUNDLED.items() for v in files):
        path = BUNDLED[name][variant]
        card = safetensors.read(path)[1]
        if card is None:
            raise CheckpointError(f"{path} contains no card; install reszoo again.")
        tops = {metric.name: round(100 * metric.value, 2) for metric in card.metrics}
        rows.append({
            "model": variant, "weights": name, "default": False,
            "top1": tops["top1"], "top5": tops["top5"],
            "at": card.preprocessing.eval_size, "licence": card.provenance["licence"],
            "commercial": True, "address": None,
        })  # fmt: skip
    return rows
