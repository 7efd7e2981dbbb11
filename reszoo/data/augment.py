"""Random variations of an image: pure functions of an explicit key."""

import tensorflow as tf


def pad_crop_flip(
    image: tf.Tensor, key: tf.Tensor, pad: int, flip: bool, fill: tf.Tensor
) -> tf.Tensor:
    """Shift an image by up to `pad` pixels and mirror half of them.

    He et al. 2015, section 4.2. There the border is zero after subtracting the
    mean, so here it has the mean's colour.

    Args:
        image: uint8 `(height, width, channels)`.
        key: int64 `(2,)`; the same key gives the same variation.
        pad: Border on each side, in pixels.
        flip: Whether to mirror at all.
        fill: uint8 `(channels,)`, colour of the border.

    Returns:
        uint8 of the same shape.
    """
    height, width = image.shape[:2]
    top, left = tf.unstack(
        tf.random.stateless_uniform((2,), key, 0, 2 * pad + 1, tf.int32)
    )
    # Padding the difference to the fill colour with zeros pads with that colour.
    shifted = tf.pad(image - fill, ((pad, pad), (pad, pad), (0, 0))) + fill
    image = tf.image.crop_to_bounding_box(shifted, top, left, height, width)
    if not flip:
        return image
    coin = tf.random.stateless_uniform((), key + 1, 0, 2, tf.int32)
    return tf.cond(coin == 0, lambda: image, lambda: tf.reverse(image, axis=[1]))
