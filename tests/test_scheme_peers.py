"""Checkpoints of Transformers, torchvision and timm against the libraries themselves.

Random weights and batch-norm statistics that are nowhere trivial.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch_peers import REASON, import_timm, import_torchvision

import reszoo

SIZE = 96


def import_transformers() -> Any:
    import_torchvision()
    return pytest.importorskip("transformers", reason=REASON)


def lively(net: Any, seed: int = 0) -> Any:
    """Give a torch model statistics and scales as trained ones have."""
    import torch

    torch.manual_seed(seed)
    for name, module in net.named_modules():
        if "BatchNorm" in type(module).__name__:
            last = name.endswith(("bn3", "conv3.norm", "layer.2.normalization"))
            for key, low, high in (
                ("weight", *((0.1, 0.3) if last else (0.5, 1.5))),
                ("bias", -0.2, 0.2),
                ("running_mean", -0.2, 0.2),
                ("running_var", 0.5, 1.5),
            ):
                getattr(module, key).data.uniform_(low, high)
    return net.eval()


def answer(net: Any, pixels: Any) -> Any:
    import torch

    with torch.no_grad():
        return net(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()))


def photos() -> Any:
    draw = np.random.default_rng(1)
    return draw.normal(size=(2, SIZE, SIZE, 3)).astype(np.float32)


def far(found: Any, expected: Any) -> float:
    """Largest difference, relative to the largest expected value."""
    expected = np.asarray(expected)
    if expected.ndim == 4:
        expected = expected.transpose(0, 2, 3, 1)
    return float(np.abs(np.asarray(found) - expected).max() / np.abs(expected).max())


_BOTTLENECK = {"layer_type": "bottleneck", "hidden_sizes": [256, 512, 1024, 2048]}
_BASIC = {"layer_type": "basic", "hidden_sizes": [64, 128, 256, 512]}
TRANSFORMERS: dict[str, Any] = {
    "resnet18": _BASIC | {"depths": [2, 2, 2, 2]},
    "resnet34": _BASIC | {"depths": [3, 4, 6, 3]},
    "resnet50": _BOTTLENECK | {"depths": [3, 4, 6, 3]},
    "resnet101": _BOTTLENECK | {"depths": [3, 4, 23, 3]},
    "resnet152": _BOTTLENECK | {"depths": [3, 8, 36, 3]},
    # Of no row, which its config describes, with the stride in the first convolution.
    "resnet-transformers": {
        "layer_type": "bottleneck",
        "hidden_sizes": [32, 64],
        "depths": [1, 2],
        "embedding_size": 24,
        "downsample_in_bottleneck": True,
    },
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name[-1] in "412" else name
        for name in TRANSFORMERS
    ],
)
def test_a_folder_of_transformers_gives_its_logits(name: str, tmp_path: Path) -> None:
    transformers = import_transformers()
    labels = {0: "cat", 1: "dog", 2: "crane", 3: "crane"}
    config = transformers.ResNetConfig(**TRANSFORMERS[name], id2label=labels)
    net = lively(transformers.ResNetForImageClassification(config))
    net.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_processor_type": "ConvNextImageProcessor",
                "crop_pct": 0.875,
                "size": {"shortest_edge": 192},
                "resample": 2,
                "image_mean": [0.5, 0.4, 0.3],
                "image_std": [0.2, 0.2, 0.1],
            }
        )
    )
    model = reszoo.load(tmp_path)
    card = reszoo.card(model)
    assert card.resnet.name == name
    assert card.labels == ("cat", "dog", "crane (2)", "crane (3)")
    record = card.preprocessing
    assert (record.eval_size, record.resize_size, record.mean[1]) == (192, 219, 0.4)
    assert record.interpolation == "bilinear"
    images = photos()
    shaped = reszoo.build(
        card.resnet.spec, weights=tmp_path, input_shape=(SIZE, SIZE, 3)
    )
    assert far(shaped(images), answer(net, images).logits) <= 1e-5
    # A backbone has no classifier, and its names no prefix.
    transformers.ResNetModel.from_pretrained(tmp_path).save_pretrained(tmp_path / "b")
    backbone = reszoo.load(tmp_path / "b")
    inner = answer(net.resnet, images).last_hidden_state
    assert far(backbone(images), inner) <= 1e-5


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_act", "gelu"),
        ("downsample_in_first_stage", True),
        ("layer_type", "inverted"),
    ],
)
def test_what_reszoo_does_not_have_is_refused_by_name(
    field: str, value: Any, tmp_path: Path
) -> None:
    config = {"model_type": "resnet", field: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = reszoo.build("resnet18", classes=2)
    reszoo.save(model, tmp_path / "m.safetensors")
    from safetensors.numpy import load_file, save_file

    save_file(load_file(tmp_path / "m.safetensors"), tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(reszoo.CheckpointError, match=f"{field}={value!r}"):
            reszoo.load(path)


def test_torchvisions_detector_gives_its_backbone(tmp_path: Path) -> None:
    torchvision = import_torchvision()
    import torch

    net = torchvision.models.detection.fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None
    )
    lively(net)
    torch.save(net.state_dict(), tmp_path / "detector.pth")
    model = reszoo.load(tmp_path / "detector.pth")
    report = reszoo.load_report(model)
    assert report is not None
    assert any(name.startswith("roi_heads.") for name in report.skipped)
    images = photos()
    assert far(model(images), answer(net.backbone.body, images)["3"]) <= 1e-5


@pytest.mark.slow
def test_torchvisions_segmentation_model_gives_its_backbone(tmp_path: Path) -> None:
    torchvision = import_torchvision()
    import torch

    net = torchvision.models.segmentation.fcn_resnet50(
        weights=None, weights_backbone=None, num_classes=3
    )
    lively(net)
    torch.save({"model": net.state_dict()}, tmp_path / "fcn.pth")
    with pytest.raises(reszoo.CheckpointError, match=r"output_stride=8\) is"):
        reszoo.load(tmp_path / "fcn.pth")
    model = reszoo.build(
        "resnet50", weights=tmp_path / "fcn.pth", include_top=False, output_stride=8
    )
    images = photos()
    assert far(model(images), answer(net.backbone, images)["out"]) <= 1e-5


def detectron2_resnet(stride_in_1x1: bool) -> Any:
    """A bottleneck ResNet with detectron2's names, after its `BottleneckBlock`."""
    import torch
    from torch import nn
    from torch.nn.functional import max_pool2d, relu

    class Conv(nn.Conv2d):  # type: ignore[misc]
        def __init__(self, *shape: int, **options: Any) -> None:
            super().__init__(*shape, bias=False, **options)
            self.norm = nn.BatchNorm2d(shape[1])

        def forward(self, x: Any) -> Any:
            return self.norm(super().forward(x))

    class Block(nn.Module):  # type: ignore[misc]
        def __init__(self, before: int, width: int, stride: int) -> None:
            super().__init__()
            first, second = (stride, 1) if stride_in_1x1 else (1, stride)
            self.shortcut = (
                Conv(before, 4 * width, 1, stride=stride)
                if before != 4 * width
                else None
            )
            self.conv1 = Conv(before, width, 1, stride=first)
            self.conv2 = Conv(width, width, 3, stride=second, padding=1)
            self.conv3 = Conv(width, 4 * width, 1)

        def forward(self, x: Any) -> Any:
            z = self.conv3(relu(self.conv2(relu(self.conv1(x)))))
            return relu(z + (x if self.shortcut is None else self.shortcut(x)))

    class Net(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Module()
            self.stem.conv1 = Conv(3, 64, 7, stride=2, padding=3)
            channels = 64
            depths = zip((64, 128, 256, 512), (3, 4, 6, 3), strict=True)
            for stage, (width, depth) in enumerate(depths, start=2):
                blocks = []
                for index in range(depth):
                    stride = 2 if stage > 2 and index == 0 else 1
                    blocks.append(Block(channels, width, stride))
                    channels = 4 * width
                setattr(self, f"res{stage}", nn.Sequential(*blocks))

        def forward(self, x: Any) -> Any:
            x = max_pool2d(relu(self.stem.conv1(x)), 3, 2, 1)
            return self.res5(self.res4(self.res3(self.res2(x))))

    torch.manual_seed(3)
    return lively(Net())


@pytest.mark.parametrize("channels", ["BGR", "RGB"])
def test_the_statistics_in_a_file_of_detectron2_are_honoured(
    channels: str, tmp_path: Path
) -> None:
    import_torchvision()
    import torch

    step = -1 if channels == "BGR" else 1
    mean = np.array([123.675, 116.28, 103.53], np.float32)[::step].copy()
    std = np.array([58.395, 57.12, 57.375], np.float32)[::step].copy()
    net = detectron2_resnet(stride_in_1x1=True)
    file = {f"backbone.{k}": v for k, v in net.state_dict().items() if "num_" not in k}
    statistics = {"pixel_mean": mean, "pixel_std": std}
    file |= {k: torch.tensor(v)[:, None, None] for k, v in statistics.items()}
    torch.save({"model": file}, tmp_path / "d2.pth")
    model = reszoo.build("resnet50", include_top=False, weights=tmp_path / "d2.pth")
    told = str(reszoo.load_report(model))
    assert f"are the file's; {channels} is told" in told
    assert "PIXEL_STD 1" not in told
    pixels = np.random.default_rng(2).integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)
    shown = ((pixels[..., ::step] - mean) / std).astype(np.float32)
    record = reszoo.card(model).preprocessing
    assert far(model(record.normalise(pixels)), answer(net, shown)) <= 1e-5


@pytest.mark.parametrize("stride_in_1x1", [True, False])
def test_detectron2s_bgr_and_stride_are_honoured(
    stride_in_1x1: bool, tmp_path: Path
) -> None:
    import_torchvision()
    import torch

    net = detectron2_resnet(stride_in_1x1)
    tensors = net.state_dict().items()
    frozen = {f"backbone.{k}": v for k, v in tensors if "num_batches" not in k}
    torch.save({"model": frozen}, tmp_path / "d2.pth")
    options: dict[str, Any] = {"include_top": False, "weights": tmp_path / "d2.pth"}
    if not stride_in_1x1:
        options["stride_in"] = "3x3"
    model = reszoo.build("resnet50", **options)
    assert "INPUT.FORMAT BGR" in str(reszoo.load_report(model))
    pixels = np.random.default_rng(2).integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)
    bgr = pixels[..., ::-1] - np.array([103.53, 116.28, 123.675], np.float32)
    record = reszoo.card(model).preprocessing
    assert far(model(record.normalise(pixels)), answer(net, bgr)) <= 1e-5


def test_timms_folders_are_honoured_or_refused(tmp_path: Path) -> None:
    """Tensors of these three are those of a plain ResNet-18 or 50."""
    timm = import_timm()
    import torch

    for name, options, said in (
        ("resnetblur18", {}, r"architecture 'resnetblur18', which reszoo does not"),
        ("resnetaa50", {}, r"architecture 'resnetaa50'"),
        ("resnet18", {"global_pool": "max"}, r"global_pool='max' in front"),
    ):
        net = timm.create_model(name, num_classes=4, **options)
        folder = tmp_path / f"{name}{len(options)}"
        folder.mkdir()
        timm.models.save_for_hf(net, folder, model_args=options)
        with pytest.raises(reszoo.CheckpointError, match=said):
            reszoo.load(folder)
    # Without the classifier it does not matter how it pools.
    lively(net)
    torch.save(net.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink(missing_ok=True)
    backbone = reszoo.build(
        "resnet18", weights=folder, include_top=False, input_shape=(SIZE, SIZE, 3)
    )
    images = photos()
    expected = net.forward_features(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    assert far(backbone(images), expected.detach()) <= 1e-5


def test_a_dilated_model_of_timm_stays_dilated(tmp_path: Path) -> None:
    timm = import_timm()
    net = lively(timm.create_model("resnet18", num_classes=4, output_stride=16))
    timm.models.save_for_hf(net, tmp_path, model_args={"output_stride": 16})
    model = reszoo.load(tmp_path)
    assert reszoo.card(model).resnet.output_stride == 16
    shaped = reszoo.build(
        "resnet18", weights=tmp_path, input_shape=(SIZE, SIZE, 3), output_stride=16
    )
    images = photos()
    assert far(shaped(images), answer(net, images)) <= 1e-5
