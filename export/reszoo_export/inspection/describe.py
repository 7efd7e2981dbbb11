"""`reszoo inspect`: what a file is, from the file alone."""

import importlib
import os
from pathlib import Path

from reszoo.checkpoints.reading import SUFFIXES as CHECKPOINTS
from reszoo.errors import CheckpointError, UnknownNameError, UsageError
from reszoo.quiet import quiet_tensorflow
from reszoo_export.formats import FORMATS
from reszoo_export.inspection.description import Contents, FileDescription
from reszoo_export.manifest import is_export, size_and_hash

# Ending of a name -> module that reads such files; each imports no more than it needs.
_READERS = {
    ".tflite": "tflite",
    ".onnx": "onnx",
    "": "saved_model",
    **dict.fromkeys(CHECKPOINTS, "checkpoint"),
}


def inspect(path: str | os.PathLike[str]) -> FileDescription:
    """Tell what a model file is: form, operators, labels, preprocessing, origin.

    Files of others are described as far as they tell. `.tflite`, `.onnx` and
    `.safetensors` are read without TensorFlow.

    Args:
        path: A `.tflite`, a `.onnx`, a SavedModel folder or a checkpoint.

    Raises:
        CheckpointError: There is no such file, or it is damaged.
        UsageError: The ending is unknown, or the folder is a whole export.
    """
    file = Path(path)
    if not file.exists():
        raise CheckpointError(f"There is no file {file}.")
    suffix = "" if file.is_dir() else file.suffix
    if suffix not in _READERS or (not suffix and file.is_file()):
        raise UnknownNameError("kind of model file", file.name, filter(None, _READERS))
    if file.is_dir() and is_export(file):
        inside = [row.file for row in FORMATS.values() if (file / row.file).exists()]
        raise UsageError(
            f"{file} is a whole export. Inspect one of the files in it: "
            f"{', '.join(inside)}."
        )
    quiet_tensorflow()
    reader = importlib.import_module(f"reszoo_export.inspection.{_READERS[suffix]}")
    contents: Contents = reader.read(file)
    size, digest = size_and_hash(file)
    return FileDescription(
        path=str(file),
        format=_format(file, contents),
        bytes=size,
        sha256=digest,
        contents=contents,
    )


def _format(file: Path, contents: Contents) -> str:
    """Return the row of the table that fits, or what the file is called elsewhere."""
    if contents.kind == "checkpoint":
        return file.suffix.removeprefix(".")
    for row in FORMATS.values():
        if (row.runtime, row.precision) == (contents.kind, contents.precision):
            return row.name
    return contents.kind
