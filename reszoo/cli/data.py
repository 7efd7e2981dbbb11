"""`reszoo scan` and `reszoo shard`: images before training."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

import reszoo
from reszoo.cli.app import app
from reszoo.cli.options import BadImages, Data, Json, Overwrite
from reszoo.tables import print_json


@app.command()
def scan(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA", help="Folder of class folders, or CSV of path and label."
        ),
    ],
    as_json: Json = False,
) -> None:
    """Look for unreadable, odd, doubled and leaking images; exit 1 if there are any.

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
def shard(
    data: Data,
    output: Annotated[Path, typer.Option(help="Folder to make.")],
    side: Annotated[int, typer.Option(help="Short side, in pixels.")] = 256,
    quality: Annotated[int, typer.Option(help="Of JPEG, 1 to 100.")] = 95,
    bad_images: BadImages = "error",
    overwrite: Overwrite = False,
) -> None:
    """Write images into few large files (TFRecord), smaller, for faster training.

    Example: reszoo shard photos/ --output shards/photos --side 256
    """
    result = reszoo.write_shards(
        data,
        output,
        side=side,
        quality=quality,
        bad_images=bad_images,
        overwrite=overwrite,
    )
    for path, reason in result.unusable:
        print(f"skipped {path}: {reason}", file=sys.stderr)
    print(
        f"{sum(result.images.values()):,} images in {result.files:,} files, "
        f"{result.bytes / 1e6:,.1f} MB ({result.copied:,} copied as they were)"
    )
    runs = f"runs/{output.name}"
    following = ["reszoo", "train", str(output), "--model", "resnet18"]
    print(f"Next: {shlex.join([*following, '--output', runs])}")
