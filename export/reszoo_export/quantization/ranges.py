"""Which ranges int8 activations get: several kinds are tried, the best is taken."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from reszoo.errors import ExportError
from reszoo.preprocessing import Pixels, Preprocessing
from reszoo_export.quantization.calibration import Calibration
from reszoo_export.quantization.grids import Steps, full_steps, narrow_steps, on_grid
from reszoo_export.quantization.integer_net import (
    LEVELS,
    Ranges,
    Weights,
    build_integer_net,
    byte_weights,
    quantized_layers,
    set_ranges,
)

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
