"""`reszoo.export`: write a model in several formats, and verify every file."""

import itertools
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, NoReturn

import keras

from reszoo import defaults
from reszoo.cards import Card
from reszoo.console import Progress
from reszoo.data.sources import Data, Source, open_for
from reszoo.environment import check_backend
from reszoo.errors import ExportError, ReszooError, UsageError, VerificationError
from reszoo.files import (
    StrPath,
    as_path,
    atomic_folder,
    disk_error_of,
    free_folder,
    write_text,
)
from reszoo.preprocessing import Preprocessing, Size
from reszoo.zoo import load
from reszoo_export.benchmark import measure_files
from reszoo_export.formats import (
    CAM,
    RUNTIMES,
    ExportOptions,
    Format,
    IntegerIO,
    Outputs,
    check_options,
    find_formats,
)
from reszoo_export.manifest import (
    REFERENCE_FILE,
    FileRecord,
    Manifest,
    Verification,
    is_export,
    named_entries,
    size_and_hash,
)
from reszoo_export.metadata import LABELS_FILE, card_files
from reszoo_export.quantization import ranges
from reszoo_export.quantization.ranges import Calibration, draw_calibration
from reszoo_export.report import write_report
from reszoo_export.serving import Serving, make_serving, source_answers
from reszoo_export.snippets import write_snippets
from reszoo_export.verification.divergence import first_divergence
from reszoo_export.verification.reference import Reference, make_reference
from reszoo_export.verification.verify import (
    FileVerification,
    problem_list,
    verify_file,
)


def export(
    model: "keras.Model | StrPath", output: StrPath, *,
    formats: Sequence[str] | str = defaults.FORMATS, calibration: Data | None = None,
    verify: Data | None = None, bad_images: str = defaults.BAD_IMAGES,
    labels: Sequence[str] | None = None, preprocessing: Preprocessing | None = None,
    batch: int | Literal["dynamic"] | None = None, input_size: Size | None = None,
    layout: Literal["nhwc", "nchw"] = "nhwc",
    input_dtype: Literal["uint8", "float32"] | None = None, opset: int | None = None,
    integer_io: IntegerIO | None = None, outputs: Outputs | None = None,
    version: int = defaults.SAVED_MODEL_VERSION, overwrite: bool = False,
) -> Manifest:  # fmt: skip
    """Export a model and verify that every file gives the model's outputs.

    Each file is opened in its own runtime and compared with the model, on the
    evaluation split of `verify` and on synthetic images. The folder is created only
    when every file is verified. Otherwise the files are kept in `<output>.failed` (or
    the next free `<output>.failed-2`), those that failed with the suffix `.failed`,
    and an export at `output` stays as it is.

    Args:
        model: A model from reszoo, a checkpoint, or any functional or sequential Keras
            model from one RGB or grey image to one vector of class scores: logits, or
            probabilities of a softmax or sigmoid at the end.
        output: The folder to create.
        formats: Names of formats; `reszoo export --help` lists them.
        calibration: Images for the int8 formats, as `train` takes data; the training
            split is used.
        verify: Images to compare on; `calibration` if None. Without either, only
            synthetic images are compared.
        bad_images: "error" stops at the first unreadable image of the data, "skip"
            leaves such images out, "recover" decodes truncated JPEGs as far as they go.
        labels: Names of the classes in order, where the model has none.
        preprocessing: How images were shown to a Keras model that reszoo did not build;
            needed where its layers do not tell it.
        batch: Images in a call: a number, or "dynamic" for any number; None is 1 for
            TFLite and any number for the others.
        input_size: Height and width of the image in pixels, a number for a square;
            None is the model's.
        layout: Order of the image's axes, "nhwc" or "nchw" (ONNX only).
        input_dtype: Of the pixels of ONNX files, "uint8" or "float32"; None is uint8.
            Some programs (ncnn's converter, OpenCV's helpers) want float32.
        opset: Version of the operators of ONNX files: 13 to 18, of int8 files 13 to
            17; None is 17.
        integer_io: Of tflite-int8: "uint8" or "int8" for pixels, operators and
            probabilities (in steps of 1/256) that are all integers, for accelerators
            and microcontrollers. int8 is uint8 less 128. None is uint8 pixels and
            float32 probabilities.
        outputs: The only output: "probabilities", "logits", or "features", the input
            of the classifier; or "cam" for class activation maps besides logits and
            probabilities, `(batch, height, width, classes)`. None is probabilities for
            TFLite, probabilities and logits for the others.
        version: Number of the SavedModel's folder, as TF Serving counts versions.
        overwrite: Whether to replace an existing export.

    Returns:
        The files and their measurements, as in `manifest.json`.

    Raises:
        UsageError: Unknown format, missing calibration, an output that exists, or an
            exported file in place of a model.
        VerificationError: A file does not give the model's outputs.
    """
    rows = find_formats(formats)
    options = ExportOptions(
        batch=batch, input_size=input_size, layout=layout, input_dtype=input_dtype,
        opset=opset, integer_io=integer_io, outputs=outputs, version=version,
    )  # fmt: skip
    check_options(rows, options)
    check_backend("export")
    given = [model, calibration, verify]
    replaceable = partial(
        free_folder, output, kind="an export", named=named_entries, overwrite=overwrite,
        inputs=[each for each in given if isinstance(each, str | os.PathLike)],
    )  # fmt: skip
    folder = replaceable()
    calibrated = [row.name for row in rows if row.calibrated]
    if calibrated and calibration is None:
        raise UsageError(
            f"{', '.join(calibrated)} needs calibration images: pass calibration=DATA "
            "(--calibration DATA), the data the model was trained on."
        )
    if not isinstance(model, keras.Model):
        model = _load(as_path(model))
    serving = make_serving(model, options, labels, preprocessing)
    source = _open(calibration, serving.card, bad_images)
    same = verify is None or (isinstance(verify, str) and verify == calibration)
    evaluation = source if same else _open(verify, serving.card, bad_images)
    predict = source_answers(model, serving)
    # Images to calibrate with must be left.
    split = source.judging_split if source is not None and same else None
    reference = make_reference(predict, serving.card, evaluation, split)
    if outputs == CAM:
        bias = serving.model.get_layer("fc").bias.numpy()
        reference = replace(reference, bias=bias)
    drawn = None
    if source is not None and calibrated:
        avoid = reference.images[: len(reference.targets)]
        drawn = draw_calibration(source, serving.card, avoid)
    return _Export(folder, serving, reference, drawn, replaceable).write(rows)


def _load(path: Path) -> "keras.Model":
    runtimes = (row.matches(path) for row in RUNTIMES.values())
    if is_export(path) or (path.exists() and any(runtimes)):
        raise UsageError(
            f"export takes a checkpoint or a model from reszoo. Received: {path}, "
            "which is an exported file; pass the checkpoint that it was made from."
        )
    return load(path)


def _open(data: Data | None, card: Card, bad_images: str) -> Source | None:
    if data is None:
        return None
    source = open_for(card, data, bad_images)
    source.announce()
    return source


@dataclass(frozen=True)
class _Export:
    """The inputs of one export."""

    folder: Path
    serving: Serving
    reference: Reference
    calibration: Calibration | None
    # Raises if what has come into the folder meanwhile must not be replaced.
    replaceable: Callable[..., Path]

    def write(self, rows: list[Format]) -> Manifest:
        """Write and verify the files, then move the folder to its place."""
        with atomic_folder(self.folder, self.replaceable) as temporary:
            records = []
            with Progress("exporting", len(rows)) as progress:
                for row in rows:
                    progress.advance(0, row.name)
                    records.append(self._write_file(row, temporary))
                    progress.advance()
            manifest = Manifest(
                folder=self.folder, card=self.serving.card, files=tuple(records),
                options=self.serving.options, beside=self._write_beside(temporary),
            )  # fmt: skip
            if manifest.problems:
                _keep_failed(temporary, manifest)
            latencies = measure_files(temporary / each.file for each in records)
            pairs = zip(records, latencies.values(), strict=True)
            files = tuple(replace(each, latency=latency) for each, latency in pairs)
            manifest = replace(manifest, files=files)
            write_snippets(temporary, manifest)
            write_report(temporary, manifest, self.reference)
            manifest.write(temporary)
        return manifest

    def _write_file(self, row: Format, folder: Path) -> FileRecord:
        path = folder / row.file
        try:
            row.write(self.serving, path, self.calibration)
        except Exception as error:
            if isinstance(error, ReszooError | OSError) or disk_error_of(error):
                raise
            raise ExportError(
                f"{row.name} could not be written ({type(error).__name__}: {error})."
            ) from error
        size, digest = size_and_hash(path)
        card, options = self.serving.card, self.serving.options
        given = self.serving, self.calibration, self.reference
        told = ranges.recorded(row, *given)
        try:
            found = verify_file(row, path, given[-1], options, card, ranges=told)
        except VerificationError as error:
            # A runtime that crashes is a problem like any other.
            problem = f"{row.name} could not be verified: {error}"
            failed = Verification(runtime=row.runtime.name, problems=(problem,))
            found = FileVerification(inputs=[], outputs=[], verification=failed)
        return FileRecord(
            format=row.name, file=row.file, bytes=size, sha256=digest,
            inputs=found.inputs, outputs=found.outputs,
            verification=self._located(row, path, found.verification),
            ranges=told,
        )  # fmt: skip

    def _located(self, row: Format, path: Path, found: Verification) -> Verification:
        """Add to a file's problems the first layer that differs."""
        if not found.problems or not found.compared:
            return found
        indices = [each.image for each in found.worst] or slice(None)
        images = self.reference.images[indices]
        if (layer := first_divergence(path, row, self.serving, images)) is None:
            return found
        problem = f"the first layer whose output differs from the model's: {layer}"
        return replace(found, problems=(*found.problems, problem))

    def _write_beside(self, folder: Path) -> dict[str, str]:
        """Write reference and labels; return the sha256 of each."""
        card = self.serving.card
        self.reference.shortened().write(folder)
        names = [REFERENCE_FILE]
        if card.labels:
            write_text(folder / LABELS_FILE, card_files(card)[LABELS_FILE])
            names.append(LABELS_FILE)
        return {name: size_and_hash(folder / name)[1] for name in names}


def _keep_failed(folder: Path, manifest: Manifest) -> NoReturn:
    """Rename a failed export and its failed files, and raise the error."""
    for record in manifest.files:
        if record.verification.problems:
            path = folder / record.file
            path.rename(path.with_name(path.name + ".failed"))
    manifest.write(folder)
    output = manifest.folder.resolve()
    # The first name that is free, or that of an earlier failed export.
    for number in itertools.count(1):
        failed = output.with_name(f"{output.name}.failed" + f"-{number}" * (number > 1))
        with suppress(UsageError):
            if not failed.is_symlink():
                free_folder(
                    failed, kind="an export", named=named_entries, overwrite=True
                )
                break
    if failed.exists():
        shutil.rmtree(failed)
    folder.rename(failed)
    raise VerificationError(
        *problem_list(manifest.folder, manifest.problems),
        f"Nothing was written to {manifest.folder}; the failed export is kept in "
        f"{failed}.",
    )
