from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from reszoo.data.augment.mix import mix

# Every image is flat, of its own number; no two have the same class.
PIXELS = np.broadcast_to(np.arange(1.0, 7)[:, None, None, None], (6, 8, 10, 3))
PIXELS = PIXELS.astype(np.float32)
TARGETS = np.eye(6, dtype=np.float32)


def key(number: int) -> Any:
    return tf.constant([number, 3], tf.int64)


def mixed(count: int, mixup_alpha: float, cutmix_alpha: float) -> Any:
    keys = tf.data.Dataset.from_tensor_slices(tf.stack([key(i) for i in range(count)]))
    pairs = list(keys.map(lambda k: mix(PIXELS, TARGETS, k, mixup_alpha, cutmix_alpha)))
    return [(pixels.numpy(), targets.numpy()) for pixels, targets in pairs]


def test_mixup_blends_with_the_one_before_by_one_share() -> None:
    shares = []
    for pixels, targets in mixed(400, 0.2, 0):
        share = targets[0, 0]
        shares.append(share)
        np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-6)
        before = np.roll(TARGETS, 1, axis=0)
        np.testing.assert_allclose(targets, share * TARGETS + (1 - share) * before)
        expected = share * PIXELS + (1 - share) * np.roll(PIXELS, 1, axis=0)
        np.testing.assert_allclose(pixels, expected, rtol=1e-5)
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1)).
    assert np.mean(shares) == pytest.approx(0.5, abs=0.06)
    assert np.var(shares) == pytest.approx(1 / 5.6, rel=0.1)


def test_cutmix_counts_the_pixels_that_it_pasted() -> None:
    shares = []
    for pixels, targets in mixed(400, 0, 1.0):
        np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-6)
        pasted = (pixels != PIXELS).any(-1)
        assert (pasted == pasted[0]).all()
        rows, columns = pasted[0].any(1), pasted[0].any(0)
        np.testing.assert_array_equal(pasted[0], rows[:, None] & columns)
        np.testing.assert_array_equal(
            pixels, np.where(pasted[..., None], np.roll(PIXELS, 1, axis=0), PIXELS)
        )
        assert targets[0, 0] == pytest.approx(1 - pasted[0].mean())
        shares.append(targets[0, 0])
    assert np.std(shares) > 0.15
    assert min(shares) < 0.45


def test_of_both_each_takes_half_of_the_batches() -> None:
    kinds = [len(np.unique(pixels)) for pixels, _ in mixed(300, 0.5, 0.5)]
    blended = np.mean([not np.isin(p, PIXELS).all() for p, _ in mixed(300, 0.5, 0.5)])
    assert set(kinds) == {6}
    assert blended == pytest.approx(0.5, abs=0.1)


def test_without_alphas_nothing_is_mixed() -> None:
    pixels, targets = mix(PIXELS, TARGETS, key(0), 0, 0)
    assert pixels is PIXELS
    assert targets is TARGETS


def test_tiny_alphas_and_half_precision_give_numbers() -> None:
    for number in range(20):
        halves = tf.cast(PIXELS, tf.bfloat16)
        pixels, targets = mix(halves, TARGETS, key(number), 0.001, 0)
        assert (pixels.dtype, targets.dtype) == (tf.bfloat16, tf.float32)
        assert np.isfinite(targets).all()
        assert targets[0, 0] < 1e-3 or targets[0, 0] > 1 - 1e-3


def test_a_key_mixes_the_same_way_everywhere() -> None:
    for number, (pixels, targets) in enumerate(mixed(10, 0.3, 1.0)):
        again = mix(PIXELS, TARGETS, key(number), 0.3, 1.0)
        np.testing.assert_allclose(again[0], pixels, rtol=1e-6)
        np.testing.assert_allclose(again[1], targets, rtol=1e-6)
