"""Code to paste, beside the files of an export, with their true names and formats."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from reszoo.cards import Card
from reszoo.files import write_text
from reszoo_export.formats import FORMATS
from reszoo_export.manifest import FileRecord, Manifest
from reszoo_export.saved_model.runtime import newest_version

FOLDER = "snippets"
_TEMPLATES = resources.files("reszoo_export") / "snippet_templates"
# What is read where a file has several outputs.
_PREFERRED = ("probabilities", "logits", "features")
# Class in server.py that asks files of each runtime.
_CLASSES = {"onnx": "OnnxModel", "tflite": "TFLiteModel", "saved_model": "SavedModel"}
_CTYPES = {"float32": "float", "uint8": "uint8_t"}
_ARRAYS = {"float32": "Float32Array", "uint8": "Uint8Array"}


@dataclass(frozen=True)
class _Snippet:
    """A template, and the formats it is for, the one it would rather show first."""

    name: str
    formats: tuple[str, ...]


_MOBILE = ("tflite-int8", "tflite", "tflite-fp16", "tflite-dynamic", "tflite-int16x8")
_WEB = ("onnx-int8", "onnx", "onnx-fp16")
_SNIPPETS = (
    _Snippet("Android.kt", _MOBILE),
    _Snippet("iOS.swift", _MOBILE),
    _Snippet("browser.js", _WEB),
    _Snippet("index.html", _WEB),
    _Snippet("native_onnx.cc", _WEB),
    _Snippet("native_tflite.cc", _MOBILE),
    _Snippet("preprocess.h", (*_WEB, *_MOBILE)),
    _Snippet("server.py", tuple(FORMATS)),
)


def write_snippets(folder: Path, manifest: Manifest) -> list[str]:
    """Write `snippets/`: code that asks the files, for phones, servers and browsers.

    Args:
        folder: Where the files of the export lie.
        manifest: What they are; only what fits them is written.

    Returns:
        The names of what was written, from `folder` on, in order.
    """
    records = {record.format: record for record in manifest.files}
    written = []
    for snippet in _SNIPPETS:
        fitting = [
            records[name]
            for name in snippet.formats
            if name in records and (snippet.name == "server.py" or _fits(records[name]))
        ]
        if fitting:
            words, facts = _words(folder, fitting[0], manifest)
            name = f"{FOLDER}/{snippet.name}"
            write_text(folder / name, fill(_template(snippet.name), words, facts))
            written.append(name)
    return written


def fill(template: str, words: Mapping[str, str], facts: Sequence[str]) -> str:
    """Return a template's text with its words replaced and what does not hold left out.

    Args:
        template: Text with `@WORD@`s, and lines between `@if fact@` or `@if !fact@`
            and `@end@`.
        words: What stands for each word.
        facts: What holds.
    """

    def kept(block: re.Match[str]) -> str:
        return block[3] if (block[2] in facts) != (block[1] == "!") else ""

    text = re.sub(r"(?ms)^@if (!?)(\w+)@\n(.*?)^@end@\n", kept, template)
    return re.sub(r"@([A-Z_]+)@", lambda word: words[word[1]], text)


def _template(name: str) -> str:
    return (_TEMPLATES / f"{name}.in").read_text(encoding="utf-8")


def _fits(record: FileRecord) -> bool:
    """Tell whether languages without NumPy have arrays of the file's dtypes."""
    return {record.inputs[0]["dtype"], _output(record)["dtype"]} <= set(_CTYPES)


def _output(record: FileRecord) -> dict[str, Any]:
    return min(record.outputs, key=lambda output: _PREFERRED.index(output["name"]))


def _words(
    folder: Path, record: FileRecord, manifest: Manifest
) -> tuple[dict[str, str], list[str]]:
    card, image, output = manifest.card, record.inputs[0], _output(record)
    nchw = image["shape"][1] == 3
    batch = image["shape"][0] if _number(image["shape"][0]) else 1
    facts = _facts(card, record, manifest)
    size, short = card.preprocessing.eval_size, card.preprocessing.resize_size
    words: dict[str, Any] = {
        "NET": card.architecture.spec,
        "SIZE": size,
        "SHORT": short,
        "RESAMPLING": card.preprocessing.interpolation.upper(),
        "FILE": record.file,
        "STEM": Path(record.file).stem,
        "FILES": _files(folder, manifest),
        "INPUT": image["name"],
        "DTYPE": image["dtype"],
        "SHAPE": _shape(image),
        "SIDES": f"3, {size}, {size}" if nchw else f"{size}, {size}, 3",
        "ITEM_SIZE": 4 if image["dtype"] == "float32" else 1,
        "ARRAY": _ARRAYS.get(image["dtype"], ""),
        "CTYPE": _CTYPES.get(image["dtype"], ""),
        "BATCH": batch,
        "OUTPUT": output["name"],
        "OUTPUT_DTYPE": output["dtype"],
        "OUTPUT_CTYPE": _CTYPES.get(output["dtype"], ""),
        "OUTPUT_SHAPE": _shape(output),
        "OUTPUT_WORDS": "features" if "features" in facts else "probabilities",
        "CLASS_WORD": "feature" if "features" in facts else "class",
        "WIDTH": output["shape"][-1],
        "SCALE": repr(output.get("scale", 1)),
        "ZERO": output.get("zero_point", 0),
        "LABELS_TOO": " and labels.txt" if "named" in facts else "",
        "PODS": " (and MediaPipeTasksVision)" if "mediapipe" in facts else "",
    }
    return {word: str(value) for word, value in words.items()}, facts


def _facts(card: Card, record: FileRecord, manifest: Manifest) -> list[str]:
    image, output = record.inputs[0], _output(record)
    features, logits = (output["name"] == name for name in ("features", "logits"))
    quantised = output["dtype"] == "uint8"
    holds: dict[str, bool] = {
        "bicubic": card.preprocessing.interpolation == "bicubic",
        "nchw": image["shape"][1] == 3,
        "float_input": image["dtype"] == "float32",
        "features": features,
        "logits": logits,
        "bytes": quantised,
        "plain": not (logits or quantised),
        "named": bool(card.labels) and not features,
        "numbered": not (card.labels or features),
        # It takes one picture at a time and reads probabilities.
        "mediapipe": image["shape"][0] == 1 and not (features or logits),
        **{FORMATS[each.format].runtime: True for each in manifest.files},
    }
    return [fact for fact, true in holds.items() if true]


def _files(folder: Path, manifest: Manifest) -> str:
    lines = []
    for record in manifest.files:
        runtime = FORMATS[record.format].runtime
        place = folder / record.file
        if runtime == "saved_model":
            place = newest_version(place)
        name = place.relative_to(folder).as_posix()
        image = record.inputs[0]
        lines.append(
            f'    "{name}": ({_CLASSES[runtime]}, "{image["dtype"]}", {_shape(image)}),'
        )
    return "\n".join(lines)


def _shape(tensor: Mapping[str, Any]) -> str:
    sides = [str(side) if _number(side) else f'"{side}"' for side in tensor["shape"]]
    return f"({', '.join(sides)})"


def _number(side: object) -> bool:
    return isinstance(side, int) and side > 0
