"""`reszoo evaluate` and `reszoo predict`: ask any checkpoint or file."""

from pathlib import Path
from typing import Annotated

import typer

import reszoo
from reszoo.cli.app import app
from reszoo.cli.options import BadImages, Data, Json, Model, Threads
from reszoo.tables import print_json, print_table


@app.command()
def evaluate(
    model: Model,
    data: Data,
    split: Annotated[
        str | None,
        typer.Option(
            help="train, validation, test or all.", show_default="test, else validation"
        ),
    ] = None,
    bad_images: BadImages = "error",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure accuracy and loss of a checkpoint or an exported file.

    Example: reszoo evaluate export/model.tflite photos/
    """
    metrics = reszoo.evaluate(
        model, data, split=split, bad_images=bad_images, threads=threads
    )
    if as_json:
        print_json(metrics.to_json())
        return
    row = [metrics.data, f"{metrics.images:,}", f"{metrics.top1:.2%}"]
    row += [f"{metrics.top5:.2%}", f"{metrics.loss:.4f}"]
    print_table(["data", "images", "top-1", "top-5", "loss"], [row])


@app.command()
def predict(
    model: Model,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Files.")],
    k: Annotated[int, typer.Option("--top", "-k", help="Labels an image.")] = 5,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Name what is on some images.

    Example: reszoo predict export/model.onnx cat.jpg
    """
    predictor = reszoo.Predictor(model, threads=threads)
    answers = {str(image): predictor.top(image, k) for image in images}
    if as_json:
        print_json(
            {
                image: [{"label": label, "probability": p} for label, p in top]
                for image, top in answers.items()
            }
        )
        return
    rows = [
        [image if not place else "", label, f"{probability:.2%}"]
        for image, top in answers.items()
        for place, (label, probability) in enumerate(top)
    ]
    print_table(["image", "label", "probability"], rows)
