"""Folders of smaller images: the same layout, splits, labels and pictures."""

import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import photos
from PIL import Image
from sample_images import orientation_exif

import reszoo
from reszoo.data.image_files import open_image
from reszoo.data.listing import list_images
from reszoo.data.resize import resize_images
from reszoo.data.sources import open_source

SIDE = 24


def noise(height: int, width: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def thumbnail(image: Image.Image) -> Any:
    return np.asarray(image.resize((8, 8), Image.Resampling.BOX)).astype(int)


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """PNG photos of 40 to 45 by 52 pixels, and small files of every treatment."""
    root = photos(tmp_path / "mixed")
    cat, dog = root / "cat", root / "dog"
    small = [Image.fromarray(noise(20, 30, seed)) for seed in range(8)]
    exif = orientation_exif(6)
    small[0].save(cat / "small.jpg", quality=80)
    small[1].save(cat / "turned.jpg", exif=exif)
    small[2].convert("CMYK").save(cat / "cmyk.jpg")
    small[3].convert("L").save(cat / "grey.jpg")
    small[5].save(cat / "small.bmp")
    small[6].convert("RGBA").save(cat / "clear.png")
    (cat / "deep").mkdir()
    small[7].save(cat / "deep" / "small.PNG")
    Image.fromarray(noise(60, 90)).save(dog / "large.jpg")
    small[4].save(dog / "tail.jpg")
    (dog / "tail.jpg").write_bytes((dog / "tail.jpg").read_bytes() + b"junk")
    return root


def check_same_images(before: Any, after: Any) -> None:
    """Check labels, splits, targets, sizes, and which image is which."""
    assert after.labels == before.labels
    assert set(after.splits) - {"all"} == set(before.splits) - {"all"}
    for split in set(before.splits) - {"all"}:
        examples, originals = after.splits[split], before.splits[split]
        np.testing.assert_array_equal(examples.targets, originals.targets)
        indices = range(len(examples))
        for index in indices:
            one, other = originals.open(index), examples.open(index)
            assert min(other.size) == min(SIDE, *one.size)
            assert (one.width > one.height) == (other.width > other.height)
        # Every image is more like its own original than like any other.
        kept, made = (
            np.stack([thumbnail(part.open(i)) for i in indices])
            for part in (originals, examples)
        )
        distances = np.abs(made[:, None] - kept[None]).mean((2, 3, 4))
        np.testing.assert_array_equal(distances.argmin(1), indices)


def test_the_folder_has_the_same_layout_and_images(mixed: Path, tmp_path: Path) -> None:
    output = tmp_path / "small"
    result = resize_images(mixed, output, side=SIDE)
    check_same_images(open_source(mixed), open_source(output))
    names = {name.replace(".bmp", ".bmp.png") for name in files_in(mixed)}
    assert set(files_in(output)) == names
    assert (result.images, result.unreadable) == ({"train": 16, "validation": 5}, ())
    assert result.bytes_before == sum(map(len, files_in(mixed).values()))
    assert result.bytes_after == sum(map(len, files_in(output).values()))
    for name in files_in(output):
        kind = "PNG" if name.lower().endswith(".png") else "JPEG"
        mode = "L" if "grey" in name else "RGB"
        with Image.open(output / name) as image:
            assert (image.format, image.mode) == (kind, mode)
            assert dict(image.getexif()) == {}


def test_only_small_complete_upright_plain_files_are_copied(
    mixed: Path, tmp_path: Path
) -> None:
    result = resize_images(mixed, tmp_path / "small", side=SIDE)
    before, after = files_in(mixed), files_in(tmp_path / "small")
    same = {name for name in before if before[name] == after.get(name)}
    assert same == {"cat/small.jpg", "cat/grey.jpg", "cat/deep/small.PNG"}
    assert result.copied == 3
    for name in ("cat/small.bmp.png", "cat/clear.png"):
        pixels = np.asarray(Image.open(tmp_path / "small" / name))
        original = open_image(
            mixed / name.removesuffix(".png").replace("clear", "clear.png")
        )
        np.testing.assert_array_equal(pixels, np.asarray(original))


def test_splits_are_kept_as_folders(tmp_path: Path) -> None:
    for split, each in (("Train", 4), ("valid", 2), ("test", 3)):
        photos(tmp_path / "p" / split, each=each)
    result = resize_images(tmp_path / "p", tmp_path / "small", side=SIDE)
    assert result.images == {"test": 6, "train": 8, "validation": 4}
    assert sorted(f.name for f in (tmp_path / "small").iterdir()) == [
        "test",
        "train",
        "val",
    ]
    check_same_images(open_source(tmp_path / "p"), open_source(tmp_path / "small"))


def test_the_images_of_a_list_go_into_folders(tmp_path: Path) -> None:
    root = photos(tmp_path / "p", each=4)
    (root / "more" / "cat").mkdir(parents=True)
    for number in range(2):
        Image.fromarray(noise(9, 9, number)).save(
            root / "more" / "cat" / f"{number}.png"
        )
    outside = photos(tmp_path / "outside", ("x",), each=1)
    lines = [f"{path},feline" for path in sorted((root / "more").rglob("*.png"))]
    lines += [f"cat/{number}.png,feline" for number in range(4)]
    lines += [f"dog/{number}.png,dog" for number in range(4)]
    lines += [f"{outside / 'x' / '0.png'},dog", "../outside/x/../x/0.png,dog"]
    (root / "list.csv").write_text("\n".join(lines) + "\n")
    resize_images(root / "list.csv", tmp_path / "small", side=SIDE)
    assert set(files_in(tmp_path / "small")) == {
        *(f"feline/cat/{number}.png" for number in range(4)),
        *(f"feline/more/cat/{number}.png" for number in range(2)),
        *(f"dog/{number}.png" for number in range(4)),
        "dog/0-2.png",
        "dog/0-3.png",
    }


def test_a_drawn_split_stays_when_images_are_left_out(
    mixed: Path, tmp_path: Path, home: Path
) -> None:
    (mixed / "dog" / "0.png").write_bytes(b"")
    (mixed / "cat" / "photo.heic").touch()
    output = tmp_path / "small"
    result = resize_images(mixed, output, side=SIDE, bad_images="skip")
    assert [Path(image.path).name for image in result.unreadable] == [
        "photo.heic",
        "0.png",
    ]
    check_same_images(open_source(mixed, bad_images="skip"), open_source(output))
    assert sorted(folder.name for folder in output.iterdir()) == ["train", "val"]
    with pytest.raises(reszoo.DataError, match=r"photo\.heic cannot be used \(\.heic"):
        resize_images(mixed, tmp_path / "other")


def test_a_class_may_be_called_train(tmp_path: Path, home: Path) -> None:
    root = photos(tmp_path / "p", ("bus", "train"))
    (root / "train" / "0.png").write_bytes(b"")
    resize_images(root, tmp_path / "small", side=SIDE, bad_images="skip")
    after = open_source(tmp_path / "small")
    check_same_images(open_source(root, bad_images="skip"), after)
    assert set(after.splits) == {"train", "validation"}


def test_truncated_jpegs_are_recovered(mixed: Path, tmp_path: Path) -> None:
    cut = mixed / "cat" / "small.jpg"
    whole = np.asarray(open_image(cut)).astype(int)
    cut.write_bytes(cut.read_bytes()[:-200])
    skipped = resize_images(mixed, tmp_path / "skip", side=SIDE, bad_images="skip")
    assert [image.path for image in skipped.unreadable] == [str(cut)]
    assert "truncated" in skipped.unreadable[0].reason
    kept = resize_images(mixed, tmp_path / "all", side=SIDE, bad_images="recover")
    assert (sum(kept.images.values()), kept.copied) == (21, 2)
    shown = np.asarray(open_image(tmp_path / "all" / "cat" / "small.jpg")).astype(int)
    assert np.abs(shown[:8] - whole[:8]).mean() < 12


def test_large_jpegs_are_reduced_by_the_decoder_without_visible_difference(
    tmp_path: Path,
) -> None:
    root = photos(tmp_path / "p", each=2)
    smooth = Image.fromarray(noise(12, 16)).resize((800, 600), Image.Resampling.BICUBIC)
    exif = orientation_exif(6)
    smooth.save(root / "cat" / "0.jpg", quality=95, exif=exif)
    turned = open_image(root / "cat" / "0.jpg")
    assert turned.size == (600, 800)
    stream = BytesIO()
    turned.resize((64, 85), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=95)
    expected = np.asarray(Image.open(stream)).astype(int)
    resize_images(root, tmp_path / "small", side=64)
    shown = np.asarray(Image.open(tmp_path / "small" / "cat" / "0.jpg")).astype(int)
    assert shown.shape == (85, 64, 3)
    assert np.abs(shown - expected).mean() < 2


def test_equal_data_gives_equal_files(mixed: Path, tmp_path: Path) -> None:
    resize_images(mixed, tmp_path / "one", side=SIDE)
    resize_images(mixed.rename(tmp_path / "moved"), tmp_path / "two", side=SIDE)
    assert files_in(tmp_path / "one") == files_in(tmp_path / "two")


def test_a_failure_leaves_no_folder(mixed: Path, tmp_path: Path) -> None:
    cut = mixed / "dog" / "large.jpg"
    cut.write_bytes(cut.read_bytes()[:-900])
    with pytest.raises(
        reszoo.DataError, match=r"dog/large\.jpg cannot be used \(.*tru"
    ):
        resize_images(mixed, tmp_path / "small", side=SIDE)
    for path in (mixed / "cat").rglob("*.*"):
        path.write_bytes(b"")
    with pytest.raises(reszoo.DataError, match=r"readable images of the train.*: cat"):
        resize_images(mixed, tmp_path / "small", side=SIDE, bad_images="skip")
    assert [file.name for file in tmp_path.iterdir()] == ["mixed"]


def test_requests_that_cannot_be_carried_out_are_refused(
    mixed: Path, tmp_path: Path
) -> None:
    wrongs: tuple[tuple[dict[str, Any], str], ...] = (
        ({"quality": 96}, r"quality must be in \[1, 95\]. Received: quality=96"),
        ({"quality": 0}, r"quality must be in \[1, 95\]. Received: quality=0"),
        ({"side": 0}, "side must be at least 1. Received: side=0"),
        ({"side": None}, "side must be a whole number. Received: side=None"),
        ({"side": "256"}, "side must be a whole number. Received: side='256'"),
        ({"side": [256]}, "side must be a whole number. Received: side=.256."),
        ({"side": np.array(0)}, "side must be at least 1. Received: side=0"),
    )
    for wrong, text in wrongs:
        with pytest.raises(reszoo.UsageError, match=text):
            resize_images(mixed, tmp_path / "small", **wrong)
    with pytest.raises(reszoo.UsageError, match="exists already"):
        resize_images(mixed, mixed)
    with pytest.raises(reszoo.UsageError, match=r"folder of images .*: 'digits'"):
        resize_images("digits", tmp_path / "small")
    lines = "".join(f"{p},{p.parent.name}/x\n" for p in mixed.rglob("*.png"))
    (tmp_path / "list.csv").write_text(lines)
    with pytest.raises(reszoo.DataError, match=r"contain a slash.*: cat/x, "):
        resize_images(tmp_path / "list.csv", tmp_path / "small")


def test_no_tensorflow_is_loaded(mixed: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from reszoo.data.resize import resize_images\n"
        f"resize_images({str(mixed)!r}, {str(tmp_path / 'small')!r})\n"
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert len(list_images(tmp_path / "small").paths) == 21
