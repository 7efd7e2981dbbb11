"""The grids of int8 kernels: all their room is used, and no more than there is."""

from typing import Any

import numpy as np
import pytest

from reszoo_export.quantization import grids


@pytest.fixture
def kernel() -> Any:
    """Outputs of very different size, one of them dead."""
    drawn = np.random.default_rng(0).normal(size=(3, 3, 4, 6)).astype(np.float32)
    drawn *= 10.0 ** np.arange(-3, 3, dtype=np.float32)
    drawn[..., 0] = 0
    return drawn


def test_kernels_use_all_steps_of_each_output(kernel: Any) -> None:
    steps = grids.full_steps(kernel)
    whole = np.round(grids.on_grid(kernel, steps) / steps)
    np.testing.assert_array_equal(np.abs(whole).max((0, 1, 2)), [0] + [127] * 5)
    assert (np.abs(whole - kernel / steps) < 1).all()


def test_the_taps_of_a_kernel_keep_their_sum(kernel: Any) -> None:
    steps = grids.full_steps(kernel)
    errors = (grids.on_grid(kernel, steps) - kernel) / steps
    assert np.abs(errors.sum((0, 1))).max() < 0.501
    nearest = np.round(kernel / steps) - kernel / steps
    assert np.abs(nearest.sum((0, 1))).max() > 1.5
    # What need not be turned is not.
    assert np.abs(errors).mean() < 1.3 * np.abs(nearest).mean()
    matrix = kernel[0, 0]
    found = grids.on_grid(matrix, steps)
    np.testing.assert_array_equal(found, np.round(matrix / steps) * steps)


def test_narrow_kernels_fit_16_bits_two_by_two(kernel: Any) -> None:
    kernel[..., 1] = 0
    kernel[0, 0, 0, 1] = 9
    steps = grids.narrow_steps(kernel)
    whole = np.round(grids.on_grid(kernel, steps) / steps).astype(np.int32)
    whole = whole.reshape(-1, 6)
    for weights in whole.T:
        sums = weights[:, None] + weights
        # No weight is its own neighbour.
        np.fill_diagonal(sums, 0)
        assert -(2**15) <= 255 * sums.min() <= 255 * sums.max() < 2**15
    # All the room is used: by one weight that stands alone, and by two of a sign.
    assert np.abs(whole).max(0)[:2].tolist() == [0, 127]
    assert set(grids.greatest_pairs(whole)[2:]) <= {126, 127, 128}


def test_no_kernel_overflows_however_it_is_rounded() -> None:
    draw = np.random.default_rng(0)
    most = []
    for _ in range(200):
        kernel = draw.normal(size=(3, 3, 2, 8)).astype(np.float32)
        steps = grids.narrow_steps(kernel)
        whole = np.round(grids.on_grid(kernel, steps) / steps)
        most += grids.greatest_pairs(whole).tolist()
    assert 125 < min(most) < max(most) == grids.MAX_PAIR
