"""Which example is shown when: a function of (seed, epoch) alone."""

import numpy as np
from numpy.typing import NDArray


def epoch_order(
    count: int, batch_size: int, *, seed: int, epoch: int, repeats: int = 1
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw the batches of one epoch.

    The rest that does not fill a batch is left out; another epoch leaves out
    others. With repeats every batch shows fewer images several times (Hoffer et al.
    2019, arXiv 1901.09335), so the same number of batches shows a part of the
    images, as torchvision's RASampler does over all of its devices.

    Args:
        count: Number of examples.
        batch_size: Of all devices together.
        seed: Of the training, not negative.
        epoch: From 0.
        repeats: How often a batch shows each of its images.

    Returns:
        Indices of examples and which repetition it is, from 0: int64
        `(steps, batch_size)`. Equal indices are as far apart as can be, so that
        devices and mixup's neighbours have different images.
    """
    steps, distinct = count // batch_size, -(-batch_size // repeats)
    order = np.random.default_rng((seed, epoch)).permutation(count)
    shown = order[: steps * distinct].reshape(steps, 1, distinct)
    indices = np.broadcast_to(shown, (steps, repeats, distinct))
    copies = np.broadcast_to(np.arange(repeats)[:, None], indices.shape)
    # Where repetitions do not fill a batch evenly, some images lack their last one.
    kept = [part.reshape(steps, -1)[:, :batch_size] for part in (indices, copies)]
    return kept[0].astype(np.int64), kept[1].astype(np.int64)


def epoch_slots(
    count: int, batch_size: int, *, seed: int, epoch: int, repeats: int = 1
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Tell what stands in each place of the batches of one epoch.

    Args:
        count: Number of examples.
        batch_size: Of all devices together.
        seed: Of the training, not negative.
        epoch: From 0.
        repeats: How often a batch shows each of its images.

    Returns:
        Indices of examples, int64 `(steps, batch_size)`; keys for their variations,
        int64 `(steps, batch_size, 2)`; and numbers from [0, 1) for what is done to
        whole batches, float32 `(steps, batch_size, 3)`. Keys and numbers belong to
        an image and its repetition, not to the place.
    """
    indices, copies = epoch_order(
        count, batch_size, seed=seed, epoch=epoch, repeats=repeats
    )
    key, variants = epoch_key(seed, epoch), indices * repeats + copies
    keys = np.stack([np.full_like(variants, key), variants], axis=-1)
    draws = np.random.default_rng((key, 1)).random((count * repeats, 3), np.float32)
    return indices, keys, draws[variants]


def epoch_key(seed: int, epoch: int) -> int:
    """Return a number for the random variations of an epoch, below 2**63.

    Args:
        seed: Of any size, not negative.
        epoch: From 0.
    """
    state = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))
