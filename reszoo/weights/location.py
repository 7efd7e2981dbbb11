"""Locate the file that a `weights` argument selects."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reszoo.errors import CheckpointError, UnknownNameError, UsageError
from reszoo.weights import download, safetensors
from reszoo.weights.published import PublishedWeights, find_published, published_names
from reszoo.weights.reading import SUFFIXES

_FOLDER = Path(__file__).parents[1] / "bundled"
# Name of the weights -> net -> file. Trained on CIFAR-10 as strongly compressed JPEGs:
# on the original pixels they answer differently than nets trained on those.
BUNDLED: dict[str, dict[str, Path]] = {
    "cifar10": {
        "resnet20": _FOLDER / "resnet20-cifar10.safetensors",
        "resnet32": _FOLDER / "resnet32-cifar10.safetensors",
    },
}


def find_bundled(name: str, net: str | None) -> Path:
    """Return the file of bundled weights.

    Args:
        name: A key of `BUNDLED`.
        net: The net they are wanted for; may be None where there is one only.

    Raises:
        UsageError: The package has none for this net.
    """
    files = BUNDLED[name]
    if net is None and len(files) == 1:
        return next(iter(files.values()))
    if net not in files:
        raise UsageError(
            f"weights={name!r} comes with reszoo for {', '.join(files)}. Received: "
            f"{net!r}; take one of these, or train the net."
        )
    return files[net]


def bundled_rows() -> list[dict[str, Any]]:
    """Return the bundled weights as `published.table_rows` returns the others.

    The accuracies are those in the files' own cards.
    """
    return [
        _row(name, net, path)
        for name, files in BUNDLED.items()
        for net, path in files.items()
    ]


def _row(name: str, net: str, path: Path) -> dict[str, Any]:
    card = safetensors.read(path)[1]
    if card is None:
        raise CheckpointError(f"{path} holds no card; install reszoo again.")
    measured = {metric.name: round(100 * metric.value, 2) for metric in card.metrics}
    return {
        "net": net,
        "weights": name,
        "default": False,
        "top1": measured["top1"],
        "top5": measured["top5"],
        "at": card.preprocessing.eval_size,
        "licence": card.provenance["licence"],
        "commercial": True,
        "address": None,
    }


_PROVIDERS = ("torchvision/", "timm/")


@dataclass(frozen=True, kw_only=True)
class Found:
    """A weight file on this machine, and what is known of it.

    Attributes:
        path: The file.
        source: Where it came from, for messages and provenance.
        published: Its row in the table, if it has one.
        config: timm's `config.json`, if one lies beside it.
    """

    path: Path
    source: str
    published: PublishedWeights | None = None
    config: Path | None = None


def locate(
    weights: str | os.PathLike[str],
    net: str | None = None,
    *,
    allow_noncommercial: bool = False,
) -> Found:
    """Find a weight file, downloading it into the cache where needed.

    Names of published weights win over paths: a folder called `imagenet` is meant
    by "./imagenet".

    Args:
        weights: "imagenet", a name such as "timm/a1_in1k", "cifar10" (inside the
            package), "hf://owner/repo", a URL, or a path.
        net: The net that published weights are wanted for.
        allow_noncommercial: Consent to a licence that forbids commercial use.

    Raises:
        CheckpointError: The file is neither here nor to be had.
        UsageError: The name is unknown, or the licence needs consent.
    """
    text = os.fspath(weights)
    if isinstance(weights, str) and (text == "imagenet" or text.startswith(_PROVIDERS)):
        return _published(text, net, allow_noncommercial)
    if isinstance(weights, str) and text in BUNDLED:
        return Found(path=find_bundled(text, net), source=f"reszoo's {text} weights")
    address = download.parse_address(text)
    if address.kind == "hub":
        return _from_hub(address.where, address.revision, text)
    if address.kind == "url":
        return Found(path=download.fetch(text, None), source=text)
    return _local(Path(text), net)


def _published(name: str, net: str | None, consent: bool) -> Found:
    if net is None:
        raise UsageError(
            f"{name!r} names weights of several nets. "
            f'Say which net: reszoo.build("resnet50", weights={name!r}).'
        )
    row = find_published(net, name, allow_noncommercial=consent)
    address = download.parse_address(row.address)
    source = f"{row.net} {row.name}"
    if address.kind == "hub":
        found = _from_hub(address.where, address.revision, source)
        return Found(path=found.path, source=source, published=row)
    path = download.fetch(row.address, row.sha256)
    return Found(path=path, source=source, published=row)


def _from_hub(repo: str, revision: str | None, source: str) -> Found:
    names = (safetensors.WEIGHTS_FILE, safetensors.PICKLED_FILE)
    files = download.fetch_hub(repo, (*names, safetensors.CONFIG_FILE), revision)
    path = next((files[name] for name in names if name in files), None)
    if path is None:
        raise CheckpointError(
            f"The repository {repo} has neither {' nor '.join(names)}."
        )
    config = files.get(safetensors.CONFIG_FILE)
    return Found(path=path, source=source, config=config)


def _local(path: Path, net: str | None) -> Found:
    if path.is_dir():
        inside = path / safetensors.WEIGHTS_FILE
        if not inside.is_file():
            raise CheckpointError(f"{path} holds no {safetensors.WEIGHTS_FILE}.")
        config = path / safetensors.CONFIG_FILE
        known = config if config.is_file() else None
        return Found(path=inside, source=str(path), config=known)
    if not path.exists() and path.suffix not in SUFFIXES:
        known_names = ["imagenet", *BUNDLED, *(published_names(net) if net else ())]
        raise UnknownNameError("file or published weights", str(path), known_names)
    return Found(path=path, source=str(path))
