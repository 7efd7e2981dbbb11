"""Verification: it repeats itself, and it sees what goes wrong."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from conftest import randomise

import reszoo
from reszoo.data.sources import open_source
from reszoo.inference import probabilities
from reszoo_export import saved_model, serving, verify
from reszoo_export.formats import FORMATS
from reszoo_export.manifest import size_and_hash
from reszoo_export.reference import Reference, make_reference, read_reference
from reszoo_export.runtimes import open_runtime
from reszoo_export.verify import compare

Change = Callable[[Any], Any]


@pytest.fixture
def copy(exported: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported.folder, tmp_path / "copy"))


def test_the_check_repeats_from_the_files_alone(exported: Any, copy: Path) -> None:
    again = reszoo.verify(copy)
    assert not again.problems
    for now, then in zip(again.files, exported.files, strict=True):
        assert now.sha256 == then.sha256
        assert now.verification == then.verification


def test_a_changed_file_is_noticed(copy: Path) -> None:
    path = copy / "model.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x40
    path.write_bytes(content)
    with pytest.raises(
        reszoo.VerificationError, match=r"model.onnx: the file has chan"
    ):
        reszoo.verify(copy)


def test_a_missing_and_a_broken_file_are_noticed_together(copy: Path) -> None:
    (copy / "model.onnx").unlink()
    (copy / "model.tflite").write_bytes(b"nonsense")
    with pytest.raises(reszoo.VerificationError) as caught:
        reszoo.verify(copy)
    assert "2 check(s) failed" in str(caught.value)
    assert "model.onnx: There is no file" in str(caught.value)
    assert "model.tflite" in str(caught.value)


def test_a_folder_without_an_export_is_refused(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(reszoo.ExportError, match="holds no export"):
        reszoo.verify(tmp_path)
    (copy / "reference.npz").write_bytes(b"nonsense")
    with pytest.raises(reszoo.ExportError, match=r"reference\.npz cannot be read"):
        reszoo.verify(copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "manifest_version": 9}))
    with pytest.raises(reszoo.ExportError, match="reads manifest version 1"):
        reszoo.verify(copy)


def test_the_reference_fits_its_room_and_keeps_classes_even(run: Any) -> None:
    card = reszoo.card(run.model)
    source = open_source("digits")
    full = make_reference(run.model, card, source)
    assert len(full.labels) == 359
    big = replace(full, images=np.repeat(full.images, 100, axis=1))
    short = big.shortened()
    assert short.images.nbytes <= 16 * 2**20
    assert short.synthetic == full.synthetic == 6
    assert set(short.labels) == set(range(10))
    np.testing.assert_array_equal(short.answers[-6:], full.answers[-6:])


def test_the_kept_reference_is_the_models(run: Any, exported: Any) -> None:
    kept = read_reference(exported.folder, exported.card)
    record = reszoo.card(run.model).preprocessing
    np.testing.assert_allclose(
        kept.answers, probabilities(run.model, record, kept.images), atol=1e-6
    )


def scaled(kind: str, factor: float) -> Change:
    def change(tensors: Any) -> Any:
        return {
            name: tensor * np.float32(factor) if name.endswith(kind) else tensor
            for name, tensor in tensors.items()
        }

    return change


def reordered(tensors: Any) -> Any:
    head = {name: tensors[name][::-1] for name in ("fc.weight", "fc.bias")}
    return {**tensors, **head}


def bgr(tensors: Any) -> Any:
    return {**tensors, "conv1.weight": tensors["conv1.weight"][:, ::-1]}


def mirrored(tensors: Any) -> Any:
    return {**tensors, "conv1.weight": tensors["conv1.weight"][..., ::-1]}


def lost_bias(tensors: Any) -> Any:
    return {**tensors, "conv1.bias": np.zeros_like(tensors["conv1.bias"])}


@pytest.mark.parametrize(
    "defect",
    [
        scaled("conv1.weight", 0.99),
        scaled("fc.weight", 1.01),
        scaled("layer3.2.conv2.bias", 0.5),
        reordered,
        bgr,
        mirrored,
        lost_bias,
    ],
    ids=["kernels", "head", "folded bias", "label order", "BGR", "mirror", "bias"],
)
def test_defects_are_seen_without_a_single_real_image(
    defect: Change, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = randomise(reszoo.build("resnet20", classes=4))
    fold = serving.fold
    monkeypatch.setattr(serving, "fold", lambda each: defect(fold(each)))
    with pytest.raises(reszoo.VerificationError, match=r"saved_model: "):
        reszoo.export(model, tmp_path / "export", formats="saved_model")


def test_good_answers_of_random_nets_raise_no_alarm() -> None:
    for seed, name in enumerate(("resnet20", "plain20", "resnet32", "resnet18")):
        shape = (32, 32, 3)
        model = randomise(reszoo.build(name, classes=5, input_shape=shape), seed)
        reference = make_reference(model, reszoo.card(model), None)
        runtime = open_runtime(model)
        assert not compare(FORMATS["onnx"], runtime, reference).problems


def test_half_precision_does_not_pass_for_single(run: Any) -> None:
    runtime: Any = open_runtime(run.model)
    reference = make_reference(run.model, reszoo.card(run.model), None)
    exact = runtime.run
    runtime.run = lambda images: exact(images).astype(np.float16).astype(np.float32)
    problems = str(compare(FORMATS["onnx"], runtime, reference).problems)
    assert "the logarithm of a probability is off by" in problems


def test_foreign_operators_and_lost_names_are_problems(exported: Any) -> None:
    runtime: Any = open_runtime(exported.folder / "model.onnx")
    reference = read_reference(exported.folder, exported.card)
    runtime.operators = {**runtime.operators, "com.microsoft.FusedConv": 1}
    runtime.inputs = [{"name": "input_1"}]
    problems = " ".join(compare(FORMATS["onnx"], runtime, reference).problems)
    assert "operators that are not allowed: com.microsoft.FusedConv" in problems
    assert "the only input must be 'image'" in problems


def test_answers_that_are_not_numbers_are_a_problem(exported: Any) -> None:
    runtime: Any = open_runtime(exported.folder / "model.onnx")
    reference = read_reference(exported.folder, exported.card)
    run = runtime.run
    runtime.run = lambda images: run(images) * np.float32("nan")
    assert (
        "some answers are not numbers"
        in compare(FORMATS["onnx"], runtime, reference).problems
    )


def test_a_batch_that_mixes_its_images_is_a_problem(exported: Any) -> None:
    runtime: Any = open_runtime(exported.folder / "model.onnx")
    reference = read_reference(exported.folder, exported.card)
    run = runtime.run
    runtime.run = lambda images: run(images) + np.float32(5e-5 * (len(images) == 1))
    problems = compare(FORMATS["onnx"], runtime, reference).problems
    assert "an answer moves by 5e-05 with the other images of its batch" in problems


def without_graph(folder: Path) -> None:
    (folder / "saved_model.pb").unlink()


def without_weights(folder: Path) -> None:
    (data,) = folder.glob("variables/*.data-*")
    data.write_bytes(data.read_bytes()[:1000])


@pytest.mark.parametrize("damage", [without_graph, without_weights])
def test_a_damaged_saved_model_is_an_error_of_ours(
    copy: Path, damage: Callable[[Path], None]
) -> None:
    damage(copy / "saved_model")
    with pytest.raises(reszoo.VerificationError, match=r"saved_model: the file has ch"):
        reszoo.verify(copy)
    with pytest.raises(reszoo.CheckpointError, match="is not a whole SavedModel"):
        reszoo.Predictor(copy / "saved_model")
    # As if it had been damaged before it was hashed.
    content = json.loads((copy / "manifest.json").read_text())
    content["files"][0]["sha256"] = size_and_hash(copy / "saved_model")[1]
    (copy / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(reszoo.VerificationError, match="is not a whole SavedModel"):
        reszoo.verify(copy)


def test_a_changed_file_is_not_opened(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def opening(path: Path) -> Any:
        opened.append(path.name)
        return open_runtime(path)

    monkeypatch.setattr(verify, "open_runtime", opening)
    with (copy / "model.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(reszoo.VerificationError, match=r"1 check\(s\) failed"):
        reszoo.verify(copy)
    assert opened == ["saved_model", "model.tflite", "model-int8.tflite"]


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


def test_a_reference_of_another_model_is_refused(exported: Any, copy: Path) -> None:
    kept = read_reference(exported.folder, exported.card)
    others = {
        "size": replace(kept, images=kept.images[:, :30, :30]),
        "classes": replace(kept, answers=kept.answers[:, :9]),
        "count": replace(kept, answers=kept.answers[:-1]),
        "labels": replace(kept, labels=kept.labels[:-1]),
        "numbers": replace(kept, answers=kept.answers * np.float32("nan")),
        "none": Reference(kept.images[:0], kept.answers[:0], kept.labels[:0], 0),
    }
    for other in others.values():
        other.write(copy)
        with pytest.raises(reszoo.ExportError, match="must hold uint8 images of 32x32"):
            reszoo.verify(copy)


def test_what_lies_beside_the_files_is_checked(exported: Any, copy: Path) -> None:
    labels = copy / "labels.txt"
    names = labels.read_text().split()
    labels.write_text("\n".join(reversed(names)) + "\n")
    with pytest.raises(reszoo.VerificationError, match=r"labels\.txt: the file has ch"):
        reszoo.verify(copy)
    labels.unlink()
    kept = read_reference(exported.folder, exported.card)
    replace(kept, images=kept.images[::-1], answers=kept.answers[::-1]).write(copy)
    with pytest.raises(reszoo.VerificationError) as caught:
        reszoo.verify(copy)
    assert "labels.txt: There is no file" in str(caught.value)
    assert "reference.npz: the file has changed" in str(caught.value)


def test_a_file_that_does_not_run_is_an_error_of_ours(exported: Any) -> None:
    runtime = open_runtime(exported.folder / "model.onnx")
    reference = read_reference(exported.folder, exported.card)
    small = replace(reference, images=reference.images[:, :30, :30])
    with pytest.raises(reszoo.VerificationError, match=r"cannot run it \(Invalid"):
        compare(FORMATS["onnx"], runtime, small)


def test_a_foreign_operator_in_a_function_of_a_saved_model_is_a_problem(
    tmp_path: Path,
) -> None:
    model = randomise(reszoo.build("resnet20", input_shape=(32, 32, 3), classes=4))
    folded = serving.make_serving(model)

    class Noisy:
        variables = folded.net.variables
        noise = staticmethod(tf.function(lambda: 0 * tf.random.uniform(())))

        def __call__(self, x: Any, training: bool) -> Any:
            return folded.net(x, training=training) + self.noise()

    saved_model.write(replace(folded, net=Noisy()), tmp_path / "saved_model", None)
    runtime = open_runtime(tmp_path / "saved_model")
    reference = make_reference(model, folded.card, None)
    (problem,) = compare(FORMATS["saved_model"], runtime, reference).problems
    assert problem == "operators that are not allowed: RandomUniform"
