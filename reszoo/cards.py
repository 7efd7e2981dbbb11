"""The card: what travels with weights wherever they go."""

import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import metadata
from types import NoneType
from typing import Annotated, Any
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from reszoo.architecture import Architecture, KerasArchitecture, architecture_from_json
from reszoo.errors import MALFORMED, CheckpointError, UsageError, summarized
from reszoo.fields import check_fields, coerce, typed
from reszoo.files import parse_json
from reszoo.preprocessing import (
    Preprocessing,
    as_size,
    default_preprocessing,
    shown_size,
)

# Raised when a field changes its meaning; readers refuse what they do not know.
CARD_VERSION = 1
_FRESH = "initialised, not trained"
# What `reszoo.compile` says of the weights that `fit` is going to change.
COMPILED = "compiled with reszoo for fit"
CHANGED = "trained or changed with Keras"
# How the text of an attached card begins.
_ATTACHED = '{"reszoo_card":'
_PACKAGES = ("reszoo", "tensorflow", "keras", "numpy")
# Characters of a reason from a stranger's card.
_REASON = 500


# The parts of a URL: scheme, user and password, address, query and fragment.
_URL = re.compile(r"(?<![\w+.-])([A-Za-z][\w+.-]*://)([^\s/?#]*@)?([^\s?#]*)([?#]\S*)?")


def public_origin(value: Any) -> Any:
    """Return what of an origin may be recorded or printed.

    Queries, fragments, users and passwords of URLs are removed, which may be secrets
    (such as `?X-Amz-Signature=...`): cards are inside every file that is passed on. The
    value is a text with or without URLs, or lists and mappings of such.
    """
    if isinstance(value, str):
        return _URL.sub(r"\1\3", value) if "://" in value else value
    if isinstance(value, Mapping):
        return {public_origin(k): public_origin(each) for k, each in value.items()}
    return [*map(public_origin, value)] if isinstance(value, list | tuple) else value


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One measured number."""

    name: str  # what ("top1", "top5", "loss"); shares are in 0..1
    value: float
    data: str  # on what: data set, split and number of images


@dataclass(frozen=True, kw_only=True)
class Confidence:
    """What the probabilities of weights mean, measured on half of a validation split.

    That half was neither trained on nor is it evaluated on.

    Attributes:
        temperature: What the model's own logits are divided by for calibrated ones.
        keep: Share of the known images that reach each threshold, in 0..1.
        min_logit: An image whose largest calibrated logit is below is unknown.
        min_probability: The same of the largest probability, for files without logits.
        error_before: Expected calibration error on the other half, in 0..1.
        error_after: The same of calibrated probabilities.
        images: Number of images that all of this was chosen on.
        data: Data set and split.
        data_sha256: See `content_digest`.
    """

    temperature: Annotated[float, "(0, inf)"]
    keep: float
    min_logit: float
    min_probability: float
    error_before: float
    error_after: float
    images: int
    data: str
    data_sha256: str

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class Card:
    """Labels, preprocessing and origin of a set of weights.

    Attributes:
        architecture: Spec and options of the model that the weights belong to, or what
            is known of a Keras model that reszoo did not build.
        labels: In the order of the outputs; None if unknown.
        preprocessing: How images become inputs.
        provenance: Where the weights come from: source, recipe, seed, licence...
        metrics: What was measured with them.
        versions: Versions of the libraries that wrote the card.
        confidence: Temperature and thresholds, if they were measured.
    """

    architecture: Architecture | KerasArchitecture
    labels: tuple[str, ...] | None
    preprocessing: Preprocessing
    provenance: Mapping[str, Any] = field(default_factory=dict)
    metrics: tuple[Metric, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    confidence: Confidence | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "provenance", public_origin(self.provenance))
        # As the labels of data: a Mac's names of folders are in another form.
        given = coerce("labels", self.labels, (tuple[str, ...], NoneType))
        labels = tuple(normalize("NFC", label) for label in given or ())
        if given is not None:
            object.__setattr__(self, "labels", labels)
            if (classes := self.architecture.classes) != len(labels):
                raise UsageError(
                    "There must be one label per class. Received: "
                    f"{len(labels)} labels for {classes} classes."
                )
        if twice := [x for x, times in Counter(labels).items() if times > 1]:
            told = summarized(twice)
            raise UsageError(f"Labels must differ. Received twice: {told}.")
        if wrong := [repr(x) for x in labels if not x or not x.isprintable()]:
            raise UsageError(
                "A label must be one line of printable text, because labels.txt has "
                f"one label per line. Received: {summarized(wrong)}."
            )
        channels = self.architecture.input_shape[2]
        if channels != len(self.preprocessing.mean):
            raise UsageError(
                "mean and std must have one entry per channel of the model's input, "
                f"{channels}. Received: mean={self.preprocessing.mean}."
            )

    @property
    def resnet(self) -> Architecture:
        """The spec and options to build the model with.

        Raises:
            UsageError: It is a model that reszoo did not build.
        """
        if isinstance(self.architecture, KerasArchitecture):
            raise UsageError(
                f"{self.architecture.name} is a Keras model that reszoo did not build: "
                "only its exported files can be used. Load the model with Keras."
            )
        return self.architecture

    @property
    def temperature(self) -> float:
        """What the model's own logits are divided by; 1 if that was not measured."""
        return self.confidence.temperature if self.confidence else 1.0

    @property
    def is_fresh(self) -> bool:
        """Whether the weights are random initial ones."""
        return self.provenance.get("source") == _FRESH

    def after(
        self, provenance: Mapping[str, Any], metrics: Sequence[Metric] = ()
    ) -> "Card":
        """Return the card of weights that were trained from these, with metrics.

        The provenance of these is added to that of the new ones as "began_as", unless
        they were random or of unknown origin.
        """
        unknown = self.provenance == {"source": CHANGED}
        known = {} if self.is_fresh or unknown else dict(self.provenance)
        before = {"began_as": known} if known else {}
        return replace(
            self, provenance={**provenance, **before}, metrics=tuple(metrics),
            versions=library_versions(), confidence=None,
        )  # fmt: skip

    def label(self, index: int) -> str:
        """Return the label of a class, or its number where labels are unknown."""
        return self.labels[index] if self.labels else str(index)

    def check_input(self) -> None:
        """Refuse a model that takes other images than its preprocessing makes.

        A UsageError if it takes neither RGB nor grey images, or has a fixed height and
        width that differ from those on its card.
        """
        *sides, channels = self.architecture.input_shape
        if channels not in (1, 3):
            raise UsageError(
                "reszoo's own training, prediction and export work on RGB and grey "
                f"images. Received: a model with {channels} input channels; use Keras' "
                "own methods for it."
            )
        made = self.preprocessing.eval_sides
        if any(own not in (None, side) for own, side in zip(sides, made, strict=True)):
            raise UsageError(
                f"The model was built for images of {shown_size(sides, ' x ')}, its "
                f"preprocessing shows it {shown_size(made, ' x ')} (height x width). "
                f"Build it with input_shape=({made[0]}, {made[1]}, {channels}), or set "
                f"eval_size={as_size(sides)}."
            )

    def to_json(self) -> dict[str, Any]:
        """Return the card as plain JSON values."""
        return {
            "card_version": CARD_VERSION,
            "architecture": self.architecture.to_json(),
            "labels": list(self.labels) if self.labels is not None else None,
            "preprocessing": self.preprocessing.to_json(),
            "provenance": dict(self.provenance),
            "metrics": [asdict(metric) for metric in self.metrics],
            "versions": dict(self.versions),
            # Left out where there is none, so that other cards stay as they were.
            **({"confidence": asdict(self.confidence)} if self.confidence else {}),
        }

    def to_text(self) -> str:
        """Return the card as one line of JSON, the same for the same card."""
        content = self.to_json()
        return json.dumps(content, ensure_ascii=False, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, content: Any) -> "Card":
        """Return what `to_json` wrote.

        Raises:
            CheckpointError: Another card version, or fields of another kind.
        """
        try:
            version = content["card_version"]
            if version != CARD_VERSION:
                raise CheckpointError(
                    f"This reszoo reads card version {CARD_VERSION}. Received: version "
                    f"{version}; use the release that wrote the file, or a newer one."
                )
            # What a later release adds is ignored.
            found = {name: content[name] for name in _FIELDS}
            found["architecture"] = architecture_from_json(found["architecture"])
            return typed(cls, {**found, "confidence": content.get("confidence")})
        except MALFORMED as error:
            reason = f"{type(error).__name__}: {error}"[:_REASON]
            raise CheckpointError(f"The card cannot be read ({reason}).") from error

    @classmethod
    def from_text(cls, text: str) -> "Card":
        """Return what `to_text` wrote (see `from_json`)."""
        try:
            content = parse_json(text)
        except ValueError as error:
            raise CheckpointError(f"The card is not JSON ({error}).") from error
        return cls.from_json(content)


# Fields that every card has.
_FIELDS = {field.name for field in fields(Card)} - {"confidence"}
# Layer -> kind of weight ("kernel", "gamma", ...) -> array.
Layers = Mapping[str, Mapping[str, NDArray[Any]]]


@dataclass(frozen=True)
class AttachedCard:
    """A card inside the config of a Keras model, with what it was attached to."""

    card: Card
    structure: int  # see `describe_structure`
    weights: int  # see `checksum`

    def to_text(self) -> str:
        """Return one line of JSON."""
        marks = f'"structure": {self.structure}, "weights": {self.weights}'
        return f"{_ATTACHED} {self.card.to_text()}, {marks}}}"

    @classmethod
    def from_text(cls, text: Any) -> "AttachedCard | None":
        """Return what `to_text` wrote; None for anything else.

        Raises:
            CheckpointError: The card is damaged, or of another version.
        """
        if not isinstance(text, str) or not text.startswith(_ATTACHED):
            return None
        try:
            content = parse_json(text)
            marks = int(content["structure"]), int(content["weights"])
        except MALFORMED as error:
            raise CheckpointError(f"The card is damaged ({error!r:.80}).") from error
        return cls(Card.from_json(content["reszoo_card"]), *marks)

    def of_weights(self, layers: Layers) -> Card:
        """Return the card of these weights: what was measured with others goes."""
        if self.weights == checksum(layers):
            return self.card
        if self.card.provenance.get("source") == COMPILED:
            return replace(self.card, metrics=(), confidence=None)
        return self.card.after({"source": CHANGED})


def describe_structure(layers: Iterable[tuple[str, str, int, str]]) -> int:
    """Return a checksum of the layers of a model: class, name, units, initializer.

    The last two of dense layers: another classifier may have the name of reszoo's.
    """
    return zlib.crc32(json.dumps(sorted(layers)).encode())


def checksum(layers: Layers) -> int:
    """Return a checksum that tells whether weights have changed."""
    found = 0
    for layer, weights in sorted(layers.items()):
        for kind, values in sorted(weights.items()):
            found = zlib.crc32(f"{layer}/{kind}".encode(), found)
            found = zlib.crc32(np.ascontiguousarray(values, np.float32).data, found)
    return found


def new_card(architecture: Architecture, labels: tuple[str, ...] | None = None) -> Card:
    """Return the card of a freshly built model, with its variant's preprocessing."""
    *sides, channels = architecture.input_shape
    size = None if None in sides else as_size(sides)
    preprocessing = default_preprocessing(architecture.spec, size)
    if channels != preprocessing.channels:
        both = (preprocessing.mean, preprocessing.std)
        mean, std = ((sum(values) / 3,) * channels for values in both)
        preprocessing = replace(preprocessing, mean=mean, std=std)
    return Card(
        architecture=architecture, preprocessing=preprocessing, labels=labels,
        provenance={"source": _FRESH}, versions=library_versions(),
    )  # fmt: skip


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that decide what a model computes."""
    return {name: metadata.version(name) for name in _PACKAGES}
