"""Draw calibration images and choose activation ranges with them."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from reszoo.cards import Card
from reszoo.data.examples import Examples
from reszoo.data.sources import Source, match_classes
from reszoo.errors import DataError, ExportError
from reszoo.metrics import prepared_batches
from reszoo.preprocessing import Pixels
from reszoo_export.formats import CAM, ONNX, Format
from reszoo_export.quantization import integer_model
from reszoo_export.quantization.grids import Steps, full_steps, narrow_steps, on_grid
from reszoo_export.quantization.integer_model import LEVELS, Ranges, Weights
from reszoo_export.runtimes import ModelOutput, in_batches, open_runtime
from reszoo_export.serving import Serving
from reszoo_export.verification.reference import Reference

Array = NDArray[Any]
# The guides of TFLite and ONNX Runtime recommend 100 to 500 calibration images.
MIN_IMAGES, MAX_IMAGES = 100, 300
# Enough to compare ranges by the divergence of the outputs.
TRIAL_IMAGES = 200
# Images with a smaller standard deviation are blank: all activations are constant.
_MIN_DEVIATION = 1.0
# At least one pixel in 100 photos is brighter, unless they are scaled.
_MIN_BRIGHTNESS = 32
# A range is that of the least and the largest value in this share of the images; 1 is
# min-max, the default of converters.
SHARES = (1.0, 0.98, 0.95, 0.9, 0.8)
_BATCH = 25
# Where an activation is 0 in every image. TFLite's converter widens 1e-6 and less.
_MIN_RANGE = 2e-6


@dataclass(frozen=True, eq=False)
class Calibration:
    """Distinct images as the model takes them, none of them used for verification."""

    images: Pixels  # uint8 `(n, height, width, channels)`, which set the ranges
    # The same of others, on which ranges are compared; empty if there are no others,
    # and `images` are used for both.
    trial: Pixels = field(default_factory=lambda: np.zeros((0, 0, 0, 3), np.uint8))
    # The ranges chosen with them, by model, so that formats share them.
    choices: "dict[keras.Model, Choice]" = field(default_factory=dict, repr=False)
    # How files of models of unknown structure were quantized, by name.
    attempts: "dict[str, Trials]" = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        images, count = self.images, len(self.images)
        if images.dtype != np.uint8 or images.ndim != 4:
            raise DataError(
                "Calibration images must be uint8 RGB in 0..255 of shape (n, height, "
                f"width, 3). Received: {count} of {images.dtype} {images.shape}; "
                "the model normalises them itself."
            )
        blank = sum(image.std() <= _MIN_DEVIATION for image in images)
        if blank:
            raise DataError(
                "Calibration images must not be blank. "
                f"Received: {blank} blank of {count}."
            )
        if count and images.max() < _MIN_BRIGHTNESS:
            raise DataError(
                "Calibration images must be RGB in 0..255, not scaled. Received: "
                f"{count} images with values up to {images.max()}."
            )
        distinct = len({fingerprint(image) for image in images})
        if distinct < max(MIN_IMAGES, count):
            raise DataError(
                f"Calibration needs at least {MIN_IMAGES} images, all distinct. "
                f"Received: {count}, of which {distinct} are distinct; use a larger "
                "data set."
            )

    @property
    def trial_images(self) -> Pixels:
        """Those that ranges are compared on."""
        return self.trial if len(self.trial) else self.images

    def batches(self, chosen: Array | None = None) -> Iterator[np.ndarray]:
        """Yield float32 `(1, height, width, 3)` in 0..255, one image at a time.

        The first has a black and a white corner, so that the input's range is 0..255
        and its scale 1. `chosen` are indices of images; None for all.
        """
        images = self.images if chosen is None else self.images[chosen]
        for index, image in enumerate(images):
            pixels = image[None].astype(np.float32)
            if not index:
                pixels[0, 0, 0], pixels[0, -1, -1] = 0, 255
            yield pixels


def draw_calibration(
    source: Source, card: Card, avoid: Pixels, seed: int = 0
) -> Calibration:
    """Draw class-balanced calibration images from the training split of a source.

    Images to `avoid` are those used for verification. A DataError if the source has
    other classes than the model's card, or too few distinct images.
    """
    source = match_classes(source, card.labels, card.architecture.classes)
    examples = source.examples("train")
    needed = MAX_IMAGES + TRIAL_IMAGES
    # Twice as many, because some are blank, duplicates, or used for verification.
    order = _balanced_order(examples, seed)[: 2 * needed]
    seen = {fingerprint(image) for image in avoid}
    chosen: list[Pixels] = []
    for batch in prepared_batches(examples.take(order), card.preprocessing, 64):
        for image in batch:
            digest = fingerprint(image)
            if digest not in seen and image.std() > _MIN_DEVIATION:
                chosen.append(image)
            seen.add(digest)
        if len(chosen) >= needed:
            break
    shape = (-1, *card.preprocessing.input_shape)
    images = np.array(chosen, np.uint8).reshape(shape)
    # In a small data set calibration takes precedence over trials.
    first = min(MAX_IMAGES, max(MIN_IMAGES, len(images) - TRIAL_IMAGES))
    return Calibration(images[:first], images[first : first + TRIAL_IMAGES])


def fingerprint(image: Pixels) -> str:
    """Return a hash of an image's content."""
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()


def _balanced_order(examples: Examples, seed: int) -> np.ndarray:
    """Return all indices, alternating between the classes."""
    generator = np.random.default_rng(seed)
    turns = np.empty(len(examples))
    for target in np.unique(examples.targets):
        members = generator.permutation(np.flatnonzero(examples.targets == target))
        turns[members] = np.arange(len(members))
    return np.lexsort((examples.targets, turns))


@dataclass(frozen=True, kw_only=True)
class Trial:
    """How one way to quantize did on the trial images."""

    # Of the calibration images within the ranges, for a model whose structure is known.
    share: float | None = None
    method: str | None = None  # what was done, for another model
    # Kullback-Leibler divergence of the outputs from the float model's, in nats, mean
    # over the images; features are treated as logits.
    divergence: float
    agreement: float  # share of images with the float model's top-1


@dataclass(frozen=True, kw_only=True)
class Trials:
    """The quantization of a file: what was chosen, and what was tried."""

    trials: tuple[Trial, ...]
    images: int  # number of calibration images
    tried_on: int  # number of trial images

    @property
    def best(self) -> Trial:
        """What was chosen."""
        return min(self.trials, key=lambda trial: trial.divergence)

    def to_json(self) -> dict[str, Any]:
        """Return the trials as plain JSON values, for the manifest."""
        trials = [
            {name: each for name, each in vars(trial).items() if each is not None}
            for trial in self.trials
        ]
        best = trials[self.trials.index(self.best)]
        counts = {"images": self.images, "tried_on": self.tried_on}
        return {"best": best, "trials": trials, **counts}


@dataclass(frozen=True, kw_only=True)
class Choice(Trials):
    """The quantization of a model whose structure is known."""

    # Rounded to 255 steps, with corrected biases, by layer; and the same in steps with
    # which no pair overflows 16 bits, and those steps.
    weights: Weights = field(repr=False)
    narrow_weights: Weights = field(repr=False)
    narrow_steps: Steps = field(repr=False)
    ranges: Ranges = field(repr=False)  # of activations, by layer, the output's last

    @property
    def inner_ranges(self) -> Ranges:
        """The ranges without that of the output."""
        return dict(list(self.ranges.items())[:-1])


def choose(serving: Serving, calibration: Calibration) -> Choice:
    """Choose the ranges that change a model's outputs least; cached in the calibration.

    The model gives logits or features. Beside class activation maps the mean of the
    feature map has no range, which would clip it for images unlike those of
    calibration, and the classifier's bias is not corrected: logits are the means of
    maps plus the model's bias.
    """
    model = serving.model
    if model in calibration.choices:
        return calibration.choices[model]
    kept = ("avgpool", "fc") if serving.options.outputs == CAM else ()
    weights = integer_model.byte_weights(model, serving.card.preprocessing)
    exact = integer_model.build_integer_model(model, weights, {})
    layers = [*integer_model.quantized_layers(model), model.layers[-1].name]
    layers = [name for name in layers if name not in kept[:1]]
    extremes, inputs = observe(exact, layers, calibration.images)
    full, narrow = (
        {name: steps_of(kernel) for name, (kernel, _) in weights.items()}
        for steps_of in (full_steps, narrow_steps)
    )
    rounded, narrow_rounded = (
        rounded_weights(exact, weights, steps, inputs)
        | {name: weights[name] for name in kept[1:]}
        for steps in (full, narrow)
    )
    candidates = {share: ranges_of(extremes, share) for share in SHARES}
    inner = {name: candidates[1.0][name] for name in layers[:-1]}
    integers = integer_model.build_integer_model(model, rounded, inner)
    images = calibration.trial_images
    expected, predict = _function(exact)(images), _function(integers)
    _check_finite(expected)
    trials = []
    for share, ranges in candidates.items():
        for name in inner:
            rounder = integers.get_layer(f"{name}.range")
            rounder.set_weights(list(map(np.float32, ranges[name])))
        outputs = predict(images)
        near_scores, scores = _log_softmax(outputs), _log_softmax(expected)
        apart = float((np.exp(scores) * (scores - near_scores)).sum(1).mean())
        trials.append(_trial(expected, outputs, apart, share=share))
    tried = _tried(calibration, trials)
    calibration.choices[model] = Choice(
        weights=rounded, narrow_weights=narrow_rounded, narrow_steps=narrow,
        ranges=candidates[tried.best.share or 1.0], **vars(tried),
    )  # fmt: skip
    return calibration.choices[model]


def recorded(
    row: Format, serving: Serving, calibration: Calibration | None, reference: Reference
) -> dict[str, Any] | None:
    """Return what the manifest has of an int8 file's ranges; None for other files."""
    if calibration is None or row.precision != "int8":
        return None
    if trials := calibration.attempts.get(row.file):
        return trials.to_json()
    choice, options = calibration.choices[serving.model], serving.options
    spans = {name: [*ends] for name, ends in choice.ranges.items()}
    told: dict[str, Any] = {"activations": spans}
    others = options.integer_io or options.outputs == "features"
    if len(reference.images) and not others:
        # How far rounding takes the file on real images and on synthetic ones.
        some = reference.select(reference.evenly_spaced(100))
        weights = choice.narrow_weights if row.runtime is ONNX else choice.weights
        inner = choice.inner_ranges
        made = integer_model.build_integer_model(serving.model, weights, inner)
        rounded = np.exp(_log_softmax(_function(made)(some.images)))
        apart, real = np.abs(rounded - some.outputs).sum(-1) / 2, len(some.targets)
        parts = {"variation": apart[:real], "synthetic_variation": apart[real:]}
        told |= {name: float(part.mean()) for name, part in parts.items() if part.size}
    return choice.to_json() | told


def observe(
    exact: keras.Model, layers: Sequence[str], images: Pixels
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Measure the activations of an integer model that rounds nothing.

    Returns the least and the largest value in each image `(n, 2)`, by layer; and the
    mean input of each layer with weights, over the images.
    """
    weighted = [layer.name for layer in exact.layers if layer.weights]
    watched = {name: exact.get_layer(name).output for name in layers}
    inputs = {name: exact.get_layer(name).input for name in weighted}
    model = keras.Model(exact.input, {"watched": watched, "inputs": inputs})

    @tf.function(autograph=False)  # type: ignore[untyped-decorator]
    def measure(pixels: tf.Tensor) -> Any:
        found = model(tf.cast(pixels, tf.float32), training=False)
        ends = {}
        for name, activation in found["watched"].items():
            flat = tf.reshape(activation, (tf.shape(activation)[0], -1))
            ends[name] = tf.stack([tf.reduce_min(flat, 1), tf.reduce_max(flat, 1)], 1)
        return ends, {n: tf.reduce_sum(a, 0) for n, a in found["inputs"].items()}

    starts = range(0, len(images), _BATCH)
    parts = [measure(images[at : at + _BATCH]) for at in starts]
    extremes = {n: np.concatenate([ends[n] for ends, _ in parts]) for n in layers}
    means = {
        name: np.sum([sums[name] for _, sums in parts], axis=0) / len(images)
        for name in weighted
    }
    return extremes, means


def ranges_of(extremes: Mapping[str, Array], share: float) -> Ranges:
    """Return the ranges that a share of the images stay within, by layer.

    They are shifted so that 0 is one of their 256 steps, as runtimes require.
    """
    ranges = {}
    for name, ends in extremes.items():
        low = float(np.quantile(ends[:, 0], 1 - share))
        high = float(np.quantile(ends[:, 1], share))
        low, high = min(low, 0.0), max(high, low + _MIN_RANGE, _MIN_RANGE)
        step = (high - low) / LEVELS
        zero = np.clip(np.round(-low / step), 0, LEVELS)
        ranges[name] = float(-zero * step), float((LEVELS - zero) * step)
    return ranges


def rounded_weights(
    exact: keras.Model, weights: Weights, steps: Steps, inputs: Mapping[str, Array]
) -> Weights:
    """Round kernels to steps, and correct biases by the change of the mean output.

    Bias correction (Nagel et al., arXiv:1906.04721, section 4.2) with the mean input of
    each layer: a layer without its bias is linear. The exact model tells strides and
    padding.
    """
    rounded = {}
    for name, (kernel, bias) in weights.items():
        near = on_grid(kernel, steps[name])
        layer, mean, change = exact.get_layer(name), inputs[name][None], near - kernel
        if kernel.ndim == 2:
            added = mean @ change
        else:
            padding = layer.padding.upper()
            added = np.asarray(tf.nn.conv2d(mean, change, layer.strides, padding))
        axes = tuple(range(added.ndim - 1))
        rounded[name] = near, (bias - added.mean(axes)).astype(np.float32)
    return rounded


def _trial(expected: Array, outputs: Array, divergence: float, **how: Any) -> Trial:
    agreement = float((expected.argmax(1) == outputs.argmax(1)).mean())
    return Trial(divergence=divergence, agreement=agreement, **how)


def _tried(calibration: Calibration, trials: Sequence[Trial]) -> Trials:
    images, tried_on = len(calibration.images), len(calibration.trial_images)
    return Trials(trials=tuple(trials), images=images, tried_on=tried_on)


def _log_softmax(logits: Array) -> Array:
    low = logits.astype(np.float64) - logits.max(1, keepdims=True)
    scores: Array = low - np.log(np.exp(low).sum(1, keepdims=True))
    return scores


def _function(model: keras.Model) -> Callable[[Pixels], Array]:
    spec = tf.TensorSpec((None, *model.input_shape[1:]), tf.uint8)
    function = tf.function(
        lambda pixels: model(tf.cast(pixels, tf.float32), training=False),
        input_signature=[spec],
        autograph=False,
    )
    return lambda images: in_batches(function, images, _BATCH)


# Smaller probabilities are rounded to 0 by integers.
_LEAST = 1e-7


def write_best(
    serving: Serving,
    calibration: Calibration,
    path: Path,
    candidates: Iterable[tuple[str, Callable[[Path], None]]],
) -> None:
    """Write the file whose outputs are nearest to the model's, of several candidates.

    For models whose structure is not known: the quantizer of a runtime writes a file in
    several ways. They are compared on the trial images, which no range was set with;
    only in a small data set on the calibration images. The calibration keeps the
    trials. An ExportError if the model's own outputs are not finite.
    """
    images = calibration.trial_images
    function = serving.function("probabilities")
    expected = in_batches(
        lambda batch: function(tf.constant(batch))["probabilities"], images, _BATCH
    )
    _check_finite(expected)
    trials: list[Trial] = []
    place = path.with_name(f"trial-{path.name}")
    for method, write in candidates:
        write(place)
        outputs = in_batches(open_runtime(place).run, images)
        apart = _divergence(expected, outputs)
        # All scores of a sigmoid are classes of two.
        if serving.has_sigmoid:
            apart += _divergence(1 - expected, 1 - outputs)
        trials.append(_trial(expected, outputs, apart, method=method))
        if _tried(calibration, trials).best is trials[-1]:
            place.replace(path)
    place.unlink(missing_ok=True)
    calibration.attempts[path.name] = _tried(calibration, trials)


def _check_finite(outputs: Array) -> None:
    if not np.isfinite(outputs).all():
        raise ExportError(
            f"The outputs for {len(outputs)} calibration images must be finite. "
            "Received: NaN or infinite ones; train the model again."
        )


def _divergence(expected: ModelOutput, outputs: ModelOutput) -> float:
    exact, near = (
        np.maximum(each.astype(np.float64), _LEAST) for each in (expected, outputs)
    )
    return float((exact * (np.log(exact) - np.log(near))).sum(1).mean())
