"""config.json beside a checkpoint is honoured, or refused by the name of the field."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_layouts import LAYOUTS, write
from conftest import randomise
from loopback import answer, serve, start

import reszoo
from reszoo.weights.configs import read_config
from reszoo.weights.names import to_tensors

PRETRAINED: dict[str, Any] = {
    "input_size": [3, 64, 64],
    "pool_size": [2, 2],
    "interpolation": "bicubic",
    "crop_pct": 0.95,
    "mean": [0.1, 0.2, 0.3],
    "std": [0.4, 0.5, 0.6],
    "license": "mit",
}
TIMM: dict[str, Any] = {
    "architecture": "resnet18",
    "global_pool": "avg",
    "label_names": ["a", "b", "c"],
    "pretrained_cfg": PRETRAINED,
}


@pytest.fixture(scope="module")
def tensors() -> Any:
    return to_tensors(randomise(reszoo.build("resnet18", classes=3), seed=3))


@pytest.fixture
def folder(tensors: Any, tmp_path: Path) -> Path:
    """A timm folder that has only the pickled file."""
    write(tmp_path / "pytorch_model.bin", tensors)
    (tmp_path / "config.json").write_text(json.dumps(TIMM))
    return tmp_path


def changed(folder: Path, **changes: Any) -> None:
    (folder / "config.json").write_text(json.dumps({**TIMM, **changes}))


def test_a_folder_and_the_file_in_it_give_the_same(folder: Path) -> None:
    for path in (folder, folder / "pytorch_model.bin"):
        card = reszoo.card(reszoo.load(path))
        assert card.labels == ("a", "b", "c")
        assert card.preprocessing.mean == (0.1, 0.2, 0.3)
        assert card.provenance["licence"] == "mit"
    changed(folder, label_names=["a", "b"])
    model = reszoo.load(folder)
    assert reszoo.card(model).labels is None
    assert "2 labels for 3 classes are left out" in str(reszoo.load_report(model))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"architecture": "resnetblur18"}, "architecture 'resnetblur18', which reszoo"),
        ({"architecture": "resnet34"}, "holds a resnet18. Received: .resnet34"),
        ({"global_pool": "avgmax"}, "global_pool='avgmax' in front of the classifier"),
        ({"model_args": {"aa_layer": "blurpc"}}, r"model_args\.aa_layer='blurpc'"),
        ({"model_args": {"global_pool": "max"}}, "global_pool='max' in front"),
        ({"pretrained_cfg": PRETRAINED | {"crop_mode": "five"}}, "crop_mode='five'"),
        ({"pretrained_cfg": PRETRAINED | {"pool_size": [7, 7]}}, r"pool_size=\[7, 7\]"),
        ({"pretrained_cfg": PRETRAINED | {"label_offset": 1}}, "label_offset=1"),
    ],
)
def test_what_changes_the_answers_is_refused_by_name(
    folder: Path, change: dict[str, Any], text: str
) -> None:
    changed(folder, **change)
    with pytest.raises(reszoo.CheckpointError, match=text):
        reszoo.load(folder)


def test_pool_size_and_older_names_are_honoured(folder: Path) -> None:
    changed(
        folder,
        architecture="tv_resnet18",
        pretrained_cfg=PRETRAINED | {"pool_size": [4, 4]},
    )
    resnet = reszoo.card(reszoo.load(folder)).resnet
    assert (resnet.name, resnet.output_stride) == ("resnet18", 16)


def test_a_config_of_something_else_beside_a_file_is_no_matter(folder: Path) -> None:
    (folder / "config.json").write_text('{"learning_rate": 0.1}')
    assert reszoo.card(reszoo.load(folder / "pytorch_model.bin")).labels is None


PROCESSOR: dict[str, Any] = {
    "image_processor_type": "ConvNextImageProcessor",
    "size": {"shortest_edge": 224},
    "crop_pct": 0.875,
    "resample": 3,
}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, (224, 256, "crop", "bicubic")),
        ({"size": 224}, (224, 256, "crop", "bicubic")),
        ({"size": {"shortest_edge": 384}}, (384, 384, "squash", "bicubic")),
        (
            {"image_processor_type": "ViTImageProcessor", "resample": 2}
            | {"size": {"height": 96, "width": 96}},
            (96, 96, "squash", "bilinear"),
        ),
        (
            {"image_processor_type": "BitImageProcessor", "do_center_crop": True}
            | {"size": {"shortest_edge": 256}, "crop_size": 224},
            (224, 256, "crop", "bicubic"),
        ),
        ({"do_rescale": False}, "do_rescale=False"),
        ({"resample": 0}, "resample=0"),
        ({"rescale_factor": 1.0}, "rescale_factor=1.0"),
        (
            {"image_processor_type": "BitImageProcessor", "do_center_crop": False},
            "do_center_crop=False",
        ),
    ],
)
def test_image_processors_of_transformers_are_read_or_refused(
    change: dict[str, Any], expected: Any, tmp_path: Path
) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"model_type": "resnet"}')
    beside = tmp_path / "preprocessor_config.json"
    beside.write_text(json.dumps(PROCESSOR | change))
    if isinstance(expected, str):
        with pytest.raises(reszoo.CheckpointError, match=expected):
            read_config(file)
        return
    record = read_config(file).preprocessing
    assert record is not None
    found = (record.eval_size, record.resize_size, record.resize, record.interpolation)
    assert found == expected


# A process of its own: huggingface_hub reads its environment when it is imported.
LOAD = """
import sys, reszoo
print("started", flush=True)
for _ in range(2):
    card = reszoo.card(reszoo.load("hf://owner/net"))
    print(card.resnet.name, *card.labels, card.preprocessing.crop_pct, sep=",")
    sys.stdout.flush()
    sys.stdin.read()
"""


@pytest.mark.slow
def test_the_hub_has_both_configs_of_transformers(
    tensors: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESZOO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    config = {
        "model_type": "resnet",
        "layer_type": "basic",
        "depths": [2, 2, 2, 2],
        "hidden_sizes": [64, 128, 256, 512],
        "id2label": {"0": "tench", "1": "crane", "2": "crane"},
    }
    named = LAYOUTS["Transformers"](tensors)
    with serve() as site:
        monkeypatch.setenv("HF_ENDPOINT", site.url)
        site.put_on_hub(
            "owner/net",
            pytorch_model_bin=write(tmp_path / "x.bin", named).read_bytes(),
            config_json=json.dumps(config).encode(),
            preprocessor_config_json=json.dumps(PROCESSOR | {"crop_pct": 0.9}).encode(),
        )
        process = start(LOAD)
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        said = process.stdout.readline()
        assert said == "resnet18,tench,crane (1),crane (2),0.9\n"
        site.stop()
        # Once it is here, no network is needed.
        assert answer(process) == said


@pytest.mark.parametrize(
    "named",
    [[4095], ["cat"], {"1": "cat", "2": "dog"}, {"0": "cat", "2": "dog"}, {"one": "a"}],
    ids=str,
)
def test_labels_must_be_named_by_the_numbers_of_the_classes(
    tmp_path: Path, named: Any
) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model_type": "resnet", "id2label": named}))
    with pytest.raises(reszoo.CheckpointError, match="is not a Transformers config"):
        read_config(config)


def test_arrays_of_the_file_are_those_of_the_model(folder: Path, tensors: Any) -> None:
    held = to_tensors(reszoo.load(folder))
    assert all(np.array_equal(held[name], value) for name, value in tensors.items())
