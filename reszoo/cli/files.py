"""`reszoo export`, `verify` and `demo`: files and their proof."""

from pathlib import Path
from typing import Annotated, Any

import typer

import reszoo
from reszoo.cli.app import app
from reszoo.cli.options import BadImages, Json, Overwrite
from reszoo.tables import print_json, print_table


@app.command()
def export(
    model: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A .safetensors checkpoint.")
    ],
    output: Annotated[Path, typer.Option(help="Folder to make.")],
    formats: Annotated[
        str,
        typer.Option(
            help="Names with commas between: saved_model, tflite, tflite-int8, onnx."
        ),
    ] = "saved_model,tflite,onnx",
    calibration: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Images for int8: the training data."),
    ] = None,
    verify: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Images to compare the files on.",
            show_default="calibration's",
        ),
    ] = None,
    bad_images: BadImages = "error",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write SavedModel, TFLite and ONNX files and prove that they answer alike.

    Example: reszoo export runs/photos/best.safetensors --output export
    --formats tflite-int8,onnx --calibration photos/
    """
    manifest = reszoo.export(
        model,
        output,
        formats=formats,
        calibration=calibration,
        verify=verify,
        bad_images=bad_images,
        overwrite=overwrite,
    )
    _print_manifest(manifest, as_json)


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="What `reszoo export` made.")],
    as_json: Json = False,
) -> None:
    """Repeat the check of an export from its files alone.

    Example: reszoo verify export
    """
    _print_manifest(reszoo.verify(folder), as_json)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the exported files.")] = Path(
        "saved_models/demo"
    ),
    as_json: Json = False,
) -> None:
    """Show it all: train on handwritten digits, export, prove, measure."""
    from reszoo.demo import run_demo

    manifest = run_demo(output)
    _print_manifest(manifest, as_json)
    if not as_json:
        print(_NEXT.format(folder=output))


_NEXT = """\
Next:
  reszoo verify {folder}                         check the files again
  reszoo evaluate {folder}/model.onnx digits     measure one of them
  reszoo predict {folder}/model.tflite IMAGE     ask about a picture
  reszoo train FOLDER --model resnet20 --output runs/mine
                                                         train on your own images\
"""


def _print_manifest(manifest: Any, as_json: bool) -> None:
    if as_json:
        print_json({"folder": str(manifest.folder), **manifest.to_json()})
        return
    columns = ["file", "size", "accuracy", "agreement", "max difference", "latency"]
    rows = []
    for record in manifest.files:
        found, latency = record.verification, record.latency
        accuracy = "" if found.accuracy is None else f"{found.accuracy:.2%}"
        rows.append(
            [
                record.file,
                f"{record.bytes / 1000:,.0f} kB",
                accuracy,
                f"{found.agreement:.2%}",
                f"{found.max_difference:.1e}",
                f"{latency.median_ms:.2f} ms" if latency else "",
            ]
        )
    print_table(columns, rows)
    print(_footnote(manifest))


def _footnote(manifest: Any) -> str:
    first = manifest.files[0]
    found, latency = first.verification, first.latency
    on = f"{found.images:,} held-out images" if found.images else "made-up images"
    lines = f"Compared with the model on {on} and {found.synthetic} made-up ones"
    if found.model_accuracy is not None:
        lines += f" (the model's accuracy: {found.model_accuracy:.2%})"
    if latency:
        lines += f";\nlatency of one image with {latency.threads} threads"
        lines += f" on {latency.processor}"
    return f"{lines}. Folder: {manifest.folder}"
