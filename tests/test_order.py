"""Tensors whose modules have unknown names, assigned by their order and shapes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_layouts import write
from conftest import randomise
from numpy_resnet import logits
from safetensors.numpy import save_file

import reszoo
from reszoo.architecture import convolutions
from reszoo.cli import main
from reszoo.specs import ResNetSpec
from reszoo.training import trainer
from reszoo.weights.loading import infer_architecture
from reszoo.weights.names import to_tensors

X = np.random.default_rng(5).normal(0, 1, (2, 32, 32, 3)).astype(np.float32)
BOTTLENECK = ResNetSpec(
    name="small50",
    block="bottleneck",
    depths=(1, 1),
    widths=(8, 16),
    stem="3x3",
    stem_widths=(8,),
    classes=5,
    image_size=32,
)


def tensors_of(spec: Any, **options: Any) -> Any:
    return to_tensors(randomise(reszoo.build(spec, classes=5, **options), seed=3))


def modules(tensors: Any) -> list[str]:
    """Return the modules in the order in which torchvision registers them."""
    built = infer_architecture(
        tensors, "x", BOTTLENECK if "layer1.0.conv3.weight" in tensors else None
    )
    listed = [n for each in convolutions(built) for n in (each.name, *each.norms)]
    return [*listed, "fc"]


def in_order(tensors: Any, order: list[str]) -> Any:
    """Put modules into another order, under names that say nothing."""
    return {
        f"part{place:03}.{name.rpartition('.')[2]}": value
        for place, module in enumerate(order)
        for name, value in tensors.items()
        if name.rpartition(".")[0] == module
    }


def close(model: Any, tensors: Any) -> bool:
    expected = logits(X, tensors)
    error = np.abs(np.asarray(model(X)) - expected).max()
    return bool(error <= 1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("shortcut", ["projection", "identity"])
def test_order_and_shapes_assign_every_module(
    shortcut: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = tensors_of("resnet8", shortcut=shortcut)
    named = in_order(tensors, modules(tensors))
    file = write(tmp_path / "x.pth", {"state_dict": named})
    with pytest.raises(reszoo.CheckpointError, match=r"no ResNet as torchvision"):
        reszoo.load(file, "resnet8")
    model = reszoo.load(file, "resnet8", match="order")
    assert close(model, tensors)
    said = capsys.readouterr().err
    for place, module in enumerate(modules(tensors)):
        assert f"part{place:03} -> {module}\n" in said
    # Numbers in the names keep the order where a format does not.
    save_file(named, tmp_path / "x.safetensors")
    again = reszoo.load(tmp_path / "x.safetensors", "resnet8", match="order")
    assert close(again, tensors)


def test_a_shortcut_may_come_first_and_the_classifier_anywhere(tmp_path: Path) -> None:
    tensors = tensors_of("resnet8", shortcut="projection")
    order = ["fc", *(name for name in modules(tensors) if name != "fc")]
    for stage in ("layer2", "layer3"):
        extra = [f"{stage}.0.downsample.{index}" for index in (0, 1)]
        order = [name for name in order if name not in extra]
        place = order.index(f"{stage}.0.conv1")
        order[place:place] = extra
    file = write(tmp_path / "x.pth", in_order(tensors, order))
    assert close(reszoo.load(file, "resnet8", match="order"), tensors)


def test_a_shortcut_that_conv3_could_be_is_refused(tmp_path: Path) -> None:
    tensors = tensors_of(BOTTLENECK)
    order = modules(tensors)
    file = write(tmp_path / "x.pth", in_order(tensors, order))
    text = r"fits layer1\.0 in more than one way: part00\d and part0\d\d could be exch"
    with pytest.raises(reszoo.CheckpointError, match=text):
        reszoo.load(file, BOTTLENECK, match="order")
    # In front of conv1 it can only be the shortcut.
    for stage in ("layer1", "layer2"):
        extra = [f"{stage}.0.downsample.{index}" for index in (0, 1)]
        order = [name for name in order if name not in extra]
        place = order.index(f"{stage}.0.conv1")
        order[place:place] = extra
    file = write(tmp_path / "y.pth", in_order(tensors, order))
    assert close(reszoo.load(file, BOTTLENECK, match="order"), tensors)


def test_normalizations_of_two_paths_need_their_convolutions(tmp_path: Path) -> None:
    tensors = tensors_of("resnet8", shortcut="projection")
    order = modules(tensors)
    norms = [n for n in order if n.startswith("layer2.0.") and f"{n}.bias" in tensors]
    order = [name for name in order if name not in norms]
    place = order.index("layer3.0.conv1")
    order[place:place] = norms
    file = write(tmp_path / "x.pth", in_order(tensors, order))
    with pytest.raises(reszoo.CheckpointError, match=r"layer2\.0 in more than one way"):
        reszoo.load(file, "resnet8", match="order")


def test_what_does_not_fit_or_has_no_order_is_refused(tmp_path: Path) -> None:
    tensors = tensors_of("resnet8")
    file = write(tmp_path / "x.pth", in_order(tensors, modules(tensors)))
    cases = [
        (
            file,
            "resnet20",
            reszoo.CheckpointError,
            "19 or 21 or 28 convolutions.*Received: 7",
        ),
        (file, None, reszoo.UsageError, "needs to know the model"),
    ]
    swapped = modules(tensors)
    first, last = swapped.index("layer1.0.conv1"), swapped.index("layer3.0.conv2")
    swapped[first], swapped[last] = swapped[last], swapped[first]
    other = write(tmp_path / "y.pth", in_order(tensors, swapped))
    cases.append((other, "resnet8", reszoo.CheckpointError, r"does not fit layer1\.0"))
    odd = in_order(tensors, modules(tensors)) | {"part000.scale": np.ones(3)}
    odd_file = write(tmp_path / "z.pth", odd)
    cases.append((odd_file, "resnet8", reszoo.CheckpointError, r"part000\.scale"))
    lost = tmp_path / "lost.safetensors"
    save_file({f"{'ab'['bn' in n]}.{n}": v for n, v in tensors.items()}, lost)
    cases.append((lost, "resnet8", reszoo.CheckpointError, "lost the order"))
    ours = reszoo.save(reszoo.build("resnet8"), tmp_path / "ours.safetensors")
    cases.append((ours, "resnet8", reszoo.UsageError, "names of reszoo"))
    for path, name, error, text in cases:
        with pytest.raises(error, match=text):
            reszoo.load(path, name, match="order")
    with pytest.raises(reszoo.UnknownNameError, match="'order'"):
        reszoo.load(file, "resnet8", match="oder")


def test_the_command_line_converts_by_order(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tensors = tensors_of("resnet8")
    file = write(tmp_path / "x.pth", in_order(tensors, modules(tensors)))
    output = tmp_path / "out.safetensors"
    command = ["reszoo", "convert", str(file), str(output), "--model", "resnet8"]
    monkeypatch.setattr("reszoo.cli.enable_quiet_cli", lambda: None)
    monkeypatch.setattr("sys.argv", [*command, "--match", "order"])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert "part000 -> conv1" in capsys.readouterr().err
    assert close(reszoo.load(output), tensors)


def test_training_begins_with_the_weights_that_order_assigns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors, file = tensors_of("resnet8"), tmp_path / "x.safetensors"
    order = [name for name in modules(tensors) if name != "fc"]
    save_file(in_order(tensors, order), file)
    data = np.zeros((8, 32, 32, 3), np.uint8), np.arange(8) % 2
    begun: list[Any] = []

    class Begun(Exception):  # noqa: N818
        pass

    def stop(config: Any) -> Any:
        begun.append(config)
        raise Begun

    monkeypatch.setattr(trainer, "Run", stop)
    with pytest.raises(reszoo.CheckpointError, match=r"no ResNet as torchvision"):
        reszoo.train("resnet8", data, weights=file, batch_size=4)
    with pytest.raises(Begun):
        reszoo.train("resnet8", data, weights=file, match="order", batch_size=4)
    found = to_tensors(begun[0].model)
    assert begun[0].recipe.name == "finetune"
    assert "part000 -> conv1" in capsys.readouterr().err
    for name in (name for name in tensors if not name.startswith("fc.")):
        np.testing.assert_array_equal(found[name], tensors[name], err_msg=name)
