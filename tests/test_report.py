import base64
import io
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from guesses import answers
from PIL import Image
from sklearn.metrics import (
    confusion_matrix,
    precision_recall_fscore_support,
)

import reszoo
from reszoo import metrics
from reszoo.metrics import predictions
from reszoo.report.page import escape_html, shell_command, thumbnail
from reszoo.training.history import Epoch
from reszoo.training.report import Evaluation, RunReport, write_report

pytestmark = pytest.mark.usefixtures("figures")
HOSTILE = (
    "<script>alert(1)</script>",
    "\"'><img src=x>&amp;",
    "$x_{",
    "a\udcff\u202eb",
)


def evaluation(classes: int = 4, images: int = 90, **changes: Any) -> Evaluation:
    targets, probabilities = answers(classes, images)
    return replace(
        Evaluation(
            split="validation",
            targets=targets,
            probabilities=probabilities,
            picture=lambda index: Image.new("RGB", (300, 200), (index, 0, 0)),
            file_name=lambda index: f"photos/{index}.jpg",
        ),
        **changes,
    )


def epoch(number: int, **changes: Any) -> Epoch:
    row = Epoch(
        epoch=number,
        phase="head" if number == 1 else "all",
        loss=2.0 / number,
        top1=1 - 0.5 / number,
        validation_loss=2.5 / number,
        validation_top1=1 - 0.6 / number,
        validation_balanced_accuracy=0.6,
        validation_macro_f1=0.55,
        learning_rate=0.1 / number,
        images_per_second=500.0 * number,
        data_wait=0.1 * number,
        seconds=float(number),
    )
    return replace(row, **changes)


def run_report(**changes: Any) -> RunReport:
    report = RunReport(
        model="resnet20",
        data="photos",
        labels=("ant", "bee", "cat", "dog"),
        training_images=1234,
        history=[epoch(1), epoch(2), epoch(3)],
        best_epoch=2,
        evaluation=evaluation(),
        recipe={"epochs": 3, "seed": 0},
        defaults={"epochs": 30, "seed": 0},
        batch_norm=(19, 2),
        skipped=[],
        repeat=["reszoo", "train", "photos"],
        export=["reszoo", "export", "best.safetensors"],
        versions={"reszoo": "0.1", "keras": "3.15"},
        processor="a fast one",
        seconds=3725.0,
    )
    return replace(report, **changes)


class Page(HTMLParser):
    """A page's tags, tables (rows of cell texts, by caption) and visible text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.text = ""
        self.pre: list[str] = []
        self._rows: list[list[str]] = []
        self._caption = ""
        self.feed(source)
        self.close()
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        if tag in ("meta", "img", "br"):
            return
        self.open.append(tag)
        if tag == "table":
            self._rows, self._caption = [], ""
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("th", "td"):
            self._rows[-1].append("")
        elif tag == "pre":
            self.pre.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"{tag} is closed where it is not open"
        if tag == "table":
            self.tables[self._caption] = self._rows

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
        if "caption" in self.open:
            self._caption += data.strip()
        if {"th", "td"} & set(self.open):
            self._rows[-1][-1] += data.strip()
        if "pre" in self.open:
            self.pre[-1] += data.rstrip("\n")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Page:
    path = tmp_path_factory.mktemp("run") / "report.html"
    write_report(path, run_report())
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture
def page(tmp_path: Path) -> Callable[..., Page]:
    def written(**changes: Any) -> Page:
        write_report(tmp_path / "report.html", run_report(**changes))
        return Page((tmp_path / "report.html").read_text(encoding="utf-8"))

    return written


def test_the_page_says_the_numbers(page: Callable[..., Page]) -> None:
    labels, probabilities = answers(4, 90)
    predicted = probabilities.argmax(1)
    hits = int((predicted == labels).sum())
    shown = page(evaluation=evaluation(head_top1=0.5))
    assert f"{hits / 90:.2%} of the 90 validation images correctly" in shown.text
    assert "trained on 1,234 images of 4 classes in 1 h 2 min" in shown.text
    assert "its weights are those of epoch 2 of 3." in shown.text
    assert "19 layers frozen, 2 layers trained" in shown.text
    assert "1,167 images/s on average; 23% of the training time" in shown.text
    assert shown.tables["What fine-tuning added"][1:] == [
        ["head alone, on the frozen backbone, for 1 epoch", "50.00%"],
        ["then the other layers too", f"{hits / 90:.2%}"],
        ["gain", f"{100 * hits / 90 - 50:+.2f} points"],
    ]
    precision, recall, f1, images = precision_recall_fscore_support(labels, predicted)
    for name, *numbers in shown.tables["Classes, lowest recall first"][1:]:
        i = ("ant", "bee", "cat", "dog").index(name)
        shares = [f"{x[i]:.1%}" for x in (recall, precision, f1)]
        assert numbers[:4] == [str(images[i]), *shares]
    matrix = next(rows for name, rows in shown.tables.items() if "in rows" in name)
    counts = [[int(cell) for cell in row[1:]] for row in matrix[1:]]
    np.testing.assert_array_equal(counts, confusion_matrix(labels, predicted))
    assert shown.tables["Every epoch"][2] == [
        *("2", "all", "1.0000", "25.00%", "1.2500", "30.00%", "40.00%", "55.00%"),
        *("0.05", "1,000", "20%"),
    ]
    mean = probabilities.max(1).mean()
    assert f"a probability of {mean:.1%} and is right on {hits / 90:.1%}" in shown.text
    gap = 100 * (hits / 90 - mean)
    assert f"it is right {gap:.1f} points more often than it claims" in shown.text
    changed = "Fields changed from the recipe's own values"
    assert shown.tables[changed][1:] == [["epochs", "3", "30"]]
    assert shown.tables["All fields"][1:] == [["epochs", "3"], ["seed", "0"]]
    assert "reszoo 0.1, keras 3.15. Trained on a fast one." in shown.text


def test_nothing_from_outside_becomes_markup(page: Callable[..., Page]) -> None:
    hostile = page(
        model=HOSTILE[0],
        data=HOSTILE[1],
        labels=HOSTILE,
        evaluation=evaluation(file_name=lambda index: HOSTILE[index % 4]),
        recipe={HOSTILE[0]: HOSTILE[1]},
        defaults={HOSTILE[0]: HOSTILE[0]},
        skipped=[(HOSTILE[3], HOSTILE[0])],
        repeat=["reszoo", *HOSTILE],
        export=["reszoo", HOSTILE[0]],
        versions={HOSTILE[0]: HOSTILE[1]},
        processor=HOSTILE[1],
    )
    tame = page(skipped=[("", "")], recipe={"epochs": 3}, defaults={"epochs": 30})
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in tame.tags]
    classes = [row[0] for row in hostile.tables["Classes, lowest recall first"][1:]]
    assert set(classes) == {*HOSTILE[:3], "a\\xff\\u202eb"}
    assert hostile.open == []


def test_the_page_needs_nothing_but_itself(plain: Page) -> None:
    active = {"script", "link", "iframe", "object", "embed", "form", "base", "audio"}
    assert not {tag for tag, _ in plain.tags} & active
    attributes = {key for _, named in plain.tags for key in named}
    assert not [key for key in attributes if key.startswith("on")]
    links = [
        value
        for _, attributes in plain.tags
        for key, value in attributes.items()
        if key in ("src", "href", "xlink:href") or "url(" in value
    ]
    assert links
    assert all(re.match(r"data:image/jpeg;|#|url\(#", link) for link in links)
    # Namespaces are names, not addresses.
    assert set(re.findall(r"https?://[^\"/]*", plain.source)) == {"http://www.w3.org"}
    policy = next(a for _, a in plain.tags if "http-equiv" in a)
    assert policy["content"].startswith("default-src 'none'; ")
    assert len(plain.source) < 200_000


def test_the_page_can_be_heard(plain: Page) -> None:
    assert ("html", {"lang": "en"}) in plain.tags
    figures = [attributes for tag, attributes in plain.tags if tag == "svg"]
    assert [figure["role"] for figure in figures] == ["img"] * 4
    assert figures[0]["aria-label"] == (
        "Loss by epoch: training from 2 to 0.667; validation from 2.5 to 0.833."
    )
    assert all(a["scope"] in ("row", "col") for tag, a in plain.tags if tag == "th")
    assert all(a["alt"] for tag, a in plain.tags if tag == "img")
    ids = [attributes["id"] for _, attributes in plain.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_a_peak_inside_a_curve_is_told(page: Callable[..., Page]) -> None:
    rates = (0.1, 0.4, 0.2)
    history = [epoch(i, learning_rate=rate) for i, rate in enumerate(rates, 1)]
    labels = [a["aria-label"] for tag, a in page(history=history).tags if tag == "svg"]
    told = "Learning rate by epoch: learning rate from 0.1 to 0.2, highest 0.4."
    assert labels[2] == told


def test_figures_take_their_colours_from_the_page(plain: Page) -> None:
    figures = re.findall("<svg.*?</svg>", plain.source, re.DOTALL)
    for figure in figures:
        ElementTree.fromstring(figure)
        assert not re.search("(stroke|fill): #", figure)
    assert all("var(--training)" in figure for figure in figures[:3])
    assert "validation" in figures[0]


def test_the_same_run_gives_the_same_page(
    plain: Page, page: Callable[..., Page]
) -> None:
    assert page().source == plain.source


def test_the_worst_mistakes_are_shown_as_small_pictures(
    page: Callable[..., Page],
) -> None:
    labels, probabilities = answers(4, 90)
    worst = metrics.worst_mistakes(labels, probabilities, 24)
    exif = Image.Exif()
    exif[0x010E] = "where I live"

    def picture(index: int) -> Image.Image:
        drawn = Image.new("RGB", (300, 200), (2 * index, 0, 0))
        drawn.info["exif"], drawn.info["comment"] = exif.tobytes(), b"where I live"
        return drawn

    shown = page(evaluation=evaluation(picture=picture))
    images = [attributes for tag, attributes in shown.tags if tag == "img"]
    assert [image["title"] for image in images] == [f"photos/{i}.jpg" for i in worst]
    names = ("ant", "bee", "cat", "dog")
    for index, image in zip(worst, images, strict=True):
        called = names[probabilities[index].argmax()]
        assert image["alt"] == f"{names[labels[index]]}, predicted as {called}"
        content = base64.b64decode(image["src"].removeprefix("data:image/jpeg;base64,"))
        assert b"where I live" not in content
        small = Image.open(io.BytesIO(content))
        assert (small.format, small.size) == ("JPEG", (128, 85))
        assert small.getpixel((64, 40)) == pytest.approx((2 * index, 0, 0), abs=3)
    sure = [f"{probabilities[i].max():.1%}" for i in worst]
    assert re.findall(r"</b> (\S+%)", shown.source) == sure


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_pictures_of_every_mode_are_shown(mode: str) -> None:
    small = thumbnail(Image.new(mode, (20, 20)))
    assert small.pixelated
    assert small.source.startswith("data:image/jpeg;base64,/9j/")


def test_many_classes_are_folded_and_their_confusions_listed(
    page: Callable[..., Page],
) -> None:
    names = [f"species {i}" for i in range(60)]
    crowd = evaluation(60, 600)
    shown = page(labels=names, evaluation=crowd)
    classes = shown.tables["Classes, lowest recall first"][1:]
    rest = shown.tables["Classes, lowest recall first, continued"][1:]
    assert (len(classes), len(rest)) == (50, 10)
    assert {row[0] for row in classes + rest} == set(names)
    assert "10 more" in shown.text
    assert not [name for name in shown.tables if "in rows" in name]
    confusion = metrics.confusion_matrix(crowd.targets, crowd.probabilities)
    truth, called, count = metrics.frequent_confusions(confusion, 1)[0]
    share = f"{count / (crowd.targets == truth).sum():.1%}"
    listed = shown.tables["The most frequent confusions"]
    assert len(listed) == 31
    assert listed[1] == [names[truth], names[called], str(count), share]


def test_a_teacher_is_compared_with_its_student(page: Callable[..., Page]) -> None:
    recipe = {
        "teacher": "runs/<large>/best.safetensors", "distillation_temperature": 4.0,
        "distillation_weight": 0.9,
    }  # fmt: skip
    found = evaluation()
    student = predictions(found.probabilities)
    theirs = np.where(np.arange(90) % 3 == 0, student, found.targets)
    shown = page(evaluation=replace(found, teacher=theirs), recipe=recipe, defaults={})
    assert "teacher, runs/<large>/best.safetensors, besides" in shown.text
    assert "temperature 4, weight 0.9 of the loss" in shown.text
    assert "that takes a run without it" in shown.text
    table = shown.tables["Teacher and student on the validation images"]
    wrong = theirs != found.targets
    shares = [
        1 - wrong.mean(), (student == found.targets).mean(),
        (student == theirs).mean(), (student == theirs)[wrong].mean(),
    ]  # fmt: skip
    assert [row[1] for row in table[1:]] == [f"{share:.2%}" for share in shares]
    assert "Distillation" not in page().text


def test_without_validation_the_page_says_so(page: Callable[..., Page]) -> None:
    blank = {"validation_loss": None, "validation_top1": None}
    shown = page(evaluation=None, history=[epoch(1, **blank)])
    assert "Not measured: the data has no validation or test split." in shown.text
    assert not [tag for tag, _ in shown.tags if tag == "img"]
    assert shown.tables["Every epoch"][1][4:6] == ["-", "-"]


def test_a_model_without_mistakes_is_reported(page: Callable[..., Page]) -> None:
    targets = np.array([0, 1, 2, 3])
    perfect = evaluation(targets=targets, probabilities=np.eye(4, dtype=np.float32))
    shown = page(evaluation=perfect)
    assert "None: all images are classified correctly." in shown.text


def test_an_unchanged_recipe_is_reported(page: Callable[..., Page]) -> None:
    assert "All fields have the recipe's own values." in page(defaults={"seed": 0}).text


def test_skipped_images_are_named(page: Callable[..., Page]) -> None:
    skipped = [(f"{i}.jpg", f"reason {i}") for i in range(60)]
    shown = page(skipped=skipped, evaluation=None)
    rows = shown.tables["Skipped images"][1:]
    rows += shown.tables["Skipped images, continued"][1:]
    assert [tuple(row) for row in rows] == skipped
    assert "60 images were skipped because" in shown.text


def test_commands_reach_the_program_as_they_were(page: Callable[..., Page]) -> None:
    arguments = [
        "my photos/it's",
        "$HOME `id`",
        "*",
        "two\nlines",
        "a\udcff",
        "",
        "--x=ä",
    ]
    shown = page(repeat=["printf", r"%s\0", *arguments], evaluation=None)
    (repeat, export) = shown.pre
    heard = subprocess.run(["bash", "-c", repeat], capture_output=True, check=True)
    assert heard.stdout.decode("utf-8", "surrogateescape").split("\0")[:-1] == arguments
    assert export == shell_command(["reszoo", "export", "best.safetensors"])


def test_invisible_characters_are_spelt_out() -> None:
    assert escape_html("a\0b\u202e\n<é") == r"a\x00b\u202e\n&lt;é"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": np.array([0, 4])}, r"lie in \[0, 4\)\. Received: 0 to 4"),
        ({"targets": np.array([0])}, r"Received: shape \(2, 4\) for 1 targets"),
        ({"targets": np.array([], np.int64)}, "at least one"),
        ({"probabilities": np.full((2, 4), np.nan, np.float32)}, "Received: NaN"),
    ],
)
def test_answers_that_cannot_be_judged_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    two = {"targets": np.array([0, 1]), "probabilities": np.eye(4, dtype="f4")[:2]}
    with pytest.raises(reszoo.UsageError, match=message):
        evaluation(**{**two, **changes})


def test_reports_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(reszoo.UsageError, match="3 labels for 4 classes"):
        run_report(labels=("ant", "bee", "cat"))
    with pytest.raises(reszoo.UsageError, match="at least one epoch"):
        run_report(history=[])


def test_the_report_loads_no_tensorflow() -> None:
    code = "import sys, reszoo.training.report; print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n"
