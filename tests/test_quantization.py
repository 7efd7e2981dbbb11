"""Calibration images: drawn fairly, and refused where they would tell nothing."""

from typing import Any

import numpy as np
import pytest
from conftest import photos

import reszoo
from reszoo.data.sources import open_source
from reszoo.metrics import prepared_batches
from reszoo_export.quantization.ranges import (
    MIN_IMAGES,
    Calibration,
    draw_calibration,
    fingerprint,
)


def noise(count: int = MIN_IMAGES, seed: int = 0) -> Any:
    draw = np.random.default_rng(seed)
    return draw.integers(0, 256, (count, 8, 8, 3), np.uint8)


@pytest.fixture(scope="module")
def drawn(run: Any) -> Any:
    """The calibration set of the digits, and the test images."""
    source, card = open_source("digits"), reszoo.card(run.model)
    judged = source.examples("test")
    avoid = np.concatenate(list(prepared_batches(judged, card.preprocessing, 64)))
    return draw_calibration(source, card, avoid), avoid, source, card


def marks(images: Any) -> set[str]:
    return {fingerprint(image) for image in images}


def test_calibration_trial_and_verification_share_no_image(drawn: Any) -> None:
    calibration, avoid, _, _ = drawn
    assert len(calibration.images) >= MIN_IMAGES
    assert len(marks(calibration.images)) == len(calibration.images)
    assert len(marks(calibration.trial)) == len(calibration.trial) == 200
    assert not marks(calibration.images) & marks(calibration.trial)
    assert not marks(avoid) & (marks(calibration.images) | marks(calibration.trial))


def test_calibration_takes_as_many_of_each_class(drawn: Any) -> None:
    calibration, _, source, card = drawn
    examples = source.examples("train")
    every = prepared_batches(examples, card.preprocessing, 64)
    label_of = dict(
        zip(
            map(fingerprint, np.concatenate(list(every))), examples.targets, strict=True
        )
    )
    labels = [label_of[fingerprint(image)] for image in calibration.images]
    counts = np.bincount(labels, minlength=10)
    assert counts.max() - counts.min() <= 1


def test_calibration_is_drawn_by_its_seed(drawn: Any) -> None:
    calibration, avoid, source, card = drawn
    again = draw_calibration(source, card, avoid)
    other = draw_calibration(source, card, avoid, seed=1)
    np.testing.assert_array_equal(again.images, calibration.images)
    assert marks(other.images) != marks(calibration.images)


def test_an_image_to_verify_with_is_never_drawn(drawn: Any) -> None:
    calibration, _, source, card = drawn
    taken = draw_calibration(source, card, calibration.images)
    assert not marks(taken.images) & marks(calibration.images)


@pytest.mark.parametrize("count", [0, 1, MIN_IMAGES - 1])
def test_too_few_images_are_refused_with_their_number(count: int) -> None:
    with pytest.raises(reszoo.DataError, match=f"at least 100.*Received: {count},"):
        Calibration(noise(count))


def test_repeated_images_are_refused_with_their_number() -> None:
    twice = np.concatenate([noise(60), noise(60)])
    with pytest.raises(reszoo.DataError, match="Received: 120, of which 60 are"):
        Calibration(twice)


def test_blank_images_are_refused_with_their_number() -> None:
    images = noise(MIN_IMAGES + 10)
    images[3:7] = np.arange(4, dtype=np.uint8)[:, None, None, None] * 60
    with pytest.raises(reszoo.DataError, match="Received: 4 blank of 110"):
        Calibration(images)


def test_scaled_images_are_refused_with_their_number() -> None:
    scaled = noise() // 20
    with pytest.raises(reszoo.DataError, match="100 images with values up to 12"):
        Calibration(scaled)
    normalised: Any = noise() / 255.0
    with pytest.raises(reszoo.DataError, match=r"uint8.*100 of float64 \(100, 8, 8"):
        Calibration(normalised)


def test_a_small_data_set_is_refused(tmp_path: Any) -> None:
    source = open_source(photos(tmp_path / "few"))
    card = reszoo.card(reszoo.build("resnet20", classes=("cat", "dog")))
    with pytest.raises(reszoo.DataError, match="larger data set"):
        draw_calibration(source, card, np.zeros((0, 32, 32, 3), np.uint8))
