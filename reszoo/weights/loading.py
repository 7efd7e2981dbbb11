"""Build a model from the tensors of a weight file."""

import math
import re
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from reszoo.cards import Card, Metric, new_card
from reszoo.errors import CheckpointError, UsageError
from reszoo.preprocessing import Preprocessing
from reszoo.resnet import build_resnet
from reszoo.specs import SPECS, Architecture, ResNetSpec, architecture
from reszoo.weights import keras_h5, safetensors
from reszoo.weights.location import Found
from reszoo.weights.names import COUNTER, HEAD, LoadReport, Tensors, assign_tensors
from reszoo.weights.reading import Contents, read

_BLOCK = re.compile(r"layer(\d+)\.(\d+)\.conv1\.weight")


def infer_options(
    tensors: Tensors, source: str, variant: str | None = None
) -> dict[str, Any]:
    """Return the `build` options of the net that some tensors belong to.

    A CIFAR net without projections is taken for the residual one with option A,
    not for its plain twin, whose tensors are the same; `variant` decides otherwise.

    Args:
        tensors: Under torchvision's names.
        source: What they came from, for messages.
        variant: A name from the table that the tensors must fit.

    Returns:
        "variant", "shortcut", "classes", "include_top" and "channels".

    Raises:
        CheckpointError: They fit no net of the zoo, another than `variant`, or two.
    """
    fitting = _fitting(tensors, source)
    shortcut = _shortcut(tensors)
    if variant is None:
        named = _preferred(fitting, shortcut, source)
    elif variant in {spec.name for spec in fitting}:
        named = SPECS[variant]
    else:
        raise CheckpointError(
            f"{source} holds a {fitting[0].name}. Received: {variant!r}; "
            f"build {fitting[0].name!r}, or use reszoo.load."
        )
    if shortcut == "none" and named.shortcut == "identity":
        shortcut = "identity"
    head = tensors.get("fc.weight")
    return {
        "variant": named.name,
        "shortcut": shortcut,
        "include_top": head is not None,
        "classes": None if head is None else len(head),
        "channels": tensors["conv1.weight"].shape[1],
    }


def _fitting(tensors: Tensors, source: str) -> list[ResNetSpec]:
    first = tensors.get("conv1.weight")
    blocks = [match for name in tensors if (match := _BLOCK.fullmatch(name))]
    if first is None or first.ndim != 4 or not blocks:
        shown = ", ".join(sorted(tensors)[:5])
        raise CheckpointError(
            f"{source} holds no ResNet as torchvision names it: conv1.weight and "
            f"layer1.0.conv1.weight were expected. Received: {shown}."
        )
    depths: dict[int, int] = {}
    for match in blocks:
        depths[int(match[1])] = depths.get(int(match[1]), 0) + 1
    found = {
        "stem": "imagenet" if first.shape[-1] == 7 else "cifar",
        "block": "bottleneck" if "layer1.0.conv3.weight" in tensors else "basic",
        "depths": tuple(depths[stage] for stage in sorted(depths)),
        "width": first.shape[0],
    }
    fitting = [spec for spec in SPECS.values() if _description(spec) == found]
    if not fitting:
        told = ", ".join(f"{key} {value}" for key, value in found.items())
        raise CheckpointError(f"No net of the zoo is made like {source}: {told}.")
    return fitting


def _description(spec: ResNetSpec) -> dict[str, Any]:
    return {
        "stem": spec.stem,
        "block": spec.block,
        "depths": spec.depths,
        "width": spec.widths[0],
    }


def _shortcut(tensors: Tensors) -> str:
    if "layer1.1.downsample.0.weight" in tensors:
        return "projection-all"
    if any(".downsample.0." in name for name in tensors):
        return "projection"
    return "none"


def _preferred(fitting: list[ResNetSpec], shortcut: str, source: str) -> ResNetSpec:
    residual = next(spec for spec in fitting if spec.shortcut != "none")
    if shortcut != "none" or residual.shortcut == "identity":
        return residual
    plain = next(spec for spec in fitting if spec.shortcut == "none")
    raise CheckpointError(
        f"{source} has no projections, so it is a {plain.name} or a {residual.name} "
        "with shortcut='identity'. Say which: "
        f"reszoo.build({plain.name!r}, weights=...)."
    )


@dataclass(frozen=True)
class Loaded:
    """A model with the weights of a file, and what is known of them."""

    model: keras.Model
    card: Card
    report: LoadReport
    counters: Tensors


def load_weights(
    found: Found,
    variant: str | None,
    options: dict[str, Any],
    labels: tuple[str, ...] | None,
    *,
    seed: int | None = None,
    name: str | None = None,
) -> Loaded:
    """Build the net of a weight file, changed as asked, with its weights.

    Args:
        found: The file.
        variant: The net that it must be; None takes it from the file.
        options: Options of `build`; None leaves one to the file. Another number of
            classes, or other names, means a fresh head, other channels an adapted
            `conv1`.
        labels: Names of the classes, if they were given.
        seed: Decides the weights of a fresh head.
        name: Of the Keras model.

    Raises:
        CheckpointError: The file is unreadable, or of another net.
        UsageError: The options contradict the file or each other.
    """
    contents = read(found.path)
    if contents.card is None and contents.stride_in is None:
        # Bare tensors do not tell it, so the caller may.
        contents = replace(contents, stride_in=options.get("stride_in"))
    saved = _saved_card(contents, found, variant)
    return load_contents(
        contents.tensors, saved, found.source, options, labels, seed=seed, name=name
    )


def load_contents(
    tensors: Tensors,
    saved: Card,
    source: str,
    options: dict[str, Any] | None = None,
    labels: tuple[str, ...] | None = None,
    *,
    seed: int | None = None,
    name: str | None = None,
) -> Loaded:
    """Build the net that a card describes, changed as asked, around tensors."""
    described = _described(saved.architecture, options or {}, source)
    other = described.classes != saved.architecture.classes
    fresh = described.include_top and (other or _renamed(saved, labels, source))
    model = build_resnet(described, seed=seed, name=name)
    counters = {key: value for key, value in tensors.items() if key.endswith(COUNTER)}
    tensors = _adapted(tensors, described)
    report = assign_tensors(model, tensors, source, fresh_head=fresh)
    card = _changed_card(saved, described, labels, fresh)
    return Loaded(model, card, report, counters)


def adapt_input(kernel: NDArray[Any], channels: int) -> NDArray[Any]:
    """Fit the first convolution to another number of channels, as timm does.

    One channel gets the sum over RGB; more repeat RGB, scaled so that activations
    keep their size.

    Args:
        kernel: `(out, 3, height, width)`.
        channels: Wanted.

    Returns:
        `(out, channels, height, width)`, float32.
    """
    if channels == kernel.shape[1]:
        return kernel
    if kernel.shape[1] != 3:
        raise UsageError(
            "Only weights for RGB can be fitted to other channels. Received: weights "
            f"for {kernel.shape[1]} channels and an input of {channels}."
        )
    if channels == 1:
        return np.asarray(kernel.sum(axis=1, keepdims=True))
    repeated = np.tile(kernel, (1, math.ceil(channels / 3), 1, 1))[:, :channels]
    return np.asarray(repeated * np.float32(3 / channels))


def keras_applications_card(
    tensors: Tensors, source: str, input_shape: tuple[int | None, ...]
) -> Card:
    """Return the card of a `keras.applications` model in memory."""
    contents = Contents(
        tensors=tensors,
        preprocessing=keras_h5.preprocessing(),
        stride_in=keras_h5.STRIDE_IN,
    )
    card = _made_card(contents, Found(path=Path(source), source=source), None)
    height, width, channels = input_shape
    described = replace(card.architecture, input_shape=(height, width, channels or 3))
    return _changed_card(card, described, None, fresh=False)


def _saved_card(contents: Contents, found: Found, variant: str | None) -> Card:
    saved = contents.card
    if saved is None:
        return _made_card(contents, found, variant)
    if variant not in (None, saved.architecture.spec):
        raise CheckpointError(
            f"{found.source} holds a {saved.architecture.spec}. Received: "
            f"{variant!r}; build {saved.architecture.spec!r}, or use reszoo.load."
        )
    return saved


def _made_card(contents: Contents, found: Found, variant: str | None) -> Card:
    """Make the card of a file that has none, of all that is known besides."""
    options = infer_options(contents.tensors, found.source, variant)
    channels, net = options.pop("channels"), options.pop("variant")
    record, labels = contents.preprocessing, None
    if found.published is not None:
        record = found.published.preprocessing
    elif found.config is not None:
        record, labels = safetensors.read_config(found.config)
    described = architecture(net, stride_in=contents.stride_in, **options)
    height, width, _ = described.input_shape
    if record is not None and options["include_top"]:
        height = width = record.eval_size
    described = replace(described, input_shape=(height, width, channels))
    imagenet = found.published is not None or contents.preprocessing is not None
    if imagenet and described.classes == len(class_names()):
        labels = class_names()
    card = new_card(described)
    return replace(
        card,
        labels=labels if labels and len(labels) == described.classes else None,
        preprocessing=_for_channels(record or card.preprocessing, channels),
        provenance=_provenance(found),
        metrics=_metrics(found),
    )


def _described(
    saved: Architecture, options: dict[str, Any], source: str
) -> Architecture:
    for argument in ("shortcut", "stride_in"):
        asked, kept = options.get(argument), getattr(saved, argument)
        if asked not in (None, kept):
            raise CheckpointError(
                f"{source} was made with {argument}={kept!r}. "
                f"Received: {argument}={asked!r}; leave it out."
            )
    kept = {key: value for key, value in asdict(saved).items() if key != "spec"}
    given = {key: value for key, value in options.items() if value is not None}
    if not given.get("include_top", saved.include_top):
        kept |= {"classes": None, "classifier_activation": None}
    elif not saved.include_top:
        kept |= {"pooling": None, "features": None}
        if "classes" not in given:
            raise CheckpointError(
                f"{source} has no classifier. Say how many classes the fresh one "
                "has (classes=10), or build without (include_top=False)."
            )
    return architecture(saved.spec, **{**kept, **given})


def _adapted(tensors: Tensors, described: Architecture) -> Tensors:
    channels = described.input_shape[2]
    fitted = {**tensors, "conv1.weight": adapt_input(tensors["conv1.weight"], channels)}
    if not described.include_top:
        fitted = {key: value for key, value in fitted.items() if key not in HEAD}
    return fitted


def _renamed(saved: Card, labels: tuple[str, ...] | None, source: str) -> bool:
    """Tell whether the classes asked for are others than those of the weights."""
    if not labels or saved.labels in (None, labels):
        return False
    if set(labels) == set(saved.labels or ()):
        raise UsageError(
            f"{source} has the same classes in another order: "
            f"{', '.join(saved.labels or ())}. Give them in that order, or leave "
            "classes out."
        )
    return True


def _changed_card(
    saved: Card, described: Architecture, labels: tuple[str, ...] | None, fresh: bool
) -> Card:
    kept = None if fresh or not described.include_top else saved.labels
    record = _for_channels(saved.preprocessing, described.input_shape[2])
    height, width, _ = described.input_shape
    changed = height == width and height not in (None, record.eval_size)
    if changed and height is not None:
        record = replace(record, train_size=height, eval_size=height)
    unlike = (
        fresh or changed or described.input_shape[2] != len(saved.preprocessing.mean)
    )
    return replace(
        saved,
        architecture=described,
        labels=labels or kept,
        preprocessing=record,
        metrics=() if unlike else saved.metrics,
    )


def _for_channels(record: Preprocessing, channels: int) -> Preprocessing:
    """Fit mean and deviation to the channels: their mean for one, else in turn."""
    if channels == len(record.mean):
        return record
    if channels == 1:
        mean, std = sum(record.mean) / 3, sum(record.std) / 3
        return replace(record, mean=(mean,), std=(std,))
    turns = [index % 3 for index in range(channels)]
    return replace(
        record,
        mean=tuple(record.mean[i] for i in turns),
        std=tuple(record.std[i] for i in turns),
    )


def _provenance(found: Found) -> dict[str, Any]:
    if found.published is None:
        return {"source": found.source}
    row = found.published
    return {"source": found.source, "address": row.address, "licence": row.licence}


def _metrics(found: Found) -> tuple[Metric, ...]:
    """Return the publisher's figures at the size of the card."""
    if found.published is None:
        return ()
    row = found.published
    size, crop = row.preprocessing.eval_size, row.preprocessing.crop_pct
    data = f"ImageNet-1k validation at {size} px, as published"
    return tuple(
        Metric(name=name, value=round(getattr(result, name) / 100, 5), data=data)
        for result in row.results
        if (result.size, result.crop_pct) == (size, crop)
        for name in ("top1", "top5")
    )


def class_names() -> tuple[str, ...]:
    """Return the names of the 1,000 classes in the order of published weights.

    The order is that of the sorted WordNet numbers, which torchvision, timm and
    keras.applications share. Source: torchvision 0.28.0, `models/_meta.py`. Names
    that belong to two classes tell in parentheses which is meant, "crane (bird)".
    """
    text = files("reszoo.weights").joinpath("imagenet_classes.txt").read_text("utf-8")
    return tuple(text.splitlines())
