"""Verification: it repeats itself, and it sees what goes wrong."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reszoo
from reszoo.data.sources import open_source
from reszoo.metrics import probabilities
from reszoo_export.formats import FORMATS, ExportOptions
from reszoo_export.manifest import read_manifest, size_and_hash
from reszoo_export.runtimes import open_runtime
from reszoo_export.serving import make_serving, source_answers
from reszoo_export.verification import verify
from reszoo_export.verification.comparison import compare
from reszoo_export.verification.reference import (
    Reference,
    make_reference,
    read_reference,
)
from reszoo_export.verification.verify import verify_file

Change = Callable[[Any], Any]


@pytest.fixture
def copy(exported: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported.folder, tmp_path / "copy"))


@pytest.fixture
def pair(copy: Path) -> Path:
    """The same, but of two small files, which are verified in less time."""
    manifest = read_manifest(copy)
    kept = [each for each in manifest.files if each.format in ("tflite", "onnx")]
    for each in manifest.files:
        path = copy / each.file
        if each not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    replace(manifest, files=tuple(kept)).write(copy)
    return copy


@pytest.mark.usefixtures("subprocesses")
@pytest.mark.slow
def test_the_check_repeats_from_the_files_alone(exported: Any, copy: Path) -> None:
    again = reszoo.verify(copy)
    assert not again.problems
    for now, then in zip(again.files, exported.files, strict=True):
        assert now.sha256 == then.sha256
        assert now.verification == then.verification


def test_a_changed_file_is_noticed(pair: Path) -> None:
    path = pair / "model.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x40
    path.write_bytes(content)
    with pytest.raises(
        reszoo.VerificationError, match=r"model.onnx: the file has chan"
    ):
        reszoo.verify(pair)


def test_a_missing_and_a_broken_file_are_noticed_together(pair: Path) -> None:
    (pair / "model.onnx").unlink()
    (pair / "model.tflite").write_bytes(b"nonsense")
    with pytest.raises(reszoo.VerificationError) as caught:
        reszoo.verify(pair)
    assert "2 check(s) failed" in str(caught.value)
    assert "model.onnx: There is no file" in str(caught.value)
    assert "model.tflite" in str(caught.value)


def test_a_folder_without_an_export_is_refused(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(reszoo.ExportError, match="is not an export"):
        reszoo.verify(tmp_path)
    (copy / "reference.npz").write_bytes(b"nonsense")
    with pytest.raises(reszoo.ExportError, match=r"reference\.npz cannot be read"):
        reszoo.verify(copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "manifest_version": 9}))
    with pytest.raises(reszoo.ExportError, match="reads manifest version 2"):
        reszoo.verify(copy)


def test_the_reference_fits_its_room_and_keeps_classes_even(run: Any) -> None:
    card = reszoo.card(run.model)
    source = open_source("digits")
    serving = make_serving(run.model)
    full = make_reference(source_answers(run.model, serving), card, source)
    assert len(full.targets) == 359
    big = replace(full, images=np.repeat(full.images, 100, axis=1))
    short = big.shortened()
    assert short.images.nbytes <= 16 * 2**20
    assert short.synthetic == full.synthetic == 17
    assert set(short.targets) == set(range(10))
    np.testing.assert_array_equal(short.outputs[-17:], full.outputs[-17:])


def test_the_kept_reference_is_the_models(run: Any, exported: Any) -> None:
    kept = read_reference(exported.folder, exported.card)
    card = reszoo.card(run.model)
    np.testing.assert_allclose(
        kept.outputs,
        probabilities(
            run.model, card.preprocessing, kept.images, temperature=card.temperature
        ),
        atol=1e-5,
    )


def compared(runtime: Any, reference: Any, card: Any = None) -> Any:
    row, options = FORMATS["onnx"], ExportOptions()
    return compare(row, runtime, reference, options, card or runtime.card)


def test_half_precision_does_not_pass_for_single(exported: Any) -> None:
    runtime: Any = open_runtime(exported.folder / "model.onnx")
    reference = read_reference(exported.folder, exported.card)
    exact = runtime.run
    runtime.run = lambda images: exact(images).astype(np.float16).astype(np.float32)
    problems = str(compared(runtime, reference).problems)
    assert "a log probability differs from the model's by" in problems


def test_foreign_operators_are_problems(exported: Any) -> None:
    runtime: Any = open_runtime(exported.folder / "model.onnx")
    reference = read_reference(exported.folder, exported.card)
    runtime.operators = {**runtime.operators, "com.microsoft.FusedConv": 1}
    problems = " ".join(compared(runtime, reference).problems)
    assert "operators that are not allowed: com.microsoft.FusedConv" in problems


def test_answers_that_are_not_numbers_are_a_problem(exported: Any) -> None:
    runtime: Any = open_runtime(exported.folder / "model.onnx")
    reference = read_reference(exported.folder, exported.card)
    run = runtime.run
    runtime.run = lambda images: run(images) * np.float32("nan")
    assert "some outputs are NaN or infinite" in compared(runtime, reference).problems


def test_a_batch_that_mixes_its_images_is_a_problem(exported: Any) -> None:
    runtime: Any = open_runtime(exported.folder / "model.onnx")
    reference = read_reference(exported.folder, exported.card)
    run = runtime.run
    runtime.run = lambda images: run(images) + np.float32(5e-5 * (len(images) == 1))
    problems = compared(runtime, reference).problems
    assert "an output changes by 5e-05 with the other images of its batch" in problems


def without_graph(file: Path) -> None:
    file.unlink()


def with_half_a_graph(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (without_graph, "is not a whole SavedModel"),
        (with_half_a_graph, "is damaged, or of another kind"),
    ],
)
def test_a_damaged_saved_model_is_an_error_of_ours(
    copy: Path, damage: Callable[[Path], None], told: str
) -> None:
    damage(copy / "saved_model" / "1" / "saved_model.pb")
    with pytest.raises(reszoo.CheckpointError, match=told):
        reszoo.Predictor(copy / "saved_model" / "1")
    # As if it had been damaged before it was hashed.
    content = json.loads((copy / "manifest.json").read_text())
    content["files"] = content["files"][:1]
    content["files"][0]["sha256"] = size_and_hash(copy / "saved_model")[1]
    (copy / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(reszoo.VerificationError, match=told):
        reszoo.verify(copy)


def test_a_changed_file_is_not_opened(
    pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def verifying(row: Any, path: Path, *rest: Any, **options: Any) -> Any:
        opened.append(path.name)
        return verify_file(row, path, *rest, **options)

    monkeypatch.setattr(verify, "verify_file", verifying)
    with (pair / "model.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(reszoo.VerificationError, match=r"1 check\(s\) failed"):
        reszoo.verify(pair)
    assert opened == ["model.tflite"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda content: content.update(files=[]), "it lists no files"),
        (lambda content: content["files"][0].update(format="onnx2"), "format 'onnx2'"),
        (
            lambda content: content["files"][0].update(file="../saved_model"),
            r"no saved_model file is called '\.\./saved_model'",
        ),
        (lambda content: content["beside"].pop("labels.txt"), "beside must name"),
        (
            lambda content: content["files"][0].update(ranges={"variation": "x"}),
            "variation must be a number, not 'x'",
        ),
        (lambda content: content.update(card={}), "KeyError: 'card_version'"),
        (lambda content: content.pop("beside"), "KeyError: 'beside'"),
    ],
)  # fmt: skip
def test_a_manifest_that_cannot_be_meant_is_refused(
    copy: Path, change: Change, text: str
) -> None:
    content = json.loads((copy / "manifest.json").read_text())
    change(content)
    (copy / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(reszoo.ExportError, match=rf"cannot be read.*{text}"):
        reszoo.verify(copy)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda spans: spans, None),
        (
            lambda spans: spans | {"fc.input": [0.0, 1.5]},
            "activations are not rounded to their ranges: fc.input",
        ),
        (lambda spans: dict.fromkeys(spans, "x"), "its contents cannot be checked"),
    ],
    ids=["the file's", "one more", "no numbers"],
)
@pytest.mark.parametrize("format_", ["tflite-int8", "onnx-int8"])
def test_an_int8_file_has_the_ranges_in_the_manifest(
    copy: Path, format_: str, change: Any, told: str | None
) -> None:
    content = json.loads((copy / "manifest.json").read_text())
    content["files"] = [x for x in content["files"] if x["format"] == format_]
    ranges = content["files"][0]["ranges"]
    *inner, output = ranges["activations"].items()
    ranges["activations"] = change(dict(inner)) | dict([output])
    (copy / "manifest.json").write_text(json.dumps(content))
    if told is None:
        reszoo.verify(copy)
        return
    with pytest.raises(reszoo.VerificationError, match=told):
        reszoo.verify(copy)


def test_a_reference_of_another_model_is_refused(exported: Any, copy: Path) -> None:
    kept = read_reference(exported.folder, exported.card)
    others = {
        "size": replace(kept, images=kept.images[:, :30, :30]),
        "classes": replace(kept, outputs=kept.outputs[:, :9]),
        "count": replace(kept, outputs=kept.outputs[:-1]),
        "labels": replace(kept, targets=kept.targets[:-1]),
        "numbers": replace(kept, outputs=kept.outputs * np.float32("nan")),
        "none": Reference(kept.images[:0], kept.outputs[:0], kept.targets[:0], 0),
    }
    for other in others.values():
        other.write(copy)
        with pytest.raises(reszoo.ExportError, match="must hold uint8 images of 32x32"):
            reszoo.verify(copy)


def changed(folder: Path, change: Change) -> str:
    """Change the manifest and return what verification then says."""
    content = json.loads((folder / "manifest.json").read_text())
    change(content)
    (folder / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(reszoo.VerificationError) as caught:
        reszoo.verify(folder)
    return str(caught.value)


def test_labels_beside_the_files_are_the_cards_even_if_hashed_so(pair: Path) -> None:
    path = pair / "labels.txt"
    path.write_text("\n".join(reversed(path.read_text().split())) + "\n")
    digest = size_and_hash(path)[1]
    told = changed(pair, lambda content: content["beside"].update({path.name: digest}))
    assert "labels.txt: the labels are not the card's" in told


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record["inputs"][0].update(dtype="int8"),
        lambda record: record["outputs"][0].update(name="scores"),
        lambda record: record.update(bytes=record["bytes"] + 1),
    ],
    ids=["inputs", "outputs", "size"],
)
def test_the_manifest_has_the_inputs_and_outputs_of_the_files(
    pair: Path, change: Change
) -> None:
    told = changed(pair, lambda content: change(content["files"][0]))
    assert "the manifest has other inputs, outputs or another size" in told


def test_what_lies_beside_the_files_is_checked(exported: Any, pair: Path) -> None:
    labels = pair / "labels.txt"
    names = labels.read_text().split()
    labels.write_text("\n".join(reversed(names)) + "\n")
    with pytest.raises(reszoo.VerificationError, match=r"labels\.txt: the file has ch"):
        reszoo.verify(pair)
    labels.unlink()
    kept = read_reference(exported.folder, exported.card)
    replace(kept, images=kept.images[::-1], outputs=kept.outputs[::-1]).write(pair)
    with pytest.raises(reszoo.VerificationError) as caught:
        reszoo.verify(pair)
    assert "labels.txt: There is no file" in str(caught.value)
    assert "reference.npz: the file has changed" in str(caught.value)


def test_a_file_that_does_not_run_is_an_error_of_ours(exported: Any) -> None:
    runtime = open_runtime(exported.folder / "model.onnx")
    reference = read_reference(exported.folder, exported.card)
    small = replace(reference, images=reference.images[:, :30, :30])
    with pytest.raises(reszoo.VerificationError, match=r"cannot run it \(Invalid"):
        compared(runtime, small)


def test_another_card_inside_is_a_problem(exported: Any) -> None:
    runtime = open_runtime(exported.folder / "model.onnx")
    reference = read_reference(exported.folder, exported.card)
    turned = replace(exported.card, labels=exported.card.labels[::-1])
    older = replace(exported.card, versions={}, metrics=())
    for card, told in ((turned, "other labels, or in"), (older, "metrics, versions")):
        found = compared(runtime, reference, card=card)
        assert told in found.problems[-1]


def test_the_worst_images_are_told(exported: Any) -> None:
    runtime: Any = open_runtime(exported.folder / "model.onnx")
    reference = read_reference(exported.folder, exported.card)
    run, spoilt = runtime.run, reference.images[7]

    def mistaken(images: Any) -> Any:
        answers = run(images).copy()
        hit = (images == spoilt).all(axis=(1, 2, 3))
        answers[hit] = np.roll(answers[hit], 1, axis=1)
        return answers

    runtime.run = mistaken
    found = compared(runtime, reference)
    first = found.worst[0]
    expected = reference.outputs[7]
    assert len(found.worst) == 5
    assert first.image == 7
    assert first.difference == pytest.approx(found.max_difference)
    assert first.model_label == str(expected.argmax())
    assert first.file_label == str((expected.argmax() + 1) % 10)
    assert first.file_probability == pytest.approx(expected.max(), abs=1e-5)
    assert found.drift == pytest.approx(0, abs=1e-6)
    assert found.agreement == pytest.approx(1 - 1 / found.images)
