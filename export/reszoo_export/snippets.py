"""Code snippets beside the files of an export, with their names, dtypes and shapes."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from reszoo.data.image_files import LARGE, MEMORY, SHORT
from reszoo.files import write_text
from reszoo_export.formats import FORMATS, OUTPUTS, RUNTIMES
from reszoo_export.manifest import FileRecord, Manifest

FOLDER = "snippets"
# Templates for all runtimes; those of one runtime are in its package.
_COMMON, _SERVER, _SUFFIX = "snippet_templates/", "server.py.in", ".in"
_CTYPES = {"float32": "float", "uint8": "uint8_t", "int8": "int8_t"}
_ARRAYS = {"float32": "Float32Array", "uint8": "Uint8Array"}
# Braces alone are part of most languages.
_TEMPLATES = Environment(
    block_start_string="@%", block_end_string="%@",
    variable_start_string="@{", variable_end_string="}@",
    loader=PackageLoader("reszoo_export", "."), undefined=StrictUndefined,
    trim_blocks=True, keep_trailing_newline=True,
    autoescape=False,
)  # fmt: skip


def write_snippets(folder: Path, manifest: Manifest) -> list[str]:
    """Write `snippets/`: code that runs the files on phones, servers and in browsers.

    For the runtimes of the export only. Returns the paths, relative to the folder.
    """
    written = []
    for template, record in _templates(manifest):
        facts = _facts(record, manifest)
        name = f"{FOLDER}/{template.rpartition('/')[2].removesuffix(_SUFFIX)}"
        if facts["mediapipe"] or "/mediapipe" not in name:
            write_text(folder / name, _TEMPLATES.get_template(template).render(facts))
            written.append(name)
    return written


def preprocess_js(record: FileRecord, manifest: Manifest) -> str:
    """Return the preprocessing of an export's card as a JavaScript module."""
    template = _TEMPLATES.get_template(f"{_COMMON}preprocess.js.in")
    return template.render(_facts(record, manifest))


def _templates(manifest: Manifest) -> Iterator[tuple[str, FileRecord]]:
    """Yield templates and the file that each is filled in for."""
    native: list[FileRecord] = []
    names = _TEMPLATES.list_templates([_SUFFIX[1:]])
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
        for name in names if records else []:
            if name.startswith(f"{runtime.name}/") and not name.endswith(_SERVER):
                native += records[:1]
                yield name, records[0]
    if native:
        yield f"{_COMMON}preprocess.h.in", native[0]
    yield _COMMON + _SERVER, manifest.files[0]


def classifying_output(record: FileRecord) -> dict[str, Any]:
    """Return the output of a file that needs the least further computation."""
    known = [each for each in record.outputs if each["name"] in OUTPUTS]
    return min(known, key=lambda output: OUTPUTS.index(output["name"]))


def _facts(record: FileRecord, manifest: Manifest) -> dict[str, Any]:
    """Return what the templates know."""
    card, image, output = manifest.card, record.inputs[0], classifying_output(record)
    features, logits = (output["name"] == name for name in ("features", "logits"))
    grey, zero = card.preprocessing.channels == 1, output.get("zero_point", 0)
    used = {FORMATS[each.format].runtime.name for each in manifest.files}
    return {
        "card": card, "preprocessing": card.preprocessing, "files": manifest.files,
        "record": record, "image": image, "output": output, "formats": FORMATS,
        "runtimes": [name for name in RUNTIMES if name in used],
        "ctypes": _CTYPES, "arrays": _ARRAYS, "shape": _shape,
        "memory": MEMORY, "large": LARGE, "least": SHORT,
        "zero": zero if zero >= 0 else f"({zero})",
        "grey": grey, "features": features, "logits": logits,
        "unknown": card.confidence is not None and not features,
        "nchw": image["shape"][-1] != card.preprocessing.channels,
        "named": bool(card.labels) and not features,
        "numbered": not (card.labels or features),
        # MediaPipe takes one RGB image at a time, no int8, and reads probabilities.
        "mediapipe": image["shape"][0] == 1 and image["dtype"] != "int8"
        and not (grey or features or logits),
    }  # fmt: skip


def _shape(tensor: Mapping[str, Any]) -> str:
    sides = (f"{s}" if isinstance(s, int) else f'"{s}"' for s in tensor["shape"])
    return f"({', '.join(sides)})"
