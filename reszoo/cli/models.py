"""`reszoo list` and `reszoo convert`."""

import math
from pathlib import Path
from typing import Any

import reszoo
from reszoo import architecture
from reszoo.cli.options import command, show
from reszoo.console import printable, say
from reszoo.errors import UnknownNameError, UsageError, known
from reszoo.specs import SPECS, ResNetSpec
from reszoo.weights.figures import best_top1

_COLUMNS = ("name", "parameters", "multiply_adds", "image", "top1", "int8_bytes")
# Bytes of an int8 TFLite file: for each channel a bias, and scale and zero point of
# kernel and bias; for each convolution its operators and tensors. The classifier
# stays in float32.
_CHANNEL, _LAYER, _FLOAT = 28, 800, 4


@command("list")
def list_(
    pattern: str = "*", *, weights: bool = False, sort: str | None = None
) -> None:
    """List the models by family, or their published weights.

    Example: reszoo list "resnet*" --sort top1

    Args:
        pattern (PATTERN): Names to list, such as "resnet*".
        weights: List published weights instead.
        sort (default by family): Column to sort by, the largest first: name,
            parameters, multiply_adds, image, top1 or int8_bytes.
    """
    if not (names := reszoo.list_models(pattern)):
        raise UnknownNameError("model", pattern, SPECS)
    if weights:
        _show_weights(names)
        return
    rows = [_described(name) for name in names]
    if sort:
        column = known("sort", sort, _COLUMNS)
        # Those without a value come last, and before them accuracies on CIFAR-10.
        small = {r["name"] for r in rows if column == "top1" and r["classes"] < 1000}
        rows.sort(key=lambda row: row[column] or 0)
        rows.sort(key=lambda row: (row[column] is not None, row["name"] not in small))
        rows = rows if column == "name" else rows[::-1]
    else:
        families = list(dict.fromkeys(row["family"] for row in rows))
        rows.sort(key=lambda row: families.index(row["family"]))
    titles = "model|family|params (M)|multiply-adds (G)|image|top-1 (%)|int8 (MB)"
    shown, before = [], None
    for row in rows:
        family = "" if row["family"] == before and not sort else row["family"]
        before = row["family"]
        shown.append([
            row["name"], family, f"{row['parameters'] / 1e6:.2f}",
            f"{row['multiply_adds'] / 1e9:.3f}", f"{row['image']} px",
            "-" if row["top1"] is None else f"{row['top1']:.2f}",
            f"{row['int8_bytes'] / 1e6:.2f}",
        ])  # fmt: skip
    if show(rows, (titles.split("|"), shown)):
        say(
            "top-1: best published accuracy on ImageNet, of small models ours on "
            "CIFAR-10; int8: size of the TFLite file, computed from the spec"
        )


@command()
def convert(
    source: str,
    output: Path,
    *,
    model: str | None = None,
    match: str | None = None,
    overwrite: bool = False,
) -> None:
    """Convert a checkpoint for reszoo, torchvision and timm.

    Example: reszoo convert resnet50-11ad3fa6.pth resnet50.safetensors

    Args:
        source (IN): Checkpoint: .safetensors, .pth, .pt, .bin, .th, .h5 of
            keras.applications, a folder of timm, Transformers or `reszoo train`,
            hf://owner/repo or a URL.
        output (OUT): A .safetensors file, or a folder for timm.
        model (default inferred): Name of the model, if its tensors fit several.
    """
    if output.exists() and not overwrite:
        raise UsageError(f"{output} exists. Pass --overwrite to replace it.")
    built = reszoo.load(source, model, match=match)
    written, report = reszoo.save(built, output), reszoo.load_report(built)
    card = reszoo.card(built)
    told = printable(f"{card.architecture.name}: {report}. Written to {written}")
    show({"output": str(written), "card": card.to_json()}, told)


def _show_weights(names: list[str]) -> None:
    from reszoo.weights.location import bundled_rows
    from reszoo.weights.published import table_rows

    rows = [row for row in bundled_rows() + table_rows() if row["model"] in names]
    columns = ["model", "weights", "top-1", "top-5", "at", "licence"]
    cells = [
        [
            row["model"], row["weights"] + (" *" if row["default"] else ""),
            *("-" if row[x] is None else f"{row[x]:.2f}" for x in ("top1", "top5")),
            f"{row['at']} px", row["licence"],
        ]
        for row in rows
    ]  # fmt: skip
    show(
        rows, (columns, cells),
        '* selected by weights="imagenet". Accuracies are in percent, as published;\n'
        '"cifar10" comes with reszoo, measured on CIFAR-10 as JPEGs.',
    )  # fmt: skip


def _described(name: str) -> dict[str, Any]:
    spec, built = SPECS[name], architecture.architecture(name)
    return {
        "name": name, "family": family_of(spec), "block": spec.block,
        "stages": "-".join(str(depth) for depth in spec.depths),
        "shortcut": spec.shortcut, "image": spec.image_size, "classes": spec.classes,
        "parameters": architecture.count_parameters(built),
        "multiply_adds": architecture.count_multiply_adds(built),
        "top1": best_top1(name), "int8_bytes": int8_bytes(name),
    }  # fmt: skip


def family_of(spec: ResNetSpec) -> str:
    """Return what people call the models of a spec's kind."""
    small = ", small images" if spec.image_size < 64 else ""
    wide = spec.width_per_group > 64 or (small and spec.widths[0] > 16)
    kinds = {
        "plain": spec.shortcut == "none",
        "ResNeXt": spec.groups > 1,
        "wide ResNet": wide,
        "pre-activation": spec.activation_order == "pre",
        "ResNet-D": spec.downsampling == "avgpool",
    }
    return next((kind for kind, fits in kinds.items() if fits), "ResNet") + small


def int8_bytes(name: str) -> int:
    """Estimate the size of a model's int8 TFLite file from its spec."""
    built = architecture.architecture(name)
    listed = architecture.convolutions(built)
    norms = architecture.standalone_norms(built)
    shapes = architecture.tensor_shapes(built)
    scaled = [shapes[f"{norm}.weight"][0] for norm in norms]
    channels = sum(each.filters for each in listed)
    kernels = sum(math.prod(each.shape) for each in listed)
    classifier = [math.prod(s) for name, s in shapes.items() if name.startswith("fc.")]
    size = kernels + _CHANNEL * channels + _LAYER * (len(listed) + len(norms))
    return size + _FLOAT * (2 * sum(scaled) + sum(classifier))
