"""`reszoo train`."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

import reszoo
from reszoo.cli.app import app
from reszoo.cli.options import BadImages, Data, Json, Overwrite
from reszoo.tables import print_json
from reszoo.training.recipe_table import RECIPES, parse_field

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
