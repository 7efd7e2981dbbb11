"""What training makes small."""

import tensorflow as tf

# timm's --bce-target-thresh of the procedures A1 to A3: with mixed images both
# classes count in full (arXiv:2110.00476, section 2.2).
_MIXED_TARGET = 0.2


def targets(labels: tf.Tensor, classes: int) -> tf.Tensor:
    """Return float32 rows `(batch, classes)` with a one at each label."""
    return tf.one_hot(labels, classes, dtype=tf.float32)


def softmax_loss(
    logits: tf.Tensor, target: tf.Tensor, label_smoothing: float
) -> tf.Tensor:
    """Return the cross-entropy of each image, in nats.

    Args:
        logits: float32 `(batch, classes)`.
        target: float32 of the same shape; rows sum to one.
        label_smoothing: Share of each row that is spread over all classes.

    Returns:
        float32 `(batch,)`.
    """
    smooth = _smoothed(target, label_smoothing)
    return tf.nn.softmax_cross_entropy_with_logits(smooth, logits)


def binary_loss(
    logits: tf.Tensor, target: tf.Tensor, label_smoothing: float
) -> tf.Tensor:
    """Return the mean binary cross-entropy of each image's classes, in nats.

    Every class is its own question, as in ResNet strikes back. A class with more
    than a fifth of the (smoothed) target is wholly true, as in timm. Arguments and
    result as in `softmax_loss`.
    """
    true = tf.cast(_smoothed(target, label_smoothing) > _MIXED_TARGET, tf.float32)
    entropy = tf.nn.sigmoid_cross_entropy_with_logits(true, logits)
    return tf.reduce_mean(entropy, axis=-1)


LOSSES = {"softmax": softmax_loss, "binary": binary_loss}


def _smoothed(target: tf.Tensor, share: float) -> tf.Tensor:
    return target * (1 - share) + share / target.shape[-1]
