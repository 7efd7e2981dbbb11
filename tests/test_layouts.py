"""Folders, tables and arrays as people have them: what each is taken for, and says."""

import errno
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import pytest
import tensorflow as tf
from conftest import photos
from PIL import Image
from sample_images import encoded
from tiny import TWO_BLOCKS

import reszoo
from reszoo.data.checks import scan
from reszoo.data.listing import list_images
from reszoo.data.resize import resizing_gain
from reszoo.data.sources import Source, match_classes, open_source
from reszoo.training.recipes import RECIPES


def sizes(source: Source) -> dict[str, int]:
    return {name: len(part) for name, part in source.splits.items()}


def notes(data: Any) -> str:
    return "\n".join(open_source(data).notes)


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("Training", "Validation", "Testing"),
        ("TRAIN", "dev", "eval"),
        ("train_set", "valid", "test_images"),
        ("train", "development", "Evaluation"),
    ],
)
def test_usual_names_of_splits_are_known(
    tmp_path: Path, train: str, validation: str, test: str
) -> None:
    for name, each in ((train, 5), (validation, 3), (test, 2)):
        photos(tmp_path / name, each=each)
    source = open_source(tmp_path)
    assert source.labels == ("cat", "dog")
    assert sizes(source) == {"train": 10, "validation": 6, "test": 4}
    assert f"{test}/ is the test split" in source.notes


@pytest.mark.parametrize("nested", [False, True])
def test_folders_with_equal_sub_folders_are_no_classes(
    tmp_path: Path, nested: bool
) -> None:
    for name in ("fold_a", "fold_b"):
        photos(tmp_path / name / (name if nested else ""))
    message = r"folders fold_a, fold_b of .* are no classes.*\(cat, dog\)\. Call splits"
    with pytest.raises(reszoo.DataError, match=message):
        open_source(tmp_path)
    with pytest.raises(reszoo.DataError, match=message):
        scan(tmp_path)


def test_classes_may_have_equal_sub_folders_beside_images(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        photos(tmp_path / label, ("indoors", "outdoors"), each=2)
        shutil.copy(tmp_path / label / "indoors" / "0.png", tmp_path / label)
    assert sizes(open_source(tmp_path))["all"] == 10


def test_a_split_within_a_folder_of_its_name_is_found(tmp_path: Path) -> None:
    photos(tmp_path / "train" / "train")
    photos(tmp_path / "test" / "test")
    photos(tmp_path / "wrapped" / "only" / "train")
    assert open_source(tmp_path).labels == ("cat", "dog")
    photos(tmp_path / "wrapped" / "only" / "test")
    with pytest.raises(reszoo.DataError, match=r"Or did you mean .*wrapped/only\?"):
        open_source(tmp_path / "wrapped")


def test_what_is_not_used_is_named(tmp_path: Path, home: Path) -> None:
    for name in ("train", "val", "holdout"):
        photos(tmp_path / name, each=2)
    (tmp_path / "annotations").mkdir()
    shutil.copy(tmp_path / "train/cat/0.png", tmp_path / "val" / "loose.png")
    found = notes(tmp_path)
    assert "holdout/ is no known name of a split: its 4 images are not used" in found
    assert "1 images directly in" in found
    assert found.endswith("loose.png")
    assert "annotations" not in found
    assert "Note: holdout/ is no known name" in str(scan(tmp_path))


def test_a_test_split_without_class_folders_is_named(tmp_path: Path) -> None:
    photos(tmp_path / "train")
    (tmp_path / "test").mkdir()
    shutil.copy(tmp_path / "train/cat/0.png", tmp_path / "test")
    source = open_source(tmp_path)
    assert sizes(source) == {"all": 12, "train": 10, "validation": 2}
    assert re.search(r"1 images directly in .*test are in no class", source.notes[0])


@pytest.mark.parametrize("kind", ["folder", "csv", "arrays"])
def test_without_validation_a_tenth_of_training_is_held_out(
    tmp_path: Path, kind: str
) -> None:
    photos(tmp_path / "train", each=20)
    photos(tmp_path / "test", each=3)
    data: Any = tmp_path
    if kind == "csv":
        rows = [
            f"{path},{path.parent.name},{path.parents[1].name}\n"
            for path in sorted(tmp_path.rglob("*.png"))
        ]
        data = tmp_path / "list.csv"
        data.write_text("".join(rows))
    elif kind == "arrays":
        images, labels = np.zeros((40, 8, 8, 3), np.uint8), np.arange(40) % 2
        data = {"train": (images, labels), "test": (images[:6], labels[:6])}
    source = open_source(data)
    assert sizes(source) == {"train": 36, "test": 6, "validation": 4}
    assert sorted(source.splits["validation"].targets) == [0, 0, 1, 1]
    assert source.judging_split == "test"
    (note,) = source.notes
    assert "no validation split: 4 of 40 training images are held out" in note
    without = open_source(data, validation_share=0)
    assert sizes(without) == {"train": 40, "test": 6}
    assert sizes(open_source(data, validation_share=0.5))["validation"] == 20


@pytest.mark.parametrize("kind", ["folder", "csv", "arrays"])
def test_a_split_may_lack_a_class_but_not_have_another(
    tmp_path: Path, kind: str
) -> None:
    def made(test: tuple[str, ...]) -> Any:
        if kind == "arrays":
            words = np.array(["cat", "dog"] * 6)
            images = np.zeros((12, 4, 4, 3), np.uint8)
            last = np.array(test * 2)
            pair = images[: len(last)], last
            return {"train": (images, words), "val": pair, "test": pair}
        shutil.rmtree(tmp_path / "d", ignore_errors=True)
        photos(tmp_path / "d" / "train")
        for split in ("val", "test"):
            photos(tmp_path / "d" / split, test)
        if kind == "folder":
            return tmp_path / "d"
        rows = [
            f"{path},{path.parent.name},{path.parents[1].name}\n"
            for path in sorted((tmp_path / "d").rglob("*.png"))
        ]
        (tmp_path / "list.csv").write_text("".join(rows))
        return tmp_path / "list.csv"

    source = open_source(made(("cat",)))
    assert set(source.splits["test"].targets) == {0}
    assert "the test split has no images of: dog" in source.notes
    with pytest.raises(reszoo.DataError, match="emu"):
        open_source(made(("cat", "emu")))


@pytest.mark.parametrize("kind", ["folder", "csv", "arrays"])
def test_names_are_compared_and_stored_in_nfc(tmp_path: Path, kind: str) -> None:
    composed, decomposed = (normalize(form, "café") for form in ("NFC", "NFD"))
    root = photos(tmp_path / "mac", (decomposed, "bar"))
    data: Any = root
    if kind == "csv":
        rows = [
            f"{normalize('NFC', str(path.relative_to(root)))},{path.parent.name}\n"
            for path in root.rglob("*.png")
        ]
        data = root / "list.csv"
        data.write_text("".join(rows))
    elif kind == "arrays":
        words = np.array([decomposed, "bar", composed] * 4)
        data = np.zeros((12, 4, 4, 3), np.uint8), words
    source = open_source(data)
    assert source.labels == ("bar", composed)
    assert len(source.splits["all"]) == 12
    model = reszoo.build("resnet8", classes=(decomposed, "bar"))
    assert reszoo.card(model).labels == (composed, "bar")
    card = reszoo.Card.from_json(
        {**reszoo.card(model).to_json(), "labels": [decomposed, "bar"]}
    )
    matched = match_classes(source, card.labels, 2)
    assert matched.labels == (composed, "bar")
    np.testing.assert_array_equal(
        matched.splits["all"].targets, 1 - source.splits["all"].targets
    )


def test_one_class_in_two_forms_of_unicode_is_refused(tmp_path: Path) -> None:
    names = tuple(normalize(form, "café") for form in ("NFC", "NFD"))
    with pytest.raises(reszoo.DataError, match="two folders for the class 'café'"):
        open_source(photos(tmp_path, names))


@pytest.mark.parametrize("junk", ["__MACOSX", "@eaDir", "lost+found"])
def test_folders_of_systems_are_ignored(folder: Path, junk: str) -> None:
    (folder / junk / "cat").mkdir(parents=True)
    (folder / "cat" / junk).mkdir()
    for place in (folder / junk / "cat", folder / "cat" / junk):
        shutil.copy(folder / "cat" / "0.png", place / "0.png")
    assert open_source(folder).labels == ("cat", "dog")
    assert len(open_source(folder).splits["all"]) == 12


def test_images_without_endings_are_told_by_their_first_bytes(
    folder: Path, home: Path
) -> None:
    for number in range(3):
        path = folder / "cat" / f"{number}.png"
        path.rename(path.with_suffix("" if number else ".png_large"))
    kinds = ("JPEG", "GIF", "BMP", "WEBP", "TIFF")
    picture = Image.open(folder / "dog" / "0.png")
    for kind in kinds:
        (folder / "dog" / f"as {kind}").write_bytes(encoded(picture, kind))
    (folder / "dog" / "README").write_text("BMW owners, photographed\0\0\0")
    (folder / "dog" / "phone").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    source = open_source(folder, bad_images="skip")
    assert len(source.splits["all"]) == 12 + len(kinds)
    assert "8 files without an image's ending are images by" in source.notes[0]
    (phone,) = source.unreadable
    assert Path(phone.path).name == "phone"
    assert phone.reason.startswith("HEIC and AVIF files are not supported")
    report = scan(folder)
    assert report.counts["train"] == (5, 9)
    assert "8 files without an image's ending" in str(report)


TABLES = {
    "usual names": "filename,class\n{0}/0.png,cat\n",
    "pandas": ",id,file_name,Class Name\n0,a7,{0}/0.png,cat\n",
    "semicolons": "Image;Species\n{0}/0.png;cat\n",
    "tabs": "img_path\tcategory\n{0}/0.png\tcat\n",
    "bars": "{0}/0.png|cat\n",
    "the other column": "image,art\n{0}/0.png,cat\n",
}


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_a_table_is_understood_and_says_how(
    folder: Path, kind: str, encoding: str
) -> None:
    *header, row = TABLES[kind].splitlines()
    rows = [
        row.replace("{0}/0.png", f"{label}/{number}.png").replace("cat", word)
        for label, word in (("cat", "cät"), ("dog", "dog"))
        for number in range(6)
    ]
    rows = [each.replace("cät/", "cat/") for each in rows]
    file = folder / "list.csv"
    file.write_text("\n".join([*header, *rows]) + "\n", encoding=encoding)
    source = open_source(file)
    assert source.labels == ("cät", "dog")
    assert len(source.splits["all"]) == 12
    (note,) = source.notes
    assert ("UTF-16" if "16" in encoding else "UTF-8") in note
    if kind == "pandas":
        assert "path from 'file_name', label from 'Class Name'" in note
        assert note.endswith("not used: '', 'id'")


def test_columns_and_the_encoding_can_be_named(folder: Path) -> None:
    rows = [f"{c}/{n}.png,{n % 2},ä{c}\n" for c in ("cat", "dog") for n in range(6)]
    file = folder / "list.csv"
    text = "Bild,Nummer,Art\n" + "".join(rows)
    file.write_text(text, encoding="cp1252")
    wanted = f"{file}:path=Bild:label=Art"
    with pytest.raises(reszoo.DataError, match=r"is not UTF-8; name .*encoding=cp1252"):
        open_source(wanted)
    source = open_source(f"{wanted}:encoding=cp1252")
    assert source.labels == ("äcat", "ädog")
    assert scan(f"{wanted}:encoding=cp1252").labels == source.labels
    with pytest.raises(reszoo.DataError, match=r"column that is known as label.*'Art'"):
        open_source(f"{file}:path=Bild:label=art:encoding=cp1252")
    with pytest.raises(reszoo.UsageError, match="Unknown encoding 'cp99'"):
        open_source(f"{wanted}:encoding=cp99")


def test_the_advice_about_a_column_works(folder: Path) -> None:
    rows = [f"{c}/{n}.png,x,{c}\n" for c in ("cat", "dog") for n in range(6)]
    (folder / "list.csv").write_text("image,eins,zwei\n" + "".join(rows))
    with pytest.raises(reszoo.DataError) as caught:
        open_source(folder / "list.csv")
    advice = re.search(r"Name it: (\S+)\.$", str(caught.value))
    assert advice
    source = open_source(advice[1].replace("COLUMN", "zwei"))
    assert source.labels == ("cat", "dog")


def test_a_default_batch_fits_a_small_data_set_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = photos(tmp_path / "few", each=4)
    run = reszoo.train(TWO_BLOCKS, data, epochs=1)
    assert (run.recipe.batch_size, run.recipe.learning_rate) == (2, 0.1 * 2 / 128)
    told = capsys.readouterr().err
    assert "6 training images are fewer than the recipe's batches of 128: batch" in told
    own = reszoo.train(TWO_BLOCKS, data, epochs=1, learning_rate=0.01)
    assert (own.recipe.batch_size, own.recipe.learning_rate) == (2, 0.01)
    with pytest.raises(reszoo.UsageError, match="batch_size=8 for 6 images"):
        reszoo.train(TWO_BLOCKS, data, epochs=1, batch_size=8)
    recipe = replace(RECIPES["cifar"], epochs=2)
    with pytest.raises(reszoo.UsageError, match="batch_size=128 for 6 images"):
        reszoo.train(TWO_BLOCKS, data, recipe=recipe)


def test_labels_are_matched_by_name_and_integers_by_number() -> None:
    images = np.random.default_rng(0).integers(0, 255, (12, 32, 32, 3), np.uint8)
    labels = ("emu", "cat", "dog")
    words = np.array(["cat", "dog"] * 6)
    by_name = match_classes(open_source((images, words)), labels, 3)
    assert by_name.labels == labels
    np.testing.assert_array_equal(by_name.splits["all"].targets, [1, 2] * 6)
    assert by_name.notes == ("arrays has no images of: emu",)
    by_number = match_classes(open_source((images, np.arange(12) % 3)), labels, 3)
    assert by_number.labels == labels
    assert "0 is emu" in by_number.notes[0]
    with pytest.raises(reszoo.DataError, match="has 4 classes, the model has 3 out"):
        match_classes(open_source((images, np.arange(12) % 4)), labels, 3)


def test_lists_are_named_by_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(reszoo.DataError, match="cannot be read"):
        list_images(tmp_path / "gone.csv:path=a")
    with pytest.raises(reszoo.UsageError, match="Unknown folder"):
        list_images(tmp_path / "gone.csv")


def test_what_the_disk_refuses_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "list.csv").symlink_to("/proc/self/mem")  # its first byte is an EIO
    with pytest.raises(reszoo.DataError, match=r"list\.csv cannot be read \(Input/out"):
        list_images(tmp_path / "list.csv")
    listed = os.scandir

    def refused(path: Any) -> Any:
        if Path(path).name == "dog":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(reszoo.DataError, match=r"dog cannot be listed \(Permission"):
        list_images(folder)


def test_arrays_are_taken_as_what_they_hold() -> None:
    draw = np.random.default_rng(0)
    floats = draw.uniform(0, 255, (12, 8, 8, 3)).astype(np.float32)
    words, numbers = ["cat", "dog"] * 6, [0, 1] * 6
    kinds = {
        "objects": np.asarray(words, object),
        "bytes": np.asarray(words, "S"),
        "NumPy's strings": np.asarray(words, np.dtypes.StringDType()),
    }
    for kind, labels in kinds.items():
        source = open_source((floats, labels))
        assert source.labels == ("cat", "dog"), kind
        np.testing.assert_array_equal(source.splits["all"].targets, numbers)
    shown = source.splits["all"].images
    assert shown is not None
    np.testing.assert_array_equal(shown, np.rint(floats).astype(np.uint8))
    for labels in (
        np.asarray(numbers, object),
        np.asarray(numbers, np.float64),
        np.asarray(numbers, bool),
    ):
        assert open_source((floats.astype(np.int64), labels)).labels == ("0", "1")


@pytest.mark.parametrize(
    ("scale", "shift", "advice"),
    [(1 / 255, 0, r"np\.round\(images \* 255\)"), (1, -120, "before they were normal")],
)
def test_the_range_of_float_images_decides_about_the_advice(
    scale: float, shift: float, advice: str
) -> None:
    images = np.random.default_rng(0).uniform(0, 255, (8, 4, 4, 3)) * scale + shift
    with pytest.raises(reszoo.UsageError, match=rf"Received: float64 from .* {advice}"):
        open_source((images, np.arange(8) % 2))
    rounded = open_source(((images - shift) / scale, np.arange(8) % 2))
    assert len(rounded.splits["all"]) == 8


@pytest.mark.parametrize("missing", [None, float("nan"), 3])
def test_a_label_that_is_none_is_refused(missing: Any) -> None:
    labels = np.array(["a", "b"] * 4, object)
    labels[5] = missing
    with pytest.raises(reszoo.UsageError, match=f"Received: {missing!r} among them"):
        open_source((np.zeros((8, 4, 4, 3), np.uint8), labels))


def test_training_says_what_a_scan_says(
    folder: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = np.random.default_rng(0)
    twelve_bits = draw.integers(0, 4096, (40, 52)).astype(np.uint16)
    Image.fromarray(twelve_bits).save(folder / "cat" / "0.png")
    mask = draw.integers(0, 2, (40, 52), np.uint8)
    Image.fromarray(mask).save(folder / "dog" / "0.png")
    report = scan(folder)
    assert report.anomalies["dark"] == tuple(
        str(folder / label / "0.png") for label in ("cat", "dog")
    )
    reszoo.train(TWO_BLOCKS, folder, epochs=1)
    told = capsys.readouterr().err
    assert "Warning: 1 images: 16 bits a channel: the upper 8 are used" in told
    assert "Warning: 2 images: nearly black, no value above 15 of 255" in told
    pixels = np.ones((8, 4, 4, 3), np.uint8)
    (warning,) = open_source((pixels, np.arange(8) % 2)).warnings[:1]
    assert "nearly black" in warning


def test_targets_that_no_output_has_are_refused_in_fit() -> None:
    model = reszoo.build("resnet8", classes=3, seed=0)
    reszoo.compile(model, "cifar", steps_per_epoch=1, epochs=2)
    images = np.zeros((4, 32, 32, 3), np.float32)
    for targets in ([1, 2, 3, 1], [0, -1, 2, 1], [0.0, 1.5, 2.0, 1.0]):
        with pytest.raises(
            tf.errors.InvalidArgumentError, match="integers from 0 to 2"
        ):
            model.fit(images, np.asarray(targets), verbose=0)
    loss = model.loss(tf.constant([[2]]), tf.zeros((1, 3)))
    assert float(loss) == pytest.approx(np.log(3), rel=1e-5)
    with pytest.raises(reszoo.UsageError, match=r"0 to 2, one an image.*use argmax"):
        model.loss(tf.constant([[0, 0, 1]]), tf.zeros((1, 3)))


@pytest.mark.slow
def test_coarse_training_is_warned_of_and_size_sets_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for number in range(8):
        path = tmp_path / "p" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (70, 90, 3), np.uint8)).save(path)
    reszoo.train(TWO_BLOCKS, tmp_path / "p", epochs=1)
    first, *others = [
        line for line in capsys.readouterr().err.splitlines() if "images" in line
    ][1:]
    assert "6 images at 32 x 32" in first
    wanted = "the images are 70 pixels wide or high (median), the model sees 32"
    assert any(wanted in line for line in others)
    run = reszoo.train(TWO_BLOCKS, tmp_path / "p", epochs=1, size=48)
    told = capsys.readouterr().err
    assert "images at 48 x 48" in told
    assert "pixels wide or high (median)" not in told
    assert reszoo.card(run.model).preprocessing.eval_size == 48


def test_what_resizing_would_bring_is_measured(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    small = photos(tmp_path / "small", each=4)
    for number in range(4):
        path = tmp_path / "large" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = rng.integers(0, 255, (150, 200, 3), np.uint8)
        Image.fromarray(noise).resize((2000, 1500)).save(path)
    found = resizing_gain(open_source(tmp_path / "large").examples("all"), "my photos")
    assert found.startswith("`reszoo resize 'my photos' --output 'my photos-resized'`")
    speed = re.search(r"reading ([\d.]+) times faster and files ([\d.]+) times", found)
    assert speed
    assert float(speed[1]) > 5
    assert float(speed[2]) > 5
    found = resizing_gain(open_source(small).examples("all"), "small")
    assert found.startswith("resizing would bring little (")
    arrays = np.zeros((8, 4, 4, 3), np.uint8), np.arange(8) % 2
    assert "cores" in resizing_gain(open_source(arrays).examples("all"), "arrays")


def test_a_preview_shows_what_training_shows(folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"model": "resnet8", "size": 40}
    still = reszoo.preview(folder, "cifar", crop="none", flip=False, **options)
    shown = np.asarray(still).reshape(6, 40, 8, 40, 3).transpose(2, 0, 1, 3, 4)
    for column in shown[1:]:
        np.testing.assert_array_equal(column, shown[0])
    # Cats are red, dogs are green: three rows of each.
    assert [int(each.mean((0, 1)).argmax()) for each in shown[0]] == [0, 0, 0, 1, 1, 1]
    path = tmp_path / "shown.png"
    moved = np.asarray(reszoo.preview(folder, "cifar", output=path, **options))
    assert (np.asarray(Image.open(path)) == moved).all()
    assert (moved != np.asarray(still)).mean() > 0.3
    with pytest.raises(reszoo.UsageError, match=r"written as \.png"):
        reszoo.preview(folder, output=tmp_path / "shown.gif")
    run = reszoo.train(TWO_BLOCKS, folder, epochs=1, output=tmp_path / "run")
    assert "<h2>Augmented images</h2>" in Path(run.report or "").read_text()


def test_integers_that_are_names_are_refused_at_once() -> None:
    pixels = np.zeros((4, 8, 8, 3), np.uint8)
    with pytest.raises(
        reszoo.UsageError, match=r"count from 0\. Received: 0 to 999999"
    ):
        open_source((pixels, np.array([0, 1, 1, 9_999_999_999])))
    with pytest.raises(reszoo.DataError) as caught:
        open_source((pixels, np.array([0, 0, 5000, 5000])))
    assert "1, 2, 3" in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("splits", [("train",), ("train", "test")])
def test_a_drawn_split_may_lack_a_class_that_is_named(splits: tuple[str, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (21, 8, 8, 3), np.uint8)
    data = {name: (pixels, np.array([*"ab" * 10, "c"])) for name in splits}
    source = open_source(data)
    assert {*source.examples("validation").targets} == {0, 1}
    assert "the validation split has no images of: c" in source.notes
