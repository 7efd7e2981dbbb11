"""`reszoo scan`, `resize`, `train` and `study`."""

import shlex
from dataclasses import asdict
from functools import partial
from pathlib import Path

import reszoo
from reszoo import defaults
from reszoo.cli.options import command, numbers, show
from reszoo.console import say
from reszoo.studies.results import FAMILIES, find_family
from reszoo.training.recipes import RECIPES, parse_field

_IMAGES = "Folder of class folders, or CSV of path and label."


@command(images=_IMAGES)
def scan(data: str) -> None:
    """Find unreadable and unusual images, duplicates and leaks between splits.

    Exit 1 if an image is unreadable or in more than one split.

    Example: reszoo scan photos/

    Args:
        data (DATA): {images}
    """
    report = reszoo.scan(data)
    show(report.to_json(), partial(str, report))
    if not report.ok:
        raise SystemExit(1)


@command(images=_IMAGES)
def resize(
    data: str,
    *,
    output: Path,
    side: int = defaults.RESIZE_SIDE,
    quality: int = defaults.JPEG_QUALITY,
    bad_images: str = defaults.BAD_IMAGES,
) -> None:
    """Write a folder of smaller images, which training reads faster.

    Example: reszoo resize photos/ --output photos-256 --side 256

    Args:
        data (DATA): {images}
        side: Short side of larger images, in pixels.
        quality: Quality of written JPEGs, 1 to 95.
    """
    result = reszoo.resize_images(**locals())
    for path, reason in result.unreadable:
        say(f"skipped {path}: {reason}")
    runs = f"runs/{output.name}"
    following = ["reszoo", "train", str(output), "--model", "resnet18"]
    show(
        {**asdict(result), "folder": str(result.folder)},
        f"{sum(result.images.values()):,} images, {result.bytes_before / 1e6:,.1f} MB "
        f"-> {result.bytes_after / 1e6:,.1f} MB ({result.copied:,} copied unchanged)\n"
        f"Next: {shlex.join([*following, '--output', runs])}",
    )


@command(recipes=", ".join(RECIPES))
def train(
    data: str, *, model: str, output: Path, weights: str | None = None,
    match: str | None = None, recipe: str | None = None, epochs: int | None = None,
    batch_size: int | None = None, learning_rate: float | None = None,
    seed: int | None = None, size: str | None = None, cache_features: int | None = None,
    fields: list[str] | None = None, bad_images: str = defaults.TRAINING_BAD_IMAGES,
    resume: bool = False, save_every: float = defaults.SAVE_EVERY,
    strategy: str | None = None, overwrite: bool = False,
) -> None:  # fmt: skip
    """Train a model on your images.

    Starts from published weights, a checkpoint or random weights.

    Example: reszoo train photos/ --model resnet18 --weights imagenet
    --output runs/photos

    Args:
        model: Name of the model; `reszoo list` shows all.
        output: Folder for checkpoints, state, curves and report.
        weights (default random): Weights to start from: "imagenet", another published
            name (`reszoo list --weights`), a checkpoint, hf://owner/repo or a URL.
        recipe (default finetune with weights, else cifar): Training recipe: {recipes}.
        epochs (default the recipe's): Number of epochs; finetune begins with two of the
            head alone besides.
        batch_size (default the recipe's): Images per step.
        learning_rate (default the recipe's): Peak learning rate.
        seed (default the recipe's): Seed of initial weights, order of images and
            augmentation.
        size (PIXELS, default the model's): Height and width of the images, such as 224
            or 64,96.
        cache_features (VARIANTS, default none): Compute a frozen backbone's features
            once, of so many augmented variants of each image; 1 is without.
        save_every: Seconds between saved states within an epoch.
        strategy (default one device): Distribute each batch. mirrored: over the GPUs of
            this machine; multiworker: over the processes in TF_CONFIG, each running
            this command.
    """
    arguments = dict(locals())
    chosen = {name: value for name, value in arguments.items() if value is not None}
    changes = dict(map(parse_field, chosen.pop("fields", ())))
    if size is not None:
        chosen["size"] = parse_field(f"train_size={size}")[1]
    result = reszoo.train(**chosen | changes)
    card = reszoo.card(result.model)
    told = (
        f"Best checkpoint: {result.best} (epoch {card.provenance['epoch']})\n"
        f"Report: {result.report}\n"
        f"Next: {shlex.join(result.export_command)}"
    )
    # Of several workers only the first writes and reports.
    reported = [told] if result.best else []
    show({"best": str(result.best), "card": card.to_json()}, *reported)


@command(
    families="; ".join(f"{row.name}: {row.title}" for row in FAMILIES.values()),
    layers="; ".join(
        f"{row.name}: {','.join(map(str, row.default_layers))}"
        for row in FAMILIES.values()
    ),
)
def study(
    data: str = defaults.STUDY_DATA, *, output: Path = Path(defaults.STUDY_OUTPUT),
    family: str = defaults.STUDY_FAMILY, layers: str | None = None,
    shortcuts: str | None = None, seeds: int = defaults.STUDY_SEEDS, seed: int = 0,
    size: int | None = None, recipe: str = defaults.STUDY_RECIPE,
    fields: list[str] | None = None, resume: bool = False, overwrite: bool = False,
) -> None:  # fmt: skip
    """Compare deep networks with and without shortcuts.

    Trains each at several depths and from several seeds.

    Example: reszoo study; reszoo study --family preact --output study-preact

    Args:
        data (DATA): Images with a test split, as for `reszoo train`; or "digits".
        output: Folder for study.json, study.html and the plots.
        family: Models to compare. {families}.
        layers (default {layers}): Comma-separated depths to compare.
        shortcuts (default none,identity; preact: all three): Comma-separated shortcuts
            to compare: none (plain), identity (option A), projection (B),
            projection-all (C), pre-activation.
        seeds: Number of seeds for each model.
        seed: First seed; the others follow.
        size (default 8 for digits, else 32): Height and width of the images, in pixels.
        recipe: Training recipe of all models.
    """
    arguments = dict(locals())
    names = [each.strip() for each in (shortcuts or "").split(",")]
    kinds = None if shortcuts is None else tuple(filter(None, names))
    expected = "--layers must be comma-separated numbers such as 20,56"
    depths = None if layers is None else tuple(numbers(layers, expected))
    arguments |= map(parse_field, arguments.pop("fields") or ())
    # Before TensorFlow is loaded, which takes seconds.
    find_family(family).variants(depths, kinds)
    result = reszoo.study(**arguments | {"layers": depths, "shortcuts": kinds})
    from reszoo.studies.report import COLUMNS, PAGE, rows

    models = [
        {
            **asdict(variant),
            "training_error": asdict(result.training_error(variant)),
            "test_error": asdict(result.test_error(variant)),
        }
        for variant in result.variants
    ]
    told = "\n".join([*result.conclusion, f"Report: {result.folder / PAGE}"])
    content = {"conclusion": result.conclusion, "models": models}
    show(content, (COLUMNS, rows(result)), told)
