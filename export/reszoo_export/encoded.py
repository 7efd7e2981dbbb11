"""From encoded pictures to the pixels that a net sees, inside a TensorFlow graph."""

import tensorflow as tf

from reszoo.data.decoding import decode
from reszoo.preprocessing import Preprocessing

# JEITA CP-3451 (EXIF 2.3): the mark of its segment in a JPEG (4.7.2), and how many
# bytes the TIFF structure behind it has at most, as a segment's length is 16 bits.
_MARK = b"Exif\x00\x00"
_SEGMENT = 65536
# TIFF 6.0, section 2: an entry's length and the tag of the orientation (section 8).
_ENTRY = 12
_ORIENTATION = 0x0112


def prepare_encoded(files: tf.Tensor, record: Preprocessing) -> tf.Tensor:
    """Decode, turn upright, resize and crop pictures as `Predictor` does.

    A PNG is taken as upright: only of a JPEG the EXIF orientation is read.

    Args:
        files: string `(batch,)`, whole JPEG or PNG files.
        record: How they are resized and cropped.

    Returns:
        uint8 RGB `(batch, eval_size, eval_size, 3)`.
    """
    size = record.eval_size

    def prepare(content: tf.Tensor) -> tf.Tensor:
        image = record.prepare_tensor(decode(content, orientation(content)))
        return tf.ensure_shape(image, (size, size, 3))

    spec = tf.TensorSpec((size, size, 3), tf.uint8)
    return tf.map_fn(prepare, files, fn_output_signature=spec)


def orientation(content: tf.Tensor) -> tf.Tensor:
    """Read how the camera of a JPEG was held; 1 (upright) where nothing tells.

    Args:
        content: string `()`, the file.

    Returns:
        int64 `()`, 1 to 8; EXIF 2.3, section 4.6.4 A.
    """
    parts = tf.strings.split(tf.strings.substr(content, 0, 2 * _SEGMENT), _MARK, 1)
    found = tf.io.is_jpeg(content) & (tf.size(parts) == 2)
    return tf.cond(found, lambda: _of_tiff(parts[1]), lambda: tf.constant(1, tf.int64))


def _of_tiff(structure: tf.Tensor) -> tf.Tensor:
    octets = tf.cast(tf.io.decode_raw(structure, tf.uint8), tf.int64)[:_SEGMENT]
    # So that a broken structure is read as one without orientation.
    octets = tf.pad(octets, [(0, 16)])
    little = octets[0] == ord("I")

    def number(at: tf.Tensor, weights: tuple[int, ...]) -> tf.Tensor:
        places = at[..., None] + tf.range(len(weights), dtype=tf.int64)
        places = tf.minimum(places, tf.size(octets, tf.int64) - 1)
        order = tf.where(little, weights, weights[::-1])
        return tf.reduce_sum(tf.gather(octets, places) * tf.cast(order, tf.int64), -1)

    short, long = (1, 1 << 8), (1, 1 << 8, 1 << 16, 1 << 24)
    directory = number(tf.constant(4, tf.int64), long)
    entries = directory + 2 + _ENTRY * tf.range(number(directory, short))
    held = number(entries + 8, short)
    fits = (number(entries, short) == _ORIENTATION) & (held >= 1) & (held <= 8)
    return tf.concat([tf.boolean_mask(held, fits), [1]], 0)[0]
