"""Random variations of images: pure functions of an explicit key.

A key is an int64 tensor `(2,)`; the same key gives the same variation, eagerly and
inside `tf.data` alike. Images are uint8 `(height, width, 3)`, before and after.
"""
