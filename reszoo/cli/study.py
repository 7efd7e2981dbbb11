"""`reszoo study`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

import reszoo
from reszoo.cli.app import app
from reszoo.cli.options import Json, Overwrite
from reszoo.errors import UsageError
from reszoo.studies.families import FAMILIES, find_family
from reszoo.tables import print_json, print_table
from reszoo.training.recipe_table import parse_field


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
    from reszoo.studies.page import COLUMNS, PAGE, rows

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
