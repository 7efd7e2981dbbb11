"""From a checkpoint to a folder of files, each proven before it counts."""

import itertools
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import keras

from reszoo.cards import Card
from reszoo.data.sources import Source, open_source
from reszoo.errors import ExportError, ReszooError, UsageError, VerificationError
from reszoo.files import atomic_folder, write_text
from reszoo.progress import Progress
from reszoo.zoo import load
from reszoo_export.benchmark import measure
from reszoo_export.formats import Format, find_formats
from reszoo_export.manifest import (
    REFERENCE_FILE,
    FileRecord,
    Manifest,
    is_export,
    size_and_hash,
)
from reszoo_export.metadata import LABELS_FILE, card_files
from reszoo_export.quantization import Calibration, draw_calibration
from reszoo_export.reference import Reference, make_reference
from reszoo_export.runtimes import kind_of, open_runtime
from reszoo_export.serving import Serving, make_serving
from reszoo_export.verify import compare, refuse_problems

Data = str | os.PathLike[str]


def export(
    model: "keras.Model | str | os.PathLike[str]",
    output: str | os.PathLike[str],
    *,
    formats: Sequence[str] | str = ("saved_model", "tflite", "onnx"),
    calibration: Data | None = None,
    verify: Data | None = None,
    bad_images: str | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Write a model as files that answer like it, and prove that they do.

    Each file is opened in its own runtime and compared with the model, on the
    judging split of `verify` and on made-up images. The folder gets its name only
    when every file has passed; otherwise it becomes `<output>.failed` (or the next
    free `<output>.failed-2`, where that is no failed export), the files that failed
    end in `.failed`, and what was at `output` is untouched.

    Args:
        model: A model from reszoo, or a checkpoint.
        output: The folder to make.
        formats: Names of formats; `reszoo export --help` lists them.
        calibration: Images for the formats with int8, a folder or a name such as
            "digits"; the training split is used.
        verify: Images to compare on; `calibration` if None. Without either, only
            made-up images are compared.
        bad_images: "skip" does without unusable images of the data, "recover" uses
            what there is of truncated JPEGs; None or "error" ends with the first.
        overwrite: Whether an export that is there already may be replaced.

    Returns:
        What was written and measured, as in the folder's `manifest.json`.

    Raises:
        UsageError: Unknown format, missing calibration, an output that exists, or
            an exported file in place of a model.
        VerificationError: A file does not answer like the model.
    """
    rows = find_formats(formats)
    folder = free_folder(Path(output), overwrite)
    needing = [row.name for row in rows if row.calibrated]
    if needing and calibration is None:
        raise UsageError(
            f"{', '.join(needing)} needs calibration images: pass calibration=DATA "
            "(--calibration DATA), the data the model was trained on."
        )
    if not isinstance(model, keras.Model):
        _refuse_exported(Path(model))
        model = load(model)
    serving = make_serving(model)
    source = _opened(calibration, bad_images)
    judge = source if verify is None else _opened(verify, bad_images)
    reference = make_reference(model, serving.card, judge)
    ranges = None
    if needing and source is not None:
        avoid = reference.images[: len(reference.labels)]
        ranges = draw_calibration(source, serving.card, avoid)
    return _write_all(rows, folder, serving, reference, ranges)


def _write_all(
    rows: list[Format],
    folder: Path,
    serving: Serving,
    reference: Reference,
    calibration: Calibration | None,
) -> Manifest:
    with atomic_folder(folder) as temporary:
        records = []
        with Progress("exporting", len(rows)) as progress:
            for row in rows:
                progress.advance(0, row.name)
                records.append(
                    _write_one(row, temporary, serving, reference, calibration)
                )
                progress.advance()
        manifest = Manifest(
            folder=folder,
            card=serving.card,
            files=tuple(records),
            beside=_write_beside(temporary, serving.card, reference),
        )
        manifest.write(temporary)
        if manifest.problems:
            _set_aside(temporary, manifest)
    return manifest


def _write_one(
    row: Format,
    folder: Path,
    serving: Serving,
    reference: Reference,
    calibration: Calibration | None,
) -> FileRecord:
    path = folder / row.file
    try:
        row.write(serving, path, calibration)
    except (ReszooError, OSError):
        raise
    except Exception as error:
        raise ExportError(
            f"{row.name} could not be written ({type(error).__name__}: {error})."
        ) from error
    runtime = open_runtime(path)
    size, digest = size_and_hash(path)
    return FileRecord(
        format=row.name,
        file=row.file,
        bytes=size,
        sha256=digest,
        inputs=runtime.inputs,
        outputs=runtime.outputs,
        verification=compare(row, runtime, reference),
        latency=measure(runtime),
    )


def _write_beside(folder: Path, card: Card, reference: Reference) -> dict[str, str]:
    """Write what lies beside the files; return the sha256 of each."""
    reference.shortened().write(folder)
    names = [REFERENCE_FILE]
    if card.labels:
        write_text(folder / LABELS_FILE, card_files(card)[LABELS_FILE])
        names.append(LABELS_FILE)
    return {name: size_and_hash(folder / name)[1] for name in names}


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
    inside = (path / "saved_model.pb").is_file() or is_export(path)
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


def _opened(data: Data | None, bad_images: str | None) -> Source | None:
    return None if data is None else open_source(data, bad_images=bad_images)
