"""`reszoo scan`, `resize`, `train` and `study`."""

import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

import reszoo
from reszoo.cli.options import BadImages, Data, Json, Overwrite, app
from reszoo.console import print_json, print_table
from reszoo.errors import UsageError
from reszoo.studies.families import FAMILIES, find_family
from reszoo.training.recipe_table import RECIPES, parse_field

Images = Annotated[
    str,
    typer.Argument(
        metavar="DATA", help="Folder of class folders, or CSV of path and label."
    ),
]


@app.command()
def scan(
    data: Images,
    as_json: Json = False,
) -> None:
    """Find unreadable and unusual images, duplicates and leaks between splits.

    Exit 1 if an image is unreadable or in more than one split.

    Example: reszoo scan photos/
    """
    report = reszoo.scan(data)
    if as_json:
        print_json(report.to_json())
    else:
        print(report)
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def resize(
    data: Images,
    output: Annotated[Path, typer.Option(help="Folder to make.")],
    side: Annotated[
        int, typer.Option(help="Short side of larger images, in pixels.")
    ] = 256,
    quality: Annotated[int, typer.Option(help="Of written JPEGs, 1 to 95.")] = 95,
    bad_images: BadImages = "error",
) -> None:
    """Write a folder of smaller images, which training reads faster.

    Example: reszoo resize photos/ --output photos-256 --side 256
    """
    result = reszoo.resize_images(
        data, output, side=side, quality=quality, bad_images=bad_images
    )
    for path, reason in result.unreadable:
        print(f"skipped {path}: {reason}", file=sys.stderr)
    print(
        f"{sum(result.images.values()):,} images, {result.bytes_before / 1e6:,.1f} MB "
        f"-> {result.bytes_after / 1e6:,.1f} MB ({result.copied:,} copied unchanged)"
    )
    runs = f"runs/{output.name}"
    following = ["reszoo", "train", str(output), "--model", "resnet18"]
    print(f"Next: {shlex.join([*following, '--output', runs])}")


_OWN = "the recipe's"
Epochs = Annotated[
    int | None, typer.Option(help="Times every image is seen.", show_default=_OWN)
]
BatchSize = Annotated[
    int | None, typer.Option(help="Images a step.", show_default=_OWN)
]


@app.command()
def train(
    data: Data,
    model: Annotated[str, typer.Option(help="A name that `reszoo list` shows.")],
    output: Annotated[
        Path, typer.Option(help="Folder for checkpoints, state, curves and report.")
    ],
    weights: Annotated[
        str | None,
        typer.Option(
            help='What to start from: "imagenet", another published name (`reszoo list '
            "--weights`), a checkpoint's path, hf://owner/repo or a URL.",
            show_default="fresh",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help=f"How to train: {', '.join(RECIPES)}.",
            show_default="finetune with weights, else cifar",
        ),
    ] = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Highest rate.", show_default=_OWN)
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Decides fresh weights and order.", show_default=_OWN),
    ] = None,
    fields: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Any field of the recipe, as often as needed: --set mixup=0.2 "
            "--set freeze=stages:2 --set ema=none.",
        ),
    ] = None,
    bad_images: BadImages = "skip",
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the run in the output folder."),
    ] = False,
    save_every: Annotated[
        float, typer.Option(help="Seconds between two states within an epoch.")
    ] = 300.0,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="mirrored: spread each batch over this machine's GPUs; multiworker: "
            "over the processes that TF_CONFIG names, each running this command.",
            show_default="one device",
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train a net on a folder of images, from published weights or from scratch.

    Example: reszoo train photos/ --model resnet18 --weights imagenet
    --output runs/photos
    """
    changes: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
    }
    given = {name: value for name, value in changes.items() if value is not None}
    given |= dict(parse_field(text) for text in fields or ())
    result = reszoo.train(
        model,
        data,
        recipe=recipe,
        weights=weights,
        output=output,
        resume=resume,
        overwrite=overwrite,
        bad_images=bad_images,
        save_every=save_every,
        strategy=strategy,
        **given,
    )
    card = reszoo.card(result.model)
    if as_json:
        print_json({"best": str(result.best), "card": card.to_json()})
        return
    if result.best is None:
        # Of several workers the first one tells.
        return
    print(f"Best checkpoint: {result.best} (epoch {card.provenance['epoch']})")
    print(f"Look at: {result.report}")
    print(f"Next: {shlex.join(result.export_command)}")


@app.command()
def study(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help='Images with a test split, as for `reszoo train`; or "digits".',
        ),
    ] = "digits",
    output: Annotated[
        Path, typer.Option(help="Folder for study.json, study.html and the plots.")
    ] = Path("study"),
    family: Annotated[
        str,
        typer.Option(
            help="; ".join(f"{row.name}: {row.title}" for row in FAMILIES.values())
            + "."
        ),
    ] = "cifar",
    layers: Annotated[
        str | None,
        typer.Option(
            help="Depths to compare, with commas between.",
            show_default="; ".join(
                f"{row.name}: {','.join(map(str, row.default_layers))}"
                for row in FAMILIES.values()
            ),
        ),
    ] = None,
    shortcuts: Annotated[
        str,
        typer.Option(
            help="Kinds to compare: none (plain), identity (option A), projection (B), "
            "projection-all (C)."
        ),
    ] = "none,identity",
    seeds: Annotated[int, typer.Option(help="Beginnings of each net.")] = 3,
    seed: Annotated[int, typer.Option(help="The first of them.")] = 0,
    size: Annotated[
        int | None,
        typer.Option(help="Side of the images.", show_default="8 for digits, else 32"),
    ] = None,
    recipe: Annotated[str, typer.Option(help="How all of them train.")] = (
        "he2015-cifar"
    ),
    fields: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Any field of the recipe, as often as needed: --set steps=2000.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the study in the output folder."),
    ] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Show what depth does to nets with shortcuts and without.

    Example: reszoo study; reszoo study --family dense --output study-dense
    """
    chosen = find_family(family)
    depths = chosen.default_layers if layers is None else _numbers(layers)
    kinds = tuple(name.strip() for name in shortcuts.split(",") if name.strip())
    changes = dict(parse_field(text) for text in fields or ())
    # Before TensorFlow is loaded, which takes seconds.
    chosen.nets(depths, kinds)
    result = reszoo.study(
        family,
        data,
        layers=depths,
        shortcuts=kinds,
        seeds=seeds,
        seed=changes.pop("seed", seed),
        size=size,
        recipe=recipe,
        output=output,
        resume=resume,
        overwrite=overwrite,
        **changes,
    )
    from reszoo.report.study import COLUMNS, PAGE, rows

    if as_json:
        found = {
            "conclusion": result.conclusion,
            "nets": [
                {
                    **asdict(net),
                    "training_error": asdict(result.training_error(net)),
                    "test_error": asdict(result.test_error(net)),
                }
                for net in result.nets
            ],
        }
        print_json(found)
        return
    print_table(COLUMNS, rows(result))
    for sentence in result.conclusion:
        print(sentence)
    print(f"Look at: {result.folder / PAGE}")


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(
            "--layers must be numbers with commas between, such as 20,56. "
            f"Received: {text!r}."
        ) from error
