"""Choose activation ranges from calibration images."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from reszoo.cards import Card
from reszoo.data.examples import Examples
from reszoo.data.sources import Source, check_classes
from reszoo.errors import DataError, ExportError
from reszoo.metrics import prepared_batches
from reszoo.preprocessing import Pixels, Preprocessing
from reszoo_export.quantization.grids import Steps, full_steps, narrow_steps, on_grid
from reszoo_export.quantization.integer_model import (
    LEVELS,
    Ranges,
    Weights,
    build_integer_net,
    byte_weights,
    quantized_layers,
    set_ranges,
)

# TFLite's and ONNX Runtime's guides name 100 to 500; below 100 ranges are luck.
LEAST = 100
MOST = 300
# Enough to tell good ranges from bad by the divergence of whole answers.
TRIAL = 200
# A picture whose pixels differ less is blank and tells nothing about activations.
_BLANK = 1.0
# Among a hundred photos somewhere is a bright pixel; where none is, they are scaled.
_DARK = 32


@dataclass(frozen=True, eq=False)
class Calibration:
    """Distinct images as the net sees them, none of them used to verify.

    Attributes:
        images: uint8 `(n, height, width, 3)`: what sets the ranges.
        trial: The same of others: what tells good ranges from bad; empty where
            there are no others, and the first do both.
        choices: What was chosen with them, by net, so that formats share it.
    """

    images: Pixels
    trial: Pixels = field(default_factory=lambda: np.zeros((0, 0, 0, 3), np.uint8))
    choices: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        images = self.images
        if images.dtype != np.uint8 or images.ndim != 4:
            raise DataError(
                "Calibration images must be uint8 RGB in 0..255 of shape (n, height, "
                f"width, 3). Received: {len(images)} of {images.dtype} {images.shape}; "
                "normalisation happens inside."
            )
        _refuse(images, "blank", [image.std() <= _BLANK for image in images])
        if len(images) and images.max() < _DARK:
            raise DataError(
                "Calibration images must be RGB in 0..255, not scaled. Received: "
                f"{len(images)} images with values up to {images.max()}."
            )
        marks = [fingerprint(image) for image in images]
        if len(set(marks)) < LEAST or len(set(marks)) < len(marks):
            raise DataError(
                f"Calibration needs at least {LEAST} images, all distinct. Received: "
                f"{len(marks)}, of which {len(set(marks))} are distinct; give a larger "
                "data set."
            )

    @property
    def trial_images(self) -> Pixels:
        """Return the images on which ranges are compared."""
        return self.trial if len(self.trial) else self.images

    def batches(self) -> Iterator[np.ndarray]:
        """Yield float32 `(1, height, width, 3)` in 0..255, one image at a time.

        The first has a black and a white corner, so that the input's range is all
        of 0..255 and a byte means itself.
        """
        for index, image in enumerate(self.images):
            pixels = image[None].astype(np.float32)
            if not index:
                pixels[0, 0, 0], pixels[0, -1, -1] = 0, 255
            yield pixels


def draw_calibration(
    source: Source, card: Card, avoid: Pixels, seed: int = 0
) -> Calibration:
    """Draw a class-balanced calibration set from training images.

    Args:
        source: Where from: its training split.
        card: Of the model, for labels and preprocessing.
        avoid: uint8 images that must not be among them: the verification images.
        seed: Decides which images are drawn.

    Raises:
        DataError: Other classes than the model's, or too few distinct images.
    """
    check_classes(source, card.labels, "the model")
    examples = source.examples("train")
    # Twice as many as needed, for some are blank, repeated or verified with.
    order = _balanced_order(examples, seed)[: 2 * (MOST + TRIAL)]
    seen = {fingerprint(image) for image in avoid}
    chosen: list[Pixels] = []
    for batch in prepared_batches(examples.take(order), card.preprocessing, 64):
        for image in batch:
            mark = fingerprint(image)
            if mark not in seen and image.std() > _BLANK:
                chosen.append(image)
            seen.add(mark)
        if len(chosen) >= MOST + TRIAL:
            break
    size = card.preprocessing.eval_size
    images = np.array(chosen, np.uint8).reshape(-1, size, size, 3)
    # Of a small data set calibration comes first.
    first = min(MOST, max(LEAST, len(images) - TRIAL))
    return Calibration(images[:first], images[first : first + TRIAL])


def fingerprint(image: Pixels) -> str:
    """Return a hash of an image's content."""
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()


def _refuse(images: Pixels, kind: str, found: list[bool]) -> None:
    if any(found):
        raise DataError(
            f"Calibration images must not be {kind}. Received: {sum(found)} {kind} "
            f"of {len(images)}."
        )


def _balanced_order(examples: Examples, seed: int) -> np.ndarray:
    """Return all indices, taking turns among the classes."""
    generator = np.random.default_rng(seed)
    turns = np.empty(len(examples))
    for label in np.unique(examples.targets):
        members = generator.permutation(np.flatnonzero(examples.targets == label))
        turns[members] = np.arange(len(members))
    return np.lexsort((examples.targets, turns))


# Range of an activation: the least and the greatest value that this share of the
# images stays within. 1 is min-max, what converters do by themselves.
SHARES = (1.0, 0.98, 0.95, 0.9, 0.8)
_BATCH = 25
# A range must not be empty, even where an activation is 0 in every image.
_LEAST = 1e-6
Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """How one kind of ranges did.

    Attributes:
        share: Of the calibration images that stay within the ranges.
        divergence: Kullback and Leibler's, of the answers from the float net's, in
            nats, mean over the trial images; features are taken for logits.
        agreement: Share of the trial images with the float net's top-1.
    """

    share: float
    divergence: float
    agreement: float


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The integers of a net: what was chosen, and from what.

    Attributes:
        weights: On their grids of 255 steps, biases corrected, by layer.
        narrow_weights: The same on grids on which no pair overflows 16 bits.
        narrow_steps: Of those grids.
        ranges: Of activations, by layer; of the answers as well.
        best: How the ranges chosen did.
        trials: How each kind did.
        images: Number of calibration images.
        tried_on: Number of trial images.
    """

    weights: Weights = field(repr=False)
    narrow_weights: Weights = field(repr=False)
    narrow_steps: Steps = field(repr=False)
    ranges: Ranges = field(repr=False)
    best: Trial
    trials: tuple[Trial, ...]
    images: int
    tried_on: int

    @property
    def inner_ranges(self) -> Ranges:
        """Return the ranges without that of the answers."""
        return dict(list(self.ranges.items())[:-1])

    def to_json(self) -> dict[str, Any]:
        """Return what a report tells of it, as plain JSON values."""
        return {
            "best": asdict(self.best),
            "trials": [asdict(trial) for trial in self.trials],
            "images": self.images,
            "tried_on": self.tried_on,
        }


def choose(net: keras.Model, record: Preprocessing, calibration: Calibration) -> Choice:
    """Choose the ranges with which a net's answers change least.

    Args:
        net: Normalised pixels in, logits or features out, no batch normalisation.
        record: How pixels are normalised.
        calibration: Images that give the ranges, and others that judge them.

    Returns:
        The same for the same net and calibration, without measuring twice.
    """
    if net not in calibration.choices:
        calibration.choices[net] = _choose(net, record, calibration)
    chosen: Choice = calibration.choices[net]
    return chosen


def _choose(
    net: keras.Model, record: Preprocessing, calibration: Calibration
) -> Choice:
    weights = byte_weights(net, record)
    exact = build_integer_net(net, weights, {})
    layers = [*quantized_layers(net), net.layers[-1].name]
    extremes, inputs = observe(exact, layers, calibration.images)
    full, narrow = (
        {name: steps_of(kernel) for name, (kernel, _) in weights.items()}
        for steps_of in (full_steps, narrow_steps)
    )
    rounded = rounded_weights(exact, weights, full, inputs)
    kinds = {share: ranges_of(extremes, share) for share in SHARES}
    inner = {name: kinds[1.0][name] for name in layers[:-1]}
    integers = build_integer_net(net, rounded, inner)
    images = calibration.trial_images
    expected, answer = _in_batches(_answering(exact), images), _answering(integers)
    if not np.isfinite(expected).all():
        raise ExportError(
            f"The answers to {len(images)} calibration images must be numbers. "
            "Received: infinite ones, or none; train the model anew."
        )
    trials = []
    for share, ranges in kinds.items():
        set_ranges(integers, {name: ranges[name] for name in inner})
        trials.append(_judged(share, expected, _in_batches(answer, images)))
    best = min(trials, key=lambda trial: trial.divergence)
    return Choice(
        weights=rounded,
        narrow_weights=rounded_weights(exact, weights, narrow, inputs),
        narrow_steps=narrow,
        ranges=kinds[best.share],
        best=best,
        trials=tuple(trials),
        images=len(calibration.images),
        tried_on=len(images),
    )


def observe(
    exact: keras.Model, layers: Sequence[str], images: Pixels
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Look at activations while a net answers.

    Args:
        exact: A net from `build_integer_net` that rounds nothing.
        layers: After which to look.
        images: uint8 `(n, height, width, 3)`.

    Returns:
        The least and the greatest value in each image `(n, 2)`, by layer; and the
        mean of what comes into each layer with weights, over the images.
    """
    weighted = [layer.name for layer in exact.layers if layer.weights]
    watched = {name: exact.get_layer(name).output for name in layers}
    inputs = {name: exact.get_layer(name).input for name in weighted}
    model = keras.Model(exact.input, {"watched": watched, "inputs": inputs})

    @tf.function(autograph=False)  # type: ignore[untyped-decorator]
    def look(pixels: tf.Tensor) -> Any:
        seen = model(tf.cast(pixels, tf.float32), training=False)
        flat = {
            n: tf.reshape(a, (tf.shape(a)[0], -1)) for n, a in seen["watched"].items()
        }
        ends = {
            name: tf.stack([tf.reduce_min(a, 1), tf.reduce_max(a, 1)], axis=1)
            for name, a in flat.items()
        }
        return ends, {n: tf.reduce_sum(a, 0) for n, a in seen["inputs"].items()}

    parts = [look(batch) for batch in _batches(images)]
    extremes = {n: np.concatenate([ends[n] for ends, _ in parts]) for n in layers}
    means = {
        name: np.sum([sums[name] for _, sums in parts], axis=0) / len(images)
        for name in weighted
    }
    return extremes, means


def ranges_of(extremes: Mapping[str, Array], share: float) -> Ranges:
    """Return the ranges within which a share of the images stays.

    Args:
        extremes: Least and greatest value in each image `(n, 2)`, by layer.
        share: In (0, 1], for each end by itself.

    Returns:
        By layer, moved so that 0 is one of their 256 steps, as runtimes need it.
    """
    return {
        name: _nudged(
            float(np.quantile(ends[:, 0], 1 - share)),
            float(np.quantile(ends[:, 1], share)),
        )
        for name, ends in extremes.items()
    }


def rounded_weights(
    exact: keras.Model, weights: Weights, steps: Steps, inputs: Mapping[str, Array]
) -> Weights:
    """Round kernels, and take from biases what that adds to the mean of the outputs.

    Bias correction (Nagel et al., arXiv:1906.04721, section 4.2) with the mean input
    of each layer: a layer without its bias is linear.

    Args:
        exact: The net, for strides and padding.
        weights: By layer.
        steps: Of the grids to round to.
        inputs: The mean input of each layer.
    """
    rounded = {}
    for name, (kernel, bias) in weights.items():
        near = on_grid(kernel, steps[name])
        added = _applied(exact.get_layer(name), inputs[name][None], near - kernel)
        axes = tuple(range(added.ndim - 1))
        rounded[name] = near, (bias - added.mean(axes)).astype(np.float32)
    return rounded


def _applied(layer: keras.layers.Layer, inputs: Array, kernel: Array) -> Array:
    if kernel.ndim == 2:
        return inputs @ kernel
    found = tf.nn.conv2d(inputs, kernel, layer.strides, layer.padding.upper())
    return np.asarray(found)


def _nudged(low: float, high: float) -> tuple[float, float]:
    low, high = min(low, 0.0), max(high, low + _LEAST, _LEAST)
    step = (high - low) / LEVELS
    zero = np.clip(np.round(-low / step), 0, LEVELS)
    return float(-zero * step), float((LEVELS - zero) * step)


def _judged(share: float, expected: Array, found: Array) -> Trial:
    exact, near = _log_softmax(expected), _log_softmax(found)
    divergence = (np.exp(exact) * (exact - near)).sum(1).mean()
    agreement = (expected.argmax(1) == found.argmax(1)).mean()
    return Trial(share=share, divergence=float(divergence), agreement=float(agreement))


def _log_softmax(logits: Array) -> Array:
    low = logits.astype(np.float64) - logits.max(1, keepdims=True)
    scores: Array = low - np.log(np.exp(low).sum(1, keepdims=True))
    return scores


def _answering(net: keras.Model) -> Callable[[Pixels], Array]:
    spec = tf.TensorSpec((None, *net.input_shape[1:]), tf.uint8)
    answer = tf.function(
        lambda pixels: net(tf.cast(pixels, tf.float32), training=False),
        input_signature=[spec],
        autograph=False,
    )
    return lambda pixels: np.asarray(answer(pixels))


def _in_batches(answer: Callable[[Pixels], Array], images: Pixels) -> Array:
    return np.concatenate([answer(batch) for batch in _batches(images)])


def _batches(images: Pixels) -> list[Pixels]:
    return [images[at : at + _BATCH] for at in range(0, len(images), _BATCH)]
