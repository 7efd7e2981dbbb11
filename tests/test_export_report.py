"""What the report of an export says, and that nothing in it can be markup."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_report import HOSTILE, Page

from reszoo.architecture import Architecture
from reszoo.cards import Card, Metric
from reszoo.preprocessing import Preprocessing
from reszoo.report.page import Outside
from reszoo.specs import SPECS
from reszoo.training.recipes import find_recipe
from reszoo_export.formats import FORMATS, ExportOptions
from reszoo_export.manifest import (
    Disagreement,
    FileRecord,
    Latency,
    Manifest,
    Verification,
)
from reszoo_export.report import Advice, advise, escape_markdown, write_report
from reszoo_export.verification.reference import Reference

LABELS = ("ant", "bee", "cat", "dog", "emu", "fox")
ANSWERS = "Each file compared with the model"
COST = "Size, latency and memory of each file"
# Format -> bytes, accuracy, milliseconds.
MEASURED = {
    "saved_model": (1_222_000, 0.8719, 4.0),
    "tflite": (1_094_000, 0.8719, 2.0),
    "tflite-fp16": (560_000, 0.8719, 2.1),
    "tflite-int8": (310_000, 0.8701, 0.5),
    "onnx": (1_080_000, 0.8719, 1.2),
    "onnx-int8": (340_000, 0.8705, 0.6),
}


def card(**changes: Any) -> Card:
    made = Card(
        architecture=Architecture(
            spec=SPECS["resnet20"],
            shortcut="identity",
            stride_in="3x3",
            input_shape=(32, 32, 3),
            include_top=True,
            classes=6,
            pooling=None,
            features=None,
            classifier_activation=None,
        ),
        labels=LABELS,
        preprocessing=Preprocessing(
            train_size=32,
            eval_size=28,
            crop_pct=0.875,
            interpolation="bicubic",
            mean=(0.5, 0.5, 0.5),
            std=(0.2, 0.2, 0.2),
        ),
        provenance={
            "source": "trained with reszoo",
            "recipe": {"name": "cifar", "epochs": 9},
            "began_as": {"licence": "bsd-3-clause"},
        },
        metrics=(Metric(name="top1", value=0.8719, data="photos (test)"),),
        versions={"reszoo": "0.1.0"},
    )
    return replace(made, **changes)


def disagreement(image: int, **changes: Any) -> Disagreement:
    made = Disagreement(
        image=image,
        model_label="cat",
        model_probability=0.61,
        file_label="dog",
        file_probability=0.55,
        difference=0.21,
    )
    return replace(made, **changes)


def record(name: str, **changes: Any) -> FileRecord:
    size, accuracy, milliseconds = MEASURED[name]
    found = Verification(
        runtime="a runtime 1.0",
        images=40,
        synthetic=2,
        max_difference=0.21,
        mean_difference=0.003,
        synthetic_difference=0.1,
        agreement=0.985,
        top5_agreement=0.99,
        drift=-0.0021,
        confidence_difference=0.004,
        accuracy=accuracy,
        model_accuracy=0.8719,
        worst=(disagreement(3), disagreement(41, file_label="cat", difference=0.1)),
    )
    latency = Latency(
        median_ms=milliseconds,
        p90_ms=1.5 * milliseconds,
        p99_ms=3 * milliseconds,
        images_per_second=1000 / milliseconds,
        runs=100,
        threads=2,
        processor="a fast one",
        load_ms=20,
        first_ms=5,
        memory_mb=9.2,
        peak_mb=70,
    )
    known = {field for field in changes if hasattr(found, field)}
    found = replace(found, **{field: changes.pop(field) for field in known})
    made = FileRecord(
        format=name,
        file=FORMATS[name].file,
        bytes=size,
        sha256="0",
        inputs=[{"name": "image", "dtype": "uint8", "shape": ["batch", 28, 28, 3]}],
        outputs=[
            {
                "name": "probabilities",
                "dtype": "uint8",
                "shape": [-1, 6],
                "scale": 1 / 256,
                "zero_point": 0,
            }
        ],
        verification=found,
        latency=latency,
    )
    return replace(made, **changes)


def manifest(*records: FileRecord, **changes: Any) -> Manifest:
    made = Manifest(
        folder=Path("/somewhere/else"),
        card=card(),
        files=records or tuple(map(record, MEASURED)),
        beside={},
    )
    return replace(made, **changes)


def reference() -> Reference:
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (42, 28, 28, 3), np.uint8)
    answers = np.full((42, 6), 1 / 6, np.float32)
    return Reference(images, answers, np.arange(40) % 6, 2)


def written(folder: Path, shown: Manifest) -> tuple[str, Page]:
    write_report(folder, shown, reference())
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    return (folder / "REPORT.md").read_text(encoding="utf-8"), page


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Page]:
    return written(tmp_path_factory.mktemp("export"), manifest())


def cells(markdown: str, first: str) -> list[str]:
    """The cells of the table row that begins with some text."""
    line = next(x for x in markdown.splitlines() if x.startswith(f"| {first} |"))
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_both_reports_say_the_numbers(plain: tuple[str, Page]) -> None:
    markdown, page = plain
    row = [
        *("model-int8.tflite", "verified", "87.01%", "98.50%", "99.00%"),
        *("2.1e-01", "3.0e-03", "-2.1e-03"),
    ]
    assert cells(markdown, "model-int8.tflite") == row
    assert page.tables[ANSWERS][4] == row
    row = ["0.31 MB", "0.50 ms", "0.75 ms", "1.50 ms", "2,000", "25 ms", "9 MB"]
    assert cells(markdown, "model-int8.tflite | 0.31 MB")[1:] == row
    assert page.tables[COST][4][1:] == row
    for text in (markdown, page.text):
        assert "6 of 6 files are verified" in text
        assert "compared with the model on 40 real and 2 synthetic images" in text
        assert "accuracy on the real images is 87.19%" in text
        assert "short side to 32 pixels (bicubic, antialiased)." in text
        assert "Cut 28x28 from the centre." in text
        assert "ImageClassifier squashes a whole photo to 28 x 28 pixels" in text
        assert "reszoo predict model.tflite IMAGE" in text
        assert "reszoo verify ." in text
        assert "reszoo benchmark saved_model model.tflite model-fp16.tflite" in text
        assert "2 threads on a fast one" in text
        assert "bsd-3-clause" in text
    whence = dict(page.tables["Provenance of the weights"][1:])
    assert whence["recipe.epochs"] == "9"
    assert whence["top1 on photos (test)"] == "0.8719"
    out = page.tables["Inputs and outputs"][2]
    assert out[2:] == [
        "probabilities",
        "uint8",
        "batch x 6, scale 0.00390625, zero point 0",
    ]


def test_the_largest_disagreements_are_shown(plain: tuple[str, Page]) -> None:
    markdown, page = plain
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert [image["alt"] for image in images] == [
        "Image 3: dog", "Image 41: synthetic"
    ] * 6  # fmt: skip
    assert "cat 61.0% dog 55.0% true: dog, difference 0.21" in page.text
    assert "cat 61.0% cat 55.0% synthetic, difference 0.1" in page.text
    row = ["`dog`", "`cat`", "61.0%", "`dog`", "55.0%", "0.21"]
    assert cells(markdown, "3")[1:] == row


def test_the_accuracy_of_each_class_is_shown(tmp_path: Path) -> None:
    images = np.zeros((6, 28, 28, 3), np.uint8)
    outputs = np.eye(6, dtype=np.float32)[[0, 0, 1, 3, 2, 2]]
    real = Reference(images, outputs, np.array([0, 0, 1, 1, 2, 2]), 0)
    recalls = {"tflite": (1.0, 0.5, 1.0), "tflite-int8": (1.0, 0.5, 0.0)}
    files = [
        record(name, recalls=(*each, None, None, None), worst=())
        for name, each in recalls.items()
    ]
    write_report(tmp_path, manifest(*files), real)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.tables["Accuracy by class"] == [
        ["class", "images", "model", "model.tflite", "model-int8.tflite"],
        ["cat", "2", "100.0%", "100.0%", "0.0%"],
        ["ant", "2", "100.0%", "100.0%", "100.0%"],
        ["bee", "2", "50.0%", "50.0%", "50.0%"],
    ]
    markdown = (tmp_path / "REPORT.md").read_text(encoding="utf-8")
    assert cells(markdown, "`cat`")[1:] == ["2", "100.0%", "100.0%", "0.0%"]


def test_rounding_is_told_in_short(tmp_path: Path) -> None:
    small = disagreement(3, file_label="cat", difference=3e-7)
    markdown, page = written(tmp_path, manifest(record("onnx", worst=(small,))))
    told = "Largest difference: 3e-07. The predicted classes are the same."
    assert told in markdown
    assert told in page.text
    assert "| 3 |" not in markdown
    assert [tag for tag, _ in page.tags].count("img") == 1


def test_failures_come_first(tmp_path: Path) -> None:
    bad = record("onnx", problems=("the logits are <b>odd</b>",))
    markdown, page = written(tmp_path, manifest(record("tflite"), bad))
    assert "1 of 2 files are verified" in markdown
    assert "* `model.onnx: the logits are <b>odd</b>`" in markdown
    assert "model.onnx: the logits are <b>odd</b>" in page.text
    assert [row[1] for row in page.tables[ANSWERS][1:]] == ["verified", "FAILED"]
    # What failed is renamed, and nothing to be used.
    assert "reszoo benchmark model.tflite\n" in markdown


def test_nothing_from_outside_becomes_markup(
    tmp_path: Path, plain: tuple[str, Page]
) -> None:
    odd = [
        replace(each, verification=replace(each.verification, worst=(
            disagreement(3, model_label=HOSTILE[0], file_label=HOSTILE[1]),
            disagreement(41, model_label="a|b`c``", file_label="a|b`c``"),
        )))
        for each in manifest().files
    ]  # fmt: skip
    hostile = card(
        labels=(HOSTILE[0], HOSTILE[1], HOSTILE[2], "a|b`c``", "*x*", "[a](b)"),
        provenance={
            HOSTILE[0]: HOSTILE[3],
            "recipe": {"name": "# no\n# head", "epochs": HOSTILE[1]},
            "licence": "<b>`free`</b>",
        },
        versions={HOSTILE[0]: HOSTILE[1]},
    )
    markdown, page = written(tmp_path, manifest(*odd, card=hostile))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain[1].tags]
    assert page.open == []
    # What is left when code spans are taken out is all ours.
    ours = re.sub(r"(?<!`)(`+)(?!`)(.*?)(?<!`)\1(?!`)", "", markdown)
    assert "`" not in ours.replace("```", "")
    for mark in ("<", "[a]", "*x*", "# no", "alert"):
        assert mark not in ours
    assert ours.count("\n#") == plain[0].count("\n#")
    # A bar ends a cell even in a code span, but after a backslash (GFM, 4.10).
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {3, 6, 8, 9}


@pytest.mark.parametrize(
    ("text", "span"),
    [("a", "`a`"), ("a`b", "`` a`b ``"), ("``", "``` `` ```"), (" ", "`   `"),
     ("a\nb\u202e", "`a\\nb\\u202e`")],
)  # fmt: skip
def test_code_spans_hold_any_text(text: str, span: str) -> None:
    assert escape_markdown(Outside(text)) == span


def test_the_page_needs_nothing_but_itself(plain: tuple[str, Page]) -> None:
    _, page = plain
    links = [
        v for _, named in page.tags for k, v in named.items() if k in ("src", "href")
    ]
    assert links
    assert all(link.startswith("data:image/jpeg;base64,") for link in links)
    assert "//" not in re.sub('base64,[^"]*', "", page.source)
    policy = next(a for _, a in page.tags if "http-equiv" in a)
    assert policy["content"].startswith("default-src 'none'; ")
    assert ("html", {"lang": "en"}) in page.tags
    assert all(a["alt"] for tag, a in page.tags if tag == "img")
    assert "/somewhere/else" not in page.source + plain[0]


def test_the_same_export_gives_the_same_reports(
    plain: tuple[str, Page], tmp_path: Path
) -> None:
    again = written(tmp_path, manifest(folder=tmp_path))
    assert (again[0], again[1].source) == (plain[0], plain[1].source)


def by_use(shown: Manifest) -> dict[str, Advice]:
    return {each.use: each for each in advise(shown)}


def test_a_file_of_integers_is_for_devices_without_floating_point() -> None:
    assert "Microcontroller or NPU" not in by_use(manifest())
    options = ExportOptions(integer_io="int8")
    small = replace(manifest(record("tflite-int8")), options=options)
    advice = by_use(small)["Microcontroller or NPU"]
    assert advice.file == "model-int8.tflite"
    assert "needs no floating point; docs/exporting.md" in advice.reason


def test_advice_follows_from_the_measurements() -> None:
    found = by_use(manifest())
    assert {use: each.file for use, each in found.items()} == {
        "Phone with a GPU": "model-fp16.tflite",
        "Phone CPU": "model-int8.tflite",
        "Server": "model-int8.onnx",
        "TensorFlow Serving": "saved_model",
        "Browser with WebGPU": "model.onnx",
        "Browser without WebGPU": "model-int8.onnx",
    }
    told = found["Phone CPU"].reason
    assert "3.5 times smaller than model.tflite and 4.0 times faster here." in told
    assert told.endswith("Its accuracy is 87.01%, the model's is 87.19%.")
    assert "2.0 times smaller than model.tflite and equally fast here." in (
        found["Phone with a GPU"].reason
    )
    assert "One image takes 4.00 ms here." in found["TensorFlow Serving"].reason


def test_what_loses_or_is_slow_or_failed_is_not_recommended() -> None:
    slow = replace(record("onnx-int8").latency or Latency.of([1.0], batch=1, threads=1),
                   median_ms=3.0)  # fmt: skip
    shown = manifest(
        record("tflite"),
        record("tflite-fp16", problems=("odd",)),
        record("tflite-int8", accuracy=0.86),
        record("onnx"),
        record("onnx-int8", latency=slow),
    )
    found = by_use(shown)
    phone, server = found["Phone CPU"], found["Server"]
    assert (phone.file, server.file) == ("model.tflite", "model.onnx")
    assert "model-int8.tflite is not recommended: it loses 1.19 points" in phone.reason
    assert "it is 2.5 times slower than model.onnx on this machine" in server.reason
    # What is slow on this processor may be fast on a phone or in a browser.
    assert found["Browser without WebGPU"].file == "model-int8.onnx"
    assert found["Phone with a GPU"].file == "model.tflite"
    serving = found["TensorFlow Serving"]
    assert serving.file is None
    assert serving.reason == "Not exported; add --formats saved_model."
    lossy = by_use(manifest(record("tflite-int8", accuracy=0.86)))["Phone CPU"]
    assert lossy.file is None
    assert lossy.reason == (
        "model-int8.tflite is not recommended: it loses 1.19 points of accuracy. "
        "Add --formats tflite-dynamic."
    )


def test_without_labels_agreement_decides() -> None:
    nothing = {"accuracy": None, "model_accuracy": None}
    good = manifest(record("tflite"), record("tflite-int8", **nothing))
    assert by_use(good)["Phone CPU"].file == "model-int8.tflite"
    bad = record("tflite-int8", agreement=0.9, **nothing)
    told = by_use(manifest(record("tflite"), bad))["Phone CPU"]
    assert told.file == "model.tflite"
    assert "it agrees with the model on only 90.00% of the images" in told.reason


def test_features_are_told_apart(tmp_path: Path) -> None:
    nothing = dict.fromkeys(("accuracy", "model_accuracy", "top5_agreement", "drift"))
    shown = manifest(
        record("onnx", **nothing, worst=(), agreement=0.99996),
        options=ExportOptions(outputs="features"),
    )
    markdown, page = written(tmp_path, shown)
    assert "the table shows the mean cosine similarity" in markdown
    assert "Its features' cosine with the model's is 1.0000." in page.text
    assert cells(markdown, "model.onnx")[2:5] == ["-", "100.00%", "-"]
    assert "reszoo predict" not in markdown


def test_a_file_that_was_not_measured_is_reported(tmp_path: Path) -> None:
    markdown, _ = written(tmp_path, manifest(record("onnx", latency=None)))
    assert cells(markdown, "model.onnx | 1.08 MB")[2:] == ["-"] * 6
    assert "Latency and memory were not measured." in markdown


def test_what_is_unknown_is_reported(tmp_path: Path) -> None:
    bare = card(labels=None, provenance={})
    markdown, page = written(tmp_path, manifest(record("onnx"), card=bare))
    for text in (markdown, page.text):
        assert "The model has 6 classes; labels unavailable." in text
        assert "Licence of the weights: not recorded." in text


def test_a_file_without_outputs_does_not_hide_the_images_of_others(
    tmp_path: Path,
) -> None:
    nothing = {"images": 0, "synthetic": 0, "worst": (), "model_accuracy": None}
    broken = record("tflite", problems=("cannot be opened",), **nothing)
    markdown, page = written(tmp_path, manifest(broken, record("onnx")))
    for text in (markdown, page.text):
        assert "on 40 real and 2 synthetic images" in text
        assert "No images to compare." in text


def test_recipes_show_their_changed_fields_only(tmp_path: Path) -> None:
    recipe = {**find_recipe("cifar").to_json(), "epochs": 9}
    trained = card(provenance={"recipe": recipe, "began_as": {"recipe": {"name": "x"}}})
    _, page = written(tmp_path, manifest(record("onnx"), card=trained))
    shown = [row[0] for row in page.tables["Provenance of the weights"][1:4]]
    assert shown == ["recipe.name", "recipe.epochs", "began_as.recipe.name"]
