"""`reszoo scan`, `resize`, `train` and `study`."""

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Exit, Option

import reszoo
from reszoo import defaults
from reszoo.cli.options import (
    BadImages,
    Data,
    Fields,
    Json,
    Overwrite,
    Resume,
    app,
    given,
)
from reszoo.console import print_json, print_table, print_text, say
from reszoo.errors import UsageError
from reszoo.studies.results import FAMILIES, find_family
from reszoo.training.recipe_table import RECIPES, parse_field

_RECIPES = "the recipe's"
# fmt: off
Images = Annotated[
    str,
    Argument(metavar="DATA", help="Folder of class folders, or CSV of path and label."),
]
ResizedFolder = Annotated[Path, Option(help="Folder to write.")]
ShortSide = Annotated[int, Option(help="Short side of larger images, in pixels.")]
Quality = Annotated[int, Option(help="Quality of written JPEGs, 1 to 95.")]
ModelName = Annotated[
    str, Option(help="Name of the model; `reszoo list` shows all.")
]
RunFolder = Annotated[
    Path, Option(help="Folder for checkpoints, state, curves and report.")
]
Weights = Annotated[str | None, Option(
    help='Weights to start from: "imagenet", another published name (`reszoo '
    "list --weights`), a checkpoint, hf://owner/repo or a URL.",
    show_default="random",
)]
RecipeName = Annotated[str | None, Option(
    help=f"Training recipe: {', '.join(RECIPES)}.",
    show_default="finetune with weights, else cifar",
)]
Epochs = Annotated[int | None, Option(
    help="Number of epochs; finetune begins with two of the head alone besides.",
    show_default=_RECIPES,
)]
Size = Annotated[str | None, Option(
    metavar="PIXELS", show_default="the model's",
    help="Height and width of the images, such as 224 or 64,96.",
)]
BatchSize = Annotated[
    int | None, Option(help="Images per step.", show_default=_RECIPES)
]
LearningRate = Annotated[
    float | None, Option(help="Peak learning rate.", show_default=_RECIPES)
]
Seed = Annotated[int | None, Option(
    help="Seed of initial weights, order of images and augmentation.",
    show_default=_RECIPES,
)]
SaveEvery = Annotated[
    float, Option(help="Seconds between saved states within an epoch.")
]
Strategy = Annotated[str | None, Option(
    help="Distribute each batch. mirrored: over the GPUs of this machine; "
    "multiworker: over the processes in TF_CONFIG, each running this command.",
    show_default="one device",
)]
StudyData = Annotated[str, Argument(
    metavar="DATA",
    help='Images with a test split, as for `reszoo train`; or "digits".',
)]
StudyFolder = Annotated[
    Path, Option(help="Folder for study.json, study.html and the plots.")
]
Family = Annotated[str, Option(
    help="Models to compare. "
    + "; ".join(f"{row.name}: {row.title}" for row in FAMILIES.values())
    + "."
)]
Layers = Annotated[str | None, Option(
    help="Comma-separated depths to compare.",
    show_default="; ".join(
        f"{row.name}: {','.join(map(str, row.default_layers))}"
        for row in FAMILIES.values()
    ),
)]
Shortcuts = Annotated[str | None, Option(
    help="Comma-separated shortcuts to compare: none (plain), identity (option "
    "A), projection (B), projection-all (C), pre-activation.",
    show_default="none,identity; preact: all three",
)]
Seeds = Annotated[int, Option(help="Number of seeds for each model.")]
FirstSeed = Annotated[int, Option(help="First seed; the others follow.")]
Side = Annotated[int | None, Option(
    help="Height and width of the images, in pixels.",
    show_default="8 for digits, else 32",
)]
StudyRecipe = Annotated[str, Option(help="Training recipe of all models.")]
# fmt: on


@app.command()
def scan(data: Images, as_json: Json = False) -> None:
    """Find unreadable and unusual images, duplicates and leaks between splits.

    Exit 1 if an image is unreadable or in more than one split.

    Example: reszoo scan photos/
    """
    report = reszoo.scan(data)
    if as_json:
        print_json(report.to_json())
    else:
        print_text(str(report))
    if not report.ok:
        raise Exit(1)


@app.command()
def resize(
    data: Images,
    output: ResizedFolder,
    side: ShortSide = defaults.RESIZE_SIDE,
    quality: Quality = defaults.JPEG_QUALITY,
    bad_images: BadImages = defaults.BAD_IMAGES,
) -> None:
    """Write a folder of smaller images, which training reads faster.

    Example: reszoo resize photos/ --output photos-256 --side 256
    """
    result = reszoo.resize_images(**given(locals()))
    for path, reason in result.unreadable:
        say(f"skipped {path}: {reason}")
    print_text(
        f"{sum(result.images.values()):,} images, {result.bytes_before / 1e6:,.1f} MB "
        f"-> {result.bytes_after / 1e6:,.1f} MB ({result.copied:,} copied unchanged)"
    )
    runs = f"runs/{output.name}"
    following = ["reszoo", "train", str(output), "--model", "resnet18"]
    print_text(f"Next: {shlex.join([*following, '--output', runs])}")


@app.command()
def train(
    data: Data,
    model: ModelName,
    output: RunFolder,
    weights: Weights = None,
    recipe: RecipeName = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    learning_rate: LearningRate = None,
    seed: Seed = None,
    size: Size = None,
    fields: Fields = None,
    bad_images: BadImages = defaults.TRAINING_BAD_IMAGES,
    resume: Resume = False,
    save_every: SaveEvery = defaults.SAVE_EVERY,
    strategy: Strategy = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train a model on your images.

    Starts from published weights, a checkpoint or random weights.

    Example: reszoo train photos/ --model resnet18 --weights imagenet
    --output runs/photos
    """
    arguments = given(locals())
    chosen = {name: value for name, value in arguments.items() if value is not None}
    changes = _recipe_fields(chosen.pop("fields", None))
    if size is not None:
        chosen["size"] = parse_field(f"train_size={size}")[1]
    result = reszoo.train(**chosen | changes)
    card = reszoo.card(result.model)
    if as_json:
        print_json({"best": str(result.best), "card": card.to_json()})
        return
    if result.best is None:
        # Of several workers only the first writes and reports.
        return
    print_text(
        f"Best checkpoint: {result.best} (epoch {card.provenance['epoch']})\n"
        f"Report: {result.report}\n"
        f"Next: {shlex.join(result.export_command)}"
    )


@app.command()
def study(
    data: StudyData = defaults.STUDY_DATA,
    output: StudyFolder = Path(defaults.STUDY_OUTPUT),
    family: Family = defaults.STUDY_FAMILY,
    layers: Layers = None,
    shortcuts: Shortcuts = None,
    seeds: Seeds = defaults.STUDY_SEEDS,
    seed: FirstSeed = 0,
    size: Side = None,
    recipe: StudyRecipe = defaults.STUDY_RECIPE,
    fields: Fields = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Compare deep networks with and without shortcuts.

    Trains each at several depths and from several seeds.

    Example: reszoo study; reszoo study --family preact --output study-preact
    """
    arguments = given(locals())
    chosen = find_family(family)
    depths = None if layers is None else _numbers(layers)
    kinds = None
    if shortcuts is not None:
        kinds = tuple(name.strip() for name in shortcuts.split(",") if name.strip())
    changes = _recipe_fields(arguments.pop("fields"))
    # Before TensorFlow is loaded, which takes seconds.
    chosen.variants(depths, kinds)
    arguments |= {"layers": depths, "shortcuts": kinds, **changes}
    result = reszoo.study(**arguments)
    from reszoo.studies.report import COLUMNS, PAGE, rows

    if as_json:
        models = [
            {
                **asdict(variant),
                "training_error": asdict(result.training_error(variant)),
                "test_error": asdict(result.test_error(variant)),
            }
            for variant in result.variants
        ]
        print_json({"conclusion": result.conclusion, "models": models})
        return
    print_table(COLUMNS, rows(result))
    print_text("\n".join([*result.conclusion, f"Report: {result.folder / PAGE}"]))


def _recipe_fields(texts: list[str] | None) -> dict[str, Any]:
    return dict(parse_field(text) for text in texts or ())


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(
            "--layers must be comma-separated numbers such as 20,56. "
            f"Received: {text!r}."
        ) from error
