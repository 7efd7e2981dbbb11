"""The commands on model files: export, verify, inspect, benchmark, evaluate, ..."""

from pathlib import Path
from typing import Annotated, Any

import typer

import reszoo
from reszoo.cli.options import BadImages, Data, Json, Model, Overwrite, Threads, app
from reszoo.console import print_json, print_table
from reszoo.errors import UsageError


@app.command()
def export(
    model: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A .safetensors checkpoint.")
    ],
    output: Annotated[Path, typer.Option(help="Folder to make.")],
    formats: Annotated[
        str,
        typer.Option(
            help="Names with commas between: saved_model, tflite, tflite-fp16, "
            "tflite-dynamic, tflite-int8, tflite-int16x8, onnx, onnx-fp16, onnx-int8; "
            "or all, mobile, server, web."
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
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="N|dynamic",
            help="Images a call.",
            show_default="1 for TFLite, dynamic for the others",
        ),
    ] = None,
    input_size: Annotated[
        int | None,
        typer.Option(help="Pixels a side.", show_default="the checkpoint's"),
    ] = None,
    layout: Annotated[str, typer.Option(help="nhwc, or nchw for ONNX.")] = "nhwc",
    integer_io: Annotated[
        bool,
        typer.Option("--integer-io", help="tflite-int8: uint8 probabilities as well."),
    ] = False,
    outputs: Annotated[
        str | None,
        typer.Option(
            help="The only answer to give: probabilities, logits or features.",
            show_default="probabilities for TFLite, and logits for the others",
        ),
    ] = None,
    version: Annotated[
        int, typer.Option(help="Number of the SavedModel's folder, for TF Serving.")
    ] = 1,
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
        batch=_images_a_call(batch),
        input_size=input_size,
        layout=layout,  # type: ignore[arg-type]
        integer_io=integer_io,
        outputs=outputs,  # type: ignore[arg-type]
        version=version,
        overwrite=overwrite,
    )
    _print_manifest(manifest, as_json)


def _images_a_call(text: str | None) -> Any:
    if text is None or text == "dynamic":
        return text
    if not text.isdecimal():
        raise UsageError(f'batch must be a number or "dynamic". Received: {text!r}.')
    return int(text)


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
def inspect(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Checkpoint, SavedModel folder, .tflite or .onnx file of anybody.",
        ),
    ],
    as_json: Json = False,
) -> None:
    """Tell what a file is, from the file alone: form, labels, preprocessing, origin.

    Example: reszoo inspect export/model-int8.tflite
    """
    description = reszoo.inspect(file)
    if as_json:
        print_json(description.to_json())
    else:
        print(description.text())


@app.command()
def benchmark(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Files of one net or more.")
    ],
    threads: Threads = None,
    batch: Annotated[
        list[int] | None,
        typer.Option(help="Images a call; may be repeated.", show_default="1 and 8"),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Processes for each file.")] = 4,
    seconds: Annotated[
        float, typer.Option(help="Of calls in each process, for each batch size.")
    ] = 1.0,
    as_json: Json = False,
) -> None:
    """Measure how long files take, each in fresh processes, in turns.

    Example: reszoo benchmark export/model.tflite export/model-int8.tflite
    """
    found = reszoo.benchmark(
        files,
        threads=threads,
        batch_sizes=batch or (1, 8),
        rounds=rounds,
        seconds=seconds,
    )
    if as_json:
        print_json([each.to_json() for each in found])
        return
    from reszoo_export.benchmark import benchmark_note, benchmark_table

    print_table(*benchmark_table(found))
    print(benchmark_note(found))


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the exported files.")] = Path(
        "saved_models/demo"
    ),
    as_json: Json = False,
) -> None:
    """Show it all: fine-tune on handwritten digits, export, prove, measure."""
    from reszoo.cli.demo import run_demo

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
