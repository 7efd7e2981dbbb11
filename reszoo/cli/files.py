"""The commands on model files: export, verify, inspect, benchmark, evaluate, ..."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from types import NoneType
from typing import Any
from unicodedata import category, east_asian_width

import reszoo
from reszoo import defaults
from reszoo.cli.options import TyperCommand, as_json, command, numbers, show
from reszoo.console import json_text, print_text, printable, say
from reszoo.errors import UsageError
from reszoo.fields import check_range
from reszoo.files import as_path, free_folder

_SHARES = {
    "top1": "top-1", "top5": "top-5", "balanced_accuracy": "balanced",
    "macro_f1": "macro F1",
}  # fmt: skip
DEMO_FORMATS = ("saved_model", "tflite", "tflite-int8", "onnx", "onnx-int8")
# One recipe for both models of the demo, so that they differ only in their initial
# weights. Small batches, because there are few images: three epochs are about a hundred
# steps.
DEMO_RECIPE: dict[str, Any] = {
    "recipe": "cifar", "epochs": 3, "batch_size": 32, "learning_rate": 0.05,
    "weight_decay": 1e-3,
}  # fmt: skip
# Classes that `evaluate` prints.
_CLASSES = 30

_HEADER = ("image", "label", "probability")
# Columns of labels; longer ones push the probability to the right.
_LONGEST = 40
Row = Mapping[str, Any]  # of `reszoo_export.batch`


class _ExportCommand(TyperCommand):
    """Lets `--integer-io` stand alone, which Typer's options cannot."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for place in reversed(range(len(args))):
            following = args[place + 1 : place + 2]
            if args[place] == "--integer-io" and following not in (["uint8"], ["int8"]):
                args.insert(place + 1, "uint8")
        return super().parse_args(ctx, args)


@command(cls=_ExportCommand)
def export(
    model: Path, *, output: Path, formats: str = ",".join(defaults.FORMATS),
    calibration: str | None = None, verify: str | None = None,
    bad_images: str = defaults.BAD_IMAGES, batch: str | None = None,
    input_size: str | None = None, layout: str = "nhwc", input_dtype: str | None = None,
    opset: int | None = None, integer_io: str | None = None, outputs: str | None = None,
    version: int = defaults.SAVED_MODEL_VERSION, overwrite: bool = False,
) -> None:  # fmt: skip
    """Write SavedModel, TFLite and ONNX files and verify them.

    Each file runs in its own runtime and must have the same outputs as the model.

    Example: reszoo export runs/photos/best.safetensors --output export
    --formats tflite-int8,onnx --calibration photos/

    Args:
        model (CHECKPOINT): Checkpoint (.safetensors).
        formats: Comma-separated formats: saved_model, tflite, tflite-fp16,
            tflite-dynamic, tflite-int8, tflite-int16x8, onnx, onnx-fp16, onnx-int8; or
            a group: all, mobile, server, web.
        calibration (DATA, default none): Images to calibrate int8 formats with; the
            training data.
        verify (DATA, default those of --calibration): Images to compare each file with
            the model on.
        batch (N|dynamic, default 1 for TFLite, dynamic for the others): Batch size of
            the file's input.
        input_size (PIXELS, default the checkpoint's): Height and width of the input,
            such as 224 or 64,96.
        layout: Axes of the input: nhwc, or nchw (ONNX only).
        input_dtype (default uint8): Pixels of ONNX files, 0 to 255: uint8 or float32.
        opset (default 17): Version of the operators of ONNX files: 13 to 18 (int8: 13
            to 17).
        integer_io ([uint8|int8], default uint8 pixels, float32 probabilities): Integers
            alone, in and out as well (tflite-int8 only): uint8, or int8.
        outputs (default probabilities for TFLite, both logits and probabilities for the
            others): Give one output only: probabilities, logits or features; or
            cam: class activation maps besides logits and probabilities.
        version: Version of the SavedModel, as TF Serving counts them.
    """
    arguments = dict(locals())
    expected = {"batch": 'a number or "dynamic"', "input_size": "224 or 64,96"}
    for name, what in expected.items():
        text = arguments[name]
        if text is not None and (name, text) != ("batch", "dynamic"):
            found = numbers(text, f"{name} must be {what}")
            arguments[name] = found if found[1:] else found[0]
    _show_manifest(reszoo.export(**arguments))


@command()
def calibrate(
    model: Path,
    data: str,
    *,
    keep: float = defaults.KEEP,
    output: Path | None = None,
    bad_images: str = defaults.BAD_IMAGES,
) -> None:
    """Measure the temperature of calibrated probabilities, and thresholds of "unknown".

    One half of the validation split sets them, the other measures the calibration
    error. They are stored in the checkpoint's card.

    Example: reszoo calibrate runs/photos/best.safetensors photos/

    Args:
        model (CHECKPOINT): Checkpoint (.safetensors), or the folder of a run.
        keep: Share of known images, in 0 to 1, that are not answered with "unknown".
        output (default replace the given one): Checkpoint to write.
    """
    found = reszoo.calibrate(**locals())
    text = partial(_rendered, "calibrated_text.j2", found=found, path=output or model)
    show(asdict(found), text)


@command()
def verify(folder: Path, *, min_accuracy: float | None = None) -> None:
    """Verify an export again, from its folder alone.

    Example: reszoo verify export --min-accuracy 0.9

    Args:
        folder (FOLDER): Folder that `reszoo export` wrote.
    """
    check_range("--min-accuracy", min_accuracy, "[0, 1]", float, NoneType)
    manifest = reszoo.verify(folder)
    _show_manifest(manifest)
    measured = {each.file: each.verification.accuracy for each in manifest.files}
    _require_accuracy(measured, min_accuracy)


def _require_accuracy(
    measured: Mapping[str, float | None], least: float | None
) -> None:
    """Exit with 1 where an accuracy is below `least`, or was not measured."""
    if least is None:
        return
    if missing := [name for name, accuracy in measured.items() if accuracy is None]:
        raise UsageError(
            "--min-accuracy needs accuracies, and the export has no labelled images: "
            f"export with --verify DATA. Not measured: {', '.join(missing)}."
        )
    low = {name: a for name, a in measured.items() if a is not None and a < least}
    for name, accuracy in low.items():
        say(f"{name}: top-1 {accuracy:.2%} is below --min-accuracy {least:.2%}.")
    if low:
        raise SystemExit(1)


@command()
def inspect(file: Path) -> None:
    """Describe a model file.

    Shows its format, signature, labels, preprocessing and provenance.

    Example: reszoo inspect export/model-int8.tflite

    Args:
        file (FILE): Checkpoint, SavedModel folder, .tflite or .onnx file, of any
            origin.
    """
    description = reszoo.inspect(file)
    show(description.to_json(), description.text)


@command()
def benchmark(
    files: list[Path],
    *,
    threads: int | None = None,
    batch: list[int] = list(defaults.BATCH_SIZES),  # noqa: B006
    rounds: int = defaults.ROUNDS,
    seconds: float = defaults.SECONDS,
    trust_saved_model: bool = False,
    isolated: bool = defaults.ISOLATED,
) -> None:
    """Measure the latency of model files.

    Files take turns, each time in a fresh process.

    Example: reszoo benchmark export/model.tflite export/model-int8.tflite

    Args:
        files (FILE...): Model files to compare.
        batch: Batch size to measure; may be repeated.
        rounds: Number of processes that open each file.
        seconds: Seconds to measure each batch size in each process.
    """
    arguments = dict(locals())
    found = reszoo.benchmark(batch_sizes=arguments.pop("batch"), **arguments)
    from reszoo_export.benchmark import benchmark_note, benchmark_table

    content = [each.to_json() for each in found]
    show(content, benchmark_table(found), benchmark_note(found))


@command()
def demo(*, output: Path = Path("saved_models/demo")) -> None:
    """Fine-tune on handwritten digits, export and verify.

    Example: reszoo demo

    Args:
        output: Folder for the exported files.
    """
    from reszoo_export.manifest import named_entries

    # Earlier demos are replaced, but nothing other than an export.
    free_folder(output, kind="an export", named=named_entries, overwrite=True)
    say("1/4  Fine-tune ResNet-20, pretrained on CIFAR-10, on handwritten digits.")
    model, data = "resnet20", "digits"
    placed: dict[str, Any] = {"output": "runs/demo", "overwrite": True, **DEMO_RECIPE}
    tuned = reszoo.train(model, data, weights="cifar10", **placed)
    say("2/4  Train the same model from scratch with the same recipe.")
    scratch = reszoo.train(model, data, **DEMO_RECIPE)
    models = (tuned.model, scratch.model)
    after, without = (reszoo.evaluate(each, data) for each in models)
    say(f"3/4  Evaluate both on {after.images} held-out digits:")
    say(f"     fine-tuned    top-1 {after.top1:.2%}")
    say(f"     from scratch  top-1 {without.top1:.2%}")
    gain = 100 * (after.top1 - without.top1)
    say(f"     the pretrained weights add {gain:+.2f} points")
    say("4/4  Export to SavedModel, TFLite and ONNX and verify each file.")
    manifest = reszoo.export(
        tuned.model, output, formats=DEMO_FORMATS, calibration=data, overwrite=True
    )
    _show_manifest(manifest, partial(_rendered, "demo_text.j2", folder=output))


def _rendered(template: str, **values: Any) -> str:
    # Commands that classify need no Jinja.
    from reszoo.report import page

    return page.render(template, **values)


def _show_manifest(manifest: Any, *others: Callable[[], str]) -> None:
    columns = ["file", "size", "accuracy", "agreement", "max difference", "latency"]
    rows = []
    for file in manifest.files:
        found, latency = file.verification, file.latency
        accuracy = "" if found.accuracy is None else f"{found.accuracy:.2%}"
        cells = [accuracy, f"{found.agreement:.2%}", f"{found.max_difference:.1e}"]
        size, took = f"{file.bytes / 1000:,.0f} kB", latency and latency.median_ms
        rows.append([file.file, size, *cells, f"{took:.2f} ms" if latency else ""])
    text = partial(_rendered, "exported_text.j2", manifest=manifest)
    content = {"folder": str(manifest.folder), **manifest.to_json()}
    show(content, (columns, rows), text, *others)


@command()
def evaluate(
    model: Path, data: str, *, split: str | None = None,
    bad_images: str = defaults.BAD_IMAGES, threads: int | None = None,
    trust_saved_model: bool = False, isolated: bool = defaults.ISOLATED,
    min_accuracy: float | None = None,
) -> None:  # fmt: skip
    """Measure accuracy, balanced accuracy (mean recall), macro F1 and loss.

    Example: reszoo evaluate export/model.tflite photos/

    Args:
        split (default test, else validation): Split to measure: train, validation, test
            or all.
    """
    arguments = dict(locals())
    del arguments["min_accuracy"]
    check_range("--min-accuracy", min_accuracy, "[0, 1]", float, NoneType)
    metrics = reszoo.evaluate(**arguments)
    _show_metrics(metrics)
    _require_accuracy({str(model): metrics.top1}, min_accuracy)


def _show_metrics(metrics: Any) -> None:
    from reszoo.report.page import number

    shares = [getattr(metrics, name) for name in _SHARES]
    row = [metrics.data, f"{metrics.images:,}", *(f"{share:.2%}" for share in shares)]
    columns = ["data", "images", *_SHARES.values(), "loss"]
    whole = (columns, [[*row, f"{metrics.loss:.4f}"]])
    columns = ["class", "images", "recall", "precision", "F1", "most often taken for"]
    rows = []
    for each in metrics.classes:
        shares = [number(n, ".2%") for n in (each.recall, each.precision, each.f1)]
        other = each.confused_with
        taken = "" if other is None else f"{metrics.label(other)} ({each.confused:,})"
        rows.append([metrics.label(each.index), f"{each.images:,}", *shares, taken])
    note = f"The {_CLASSES} classes of lowest recall; --json has all."
    notes = [note] if rows[_CLASSES:] else []
    show(metrics.to_json(), whole, (columns, rows[:_CLASSES]), *notes)


@command()
def predict(
    model: Path, inputs: list[str], *, output: Path | None = None,
    unknown: bool = defaults.UNKNOWN, resume: bool = False, overwrite: bool = False,
    top: int = defaults.TOP, threads: int | None = None,
    trust_saved_model: bool = False, isolated: bool = defaults.ISOLATED,
) -> None:  # fmt: skip
    """Classify images.

    Unreadable images have rows of their own, and the command then exits with 1.

    Example: reszoo predict export/model.onnx photos/ --output answers.csv

    Args:
        inputs (INPUT...): Image files, folders, globs, or CSV files that list paths in
            a column "path".
        output (default print the answers): Write a row for each image to this .csv,
            .jsonl or .parquet file.
        top: Number of labels for each image.
        unknown: Answer "unknown" to images below the threshold that the card has of
            `reszoo train` or `reszoo calibrate`.
        resume: Continue an unfinished output.
    """
    arguments = dict(locals())
    if output is not None:
        written = reszoo.predict_files(**arguments)
        content = {**asdict(written), "output": str(written.output)}
        show(content, f"{written.images:,} rows in {written.output}")
        images, unreadable = written.images, written.unreadable
    elif resume or overwrite:
        raise UsageError("--resume and --overwrite need --output FILE.")
    else:
        for name in ("inputs", "output", "resume", "overwrite"):
            del arguments[name]
        images, unreadable = _print_answers(inputs, **arguments)
    if unreadable:
        say(f"{unreadable:,} of {images:,} images are unreadable.")
        raise SystemExit(1)


def _print_answers(inputs: Sequence[str], **options: Any) -> list[int]:
    """Classify images group by group; return how many, and how many unreadable."""
    from reszoo.data.image_paths import check_inputs, iterate_paths
    from reszoo_export.batch import FileClassifier

    classify = FileClassifier(**options)
    check_inputs(inputs)
    groups = _counted(classify.groups(iterate_paths(inputs)), counts := [0, 0])
    if as_json.get():
        _print_json(chain.from_iterable(groups))
    else:
        _print_table(groups, classify.labels)
    return counts


def _counted(groups: Iterable[list[Row]], counts: list[int]) -> Iterator[list[Row]]:
    for group in groups:
        counts[0] += len(group)
        counts[1] += sum(row["error"] is not None for row in group)
        yield group


def _print_table(groups: Iterable[list[Row]], labels: Sequence[str]) -> None:
    """Print rows in columns that become wider as longer paths come."""
    path_width = _width(_HEADER[0])
    longest = max(_width(printable(label)) for label in (_HEADER[1], *labels))
    label_width = min(_LONGEST, longest)
    lines = [_HEADER]
    for group in groups:
        for row in group:
            lines += _lines(printable(row["path"]), row)
        path_width = max([path_width, *(_width(line[0]) for line in lines)])
        for path, label, probability in lines:
            path += " " * (path_width - _width(path))
            label += " " * (label_width - _width(label))
            print_text(f"{path}  {label}  {probability:>{len(_HEADER[2])}}".rstrip())
        lines = []


def _width(text: str) -> int:
    """Return the columns of a text: two of wide letters, none of marks."""
    seen = (each for each in text if category(each) not in ("Me", "Mn"))
    return sum(1 + (east_asian_width(each) in "FW") for each in seen)


def _lines(path: str, row: Row) -> Iterator[tuple[str, str, str]]:
    if row["error"] is not None:
        yield path, f"unreadable: {printable(row['error'])}", ""
        return
    for label, probability in _answers(row):
        yield path, printable(label), f"{probability:.2%}"
        path = ""


def _print_json(rows: Iterable[Row]) -> None:
    """Print one JSON object, path -> answers, as they come."""
    print("{", end="")
    for number, row in enumerate(rows):
        answer: Any = [
            {"label": label, "probability": probability}
            for label, probability in _answers(row)
        ]
        if row["error"] is not None:
            answer = {"error": row["error"]}
        entry = json_text({row["path"]: answer}).removeprefix("{").removesuffix("\n}")
        print("," if number else "", entry, sep="", end="", flush=True)
    print("\n}")


def _answers(row: Row) -> list[tuple[str, float]]:
    """Return the labels and probabilities of a row, best first."""
    values = [value for name, value in row.items() if name not in ("path", "error")]
    pairs = zip(values[::2], values[1::2], strict=True)
    return [(label, value) for label, value in pairs if label is not None]


@command()
def explain(
    model: Path, inputs: list[str], *, output: Path, label: str | None = None,
    threads: int | None = None, overwrite: bool = False,
    trust_saved_model: bool = False, isolated: bool = defaults.ISOLATED,
) -> None:  # fmt: skip
    """Show where a model looked: a class activation map on each image.

    Files must have been exported with --outputs cam.

    Example: reszoo explain runs/photos/best.safetensors cat.jpg --output maps

    Args:
        inputs (IMAGE...): Image files, folders or globs.
        label (default the predicted one): Class to show.
    """
    arguments = dict(locals())
    for name in ("inputs", "output", "overwrite"):
        del arguments[name]
    from reszoo.data.image_paths import iterate_paths

    output = as_path(output)
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output} is a file. The output of explain is a folder.")
    rows: list[dict[str, Any]] = []
    for path in iterate_paths(inputs):
        target = output / f"{Path(path).stem}.png"
        while str(target) in [row["map"] for row in rows]:
            target = target.with_stem(f"{target.stem}-2")
        if target.exists() and not overwrite:
            raise UsageError(f"{target} exists. Pass --overwrite to replace it.")
        found = reszoo.explain(image=path, **arguments)
        output.mkdir(parents=True, exist_ok=True)
        found.overlay.save(target)
        answer = {"label": found.label, "probability": found.probability}
        rows.append({"image": path, **answer, "map": str(target)})
    shown = [{**row, "probability": f"{row['probability']:.2%}"} for row in rows]
    cells = [[*row.values()] for row in shown]
    show(rows, (["image", "label", "probability", "map"], cells))
