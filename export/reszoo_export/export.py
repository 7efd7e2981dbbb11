"""From a checkpoint to a folder of files, each proven before it counts."""

import itertools
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import keras

from reszoo import defaults
from reszoo.console import Progress
from reszoo.data.sources import Source, open_source
from reszoo.errors import ExportError, ReszooError, UsageError, VerificationError
from reszoo.files import atomic_folder, write_text
from reszoo.preprocessing import Preprocessing
from reszoo.zoo import load
from reszoo_export.benchmark import measure_files
from reszoo_export.formats import (
    ExportOptions,
    Format,
    Outputs,
    check_options,
    find_formats,
)
from reszoo_export.keras_models.source import source_answers
from reszoo_export.manifest import (
    REFERENCE_FILE,
    FileRecord,
    Manifest,
    Verification,
    is_export,
    size_and_hash,
)
from reszoo_export.metadata import LABELS_FILE, card_files
from reszoo_export.quantization.ranges import Calibration, draw_calibration
from reszoo_export.report import write_report
from reszoo_export.runtimes import kind_of
from reszoo_export.serving import Serving, make_serving
from reszoo_export.snippets import write_snippets
from reszoo_export.verification.divergence import first_divergence
from reszoo_export.verification.reference import Reference, make_reference
from reszoo_export.verification.verify import Judgement, judge, refuse_problems

if TYPE_CHECKING:
    from reszoo_export.quantization.ranges import Choice

Data = str | os.PathLike[str]


def export(
    model: "keras.Model | str | os.PathLike[str]",
    output: str | os.PathLike[str],
    *,
    formats: Sequence[str] | str = defaults.FORMATS,
    calibration: Data | None = None,
    verify: Data | None = None,
    bad_images: str = defaults.BAD_IMAGES,
    labels: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    batch: int | Literal["dynamic"] | None = None,
    input_size: int | None = None,
    layout: Literal["nhwc", "nchw"] = "nhwc",
    integer_io: bool = False,
    outputs: Outputs | None = None,
    version: int = defaults.SAVED_MODEL_VERSION,
    overwrite: bool = False,
) -> Manifest:
    """Write a model as files that answer like it, and prove that they do.

    Each file is opened in its own runtime and compared with the model, on the
    judging split of `verify` and on made-up images. The folder gets its name only
    when every file has passed; otherwise it becomes `<output>.failed` (or the next
    free `<output>.failed-2`, where that is no failed export), the files that failed
    end in `.failed`, and what was at `output` is untouched.

    Args:
        model: A model from reszoo, a checkpoint, or a plain Keras model that is a
            ResNet: of `keras.applications`, or of reszoo after `fit`, with the head
            they came with or one of your own.
        output: The folder to make.
        formats: Names of formats; `reszoo export --help` lists them.
        calibration: Images for the formats with int8, a folder or a name such as
            "digits"; the training split is used.
        verify: Images to compare on; `calibration` if None. Without either, only
            made-up images are compared.
        bad_images: "error" stops at the first unreadable image of the data, "skip"
            leaves such images out, "recover" decodes truncated JPEGs as far as they go.
        labels: Names of the classes in order, where the model has none.
        preprocessing: How pictures were shown to a plain Keras model, where that
            does not follow from what it is.
        batch: Images a call: a number fixes it, "dynamic" leaves it open; None is one
            for TFLite and open for the others.
        input_size: Height and width of the image in pixels, if not those that the
            model was trained for.
        layout: Axes of the image, "nhwc" or "nchw" (ONNX only).
        integer_io: Whether int8 TFLite takes uint8 pixels and gives uint8
            probabilities in steps of 1/256.
        outputs: The only answer to give: "probabilities", "logits", or "features",
            what the classifier would see. None is probabilities for TFLite,
            probabilities and logits for the others.
        version: Number of the SavedModel's folder, as TF Serving counts them.
        overwrite: Whether an export that is there already may be replaced.

    Returns:
        What was written and measured, as in the folder's `manifest.json`.

    Raises:
        UsageError: Unknown format, missing calibration, an output that exists, or
            an exported file in place of a model.
        VerificationError: A file does not answer like the model.
    """
    rows = find_formats(formats)
    options = ExportOptions(
        batch=batch,
        input_size=input_size,
        layout=layout,
        integer_io=integer_io,
        outputs=outputs,
        version=version,
    )
    check_options(rows, options)
    folder = free_folder(Path(output), overwrite)
    if calibration is None:
        _refuse_without_calibration(rows)
    if not isinstance(model, keras.Model):
        _refuse_exported(Path(model))
        model = load(model)
    serving = make_serving(model, options, labels, preprocessing)
    source = _opened(calibration, bad_images)
    judging = source if verify is None else _opened(verify, bad_images)
    answers = source_answers(model, serving)
    reference = make_reference(answers, serving.card, judging)
    drawn = None
    if source is not None and any(row.calibrated for row in rows):
        avoid = reference.images[: len(reference.labels)]
        drawn = draw_calibration(source, serving.card, avoid)
    return _Export(folder, serving, reference, drawn).make(rows)


def _refuse_without_calibration(rows: Sequence[Format]) -> None:
    needing = [row.name for row in rows if row.calibrated]
    if needing:
        raise UsageError(
            f"{', '.join(needing)} needs calibration images: pass calibration=DATA "
            "(--calibration DATA), the data the model was trained on."
        )


@dataclass(frozen=True)
class _Export:
    """One export in the making."""

    folder: Path
    serving: Serving
    reference: Reference
    calibration: Calibration | None

    def make(self, rows: list[Format]) -> Manifest:
        with atomic_folder(self.folder) as temporary:
            with Progress("exporting", len(rows)) as progress:
                records = []
                for row in rows:
                    progress.advance(0, row.name)
                    records.append(self._write(row, temporary))
                    progress.advance()
            manifest = Manifest(
                folder=self.folder,
                card=self.serving.card,
                options=self.serving.options,
                files=tuple(records),
                beside=self._write_beside(temporary),
            )
            if manifest.problems:
                manifest.write(temporary)
                _set_aside(temporary, manifest)
            manifest = _measured(manifest, temporary)
            write_snippets(temporary, manifest)
            write_report(temporary, manifest, self.reference)
            manifest.write(temporary)
        return manifest

    def _write(self, row: Format, folder: Path) -> FileRecord:
        path = folder / row.file
        try:
            row.write(self.serving, path, self.calibration)
        except (ReszooError, OSError):
            raise
        except Exception as error:
            raise ExportError(
                f"{row.name} could not be written ({type(error).__name__}: {error})."
            ) from error
        size, digest = size_and_hash(path)
        found = self._judge(row, path)
        return FileRecord(
            format=row.name,
            file=row.file,
            bytes=size,
            sha256=digest,
            inputs=found.inputs,
            outputs=found.outputs,
            verification=self._explained(row, path, found.verification),
            ranges=self._ranges(row),
        )

    def _judge(self, row: Format, path: Path) -> Judgement:
        """Judge a file; what brings its runtime down is a problem like any other."""
        card, options = self.serving.card, self.serving.options
        try:
            return judge(row, path, self.reference, options, card)
        except VerificationError as error:
            problem = f"{row.name} could not be verified: {error}"
            found = Verification.unanswered(row.runtime, problem)
            return Judgement(inputs=[], outputs=[], verification=found)

    def _ranges(self, row: Format) -> dict[str, Any] | None:
        """Return the record of how the ranges of an int8 file were chosen."""
        if self.calibration is None or row.precision != "int8":
            return None
        chosen: Choice = self.calibration.choices[self.serving.net]
        return chosen.to_json()

    def _explained(self, row: Format, path: Path, found: Verification) -> Verification:
        """Add to what is wrong with a file where inside it began."""
        if not found.problems or not found.answered:
            return found
        places = [each.image for each in found.worst] or slice(None)
        images = self.reference.images[places]
        layer = first_divergence(path, row, self.serving, images)
        if layer is None:
            return found
        told = f"the first layer whose output is not the model's: {layer}"
        return replace(found, problems=(*found.problems, told))

    def _write_beside(self, folder: Path) -> dict[str, str]:
        """Write what lies beside the files; return the sha256 of each."""
        card = self.serving.card
        self.reference.shortened().write(folder)
        names = [REFERENCE_FILE]
        if card.labels:
            write_text(folder / LABELS_FILE, card_files(card)[LABELS_FILE])
            names.append(LABELS_FILE)
        return {name: size_and_hash(folder / name)[1] for name in names}


def _measured(manifest: Manifest, folder: Path) -> Manifest:
    paths = [folder / record.file for record in manifest.files]
    found = measure_files(paths)
    files = [
        replace(record, latency=found[path])
        for record, path in zip(manifest.files, paths, strict=True)
    ]
    return replace(manifest, files=tuple(files))


def _set_aside(folder: Path, manifest: Manifest) -> None:
    """Keep a failed export for inspection, under names that nobody takes for good."""
    for record in manifest.files:
        if record.verification.problems:
            path = folder / record.file
            path.rename(path.with_name(path.name + ".failed"))
    failed = _failed_name(manifest.folder)
    if failed.exists():
        shutil.rmtree(failed)
    folder.rename(failed)
    try:
        refuse_problems(manifest.folder, manifest.problems)
    except VerificationError as error:
        raise VerificationError(
            f"{error}\nNothing was written to {manifest.folder}; "
            f"what failed is kept in {failed}."
        ) from None


def _failed_name(folder: Path) -> Path:
    """Return the first name that is free, or held by a failed export of ours."""
    for number in itertools.count(1):
        place = folder.with_name(f"{folder.name}.failed" + f"-{number}" * (number > 1))
        if not os.path.lexists(place) or (is_export(place) and not place.is_symlink()):
            break
    return place


def _refuse_exported(path: Path) -> None:
    graphs = (*path.glob("saved_model.pb"), *path.glob("*/saved_model.pb"))
    inside = bool(graphs) or is_export(path)
    if kind_of(path) in {".tflite", ".onnx"} or inside:
        raise UsageError(
            f"export takes a checkpoint or a model from reszoo. Received: {path}, "
            "which is exported already; give the checkpoint that it was made from."
        )


def free_folder(folder: Path, overwrite: bool) -> Path:
    """Return a folder that an export may take, before any work is done for it.

    Raises:
        UsageError: It holds something else, or an export that is to be kept.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return folder
    if not is_export(folder):
        raise UsageError(
            f"{folder} exists and is no export of reszoo. Choose another folder."
        )
    if not overwrite:
        raise UsageError(
            f"{folder} holds an export already. Choose another folder, "
            "or pass overwrite=True (--overwrite) to replace it."
        )
    return folder


def _opened(data: Data | None, bad_images: str) -> Source | None:
    return None if data is None else open_source(data, bad_images=bad_images)
