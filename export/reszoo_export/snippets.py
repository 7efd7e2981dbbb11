"""Code snippets beside the files of an export, with their names, dtypes and shapes."""

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from reszoo.cards import Card
from reszoo.data.image_files import LARGE, MEMORY, SHORT
from reszoo.files import write_text
from reszoo.preprocessing import RESIZES
from reszoo_export.formats import FORMATS, OUTPUTS, RUNTIMES
from reszoo_export.manifest import FileRecord, Manifest

FOLDER = "snippets"
# Templates for all runtimes; those of one runtime are in its package.
_COMMON = resources.files("reszoo_export") / "snippet_templates"
_SERVER, _SUFFIX = "server.py.in", ".in"
_JAVASCRIPT = "preprocess.js.in"
_CTYPES = {"float32": "float", "uint8": "uint8_t", "int8": "int8_t"}
_ARRAYS = {"float32": "Float32Array", "uint8": "Uint8Array"}


def write_snippets(folder: Path, manifest: Manifest) -> list[str]:
    """Write `snippets/`: code that runs the files on phones, servers and in browsers.

    For the runtimes of the export only. Returns the paths, relative to the folder.
    """
    written = []
    for template, record in _templates(manifest):
        words, facts = _words(record, manifest)
        if template.name.startswith("mediapipe") and "mediapipe" not in facts:
            continue
        name = f"{FOLDER}/{template.name.removesuffix(_SUFFIX)}"
        text = template.read_text(encoding="utf-8")
        write_text(folder / name, fill(text, words, facts))
        written.append(name)
    return written


def preprocess_js(record: FileRecord, manifest: Manifest) -> str:
    """Return the preprocessing of an export's card as a JavaScript module."""
    return _words(record, manifest)[0]["PREPROCESS_JS"]


def _templates(manifest: Manifest) -> Iterator[tuple[Any, FileRecord]]:
    """Yield templates and the file that each is filled in for."""
    native: list[FileRecord] = []
    for runtime in RUNTIMES.values():
        # Languages without NumPy have arrays of their dtypes.
        records = [
            record
            for record in manifest.files
            if FORMATS[record.format].runtime == runtime
            and {record.inputs[0]["dtype"], classifying_output(record)["dtype"]}
            <= set(_CTYPES)
            # Code for TFLite and MediaPipe take the first output of one.
            and (len(runtime.outputs) > 1 or len(record.outputs) == 1)
        ]
        # int8 files are the smallest and, on most devices, the fastest.
        records.sort(key=lambda record: FORMATS[record.format].precision != "int8")
        folder = resources.files(runtime.package) / FOLDER
        for template in sorted(folder.iterdir(), key=lambda each: each.name):
            if records and template.name != _SERVER:
                native += records[:1]
                yield template, records[0]
    if native:
        yield _COMMON / "preprocess.h.in", native[0]
    yield _COMMON / _SERVER, manifest.files[0]


def fill(template: str, words: Mapping[str, str], facts: Sequence[str]) -> str:
    """Fill in a template: replace `@WORD@`s, and keep lines by facts that are true.

    Those are between `@if fact@` or `@if !fact@` and `@end@`, also inside each other.
    """
    innermost = re.compile(r"(?ms)^@if (!?)(\w+)@\n((?:(?!^@if ).)*?)^@end@\n")

    def kept(block: re.Match[str]) -> str:
        return block[3] if (block[2] in facts) != (block[1] == "!") else ""

    while innermost.search(template):
        template = innermost.sub(kept, template)
    return re.sub(r"@([A-Z_]+)@", lambda word: words[word[1]], template)


def classifying_output(record: FileRecord) -> dict[str, Any]:
    """Return the output of a file that needs the least further computation."""
    known = [each for each in record.outputs if each["name"] in OUTPUTS]
    return min(known, key=lambda output: OUTPUTS.index(output["name"]))


def _words(record: FileRecord, manifest: Manifest) -> tuple[dict[str, str], list[str]]:
    card, image, output = manifest.card, record.inputs[0], classifying_output(record)
    facts = _facts(card, record)
    features, preprocessing = output["name"] == "features", card.preprocessing
    high, wide = preprocessing.eval_sides
    channels, colour = preprocessing.channels, map(str, preprocessing.mean_colour)
    sides = (channels, high, wide) if "nchw" in facts else (high, wide, channels)
    zero = output.get("zero_point", 0)
    lines = [
        f'    "{each.file}": (open_{FORMATS[each.format].runtime.name}, '
        f'"{each.inputs[0]["dtype"]}", {_shape(each.inputs[0])}),'
        for each in manifest.files
    ]
    words: dict[str, Any] = {
        "MODEL": card.architecture.name, "HEIGHT": high, "WIDTH": wide,
        "CHANNELS": channels, "FILL": ", ".join(colour),
        "RESIZE_HEIGHT": preprocessing.resize_sides[0],
        "RESIZE_WIDTH": preprocessing.resize_sides[1],
        "RESAMPLING": preprocessing.interpolation.upper(),
        "COLOURS": preprocessing.colours, "MEMORY": MEMORY, "LARGE": LARGE,
        "LEAST": SHORT, "FILES": "\n".join(lines),
        "FILE": record.file, "STEM": Path(record.file).stem,
        "INPUT": image["name"], "DTYPE": image["dtype"], "SHAPE": _shape(image),
        "SIDES": ", ".join(map(str, sides)), "CTYPE": _CTYPES.get(image["dtype"], ""),
        "ITEM_SIZE": 4 if image["dtype"] == "float32" else 1,
        "ARRAY": _ARRAYS.get(image["dtype"], ""),
        "BATCH": image["shape"][0] if isinstance(image["shape"][0], int) else 1,
        "OUTPUT": output["name"], "OUTPUT_DTYPE": output["dtype"],
        "OUTPUT_CTYPE": _CTYPES.get(output["dtype"], ""),
        "OUTPUT_SHAPE": _shape(output), "OUTPUTS": output["shape"][-1],
        "OUTPUT_WORDS": "features" if features else "probabilities",
        "CLASS_WORD": "feature" if features else "class",
        "SCALE": repr(output.get("scale", 1)),
        "ZERO": zero if zero >= 0 else f"({zero})",
        "KEEP": f"{100 * card.confidence.keep:g}" if card.confidence else "",
        "UNKNOWN_BELOW": card.confidence.min_probability if card.confidence else "",
        "LABELS_TOO": " and labels.txt" if "named" in facts else "",
        "PODS": " (and MediaPipeTasksVision)" if "mediapipe" in facts else "",
    }  # fmt: skip
    # The functions of server.py that open the files of each runtime.
    used = {FORMATS[each.format].runtime.name for each in manifest.files}
    texts = [
        (resources.files(row.package) / FOLDER / _SERVER).read_text(encoding="utf-8")
        for row in RUNTIMES.values()
        if row.name in used
    ]
    words["OPENERS"] = "\n\n".join(fill(text, words, []) for text in texts) + "\n"
    words = {word: str(value) for word, value in words.items()}
    javascript = (_COMMON / _JAVASCRIPT).read_text(encoding="utf-8")
    return words | {"PREPROCESS_JS": fill(javascript, words, facts)}, facts


def _facts(card: Card, record: FileRecord) -> list[str]:
    image, output = record.inputs[0], classifying_output(record)
    features, logits = (output["name"] == name for name in ("features", "logits"))
    grey = card.preprocessing.channels == 1
    input_dtype, output_dtype = image["dtype"], output["dtype"]
    holds: dict[str, bool] = {
        **{mode: card.preprocessing.resize == mode for mode in RESIZES},
        "unknown": card.confidence is not None and not features,
        "grey": grey, "features": features, "logits": logits,
        "bicubic": card.preprocessing.interpolation == "bicubic",
        "nchw": image["shape"][-1] != card.preprocessing.channels,
        "float_input": input_dtype == "float32", "uint8_input": input_dtype == "uint8",
        "int8_input": input_dtype == "int8", "int8_output": output_dtype == "int8",
        "uint8_output": output_dtype == "uint8",
        "integer_output": output_dtype != "float32",
        "plain": not logits and output_dtype == "float32",
        "named": bool(card.labels) and not features,
        "numbered": not (card.labels or features),
        # MediaPipe takes one RGB image at a time, no int8, and reads probabilities.
        "mediapipe": image["shape"][0] == 1 and input_dtype != "int8"
        and not (grey or features or logits),
    }  # fmt: skip
    return [fact for fact, true in holds.items() if true]


def _shape(tensor: Mapping[str, Any]) -> str:
    sides = (f"{s}" if isinstance(s, int) else f'"{s}"' for s in tensor["shape"])
    return f"({', '.join(sides)})"
