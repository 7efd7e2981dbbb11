"""What `config.json` says beside a weight file, in timm's form or in Transformers'.

What changes the answers of the network is honoured or refused by its name.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from reszoo.architecture import StrideIn
from reszoo.errors import MALFORMED, CheckpointError, ReszooError
from reszoo.files import read_json
from reszoo.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, Resize
from reszoo.specs import SPECS, ResNetSpec

PREPROCESSOR_FILE = "preprocessor_config.json"
# How a whole image becomes one of the model's size, as timm calls it.
CROP_MODES: dict[Resize, str] = {"crop": "center", "squash": "squash", "pad": "border"}
# Arguments of `timm.create_model` that change no answer, or that are honoured.
_HONOURED = (
    *("num_classes", "in_chans", "drop_rate", "drop_path_rate", "drop_block_rate"),
    *("global_pool", "output_stride"),
)
# Older names of the same models in timm.
_ALIAS = re.compile(r"(?:tv_|gluon_|ssl_|swsl_|ig_)?(.+?)(?:_v1b)?")
_AVERAGE = ("avg", "fast", "fastavg", "", None)
_POINTLESS_LABEL = re.compile(r"LABEL_\d+")
# Pillow's numbers of filters, the usual one first.
_RESAMPLING: dict[int, Literal["bilinear", "bicubic"]] = {3: "bicubic", 2: "bilinear"}
# Transformers' ConvNextImageProcessor, that of its ResNets, crops smaller images only.
_CROPPED_BELOW = 384
# Characters of a reason from a stranger's file.
_REASON = 500


@dataclass(frozen=True, kw_only=True)
class Config:
    """What a `config.json` tells of a model."""

    architecture: str | None = None  # the name there
    spec: ResNetSpec | None = None  # of a row with that name, or as described there
    stride_in: StrideIn | None = None
    output_stride: int | None = None
    pooling: str = "avg"  # in front of the classifier
    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] | None = None
    licence: str | None = None


def describes_model(path: Path) -> bool:
    """Return whether a `config.json` is one of timm or Transformers."""
    keys = {"architecture", "pretrained_cfg", "model_type"}
    return not keys.isdisjoint(_content(path))


def is_of_transformers(path: Path) -> bool:
    """Return whether a `config.json` is that of a ResNet of Transformers."""
    return _content(path).get("model_type") == "resnet"


def _content(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_config(path: Path) -> Config:
    """Read a `config.json`, and `preprocessor_config.json` beside that of Transformers.

    The size of images is the one trained for, timm's default for evaluation. A
    CheckpointError if a file is damaged, or describes what reszoo does not have.
    """
    library = "timm"
    try:
        content = read_json(path)
        if is_of_transformers(path):
            library = "Transformers"
            return _transformers(content, path)
        return _timm(content, path)
    except CheckpointError:
        raise
    except (OSError, ReszooError, *MALFORMED) as error:
        reason = f"{type(error).__name__}: {error}"[:_REASON]
        raise CheckpointError(
            f"{path} is not a {library} config ({reason})."
        ) from error


def _one_of(content: Mapping[str, Any], path: Path, name: str, *known: Any) -> Any:
    """Return a value, by default the first of those that are known; refuse others."""
    value = content.get(name, known[0])
    _expect(value in known, path, name, value, " or ".join(map(repr, known)))
    return value


def _expect(fits: object, path: Path, name: str, value: Any, expected: str) -> None:
    if not fits:
        raise CheckpointError(
            f"{path} describes another network than reszoo has: {expected} was "
            f"expected. Received: {name}={value!r}."
        )


def _timm(content: Mapping[str, Any], path: Path) -> Config:
    # Before timm 0.9 the file was the pretrained_cfg itself.
    config = content.get("pretrained_cfg", content)
    arguments = content.get("model_args") or {}
    for name, value in arguments.items():
        told = f"model_args.{name}"
        _expect(name in _HONOURED, path, told, value, "a network without it")
    offset = config.get("label_offset")
    _expect(not offset, path, "label_offset", offset, "a classifier without it")
    mode = config.get("crop_mode") or "center"
    _one_of({"crop_mode": mode}, path, "crop_mode", *CROP_MODES.values())
    resize = next(ours for ours, theirs in CROP_MODES.items() if theirs == mode)
    _, height, width = config["input_size"]
    preprocessing = Preprocessing(
        train_size=(height, width), eval_size=(height, width), resize=resize,
        crop_pct=config["crop_pct"], interpolation=config["interpolation"],
        mean=(*config["mean"],), std=(*config["std"],),
    )  # fmt: skip
    name = content.get("architecture") or config.get("architecture")
    found = _ALIAS.fullmatch(name.partition(".")[0]) if name else None
    pooling = arguments.get("global_pool", content.get("global_pool"))
    return Config(
        architecture=name, spec=SPECS.get(found[1]) if found else None,
        output_stride=_count(arguments.get("output_stride")) or _stride(config, path),
        pooling="avg" if pooling in _AVERAGE else str(pooling),
        preprocessing=preprocessing, licence=_text(config.get("license")),
        labels=as_labels(content.get("label_names") or config.get("label_names") or []),
    )  # fmt: skip


def _stride(config: Mapping[str, Any], path: Path) -> int | None:
    """Return the output stride that `pool_size` implies; None if it is not given."""
    if not config.get("pool_size"):
        return None
    _, *sides = config["input_size"]
    for stride in (32, 16, 8, 4):
        if [-(-side // stride) for side in sides] == [*config["pool_size"]]:
            return stride
    expected = f"the last stage of a model with input_size={config['input_size']}"
    _expect(False, path, "pool_size", config["pool_size"], expected)
    return None


def _transformers(content: Mapping[str, Any], path: Path) -> Config:
    _one_of(content, path, "hidden_act", "relu")
    _one_of(content, path, "downsample_in_first_stage", False)
    kind = _one_of(content, path, "layer_type", "bottleneck", "basic")
    shrink = 4 if kind == "bottleneck" else 1
    sizes = content.get("hidden_sizes", [256, 512, 1024, 2048])
    whole = not any(size % shrink for size in sizes)
    _expect(whole, path, "hidden_sizes", sizes, "multiples of 4")
    described = ResNetSpec(
        name="resnet-transformers", block=kind,
        depths=(*content.get("depths", [3, 4, 6, 3]),),
        widths=tuple(size // shrink for size in sizes),
        stem_widths=(content.get("embedding_size", 64),),
        source="the config.json of Hugging Face Transformers",
    )  # fmt: skip
    early = kind == "bottleneck" and content.get("downsample_in_bottleneck", False)
    names = content.get("id2label") or {}
    listed = [names[str(index)] for index in range(len(names))]
    if all(_POINTLESS_LABEL.fullmatch(label) for label in listed):
        listed = []
    beside = path.with_name(PREPROCESSOR_FILE)
    record = _processor(read_json(beside), beside) if beside.exists() else None
    return Config(
        architecture="resnet", spec=_row_like(described), preprocessing=record,
        stride_in="1x1" if early else "3x3" if kind == "bottleneck" else None,
        labels=as_labels(listed), licence=_text(content.get("license")),
    )  # fmt: skip


def _row_like(described: ResNetSpec) -> ResNetSpec:
    """Return the row of the table that is the same network, or the spec itself."""
    for row in SPECS.values():
        stem = row.stem_widths or row.widths[:1]
        renamed = replace(row, name=described.name, source=described.source)
        if replace(renamed, stem_widths=stem) == described:
            return row
    return described


def _processor(content: Mapping[str, Any], path: Path) -> Preprocessing:
    """Read the preprocessing of Transformers' image processors."""
    for name in ("do_resize", "do_rescale"):
        _one_of(content, path, name, True)
    factor = content.get("rescale_factor", 1 / 255)
    _expect(abs(factor * 255 - 1) < 1e-6, path, "rescale_factor", factor, "1/255")
    interpolation = _RESAMPLING[_one_of(content, path, "resample", *_RESAMPLING)]
    kind = content.get("image_processor_type") or content.get("feature_extractor_type")
    size, crop_pct = content.get("size", 224), 1.0
    resize: Resize = "squash"
    edge = size.get("shortest_edge") if isinstance(size, dict) else size
    sides = (edge, edge) if edge else (size["height"], size["width"])
    if edge and (kind or "ConvNext").startswith("ConvNext"):
        if edge < _CROPPED_BELOW:
            crop_pct, resize = content.get("crop_pct") or 0.875, "crop"
    elif content.get("do_center_crop", False):
        crop = content["crop_size"]
        crop = crop if isinstance(crop, dict) else {"height": crop, "width": crop}
        square = edge and crop["height"] == crop["width"]
        _expect(square, path, "crop_size", crop, "a square of the shortest edge")
        sides, crop_pct, resize = (crop["height"],) * 2, crop["height"] / edge, "crop"
    else:
        expected = "True, or both sides in size"
        _expect(not edge, path, "do_center_crop", False, expected)
    scaled = content.get("do_normalize", True)
    mean = content.get("image_mean", IMAGENET_MEAN) if scaled else (0.0,) * 3
    std = content.get("image_std", IMAGENET_STD) if scaled else (1.0,) * 3
    return Preprocessing(
        train_size=sides, eval_size=sides, crop_pct=crop_pct, resize=resize,
        interpolation=interpolation, mean=(*mean,), std=(*std,),
    )  # fmt: skip


def as_labels(listed: Any) -> tuple[str, ...] | None:
    """Return labels, numbered where two classes share one; None if there are none."""
    if not isinstance(listed, list) or not all(isinstance(x, str) for x in listed):
        raise TypeError("labels must be a list of texts")
    # ImageNet has two kinds of "crane".
    twice = {label for label, times in Counter(listed).items() if times > 1}
    numbered = enumerate(listed)
    return tuple(f"{x} ({i})" if x in twice else x for i, x in numbered) or None


def _count(value: Any) -> int | None:
    if value is not None and type(value) is not int:
        raise TypeError(f"{value!r} is no whole number")
    return value


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value.isprintable() else None
