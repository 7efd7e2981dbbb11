"""Write a small ResNet as each library names it, without that library.

Run: python tests/checkpoint_layouts.py FOLDER
The weights are random, with batch-norm statistics that are nowhere trivial.
"""

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch_writer import Writer, call, mapping, number, text

Tensors = dict[str, Any]
_DRAW = np.random.default_rng(8)


def drawn(*shape: int) -> Any:
    return _DRAW.normal(size=shape).astype(np.float32)


def prefixed(tensors: Tensors, prefix: str) -> Tensors:
    return {prefix + name: value for name, value in tensors.items()}


def body(tensors: Tensors) -> Tensors:
    return {k: v for k, v in tensors.items() if not k.startswith("fc.")}


def head(tensors: Tensors, name: str) -> Tensors:
    return {f"{name}.{kind}": tensors[f"fc.{kind}"] for kind in ("weight", "bias")}


def counted(tensors: Tensors) -> Tensors:
    return {k: v for k, v in tensors.items() if "num_batches" not in k}


def features(tensors: Tensors) -> int:
    return int(tensors["fc.weight"].shape[1])


def mlp(tensors: Tensors, name: str, width: int = 16) -> Tensors:
    """Two dense layers with a normalization between them, as projections are."""
    return {
        f"{name}.0.weight": drawn(width, features(tensors)),
        f"{name}.0.bias": drawn(width),
        f"{name}.1.running_mean": drawn(width),
        f"{name}.1.num_batches_tracked": np.array(3),
        f"{name}.3.weight": drawn(8, width),
        f"{name}.3.bias": drawn(8),
    }


def _renamed(tensors: Tensors, rules: Mapping[str, str]) -> Tensors:
    found = {}
    for name, value in tensors.items():
        for pattern, new in rules.items():
            name, count = re.subn(f"^{pattern}", new, name)
            if count:
                break
        found[name] = value
    return found


def numbered(tensors: Tensors) -> Tensors:
    """`Sequential(*resnet.children())`: 2 is the activation and 3 the pooling."""
    rules = {"conv1": "0", "bn1": "1"}
    rules |= {f"layer{stage}": str(stage + 3) for stage in range(1, 5)}
    return _renamed(body(tensors), rules)


def transformers(tensors: Tensors) -> Tensors:
    found = {}
    for name, value in tensors.items():
        name = re.sub(r"^conv1\.", "resnet.embedder.embedder.convolution.", name)
        name = re.sub(r"^bn1\.", "resnet.embedder.embedder.normalization.", name)
        name = re.sub(r"downsample\.0", "shortcut.convolution", name)
        name = re.sub(r"downsample\.1", "shortcut.normalization", name)
        for number_ in "123":
            place = f"layer.{int(number_) - 1}"
            name = name.replace(f".conv{number_}.", f".{place}.convolution.")
            name = name.replace(f".bn{number_}.", f".{place}.normalization.")
            stage = f"resnet.encoder.stages.{int(number_) - 1}.layers."
            name = name.replace(f"layer{number_}.", stage)
        name = name.replace("layer4.", "resnet.encoder.stages.3.layers.")
        found[name.replace("fc.", "classifier.1.")] = value
    return found


def detectron2(tensors: Tensors) -> Tensors:
    """Frozen batch normalization has no counters; images are BGR."""
    found = {}
    for name, value in counted(body(tensors)).items():
        name = re.sub(r"^(conv1|bn1)\.", r"stem.\1.", name)
        name = re.sub(r"^layer(\d)", lambda m: f"res{int(m[1]) + 1}", name)
        name = name.replace("downsample.0", "shortcut")
        name = name.replace("downsample.1", "shortcut.norm")
        found[re.sub(r"\.bn(\d)", r".conv\1.norm", name)] = value
    found["stem.conv1.weight"] = found["stem.conv1.weight"][:, ::-1].copy()
    return found


def _moco(tensors: Tensors) -> Tensors:
    query = body(tensors) | {"fc.weight": drawn(128, features(tensors))}
    query["fc.bias"] = drawn(128)
    return {
        **prefixed(query, "module.encoder_q."),
        **prefixed({k: v + 1 for k, v in query.items()}, "module.encoder_k."),
        "module.queue": drawn(128, 64),
        "module.queue_ptr": np.array([5]),
    }


def _detection(tensors: Tensors) -> Tensors:
    return {
        **prefixed(counted(body(tensors)), "backbone.body."),
        "backbone.fpn.inner_blocks.0.0.weight": drawn(8, features(tensors), 1, 1),
        "roi_heads.box_predictor.cls_score.weight": drawn(5, 8),
    }


MMPRETRAIN = """
data_preprocessor = dict(
    mean=[120.0, 110.0, 100.0], std=[60.0, 50.0, 40.0], to_rgb=True)
model = dict(backbone=dict(depth=18, style='pytorch', type='ResNet'))
"""
# Library -> its file, from tensors by torchvision's names. All have a classifier or a
# projection; which of them is told by `WITH_CLASSIFIER`.
LAYOUTS: dict[str, Callable[[Tensors], dict[str, Any]]] = {
    "PyTorch's tutorial": lambda t: {
        "epoch": 3,
        "model_state_dict": t,
        "optimizer_state_dict": {"state": {}, "param_groups": []},
        "loss": 0.5,
    },
    "a head after dropout": lambda t: body(t) | head(t, "fc.1"),
    "prefix resnet": lambda t: prefixed(body(t), "resnet.") | head(t, "classifier"),
    "prefix encoder": lambda t: prefixed(t, "encoder."),
    "pytorch-cifar": lambda t: {
        "net": prefixed(
            {k.replace("downsample", "shortcut"): v for k, v in body(t).items()},
            "module.",
        )
        | head(t, "module.linear"),
        "acc": 91.0,
        "epoch": 7,
    },
    "Transformers": transformers,
    "mmpretrain": lambda t: {
        "meta": {"dataset_meta": {"classes": list("abcde")}, "cfg": MMPRETRAIN},
        "message_hub": call("mmengine.logging", "HistoryBuffer", number(3)),
        "state_dict": prefixed(body(t), "backbone.") | head(t, "head.fc"),
    },
    "Lightning": lambda t: {
        "epoch": 1,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": prefixed(t, "model.") | {"criterion.weight": drawn(5)},
        "hyper_parameters": call("__main__", "Config", text("anything")),
        "callbacks": {"ModelCheckpoint": {"best_model_path": "x"}},
        "loops": {},
    },
    "fastai": lambda t: {
        "model": prefixed(numbered(t), "0.") | mlp(t, "1"),
        "opt": {"state": []},
    },
    "torchvision detection": _detection,
    "detectron2": lambda t: {
        "model": prefixed(detectron2(t), "backbone.bottom_up.")
        | {"roi_heads.box_predictor.cls_score.weight": drawn(5, 8)},
        "iteration": 7,
    },
    "MoCo": lambda t: {"epoch": 9, "arch": "x", "state_dict": _moco(t)},
    "SimSiam": lambda t: {
        "state_dict": prefixed(body(t) | mlp(t, "fc"), "module.encoder.")
        | mlp(t, "module.predictor")
    },
    "BYOL": lambda t: {
        "online_network_state_dict": prefixed(numbered(t), "encoder.")
        | mlp(t, "projetion.net"),
        "target_network_state_dict": prefixed(
            {k: v + 1 for k, v in numbered(t).items()}, "encoder."
        ),
    },
    "BYOL of lightly": lambda t: (
        prefixed(numbered(t), "backbone.")
        | prefixed(numbered(t), "backbone_momentum.")
        | mlp(t, "projection_head.layers")
        | mlp(t, "prediction_head.layers")
    ),
    "DINO": lambda t: (
        {
            key: prefixed(
                {k: v + shift for k, v in body(t).items()}, f"{wrapper}backbone."
            )
            | mlp(t, f"{wrapper}head.mlp")
            | {f"{wrapper}head.last_layer.weight_v": drawn(64, 8)}
            for key, wrapper, shift in (("student", "module.", 1), ("teacher", "", 0))
        }
        | {"epoch": 4, "dino_loss": {"center": drawn(1, 64)}}
    ),
    "SwAV": lambda t: prefixed(
        body(t) | mlp(t, "projection_head") | {"prototypes.weight": drawn(30, 8)},
        "module.",
    ),
}
WITH_CLASSIFIER = (
    *("PyTorch's tutorial", "a head after dropout", "prefix resnet", "prefix encoder"),
    *("pytorch-cifar", "Transformers", "mmpretrain", "Lightning"),
)


def _packed(writer: Writer, value: Any) -> bytes:
    match value:
        case bytes():
            return value
        case dict():
            return mapping(**{key: _packed(writer, v) for key, v in value.items()})
        case list():
            return b"](" + b"".join(_packed(writer, each) for each in value) + b"e"
        case str():
            return text(value)
        case int() | float():
            return number(value)  # type: ignore[arg-type]
    if value.dtype == np.int64:
        return writer.tensor(np.asarray(value), "LongStorage")
    return writer.tensor(np.asarray(value, np.float32))


def write(path: Path, tree: Mapping[str, Any], layout: str = "zip") -> Path:
    """Write a file of torch, without torch; `bytes` are instructions of a pickle."""
    writer = Writer(layout)
    return writer.write(path, _packed(writer, dict(tree)))


def main(folder: Path) -> None:
    from conftest import randomise

    import reszoo
    from reszoo.weights.names import to_tensors

    model = reszoo.build("resnet8", classes=5, shortcut="projection")
    tensors = to_tensors(randomise(model, seed=3))
    folder.mkdir(parents=True, exist_ok=True)
    for library, layout in LAYOUTS.items():
        name = re.sub(r"\W+", "-", library.lower())
        print(write(folder / f"{name}.pth", layout(tensors)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
