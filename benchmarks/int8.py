"""How much do int8 files lose? reszoo beside the quantisers that it could have called.

Run: python benchmarks/int8.py CHECKPOINT DATA [--peers PYTHON] [--json FILE]

All of them quantise the same net with the same calibration images of the training
split, each as it does by default: reszoo's two files, ONNX Runtime's `quantize_static`,
TensorFlow's converter and, where `--peers` names a Python that has it, LiteRT's
quantizer. Each file answers every image of the test split in its own runtime.
"""

import argparse
import json
import logging
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness
import numpy as np

# Images at a time, where a runtime takes several.
BATCH = 50
NEEDED_DROP, NEEDED_AGREEMENT = 0.003, 0.98


def ours(serving: Any, calibration: Any, folder: Path) -> dict[str, Path]:
    """Write reszoo's files."""
    from reszoo_export.formats import FORMATS

    paths = {}
    for name in ("tflite-int8", "onnx-int8"):
        paths[f"reszoo {name}"] = path = folder / FORMATS[name].file
        FORMATS[name].write(serving, path, calibration)
    return paths


def of_onnx_runtime(serving: Any, calibration: Any, folder: Path) -> Path:
    """Write a file by `quantize_static`."""
    from reszoo_export.onnx import writer

    source, path = folder / "float.onnx", folder / "onnxruntime.onnx"
    writer.write(serving, source, None)
    quantise_statically(source, path, calibration)
    return path


def quantise_statically(source: Path, path: Path, calibration: Any) -> None:
    """Call `quantize_static` with its default arguments on one of reszoo's files."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    logging.disable(logging.WARNING)
    images = iter(calibration.images)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Any] | None:
            image = next(images, None)
            return None if image is None else {"image": image[None]}

    quantize_static(source, path, Reader())


def of_tensorflow(serving: Any, calibration: Any, folder: Path) -> Path:
    """Write a file by the converter's own full-integer recipe."""
    import tensorflow as tf

    from reszoo_export.tflite.writer import flatbuffer

    def prepare(converter: Any) -> None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: (
            {"image": image} for image in _floats(calibration.images)
        )
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]

    path = folder / "converter.tflite"
    path.write_bytes(flatbuffer(serving, prepare))
    return path


def of_litert(serving: Any, calibration: Any, folder: Path, peers: str) -> Path:
    """Write a file by LiteRT's quantizer with its recipe for static int8."""
    from reszoo_export.tflite import writer

    source, path = folder / "float.tflite", folder / "quantizer.tflite"
    writer.write(serving, source, None)
    np.save(folder / "images.npy", calibration.images)
    words = [peers, __file__, "--process", str(source), str(path)]
    done = subprocess.run(
        [*words, str(folder / "images.npy")], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"LiteRT's quantizer failed:\n{done.stderr}")
    return path


def quantize_in_peer(source: str, target: str, images: str) -> None:
    """Call LiteRT's quantizer, in an environment that has it."""
    from ai_edge_quantizer import quantizer, recipe

    made = quantizer.Quantizer(source, recipe.static_wi8_ai8())
    data = [{"image": image} for image in _floats(np.load(images))]
    found = made.calibrate({"serving_default": data})
    made.quantize(found).export_model(target)


def _floats(images: Any) -> Iterator[Any]:
    return (image[None].astype(np.float32) for image in images)


def answers(path: Path, images: Any) -> Any:
    """Return the classes that a file gives to images."""
    run = _onnx(path) if path.suffix == ".onnx" else _tflite(path)
    starts = range(0, len(images), BATCH)
    return np.concatenate([run(images[at : at + BATCH]) for at in starts])


def _onnx(path: Path) -> Callable[[Any], Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["probabilities"], {"image": images})[0].argmax(1)


def _tflite(path: Path) -> Callable[[Any], Any]:
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(path), num_threads=harness.THREADS).get_signature_runner(
        "serving_default"
    )
    detail = runner.get_input_details()["image"]
    # Quantised inputs have a step and a zero point: not every one takes bytes as such.
    step, zero = detail["quantization"]
    limits = np.iinfo(detail["dtype"]) if step else None

    def prepared(image: Any) -> Any:
        if limits is None:
            return image[None].astype(detail["dtype"])
        whole = np.round(image[None] / step) + zero
        return np.clip(whole, limits.min, limits.max).astype(detail["dtype"])

    def run(images: Any) -> Any:
        found = [runner(image=prepared(image))["probabilities"] for image in images]
        return np.concatenate(found).argmax(1)

    return run


def measure(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Quantise in every way, and ask every file about all images."""
    import reszoo
    from reszoo.data.sources import open_source
    from reszoo.evaluation import prepared_batches
    from reszoo.metrics import probabilities
    from reszoo_export.quantization.ranges import draw_calibration
    from reszoo_export.serving import make_serving

    model = reszoo.load(given.checkpoint)
    serving, source = make_serving(model), open_source(given.data)
    record, examples = serving.card.preprocessing, source.examples()
    images = np.concatenate(list(prepared_batches(examples, record, 256)))
    calibration = draw_calibration(source, serving.card, images)
    paths = ours(serving, calibration, folder)
    paths["converter"] = of_tensorflow(serving, calibration, folder)
    paths["quantize_static"] = of_onnx_runtime(serving, calibration, folder)
    if given.peers:
        paths["LiteRT's quantizer"] = of_litert(
            serving, calibration, folder, given.peers
        )
    labels, exact = examples.labels, probabilities(model, record, images).argmax(1)
    accuracy = float((exact == labels).mean())
    rows = {}
    for name, path in paths.items():
        found = answers(path, images)
        rows[name] = {
            "accuracy": float((found == labels).mean()),
            "drop": accuracy - float((found == labels).mean()),
            "agreement": float((found == exact).mean()),
            "bytes": path.stat().st_size,
        }
    choice = next(iter(calibration.choices.values()))
    return {
        "machine": harness.machine(),
        "net": serving.card.architecture.spec,
        "images": len(images),
        "float_accuracy": accuracy,
        "choice": choice.to_json(),
        "files": rows,
    }


def show(told: dict[str, Any]) -> None:
    """Print what was measured."""
    print(f"{told['net']}, {told['images']} images: {told['float_accuracy']:.2%} right")
    print(f"\n{'':24}{'accuracy':>10}{'drop':>9}{'agreement':>11}{'bytes':>12}")
    for name, row in told["files"].items():
        print(
            f"{name:24}{row['accuracy']:10.2%}{row['drop']:9.2%}"
            f"{row['agreement']:11.2%}{row['bytes']:12,}"
        )
    print()
    for name in ("reszoo tflite-int8", "reszoo onnx-int8"):
        row = told["files"][name]
        fine = row["drop"] <= NEEDED_DROP and row["agreement"] >= NEEDED_AGREEMENT
        rivals = [r for n, r in told["files"].items() if not n.startswith("reszoo")]
        best = all(row["agreement"] >= rival["agreement"] for rival in rivals)
        print(f"{name}: thresholds {'met' if fine else 'missed'}, ", end="")
        print("agreement never below the others'" if best else "another agrees more")
    best = told["choice"]["best"]
    print(f"ranges: within which {best['share']:.0%} of the calibration images stay")


def main() -> None:
    """Compare them."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("checkpoint", nargs="?", help="of a trained net")
    made.add_argument("data", nargs="?", help="what it was trained on")
    made.add_argument("--peers", help="python of the environment with the peers")
    made.add_argument("--json", type=Path, help="file for all that was measured")
    made.add_argument("--process", nargs=3, help=argparse.SUPPRESS)
    given = made.parse_args()
    if given.process:
        quantize_in_peer(*given.process)
        return
    if not given.data:
        made.error("name a checkpoint and its data")
    with tempfile.TemporaryDirectory() as name:
        told = measure(given, Path(name))
    show(told)
    if given.json:
        given.json.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
