"""Build a model from the tensors of a weight file."""

import math
from dataclasses import replace
from itertools import cycle, islice
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from reszoo.architecture import (
    Architecture,
    architecture,
    convolutions,
    standalone_norms,
    tensor_shapes,
)
from reszoo.cards import Card, Metric, new_card
from reszoo.errors import CheckpointError, UsageError, summarized
from reszoo.preprocessing import Preprocessing, as_size
from reszoo.resnet import build_resnet
from reszoo.specs import SPECS, ResNetSpec
from reszoo.weights.configs import Config, read_config
from reszoo.weights.location import Found
from reszoo.weights.names import HEAD, LoadReport, Tensors, assign_tensors
from reszoo.weights.published import PublishedWeights, imagenet_labels
from reszoo.weights.schemes import Contents

# In the order in which they are tried on tensors that do not tell.
_SHORTCUTS = ("projection", "projection-all", "none")
# Weights do not tell, and there are networks that append the zeros.
_OPTION_A = "shortcuts are taken to pad channels on both sides, as in CIFAR checkpoints"
# Layer -> shape of its kernel in torch's layout; () for a batch normalization.
Shapes = dict[str, tuple[int, ...]]


def infer_architecture(
    tensors: Tensors, source: str, spec: ResNetSpec | None = None,
    stride_in: str | None = None,
) -> Architecture:  # fmt: skip
    """Return the architecture of tensors, by torchvision's names, without a card.

    A CIFAR model without projections is taken for the residual one with option A, not
    for its plain twin, whose tensors are the same; `spec` decides otherwise, and None
    tries the whole table. `stride_in` tells which convolution of a bottleneck has the
    stride, if that is known. A CheckpointError if they fit no spec, another one, or
    two.
    """
    found: Shapes = {
        name.removesuffix(".weight"): tensor.shape if tensor.ndim == 4 else ()
        for name, tensor in tensors.items()
        if name.endswith(".weight") and name not in HEAD
    }
    rows = [*SPECS.values()] if spec is None or spec in SPECS.values() else [spec]
    candidates = [each for row in rows for each in with_shortcuts(row)]
    fitting = [each for each in candidates if not _differences(found, each)]
    if not fitting:
        raise _fits_nothing(found, candidates, source)
    chosen = next((each for each in fitting if spec in (None, each.spec)), None)
    if chosen is None:
        raise _other_model(source, fitting[0].name, spec)
    plain = [each.name for each in fitting if each.spec.shortcut == "none"]
    is_plain = not plain or chosen.name in plain
    if spec is None and chosen.shortcut == "none" and not is_plain:
        raise CheckpointError(
            f"{source} has no projections, so it is a {plain[0]} or a {chosen.name} "
            "with shortcut='identity'. Say which: "
            f"reszoo.build({plain[0]!r}, weights=...)."
        )
    head = tensors.get(HEAD[0])
    described = architecture(
        chosen.spec, shortcut=chosen.shortcut, stride_in=stride_in,
        include_top=head is not None, classes=None if head is None else len(head),
    )  # fmt: skip
    height, width, _ = described.input_shape
    channels = found[convolutions(chosen)[0].name][1]
    return replace(described, input_shape=(height, width, channels))


def with_shortcuts(spec: ResNetSpec, **options: Any) -> list[Architecture]:
    """Return the architectures of a spec, with its own kind of shortcut first."""
    return [
        architecture(spec, shortcut=shortcut, **options)
        for shortcut in dict.fromkeys((spec.shortcut, *_SHORTCUTS))
        if "none" not in (spec.shortcut, shortcut) or shortcut == "none"
    ]


def _other_model(
    source: str, name: str, spec: ResNetSpec | None, how: str = ""
) -> CheckpointError:
    wanted = spec and spec.name
    other = "another spec" if name == wanted else f"a {name}"
    return CheckpointError(
        f"{source} holds {other}{how}. Received: {wanted!r}; build {name!r}, or use "
        "reszoo.load."
    )


def _differences(found: Shapes, candidate: Architecture) -> list[str]:
    """List the layers that tensors and a candidate do not share."""
    listed = convolutions(candidate)
    norms = [*standalone_norms(candidate), *(n for each in listed for n in each.norms)]
    expected: Shapes = {each.name: each.shape for each in listed}
    expected |= dict.fromkeys(norms, ())
    first = listed[0].name
    if len(found.get(first, ())) == 4:
        # The image may have any number of channels.
        expected[first] = (expected[first][0], found[first][1], *expected[first][2:])
    names = {**expected, **found}
    return [name for name in names if found.get(name) != expected.get(name)]


def _fits_nothing(
    found: Shapes, candidates: list[Architecture], source: str
) -> CheckpointError:
    both = [(each, _differences(found, each)) for each in candidates]
    # Of those that most of the layers fit, the one with the fewest others.
    nearest, differing = min(both, key=lambda x: (len({*found} & {*x[1]}), len(x[1])))
    if not set(found) - set(differing):
        return CheckpointError(
            f"{source} holds no ResNet as torchvision names it: conv1.weight and "
            "layer1.0.conv1.weight were expected. Received: "
            f"{', '.join(f'{name}.weight' for name in sorted(found)[:5])}."
        )
    return CheckpointError(
        f"{source} fits no model of reszoo. The nearest is {nearest.name}, which "
        f"differs in the layers {summarized(differing, 3)}. "
        "Give the ResNetSpec of the model, if it is another: reszoo.load(path, spec)."
    )


def load_weights(
    contents: Contents, found: Found, spec: ResNetSpec | None, options: dict[str, Any],
    labels: tuple[str, ...] | None = None, *, seed: int | None = None,
    name: str | None = None,
) -> tuple[keras.Model, Card, LoadReport]:  # fmt: skip
    """Build the model of a weight file, changed as asked, with its weights.

    From what the file holds and what else is known of it. It must hold the spec; None
    takes that from the file. Options are those of `build`, None leaves one to the file:
    another number of classes, or other labels, means a fresh head, whose weights the
    seed decides, other channels an adapted `conv1`. The name is of the Keras model. A
    CheckpointError if the file is of another model, a UsageError if the options
    contradict the file or each other.
    """
    tensors, source = contents.tensors, found.source
    if contents.card is None:
        # Bare tensors do not tell it, so the caller may.
        asked = contents.stride_in or options.get("stride_in")
        if contents.scheme and "layer1.0.conv3.weight" in tensors:
            asked = asked or contents.scheme.stride_in
        contents = replace(contents, stride_in=asked)
    config = Config() if contents.card else _config(found)
    notes: list[str] = []
    if (saved := contents.card) is None:
        saved, notes = _made_card(contents, found, config, spec)
    elif spec not in (None, saved.resnet.spec):
        raise _other_model(source, saved.architecture.name, spec)
    _check_size(saved.resnet, tensors, source)
    described = _described(saved.resnet, options, source)
    _check_told(contents, found, config, described, options)
    other = described.classes != saved.architecture.classes
    fresh = described.include_top and (other or _renamed(saved, labels, source))
    model = build_resnet(described, seed=seed, name=name)
    first = convolutions(described)[0]
    kernel = f"{first.name}.weight"
    fitted = {**tensors, kernel: adapt_input(tensors[kernel], first.in_channels)}
    if not described.include_top:
        fitted = {key: value for key, value in fitted.items() if key not in HEAD}
    report = assign_tensors(model, fitted, source, fresh_head=fresh)
    if fresh and report.head is None:
        notes.append(f"fresh head of {described.classes} classes")
    report = replace(
        report, notes=(*contents.notes, *notes), skipped=contents.skipped,
        mapping=contents.mapping,
    )  # fmt: skip
    card = _changed_card(saved, described, labels, fresh)
    return model, card, report


def adapt_input(kernel: NDArray[Any], channels: int) -> NDArray[Any]:
    """Fit a kernel `(out, 3, height, width)` to other channels, as timm does.

    One channel gets the sum over RGB; more repeat RGB, scaled so that activations keep
    their size.
    """
    if channels == kernel.shape[1]:
        return kernel
    if kernel.shape[1] != 3:
        raise UsageError(
            "Only weights for RGB can be adapted to other channels. Received: weights "
            f"for {kernel.shape[1]} channels and an input of {channels}."
        )
    if channels == 1:
        return np.asarray(kernel.sum(axis=1, keepdims=True))
    repeated = np.tile(kernel, (1, math.ceil(channels / 3), 1, 1))[:, :channels]
    return np.asarray(repeated * np.float32(3 / channels))


def _config(found: Found) -> Config:
    """Return what is known of a file besides its content."""
    if row := found.published:
        labels = imagenet_labels()
        return Config(
            preprocessing=row.preprocessing, labels=labels, licence=row.licence
        )
    return read_config(found.config) if found.config else Config()


def _check_told(
    contents: Contents, found: Found, config: Config, described: Architecture,
    options: dict[str, Any],
) -> None:  # fmt: skip
    """Refuse what the tensors do not tell, and nobody said."""
    if config.pooling != "avg" and described.include_top:
        raise CheckpointError(
            f"{found.config} has global_pool={config.pooling!r} in front of the "
            "classifier, where models of reszoo have average pooling. Take the "
            f"backbone: reszoo.build({described.name!r}, weights=..., "
            "include_top=False)."
        )
    if contents.dilates and options.get("output_stride") is None:
        raise CheckpointError(
            f"{found.source} is a segmentation model, whose backbone may have dilation "
            "instead of strides, which tensors do not tell. Say which: "
            f"reszoo.build({described.name!r}, weights=..., include_top=False, "
            "output_stride=8) is torchvision's, 32 keeps all strides."
        )


def _check_size(saved: Architecture, tensors: Tensors, source: str) -> None:
    """Refuse a card of a custom spec that is larger than its file, before building."""
    described = sum(map(math.prod, tensor_shapes(saved).values()))
    held = sum(tensor.size for tensor in tensors.values())
    if described > held and saved.spec not in SPECS.values():
        raise CheckpointError(
            f"{source} does not hold the weights of {saved.name}: the spec on its card "
            f"has {described:,} weights, the file {held:,}."
        )


def _made_card(
    contents: Contents, found: Found, config: Config, spec: ResNetSpec | None
) -> tuple[Card, list[str]]:
    """Make the card of a file that has none, and list what is to be said of that."""
    row, scheme = found.published, contents.scheme
    spec = _configured_spec(config, found, spec)
    stride_in = config.stride_in or contents.stride_in
    described = infer_architecture(contents.tensors, found.source, spec, stride_in)
    notes = [_OPTION_A] if described.shortcut == "identity" else []
    record = config.preprocessing or contents.preprocessing
    labels = config.labels or contents.labels
    provenance = {"source": found.source}
    provenance |= {"address": row.address} if row else {}
    provenance |= {"licence": config.licence} if config.licence else {}
    height, width, channels = described.input_shape
    if record is not None and described.include_top:
        height, width = record.eval_sides
    if config.output_stride is not None:
        described = replace(described, output_stride=config.output_stride)
    described = replace(described, input_shape=(height, width, channels))
    card = new_card(described)
    fitting = labels if labels and len(labels) == described.classes else None
    if labels and not fitting and (found.config or scheme):
        notes.append(
            f"{len(labels)} labels for {described.classes or 'no'} classes are left out"
        )
    if scheme and found.config is None:
        notes += filter(None, [scheme.note])
        if scheme.levels and record is None:
            mean, std = (tuple(x / 255 for x in each) for each in scheme.levels)
            record = replace(card.preprocessing, mean=mean, std=std)
    metrics = () if row is None else _metrics(row)
    record = _for_channels(record or card.preprocessing, channels)
    return replace(
        card, labels=fitting, preprocessing=record, provenance=provenance,
        metrics=metrics,
    ), notes  # fmt: skip


def _configured_spec(
    config: Config, found: Found, spec: ResNetSpec | None
) -> ResNetSpec | None:
    """Return the spec that a config names; tensors alone do not tell all networks."""
    name = config.architecture
    if name is None or (spec and spec.name == name):
        return spec
    if config.spec is None:
        raise CheckpointError(
            f"{found.config} names the architecture {name!r}, which reszoo does not "
            "have; the tensors of others may fit and compute something else. If it is "
            f"a ResNet, describe it: reszoo.load(path, reszoo.ResNetSpec("
            f"name={name!r}, ...))."
        )
    if spec in SPECS.values() and spec != config.spec:
        raise _other_model(found.source, config.spec.name, spec, ", by its config.json")
    return spec or config.spec


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
    kept = saved.options()
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


def _renamed(saved: Card, labels: tuple[str, ...] | None, source: str) -> bool:
    """Return whether the given classes differ from those of the weights."""
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
    *sides, channels = described.input_shape
    record = _for_channels(saved.preprocessing, channels)
    if None not in sides and as_size(sides) != record.eval_size:
        record = replace(record, train_size=as_size(sides), eval_size=as_size(sides))
    # What was measured is of these weights with their classifier, at this size.
    same = not fresh and described.include_top and record == saved.preprocessing
    same &= described.output_stride == saved.resnet.output_stride
    return replace(
        saved, architecture=described, labels=labels or kept, preprocessing=record,
        metrics=saved.metrics if same else (),
        confidence=saved.confidence if same else None,
    )  # fmt: skip


def _for_channels(record: Preprocessing, channels: int) -> Preprocessing:
    """Fit mean and deviation to the channels: their mean for one, else in turn."""
    if channels == len(record.mean):
        return record

    def fitted(values: tuple[float, ...]) -> tuple[float, ...]:
        grey = channels == 1
        return (sum(values) / 3,) if grey else tuple(islice(cycle(values), channels))

    return replace(record, mean=fitted(record.mean), std=fitted(record.std))


def _metrics(row: PublishedWeights) -> tuple[Metric, ...]:
    """Return the publisher's figures at the size of the card."""
    size, _, top1, top5 = row.results[0]
    data = f"ImageNet-1k validation at {size} px, as published"
    return tuple(
        Metric(name=name, value=round(value / 100, 5), data=data)
        for name, value in (("top1", top1), ("top5", top5))
        if value is not None
    )
