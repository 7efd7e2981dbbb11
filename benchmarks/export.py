"""How long does an export take? reszoo and Keras' own `Model.export`.

Run: python benchmarks/export.py [--models resnet50] [--json FILE]

One model of reszoo with its batch normalisation, random weights, becomes a SavedModel,
a TFLite file and an ONNX file, or the ONNX file alone, in a fresh process each time.
"reszoo" writes the files, folding included; "reszoo, verified" is `reszoo.export`,
which also opens them in their runtimes, compares and measures them. Loading TensorFlow
and building the model does not count; loading a converter does.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import roof
from harness import Contender, Target

# The name of each format in each library.
FORMATS = {
    "reszoo": ("saved_model", "tflite", "onnx"),
    "keras": ("tf_saved_model", "litert", "onnx"),
}
PACKAGES = ("tensorflow", "keras", "tf2onnx", "onnx")
SIDES = {"resnet20": 32}


def write_reszoo(model: Any, folder: Path, formats: tuple[str, ...]) -> None:
    """Write files without verifying them."""
    from reszoo_export.formats import find_formats
    from reszoo_export.serving import make_serving

    serving = make_serving(model)
    for row in find_formats(formats):
        row.write(serving, folder / row.file, None)


def write_verified(model: Any, folder: Path, formats: tuple[str, ...]) -> None:
    """Write files as users of reszoo do."""
    import reszoo

    reszoo.export(model, folder / "export", formats=formats)


def write_keras(model: Any, folder: Path, formats: tuple[str, ...]) -> None:
    """Write files as users of Keras do."""
    endings = {"tf_saved_model": "", "litert": ".tflite", "onnx": ".onnx"}
    for name in formats:
        path = folder / f"model{endings[name]}"
        model.export(str(path), format=name, verbose=False)


WRITERS: dict[str, Callable[[Any, Path, tuple[str, ...]], None]] = {
    "reszoo": write_reszoo,
    "reszoo, verified": write_verified,
    "keras": write_keras,
}


def timed(writer: str, name: str, what: str) -> None:
    """Write once and print how many such exports fit in a minute."""
    import tensorflow as tf

    import reszoo

    library = writer.split(",")[0]
    formats = FORMATS[library] if what == "all" else ("onnx",)
    side = SIDES.get(name, 224)
    model = reszoo.build(name, input_shape=(side, side, 3), classes=1000, seed=0)
    # Keras refuses to make an ONNX file of a model that was never called.
    model(tf.zeros((1, side, side, 3)))
    with tempfile.TemporaryDirectory() as folder:
        begin, used = time.perf_counter(), harness.processor_seconds()
        WRITERS[writer](model, Path(folder), formats)
        seconds = time.perf_counter() - begin
        used = harness.processor_seconds() - used
    run = {"samples": [60 / seconds], "seconds": seconds, "cpu_seconds": used}
    harness.emit(
        run, megabytes=harness.megabytes(), versions=harness.versions(*PACKAGES)
    )


def contenders(names: list[str]) -> list[Contender]:
    """Return every writer, for all three formats and for ONNX."""
    found = [roof.contender("float32")]
    for name in names:
        for what in ("all", "onnx"):
            for writer in WRITERS:
                words = (sys.executable, __file__, "--process", writer, name, what)
                found.append(Contender(f"{name} {what} {writer}", words, "a minute"))
    return found


def targets(names: list[str]) -> list[Target]:
    """Return the project's targets: 0.5 and 0.35 of Keras' time."""
    found = []
    for name in names:
        for what, least in (("all", 1 / 0.5), ("onnx", 1 / 0.35)):
            theirs = f"{name} {what} keras"
            found.append(Target(f"{name} {what} reszoo", theirs, least))
            found.append(Target(f"{name} {what} reszoo, verified", theirs, 1.0))
    return found


def main() -> None:
    """Compare the exporters."""
    parser = harness.parser(__doc__ or "", rounds=3)
    parser.add_argument("--models", nargs="+", default=["resnet50"])
    given = parser.parse_args()
    if given.process:
        timed(*given.process)
        return
    entrants = contenders(given.models)
    runs = harness.measure(entrants, given.rounds)
    results = harness.summary(entrants, runs, targets(given.models))
    harness.report(results, given.json)


if __name__ == "__main__":
    main()
