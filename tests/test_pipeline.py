"""Batches: what is in them, in which order, and that they can be made again."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import reszoo
from reszoo.data.checks import find_unreadable
from reszoo.data.examples import Examples
from reszoo.data.image_files import open_image
from reszoo.data.pipeline import (
    Augmentation,
    evaluation_batches,
    training_batches,
)
from reszoo.data.sources import open_source
from reszoo.preprocessing import default_preprocessing
from reszoo.specs import SPECS

RECORD = default_preprocessing(SPECS["resnet20"])
STILL = Augmentation()
# Policies are left out: their graphs take long to trace.
VARIED = Augmentation(
    crop="resized",
    scale=(0.3, 1),
    flip=True,
    vertical_flip=True,
    rotation=20,
    erase=0.5,
)


def test_evaluation_shows_every_image_once_as_pillow_would(folder: Path) -> None:
    examples = open_source(folder).examples("all")
    batches = list(evaluation_batches(examples, RECORD, batch_size=5))
    assert [len(labels) for _, labels in batches] == [5, 5, 2]
    images = np.concatenate([images for images, _ in batches])
    labels = np.concatenate([labels for _, labels in batches])
    np.testing.assert_array_equal(labels, examples.targets)
    expected = np.stack([examples.prepared(i, RECORD) for i in range(12)])
    assert np.abs(images.astype(int) - expected).max() <= 1


def batches_of(
    examples: Examples, augmentation: Augmentation, size: int, **options: Any
) -> list[tuple[Any, Any]]:
    options = {"seed": 0, "epoch": 0} | options
    batches = training_batches(
        examples, RECORD, augmentation, batch_size=size, **options
    )
    return [(images.numpy(), labels.numpy()) for images, labels in batches]


def assert_equal(batches: Any, others: Any) -> None:
    for (images, labels), (same, same_labels) in zip(batches, others, strict=True):
        np.testing.assert_array_equal(images, same)
        np.testing.assert_array_equal(labels, same_labels)


def numbered(count: int) -> Examples:
    """Noise whose label is its number."""
    draw = np.random.default_rng(2)
    images = draw.integers(0, 256, (count, 32, 32, 3), np.uint8)
    return Examples(np.arange(count), images=images)


def test_training_shows_images_at_the_training_size(folder: Path) -> None:
    record = replace(RECORD, train_size=24, eval_size=40)
    examples = open_source(folder).examples("all")
    batches = training_batches(examples, record, STILL, batch_size=12, seed=0, epoch=0)
    assert batches.element_spec[0].shape == (12, 24, 24, 3)
    ((images, _),) = batches
    shown = images.numpy().astype(int)
    for index in range(12):
        small = examples.prepared(index, replace(record, eval_size=24))
        assert np.abs(shown - small).max((1, 2, 3)).min() <= 1


def test_the_border_of_a_training_image_has_the_mean_colour() -> None:
    white = Examples(np.arange(8), images=np.full((8, 32, 32, 3), 255, np.uint8))
    record = replace(RECORD, mean=(0.2, 0.4, 0.6))
    shifted = Augmentation(crop="pad", pad=4)
    ((images, _),) = training_batches(
        white, record, shifted, batch_size=8, seed=0, epoch=0
    )
    colours = {tuple(pixel) for pixel in images.numpy().reshape(-1, 3)}
    assert colours == {(255, 255, 255), (51, 102, 153)}


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("crop", ["none", "resized"])
def test_training_mirrors_only_where_told_to(crop: Any, flip: bool) -> None:
    examples = numbered(16)
    whole = Augmentation(crop=crop, scale=(1, 1), ratio=(1, 1), flip=flip)
    ((shown, labels),) = batches_of(examples, whole, 16)
    assert examples.images is not None
    pairs = list(zip(shown, examples.images[labels], strict=True))
    mirrored = [np.array_equal(seen, image[:, ::-1]) for seen, image in pairs]
    upright = [np.array_equal(seen, image) for seen, image in pairs]
    assert sum(mirrored) + sum(upright) == 16
    assert any(mirrored) == flip


def test_every_kind_of_variation_is_carried_out() -> None:
    examples = numbered(8)
    seen = {}
    for changed in (
        {"crop": "resized"},
        {"crop": "pad", "pad": 3},
        {"flip": True},
        {"policy": "rand-m9-mstd0.5"},
        {"erase": 0.9},
    ):
        ((images, labels),) = batches_of(examples, Augmentation(**changed), 8)
        assert examples.images is not None
        changes = (images != examples.images[labels]).any((1, 2, 3))
        seen[next(iter(changed))] = changes.mean()
    assert all(share >= 0.25 for share in seen.values()), seen


def test_images_are_flipped_vertically_and_rotated_about_the_centre() -> None:
    examples = numbered(40)
    plain = batches_of(examples, STILL, 40)[0][0]
    flipped = batches_of(examples, replace(STILL, vertical_flip=True), 40)[0][0]
    upside_down = [
        np.array_equal(f, p[::-1]) for f, p in zip(flipped, plain, strict=True)
    ]
    the_same = [np.array_equal(f, p) for f, p in zip(flipped, plain, strict=True)]
    assert 10 < sum(upside_down) < 30
    assert sum(upside_down) + sum(the_same) == 40
    # A bright bar from the centre up shows by how much each image was rotated.
    images = np.zeros((40, 32, 32, 3), np.uint8)
    images[:, 2:16, 15:17] = 255
    bars = replace(examples, images=images)
    turned = batches_of(bars, replace(STILL, rotation=30.0), 40)[0][0].astype(float)
    y, x = np.mgrid[:32, :32] + 0.5
    bright = np.where(turned[..., 0] > 160, turned[..., 0], 0)
    total = bright.sum((1, 2))
    across = (bright * (x - 16)).sum((1, 2)) / total
    up = (bright * (16 - y)).sum((1, 2)) / total
    angles = np.degrees(np.arctan2(across, up))
    assert np.abs(angles).max() < 31
    assert angles.min() < -20
    assert angles.max() > 20
    assert abs(angles.mean()) < 8
    corner = turned[np.abs(angles) > 10][:, 0, 0]
    np.testing.assert_array_equal(corner, np.tile(RECORD.mean_colour, (len(corner), 1)))


def test_an_epoch_can_be_made_again_and_differs_from_the_next(folder: Path) -> None:
    examples = open_source(folder).examples("all")
    first = batches_of(examples, VARIED, 4)
    assert len(first) == 3
    assert_equal(first, batches_of(examples, VARIED, 4))
    assert Counter(np.concatenate([y for _, y in first])) == {0: 6, 1: 6}
    for options in ({"epoch": 1}, {"seed": 1}):
        other = batches_of(examples, VARIED, 4, **options)
        assert not np.array_equal(first[0][0], other[0][0])


def test_an_image_is_varied_anew_in_every_epoch() -> None:
    shown = [batches_of(numbered(4), VARIED, 4, epoch=epoch) for epoch in range(3)]
    by_label = [images[np.argsort(labels)] for ((images, labels),) in shown]
    for one, two in ((0, 1), (1, 2), (0, 2)):
        assert (by_label[one] != by_label[two]).any((1, 2, 3)).all()


@pytest.mark.parametrize("seed", [10**13, 2**63, 10**40])
def test_a_seed_may_be_of_any_size(seed: int) -> None:
    first = batches_of(numbered(12), VARIED, 4, seed=seed, epoch=1)
    assert_equal(first, batches_of(numbered(12), VARIED, 4, seed=seed, epoch=1))
    others = batches_of(numbered(12), VARIED, 4, seed=seed, epoch=2)
    assert not np.array_equal(first[0][0], others[0][0])


def test_what_was_seen_is_passed_over_without_decoding(folder: Path) -> None:
    examples = open_source(folder).examples("all")
    whole = batches_of(examples, VARIED, 4)
    order = np.random.default_rng((0, 0)).permutation(12)
    for index in order[:8]:
        Path(examples.name(index)).write_bytes(b"")
    assert_equal(batches_of(examples, VARIED, 4, start=2), whole[2:])
    assert batches_of(examples, VARIED, 4, start=3) == []


def test_workers_share_every_batch() -> None:
    whole = batches_of(numbered(13), VARIED, 6, start=1)
    parts = [
        batches_of(numbered(13), VARIED, 6, start=1, shard=(i, 3)) for i in range(3)
    ]
    together = [
        tuple(np.concatenate(kind) for kind in zip(*pieces, strict=True))
        for pieces in zip(*parts, strict=True)
    ]
    assert len(parts[0][0][1]) == 2
    assert_equal(whole, together)
    with pytest.raises(reszoo.UsageError, match=r"batch_size=6 for 4 workers"):
        batches_of(numbered(13), VARIED, 6, shard=(0, 4))


def test_repeats_show_fewer_images_varied_differently() -> None:
    examples = numbered(30)
    repeated = replace(VARIED, repeats=3)
    batches = batches_of(examples, repeated, 6)
    assert len(batches) == len(batches_of(examples, VARIED, 6)) == 5
    for images, labels in batches:
        assert sorted(Counter(labels).values()) == [3, 3]
        assert (labels != np.roll(labels, 1)).all()
        assert len({image.tobytes() for image in images}) == 6
    seen = np.concatenate([np.unique(labels) for _, labels in batches])
    assert len(set(seen)) == 10
    assert_equal(batches_of(examples, repeated, 6, start=3), batches[3:])
    # Six places for two images, four times each: the last repetition is cut short.
    uneven = batches_of(examples, replace(VARIED, repeats=4), 6)
    for images, labels in uneven:
        assert sorted(Counter(labels).values()) == [3, 3]
        assert len({image.tobytes() for image in images}) == 6


def test_the_rest_that_fills_no_batch_is_another_one_each_epoch() -> None:
    left_out: list[int] = []
    for epoch in range(4):
        batches = batches_of(numbered(7), STILL, 3, epoch=epoch)
        labels = np.concatenate([labels for _, labels in batches])
        assert len(set(labels)) == 6
        left_out += set(range(7)) - set(labels.tolist())
    assert len(set(left_out)) > 1


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_truncated_image_is_found_by_name(
    folder: Path, home: Path, suffix: str
) -> None:
    bad = folder / "cat" / f"x.{suffix}"
    Image.open(folder / "dog" / "0.png").save(bad)
    bad.write_bytes(bad.read_bytes()[:-100])
    try:
        error = find_unreadable(open_source(folder).examples("all"))
    except reszoo.DataError as early:  # Pillow reads all of a PNG to see its EXIF.
        error = early
    assert f"{bad} is not a readable image" in str(error)


def test_what_only_tensorflow_refuses_is_found(folder: Path, home: Path) -> None:
    bad = folder / "cat" / "0.png"
    bad.write_bytes(bad.read_bytes()[:-4])
    open_image(bad)
    error = find_unreadable(open_source(folder).examples("all"))
    assert f"{bad} is not a readable image (" in str(error)
    assert "function_node" not in str(error)
