import json
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import randomise
from safetensors.numpy import load_file, save_file

import reszoo
from reszoo.weights.names import to_tensors


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    model = randomise(reszoo.build("resnet20", classes=["a", "b", "c"]))
    return reszoo.save(model, tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    "name",
    [
        "resnet20",
        "resnet18",
        pytest.param("resnet50", marks=pytest.mark.slow),
        "plain20",
    ],
)
def test_a_round_trip_is_bit_equal(name: str, tmp_path: Path) -> None:
    model = randomise(reszoo.build(name, classes=4, input_shape=(32, 32, 3)))
    again = reszoo.load(reszoo.save(model, tmp_path / "model.safetensors"))
    before, after = to_tensors(model), to_tensors(again)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[key], after[key]) for key in before)
    assert reszoo.card(again) == reszoo.card(model)


def test_the_same_weights_give_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    again = reszoo.save(reszoo.load(checkpoint), tmp_path / "again.safetensors")
    assert again.read_bytes() == checkpoint.read_bytes()


def test_names_shapes_and_types_are_torchs(checkpoint: Path) -> None:
    tensors = load_file(checkpoint)
    assert tensors["layer2.0.conv1.weight"].shape == (32, 16, 3, 3)
    assert tensors["fc.weight"].shape == (3, 64)
    assert tensors["bn1.running_var"].dtype == np.float32
    assert tensors["bn1.num_batches_tracked"].dtype == np.int64
    assert tensors["bn1.num_batches_tracked"].shape == ()


def test_build_takes_the_weights_of_a_file(checkpoint: Path) -> None:
    model = reszoo.build("resnet20", weights=checkpoint)
    assert reszoo.card(model).labels == ("a", "b", "c")
    x = np.ones((1, 32, 32, 3), np.float32)
    headless = reszoo.build("resnet20", weights=checkpoint, include_top=False)
    stage = np.asarray(headless(x)).mean((1, 2))
    tensors = load_file(checkpoint)
    expected = stage @ tensors["fc.weight"].T + tensors["fc.bias"]
    np.testing.assert_allclose(model(x), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("resnet32", {}, "holds a resnet20. Received: 'resnet32'"),
        ("resnet20", {"shortcut": "projection"}, "was made with shortcut='identity'"),
    ],
)
def test_a_checkpoint_of_another_net_is_refused(
    checkpoint: Path, name: str, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(reszoo.CheckpointError, match=text):
        reszoo.build(name, weights=checkpoint, **options)


def test_missing_and_unexpected_tensors_are_listed(checkpoint: Path) -> None:
    tensors = load_file(checkpoint)
    tensors["extra"] = tensors.pop("layer1.0.bn1.weight")
    text = reszoo.card(reszoo.load(checkpoint)).to_text()
    save_file(tensors, checkpoint, {"reszoo_card": text})
    with pytest.raises(
        reszoo.CheckpointError,
        match=r"1 missing: layer1.0.bn1.weight. 1 unexpected: extra. Nothing was",
    ):
        reszoo.load(checkpoint)


def test_damaged_and_foreign_files_are_refused(
    checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(reszoo.CheckpointError, match="There is no checkpoint"):
        reszoo.load(tmp_path / "none.safetensors")
    foreign = tmp_path / "foreign.safetensors"
    save_file({"x": np.zeros(3)}, foreign)
    with pytest.raises(reszoo.CheckpointError, match=r"holds no ResNet as torchvision"):
        reszoo.load(foreign)
    content = checkpoint.read_bytes()
    for kept in (0, 4, 100, len(content) - 1):
        checkpoint.write_bytes(content[:kept])
        with pytest.raises(reszoo.CheckpointError, match="not a complete safetensors"):
            reszoo.load(checkpoint)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("card_version", 99, "reads card version 1. Received: version 99"),
        ("labels", ["a", "a", "b"], "Labels must differ"),
        ("labels", ["a"], "1 labels for 3 classes"),
        ("preprocessing", {}, "card cannot be read"),
        ("architecture", {"spec": "resnet20", "colour": "red"}, "card cannot be read"),
    ],
)
def test_a_card_that_makes_no_sense_is_refused(
    checkpoint: Path, field: str, value: Any, text: str
) -> None:
    content = checkpoint.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    card = json.loads(header["__metadata__"]["reszoo_card"])
    header["__metadata__"]["reszoo_card"] = json.dumps({**card, field: value})
    changed = json.dumps(header).encode()
    body = struct.pack("<Q", len(changed)) + changed + content[8 + length :]
    checkpoint.write_bytes(body)
    with pytest.raises(reszoo.CheckpointError, match=text):
        reszoo.load(checkpoint)


def test_a_foreign_model_has_no_card() -> None:
    import keras

    image = keras.Input((4,))
    with pytest.raises(reszoo.UsageError, match="has no card"):
        reszoo.card(keras.Model(image, image))


def test_only_safetensors_is_written(tmp_path: Path) -> None:
    with pytest.raises(reszoo.UsageError, match=r"must end in .safetensors"):
        reszoo.save(reszoo.build("resnet20"), tmp_path / "model.h5")


def test_labels_of_any_kind_survive(tmp_path: Path) -> None:
    labels = ("10", "2", "Ünicode ✓", "with, comma", "UPPER", ":cat:")
    model = reszoo.build("resnet20", classes=labels)
    again = reszoo.load(reszoo.save(model, tmp_path / "model.safetensors"))
    assert reszoo.card(again).labels == labels


@pytest.mark.parametrize("label", ["new\nline", "", "tab\there"])
def test_a_label_is_one_line_of_text(label: str) -> None:
    with pytest.raises(reszoo.UsageError, match=r"must be one line of printable text"):
        reszoo.build("resnet20", classes=["cat", label])


def test_classes_are_a_number_or_names() -> None:
    with pytest.raises(reszoo.UsageError, match=r"a number, or a list of labels"):
        reszoo.build("resnet20", classes="cat")
    count: Any = np.int64(4)
    assert reszoo.build("resnet20", classes=count).output_shape == (None, 4)


@pytest.mark.slow
def test_a_full_disk_loses_nothing(checkpoint: Path) -> None:
    before = checkpoint.read_bytes()
    script = (
        "import resource, signal, reszoo\n"
        "model = reszoo.build('resnet20', classes=3)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n"
        f"    reszoo.save(model, {str(checkpoint)!r})\n"
        "except reszoo.ReszooError as error:\n"
        "    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert "could not be written" in done.stdout, done.stderr
    assert checkpoint.read_bytes() == before
    assert [file.name for file in checkpoint.parent.iterdir()] == [checkpoint.name]


def test_a_changed_card_can_be_saved(checkpoint: Path) -> None:
    model = reszoo.load(checkpoint)
    provenance = {"source": "a test", "cafe\u0301": 1, "caf\u00e9": 2}
    card = replace(reszoo.card(model), provenance=provenance)
    reszoo.save(model, checkpoint, card)
    assert reszoo.card(reszoo.load(checkpoint)).provenance == provenance
