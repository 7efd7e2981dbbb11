"""Build, load and save models by name."""

from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any, cast, get_args

import keras

from reszoo.architecture import OPTIONS, architecture, convolutions, tensor_shapes
from reszoo.cards import AttachedCard, Card, checksum, describe_structure, new_card
from reszoo.console import say
from reszoo.errors import UsageError, known, summarized
from reszoo.fields import coerce, converted
from reszoo.files import StrPath, as_path
from reszoo.resnet import build_resnet
from reszoo.specs import ResNetSpec, find_spec
from reszoo.weights import loading, location, order, safetensors, schemes
from reszoo.weights.names import COUNTER, LoadReport, Tensors, layers_of, to_tensors

_REPORT = "_reszoo_load_report"
_COUNTERS = "_reszoo_counters"


def build(
    variant: str | ResNetSpec | None = None, /, *,
    weights: StrPath | None = None, include_top: bool = True,
    input_shape: Sequence[int | None] | None = None, pooling: str | None = None,
    classes: int | Sequence[str] | None = None,
    classifier_activation: str | None = None, shortcut: str | None = None,
    stride_in: str | None = None, features: str | None = None,
    output_stride: int | None = None, dropout: float | None = None,
    zero_init_residual: bool = False, allow_noncommercial: bool = False,
    match: str | None = None, seed: int | None = None, name: str | None = None,
) -> keras.Model:  # fmt: skip
    """Build a ResNet as a functional Keras model.

    The arguments are those of `keras.applications`. The input is normalised RGB;
    `reszoo.card(model).preprocessing.normalise` makes it from RGB in 0..255.

    Args:
        variant: One of `reszoo.list_models()`, such as "resnet50" or "plain20", or a
            `ResNetSpec` for a model of your own. None is the model that the weights
            belong to.
        weights: None for random weights; "imagenet" for the variant's default published
            weights; others by name, such as "timm/a1_in1k" (`reszoo list --weights`);
            "cifar10" for weights that come with reszoo (trained on CIFAR-10 as
            JPEGs); "hf://owner/repo"; a URL; or the path of a `.safetensors` file, a
            torch file, a `.h5` file of keras.applications or a timm folder.
        include_top: Whether to end in a classifier. Without it the output is the
            last stage, `(batch, height / 32, width / 32, channels)` for the
            ImageNet models, and a quarter of each side for the CIFAR models.
        input_shape: `(height, width, channels)`; height and width may be None, for
            any size. The default is the size the variant was designed for; without
            top any size. For other channels than 3, the weights of `conv1` are
            adapted as timm does.
        pooling: Without top: "avg" or "max" pools the last stage to
            `(batch, channels)`.
        classes: Number of classes, or the labels in order. If the number or the
            labels are not those of the weights, the backbone is loaded and the head
            has random weights.
        classifier_activation: None for logits, "softmax" for probabilities.
        shortcut: "identity" (the paper's option A: zero channels, no parameters),
            "projection" (B: a 1x1 convolution where the shape changes),
            "projection-all" (C: in every block) or "none" (a plain network). B is
            the default of the ImageNet models, A of the CIFAR models.
        stride_in: Which convolution of a bottleneck has the stride: "3x3"
            (default; torchvision's v1.5) or "1x1" (the paper, keras.applications).
        features: Without top: "pyramid" outputs every stage, as a dict with the
            keys "layer1", "layer2" and so on.
        output_stride: 8 or 16 keep the last stages of an ImageNet model at an 8th or
            16th of the sides of the image, for segmentation and detection: dilated
            convolutions replace the strides, as in torchvision
            (`replace_stride_with_dilation`) and timm. Weights fit all of them.
        dropout: Probability that training sets a value in front of the last
            convolution of a block to zero, as in wide ResNets (arXiv:1605.07146,
            section 2.4). None is that of the weights' card, or 0.
        zero_init_residual: Whether the last batch normalisation of every block starts
            with scale 0, as in torchvision; for random weights only.
        allow_noncommercial: Consent to weights whose licence forbids commercial use.
        match: "order" assigns the tensors of a file with unknown names, see `load`.
        seed: Seed of the random weights; None for other weights each time.
        name: Name of the Keras model; the variant's by default.

    Returns:
        A functional model with layers named as torchvision names modules.

    Raises:
        UsageError: A name is unknown or options contradict each other.
        CheckpointError: The weights belong to another model.

    Example:
        >>> reszoo.build("resnet18", classes=["cat", "dog"]).output_shape
        (None, 2)
    """
    given, (count, labels) = locals(), _counted(classes)
    options: dict[str, Any] = {option: given[option] for option in OPTIONS}
    options["classes"] = count
    described = None if variant is None else architecture(variant, **options)
    if weights is None:
        if described is None:
            raise UsageError(
                "build needs the name of a model, or weights that tell it. Received: "
                'neither; pass "resnet50", for example.'
            )
        model = build_resnet(
            described, zero_init_residual=zero_init_residual, seed=seed, name=name
        )
        set_card(model, new_card(described, labels))
        return model
    if zero_init_residual:
        raise UsageError(
            "zero_init_residual is for random weights only. Received: "
            f"zero_init_residual=True with weights={str(weights)!r}."
        )
    known, spec = (described.name, described.spec) if described else (None, None)
    found = location.locate(weights, known, allow_noncommercial=allow_noncommercial)
    contents = _read(found, spec, match)
    return _loaded(contents, found, spec, options, labels, seed=seed, name=name)


def load(
    path: StrPath, variant: str | ResNetSpec | None = None, *, match: str | None = None
) -> keras.Model:
    """Load a checkpoint: the model, its weights and its card.

    The spec is that of the card, or inferred from the tensors where another library
    wrote the file. A torch file has no preprocessing: ImageNet's is assumed.

    Args:
        path: A `.safetensors` file, a torch file (`.pth`, `.pt`, `.bin`, `.th`), a
            `.h5` file of keras.applications, a folder of timm, Transformers or
            `reszoo.train`, "hf://owner/repo" or a URL.
        variant: The name or spec of the model. Needed only for tensors without a
            card that fit several, such as those of plain networks.
        match: "order" is for a file with unknown names of modules (whose tensors are
            called weight, bias, running_mean, running_var): they are assigned to the
            variant by order and shapes. What fits in more than one way is refused,
            and the mapping is printed.

    Raises:
        CheckpointError: The file is missing, damaged, or of an unknown model.
    """
    spec = None if variant is None else find_spec(variant)
    found = location.locate(path, None if spec is None else spec.name)
    return _loaded(_read(found, spec, match), found, spec, {})


def _read(
    found: location.Found, spec: ResNetSpec | None, match: str | None
) -> schemes.Contents:
    contents = location.read_located(found)
    if match is None:
        return contents
    known("match", match, get_args(order.Match))
    return order.match_by_order(contents, spec, found.source)


def save(model: keras.Model, path: StrPath, card: Card | None = None) -> Path:
    """Write a model's weights and card, in one step.

    torchvision and timm load the file with `strict=True`.

    Args:
        model: A model from `build`, `load` or `train`.
        path: A `.safetensors` file, or a timm folder (no suffix) with
            `model.safetensors` and `config.json`. An existing file is replaced when
            the new one is complete.
        card: The card to write instead of the model's own.

    Raises:
        UsageError: The path has another suffix, the model no card, or the card is of
            another model or of the weights before they were trained.
    """
    target = as_path(path)
    written = coerce("card", card, (Card, NoneType)) or get_card(model)
    counters: Tensors = getattr(model, _COUNTERS, {})
    tensors = {**to_tensors(model), **counters}
    _check_shapes(model, written, tensors)
    _check_measured(model, card)
    if target.suffix == safetensors.SUFFIX:
        safetensors.write(target, tensors, written)
    elif not target.suffix:
        safetensors.write_timm_folder(target, tensors, written)
    else:
        raise UsageError(
            f"The path must end in {safetensors.SUFFIX}, or have no suffix for a timm "
            f"folder. Received: {str(path)!r}."
        )
    return target


def from_keras_applications(model: keras.Model) -> keras.Model:
    """Convert a ResNet of `keras.applications` that is in memory to the same logits.

    V2 models keep their biases and epsilon. Those of V1 models move into batch
    normalisation, and their BGR becomes RGB.

    Args:
        model: ResNet50, 101 or 152, V1 or V2, from `keras.applications`, with or
            without top.

    Raises:
        CheckpointError: Another kind of model.
    """
    name, config = coerce("model", model, (keras.Model,)).name, model.get_config()
    contents = location.keras_applications_contents(layers_of(model), name, config)
    height, width, channels = model.input_shape[1:]
    shape = {"input_shape": (height, width, channels or 3)}
    found = location.Found(path=Path(name), source=name)
    return _loaded(contents, found, None, shape)


def get_card(model: keras.Model) -> Card:
    """Return the card of a model: labels, preprocessing, origin, metrics.

    It is in the model's own config, so that copies and Keras' files have it as well.
    Once the weights have changed, it no longer has the metrics of the former ones.

    Raises:
        UsageError: The model was not made by reszoo, or has other layers since.
    """
    return own_card(model).of_weights(layers_of(model))


def own_card(model: keras.Model) -> AttachedCard:
    """Return the card of a model as it was attached, without looking at the weights.

    The errors are those of `get_card`, which reads every weight.
    """
    if not isinstance(model, keras.Model):
        raise UsageError(
            f"A card is of a Keras model. Received: {type(model).__name__}; "
            "reszoo.load(path) returns the model of a file."
        )
    found = attached_card(model)
    if found is not None and found.structure == _structure(model):
        return found
    way_out = (
        "Use a model from reszoo.build, reszoo.load or reszoo.train, or export it as a "
        "Keras model: reszoo.export(model, folder, labels=[...], preprocessing=...)."
    )
    if found is not None:
        raise UsageError(
            f"{model.name!r} has no card of its own: it has layers of a "
            f"{found.card.architecture.name} from reszoo, and others than that model. "
            f"For other classes use reszoo.build(..., classes=[...]). {way_out}"
        )
    reason = "reszoo did not make it"
    for each in model.layers:
        if isinstance(each, keras.Model) and attached_card(each):
            inside = f"reszoo.card(model.get_layer({each.name!r}))"
            reason = f"reszoo made only the model inside it, whose card is {inside}"
    if {"conv1", "layer1.0.conv1"} <= {layer.name for layer in model.layers}:
        reason = (
            "its layers are named as reszoo's, but its config holds no card (reszoo "
            "before 0.2 did not write it there). Load the checkpoint of reszoo.save"
        )
    raise UsageError(f"{model.name!r} has no card: {reason}. {way_out}")


def attached_card(model: keras.Model) -> AttachedCard | None:
    """Return the card in the config of a model's layers, whatever became of them."""
    for layer in model.layers:
        initializer = getattr(layer, "bias_initializer", None)
        found = AttachedCard.from_text(getattr(initializer, "value", None))
        if found is not None:
            return found
    return None


def _structure(model: keras.Model) -> int:
    def described(x: Any) -> tuple[str, str, int, str]:
        dense = isinstance(x, keras.layers.Dense)
        kernel = type(x.kernel_initializer).__name__ if dense else ""
        return type(x).__name__, x.name, x.units if dense else 0, kernel

    return describe_structure(map(described, model.layers))


def _check_shapes(model: keras.Model, card: Card, tensors: Tensors) -> None:
    """Refuse to save a card of another architecture than the weights."""
    weights = {name: v for name, v in tensors.items() if not name.endswith(COUNTER)}
    held = {name: value.shape for name, value in weights.items()}
    expected = tensor_shapes(card.resnet)
    differing = [n for n in {**expected, **held} if expected.get(n) != held.get(n)]
    if differing:
        raise UsageError(
            f"The card must be of the model's own weights. Received: the card of a "
            f"{card.architecture.name} with {card.architecture.classes} classes, which "
            f"{model.name!r} differs from in {summarized(differing)}. Build the model "
            "with its classes: reszoo.build(name, weights=..., classes=[...])."
        )


def _check_measured(model: keras.Model, card: Card | None) -> None:
    """Refuse to save a given card with what was measured with other weights."""
    found = attached_card(model) if card else None
    if found is None or found.weights == checksum(layers_of(model)):
        return
    for name in ("metrics", "confidence"):
        if getattr(card, name) and getattr(card, name) == getattr(found.card, name):
            raise UsageError(
                f"The {name} of a card must be of the weights that are saved. Received:"
                f" those measured before the weights of {model.name!r} changed; leave "
                "card out, or use dataclasses.replace(card, metrics=(), "
                "confidence=None)."
            )


def load_report(model: keras.Model) -> LoadReport | None:
    """Return which tensors of a file were loaded into a model.

    Returns:
        The report, or None for a model with random weights.
    """
    return cast(LoadReport | None, getattr(model, _REPORT, None))


def set_card(model: keras.Model, card: Card) -> None:
    """Replace a model's card, after training for example.

    All of Keras' ways of saving and copying keep a layer's config. The card is that of
    a convolution without bias, in the place of the bias' initializer.
    """
    listed, biased = convolutions(card.resnet), card.resnet.spec.bias
    first = next(each for each in listed if each.norm or not biased)
    attached = AttachedCard(card, _structure(model), checksum(layers_of(model)))
    initializer = keras.initializers.Constant(attached.to_text())
    model.get_layer(first.name).bias_initializer = initializer


def _counted(
    classes: int | Sequence[str] | None,
) -> tuple[int | None, tuple[str, ...] | None]:
    """Return the number of classes, and the labels if they were given."""
    if classes is None:
        return None, None
    try:
        found = converted(classes, int, tuple[str, ...])
    except TypeError as error:
        hint = f"; write [{classes!r}, ...]" if isinstance(classes, str) else ""
        raise UsageError(
            "classes must be a number, or a list of labels. "
            f"Received: classes={classes!r}{hint}."
        ) from error
    return (found, None) if isinstance(found, int) else (len(found), found)


def _loaded(contents: schemes.Contents, *request: Any, **of_model: Any) -> keras.Model:
    """Build the model of a weight file (see `load_weights`) and attach its card."""
    model, card, report = loading.load_weights(contents, *request, **of_model)
    if report.head or report.notes or report.skipped:
        say(str(report))
    for theirs, ours in report.mapping:
        say(f"{theirs} -> {ours}")
    tensors = contents.tensors.items()
    setattr(model, _COUNTERS, {k: v for k, v in tensors if k.endswith(COUNTER)})
    setattr(model, _REPORT, report)
    set_card(model, card)
    return model
