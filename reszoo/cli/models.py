"""`reszoo list` and `reszoo convert`."""

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

import reszoo
from reszoo.cli.options import Json, Overwrite, app
from reszoo.console import print_json, print_table, print_text, printable
from reszoo.errors import UnknownNameError, UsageError
from reszoo.specs import SPECS

# fmt: off
Pattern = Annotated[
    str, Argument(metavar="PATTERN", help='Names to list, such as "resnet*".')
]
Weights = Annotated[
    bool, Option("--weights", help="List published weights instead.")
]
Source = Annotated[str, Argument(
    metavar="IN",
    help="Checkpoint: .safetensors, .pth, .pt, .bin, .th, .h5 of "
    "keras.applications, a timm folder, hf://owner/repo or a URL.",
)]
Output = Annotated[
    Path, Argument(metavar="OUT", help="A .safetensors file, or a folder for timm.")
]
ModelName = Annotated[str | None, Option(
    help="Name of the model, if its tensors fit several.", show_default="inferred"
)]
# fmt: on


@app.command("list")
def list_(
    pattern: Pattern = "*", weights: Weights = False, as_json: Json = False
) -> None:
    """List the models, or their published weights.

    Example: reszoo list "resnet*" --weights
    """
    names = reszoo.list_models(pattern)
    if not names:
        raise UnknownNameError("model", pattern, SPECS)
    if weights:
        _print_weights(names, as_json)
        return
    if as_json:
        print_json([_described(name) for name in names])
        return
    rows = [[str(value) for value in _described(name).values()] for name in names]
    print_table(list(_described(names[0])), rows)


@app.command()
def convert(
    source: Source,
    output: Output,
    model: ModelName = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Convert a checkpoint for reszoo, torchvision and timm.

    Example: reszoo convert resnet50-11ad3fa6.pth resnet50.safetensors
    """
    if output.exists() and not overwrite:
        raise UsageError(f"{output} exists. Pass --overwrite to replace it.")
    built = reszoo.load(source, model)
    written, report = reszoo.save(built, output), reszoo.load_report(built)
    card = reszoo.card(built)
    if as_json:
        print_json({"output": str(written), "card": card.to_json()})
        return
    print_text(printable(f"{card.architecture.name}: {report}. Written to {written}"))


def _print_weights(names: list[str], as_json: bool) -> None:
    from reszoo.weights.location import bundled_rows
    from reszoo.weights.published import table_rows

    rows = [row for row in bundled_rows() + table_rows() if row["model"] in names]
    if as_json:
        print_json(rows)
        return
    columns = ["model", "weights", "top-1", "top-5", "at", "licence"]
    cells = [
        [
            row["model"], row["weights"] + (" *" if row["default"] else ""),
            f"{row['top1']:.2f}", f"{row['top5']:.2f}", f"{row['at']} px",
            row["licence"],
        ]
        for row in rows
    ]  # fmt: skip
    print_table(columns, cells)
    print_text(
        '* selected by weights="imagenet". Accuracies are in percent, as published;'
    )
    print_text('"cifar10" comes with reszoo, measured on CIFAR-10 as JPEGs.')


def _described(name: str) -> dict[str, Any]:
    spec = SPECS[name]
    return {
        "name": name,
        "block": spec.block,
        "stages": "-".join(str(depth) for depth in spec.depths),
        "shortcut": spec.shortcut,
        "image": spec.image_size,
        "classes": spec.classes,
    }
