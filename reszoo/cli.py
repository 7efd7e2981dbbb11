"""The command line: parse, call one function, print.

Nothing heavy is imported before a command has been understood.
"""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import reszoo
from reszoo.errors import ReszooError, UnknownNameError, UsageError
from reszoo.quiet import quiet_tensorflow
from reszoo.specs import SPECS
from reszoo.tables import print_json, print_table

app = typer.Typer(
    help="ResNets for Keras: train on your images, export, and prove the files.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace what the output folder holds.")
]
Threads = Annotated[
    int | None,
    typer.Option(help="Threads of the runtime.", show_default="one for each core"),
]
Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="Folder of class folders with images (or train/, val/, test/ folders of "
        'these), or the name "digits".',
    ),
]
Model = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help="Checkpoint (.safetensors), SavedModel folder, .tflite or .onnx file.",
    ),
]


def main() -> None:
    """Run the command line and exit: 0 done, 1 a check failed, 2 wrong usage."""
    quiet_tensorflow()
    try:
        app(standalone_mode=True)
    except ReszooError as error:
        print(f"reszoo: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


@app.command("list")
def list_(
    pattern: Annotated[str, typer.Argument(help='A glob such as "resnet*".')] = "*",
    weights: Annotated[
        bool, typer.Option("--weights", help="Show the published weights instead.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the nets of the zoo, or the published weights for them."""
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
def train(
    data: Data,
    model: Annotated[str, typer.Option(help="A name that `reszoo list` shows.")],
    output: Annotated[Path, typer.Option(help="Folder for checkpoints and curves.")],
    recipe: Annotated[str, typer.Option(help="How to train.")] = "cifar",
    epochs: Annotated[
        int | None,
        typer.Option(help="Times every image is seen.", show_default="the recipe's"),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images a step.", show_default="the recipe's")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Highest rate.", show_default="the recipe's")
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="L2 on kernels.", show_default="the recipe's")
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides weights and order.")] = 0,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train a net from scratch on a folder of images.

    Example: reszoo train photos/ --model resnet20 --output runs/photos
    """
    changes = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "seed": seed,
    }
    given = {name: value for name, value in changes.items() if value is not None}
    result = reszoo.train(
        model, data, recipe=recipe, output=output, overwrite=overwrite, **given
    )
    card = reszoo.card(result.model)
    if as_json:
        print_json({"best": str(result.best), "card": card.to_json()})
        return
    print(f"Best checkpoint: {result.best} (epoch {card.provenance['epoch']})")
    print(f"Next: reszoo export {result.best} --output export --verify {data}")


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
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure accuracy and loss of a checkpoint or an exported file.

    Example: reszoo evaluate export/model.tflite photos/
    """
    metrics = reszoo.evaluate(model, data, split=split, threads=threads)
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
def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN",
            help="Weights: .safetensors, .pth/.pt/.bin/.th, .h5 of keras.applications, "
            "a folder of timm's, hf://owner/repo or a URL.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="A .safetensors file, or a folder as timm has them."
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="The net, where the file leaves it open.", show_default="told"
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Turn a checkpoint into one that reszoo, torchvision and timm load.

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
    print(f"{card.architecture.spec}: {report}. Written to {written}")


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


def _print_weights(names: list[str], as_json: bool) -> None:
    from reszoo.checkpoints.published import table_rows

    rows = [row for row in table_rows() if row["net"] in names]
    if as_json:
        print_json(rows)
        return
    columns = ["net", "weights", "top-1", "top-5", "at", "licence"]
    print_table(
        columns,
        [
            [
                row["net"],
                row["weights"] + (" *" if row["default"] else ""),
                f"{row['top1']:.2f}",
                f"{row['top5']:.2f}",
                f"{row['at']} px",
                row["licence"],
            ]
            for row in rows
        ],
    )
    print('* weights="imagenet". Accuracies are the publishers\', in percent.')


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
