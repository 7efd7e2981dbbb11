import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from conftest import photos
from PIL import Image, ImageFile

import reszoo
from reszoo.data.examples import Examples
from reszoo.data.image_files import JPEG_END, open_image
from reszoo.data.listing import list_images
from reszoo.data.sources import Source, fingerprint, open_source


def names(source: Source, split: str) -> list[str]:
    examples = source.examples(split)
    return [Path(examples.name(i)).stem for i in range(len(examples))]


def list_of(folder: Path, text: str | bytes) -> Path:
    file = folder / "list.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


@pytest.mark.parametrize("header", ["", "path,label\r\n", "\ufeffPath, Label\n"])
def test_a_list_holds_out_what_its_folder_would(folder: Path, header: str) -> None:
    listing = list_images(folder)
    lines = [
        f'"{Path(path).relative_to(folder)}",{listing.labels[target]}'
        for path, target in zip(listing.paths, listing.targets, strict=True)
    ]
    text = header + "\r\n".join(reversed(lines)) + "\r\n\r\n"
    source, expected = open_source(list_of(folder, text)), open_source(folder)
    assert source.labels == expected.labels
    assert list(source.splits) == ["all", "train", "validation"]
    for split, examples in source.splits.items():
        assert examples.paths == expected.splits[split].paths
        np.testing.assert_array_equal(examples.targets, expected.splits[split].targets)


def test_a_list_names_classes_and_splits_in_any_words(folder: Path) -> None:
    shutil.move(folder / "cat" / "0.png", folder / "a, b.png")
    text = (
        "label,split,path\n"
        'Zebra,Train,"a, b.png"\n'
        '"ape, great",train,dog/1.png\n'
        f"Zebra,VAL,{folder / 'dog' / '2.png'}\n"
        "émile,train,dog/3.png\n"
        "Zebra,test,dog/4.png\n"
    )
    source = open_source(list_of(folder, text))
    assert source.labels == ("Zebra", "ape, great", "émile")
    found = {name: list(part.targets) for name, part in source.splits.items()}
    assert found == {"train": [0, 1, 2], "validation": [0], "test": [0]}
    assert names(source, "train") == ["a, b", "1", "3"]


def test_a_list_of_windows_names_its_images(folder: Path) -> None:
    lines = [f"{c}\\{n}.png,{c}\n" for c in ("cat", "dog") for n in range(6)]
    source = open_source(list_of(folder, "path,label\n" + "".join(lines)))
    assert source.examples("all").paths == open_source(folder).examples("all").paths


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat/0.png,cat\ncat/1.png\n", r"list\.csv line 2 has 1 fields\. A line is"),
        ("cat/0.png,cat\n\ncat/1.png,cat,test,9\n", "line 3 has 4 fields"),
        ("path,label\ncat/1.png,cat,test\n", "line 2 has 3 fields"),
        ("cat/0.png,cat\n,cat\n", "line 2 has no path"),
        ("cat/0.png,cat\ncat/1.png, \n", "line 2 has no label"),
        ("label,split,path\ncat,train\n", "line 2 has no path"),
        ("cat/0.png,a\ncat/1.png,b\ncat/0.png,b\n", "line 3 repeats .* of line 1"),
        ("cat/0.png,cat,test\ncat/1.png,cat\n", "line 2 differs from those above"),
        ("cat/0.png,cat,tset\n", r"line 1 has the split 'tset'; known are train, val"),
        ("bild,art\ncat/0.png,cat\n", r"names no image .*: :path=COLUMN:label=COLUMN"),
        ("image,a,b\ncat/0.png,1,0\n", r"known as label, only 'image', 'a', 'b'\. Na"),
        ("file,label\ncat/0.png,cat,x\n", "line 2 has 3 fields"),
        (b"cat/0.png,cat\ncat/1.png,caf\xe9\n", "line 2 is not UTF-8"),
        ('cat/0.png,cat\ncat/1.png,"cat\n', "line 2 is not valid CSV"),
        ("cat/0.png,cat\n", "lists the one class 'cat'"),
        ("path,label\n", "lists no images"),
        ('cat/0.png,"a\nb"\n', r"line 2 has a label that is not printable, 'a\\nb'"),
        ("cat/0.png,a\ncat/1.png,b\n", r"at least two images\. .*list\.csv: a, b"),
        ("cat/0.png,a,train\ncat/1.png,b,test\n", r"one image\. .*list\.csv: b"),
    ],
)
def test_a_wrong_line_of_a_list_is_named(
    folder: Path, text: str | bytes, message: str
) -> None:
    with pytest.raises(reszoo.DataError, match=message):
        open_source(list_of(folder, text))


def test_a_missing_image_of_a_list_is_named_or_skipped(
    folder: Path, home: Path
) -> None:
    lines = [f"{c}/{n}.png,{c}\n" for c in ("cat", "dog") for n in range(7)]
    file = list_of(folder, "".join(lines))
    with pytest.raises(reszoo.DataError, match=r"no image .*cat/6\.png"):
        open_source(file)
    source = open_source(file, bad_images="skip")
    gone = [str(folder / name / "6.png") for name in ("cat", "dog")]
    assert [image.path for image in source.unreadable] == gone


# What is wrong with a file -> how it is made from a good PNG.
def _cut(path: Path) -> None:
    whole = path.with_suffix(".jpg")
    pixels = np.random.default_rng(5).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).save(whole, quality=95)
    whole.write_bytes(whole.read_bytes()[:2000])
    path.unlink()


BAD: dict[str, Callable[[Path], Any]] = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_bytes(b"<html>not found</html>"),
    "cut": _cut,
}


@pytest.fixture
def spoiled(tmp_path: Path, home: Path) -> tuple[Path, Source]:
    """Ten images of each class, three of them unreadable, and the source before."""
    root = photos(tmp_path / "photos", each=10)
    before = open_source(root)
    for number, (name, spoil) in enumerate(BAD.items()):
        spoil(root / "dog" / f"{number}.png")
        assert name
    return root, before


@pytest.mark.parametrize(("policy", "lost"), [("skip", "012"), ("recover", "01")])
def test_unreadable_images_are_left_out_of_the_splits_they_were_in(
    spoiled: tuple[Path, Source], policy: str, lost: str
) -> None:
    root, before = spoiled
    source = open_source(root, bad_images=policy)
    assert "".join(Path(image.path).stem for image in source.unreadable) == lost
    assert all(image.reason for image in source.unreadable)
    for split, examples in before.splits.items():
        kept = [
            name
            for name, label in zip(names(before, split), examples.targets, strict=True)
            if not (label and name in lost)
        ]
        assert names(source, split) == kept
        assert source.splits[split].recover is (policy == "recover")
    sizes = {split: len(part) for split, part in source.splits.items()}
    assert sizes["train"] + sizes["validation"] == sizes["all"] == 20 - len(lost)


def test_the_first_unreadable_image_is_named(spoiled: tuple[Path, Source]) -> None:
    message = r"dog/0\.png cannot be used \(.+\)\. Replace it .*bad_images=\"skip\""
    with pytest.raises(reszoo.DataError, match=message):
        open_source(spoiled[0], bad_images="error")
    with pytest.raises(reszoo.DataError, match=r"dog/0\.png is not a readable image"):
        open_source(spoiled[0])
    with pytest.raises(
        reszoo.UsageError, match=r"Unknown policy .*Did you mean 'skip'"
    ):
        open_source(spoiled[0], bad_images="skipp")


def test_unsupported_formats_are_named(folder: Path, home: Path) -> None:
    for name in ("a.HEIC", "b.svg", "notes.txt"):
        (folder / "cat" / name).touch()
    reason = ".heic files are not supported; convert them to PNG or JPEG"
    source = open_source(folder, bad_images="skip")
    assert source.unreadable[0] == (str(folder / "cat" / "a.HEIC"), reason)
    assert [Path(path).name for path, _ in source.unreadable] == ["a.HEIC", "b.svg"]
    assert len(source.splits["all"]) == 12
    with pytest.raises(reszoo.DataError, match=r"a\.HEIC cannot be used \(\.heic"):
        open_source(folder, bad_images="error")
    for number in range(6):
        (folder / "dog" / f"{number}.png").rename(folder / "dog" / f"{number}.heic")
    with pytest.raises(reszoo.DataError, match=r"unsupported .* \.heic, \.svg\): dog"):
        open_source(folder)


def test_every_ending_of_tiff_and_jpeg_is_read(folder: Path, home: Path) -> None:
    picture = Image.open(folder / "cat" / "0.png")
    for number, ending in enumerate(("tif", "TIFF", "jpe", "jfif")):
        kind = "TIFF" if number < 2 else "JPEG"
        picture.save(folder / "cat" / f"x.{ending}", kind)
    assert len(open_source(folder, bad_images="error").splits["all"]) == 16
    depth = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    for pixels in (depth, depth.astype(np.int32)):
        Image.fromarray(pixels).save(folder / "cat" / "deep.tif")
        with pytest.raises(reszoo.DataError, match=r"deep\.tif.*32 bits a channel"):
            open_source(folder)
        with pytest.raises(reszoo.DataError, match=r"deep\.tif.*32 bits a channel"):
            open_source(folder, bad_images="error")


def test_images_in_two_splits_or_classes_are_warned_of(
    tmp_path: Path, home: Path
) -> None:
    draw = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            pixels = draw.integers(0, 256, (40, 40, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / split / name / "0.png")
    assert open_source(tmp_path, bad_images="skip").warnings == ()
    shutil.copy(tmp_path / "train/cat/0.png", tmp_path / "val/cat/a.png")
    shutil.copy(tmp_path / "train/dog/0.png", tmp_path / "val/dog/b.png")
    shutil.copy(tmp_path / "test/cat/0.png", tmp_path / "test/dog/c.png")
    assert open_source(tmp_path).warnings == ()
    classes, splits = open_source(tmp_path, bad_images="error").warnings
    same = "test/cat/0.png = test/dog/c.png"
    assert classes == f"1 image is in more than one class, e.g. {same}"
    same = "train/cat/0.png = val/cat/a.png"
    assert splits == f"2 images are in both train and validation, e.g. {same}"


def test_a_class_or_split_that_loses_all_its_images_is_named(
    tmp_path: Path, home: Path
) -> None:
    for split in ("train", "val"):
        photos(tmp_path / split, each=1)
    for name in ("cat", "dog"):
        (tmp_path / "val" / name / "0.png").write_bytes(b"")
    with pytest.raises(reszoo.DataError, match=r"No image of the validation split"):
        open_source(tmp_path, bad_images="skip")
    (tmp_path / "train" / "dog" / "0.png").write_bytes(b"")
    with pytest.raises(reszoo.DataError, match=r"one image\. .*readable images: dog"):
        open_source(tmp_path, bad_images="skip")


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [0.4, 0.7, 0.999])
def test_a_cut_jpeg_is_recovered_as_pillow_and_tensorflow_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, progressive: bool, share: float
) -> None:
    path = tmp_path / "cut.jpg"
    pixels = np.random.default_rng(5).integers(0, 256, (64, 48, 3), np.uint8)
    Image.fromarray(pixels).save(path, quality=90, progressive=progressive)
    whole = np.asarray(open_image(path))
    np.testing.assert_array_equal(open_image(path, recover=True), whole)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(reszoo.DataError, match="truncated"):
        open_image(path)
    found = np.asarray(open_image(path, recover=True))
    ended = path.read_bytes() + JPEG_END
    by_tensorflow = tf.io.decode_jpeg(ended, 3, dct_method="INTEGER_ACCURATE")
    np.testing.assert_array_equal(found, by_tensorflow)
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    np.testing.assert_array_equal(found, np.asarray(open_image(path)))
    if not progressive:
        np.testing.assert_array_equal(found[:8], whole[:8])


def test_arrays_are_taken_whole_or_by_split() -> None:
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (30, 5, 6, 3), np.uint8)
    labels = np.arange(30) % 12 % 11
    source = open_source((images, labels))
    assert source.labels == tuple(map(str, range(11)))
    parts = {split: len(part) for split, part in source.splits.items()}
    assert parts == {"all": 30, "train": 19, "validation": 11}
    np.testing.assert_array_equal(source.splits["all"].images, images)
    np.testing.assert_array_equal(source.splits["all"].targets, labels)
    words = np.array(["b", "B", "ä"])
    grey = images[..., 0]
    data = {
        "train": (grey, words[labels % 3]),
        "Val": (grey[..., None], words[[1, 0, 1] * 10]),
    }
    source = open_source(data)
    assert source.labels == ("B", "b", "ä")
    assert Counter(source.splits["validation"].targets) == {0: 20, 1: 10}
    shown = source.splits["train"].open(7)
    np.testing.assert_array_equal(shown, np.repeat(grey[7, ..., None], 3, -1))
    column = open_source((images, labels[:, None]))
    np.testing.assert_array_equal(column.splits["all"].targets, labels)


IMAGES, LABELS = np.zeros((8, 4, 4, 3), np.uint8), np.arange(8) % 2


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((IMAGES / 255, LABELS), r"uint8.*float64.*np\.round\(images \* 255\)"),
        ((IMAGES[0, 0], LABELS), r"\(n, height, width, 3\).*Received: \(4, 3\)"),
        ((IMAGES[..., :2], LABELS), r"Received: \(8, 4, 4, 2\)"),
        ((IMAGES, LABELS[:3]), r"one an image.*int64 \(3,\) for 8 images"),
        ((IMAGES, np.eye(8)), "not one-hot"),
        ((IMAGES, LABELS - 1), "count from 0. Received: -1"),
        ((IMAGES, LABELS * 0), "name 1 class"),
        ((IMAGES, LABELS * 2), r"at least two images\. .*arrays: 1"),
        ((IMAGES[:0], LABELS[:0]), "needs images"),
        ({"train": (IMAGES, LABELS * 2)}, r"one image\. .*train split: 1"),
        ({"trian": (IMAGES, LABELS)}, "Unknown split 'trian'. Did you mean 'train'"),
        (
            dict.fromkeys(("train", "val", "Valid", "validate"), (IMAGES, LABELS)),
            "two validation splits: val, Valid, validate",
        ),
        (
            {"train": (IMAGES, LABELS), "val": (IMAGES, LABELS.astype(str))},
            "all have integer labels, or all strings",
        ),
        ({"train": IMAGES}, "pair.*for train: ndarray"),
        ({}, "No arrays"),
        (((IMAGES, LABELS), (IMAGES, LABELS)), r"one array\. .*\"test\": \(x, y\)"),
        (tf.data.Dataset.range(3), r"NumPy arrays.*reszoo\.compile\(model, recipe\)"),
        (IMAGES, "NumPy arrays.*Received: ndarray"),
    ],
)
def test_arrays_that_cannot_be_meant_are_refused(data: Any, message: str) -> None:
    with pytest.raises(reszoo.ReszooError, match=f"(?s){message}"):
        open_source(data)


def test_a_fingerprint_knows_the_data_wherever_it_lies(
    folder: Path, tmp_path: Path
) -> None:
    known = fingerprint(open_source(folder))
    assert known["classes"] == ["cat", "dog"]
    assert {split: known[split]["images"] for split in list(known)[1:]} == {
        "train": 10,
        "validation": 2,
    }
    moved = folder.rename(tmp_path / "moved")
    assert fingerprint(open_source(moved)) == known
    image = moved / "dog" / "3.png"
    image.write_bytes(image.read_bytes() + b"\0")
    changed = fingerprint(open_source(moved))
    assert [key for key in known if known[key] != changed[key]] == ["train"]
    image.rename(moved / "dog" / "33.png")
    assert fingerprint(open_source(moved)) != changed


def test_a_fingerprint_of_arrays_knows_every_pixel_and_label() -> None:
    marks = set()
    for changed_image, changed_label in ((0, 0), (1, 0), (0, 1)):
        images, labels = IMAGES.copy(), LABELS.copy()
        images[-1, -1, -1, -1] = changed_image
        labels[:2] = (changed_label, 1 - changed_label)
        source = open_source({"train": (images, labels)})
        marks.add(str(fingerprint(source)))
        assert str(fingerprint(source)) in marks
    assert len(marks) == 3


def test_examples_hold_one_kind_of_image() -> None:
    with pytest.raises(TypeError, match="one of images, paths and records"):
        Examples(LABELS)
    with pytest.raises(TypeError, match="one of images, paths and records"):
        Examples(LABELS, images=IMAGES, paths=("a",) * 8)
