"""Mixup and cutmix: examples that lie between two examples of a batch."""

from functools import partial

import tensorflow as tf

# Pixels and targets.
Mixed = tuple[tf.Tensor, tf.Tensor]


def mix(
    pixels: tf.Tensor,
    targets: tf.Tensor,
    key: tf.Tensor,
    mixup_alpha: float,
    cutmix_alpha: float,
) -> Mixed:
    """Mix every example of a batch with the one before it.

    One share is drawn for the batch, from Beta(alpha, alpha). Where both alphas are
    positive, each batch is mixed in one of the two ways, drawn evenly (torchvision's
    RandomChoice, timm's switch_prob of 0.5).

    Pixels are floating `(batch, height, width, channels)`, targets floating `(batch,
    classes)`, of which rows that sum to one still do so, and the key int64 `(2,)`. In
    mixup (arXiv 1710.09412) whole images are blended, in cutmix (arXiv 1905.04899) a
    box of the other image is pasted; an alpha of 0 leaves it out. Returns pixels and
    targets of the same shapes and types.
    """
    if mixup_alpha <= 0 and cutmix_alpha <= 0:
        return pixels, targets
    first, second = tf.unstack(tf.random.split(key, 2))
    ways = [
        partial(way, pixels, targets, second, alpha)
        for way, alpha in ((mixup, mixup_alpha), (cutmix, cutmix_alpha))
        if alpha > 0
    ]
    even = tf.random.stateless_uniform((), first) < 0.5
    mixed: Mixed = tf.cond(even, *ways) if ways[1:] else ways[0]()
    return mixed


def mixup(pixels: tf.Tensor, targets: tf.Tensor, key: tf.Tensor, alpha: float) -> Mixed:
    """Blend every example with the one before it; see `mix`."""
    share = _share(key, alpha)
    return _blend(pixels, share), _blend(targets, share)


def cutmix(
    pixels: tf.Tensor, targets: tf.Tensor, key: tf.Tensor, alpha: float
) -> Mixed:
    """Paste a box of the example before it into every example; see `mix`.

    Targets follow the area of the box that lies inside the image.
    """
    keys = tf.unstack(tf.random.split(key, 2))
    height, width = tf.unstack(tf.shape(pixels)[1:3])
    half = 0.5 * tf.sqrt(1 - _share(keys[0], alpha))
    centre = tf.random.stateless_uniform((2,), keys[1])
    rows = _span(centre[0], half, height)
    inside = (rows[:, None] & _span(centre[1], half, width))[None, ..., None]
    pasted = tf.where(inside, tf.roll(pixels, 1, axis=0), pixels)
    return pasted, _blend(targets, 1 - tf.reduce_mean(tf.cast(inside, tf.float32)))


def _share(key: tf.Tensor, alpha: float) -> tf.Tensor:
    """Draw from Beta(alpha, alpha)."""
    # Gamma(alpha) is Gamma(alpha + 1) times a uniform number to the power of 1/alpha;
    # its logarithm does not underflow where alpha is small.
    keys = tf.unstack(tf.random.split(key, 2))
    gamma = tf.random.stateless_gamma((2,), keys[0], alpha + 1.0)
    uniform = 1 - tf.random.stateless_uniform((2,), keys[1])
    logs = tf.math.log(gamma) + tf.math.log(uniform) / alpha
    return tf.sigmoid(logs[0] - logs[1])


def _span(centre: tf.Tensor, half: tf.Tensor, side: tf.Tensor) -> tf.Tensor:
    """Return which pixels of a side are nearer to the centre than `half` of it."""
    length = tf.cast(side, tf.float32)
    middle, reach = tf.floor(centre * length), tf.floor(half * length)
    places = tf.range(length)
    return (places >= middle - reach) & (places < middle + reach)


def _blend(rows: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    share = tf.cast(share, rows.dtype)
    return share * rows + (1 - share) * tf.roll(rows, 1, axis=0)
