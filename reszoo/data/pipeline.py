"""The `tf.data` pipeline, and the order in which examples are seen."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from reszoo.console import quiet
from reszoo.data.augment import geometry
from reszoo.data.augment.policies import Canvas, find_policy, rotation, transform
from reszoo.data.decoding import Decoder
from reszoo.data.examples import Examples
from reszoo.errors import UsageError
from reszoo.preprocessing import Preprocessing, to_grey

Batch: TypeAlias = tuple[tf.Tensor, tf.Tensor]
# Images whose windows are drawn at a time.
_DRAWN = 1 << 16
# Nothing here is for AutoGraph, which takes longer than all of the tracing.
_plain = tf.autograph.experimental.do_not_convert
# Batches made ahead. Left to itself tf.data may keep ever more of them.
_AHEAD = 2


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How training images are varied.

    A resized crop and its horizontal flip come first, then the policy, then erasing.
    Without resized crops, shifts and flips come last, for whole batches (a flipped
    result of a policy is its result on a flipped image: all of them are symmetric).
    """

    # "resized" cuts a random window and resizes it to the training size; "pad" and
    # "none" resize as in evaluation, and "pad" then shifts.
    crop: Literal["pad", "resized", "none"] = "none"
    pad: int = 0  # with "pad": greatest shift in pixels, which shows the mean colour
    # With "resized": share of the area, least and greatest.
    scale: tuple[float, float] = (0.08, 1.0)
    # With "resized": width over height, least and greatest, compared with that of the
    # input; of the image itself where the preprocessing squashes.
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = False  # whether half of the images are flipped horizontally
    vertical_flip: bool = False  # whether half of the images are flipped vertically
    # Greatest angle of a rotation, in degrees, before the policy; what comes in from
    # outside has the mean colour.
    rotation: float = 0.0
    # "trivial" or "rand-mM-mstdS"; see `reszoo.data.augment.policies`.
    policy: str | None = None
    erase: float = 0.0  # share of the images of which a random box gets the mean colour
    repeats: int = 1  # how often a batch shows each of its images, varied differently
    # Power of a class's number of images by which its share of an epoch grows: 0 shows
    # all classes equally often; None shows every image once.
    sampling: float | None = None


def evaluation_batches(
    examples: Examples, preprocessing: Preprocessing, batch_size: int
) -> tf.data.Dataset:
    """Return every example once, in order.

    Returns batches of uint8 `(batch, *input_shape)` and int64 `(batch,)`; the last may
    be smaller.
    """
    decoder, indices = Decoder(examples), tf.data.Dataset.range(len(examples))

    def prepare(index: tf.Tensor) -> Batch:
        return decoder.prepared(index, preprocessing), decoder.target(index)

    images = indices.map(_plain(prepare), num_parallel_calls=tf.data.AUTOTUNE)
    return images.batch(batch_size).prefetch(_AHEAD)


def training_batches(
    examples: Examples, preprocessing: Preprocessing, augmentation: Augmentation, *,
    batch_size: int, seed: int, epoch: int, start: int = 0, epochs: int = 1,
    shard: tuple[int, int] = (0, 1),
) -> tf.data.Dataset:  # fmt: skip
    """Return the shuffled, varied examples of one epoch, or of several in a row.

    The rest that does not fill a batch is left out; another epoch leaves out
    others. Several epochs are one data set, for each data set is traced anew, which
    takes seconds and memory.

    Args:
        examples: All of them, on every worker.
        preprocessing: How images are resized, and the mean colour.
        augmentation: How they are varied.
        batch_size: Of all workers together.
        seed: Of the training, not negative.
        epoch: From 0.
        start: Batches of the first epoch to pass over, without decoding anything;
            those after it are the same as without.
        epochs: How many.
        shard: Number of this worker and of all workers; worker i gets the i-th
            part of every batch.

    Returns batches of uint8 `(part, *train_sides, channels)` and int64 `(part,)`, where
    `part` is `batch_size` over the number of workers, of which it must be a multiple: a
    UsageError if not.
    """
    worker, workers = shard
    if batch_size % workers:
        raise UsageError(
            "batch_size must be a multiple of the number of workers. "
            f"Received: batch_size={batch_size} for {workers} workers."
        )
    part = batch_size // workers
    decoder = Decoder(examples, preprocessing.train_sides)
    load = _plain(_loader(decoder, preprocessing, augmentation))
    finish = _plain(_finisher(preprocessing, augmentation))
    boxes = partial(_draw_boxes, examples, decoder, preprocessing, augmentation)

    def slots_of(number: np.int64, first: np.int64) -> list[NDArray[Any]]:
        seeds = (seed, int(number))
        slots = epoch_slots(examples.targets, batch_size, seeds, augmentation, boxes)
        mine = np.s_[first:, worker * part : (worker + 1) * part]
        # One row for each place, without the axis of steps.
        return [each[mine].reshape(-1, *each.shape[2:]) for each in slots]

    def sliced(*which: tf.Tensor) -> tf.data.Dataset:
        kinds = (tf.int64, tf.int64, tf.int64, tf.float32, tf.int32)
        shapes = ((None,), (None, 2), (None,), (None, 5), (None, 9))
        slots = tf.numpy_function(slots_of, which, kinds)
        return tf.data.Dataset.from_tensor_slices(
            tuple(map(tf.ensure_shape, slots, shapes))
        )

    numbers = np.arange(epoch, epoch + epochs)
    starts = np.where(numbers == epoch, start, 0)
    images = tf.data.Dataset.from_tensor_slices((numbers, starts))
    images = images.flat_map(sliced).map(load, num_parallel_calls=tf.data.AUTOTUNE)
    options = tf.data.Options()
    # Images are prepared side by side, so that no operation on one needs threads.
    options.threading.max_intra_op_parallelism = 1
    # A fixed batch size keeps the shape static: one trace of the training step.
    batches = images.batch(part, drop_remainder=True).map(finish).prefetch(_AHEAD)
    return batches.with_options(options)


def epoch_slots(
    targets: NDArray[np.int64],
    batch_size: int,
    seeds: tuple[int, int],
    augmentation: Augmentation,
    draw_boxes: Callable[..., NDArray[np.int32]] | None = None,
) -> tuple[NDArray[Any], ...]:
    """Draw the content of every place in the batches of one epoch.

    With repeats every batch shows fewer images several times (Hoffer et al. 2019, arXiv
    1901.09335), so the same number of batches shows a part of the images, as
    torchvision's RASampler does over all of its devices. Equal indices are as far apart
    as can be, so that devices and mixup's neighbours have different images. The seeds
    are those of the training and of the epoch. `draw_boxes` takes indices of examples
    and a generator, and draws the boxes of each: int32 `(n, ...)`.

    Returns arrays `(steps, batch_size, ...)`: int64 indices of examples, two int64 keys
    for the variations, int64 targets, five float32 numbers from [0, 1) for what is
    done to whole batches, and boxes if they are drawn. All but indices and targets
    belong to an image and its repetition, not to the place.
    """
    count, repeats = len(targets), augmentation.repeats
    steps, distinct = count // batch_size, -(-batch_size // repeats)
    generator = np.random.default_rng(seeds)
    order = generator.permutation(count)
    drawn = np.arange(count)
    if augmentation.sampling is not None:
        drawn = _drawn_by_class(targets, augmentation.sampling, generator)
    shown = order[: steps * distinct].reshape(steps, 1, distinct)
    repeated = np.broadcast_to(shown, (steps, repeats, distinct))
    numbers = np.broadcast_to(np.arange(repeats)[:, None], repeated.shape)
    # Where repetitions do not fill a batch evenly, some images lack their last one.
    entries, numbers = (
        part.reshape(steps, -1)[:, :batch_size].astype(np.int64)
        for part in (repeated, numbers)
    )
    state = np.random.SeedSequence(seeds).generate_state(1, np.uint64)
    # By entry, not by image, for sampling may show an image more than once.
    key, variants = int(state[0] >> np.uint64(1)), entries * repeats + numbers
    keys = np.stack([np.full_like(variants, key), variants], axis=-1)
    generator = np.random.default_rng((key, 1))
    draws = [generator.random((count * repeats, n), np.float32) for n in (3, 2)]
    indices = drawn[entries]
    slots = (indices, keys, targets[indices], np.concatenate(draws, 1)[variants])
    if draw_boxes is None:
        return slots
    generator = np.random.default_rng((key, 2))
    varied = np.repeat(drawn, repeats)
    # In parts, for all tries of a million windows at once take a gigabyte.
    parts = np.split(varied, range(_DRAWN, len(varied), _DRAWN))
    boxes = np.concatenate([draw_boxes(part, generator) for part in parts])
    return *slots, boxes[variants]


def _draw_boxes(
    examples: Examples,
    decoder: Decoder,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    indices: NDArray[np.int64],
    generator: np.random.Generator,
) -> NDArray[np.int32]:
    """Draw the window that is shown of each image, and the box erased from it.

    Returns int32 `(n, 9)`: a row of `Decoder.stored` and one of `random_boxes`, each
    zeros where it is not used.
    """
    shown, count = preprocessing.train_sides, len(indices)
    windows, boxes = np.zeros((count, 5), np.int32), np.zeros((count, 4), np.int32)
    if augmentation.crop == "resized":
        aspect = None if preprocessing.resize == "squash" else shown[1] / shown[0]
        shape = augmentation.scale, augmentation.ratio, aspect
        drawn = geometry.random_windows(examples.sides(indices), generator, *shape)
        windows = decoder.stored(indices, drawn)
    if augmentation.erase:
        boxes = geometry.random_boxes(shown, count, generator, augmentation.erase)
    return np.concatenate([windows, boxes], 1)


def class_shares(
    targets: NDArray[np.int64], classes: int, sampling: float | None
) -> NDArray[np.float64]:
    """Return the share of each class in an epoch: float64 `(classes,)`."""
    counts = np.bincount(targets, minlength=classes)
    power = np.float64(1 if sampling is None else sampling)
    weights = np.where(counts > 0, counts**power, 0)
    return np.asarray(weights / weights.sum())


def _drawn_by_class(
    targets: NDArray[np.int64], sampling: float, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Draw as many indices as there are targets, each class by its share."""
    # Shares that are no whole numbers of images are rounded at random, up or down, so
    # that their mean over the epochs is exact.
    edges = len(targets) * np.cumsum(class_shares(targets, 0, sampling))
    edges[-1] = len(targets)
    quotas = np.diff(np.floor(edges + generator.random()).astype(np.int64), prepend=0)
    ends = np.cumsum(np.bincount(targets))[:-1]
    members = np.split(np.argsort(targets, kind="stable"), ends)
    drawn = []
    for each, quota in zip(members, quotas, strict=True):
        times, rest = divmod(quota, max(1, len(each)))
        drawn += [np.tile(each, times), generator.permutation(each)[:rest]]
    return np.concatenate(drawn)


def _finisher(
    preprocessing: Preprocessing, augmentation: Augmentation
) -> Callable[[tf.Tensor, tf.Tensor, tf.Tensor], Batch]:
    """Return a function that does what is cheapest for a whole batch at once."""
    fill = tf.constant(preprocessing.mean_colour)

    def finish(images: tf.Tensor, targets: tf.Tensor, draws: tf.Tensor) -> Batch:
        if augmentation.crop == "pad" and augmentation.pad:
            images = geometry.shift(images, draws[:, :2], augmentation.pad, fill)
        if augmentation.flip and augmentation.crop != "resized":
            images = geometry.flip(images, draws[:, 2])
        if augmentation.vertical_flip:
            images = geometry.flip(images, draws[:, 3], axis=1)
        return images, targets

    return finish


def quietly(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield batches; keep what TensorFlow prints before the first one to itself.

    oneDNN reports there, as an error, that it has no kernel for turning bytes.
    """
    with quiet(show=False):
        remaining = iter(batches)
        first = next(remaining, None)
    if first is not None:
        yield first
        yield from remaining


def _loader(
    decoder: Decoder, preprocessing: Preprocessing, augmentation: Augmentation
) -> Callable[..., tuple[tf.Tensor, tf.Tensor, tf.Tensor]]:
    """Return a function that makes a training image from what `epoch_slots` draws."""
    shown = replace(preprocessing, eval_size=preprocessing.train_size)
    policy = augmentation.policy and find_policy(augmentation.policy)
    sides, grey = preprocessing.train_sides, preprocessing.channels == 1
    fill = tf.constant(preprocessing.mean_colour)
    # torchvision's TrivialAugmentWide leaves black where nothing is, timm the mean.
    outside = tf.zeros_like(fill) if augmentation.policy == "trivial" else fill
    # Policies know RGB only; of grey images each channel is treated alike.
    mean_canvas, canvas = (
        Canvas(tf.repeat(colour, 3) if grey else colour, shown.interpolation)
        for colour in (fill, outside)
    )

    def load(
        index: tf.Tensor,
        key: tf.Tensor,
        target: tf.Tensor,
        draw: tf.Tensor,
        boxes: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        # Each use has a random stream of its own.
        if augmentation.crop == "resized":
            flipped = (draw[2] < 0.5) & augmentation.flip
            part = decoder.image(index, boxes[:5])
            part = to_grey(part) if grey else part
            image = geometry.resize(part, sides, shown.interpolation, flipped)
        else:
            image = decoder.prepared(index, shown)
        if policy or augmentation.rotation:
            rgb = tf.repeat(image, 3, axis=-1) if grey else image
            if augmentation.rotation:
                angle = augmentation.rotation * (2 * draw[4] - 1)
                rgb = transform(rgb, rotation(angle, *sides), mean_canvas)
            if policy:
                rgb = policy(rgb, tf.random.fold_in(key, 1), canvas)
            image = rgb[..., :1] if grey else rgb
        if augmentation.erase:
            image = geometry.erase(image, boxes[5:], fill)
        return image, target, draw

    return load
