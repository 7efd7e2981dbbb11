"""Mistakes that exporters make, seeded one by one: verification sees each of them."""

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tensorflow as tf
from conftest import randomise
from defects import (
    Change,
    another_domain,
    another_kind,
    attribute,
    batch_mean,
    before,
    both,
    chance,
    channels_first,
    double_softmax,
    flipped_bit,
    float_pixels,
    frozen_batch,
    normalised_twice,
    other_logits,
    other_name,
    other_size,
    renamed_input,
    rounded_activations,
    scaled,
    second_input,
    skip,
    sliced,
    spoilt,
    stored_twice,
    training_mode,
    weight_as_input,
    weights,
    zeroed,
)
from onnx import numpy_helper
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

import reszoo
from reszoo.weights.names import assign_tensors, to_tensors
from reszoo_export.formats import FORMATS, ExportOptions
from reszoo_export.keras_models.resnet import fold
from reszoo_export.onnx.reader import CARD_KEY
from reszoo_export.saved_model import writer
from reszoo_export.saved_model.writer import prepare_encoded
from reszoo_export.serving import Serving, make_serving, source_answers
from reszoo_export.tflite import writer as tflite_writer
from reszoo_export.verification.reference import Reference, make_reference
from reszoo_export.verification.verify import verify_in_process


@dataclass(frozen=True)
class Case:
    """A net whose head is square, so that it can be transposed unnoticed."""

    model: Any
    serving: Serving
    reference: Reference
    onnx: Any


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    model = fresh()
    made = of_model(model)
    path = tmp_path_factory.mktemp("good") / "model.onnx"
    FORMATS["onnx"].write(made.serving, path, None)
    return replace(made, onnx=onnx.load(path))


def of_model(model: Any) -> Case:
    serving = make_serving(model)
    answers = source_answers(model, serving)
    return Case(model, serving, make_reference(answers, serving.card, None), None)


def fresh(seed: int = 0) -> Any:
    names = [f"a{number}" for number in range(64)]
    shape = (32, 32, 3)
    return randomise(
        reszoo.build(
            "resnet20", classes=names, input_shape=shape, shortcut="projection"
        ),
        seed,
    )


def complaints(case: Case, format_: str, path: Path) -> str:
    """Return everything that verification says about a file."""
    try:
        found = verify_in_process(
            FORMATS[format_], path, case.reference, case.serving.options,
            case.serving.card,
        )  # fmt: skip
    except reszoo.VerificationError as error:
        return str(error)
    return "\n".join(found.verification.problems)


def test_nothing_is_said_of_the_file_before_it_is_spoilt(
    case: Case, tmp_path: Path
) -> None:
    (tmp_path / "model.onnx").write_bytes(spoilt(case.onnx, lambda graph: None))
    assert complaints(case, "onnx", tmp_path / "model.onnx") == ""


@pytest.mark.parametrize(
    ("name", "options", "format_"),
    [
        ("resnet20", {}, "onnx"),
        ("plain20", {"classes": 3}, "onnx"),
        ("resnet32", {"shortcut": "projection-all"}, "onnx-fp16"),
        pytest.param(
            "resnet18",
            {"input_shape": (64, 64, 3), "classes": 1000},
            "onnx",
            marks=pytest.mark.slow,
        ),
        ("resnet20", {"classes": 2}, "tflite-dynamic"),
    ],
)
def test_good_files_of_random_nets_raise_no_alarm(
    name: str, options: Any, format_: str, tmp_path: Path
) -> None:
    options = {"classes": 10, "input_shape": (32, 32, 3), **options}
    model = randomise(reszoo.build(name, **options), seed=5)
    case = of_model(model)
    path = tmp_path / FORMATS[format_].file
    FORMATS[format_].write(case.serving, path, None)
    assert complaints(case, format_, path) == ""


DIFFERS = r"a probability differs from the model's by"
DEFECTS: dict[str, tuple[Change, str]] = {
    "same padding at stride 2": (
        attribute("layer2.0.conv1", "pads", [0, 0, 1, 1]), DIFFERS,
    ),
    "BGR for RGB": (weights("conv1.weight", lambda w: w[:, ::-1]), DIFFERS),
    "kernels 1 % too small": (weights("conv1.weight", scaled(0.99)), DIFFERS),
    "head 1 % too large": (weights("fc.weight", scaled(1.01)), DIFFERS),
    "mirrored kernels": (weights("conv1.weight", lambda w: w[..., ::-1]), DIFFERS),
    "dropped ReLU": (skip("layer2.1.relu1"), DIFFERS),
    "transposed head": (weights("fc.weight", lambda w: w.T), DIFFERS),
    "classes in another order": (weights("fc.weight", lambda w: w[:, ::-1]), DIFFERS),
    "dropped bias": (weights("layer3.2.conv2.bias", np.zeros_like), DIFFERS),
    "zeroed channel": (weights("layer2.1.conv1.weight", zeroed), DIFFERS),
    "flipped bit": (weights("layer3.1.conv1.weight", flipped_bit), DIFFERS),
    "double softmax": (double_softmax, DIFFERS),
    "missing normalisation": (
        both(skip("Mul"), skip("Add_2")), DIFFERS,
    ),
    "missing mean": (skip("Add_2"), DIFFERS),
    "normalised twice": (normalised_twice, DIFFERS),
    "wrong mean of one channel": (
        weights("Add_2.1", lambda mean: mean * np.array([1, 1, 0.98], "f")), DIFFERS,
    ),
    "rows and columns swapped": (
        before("Cast", "Transpose", perm=[0, 2, 1, 3]), DIFFERS,
    ),
    "stride in the second convolution": (
        both(
            attribute("layer2.0.conv1", "strides", [1, 1]),
            attribute("layer2.0.conv2", "strides", [2, 2]),
        ),
        DIFFERS,
    ),
    "shortcut of the odd pixels": (
        both(
            before("layer2.0.downsample.0", "Slice", extra=sliced(1)),
            attribute("layer2.0.downsample.0", "pads", [0, 0, 1, 1]),
        ),
        DIFFERS,
    ),
    "missing shortcut": (skip("layer1.1.add"), DIFFERS),
    "shortcut alone": (skip("layer1.1.add", 1), DIFFERS),
    "maximum for average": (
        another_kind("GlobalAveragePool", "GlobalMaxPool"),
        "operators that are not allowed: GlobalMaxPool",
    ),
    "norm in training mode": (
        training_mode,
        r"an output changes by .* with the other images of its batch",
    ),
    "mean of the batch": (batch_mean, r"an output changes by .* with the other images"),
    "left-over dropout": (chance, r"an output changes by .* when it is run again"),
    "frozen batch": (
        frozen_batch, r"image must be of shape \['batch', 32, 32, 3\], not \[1, 32, 32",
    ),
    "float pixels": (both(float_pixels, skip("Cast")), "image must be uint8, not floa"),
    "channels first": (
        channels_first, r"image must be of shape \['batch', 32, 32, 3\], not .*3, 32",
    ),
    "wrong size": (other_size, r"cannot run it"),
    "wrong input name": (
        renamed_input, r"takes one batch of images, `image`.*Received: \['input_1",
    ),
    "wrong output name": (
        other_name, "the outputs must be logits and probabilities, not output_0 float",
    ),
    "operator of another domain": (
        another_domain, "operators that are not allowed: com.microsoft.Gelu",
    ),
    "second input": (second_input, "takes one batch of images, `image`"),
    "int8 activations": (rounded_activations, "activations must be uint8, not int8"),
    "other logits": (
        other_logits, "its probabilities are not the softmax of its logits",
    ),
    "weight as input": (weight_as_input, "a weight is also an input, or has two valu"),
    "weight stored twice": (stored_twice, "a weight is also an input, or has two valu"),
}  # fmt: skip


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_of_an_onnx_file_is_seen(
    case: Case, defect: str, tmp_path: Path
) -> None:
    change, told = DEFECTS[defect]
    path = tmp_path / "model.onnx"
    path.write_bytes(spoilt(case.onnx, change))
    found = complaints(case, "onnx", path)
    assert re.search(told, found), found


def with_tensors(case: Case, tensors: Any, folder: Path) -> str:
    """Judge the ONNX file with other tensors under the same names."""

    def exchange(graph: Any) -> None:
        for each in graph.initializer:
            if each.name in tensors:
                tensor = tensors[each.name]
                array = tensor.T if each.name == "fc.weight" else tensor
                each.CopyFrom(numpy_helper.from_array(array.copy(), each.name))

    path = folder / "model.onnx"
    path.write_bytes(spoilt(case.onnx, exchange))
    return complaints(case, "onnx", path)


def test_statistics_folded_with_another_epsilon_are_seen(
    case: Case, tmp_path: Path
) -> None:
    other = fresh()
    assign_tensors(other, to_tensors(case.model), "the same weights")
    assert with_tensors(case, fold(other), tmp_path) == ""
    for layer in other.layers:
        if "bn" in layer.name:
            layer.epsilon = 1e-3
    assert re.search(DIFFERS, with_tensors(case, fold(other), tmp_path))


def test_stale_weights_are_seen(case: Case, tmp_path: Path) -> None:
    other = fresh(seed=1)
    assert re.search(DIFFERS, with_tensors(case, fold(other), tmp_path))


def text(key: str, old: str, new: str) -> Callable[[Any], None]:
    """Change a property of the file for people and other programs."""

    def change(model: Any) -> None:
        (entry,) = [each for each in model.metadata_props if each.key == key]
        assert old in entry.value
        entry.value = entry.value.replace(old, new)

    return change


def without_labels(model: Any) -> None:
    kept = [each for each in model.metadata_props if each.key != "labels"]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)


def labels_twice(model: Any) -> None:
    (entry,) = [each for each in model.metadata_props if each.key == "labels"]
    model.metadata_props.insert(0, entry)
    model.metadata_props[0].value = '["a1", "a0"]'


def other_graph(model: Any) -> None:
    model.graph.name = "resnet32"


def later_opset(model: Any) -> None:
    model.opset_import[0].version = 18


def later_ir(model: Any) -> None:
    model.ir_version = 10


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            text(CARD_KEY, '"a0", "a1"', '"a1", "a0"'),
            "not the model's: other labels, or in another order",
        ),
        (
            text("labels", '"a0", "a1"', '"a1", "a0"'),
            r"for other programs \(a1, a0, a2\.\.\.\) are not the ca",
        ),
        (without_labels, r"the labels stored for other programs \(\.\.\.\) are not"),
        (labels_twice, "properties are not the card's: twice"),
        (text("input", "RGB", "BGR"), "properties are not the card's: input"),
        (text("preprocessing", "32", "48"), "are not the card's: preprocessing"),
        (other_graph, "properties are not the card's: graph"),
        (later_opset, "its operators must be ai.onnx 17, not ai.onnx 18"),
        (later_ir, "its IR version must be 8, not 10"),
    ],
    ids=[
        "labels of the card",
        "labels beside it",
        "no labels",
        "labels twice",
        "input",
        "preprocessing",
        "name",
        "opset",
        "IR",
    ],
)
def test_a_defect_around_the_graph_is_seen(
    case: Case, change: Callable[[Any], None], told: str, tmp_path: Path
) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(case.onnx)
    change(model)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    found = complaints(case, "onnx", path)
    assert re.search(told, found), found


def test_activations_that_float16_cannot_hold_are_seen(tmp_path: Path) -> None:
    """LiteRT computes such a file in float32 here; the GPU of a phone does not."""
    model = fresh()
    gamma = model.get_layer("bn1").gamma
    gamma.assign(gamma * 1e5)
    case, path = of_model(model), tmp_path / "model.tflite"
    FORMATS["tflite-fp16"].write(case.serving, path, None)
    found = complaints(case, "tflite-fp16", path)
    assert "exceed 65504, the largest number in float16" in found


def write(serving: Serving, path: Path, *kinds: Any, **options: Any) -> None:
    content = tflite_writer.convert(serving, *kinds, **options)
    tflite_writer.write_model(content, serving, path)


def without_calibration(serving: Serving, path: Path) -> None:
    write(
        serving, path, (tf.lite.OpsSet.TFLITE_BUILTINS_INT8,),
        optimizations=[tf.lite.Optimize.DEFAULT],
        representative_dataset=lambda: iter(()),
        inference_input_type=tf.uint8,
    )  # fmt: skip


def red_for_blue(serving: Serving, path: Path) -> None:
    """Normalise each channel as its opposite."""
    record = serving.card.preprocessing
    turned = replace(record, mean=record.mean[::-1], std=record.std[::-1])
    other = replace(serving.card, preprocessing=turned)
    write(replace(serving, card=other), path)


def labels_turned(serving: Serving, path: Path) -> None:
    labels = tuple(reversed(serving.card.labels or ()))
    write(replace(serving, card=replace(serving.card, labels=labels)), path)


def without_metadata(serving: Serving, path: Path) -> None:
    """Lose what MediaPipe reads: normalisation, labels."""
    write(serving, path)
    path.write_bytes(path.read_bytes().replace(b"TFLITE_METADATA", b"TFLITE-METADATA"))


def not_quantised(serving: Serving, path: Path) -> None:
    write(serving, path)


@pytest.mark.parametrize(
    ("format_", "write", "told"),
    [
        ("tflite", red_for_blue, DIFFERS),
        ("tflite", labels_turned, "not the model's: other labels, or in another order"),
        (
            "tflite",
            without_metadata,
            "metadata or signatures are not what the card sa",
        ),
        ("tflite-int8", not_quantised, "it computes in float32, not in int8"),
        ("tflite-int8", without_calibration, "it computes in float32, not in int8"),
    ],
    ids=["mean, std of BGR", "labels", "metadata", "not quantised", "no calibration"],
)
def test_a_defect_of_a_tflite_file_is_seen(
    case: Case,
    format_: str,
    write: Callable[[Serving, Path], None],
    told: str,
    tmp_path: Path,
) -> None:
    path = tmp_path / "model.tflite"
    write(case.serving, path)
    found = complaints(case, format_, path)
    assert re.search(told, found), found


class Training:
    """A net that is traced for training."""

    def __init__(self, net: Any) -> None:
        self.net, self.variables = net, net.variables

    def __call__(self, x: Any, training: bool) -> Any:
        return self.net(x, training=True)


def in_training_mode(case: Case) -> Serving:
    return replace(case.serving, model=Training(case.model))


def spoil_graph(folder: Path, change: Callable[[Any], object]) -> None:
    path = folder / "1" / "saved_model.pb"
    saved = SavedModel.FromString(path.read_bytes())
    change(saved.meta_graphs[0])
    path.write_bytes(saved.SerializeToString())


def logits_as_probabilities(graph: Any) -> None:
    outputs = graph.signature_def["serving_default"].outputs
    outputs["probabilities"].name = outputs["logits"].name


def other_method(graph: Any) -> None:
    graph.signature_def["serving_bytes"].method_name = "predict"


def other_input(graph: Any) -> None:
    graph.signature_def["serving_default"].inputs["image"].dtype = 1


def other_python(graph: Any) -> None:
    """Give logits out as probabilities in the function that only Python calls."""
    called = graph.object_graph_def.nodes[2].function.concrete_functions[0]
    (made,) = [
        f for f in graph.graph_def.library.function if f.signature.name == called
    ]
    first, second = sorted(made.ret)
    made.ret[first], made.ret[second] = made.ret[second], made.ret[first]


@pytest.fixture(scope="module")
def saved(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "saved_model"
    writer.write(case.serving, path)
    return path


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (logits_as_probabilities, "TF Serving has another serving_default"),
        (other_method, "TF Serving has another serving_bytes"),
        (other_input, "it declares inputs and outputs as"),
        (other_python, "its function `serve` differs from serving_default"),
    ],
)
def test_what_only_some_programs_read_of_a_saved_model_is_checked(
    case: Case, saved: Path, change: Any, told: str, tmp_path: Path
) -> None:
    shutil.copytree(saved, tmp_path / "saved_model")
    spoil_graph(tmp_path / "saved_model", change)
    assert told in complaints(case, "saved_model", tmp_path / "saved_model")


def test_versions_and_warmup_of_a_saved_model_are_checked(
    case: Case, saved: Path, tmp_path: Path
) -> None:
    path = tmp_path / "saved_model"
    shutil.copytree(saved, path)
    assert complaints(case, "saved_model", path) == ""
    warmup = path / "1" / "assets.extra" / "tf_serving_warmup_requests"
    records = [*tf.data.TFRecordDataset(str(warmup)).as_numpy_iterator()]
    with tf.io.TFRecordWriter(str(warmup)) as target:
        for record in records:
            target.write(record.replace(b"serving_bytes", b"serving_bites"))
    shutil.copytree(path / "1", path / "2")
    told = complaints(case, "saved_model", path)
    assert "its only version must be 1" in told
    assert "another serving_bytes, or no warm-up for it" in told


def for_one_image(case: Case) -> Serving:
    return replace(case.serving, options=ExportOptions(batch=1))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (in_training_mode, "operator AssignVariableOp in function"),
        (for_one_image, r"must be of shape \['batch', 32, 32, 3\], not \[1, 32, 32, 3"),
    ],
    ids=["training mode", "frozen batch"],
)
def test_a_defect_of_a_saved_model_is_seen(
    case: Case, change: Callable[[Case], Serving], told: str, tmp_path: Path
) -> None:
    writer.write(change(case), tmp_path / "saved_model")
    found = complaints(case, "saved_model", tmp_path / "saved_model")
    assert re.search(told, found), found


def test_another_resize_of_encoded_pictures_is_seen(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(files: Any, record: Any) -> Any:
        return prepare_encoded(files, replace(record, interpolation="bicubic"))

    monkeypatch.setattr(writer, "prepare_encoded", careless)
    writer.write(case.serving, tmp_path / "saved_model")
    found = complaints(case, "saved_model", tmp_path / "saved_model")
    assert "serving_bytes and serving_default differ on the same images" in found
