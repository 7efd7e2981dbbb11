"""Which file to use for what, in words that follow from what was measured."""

from collections.abc import Mapping
from dataclasses import dataclass

from reszoo_export.formats import FORMATS
from reszoo_export.manifest import FileRecord, Manifest

# A quantised file that loses more is named, but not recommended.
_MOST_LOST = 0.005
_LEAST_AGREEMENT = 0.98
# What lies closer than this is called equally fast.
_ALIKE = 1.1


@dataclass(frozen=True, kw_only=True)
class Use:
    """One purpose, and the formats that serve it.

    Attributes:
        name: What the file is for.
        formats: Best first.
        why: What the purpose asks for.
        here: Whether it is answered on machines like the one that measured, so that
            a file which is slower here is passed over.
    """

    name: str
    formats: tuple[str, ...]
    why: str
    here: bool = False


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What to use for a purpose.

    Attributes:
        use: The purpose.
        file: The file's name; None where the export holds none that serves.
        reason: Why, in sentences.
    """

    use: str
    file: str | None
    reason: str


USES = (
    Use(
        name="A phone with a GPU",
        formats=("tflite-fp16", "tflite"),
        why="Mobile GPUs compute in float16, and their delegates take float32 pixels.",
    ),
    Use(
        name="A phone's processor",
        formats=("tflite-int8", "tflite-dynamic", "tflite-fp16", "tflite"),
        why="ARM cores multiply bytes several times as fast as floats.",
    ),
    Use(
        name="A server",
        formats=("onnx-int8", "onnx"),
        why="ONNX Runtime answers any number of images a call.",
        here=True,
    ),
    Use(
        name="TensorFlow Serving",
        formats=("saved_model",),
        why="It serves the folder as it is, by its version.",
    ),
    Use(
        name="A browser with WebGPU",
        formats=("onnx-fp16", "onnx"),
        why="The file is downloaded before it answers, and GPUs compute in float16.",
    ),
    Use(
        name="A browser without WebGPU",
        formats=("onnx-int8", "onnx"),
        why="The file is downloaded before it answers, then WebAssembly runs it.",
    ),
)


def advise(manifest: Manifest) -> list[Advice]:
    """Return a piece of advice for every use; only verified files are recommended."""
    records = {
        record.format: record
        for record in manifest.files
        if not record.verification.problems
    }
    return [_advice(use, records) for use in USES]


def _advice(use: Use, records: Mapping[str, FileRecord]) -> Advice:
    passed_over: list[str] = []
    for name in use.formats:
        if name not in records:
            continue
        record, base = records[name], _float_twin(name, records)
        doubt = _doubt(record, base, use)
        if not doubt:
            reason = [use.why, *_compared(record, base), *passed_over]
            return Advice(use=use.name, file=record.file, reason=" ".join(reason))
        passed_over.append(f"{record.file} was passed over: {doubt}.")
    wanted = " or ".join(use.formats)
    missing = f"Nothing in this export serves; add the format {wanted}."
    return Advice(use=use.name, file=None, reason=" ".join([missing, *passed_over]))


def _float_twin(name: str, records: Mapping[str, FileRecord]) -> FileRecord | None:
    """Return the float32 file of the same runtime, if it is another one."""
    twin = records.get(FORMATS[name].runtime)
    return None if twin is None or twin.format == name else twin


def _doubt(record: FileRecord, base: FileRecord | None, use: Use) -> str | None:
    """Tell why a file had better not be used, or None."""
    if FORMATS[record.format].precision in ("float32", "float16"):
        return None
    lost = _lost(record)
    if lost is not None and lost > _MOST_LOST:
        return f"it loses {100 * lost:.2f} points of accuracy"
    agreement = record.verification.agreement
    if lost is None and agreement < _LEAST_AGREEMENT:
        return f"it agrees with the model to {agreement:.2%} only"
    speed = _speed(record, base)
    if use.here and speed is not None and speed < 1:
        return f"it is {1 / speed:.1f} times slower than {base and base.file} here"
    return None


def _compared(record: FileRecord, base: FileRecord | None) -> list[str]:
    """Return sentences on size, speed and accuracy."""
    told = []
    if base is not None:
        size = f"{base.bytes / record.bytes:.1f} times smaller than {base.file}"
        speed = _speed(record, base)
        told.append(f"It is {size}{_in_words(speed)}.")
    elif record.latency is not None:
        told.append(f"An image takes {record.latency.median_ms:.2f} ms here.")
    found, lost = record.verification, _lost(record)
    if found.top5_agreement is None:
        told.append(
            f"The cosine of its features and the model's is {found.agreement:.4f}."
        )
    elif lost is None:
        told.append(f"Its top-1 is the model's on {found.agreement:.2%} of the images.")
    else:
        told.append(
            f"Its accuracy is {found.accuracy:.2%}, the model's "
            f"{found.model_accuracy:.2%}."
        )
    return told


def _lost(record: FileRecord) -> float | None:
    found = record.verification
    if found.accuracy is None or found.model_accuracy is None:
        return None
    # Rounded, for 0.97 - 0.965 is more than 0.005 in floating point.
    return round(found.model_accuracy - found.accuracy, 9)


def _speed(record: FileRecord, base: FileRecord | None) -> float | None:
    if base is None or base.latency is None or record.latency is None:
        return None
    return base.latency.median_ms / record.latency.median_ms


def _in_words(speed: float | None) -> str:
    if speed is None:
        return ""
    if 1 / _ALIKE < speed < _ALIKE:
        return " and as fast here"
    faster = speed > 1
    times = speed if faster else 1 / speed
    return f" and {times:.1f} times {'faster' if faster else 'slower'} here"
