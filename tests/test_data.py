import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import photos
from PIL import Image
from tiny import TWO_BLOCKS

import reszoo
from reszoo.data.checks import find_unreadable
from reszoo.data.examples import Examples
from reszoo.data.image_files import open_image
from reszoo.data.sources import match_classes, open_source
from reszoo.data.tfds import is_of_characters


def paths(source: Any, split: str) -> list[str]:
    return list(source.examples(split).paths)


def test_a_fifth_of_every_class_is_held_out_and_judged_on(tmp_path: Path) -> None:
    root = photos(tmp_path / "p", ("b", "a", "10", "2"), each=10)
    source = open_source(root)
    assert source.labels == ("10", "2", "a", "b")
    assert source.examples() is source.examples("validation")
    assert len(source.examples("all")) == 40
    train, held = paths(source, "train"), paths(source, "validation")
    assert not set(train) & set(held)
    assert sorted(train + held) == sorted(paths(source, "all"))
    assert set(Counter(source.examples("validation").targets).values()) == {2}
    # Pinned: another draw would judge older models on what they were trained on.
    assert "".join(Path(path).stem for path in held) == "46294545"


def test_the_seed_of_a_training_does_not_move_the_split(folder: Path) -> None:
    held = paths(open_source(folder), "validation")
    run = reszoo.train(TWO_BLOCKS, folder, epochs=1, batch_size=5, seed=3)
    found = reszoo.evaluate(run.model, folder)
    assert (found.data, found.images) == (f"{folder} (validation)", len(held))
    assert found.loss == pytest.approx(run.history[-1].validation_loss, rel=0.02)


def test_split_folders_are_taken_as_they_are(tmp_path: Path) -> None:
    for split, each in (("train", 4), ("val", 2), ("test", 3)):
        photos(tmp_path / split, each=each)
    source = open_source(tmp_path)
    sizes = {name: len(examples) for name, examples in source.splits.items()}
    assert sizes == {"train": 8, "validation": 4, "test": 6}
    assert source.judging_split == "test"
    with pytest.raises(
        reszoo.UnknownNameError, match=r"Unknown split.*Did you mean 'test'"
    ):
        source.examples("tset")
    (tmp_path / "test" / "dog").rename(tmp_path / "test" / "emu")
    with pytest.raises(reszoo.DataError, match=r"different classes.*: emu"):
        open_source(tmp_path)


def test_split_folders_may_be_capital_and_of_single_images(tmp_path: Path) -> None:
    for split in ("Train", "Val"):
        photos(tmp_path / split, each=1)
    source = open_source(tmp_path)
    assert source.labels == ("cat", "dog")
    sizes = {name: len(examples) for name, examples in source.splits.items()}
    assert sizes == {"train": 2, "validation": 2}
    (tmp_path / "Train" / "dog" / "0.png").unlink()
    with pytest.raises(reszoo.DataError, match=r"at least one image\..*Train: dog"):
        open_source(tmp_path)


def test_two_folders_for_one_split_are_refused(tmp_path: Path) -> None:
    for split in ("train", "val", "validation"):
        photos(tmp_path / split, each=1)
    with pytest.raises(reszoo.DataError, match=r"validation split: val, validation\."):
        open_source(tmp_path)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    source = open_source(photos(tmp_path, ("bus", "train"), each=3))
    assert source.labels == ("bus", "train")
    assert len(source.examples("all")) == 6
    shutil.rmtree(tmp_path / "train")
    photos(tmp_path / "train", each=2)
    assert open_source(tmp_path).labels == ("cat", "dog")


def test_hidden_files_and_folders_are_passed_over(folder: Path) -> None:
    for hidden in (".ipynb_checkpoints/0.png", "deep/.cache/0.png", ".0.png"):
        copy = folder / "cat" / hidden
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "cat" / "0.png", copy)
    shutil.copy(folder / "cat" / "0.png", folder / "cat" / "deep" / "0.png")
    assert len(open_source(folder).examples("all")) == 13


def test_labels_follow_the_folders(folder: Path) -> None:
    source = open_source(folder)
    examples = source.examples("all")
    for path, label in zip(examples.paths or (), examples.targets, strict=True):
        assert Path(path).parent.name == source.labels[label]


def test_a_useless_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(reszoo.DataError, match="has no images in class folders"):
        open_source(tmp_path)
    (tmp_path / "cat").mkdir()
    with pytest.raises(reszoo.DataError, match="has no images in class folders"):
        open_source(tmp_path)
    with pytest.raises(reszoo.DataError, match="has one class, 'only'"):
        open_source(photos(tmp_path / "one", ("only",)))
    root = photos(tmp_path / "few", ("a", "b"), each=2)
    (root / "b" / "0.png").unlink()
    with pytest.raises(reszoo.DataError, match=r"at least two images.*: b"):
        open_source(root)
    with pytest.raises(
        reszoo.UsageError, match=r"Unknown folder, .csv file or data set.*'digits'"
    ):
        open_source("digit")
    with pytest.raises(reszoo.DataError, match="is a file"):
        open_source(tmp_path / "few" / "a" / "0.png")


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"])
def test_a_file_that_is_no_image_is_named_at_once(folder: Path, content: bytes) -> None:
    bad = folder / "cat" / "3.jpg"
    bad.write_bytes(content)
    with pytest.raises(reszoo.DataError, match=r"cat/3\.jpg is not a readable image"):
        open_source(folder)


def test_an_image_is_refused_or_read_in_silence_by_pillows_limit(
    folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = folder / "cat" / "0.png"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 52 - 1)
    with pytest.warns(Image.DecompressionBombWarning), Image.open(image):
        pass
    assert open_image(image).size == (52, 40)
    assert find_unreadable(Examples(np.zeros(1, np.int64), paths=(str(image),))) is None
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 52 // 2 - 1)
    message = r"cat/0\.png has too many pixels \(.*2080 pixels.*Make it smaller"
    with pytest.raises(reszoo.DataError, match=message):
        open_source(folder)
    with pytest.raises(reszoo.DataError, match=message):
        open_image(image)


def test_other_classes_are_refused_with_the_difference(folder: Path) -> None:
    source = open_source(folder)
    assert match_classes(source, ("cat", "dog"), 2) is source
    with pytest.raises(
        reszoo.DataError, match=r"only in the model: cow; only in .*: dog"
    ):
        match_classes(source, ("cat", "cow"), 2)
    with pytest.raises(reszoo.DataError, match=r"\(only in the model: emu\)"):
        match_classes(source, ("cat", "dog", "emu"), 3, all_needed=True)


def test_the_digits_are_scikit_learns() -> None:
    source = open_source("digits")
    sizes = {name: len(examples) for name, examples in source.splits.items()}
    assert sum(sizes.values()) == 1797
    assert source.labels == tuple("0123456789")
    images = source.examples("train").images
    assert images is not None
    assert images.shape[1:] == (8, 8, 3)
    assert (images.min(), images.max()) == (0, 255)
    assert not source.flip_safe


def test_a_folder_may_be_for_measuring_only(tmp_path: Path) -> None:
    for split in ("val", "test"):
        photos(tmp_path / split, each=1)
    source = open_source(tmp_path)
    assert source.labels == ("cat", "dog")
    assert source.judging_split == "test"
    assert set(source.splits) == {"validation", "test"}
    with pytest.raises(reszoo.DataError, match="has no train split to learn from"):
        source.examples("train")
    with pytest.raises(reszoo.DataError, match="has no train split to learn from"):
        reszoo.train(TWO_BLOCKS, tmp_path, epochs=1)


def test_classes_may_be_called_val_and_test(tmp_path: Path) -> None:
    root = photos(tmp_path, ("test", "val"), each=2)
    assert open_source(root).labels == ("test", "val")


@pytest.mark.parametrize("name", ["cat\n", "grey\u00a0cat", "caf\udce9"])
def test_a_class_folder_without_a_printable_name_is_named(
    tmp_path: Path, name: str
) -> None:
    root = photos(tmp_path, ("dog", name))
    with pytest.raises(reszoo.DataError, match="Rename ") as caught:
        open_source(root)
    assert str(caught.value).endswith(f"Rename {str(root / name)!r}.")


def test_links_to_folders_are_followed(folder: Path, tmp_path: Path) -> None:
    more = photos(tmp_path / "more", each=3)
    (folder / "cat" / "more").symlink_to(more / "cat")
    (folder / "dog" / "gone").symlink_to(more / "nowhere")
    found = paths(open_source(folder), "all")
    assert str(folder / "cat" / "more" / "2.png") in found
    assert len(found) == 15


@pytest.mark.parametrize("target", ["cat/deep", "cat", "."])
def test_a_link_that_goes_round_is_named(folder: Path, target: str) -> None:
    (folder / "cat" / "deep").mkdir()
    (folder / "cat" / "deep" / "round").symlink_to(folder / target)
    with pytest.raises(reszoo.DataError, match=r"cat/deep/round is a link to .*Remove"):
        open_source(folder)


def test_links_that_lead_to_each_other_are_named(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (folder / "cat" / "out").symlink_to(outside)
    (outside / "back").symlink_to(folder / "cat")
    with pytest.raises(reszoo.DataError, match=r"cat/out/back is a link to"):
        open_source(folder)
    (folder / "cat" / "out").unlink()
    (folder / "cat" / "self").symlink_to("self")
    assert len(open_source(folder).examples("all")) == 12


def test_digits_by_name_are_not_mirrored(tmp_path: Path) -> None:
    ten = tuple("0123456789")
    assert not open_source(photos(tmp_path / "ten", ten, each=2)).flip_safe
    assert open_source(photos(tmp_path / "two", ("0", "1"), each=2)).flip_safe
    for name in ("mnist", "svhn_cropped:3.1.0", "emnist/letters", "KMNIST"):
        assert is_of_characters(name)
    for name in ("fashion_mnist", "cifar10"):
        assert not is_of_characters(name)


def test_ten_integer_labels_are_digits_where_images_are_grey() -> None:
    labels = np.arange(30) % 10
    colour = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), np.uint8)
    grey, words = colour[..., 0], labels.astype(str)
    assert not open_source((grey, labels)).flip_safe
    assert not open_source((np.stack([grey] * 3, -1), labels)).flip_safe
    assert not open_source((colour, words)).flip_safe
    assert open_source((colour, labels)).flip_safe
    assert open_source((grey, labels % 9)).flip_safe
